//! One operation from submission to completion: the only place that lends memory to the kernel, but for the buffers of
//! [`provided`](super::provided).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use io_uring::squeue;

use super::driver::Driver;
use super::{compat, driver};

/// What an operation owns while the kernel works on it, and what becomes of that.
///
/// Dropping the value must not touch the ring: the driver may be the one who drops it.
pub(super) trait Operation: Unpin + 'static {
    /// What the caller gets.
    type Output;

    /// Called once, with the result of the completion. It must not touch the ring either.
    fn complete(self, result: io::Result<u32>) -> Self::Output;
}

/// An operation in the hands of the kernel. Dropped before it was ready, it goes on.
///
/// Polled again after it was ready, it panics, as most futures do.
pub(super) struct InFlight<O: Operation>(Driven<O>);

/// By whom it is driven.
enum Driven<O: Operation> {
    Driver(Keyed<O>),
    Compat(compat::InFlight<O>),
}

/// Hands `operation` to the kernel. The entry is submitted when the thread next has nothing to do, or when some others
/// are waiting with it.
///
/// # Panics
/// Outside [`start`](super::start).
///
/// # Safety
/// - The descriptor and all memory that `entry` names belong to `operation`: they stay valid until it is dropped.
/// - That memory is on the heap, reached through a type that makes no claim of being the only one to reach it when it is
///   moved (a `Vec` or an `Rc<UnsafeCell<_>>`, not a `Box`), since `operation` itself moves while in flight.
/// - While in flight, nobody reads memory that the kernel writes, nor writes memory that the kernel reads.
/// - `entry` completes exactly once: no multishot, no zero-copy send.
pub(super) unsafe fn submit<O: Operation>(operation: O, entry: squeue::Entry) -> InFlight<O> {
    InFlight(match driver::current() {
        Some(driver) => {
            // SAFETY: the caller vouches for the entry, and `Keyed` keeps the operation until the completion, or leaves
            // it to the driver, which does.
            let key = unsafe { driver.push(entry) };
            Driven::Driver(Keyed { driver, key, operation: Some(operation) })
        }
        // SAFETY: the caller vouches for the entry.
        None => Driven::Compat(unsafe { compat::submit(operation, entry) }),
    })
}

impl<O: Operation> Future for InFlight<O> {
    type Output = O::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O::Output> {
        match &mut self.0 {
            Driven::Driver(keyed) => Pin::new(keyed).poll(cx),
            Driven::Compat(in_flight) => Pin::new(in_flight).poll(cx),
        }
    }
}

/// An operation that its driver knows by a key.
struct Keyed<O: Operation> {
    driver: Rc<Driver>,
    key: usize,
    /// None after completion, when the key may be that of another.
    operation: Option<O>,
}

impl<O: Operation> Future for Keyed<O> {
    type Output = O::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O::Output> {
        assert!(self.operation.is_some(), "polled after completion");
        let result = ready!(self.driver.poll(self.key, cx));
        let operation = self.operation.take().expect("as asserted");
        Poll::Ready(operation.complete(result))
    }
}

impl<O: Operation> Drop for Keyed<O> {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            self.driver.abandon(self.key, |result| drop(operation.complete(result)));
        }
    }
}

/// A result as the kernel writes it: a count, or an error as its negative.
pub(super) fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

/// Whether there is a ring on which an operation can complete.
pub(super) fn is_running() -> bool {
    driver::current().is_some() || compat::is_running()
}
