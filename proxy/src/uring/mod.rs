//! Typed asynchronous operations on a ring; the only module that knows who drives it.
//!
//! Enters: sockets, buffers. Leaves: the same, with what the kernel did to them. Nothing here knows what the bytes mean.
//!
//! From Linux 6.1 a driver of our own enters the kernel once for each turn; on older kernels tokio-uring drives the ring,
//! with traps of its own that are closed there. Both obey the same rules:
//!
//! - Dropping a future cancels nothing: the operation goes on and keeps its buffer and descriptor. Every operation owns
//!   what it uses, and a [`Socket`] whose last handle goes while an operation is still in flight is shut down, which
//!   completes it. (The bytes that a dropped receive has taken are lost, though. Keep it, as
//!   [`Transport`](crate::transport::Transport) says.)
//! - A dropped accept would lose a connection. [`Listener::accept`] keeps the operation when its future is dropped.
//! - What is asked for is submitted when the thread has nothing else to do, or with some others; a small send is made at
//!   once where little goes on, and not on the ring. A task that is always ready stops everything. Use [`no_op`] to be fair.
//! - No operation completes more than once, but a receive that stands. That is none of the callers' business.
//! - The kernel refuses anything but the operations of this module.
//!
//! Tasks are woken by completions, and by each other. A wake-up from another thread is not lost, but wakes nobody before
//! something completes: there is a tick of the clock for that.
#![expect(unsafe_code, reason = "memory is lent to the kernel; `op` states the rules")]

mod compat;
mod driver;
mod listener;
mod message;
mod op;
mod provided;
mod restrict;
mod runtime;
mod socket;
mod standing;
mod unacknowledged;

#[cfg(test)]
mod tests;

pub use listener::{AcceptError, ListenOptions, Listener};
pub use message::{Control, Received, RecvMessage, SendMessage};
pub use runtime::{Delivery, Ring, Setup, StartError, lend, no_op, sleep, spawn, start};
pub use socket::{Connecting, Readiness, Recv, Send, Socket};
