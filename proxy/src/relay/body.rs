//! The body of one message, from one connection to the other.

use std::time::Duration;

use thiserror::Error;

use super::splice::splice;
use super::{RelayError, Side, acknowledge, alone, is_long, pass};
use crate::limits::{BODY_RATE_GRACE, SPLICE_BYTES_MIN};
use crate::message::chunked::{self, ChunkError, Decoder};
use crate::message::framing::Framing;
use crate::stream::{End, Fill, Reader, StreamError, Writer};
use crate::transport::Transport;

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// The chunked framing is malformed.
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    /// The connection ended before the body did.
    #[error("the body was cut off")]
    Truncated,
    /// The body is longer than its route allows.
    #[error("the body exceeds {0} bytes")]
    TooLarge(u64),
}

/// The framing of what comes in, and how much of it is still to come.
#[derive(Clone, Debug)]
pub enum Source {
    /// Bytes that are left.
    Length(u64),
    /// Chunked.
    Chunked(Decoder),
    /// Until the connection ends cleanly.
    UntilClose,
}

/// What [`Source::take`] found at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input used up, framing included.
    pub consumed: usize,
    /// Bytes of data, at the front of the input.
    pub data_len: usize,
    /// The body is complete.
    pub ended: bool,
}

impl Source {
    /// The source of a body framed so.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Decoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Bytes of data that certainly come next, one behind the other, without framing between them.
    #[must_use]
    pub fn spliceable(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(decoder) => decoder.chunk_left(),
            Self::UntilClose => 0,
        }
    }

    /// Says that `count` of [`Source::spliceable`] went by unseen.
    pub fn skip(&mut self, count: u64) {
        match self {
            Self::Length(left) => *left = left.saturating_sub(count),
            Self::Chunked(decoder) => decoder.skip(count),
            Self::UntilClose => {}
        }
    }

    /// Takes what belongs to the body from the front of `input`, where its data then stands.
    ///
    /// # Errors
    /// When the chunked framing is malformed.
    pub fn take(&mut self, input: &mut [u8]) -> Result<Step, ChunkError> {
        Ok(match self {
            Self::Length(left) => {
                let count =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= count as u64;
                Step { consumed: count, data_len: count, ended: *left == 0 }
            }
            Self::Chunked(decoder) => {
                let found = decoder.dechunk(input)?;
                Step { consumed: found.consumed, data_len: found.data_len, ended: found.ended }
            }
            Self::UntilClose => Step { consumed: input.len(), data_len: input.len(), ended: false },
        })
    }
}

/// The framing of what goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Data as it is: its length was announced, or its end is that of the connection.
    Raw,
    /// Each piece of data that is there becomes one chunk.
    Chunked,
}

impl Sink {
    /// The sink for a message announced with `framing`.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Chunked => Self::Chunked,
            Framing::None | Framing::Length(_) | Framing::UntilClose => Self::Raw,
        }
    }
}

/// How long the source may take.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each read by itself.
    Idle(Duration),
    /// On average this many bytes per second while we wait for it, after a grace.
    Rate {
        /// Bytes per second, at least 1.
        bytes_per_second: u64,
    },
}

/// The deadline of the next read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    pace: Pace,
    /// What the reader had consumed when this body began: bytes of earlier requests on the connection earn it nothing.
    base: u64,
    received: u64,
    waited: Duration,
}

impl Pacer {
    /// Time that the next read may take. Time in which we did not wait for the source is not held against it.
    pub(super) fn allowance(&self) -> Duration {
        match self.pace {
            Pace::Idle(timeout) => timeout,
            Pace::Rate { bytes_per_second } => {
                let earned = Duration::from_secs(self.received / bytes_per_second.max(1));
                (BODY_RATE_GRACE + earned).saturating_sub(self.waited)
            }
        }
    }

    /// After a wait; `consumed` counts from the beginning of the connection.
    pub(super) fn on_read(&mut self, waited: Duration, consumed: u64) {
        self.waited += waited;
        self.received = consumed.saturating_sub(self.base);
    }
}

/// Moves one body from `from` to `to`, which may hold a head that has not been sent; it leaves together with the first
/// data if that is there already. Returns the number of data bytes.
///
/// # Errors
/// As [`RelayError`] says. What was moved before is gone: both connections are to be closed.
pub async fn pump<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
    mut source: Source,
    sink: Sink,
    pace: Pace,
    bytes_max: Option<u64>,
) -> Result<u64, RelayError> {
    let mut progress = Progress { moved: 0, bytes_max };
    let mut outlet = Outlet { sink, owed: 0 };
    let (mut engine, mut is_bulk) = (Engine::new(from, to), false);
    let mut pacer = Pacer { pace, base: from.count(), received: 0, waited: Duration::ZERO };
    // The source has time for each wait for it, and for nothing else: a slow sink is not its fault.
    from.watch().receive_at_leisure();
    loop {
        let step = if is_long(from) {
            let step = async |from: &mut Reader<T>| {
                forward(from, to, &mut source, &mut outlet, &mut progress).await
            };
            // On the heap, because a connection keeps room for what is here as long as a body lasts.
            Box::pin(alone(from, step, |step| step.ended)).await?
        } else {
            forward(from, to, &mut source, &mut outlet, &mut progress).await?
        };
        if step.ended {
            return Ok(progress.moved);
        }
        acknowledge(from, step.consumed);
        let left = source.spliceable();
        let was_bulk = std::mem::replace(&mut is_bulk, left >= SPLICE_BYTES_MIN);
        if is_bulk && engine.is_splice() {
            progress.allows(left)?;
            outlet.announce(to, left).await?;
            to.flush().await.map_err(to_error)?;
            let count = splice(from, to, left, Some(&mut pacer)).await?;
            engine.on_spliced(count);
            let count = count.unwrap_or(0);
            source.skip(count);
            outlet.skip(to, count).await?;
            progress.moved += count;
            if count == left {
                continue;
            }
        }
        // Behind a chunk that was spliced its framing follows, and perhaps another one.
        let leaves_rest = engine.is_splice() && (is_bulk || was_bulk && left == 0);
        let fill = read(from, &mut pacer, leaves_rest).await?;
        if let Fill::End(_) = fill {
            if !matches!(source, Source::UntilClose) {
                return Err(BodyError::Truncated.into());
            }
            outlet.end(to).await?;
            return Ok(progress.moved);
        }
    }
}

/// Sends what `from` holds of the body, and what stands behind it.
async fn forward<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
    source: &mut Source,
    outlet: &mut Outlet,
    progress: &mut Progress,
) -> Result<Step, RelayError> {
    from.take_rest().map_err(|error| RelayError::Stream(Side::From, error))?;
    let step = source.take(from.filled_mut()).map_err(BodyError::from)?;
    progress.allows(step.data_len as u64)?;
    progress.moved += step.data_len as u64;
    let is_all_data = step.data_len == from.filled().len();
    if is_all_data && outlet.sink == Sink::Raw {
        pass(from, to).await.map_err(to_error)?;
    } else {
        outlet.put(to, &from.filled()[..step.data_len]).await?;
        from.consume(step.consumed);
    }
    if step.ended {
        outlet.end(to).await?;
    } else {
        to.flush().await.map_err(to_error)?;
    }
    Ok(step)
}

/// How much of a body has been moved.
struct Progress {
    /// Bytes of data.
    moved: u64,
    /// The most that there may be.
    bytes_max: Option<u64>,
}

impl Progress {
    /// Whether `more` bytes may follow.
    fn allows(&self, more: u64) -> Result<(), BodyError> {
        let moved = self.moved.saturating_add(more);
        self.bytes_max
            .filter(|&max| moved > max)
            .map_or(Ok(()), |max| Err(BodyError::TooLarge(max)))
    }
}

/// How the next part of a body is moved.
#[derive(Clone, Copy, Debug)]
enum Engine {
    /// By splicing, where enough is left.
    Splice {
        /// Attempts in a row that moved nothing, though something had just been there.
        vain: u8,
    },
    /// Through buffers: splicing does not work here.
    Copy,
}

impl Engine {
    /// A source may have nothing more at the moment, or a record that is no data; one that never has is no source.
    const VAIN_MAX: u8 = 8;

    fn is_splice(self) -> bool {
        matches!(self, Self::Splice { .. })
    }

    /// What the two sockets allow.
    fn new<T: Transport, U: Transport>(from: &Reader<T>, to: &Writer<U>) -> Self {
        if from.may_splice() && to.may_splice() { Self::Splice { vain: 0 } } else { Self::Copy }
    }

    /// The result of an attempt; None when there was no pipe.
    fn on_spliced(&mut self, count: Option<u64>) {
        *self = match (*self, count) {
            (Self::Splice { .. }, Some(1..)) => Self::Splice { vain: 0 },
            (Self::Splice { vain }, Some(0)) if vain < Self::VAIN_MAX => {
                Self::Splice { vain: vain + 1 }
            }
            (Self::Splice { .. } | Self::Copy, _) => Self::Copy,
        };
    }
}

/// What goes out, framed.
struct Outlet {
    sink: Sink,
    /// Bytes that the chunk announced last still lacks.
    owed: u64,
}

impl Outlet {
    /// Stages data, which fills up the chunk announced and then becomes one of its own.
    async fn put<U: Transport>(
        &mut self,
        to: &mut Writer<U>,
        data: &[u8],
    ) -> Result<(), RelayError> {
        if self.sink == Sink::Raw {
            return to.push_all(data).await.map_err(to_error);
        }
        let due = usize::try_from(self.owed).map_or(data.len(), |owed| owed.min(data.len()));
        let (due, data) = data.split_at(due);
        to.push_all(due).await.map_err(to_error)?;
        self.skip(to, due.len() as u64).await?;
        if !data.is_empty() {
            self.announce(to, data.len() as u64).await?;
            to.push_all(data).await.map_err(to_error)?;
            self.skip(to, data.len() as u64).await?;
        }
        Ok(())
    }

    /// Says that `count` bytes follow, which are about to be moved without being seen here.
    async fn announce<U: Transport>(
        &mut self,
        to: &mut Writer<U>,
        count: u64,
    ) -> Result<(), RelayError> {
        if self.sink == Sink::Chunked && self.owed == 0 {
            let head = chunked::chunk_head(count);
            to.push_all(head.as_bytes()).await.map_err(to_error)?;
            self.owed = count;
        }
        Ok(())
    }

    /// Says that so many of the bytes announced are on their way.
    async fn skip<U: Transport>(
        &mut self,
        to: &mut Writer<U>,
        count: u64,
    ) -> Result<(), RelayError> {
        if self.sink == Sink::Chunked && count > 0 {
            self.owed -= count;
            if self.owed == 0 {
                to.push_all(chunked::CHUNK_TAIL).await.map_err(to_error)?;
            }
        }
        Ok(())
    }

    /// Sends the end of the body.
    async fn end<U: Transport>(&self, to: &mut Writer<U>) -> Result<(), RelayError> {
        if self.sink == Sink::Chunked {
            to.push_all(chunked::LAST_CHUNK).await.map_err(to_error)?;
        }
        to.flush().await.map_err(to_error)
    }
}

fn to_error(error: StreamError) -> RelayError {
    RelayError::Stream(Side::To, error)
}

/// Waits for more input, or its clean end. Where the rest is to be spliced only its beginning is taken.
async fn read<T: Transport>(
    from: &mut Reader<T>,
    pacer: &mut Pacer,
    leaves_rest: bool,
) -> Result<Fill, RelayError> {
    let start = from.watch().now();
    from.watch().receive_within(pacer.allowance());
    let fill = if leaves_rest { from.fill_beginning().await } else { from.fill_or_rest().await };
    from.watch().receive_at_leisure();
    let fill = fill.map_err(|error| RelayError::Stream(Side::From, error))?;
    pacer.on_read(from.watch().now().since(start), from.count() + from.filled().len() as u64);
    match fill {
        Fill::Data => Ok(fill),
        Fill::End(End::Clean) => Ok(fill),
        Fill::End(End::Truncated) => Err(BodyError::Truncated.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_ends_where_it_says_and_leaves_the_rest() {
        let mut source = Source::new(Framing::Length(5));
        assert_eq!(
            source.take(&mut b"abc".to_vec()),
            Ok(Step { consumed: 3, data_len: 3, ended: false })
        );
        assert_eq!(
            source.take(&mut b"deGET".to_vec()),
            Ok(Step { consumed: 2, data_len: 2, ended: true })
        );
        assert_eq!(
            Source::new(Framing::None).take(&mut []),
            Ok(Step { consumed: 0, data_len: 0, ended: true })
        );
    }

    #[test]
    fn a_rate_allows_a_grace_and_what_was_earned() {
        let pace = Pace::Rate { bytes_per_second: 100 };
        let mut pacer = Pacer { pace, base: 0, received: 0, waited: Duration::ZERO };
        assert_eq!(pacer.allowance(), BODY_RATE_GRACE);
        pacer.on_read(Duration::from_secs(9), 0);
        assert_eq!(pacer.allowance(), BODY_RATE_GRACE - Duration::from_secs(9));
        pacer.on_read(Duration::from_secs(1), 500);
        assert_eq!(pacer.allowance(), Duration::from_secs(5));
        pacer.on_read(Duration::from_secs(60), 500);
        assert_eq!(pacer.allowance(), Duration::ZERO);
    }
}
