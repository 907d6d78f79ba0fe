//! A tunnel: bytes both ways without looking at them, each direction ending for itself.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::splice::splice;
use super::{Gaps, RelayError, Side, acknowledge, alone, is_long, pass};
use crate::stream::{End, Fill, Reader, StreamError, Writer};
use crate::telemetry::Direction;
use crate::transport::Transport;

/// What a wake-up must move inside the kernel to be worth its calls, in bytes: below, copying is cheaper.
const BULK_BYTES_MIN: u64 = 12 * 1024;

/// How a tunnel ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides said that they were done.
    Closed,
    /// No byte in either direction for the idle timeout.
    Idle,
    /// The gateway is being stopped and its drain deadline has passed.
    Drained,
    /// A TLS key has protected as many records as it may, and cannot be changed.
    KeyWorn,
}

/// Moves bytes between a client (`down`) and an upstream (`up`) until both directions have ended. Bytes that either
/// reader already holds go first. `gaps` watches the silences towards the client.
///
/// # Errors
/// The side that failed: [`Side::From`] is the client, [`Side::To`] the upstream. The connections are to be closed
/// without a clean end then, so that a truncation is seen.
pub async fn tunnel<T: Transport, U: Transport>(
    (down_reader, down_writer): (&mut Reader<T>, &mut Writer<T>),
    (up_reader, up_writer): (&mut Reader<U>, &mut Writer<U>),
    idle_timeout: Duration,
    gaps: &Gaps,
) -> Result<Ending, RelayError> {
    let (down_watch, up_watch) = (down_reader.share_watch(), up_reader.share_watch());
    // A byte in either direction keeps both alive.
    let keep_alive = || {
        down_watch.receive_within(idle_timeout);
        up_watch.receive_within(idle_timeout);
    };
    let last = Cell::new(None);
    let touch = |way| {
        keep_alive();
        last.replace(Some(way)) == Some(way)
    };
    let touch_up = || touch(Direction::Up);
    let touch_down = || {
        gaps.on_bytes(down_watch.now());
        touch(Direction::Down)
    };
    keep_alive();
    down_reader.expect_little();
    up_reader.expect_little();
    let mut inbound = pin!(direction(down_reader, up_writer, &touch_up));
    let mut outbound = pin!(direction(up_reader, down_writer, &touch_down));
    let (mut inbound_done, mut outbound_done) = (false, false);
    poll_fn(|cx| {
        if !inbound_done && let Poll::Ready(result) = inbound.as_mut().poll(cx) {
            match result {
                Ok(Ending::Closed) => inbound_done = true,
                Ok(ending) => return Poll::Ready(Ok(ending)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if !outbound_done && let Poll::Ready(result) = outbound.as_mut().poll(cx) {
            match result {
                Ok(Ending::Closed) => outbound_done = true,
                Ok(ending) => return Poll::Ready(Ok(ending)),
                Err(error) => return Poll::Ready(Err(swap(error))),
            }
        }
        if inbound_done && outbound_done { Poll::Ready(Ok(Ending::Closed)) } else { Poll::Pending }
    })
    .await
}

/// One direction until its end, which is passed on. `touch` is called for every movement, and says whether the one before
/// was in the same direction.
async fn direction<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
    touch: &impl Fn() -> bool,
) -> Result<Ending, RelayError> {
    let mut may_splice = from.may_splice() && to.may_splice();
    loop {
        let mut moved = 0;
        if !from.filled().is_empty() || from.has_rest() {
            let forwarded = if is_long(from) {
                let mut len = 0;
                // The last step may find nothing where those before it moved much.
                let step = async |from: &mut Reader<T>| {
                    len += forward(from, to).await?;
                    Ok(())
                };
                // On the heap, because a tunnel keeps room for what is here as long as it lives.
                Box::pin(alone(from, step, |()| false)).await.map(|()| len)
            } else {
                forward(from, to).await
            };
            let len = match forwarded {
                Ok(len) => len,
                Err(RelayError::Stream(Side::From, error)) => return ending(error),
                Err(error) => return Err(error),
            };
            moved = len as u64;
            // Otherwise what goes the other way carries the acknowledgement.
            if len > 0 && touch() {
                acknowledge(from, len);
            }
        }
        if from.is_key_worn() || to.is_key_worn() {
            return Ok(Ending::KeyWorn);
        }
        let mut leaves_rest = false;
        while may_splice
            && from.is_bulk()
            && let Some(source) = from.splice_source()
        {
            if source.tells_readiness() {
                moved = 0;
                if let Err(error) = from.readable().await {
                    return ending(error);
                }
            }
            let Some(count) = splice(from, to, u64::MAX, None).await? else {
                may_splice = false;
                break;
            };
            if count > 0 {
                touch();
            }
            if moved + count < BULK_BYTES_MIN {
                from.end_bulk();
            } else if !source.tells_readiness() {
                leaves_rest = true;
                break;
            }
        }
        let fill =
            if leaves_rest { from.fill_beginning().await } else { from.fill_or_rest().await };
        match fill {
            Ok(Fill::Data) => {}
            Ok(Fill::End(End::Clean)) => {
                // Half-close: the other direction goes on.
                to.finish().await.map_err(|error| RelayError::Stream(Side::To, error))?;
                return Ok(Ending::Closed);
            }
            Ok(Fill::End(End::Truncated)) => {
                let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(RelayError::Stream(Side::From, StreamError::Io(cut)));
            }
            Err(error) => return ending(error),
        }
    }
}

/// What it means that no more can be read.
fn ending(error: StreamError) -> Result<Ending, RelayError> {
    match error {
        StreamError::Expired => Ok(Ending::Idle),
        StreamError::Drained => Ok(Ending::Drained),
        error => Err(RelayError::Stream(Side::From, error)),
    }
}

/// Sends all that `from` holds, and what stands behind it, and returns how much that is.
async fn forward<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
) -> Result<usize, RelayError> {
    from.take_rest().map_err(|error| RelayError::Stream(Side::From, error))?;
    let len = from.filled().len();
    let to_error = |error| RelayError::Stream(Side::To, error);
    pass(from, to).await.map_err(to_error)?;
    to.flush().await.map_err(to_error)?;
    Ok(len)
}

fn swap(error: RelayError) -> RelayError {
    match error {
        RelayError::Stream(Side::From, error) => RelayError::Stream(Side::To, error),
        RelayError::Stream(Side::To, error) => RelayError::Stream(Side::From, error),
        body @ RelayError::Body(_) => body,
    }
}
