//! A ring and the tasks that wait for it: one thread, and one call of the kernel for each turn.
//!
//! A turn runs tasks until all of them wait, then enters the kernel once: what they have asked for is submitted, of what has
//! happened meanwhile some twenty operations complete (`DEFER_TASKRUN`: only then; all of them before Linux 6.13), and if there
//! are none the thread sleeps there until one does. Where little goes on, what they send does not wait for that. What can
//! wait, acknowledgements, is done before the thread sleeps.
//!
//! A task may be woken from another thread, but its own sleeps on: it sees that when something completes.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_executor::{LocalPool, LocalSpawner};
use futures_task::{LocalFutureObj, LocalSpawn as _};
use futures_util::FutureExt as _;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

use super::op::outcome;
use super::provided::{self, Provided};
use super::standing::{Standing, Verdict};
use super::unacknowledged::Unacknowledged;
use crate::buffers::Buffers;

/// Entries that may wait for the end of a turn in which many operations complete. Beyond, they are submitted at once: a
/// turn in which a thousand messages are handled would hold the first of them back until the last is done. With 16, messages
/// of 1,000 tunnels cost some 10 % more than without a bound.
const HELD_BACK_MAX: usize = 64;

/// So many completions in one turn are few: then as many sends are made at once, so that of a few messages that come together
/// each leaves without waiting for the next one.
const FEW: usize = 4;

/// Marks the completion of a cancellation, which nobody waits for.
const NOBODY: u64 = u64::MAX;

/// An operation that the kernel has been given, or will be before the thread sleeps.
enum Slot {
    /// Nobody has asked for it.
    Submitted,
    /// A task waits.
    Awaited(Waker),
    /// Done and not yet asked for: the result of the kernel.
    Completed(i32),
    /// Given up: what it owns is freed, and what it brings is dropped, when the kernel is done.
    Abandoned(Box<dyn FnOnce(io::Result<u32>)>),
    /// Completes again and again; the descriptor is kept until it does so no more.
    Standing { standing: Rc<Standing>, _descriptor: Rc<OwnedFd> },
}

/// A ring that may be used, with its buffers if receives are to stand. It is dropped before they are.
pub(super) struct Made {
    pub(super) ring: IoUring,
    pub(super) provided: Option<Provided>,
}

/// The ring of this thread.
pub(super) struct Driver {
    ring: RefCell<IoUring>,
    /// What standing receives receive into, where there are any. Behind the ring, which is dropped first.
    provided: RefCell<Option<Provided>>,
    /// From where those who wait for standing receives get buffers, when something has come. None until that is said.
    lent: RefCell<Option<Rc<Buffers>>>,
    slots: RefCell<Slab<Slot>>,
    /// Completions taken out of the ring; empty but while they are handed on.
    batch: RefCell<Vec<cqueue::Entry>>,
    /// Standing receives to be stopped behind a batch: what it still holds of them has to come first.
    stopping: RefCell<Vec<usize>>,
    /// Completions of the last turn in which the kernel was entered.
    crowd: Cell<usize>,
    /// Sends made at once in this turn.
    hurried: Cell<usize>,
    /// Whether the ring ended without telling what became of its operations.
    is_broken: Cell<bool>,
    unacknowledged: RefCell<Unacknowledged>,
    spawner: LocalSpawner,
}

thread_local! {
    static DRIVER: RefCell<Option<Rc<Driver>>> = const { RefCell::new(None) };
}

/// The driver of this thread, if it runs.
pub(super) fn current() -> Option<Rc<Driver>> {
    DRIVER.with_borrow(Clone::clone)
}

/// Whether the first task is to be polled.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `main` and all that it spawns on `ring`, until `main` is done. What was spawned and is not done then is dropped
/// where it is.
pub(super) fn run<F: Future>(made: Made, main: impl FnOnce() -> F) -> F::Output {
    assert!(current().is_none(), "a thread has one ring at a time");
    let tasks = LocalPool::new();
    let driver = Rc::new(Driver {
        ring: RefCell::new(made.ring),
        provided: RefCell::new(made.provided),
        lent: RefCell::default(),
        slots: RefCell::default(),
        batch: RefCell::default(),
        stopping: RefCell::default(),
        crowd: Cell::new(0),
        hurried: Cell::new(0),
        is_broken: Cell::new(false),
        unacknowledged: RefCell::default(),
        spawner: tasks.spawner(),
    });
    DRIVER.set(Some(Rc::clone(&driver)));
    // What is declared last is dropped first, also when a panic unwinds: the tasks, then what they have left with the
    // kernel.
    let _end = End(Rc::clone(&driver));
    let mut tasks = tasks;
    let mut main = pin!(main());
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    loop {
        if woken.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(output) = main.as_mut().poll(&mut context)
        {
            return output;
        }
        tasks.run_until_stalled();
        if !woken.0.load(Ordering::Acquire) {
            or_broken(driver.turn());
        }
    }
}

/// The end of a driver.
struct End(Rc<Driver>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.cancel_all();
        DRIVER.set(None);
    }
}

impl Driver {
    /// Runs a task beside the caller. One that panics ends, and nothing else does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Task and guard in one piece: of a thousand tasks, none finds what it needs in a cache.
        let guarded = AssertUnwindSafe(task).catch_unwind().map(|_ended_or_panicked| ());
        // Refused only when the pool has gone, and then nothing runs any more.
        let _ = self.spawner.spawn_local_obj(LocalFutureObj::new(Box::new(guarded)));
    }

    /// Queues an entry and returns the key of its completion.
    ///
    /// # Safety
    /// What [`op::submit`](super::op::submit) demands of the entry, until its completion has been polled or it has been
    /// abandoned with what it owns.
    pub(super) unsafe fn push(&self, entry: squeue::Entry) -> usize {
        // SAFETY: the caller vouches for the entry, which completes once.
        unsafe { self.begin(Slot::Submitted, entry) }
    }

    /// Queues an entry whose completion `slot` is for, and returns the key of that.
    ///
    /// # Safety
    /// The entry may be submitted at any time, and what it names stays valid until its last completion: that of an entry that
    /// completes again and again, for which `slot` must be [`Slot::Standing`], is the first one without the flag of more to
    /// come. Other entries complete once.
    unsafe fn begin(&self, slot: Slot, entry: squeue::Entry) -> usize {
        let key = self.slots.borrow_mut().insert(slot);
        // SAFETY: the caller vouches for the entry.
        let queued = unsafe { self.queue(&entry.user_data(key as u64)) };
        if queued.is_err() {
            let _never_queued = self.slots.borrow_mut().remove(key);
        }
        or_broken(queued);
        key
    }

    /// Whether a send is to be made at once and without the ring, which costs less where little goes on. Not for ever in one
    /// turn, since others would wait.
    pub(super) fn hurries(&self) -> bool {
        let hurried = self.hurried.get();
        let hurries = self.crowd.get() <= FEW && hurried < FEW;
        self.hurried.set(hurried + usize::from(hurries));
        hurries
    }

    /// Queues an entry, and submits what waits when that is [`HELD_BACK_MAX`] entries.
    ///
    /// # Errors
    /// That of a ring that works no more, and then the entry is not queued.
    ///
    /// # Safety
    /// As [`Self::begin`], where its completion has a slot.
    unsafe fn queue(&self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            let mut ring = self.ring.borrow_mut();
            let mut queue = ring.submission();
            // SAFETY: the caller vouches for the entry.
            let is_queued = unsafe { queue.push(entry) }.is_ok();
            let is_due = !is_queued || queue.len() >= HELD_BACK_MAX;
            drop(queue);
            let submitted = if is_due { ring.submit() } else { Ok(0) };
            drop(ring);
            match submitted {
                // What else there may be is met again at the end of the turn.
                _ if is_queued => return Ok(()),
                Ok(_) => {}
                Err(error) if is_passing(&error) => self.make_room()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// What has come of an operation. It is asked no more when it was ready.
    pub(super) fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<io::Result<u32>> {
        let mut slots = self.slots.borrow_mut();
        match &mut slots[key] {
            Slot::Completed(result) => {
                let result = *result;
                let _done = slots.remove(key);
                Poll::Ready(outcome(result))
            }
            Slot::Awaited(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            slot @ Slot::Submitted => {
                *slot = Slot::Awaited(cx.waker().clone());
                Poll::Pending
            }
            Slot::Abandoned(_) | Slot::Standing { .. } => unreachable!("nobody polls these"),
        }
    }

    /// Keeps what an operation owns, in `finish`, until the kernel is done with it, and calls that with the result.
    pub(super) fn abandon(&self, key: usize, finish: impl FnOnce(io::Result<u32>) + 'static) {
        if self.is_broken.get() {
            // The kernel may touch it for ever.
            mem::forget(finish);
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        if let Slot::Completed(result) = *slot {
            let _done = slots.remove(key);
            drop(slots);
            finish(outcome(result));
        } else {
            let _waker = mem::replace(slot, Slot::Abandoned(Box::new(finish)));
        }
    }

    /// Enters the kernel, and sleeps there until an operation has completed. Where something is to be acknowledged, it first sees
    /// whether one has, without sleeping: a call more before the sleep, and none before a message.
    ///
    /// # Errors
    /// That of a ring that works no more.
    fn turn(&self) -> io::Result<()> {
        self.hurried.set(0);
        let has_unacknowledged = !self.unacknowledged.borrow().is_empty();
        if has_unacknowledged && self.turn_without_sleep()? > 0 {
            return Ok(());
        }
        let entered = self.ring.borrow().submit_and_wait(1);
        match entered {
            Ok(_) => self.crowd.set(self.reap()),
            Err(error) if is_passing(&error) => self.make_room()?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Enters the kernel once, acknowledges what was received if nothing else is to be done, and returns how many operations
    /// have completed.
    ///
    /// # Errors
    /// That of a ring that works no more.
    fn turn_without_sleep(&self) -> io::Result<usize> {
        let completed = self.look()?;
        self.crowd.set(completed);
        self.unacknowledged.borrow_mut().after_turn(completed);
        Ok(completed)
    }

    /// Has `socket` acknowledge what it received, when there is nothing else to do.
    pub(super) fn acknowledge_later(&self, socket: Weak<OwnedFd>) {
        self.unacknowledged.borrow_mut().push(socket);
    }

    /// Submits what is queued, hands on what has completed without waiting for anything, and returns how much that is. Where the
    /// kernel cannot take all that is queued, nothing completes in this call.
    ///
    /// # Errors
    /// That of a ring that works no more.
    fn look(&self) -> io::Result<usize> {
        let queued = self.ring.borrow_mut().submission().len();
        self.enter(queued)
    }

    /// Lets operations complete without submitting any: a kernel that has no memory for a new one does not come to that.
    ///
    /// # Errors
    /// That of a ring that works no more.
    fn make_room(&self) -> io::Result<()> {
        self.enter(0).map(drop)
    }

    /// Submits `count` entries, hands on what has completed, and returns how much that is.
    ///
    /// # Errors
    /// That of a ring that works no more.
    fn enter(&self, count: usize) -> io::Result<usize> {
        const GETEVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        let count = u32::try_from(count).expect("the queue is shorter");
        let ring = self.ring.borrow();
        // SAFETY: who queued the entries vouches for them, and there is no argument.
        let entered =
            unsafe { ring.submitter().enter::<libc::sigset_t>(count, 0, GETEVENTS, None) };
        drop(ring);
        match entered {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(self.reap()),
        }
    }

    /// Hands on what has completed, and returns how much that is.
    fn reap(&self) -> usize {
        let mut batch = self.batch.take();
        let mut ring = self.ring.borrow_mut();
        batch.extend(ring.completion());
        drop(ring);
        let count = batch.len();
        for entry in batch.drain(..) {
            if entry.user_data() != NOBODY {
                let key = usize::try_from(entry.user_data()).expect("a key");
                self.complete(key, entry.result(), entry.flags());
            }
        }
        self.batch.replace(batch);
        for key in self.stopping.take() {
            // An error is met again at the next turn.
            let _ = self.cancel(key);
        }
        count
    }

    fn complete(&self, key: usize, result: i32, flags: u32) {
        let mut slots = self.slots.borrow_mut();
        if let Slot::Standing { standing, .. } = &slots[key] {
            let standing = Rc::clone(standing);
            if !cqueue::more(flags) {
                let _done = slots.remove(key);
            }
            drop(slots);
            return self.bring(key, &standing, outcome(result), flags);
        }
        match mem::replace(&mut slots[key], Slot::Completed(result)) {
            Slot::Awaited(waker) => {
                drop(slots);
                waker.wake();
            }
            Slot::Abandoned(finish) => {
                let _done = slots.remove(key);
                drop(slots);
                finish(outcome(result));
            }
            Slot::Submitted | Slot::Completed(_) | Slot::Standing { .. } => {}
        }
    }

    /// Hands on what a standing receive has brought.
    fn bring(&self, key: usize, standing: &Standing, result: io::Result<u32>, flags: u32) {
        let mut provided = self.provided.borrow_mut();
        let provided = provided.as_mut().expect("nothing stands without");
        let id = cqueue::buffer_select(flags);
        let result = result.map(|count| match id {
            Some(id) => provided.filled(id, count),
            None => &[],
        });
        let (verdict, waker) = standing.on_completion(result, cqueue::more(flags));
        if let Some(id) = id {
            provided.give_back(id);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        if verdict == Verdict::Stop {
            let mut stopping = self.stopping.borrow_mut();
            if !stopping.contains(&key) {
                stopping.push(key);
            }
        }
    }

    /// Lets receives stand from now on, where the kernel can do that.
    pub(super) fn lend(&self, buffers: Rc<Buffers>) {
        if self.provided.borrow().is_some() {
            self.lent.replace(Some(buffers));
        }
    }

    /// Has the kernel receive from `descriptor` until it is told to stop. Returns also the key by which it is; None where
    /// receives do not stand.
    pub(super) fn stand(&self, descriptor: Rc<OwnedFd>) -> Option<(Rc<Standing>, usize)> {
        let buffers = Rc::clone(self.lent.borrow().as_ref()?);
        let standing = Rc::new(Standing::new(buffers));
        let entry = opcode::RecvMulti::new(types::Fd(descriptor.as_raw_fd()), provided::GROUP);
        let slot = Slot::Standing { standing: Rc::clone(&standing), _descriptor: descriptor };
        // SAFETY: it completes again and again, and the slot is a standing one, which keeps the descriptor until the last
        // completion. Memory is named by the group only.
        let key = unsafe { self.begin(slot, entry.build()) };
        Some((standing, key))
    }

    /// Has the kernel stop a standing receive.
    pub(super) fn stop(&self, key: usize) {
        or_broken(self.cancel(key));
    }

    /// Has the kernel stop a standing receive, and looks at once whether it has.
    pub(super) fn stop_now(&self, key: usize) {
        or_broken(self.cancel(key).and_then(|()| self.look()).map(drop));
    }

    /// Asks that an operation end. It may not be found, just when it is at work.
    fn cancel(&self, key: usize) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(key as u64).build().user_data(NOBODY);
        // SAFETY: it names no memory and no descriptor.
        unsafe { self.queue(&cancel) }
    }

    /// Ends all operations, so that the kernel touches nothing any more.
    fn cancel_all(&self) {
        if self.try_cancel_all().is_err() {
            // Nobody can tell any more when the kernel is done: what it may still touch is never freed.
            self.is_broken.set(true);
            mem::forget(self.slots.take());
            mem::forget(self.provided.take());
        }
    }

    fn try_cancel_all(&self) -> io::Result<()> {
        loop {
            let in_flight = self.in_flight();
            if in_flight.is_empty() {
                return Ok(());
            }
            // Again in each turn: one that is just about to be tried again is not found, and may then wait anew.
            for key in in_flight {
                self.cancel(key)?;
            }
            self.turn()?;
        }
    }

    fn in_flight(&self) -> Vec<usize> {
        let slots = self.slots.borrow();
        let in_flight = slots.iter().filter(|(_, slot)| !matches!(slot, Slot::Completed(_)));
        in_flight.map(|(key, _)| key).collect()
    }
}

/// Panics if the ring works no more. In a task that is the end of the task; the next turn of the driver meets the same error,
/// and that is the end of the thread.
fn or_broken(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        panic!("io_uring_enter: {error}");
    }
}

/// Whether the same call may succeed later: a signal came; completions must be fetched first; there is no memory now.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}
