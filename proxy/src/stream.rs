//! One socket as two halves of plaintext: [`Reader`] and [`Writer`].
//!
//! Below them lies the record layer (none towards an upstream), above them messages and relays. The halves know
//! nothing of HTTP. Two rules shape them:
//!
//! - A receive is never dropped while in flight; it lives in the [`Reader`] across calls, so that waiting for input can
//!   be given up and taken up again without losing a byte.
//! - What was pushed into a [`Writer`] leaves at the next flush, in one send where it fits; nothing is gathered beyond
//!   that.

mod reader;
mod writer;

use std::io;

pub(crate) use reader::is_retry;
pub use reader::{End, Fill, Reader, SpliceSource};
pub use writer::Writer;

use crate::ktls::RecordError;
use crate::timers::Cause;

/// Why a half failed. Whose fault it is follows from which socket it belongs to.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The kernel reported an error; a reset is the usual one.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer broke the TLS record protocol.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// The deadline for receiving passed.
    #[error("timed out")]
    Expired,
    /// The peer took no byte for too long.
    #[error("the peer takes nothing")]
    Stalled,
    /// The gateway is being stopped.
    #[error("the gateway is being stopped")]
    Drained,
    /// More input was asked for than the largest buffer holds. A limit above the stream should have refused it before.
    #[error("input does not fit the largest buffer")]
    Overflow,
    /// An earlier send of this half was cut off or failed; nothing may follow it.
    #[error("sending was cut off before")]
    Broken,
}

impl From<Cause> for StreamError {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Deadline => Self::Expired,
            Cause::Stall => Self::Stalled,
            Cause::Drain => Self::Drained,
        }
    }
}

/// Bytes that crossed one half as plaintext.
pub type Count = u64;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
