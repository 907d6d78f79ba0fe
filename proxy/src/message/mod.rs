//! HTTP/1.1 syntax. Pure: no I/O, no clock.
