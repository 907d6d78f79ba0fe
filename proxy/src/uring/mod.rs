//! Typed asynchronous operations on a ring; the only module that knows tokio-uring.
//!
//! Enters: sockets, buffers. Leaves: the same, with what the kernel did to them. Nothing here knows what the bytes mean.
//!
//! tokio-uring 0.5 has traps that would be wrong in a gateway. They are closed here, so that no caller can meet them:
//!
//! - Dropping one of its futures cancels nothing: the operation goes on and keeps its buffer and descriptor. Here every
//!   operation owns what it uses, and a [`Socket`] whose last handle goes while an operation is still in flight is shut
//!   down, which completes it. (The bytes that a dropped receive has taken are lost, though. Keep it, as
//!   [`Transport`](crate::transport::Transport) says.)
//! - A dropped accept loses a descriptor for ever. [`Listener::accept`] keeps the operation when its future is dropped.
//! - At the end of its runtime it frees what abandoned operations own *before* it cancels them. [`start`] keeps that
//!   memory until the ring is gone.
//! - It submits only when the thread has nothing else to do. A task that is always ready therefore stops everything,
//!   and `tokio::task::yield_now` in a loop is such a task. Use [`no_op`] to be fair.
//! - It gives no way to its ring, which has to be told what it may do. [`start`] finds the ring and tells it: anything
//!   but the operations of this module is refused by the kernel.
//! - It cannot do operations that complete more than once (multishot, zero-copy send), nor `DEFER_TASKRUN`. There are
//!   none here.
//!
//! A wake-up from another thread needs no operation: the wakers of a task work from any thread, so the channels of
//! `tokio::sync` do.
#![expect(unsafe_code, reason = "memory is lent to the kernel; `op` states the rules")]

mod listener;
mod message;
mod op;
mod restrict;
mod runtime;
mod socket;

#[cfg(test)]
mod tests;

pub use listener::{AcceptError, ListenOptions, Listener};
pub use message::{Control, Received, RecvMessage, SendMessage};
pub use runtime::{Ring, Setup, StartError, no_op, spawn, start};
pub use socket::{Connecting, Readiness, Recv, Send, Socket};
