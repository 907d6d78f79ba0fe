//! A byte's path: `accept` -> `handshake` -> `ktls` -> `message` -> `pool` -> `relay` -> `telemetry`.
//! Each stage consumes the output of the one before; `connection` is the only place they meet.
#![deny(unsafe_code)] // lifted, with a reason, in `sys` and `uring` only

/// Every bound the gateway enforces, with the relations between them checked at compile time.
pub mod limits;
