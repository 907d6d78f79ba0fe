//! Bytes move: bodies of known framing, and tunnels. What was read is sent before the next read is waited for.

mod body;
/// What a spliced transfer does next.
pub mod flow;
mod gaps;
mod splice;
mod tunnel;

use thiserror::Error;

pub use body::{BodyError, Pace, Sink, Source, Step, pump};
pub use gaps::{DEAD_AFTER, Gaps, RiskCounters, UNSTABLE_AFTER, UnstableRisk};
pub use tunnel::{Ending, tunnel};

use crate::error::Fault;
use crate::limits::{LONG_STEP_BYTES_MIN, LONG_STEPS_MAX, RECORD_PLAINTEXT_MAX};
use crate::stream::{Reader, StreamError, Writer};
use crate::transport::Transport;

/// Which end of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one bytes come from.
    From,
    /// The one bytes go to.
    To,
}

/// Why bytes stopped moving.
#[derive(Debug, Error)]
pub enum RelayError {
    /// A socket failed.
    #[error("{1}")]
    Stream(Side, StreamError),
    /// The framing of the body is malformed or ends too early.
    #[error("{0}")]
    Body(#[from] BodyError),
}

impl RelayError {
    /// Whose fault it is when bytes go from `from` to `to`.
    #[must_use]
    pub fn fault(&self, from: Fault, to: Fault) -> Fault {
        match self {
            Self::Stream(Side::From, _) | Self::Body(_) => from,
            Self::Stream(Side::To, _) => to,
        }
    }
}

/// Whether passing on what `from` holds, with what presumably stands behind it, is a long step.
fn is_long<T: Transport>(from: &Reader<T>) -> bool {
    from.has_rest() || from.filled().len() >= LONG_STEP_BYTES_MIN
}

/// Makes `step`, a long one, in a turn in which no other long step begins. What it receives there it also opens or seals, and sends:
/// while the others have their turns, the processor's caches would lose it. Where more has come meanwhile and the sink has taken all,
/// further ones follow, a turn for each, before another transfer has its first one: by then the caches of all who take part, source and
/// sink among them, have lost what belongs to this transfer. None follows what `is_last` says so of.
async fn alone<T: Transport, R>(
    from: &mut Reader<T>,
    mut step: impl AsyncFnMut(&mut Reader<T>) -> Result<R, RelayError>,
    is_last: impl Fn(&R) -> bool,
) -> Result<R, RelayError> {
    let (buffers, socket) = (from.buffers(), from.socket());
    let mut leave = buffers.turnstile().enter().await;
    let mut steps = 1;
    loop {
        let (done, kept) = leave.go_and_return(socket.turn(), step(from)).await;
        match (done, kept) {
            (Ok(done), Some(kept))
                if steps < LONG_STEPS_MAX && !is_last(&done) && from.note_rest() =>
            {
                leave = kept;
            }
            (done, _) => return done,
        }
        steps += 1;
    }
}

/// Passes on all that `from` holds, of which the last part may stay staged until the next flush. Much of it goes in the
/// buffer in which it came.
async fn pass<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
) -> Result<(), StreamError> {
    let len = from.filled().len();
    if len >= RECORD_PLAINTEXT_MAX && to.takes_whole() {
        return to.send_whole(from.detach()).await;
    }
    to.push_all(from.filled()).await?;
    from.consume(len);
    Ok(())
}

/// Has `count` bytes that were received and passed on acknowledged, where that is a small part of a stream that goes one way. Of
/// more the kernel acknowledges what it thinks fit.
fn acknowledge<T: Transport>(from: &Reader<T>, count: usize) {
    const SMALL_BYTES_MAX: usize = 4096;
    if count <= SMALL_BYTES_MAX {
        from.acknowledge();
    }
}

#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod ending_tests;
#[cfg(test)]
mod splice_tests;
#[cfg(test)]
mod tests;
