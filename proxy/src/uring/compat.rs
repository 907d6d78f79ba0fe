//! The ring of kernels before 6.1, which know no `DEFER_TASKRUN`, by tokio-uring.
//!
//! tokio-uring 0.5 has traps that would be wrong in a gateway. They are closed here and around it:
//!
//! - At the end of its runtime it frees what abandoned operations own *before* it cancels them. [`run`] keeps that memory
//!   until the ring is gone.
//! - It submits only when the thread has nothing else to do. A task that is always ready therefore stops everything,
//!   and `tokio::task::yield_now` in a loop is such a task. Use [`no_op`](super::no_op) to be fair.
//! - It gives no way to its ring, which has to be told what it may do. [`restricted`](super::restrict::restricted) finds
//!   the ring.
//! - It waits in `epoll_wait` for its ring and then asks the ring: two calls for a turn, and more where the kernel wakes
//!   the thread before there is a completion.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;

use io_uring::{cqueue, squeue};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::op::{Operation, outcome};

/// An operation in the hands of the kernel.
pub(super) type InFlight<O> = InFlightOneshot<Held<O>, Complete<O>>;

/// Hands `operation` to the kernel, as [`op::submit`](super::op::submit) demands.
///
/// # Panics
/// Outside [`run`].
///
/// # Safety
/// That of [`op::submit`](super::op::submit).
pub(super) unsafe fn submit<O: Operation>(operation: O, entry: squeue::Entry) -> InFlight<O> {
    UnsubmittedOneshot::new(Held(Some(operation)), Complete(PhantomData), entry).submit()
}

/// How tokio-uring is told what to do with a completion.
pub(super) struct Complete<O>(PhantomData<fn(O)>);

impl<O: Operation> OneshotOutputTransform for Complete<O> {
    type Output = O::Output;
    type StoredData = Held<O>;

    fn transform_oneshot_output(self, mut held: Held<O>, entry: cqueue::Entry) -> O::Output {
        let operation = held.0.take().expect("an operation is taken out only here");
        operation.complete(outcome(entry.result()))
    }
}

/// An operation in flight. Dropped while the runtime ends, it outlives the ring.
pub(super) struct Held<O: 'static>(Option<O>);

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

/// Whether there is a runtime on which an operation can complete.
pub(super) fn is_running() -> bool {
    PHASE.get() != Phase::Absent
}

/// Runs `main` and all that it spawns on `runtime`, until `main` is done.
pub(super) fn run<F: Future>(runtime: tokio_uring::Runtime, main: impl FnOnce() -> F) -> F::Output {
    let runtime = Ended(Some(runtime));
    PHASE.set(Phase::Running);
    runtime.0.as_ref().expect("present until dropped").block_on(main())
}

/// A runtime whose operations keep what they own until it is gone, also when a panic unwinds through it.
///
/// The driver of tokio-uring 0.5.0 replaces the state of each operation (`Lifecycle::Ignored`, which owns the data of a
/// dropped future) before it cancels it, so that for a moment the kernel may write to memory that has been freed.
struct Ended(Option<tokio_uring::Runtime>);

impl Drop for Ended {
    fn drop(&mut self) {
        PHASE.set(Phase::Ending);
        drop(self.0.take());
        PHASE.set(Phase::Absent);
        drop(ENDED.take());
    }
}
