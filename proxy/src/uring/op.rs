//! One operation from submission to completion: the only place that lends memory to the kernel.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use io_uring::{cqueue, squeue};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// What an operation owns while the kernel works on it, and what becomes of that.
///
/// Dropping the value must not touch the ring: the driver may be the one who drops it.
pub(super) trait Operation: Unpin + 'static {
    /// What the caller gets.
    type Output;

    /// Called once, with the result of the completion.
    fn complete(self, result: io::Result<u32>) -> Self::Output;
}

/// An operation in the hands of the kernel.
///
/// Polled again after it was ready, it panics, as most futures do.
pub(super) struct InFlight<O: Operation>(InFlightOneshot<Held<O>, Complete<O>>);

/// Hands `operation` to the kernel. The entry is submitted when the thread next has nothing to do, or when the queue is
/// full.
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
    let held = Held(Some(operation));
    InFlight(UnsubmittedOneshot::new(held, Complete(std::marker::PhantomData), entry).submit())
}

impl<O: Operation> Future for InFlight<O> {
    type Output = O::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// How tokio-uring is told what to do with a completion.
struct Complete<O>(std::marker::PhantomData<fn(O)>);

impl<O: Operation> OneshotOutputTransform for Complete<O> {
    type Output = O::Output;
    type StoredData = Held<O>;

    fn transform_oneshot_output(self, mut held: Held<O>, entry: cqueue::Entry) -> O::Output {
        let result = u32::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        let operation = held.0.take().expect("an operation is taken out only here");
        operation.complete(result)
    }
}

/// An operation in flight. Dropped while the runtime ends, it outlives the ring.
struct Held<O: 'static>(Option<O>);

impl<O: 'static> Drop for Held<O> {
    fn drop(&mut self) {
        if PHASE.get() == Phase::Ending
            && let Some(operation) = self.0.take()
        {
            ENDED.with_borrow_mut(|ended| ended.push(Box::new(operation)));
        }
    }
}

/// Where the runtime of this thread is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Absent,
    Running,
    Ending,
}

thread_local! {
    static PHASE: Cell<Phase> = const { Cell::new(Phase::Absent) };
    static ENDED: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Whether there is a ring on which an operation can complete.
pub(super) fn is_running() -> bool {
    PHASE.get() != Phase::Absent
}

/// Says that the runtime of this thread exists.
pub(super) fn begin() {
    PHASE.set(Phase::Running);
}

/// Drops the runtime; what its operations own is freed only after that.
///
/// The driver of tokio-uring 0.5.0 replaces the state of each operation (`Lifecycle::Ignored`, which owns the data of a
/// dropped future) before it cancels it, so that for a moment the kernel may write to memory that has been freed.
pub(super) fn end(runtime: tokio_uring::Runtime) {
    PHASE.set(Phase::Ending);
    drop(runtime);
    PHASE.set(Phase::Absent);
    drop(ENDED.take());
}
