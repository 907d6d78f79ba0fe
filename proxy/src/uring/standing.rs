//! A receive that stands: asked for once, it completes whenever something has come (`IORING_RECV_MULTISHOT`).
//!
//! A receive that completes once costs its set-up each time: an operation, an attempt that finds nothing, a place in the queue
//! of those whom the socket wakes. Of a small message that is some 5 % of what it costs. What comes in bulk is better received
//! into one large buffer of the receiver: then the standing receive is stopped.
//!
//! Who waits pins no memory for it. The buffer that it brings is lent to the others, and it gets one when something has come.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buffers::{Buffers, Class};
use crate::limits::AHEAD_BYTES_MAX;
use crate::transport::{Buffer, Owned};

/// A standing receive of one socket, between the driver, which brings what has come, and the socket, which takes it.
#[derive(Debug)]
pub(super) struct Standing {
    buffers: Rc<Buffers>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    wanted: Wanted,
    /// What came while nobody wanted it, or did not fit.
    ahead: Vec<u8>,
    waker: Option<Waker>,
}

/// What is asked for.
#[derive(Debug)]
enum Wanted {
    Nothing,
    /// What comes, in an empty buffer of at least this class.
    Class(Class),
    /// What comes, behind what the buffer holds. It has been received in part.
    Rest(Buffer, usize),
}

#[derive(Debug)]
enum Phase {
    /// The kernel goes on.
    Armed,
    /// It has been told to stop.
    Stopping,
    /// It has stopped, and there may be more to receive.
    Stopped,
    /// The stream has ended, or failed.
    Ended(Option<io::Error>),
}

/// What came of asking a standing receive.
#[derive(Debug)]
pub(super) enum Answer {
    /// What was asked for.
    Done(Owned),
    /// It stands no more, and brought nothing: the socket is to be asked, with this buffer.
    Over(Buffer),
}

/// What the kernel is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    /// Nothing.
    Continue,
    /// To stop.
    Stop,
}

impl Standing {
    /// One that the kernel is about to be given. Buffers come from, and go to, `buffers`.
    pub(super) fn new(buffers: Rc<Buffers>) -> Self {
        let state =
            State { phase: Phase::Armed, wanted: Wanted::Nothing, ahead: Vec::new(), waker: None };
        Self { buffers, state: RefCell::new(state) }
    }

    /// Takes what a completion brought; `goes_on` says whether others will follow. Gives whom to wake.
    pub(super) fn on_completion(
        &self,
        result: io::Result<&[u8]>,
        goes_on: bool,
    ) -> (Verdict, Option<Waker>) {
        let mut state = self.state.borrow_mut();
        match result {
            Ok([]) => state.phase = Phase::Ended(None),
            Ok(bytes) => {
                state.take_in(bytes, &self.buffers);
                if !goes_on {
                    state.phase = Phase::Stopped;
                }
            }
            Err(error) if is_no_end(&error) => state.phase = Phase::Stopped,
            Err(error) => state.phase = Phase::Ended(Some(error)),
        }
        let verdict = match state.phase {
            Phase::Armed if state.ahead.len() > AHEAD_BYTES_MAX => {
                state.phase = Phase::Stopping;
                Verdict::Stop
            }
            // It was just at work when it was to stop, and may not have been found.
            Phase::Stopping => Verdict::Stop,
            _ => Verdict::Continue,
        };
        (verdict, state.waker.take())
    }

    /// Asks for what comes next. The answer has this buffer, or an empty one of its size or larger if it is empty.
    pub(super) fn want(&self, mut buffer: Buffer) {
        let mut state = self.state.borrow_mut();
        let class = Class::holding(buffer.capacity());
        let is_blank = buffer.spare() == class.bytes();
        state.wanted = if state.ahead.is_empty() && is_blank {
            self.buffers.give(buffer);
            Wanted::Class(class)
        } else {
            let count = buffer.append(&state.ahead);
            state.drop_ahead(count);
            Wanted::Rest(buffer, count)
        };
    }

    /// Forgets what was asked for, with what came of it.
    pub(super) fn forget(&self) {
        let wanted = std::mem::replace(&mut self.state.borrow_mut().wanted, Wanted::Nothing);
        if let Wanted::Rest(buffer, _) = wanted {
            self.buffers.give(buffer);
        }
    }

    /// What became of what was asked for.
    ///
    /// # Panics
    /// When nothing was, or the answer has been given.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Answer> {
        let mut state = self.state.borrow_mut();
        let has_come = matches!(state.wanted, Wanted::Rest(_, 1..));
        if !has_come && !state.is_over() {
            state.wait(cx);
            return Poll::Pending;
        }
        let (buffer, received) = match std::mem::replace(&mut state.wanted, Wanted::Nothing) {
            Wanted::Rest(buffer, received) => (buffer, received),
            Wanted::Class(class) => (self.buffers.take(class), 0),
            Wanted::Nothing => panic!("nothing was asked for"),
        };
        Poll::Ready(match &mut state.phase {
            _ if received > 0 => Answer::Done((Ok(received), buffer)),
            Phase::Ended(error) => Answer::Done((error.take().map_or(Ok(0), Err), buffer)),
            Phase::Armed | Phase::Stopping | Phase::Stopped => Answer::Over(buffer),
        })
    }

    /// Waits until something has come that nobody has asked for, or it stands no more.
    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if !state.ahead.is_empty() || state.is_over() {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// Hands what came unasked to `take`, which says how much of it it took; None when nothing came.
    pub(super) fn take_ahead(
        &self,
        take: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        if state.ahead.is_empty() {
            return None;
        }
        let taken = take(&state.ahead);
        if let Ok(count) = taken {
            state.drop_ahead(count);
        }
        Some(taken)
    }

    /// Asks that it stop; that is told to the kernel once.
    pub(super) fn stop(&self) -> Verdict {
        let mut state = self.state.borrow_mut();
        if matches!(state.phase, Phase::Armed) {
            state.phase = Phase::Stopping;
            Verdict::Stop
        } else {
            Verdict::Continue
        }
    }

    /// Whether it stands no more and all that came has been taken: from then on the socket itself is asked.
    ///
    /// # Errors
    /// The error by which the stream failed, which the socket tells nobody a second time.
    pub(super) fn spend(&self) -> io::Result<bool> {
        let mut state = self.state.borrow_mut();
        if !state.ahead.is_empty() || !state.is_over() {
            return Ok(false);
        }
        match &mut state.phase {
            Phase::Ended(error) => error.take().map_or(Ok(true), Err),
            Phase::Armed | Phase::Stopping | Phase::Stopped => Ok(true),
        }
    }
}

impl State {
    /// Puts `bytes` where they are wanted, as far as there is room, and keeps the rest.
    fn take_in(&mut self, mut bytes: &[u8], buffers: &Buffers) {
        if let Wanted::Class(class) = self.wanted {
            let buffer = buffers.take(class.max(Class::holding(bytes.len())));
            self.wanted = Wanted::Rest(buffer, 0);
        }
        if let Wanted::Rest(buffer, received) = &mut self.wanted
            && self.ahead.is_empty()
        {
            let count = buffer.append(bytes);
            *received += count;
            bytes = &bytes[count..];
        }
        // It may be a good part of a megabyte: no room for twice as much.
        self.ahead.reserve_exact(bytes.len());
        self.ahead.extend_from_slice(bytes);
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Ended(_))
    }

    fn drop_ahead(&mut self, count: usize) {
        if count == self.ahead.len() {
            // It is needed seldom.
            self.ahead = Vec::new();
        } else {
            self.ahead.drain(..count);
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

/// Whether the stream goes on in spite of this: there was no buffer, it was told to stop, or the kernel could not wait for more.
fn is_no_end(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing() -> Standing {
        Standing::new(Rc::new(Buffers::default()))
    }

    fn poll(standing: &Standing) -> Option<Answer> {
        match standing.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn who_waits_pins_no_buffer_and_gets_one_that_holds_what_came() {
        let standing = standing();
        let tiny = Buffer::with_capacity(Class::Tiny.bytes());
        let storage = tiny.filled().as_ptr();
        standing.want(tiny);
        assert_eq!(standing.buffers.take(Class::Tiny).filled().as_ptr(), storage);
        assert!(poll(&standing).is_none());
        let message = vec![7; Class::Small.bytes() + 1];
        let _ = standing.on_completion(Ok(&message), true);
        let Some(Answer::Done((Ok(count), buffer))) = poll(&standing) else { panic!("it came") };
        assert_eq!((count, buffer.filled()), (message.len(), &message[..]));
    }

    #[test]
    fn what_follows_what_a_buffer_holds_stands_behind_it() {
        let standing = standing();
        let mut begun = Buffer::with_capacity(10);
        begun.append(b"half");
        standing.want(begun);
        let _ = standing.on_completion(Ok(b" a record and more"), true);
        let Some(Answer::Done((Ok(6), buffer))) = poll(&standing) else { panic!("it came") };
        assert_eq!(buffer.filled(), b"half a rec");
        let mut rest = Vec::new();
        let taken = standing.take_ahead(|bytes| {
            rest.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        assert_eq!((taken.unwrap().unwrap(), &rest[..]), (12, &b"ord and more"[..]));
        assert!(standing.take_ahead(|_| panic!("nothing is left")).is_none());
    }

    #[test]
    fn an_end_comes_behind_what_came_before_it_and_again() {
        let standing = standing();
        let _ = standing.on_completion(Ok(b"last"), true);
        let _ = standing.on_completion(Ok(&[]), false);
        standing.want(Buffer::with_capacity(100));
        assert!(matches!(poll(&standing), Some(Answer::Done((Ok(4), _)))));
        for _ in 0..2 {
            standing.want(Buffer::with_capacity(100));
            assert!(matches!(poll(&standing), Some(Answer::Done((Ok(0), _)))));
        }
    }

    #[test]
    fn a_failure_is_told_once_and_is_the_end() {
        let standing = standing();
        let _ = standing.on_completion(Err(os(libc::ECONNRESET)), false);
        assert!(standing.spend().is_err());
        standing.want(Buffer::with_capacity(100));
        assert!(matches!(poll(&standing), Some(Answer::Done((Ok(0), _)))));
    }

    #[test]
    fn without_buffers_or_cancelled_it_is_over_and_no_failure() {
        for code in [libc::ENOBUFS, libc::ECANCELED, libc::EINTR, libc::EAGAIN] {
            let standing = standing();
            standing.want(Buffer::with_capacity(Class::Tiny.bytes()));
            let _ = standing.on_completion(Err(os(code)), false);
            let Some(Answer::Over(buffer)) = poll(&standing) else { panic!("it is over") };
            assert_eq!(buffer.spare(), Class::Tiny.bytes());
            assert!(standing.spend().unwrap());
        }
    }

    #[test]
    fn it_is_told_to_stop_once_and_again_where_it_was_not_found() {
        let standing = standing();
        assert_eq!(standing.stop(), Verdict::Stop);
        assert_eq!(standing.stop(), Verdict::Continue);
        assert_eq!(standing.on_completion(Ok(b"meanwhile"), true).0, Verdict::Stop);
        assert!(!standing.spend().unwrap());
        assert_eq!(standing.on_completion(Err(os(libc::ECANCELED)), false).0, Verdict::Continue);
        assert!(!standing.spend().unwrap(), "something came");
        assert_eq!(standing.take_ahead(|bytes| Ok(bytes.len())).unwrap().unwrap(), 9);
        assert!(standing.spend().unwrap());
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let standing = standing();
        let mut came = 0;
        while standing.on_completion(Ok(&[0; 1000]), true).0 == Verdict::Continue {
            came += 1000;
            assert!(came <= AHEAD_BYTES_MAX);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Comes(usize),
        Want(usize, usize),
        Poll,
        Take(usize),
        Stop,
        /// Nothing comes any more: the end, or an error that is none.
        Over(Option<i32>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let class = prop_oneof![Just(Class::Tiny), Just(Class::Small), Just(Class::Record)];
        let code = prop_oneof![Just(None), Just(Some(libc::ENOBUFS)), Just(Some(libc::ECANCELED))];
        prop_oneof![
            4 => (1_usize..9000).prop_map(Step::Comes),
            2 => (0_usize..3, 1_usize..30_000).prop_map(|(filled, room)| Step::Want(filled, room)),
            2 => class.prop_map(|class| Step::Want(0, class.bytes())),
            4 => Just(Step::Poll),
            2 => (1_usize..5000).prop_map(Step::Take),
            1 => Just(Step::Stop),
            1 => code.prop_map(Step::Over),
        ]
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_swapped(steps in proptest::collection::vec(step(), 1..60)) {
            let standing = standing();
            let (mut came, mut got) = (0_usize, 0_usize);
            let (mut is_wanted, mut filled_before, mut is_over) = (false, 0, false);
            let byte = |index: usize| u8::try_from(index % 251).expect("less than 251");
            for step in steps.into_iter().chain([Step::Poll, Step::Take(usize::MAX)]) {
                match step {
                    Step::Comes(count) if !is_over => {
                        let bytes: Vec<u8> = (came..came + count).map(byte).collect();
                        let _ = standing.on_completion(Ok(&bytes), true);
                        came += count;
                    }
                    Step::Want(filled, room) if !is_wanted => {
                        let mut buffer = Buffer::with_capacity(filled + room);
                        buffer.append(&vec![0xff; filled]);
                        standing.want(buffer);
                        (is_wanted, filled_before) = (true, filled);
                    }
                    Step::Poll if is_wanted => match poll(&standing) {
                        Some(Answer::Done((Ok(count @ 1..), buffer))) => {
                            is_wanted = false;
                            let bytes: Vec<u8> = (got..got + count).map(byte).collect();
                            prop_assert_eq!(&buffer.filled()[filled_before..], &bytes);
                            got += count;
                        }
                        Some(Answer::Done((Ok(0), _)) | Answer::Over(_)) => {
                            prop_assert!(got == came && is_over);
                            is_wanted = false;
                        }
                        None => prop_assert!(got == came && !is_over),
                        other => prop_assert!(false, "{:?}", other),
                    },
                    // Who waits for an answer takes nothing beside it.
                    Step::Take(most) if !is_wanted => {
                        let taken = standing.take_ahead(|bytes| {
                            let count = bytes.len().min(most);
                            let expected: Vec<u8> = (got..got + count).map(byte).collect();
                            assert_eq!(&bytes[..count], expected);
                            Ok(count)
                        });
                        got += taken.map_or(0, Result::unwrap);
                    }
                    Step::Stop => {
                        let _ = standing.stop();
                    }
                    Step::Over(code) if !is_over => {
                        is_over = true;
                        let result = code.map_or(Ok(&[][..]), |code| Err(os(code)));
                        let _ = standing.on_completion(result, false);
                    }
                    Step::Comes(_) | Step::Want(..) | Step::Poll | Step::Take(_) | Step::Over(_) => {}
                }
            }
            prop_assert!(got == came || is_wanted);
        }
    }
}
