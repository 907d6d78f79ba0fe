//! A byte's path: `accept` -> [`handshake`] -> [`ktls`] -> [`message`] -> `pool` -> `relay` -> `telemetry`.
//! Each stage consumes the output of the one before; `connection` is the only place they meet.
#![deny(unsafe_code)] // lifted, with a reason, in `sys` and `uring` only

/// TLS in user space until the secrets are known (rustls). No I/O here.
pub mod handshake;

/// The record layer from the end of the handshake on.
pub mod ktls;

/// HTTP/1.1 heads, framing, rewriting, replies. Pure: no I/O, no clock.
pub mod message;

/// The floor: the only module that knows a ring.
pub mod uring;

/// Addresses and the questions asked of them.
pub mod addr;

/// A file becomes values that cannot be wrong.
pub mod config;

/// Whose fault something is.
pub mod error;

/// Every bound the gateway enforces, with the relations between them checked at compile time.
pub mod limits;

/// System calls that are not operations on a ring.
pub mod sys;

/// The seam between what a connection decides and what the kernel does.
pub mod transport;

/// Buffers of one worker.
pub mod buffers;

/// Pipes of one worker.
pub mod pipes;

/// Fairness between the connections of one worker.
pub mod turnstile;

/// One connection from accept to its end; the only place that knows the order of the stages.
pub mod connection;

/// One configuration in use.
pub mod generation;

/// Connections to upstreams.
pub mod pool;

/// Bytes move.
pub mod relay;

/// One socket as two halves of plaintext.
pub mod stream;

/// What happened, told to people.
pub mod telemetry;

/// Deadlines of one worker.
pub mod timers;

/// A socket arrives, and is admitted or shed.
pub mod accept;

/// What the gateway gives up before it serves.
pub mod confine;

/// The control thread.
pub mod gateway;

/// How the gateway does, told to administrators. Not on a byte's path.
pub mod admin;

/// One core.
pub mod worker;

/// Tomcat's side: the valve that makes it believe this gateway, and nobody else. Not on a byte's path.
pub mod valve;

/// What stands between this machine and a good gateway, and the command that cures it. Not on a byte's path.
pub mod doctor;

/// The connections of a running gateway, the slowest first, and why they are slow. Not on a byte's path.
pub mod top;
