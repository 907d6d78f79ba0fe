//! Sockets in memory, for tests of everything above [`Transport`]: no ring, no kernel, any
//! executor of one thread.
//!
//! [`pair`] makes two ends joined back to back: what one sends, the other receives. What a call
//! does is decided by the script of its end ([`Double::script`]), then by its [`Mood`]: short
//! counts, `WouldBlock`, `EINTR`, errors, calls that stay pending until [`Double::release`].
//! Everything sent is recorded ([`Double::sent`]).
//!
//! An end panics where the contract of [`Transport`] is broken: a second receive or send while one
//! is in flight (one whose future was dropped still is, until its direction is shut down), a
//! receive without room, a send of nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use super::{Buffer, KernelTls, Owned, Splicer, Transport};
use crate::pipes::Pipe;

/// What one call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It moves at most so many bytes, but at least one.
    AtMost(usize),
    /// It fails in this way, such as `ConnectionReset`, `Interrupted` or `WouldBlock`. Nothing is
    /// moved, and the next call is another matter.
    Fail(io::ErrorKind),
    /// It waits for [`Double::release`] and then does what the next step says. A call that must
    /// not wait gives `WouldBlock` meanwhile.
    Hold,
}

/// Which calls a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// [`Transport::recv`] and [`Transport::try_recv`].
    Receive,
    /// [`Transport::send`] and [`Transport::try_send`].
    Send,
}

/// What calls do for which no step is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As much as possible.
    Smooth,
    /// Random short counts, and one call in four fails by `Interrupted` or `WouldBlock`, all from
    /// this seed.
    Rough(u64),
}

/// One end of a pair. Clones are handles of the same end; when the last goes, with all futures, the
/// end is closed.
#[derive(Clone, Debug)]
pub struct Double(Rc<Handle>);

#[derive(Debug)]
struct Handle {
    wire: Rc<Wire>,
    side: usize,
}

/// Two ends joined back to back, each of which holds up to `capacity` bytes not yet received.
///
/// # Panics
/// When `capacity` is zero.
#[must_use]
pub fn pair(capacity: usize) -> (Double, Double) {
    assert!(capacity > 0, "an end that takes nothing");
    let wire = Rc::new(Wire { capacity, ends: Default::default(), wakers: RefCell::default() });
    let end = |side| Double(Rc::new(Handle { wire: Rc::clone(&wire), side }));
    (end(0), end(1))
}

#[derive(Debug)]
struct Wire {
    capacity: usize,
    ends: [End; 2],
    /// Everyone who waits for a change at either end.
    wakers: RefCell<Vec<Waker>>,
}

#[derive(Debug, Default)]
struct End {
    /// Sent by the peer, not yet received here.
    inbox: RefCell<VecDeque<u8>>,
    sent: RefCell<Vec<u8>>,
    receiving: Half,
    sending: Half,
    closed: Cell<bool>,
    spliceable: Cell<bool>,
    /// Records that the peer's key has protected; None without a record layer below.
    opened: Cell<Option<u64>>,
    random: Cell<Option<u64>>,
    acknowledgements: Cell<usize>,
}

#[derive(Debug, Default)]
struct Half {
    steps: RefCell<VecDeque<Step>>,
    in_flight: Cell<bool>,
    shut: Cell<bool>,
    calls: Cell<usize>,
}

impl Half {
    fn is_held(&self) -> bool {
        !self.shut.get() && self.steps.borrow().front() == Some(&Step::Hold)
    }

    /// Takes the next step. Those that hold are taken by a release only, or skipped once the half
    /// is shut down.
    fn next_step(&self) -> Option<Step> {
        while self.release() {}
        self.steps.borrow_mut().pop_front()
    }

    /// Drops a hold at the front, and says whether there was one.
    fn release(&self) -> bool {
        let mut steps = self.steps.borrow_mut();
        let held = steps.front() == Some(&Step::Hold);
        if held {
            steps.pop_front();
        }
        held
    }

    fn assert_free(&self) {
        let taken = self.in_flight.get() && !self.shut.get();
        assert!(!taken, "one operation of a direction is still in flight");
    }
}

impl End {
    fn half(&self, direction: Direction) -> &Half {
        match direction {
            Direction::Receive => &self.receiving,
            Direction::Send => &self.sending,
        }
    }

    /// A number below `bound`, when the mood is rough (SplitMix64).
    fn random(&self, bound: u64) -> Option<u64> {
        let state = self.random.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(Some(state));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some((mixed ^ (mixed >> 31)) % bound)
    }

    /// What a call does that could move `most` bytes and for which there is no step.
    fn improvise(&self, most: usize) -> Step {
        match self.random(8) {
            None => Step::AtMost(most),
            Some(0) => Step::Fail(io::ErrorKind::Interrupted),
            Some(1) => Step::Fail(io::ErrorKind::WouldBlock),
            // Half of the counts are tiny, so that whatever has a length is cut in its middle.
            Some(choice) => {
                let bound = if choice < 5 { most.min(4) } else { most };
                let less = self.random(bound as u64).unwrap_or(0);
                Step::AtMost(usize::try_from(less).map_or(most, |less| less + 1))
            }
        }
    }
}

impl Double {
    /// Appends steps for the coming calls of one direction.
    pub fn script(&self, direction: Direction, steps: impl IntoIterator<Item = Step>) {
        self.half(direction).steps.borrow_mut().extend(steps);
        self.0.wake();
    }

    /// Sets what calls do for which no step is left. An end begins [`Mood::Smooth`].
    pub fn set_mood(&self, mood: Mood) {
        self.own().random.set(match mood {
            Mood::Smooth => None,
            Mood::Rough(seed) => Some(seed),
        });
    }

    /// Lets bytes move between this end and a pipe.
    pub fn allow_splicing(&self) {
        self.own().spliceable.set(true);
    }

    /// Puts a record layer below this end whose keys have protected so many records. Bytes stay as they are.
    pub fn attach_records(&self, count: u64) {
        self.own().opened.set(Some(count));
    }

    /// Lets go of what a [`Step::Hold`] at the front of the script holds.
    pub fn release(&self, direction: Direction) {
        if self.half(direction).release() {
            self.0.wake();
        }
    }

    /// Everything that this end has sent so far.
    #[must_use]
    pub fn sent(&self) -> Vec<u8> {
        self.own().sent.borrow().clone()
    }

    /// Whether the peer has received everything that this end sent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.0.peer().inbox.borrow().is_empty()
    }

    /// Whether this end has shut a direction down.
    #[must_use]
    pub fn is_shut(&self, direction: Direction) -> bool {
        self.half(direction).shut.get()
    }

    /// Whether an operation of this end is in flight.
    #[must_use]
    pub fn is_in_flight(&self, direction: Direction) -> bool {
        self.half(direction).in_flight.get()
    }

    /// How many calls of one direction have come to a result, `WouldBlock` included.
    #[must_use]
    pub fn calls(&self, direction: Direction) -> usize {
        self.half(direction).calls.get()
    }

    /// How many steps of the script no call has used.
    #[must_use]
    pub fn steps_left(&self, direction: Direction) -> usize {
        self.half(direction).steps.borrow().len()
    }

    /// How often this end was to acknowledge what it received.
    #[must_use]
    pub fn acknowledgements(&self) -> usize {
        self.own().acknowledgements.get()
    }

    fn own(&self) -> &End {
        self.0.own()
    }

    fn half(&self, direction: Direction) -> &Half {
        self.own().half(direction)
    }

    /// Starts an operation.
    fn begin(&self, direction: Direction, buffer: Buffer) -> Operation {
        let half = self.half(direction);
        half.assert_free();
        half.in_flight.set(true);
        Operation { end: self.clone(), direction, buffer: Some(buffer) }
    }

    /// How many of `wanted` bytes a call moves now; pending where it would wait.
    fn decide(&self, direction: Direction, wanted: usize) -> Poll<io::Result<usize>> {
        let half = self.half(direction);
        if half.is_held() {
            return Poll::Pending;
        }
        let fails = matches!(half.steps.borrow().front(), Some(Step::Fail(_)));
        // An error of a script comes also where the call would have waited.
        let most = if fails { 0 } else { ready!(self.0.available(direction))?.min(wanted) };
        let step = match half.next_step() {
            None if most > 0 => self.own().improvise(most),
            step => step.unwrap_or(Step::AtMost(0)),
        };
        Poll::Ready(match step {
            Step::Fail(kind) => Err(kind.into()),
            Step::AtMost(_) if most == 0 => Ok(0),
            Step::AtMost(count) => Ok(count.clamp(1, most)),
            Step::Hold => return Poll::Pending,
        })
    }

    fn poll_recv(&self, buffer: &mut Buffer, most: usize) -> Poll<io::Result<usize>> {
        let decided = ready!(self.decide(Direction::Receive, buffer.spare().min(most)));
        let half = &self.own().receiving;
        half.calls.set(half.calls.get() + 1);
        let count = decided?;
        let bytes: Vec<u8> = self.own().inbox.borrow_mut().drain(..count).collect();
        buffer.append(&bytes);
        self.0.wake();
        Poll::Ready(Ok(count))
    }

    fn poll_send(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let decided = ready!(self.decide(Direction::Send, bytes.len()));
        let half = &self.own().sending;
        half.calls.set(half.calls.get() + 1);
        let count = decided?;
        self.0.peer().inbox.borrow_mut().extend(&bytes[..count]);
        self.own().sent.borrow_mut().extend(&bytes[..count]);
        self.0.wake();
        Poll::Ready(Ok(count))
    }

    /// Waits until a call of `direction` would not.
    fn ready(&self, direction: Direction) -> impl Future<Output = io::Result<()>> {
        let end = self.clone();
        poll_fn(move |cx| {
            let half = end.half(direction);
            let fails = matches!(half.steps.borrow().front(), Some(Step::Fail(_)));
            if fails || !half.is_held() && end.0.available(direction).is_ready() {
                return Poll::Ready(Ok(()));
            }
            end.0.wait(cx);
            Poll::Pending
        })
    }
}

impl Handle {
    fn own(&self) -> &End {
        &self.wire.ends[self.side]
    }

    fn peer(&self) -> &End {
        &self.wire.ends[1 - self.side]
    }

    /// How many bytes could be moved; zero only at the end of the stream.
    fn available(&self, direction: Direction) -> Poll<io::Result<usize>> {
        match direction {
            Direction::Receive => {
                let queued = self.own().inbox.borrow().len();
                let ended = self.peer().sending.shut.get() || self.own().receiving.shut.get();
                if queued == 0 && !ended { Poll::Pending } else { Poll::Ready(Ok(queued)) }
            }
            Direction::Send => {
                if self.own().sending.shut.get() || self.peer().closed.get() {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                match self.wire.capacity - self.peer().inbox.borrow().len() {
                    0 => Poll::Pending,
                    room => Poll::Ready(Ok(room)),
                }
            }
        }
    }

    fn shutdown(&self, how: Shutdown) {
        self.own().receiving.shut.set(self.own().receiving.shut.get() || how != Shutdown::Write);
        self.own().sending.shut.set(self.own().sending.shut.get() || how != Shutdown::Read);
        self.wake();
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut wakers = self.wire.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
    }

    fn wake(&self) {
        for waker in self.wire.wakers.take() {
            waker.wake();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.own().closed.set(true);
        self.shutdown(Shutdown::Both);
    }
}

impl Transport for Double {
    type Recv = Operation;
    type Send = Operation;

    fn recv(&self, buffer: Buffer) -> Operation {
        assert!(buffer.spare() > 0, "a receive needs room");
        self.begin(Direction::Receive, buffer)
    }

    fn send(&self, buffer: Buffer) -> Operation {
        assert!(!buffer.is_empty(), "a send of nothing");
        self.begin(Direction::Send, buffer)
    }

    fn try_recv(&self, buffer: &mut Buffer, count: usize) -> io::Result<usize> {
        assert!(buffer.spare().min(count) > 0, "a receive needs room");
        self.own().receiving.assert_free();
        at_once(|| self.poll_recv(buffer, count))
    }

    fn holds(&self, count: usize) -> bool {
        self.own().inbox.borrow().len() >= count
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty(), "a send of nothing");
        self.own().sending.assert_free();
        at_once(|| self.poll_send(bytes))
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.ready(Direction::Receive)
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.ready(Direction::Send)
    }

    fn turn(&self) -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    fn shutdown(&self, how: Shutdown) {
        self.0.shutdown(how);
    }

    fn splicer(&self) -> Option<&dyn Splicer> {
        if self.own().spliceable.get() { Some(self) } else { None }
    }

    fn cookie(&self) -> Option<u64> {
        Some(1)
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn reset_on_close(&self) {}

    fn acknowledge(&self) {
        let count = &self.own().acknowledgements;
        count.set(count.get() + 1);
    }

    fn kernel_tls(&self) -> Option<&dyn KernelTls> {
        if self.own().opened.get().is_some() { Some(self) } else { None }
    }
}

/// Calls follow the same scripts and moods as those that receive and send; the pipe is a real one.
impl Splicer for Double {
    fn fill(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        let mut buffer = Buffer::with_capacity(count);
        match self.poll_recv(&mut buffer, count) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(result) => {
                File::from(pipe.write.try_clone()?).write_all(buffer.filled())?;
                result
            }
        }
    }

    fn fill_opened(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        self.fill(pipe, count)
    }

    fn drain(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        let Poll::Ready(decided) = self.decide(Direction::Send, count) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut bytes = vec![0; decided?];
        File::from(pipe.read.try_clone()?).read_exact(&mut bytes)?;
        self.0.peer().inbox.borrow_mut().extend(&bytes);
        self.own().sent.borrow_mut().extend(&bytes);
        self.0.wake();
        Ok(bytes.len())
    }
}

/// The result of a call that must not wait; as [`Transport`] says, it has retried `EINTR`.
fn at_once(mut call: impl FnMut() -> Poll<io::Result<usize>>) -> io::Result<usize> {
    loop {
        match call() {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(result) => return result,
            Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// A receive or a send in flight. Unlike one of a ring it moves its bytes when it is polled.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Operation {
    end: Double,
    direction: Direction,
    buffer: Option<Buffer>,
}

impl Future for Operation {
    type Output = Owned;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Owned> {
        let Self { end, direction, buffer } = self.get_mut();
        let mut owned = buffer.take().expect("not polled after completion");
        let polled = match direction {
            Direction::Receive => end.poll_recv(&mut owned, usize::MAX),
            Direction::Send => end.poll_send(owned.filled()),
        };
        let Poll::Ready(result) = polled else {
            *buffer = Some(owned);
            end.0.wait(cx);
            return Poll::Pending;
        };
        if let (Direction::Send, Ok(count)) = (*direction, &result) {
            owned.consume(*count);
        }
        end.half(*direction).in_flight.set(false);
        Poll::Ready((result, owned))
    }
}

mod records;
#[cfg(test)]
mod tests;
