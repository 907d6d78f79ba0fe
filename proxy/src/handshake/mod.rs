//! TLS in user space until the secrets are known: bytes in, bytes out, no I/O.
