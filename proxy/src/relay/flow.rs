//! What a spliced transfer does next. Pure: the calls are made elsewhere and their results told here.

use std::io;

/// Bytes after which others get their turn.
const TURN_BYTES: usize = 1 << 20;

/// A transfer of known length through a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that have not left the source.
    left: u64,
    /// Bytes in the pipe.
    held: usize,
    capacity: usize,
    source: Side,
    sink: Side,
    /// Bytes moved since others had their turn.
    turn: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The next call may move something.
    Ready,
    /// The last call would have waited.
    Blocked,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Move at most so many bytes from the source into the pipe.
    Fill(usize),
    /// Move exactly what is in the pipe to the sink: a larger count makes kernels from 6.12 on hold the last part back.
    Drain(usize),
    /// Wait until the source has something.
    AwaitSource,
    /// Wait until the sink takes something.
    AwaitSink,
    /// Let others have their turn.
    Yield,
    /// Everything has arrived.
    Done,
}

/// Why a transfer ends before its length.
#[derive(Debug)]
pub enum Stop {
    /// The source ended early.
    Truncated,
    /// The source cannot be spliced. Nothing is in the pipe: it can be copied from here on.
    Unsuitable,
    /// A call failed; the first error is final.
    Source(io::Error),
    /// The same at the sink.
    Sink(io::Error),
}

impl Flow {
    /// `left` bytes through a pipe that holds `capacity`.
    #[must_use]
    pub fn new(left: u64, capacity: usize) -> Self {
        Self { left, held: 0, capacity, source: Side::Ready, sink: Side::Ready, turn: 0 }
    }

    /// Bytes that are not yet on their way to the sink: what would have to be copied instead.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether the pipe is empty, so that it can be used again.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.held == 0
    }

    /// What to do.
    #[must_use]
    pub fn next(&self) -> Next {
        let can_fill = self.source == Side::Ready;
        match self.held {
            0 if self.left == 0 => Next::Done,
            // A full pipe and an empty socket give the same error: a pipe is filled when it is empty only.
            0 if can_fill && self.turn >= TURN_BYTES => Next::Yield,
            0 if can_fill => Next::Fill(
                usize::try_from(self.left).map_or(self.capacity, |left| left.min(self.capacity)),
            ),
            0 => Next::AwaitSource,
            _ if self.sink == Side::Ready => Next::Drain(self.held),
            _ => Next::AwaitSink,
        }
    }

    /// The result of [`Next::Fill`].
    ///
    /// # Errors
    /// When the transfer cannot go on like this.
    pub fn on_filled(&mut self, result: io::Result<usize>) -> Result<(), Stop> {
        match result {
            Ok(0) => Err(Stop::Truncated),
            Ok(count) => {
                self.left = self.left.saturating_sub(count as u64);
                self.held += count;
                self.turn += count;
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.source = Side::Blocked;
                    Ok(())
                }
                io::ErrorKind::Interrupted => Ok(()),
                // `EINVAL`, and from a peek `EIO`: a record that is no data stands first, or no such socket splices.
                _ if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) => {
                    Err(Stop::Unsuitable)
                }
                io::ErrorKind::InvalidInput => Err(Stop::Unsuitable),
                _ => Err(Stop::Source(error)),
            },
        }
    }

    /// The result of [`Next::Drain`].
    ///
    /// # Errors
    /// When the transfer cannot go on.
    pub fn on_drained(&mut self, result: io::Result<usize>) -> Result<(), Stop> {
        match result {
            Ok(0) => Err(Stop::Sink(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                self.held = self.held.saturating_sub(count);
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.sink = Side::Blocked;
                    Ok(())
                }
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(Stop::Sink(error)),
            },
        }
    }

    /// The wait for the source is over.
    pub fn on_source_ready(&mut self) {
        self.source = Side::Ready;
    }

    /// The wait for the sink is over.
    pub fn on_sink_ready(&mut self) {
        self.sink = Side::Ready;
    }

    /// The others had their turn.
    pub fn on_turn(&mut self) {
        self.turn = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a call does, whatever it is asked for.
    #[derive(Clone, Debug)]
    enum Does {
        Moves(usize),
        Fails(i32),
        Ends,
    }

    fn does() -> impl Strategy<Value = Does> {
        prop_oneof![
            8 => (1_usize..300_000).prop_map(Does::Moves),
            3 => Just(Does::Fails(libc::EAGAIN)),
            1 => Just(Does::Fails(libc::EINTR)),
            1 => prop::sample::select(&[
                libc::EINVAL, libc::EIO, libc::ECONNRESET, libc::EPIPE, libc::EBADMSG, libc::ENOMEM,
            ]).prop_map(Does::Fails),
            1 => Just(Does::Ends),
        ]
    }

    fn result(does: &Does, most: usize) -> io::Result<usize> {
        match *does {
            Does::Moves(count) => Ok(count.clamp(1, most)),
            Does::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
            Does::Ends => Ok(0),
        }
    }

    proptest! {
        #[test]
        fn every_byte_arrives_or_the_transfer_stops(
            left in 0_u64..5_000,
            capacity in 1_usize..6_000,
            mut calls in proptest::collection::vec(does(), 1..40),
        ) {
            // Calls of which none ever moves anything would go on for ever, and rightly so.
            calls.push(Does::Moves(1));
            let steps_max = (left + 1) * 8 * calls.len() as u64;
            let mut flow = Flow::new(left, capacity);
            let mut calls = calls.iter().cycle();
            let (mut entered, mut arrived, mut waited) = (0_u64, 0_u64, false);
            for _ in 0..steps_max {
                let outcome = match flow.next() {
                    Next::Fill(most) => {
                        prop_assert!(most > 0 && most <= capacity && flow.is_drained());
                        waited = false;
                        let result = result(calls.next().unwrap(), most);
                        if let Ok(count) = result { entered += count as u64 }
                        flow.on_filled(result)
                    }
                    Next::Drain(held) => {
                        prop_assert!(held as u64 == entered - arrived, "exactly what is in the pipe");
                        waited = false;
                        let result = result(calls.next().unwrap(), held);
                        if let Ok(count) = result { arrived += count as u64 }
                        flow.on_drained(result)
                    }
                    wait @ (Next::AwaitSource | Next::AwaitSink | Next::Yield) => {
                        prop_assert!(!waited, "two waits without a call between them");
                        waited = wait != Next::Yield;
                        match wait {
                            Next::AwaitSource => flow.on_source_ready(),
                            Next::AwaitSink => flow.on_sink_ready(),
                            _ => flow.on_turn(),
                        }
                        Ok(())
                    }
                    Next::Done => {
                        prop_assert_eq!((entered, arrived), (left, left));
                        return Ok(());
                    }
                };
                if let Err(stop) = outcome {
                    prop_assert!(!matches!(stop, Stop::Unsuitable) || flow.is_drained());
                    prop_assert_eq!(flow.left(), left - entered);
                    return Ok(());
                }
            }
            prop_assert!(false, "it spins: {} of {} bytes", arrived, left);
        }
    }

    #[test]
    fn others_get_their_turn_in_a_fast_transfer() {
        let mut flow = Flow::new(u64::MAX, 1 << 18);
        let mut moved = 0_usize;
        while flow.next() != Next::Yield {
            match flow.next() {
                Next::Fill(count) => flow.on_filled(Ok(count)).unwrap(),
                Next::Drain(count) => {
                    moved += count;
                    flow.on_drained(Ok(count)).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(moved, TURN_BYTES);
        flow.on_turn();
        assert_eq!(flow.next(), Next::Fill(1 << 18));
    }

    fn failed(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn each_result_leads_to_its_step() {
        let mut flow = Flow::new(6, 4);
        assert_eq!(flow.next(), Next::Fill(4));
        flow.on_filled(failed(libc::EINTR)).unwrap();
        assert_eq!(flow.next(), Next::Fill(4));
        flow.on_filled(failed(libc::EAGAIN)).unwrap();
        assert_eq!(flow.next(), Next::AwaitSource);
        flow.on_source_ready();
        assert_eq!(flow.next(), Next::Fill(4));
        flow.on_filled(Ok(4)).unwrap();
        assert_eq!((flow.next(), flow.is_drained(), flow.left()), (Next::Drain(4), false, 2));
        flow.on_drained(failed(libc::EINTR)).unwrap();
        assert_eq!(flow.next(), Next::Drain(4));
        flow.on_drained(failed(libc::EAGAIN)).unwrap();
        assert_eq!(flow.next(), Next::AwaitSink);
        flow.on_sink_ready();
        flow.on_drained(Ok(3)).unwrap();
        assert_eq!((flow.next(), flow.is_drained()), (Next::Drain(1), false));
        flow.on_drained(Ok(1)).unwrap();
        assert_eq!((flow.next(), flow.is_drained()), (Next::Fill(2), true));
        flow.on_filled(Ok(2)).unwrap();
        flow.on_drained(Ok(2)).unwrap();
        assert_eq!((flow.next(), flow.left()), (Next::Done, 0));
    }

    #[test]
    fn each_failure_ends_a_transfer_for_its_own_reason() {
        let filled = |result| Flow::new(1, 1).on_filled(result).unwrap_err();
        assert!(matches!(filled(Ok(0)), Stop::Truncated));
        for errno in [libc::EINVAL, libc::EIO] {
            assert!(matches!(filled(failed(errno)), Stop::Unsuitable), "{errno}");
        }
        let no_number = Err(io::ErrorKind::InvalidInput.into());
        assert!(matches!(filled(no_number), Stop::Unsuitable));
        assert!(matches!(filled(failed(libc::ECONNRESET)), Stop::Source(_)));
        let drained = |result| {
            let mut flow = Flow::new(1, 1);
            flow.on_filled(Ok(1)).unwrap();
            flow.on_drained(result).unwrap_err()
        };
        assert!(matches!(drained(Ok(0)), Stop::Sink(_)));
        for errno in [libc::EINVAL, libc::EPIPE] {
            assert!(matches!(drained(failed(errno)), Stop::Sink(_)), "{errno}");
        }
    }
}
