//! Bytes of known number move inside the kernel: socket, pipe, socket.

use std::rc::Rc;

use super::body::Pacer;
use super::flow::{Flow, Next, Stop};
use super::{BodyError, RelayError, Side};
use crate::buffers::Buffers;
use crate::limits::PIPE_NARROW_BYTES;
use crate::pipes::Pipe;
use crate::stream::{Reader, StreamError, Writer};
use crate::transport::Transport;

/// Moves up to `left` bytes and returns how many; None when there is no pipe. Fewer bytes than that say that the rest cannot
/// be moved like this (now), and are no error; nothing has been lost then. Without a pacer, and where a wait for the source says nothing, it waits for the
/// sink only, and ends when the source has no more.
pub(super) async fn splice<T: Transport, U: Transport>(
    from: &mut Reader<T>,
    to: &mut Writer<U>,
    left: u64,
    mut pacer: Option<&mut Pacer>,
) -> Result<Option<u64>, RelayError> {
    let (Some(source), Some(sink)) = (from.splice_source(), to.splice_sink()) else {
        return Ok(Some(0));
    };
    let Some(sink) = sink.splicer() else { return Ok(None) };
    let Some(mut pipe) = Borrowed::take(from.buffers()) else {
        to.on_no_pipe();
        return Ok(None);
    };
    // A tunnel has no pacer.
    let bound = if pacer.is_some() { usize::MAX } else { PIPE_NARROW_BYTES };
    let mut flow = Flow::new(left, pipe.capacity().min(bound));
    let from_error = |error| RelayError::Stream(Side::From, error);
    let to_error = |error| RelayError::Stream(Side::To, error);
    loop {
        let outcome = match flow.next() {
            Next::Fill(count) => {
                let result = source.fill(pipe.get(), count);
                let filled = result.as_ref().ok().copied();
                let outcome = flow.on_filled(result);
                // Before anything can end this: a pipe with bytes in it must not be used again.
                pipe.is_drained = flow.is_drained();
                if let Some(count) = filled {
                    from.on_spliced(count).map_err(from_error)?;
                }
                outcome
            }
            Next::Drain(count) => {
                to.update_key().await.map_err(to_error)?;
                let result = sink.drain(pipe.get(), count);
                if let Ok(count) = &result {
                    to.on_spliced(*count);
                }
                let outcome = flow.on_drained(result);
                pipe.is_drained = flow.is_drained();
                outcome
            }
            Next::AwaitSource => {
                let Some(pacer) = pacer.as_deref_mut().filter(|_| source.tells_readiness()) else {
                    return Ok(Some(left - flow.left()));
                };
                let start = from.watch().now();
                from.watch().receive_within(pacer.allowance());
                let waited = from.readable().await;
                from.watch().receive_at_leisure();
                waited.map_err(from_error)?;
                pacer.on_read(from.watch().now().since(start), from.count());
                flow.on_source_ready();
                Ok(())
            }
            Next::AwaitSink => {
                to.writable().await.map_err(to_error)?;
                flow.on_sink_ready();
                Ok(())
            }
            Next::Yield => {
                // A wait that ends at once, but only after everybody else was looked after.
                to.writable().await.map_err(to_error)?;
                flow.on_turn();
                Ok(())
            }
            Next::Done => {
                return Ok(Some(left));
            }
        };
        match outcome {
            Ok(()) => {}
            Err(Stop::Unsuitable) => return Ok(Some(left - flow.left())),
            // The end of the source is found again by whoever reads next.
            Err(Stop::Truncated) if pacer.is_none() || !source.tells_readiness() => {
                return Ok(Some(left - flow.left()));
            }
            Err(Stop::Truncated) => {
                return Err(match from.watch().shut() {
                    Some(cause) => from_error(cause.into()),
                    None => BodyError::Truncated.into(),
                });
            }
            Err(Stop::Source(error)) => return Err(from_error(StreamError::Io(error))),
            Err(Stop::Sink(error)) => return Err(to_error(StreamError::Io(error))),
        }
    }
}

/// A pipe that goes back to where it came from, whatever happens.
struct Borrowed {
    buffers: Rc<Buffers>,
    pipe: Option<Pipe>,
    is_drained: bool,
}

impl Borrowed {
    fn take(buffers: Rc<Buffers>) -> Option<Self> {
        let pipe = Some(buffers.pipes().take()?);
        Some(Self { buffers, pipe, is_drained: true })
    }

    fn get(&self) -> &Pipe {
        self.pipe.as_ref().expect("taken by the destructor only")
    }

    fn capacity(&self) -> usize {
        self.get().capacity
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.buffers.pipes().give(pipe, self.is_drained);
        }
    }
}
