//! The receiving half.

mod bulk;
mod records;
mod splicing;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use records::Layer;
pub use splicing::SpliceSource;

use super::{Count, StreamError};
use crate::buffers::{Buffers, Class};
use crate::ktls::kernel::KernelOpener;
use crate::ktls::{Opener, RecordError};
use crate::limits::BULK_FRAMING_BYTES;
use crate::telemetry::{Direction, Gauge, Live};
use crate::timers::Watched;
use crate::transport::{Buffer, Transport};

/// How a stream of input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By close_notify, or by FIN where there is no TLS.
    Clean,
    /// By FIN without close_notify: the input may have been cut (RFC 8446 §6.1).
    Truncated,
}

/// What a wait for input brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// At least one more byte.
    Data,
    /// No more will come.
    End(End),
}

/// Receives plaintext from a socket.
///
/// The buffer holds, in this order: plaintext not yet consumed (`0..plain`), a gap left by removed record framing
/// (`plain..wire`), and bytes from the wire not yet opened (`wire..`). While a receive is in flight the operation owns
/// the buffer and all three are empty here.
pub struct Reader<T: Transport> {
    watch: Rc<Watched<T>>,
    io: T,
    buffers: Rc<Buffers>,
    layer: Layer,
    buffer: Buffer,
    plain: usize,
    wire: usize,
    /// Layout of the buffer that the receive in flight owns.
    in_flight: Option<InFlight<T::Recv>>,
    appetite: Appetite,
    /// Whether much has come in bulk that was not taken yet.
    has_rest: bool,
    /// Whether the last receive in bulk got all that it asked for, so that there presumably is more.
    leaves_more: bool,
    /// Length of the last record of data on the wire, in bytes; zero when there was none yet.
    record_len: u16,
    demand: Demand,
    is_spliceable: bool,
    end: Option<End>,
    record_error: Option<RecordError>,
    /// How the socket failed behind bytes that are still to be used. It tells nobody a second time.
    failure: Option<io::Error>,
    count: Count,
    /// Told of what was received and is nobody's payload.
    gauge: Option<Rc<Gauge>>,
    has_swallowed: bool,
    /// Told of what was received.
    live: Option<Arc<Live>>,
}

/// What a wait for input takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// Everything that is there.
    Everything,
    /// The first bytes; the rest stays in the socket, to be spliced.
    Beginning,
}

struct InFlight<R> {
    receive: R,
    plain: usize,
    demand: Demand,
}

/// Which size of buffer is right for what comes: grows at once, shrinks after a few small reads.
#[derive(Clone, Copy, Debug)]
struct Appetite {
    class: Class,
    small_reads: u8,
}

impl Appetite {
    const SMALL_READS_MAX: u8 = 4;

    /// The size of the buffer that waits. None waits for bulk: until that comes, the processor's cache would lose it.
    fn waiting_class(self) -> Class {
        self.class.min(Class::Record)
    }

    fn on_read(&mut self, count: usize) {
        if count >= self.class.bytes() {
            *self = Self { class: self.class.larger(), small_reads: 0 };
        } else if count > self.class.smaller().bytes() {
            self.small_reads = 0;
        } else {
            self.small_reads += 1;
            if self.small_reads >= Self::SMALL_READS_MAX {
                *self = Self { class: self.class.smaller(), small_reads: 0 };
            }
        }
    }
}

impl<T: Transport> Reader<T> {
    /// A half without TLS.
    #[must_use]
    pub fn plain(watch: Rc<Watched<T>>, io: T, buffers: Rc<Buffers>) -> Self {
        Self {
            watch,
            io,
            buffers,
            layer: Layer::None,
            buffer: Buffer::default(),
            plain: 0,
            wire: 0,
            in_flight: None,
            appetite: Appetite { class: Class::Small, small_reads: 0 },
            has_rest: false,
            leaves_more: false,
            record_len: 0,
            demand: Demand::Everything,
            is_spliceable: true,
            end: None,
            record_error: None,
            failure: None,
            count: 0,
            gauge: None,
            has_swallowed: false,
            live: None,
        }
    }

    /// A half whose records `opener` opens; `leftover` holds what was received behind the handshake.
    #[must_use]
    pub fn tls(
        watch: Rc<Watched<T>>,
        io: T,
        buffers: Rc<Buffers>,
        opener: Opener,
        leftover: Buffer,
    ) -> Self {
        let mut reader = Self::plain(watch, io, buffers);
        reader.layer = Layer::User(Box::new(opener));
        reader.buffer = leftover;
        reader
    }

    /// A half whose records the kernel opens.
    #[must_use]
    pub fn kernel(
        watch: Rc<Watched<T>>,
        io: T,
        buffers: Rc<Buffers>,
        opener: KernelOpener,
    ) -> Self {
        let mut reader = Self::plain(watch, io, buffers);
        reader.layer = Layer::Kernel(Box::new(opener));
        reader
    }

    /// Plaintext received and not yet consumed.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.buffer.filled()[..self.plain]
    }

    /// The same, to be changed in place.
    #[must_use]
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.filled_mut()[..self.plain]
    }

    /// Drops `count` bytes of plaintext from the front.
    ///
    /// # Panics
    /// When `count` exceeds what is filled: a defect of the caller.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.plain, "consumed more plaintext than there is");
        let dropped = if count == self.plain { self.wire } else { count };
        self.buffer.consume(dropped);
        self.plain -= count;
        self.wire -= dropped;
        self.on_consumed(count);
    }

    /// Takes all plaintext out together with its buffer, instead of by [`Reader::consume`]. What was not opened yet is copied
    /// into another one.
    pub fn detach(&mut self) -> Buffer {
        let unopened = &self.buffer.filled()[self.wire..];
        let class = self.appetite.waiting_class().max(Class::holding(unopened.len()));
        let mut rest = Buffer::default();
        if !unopened.is_empty() {
            rest = self.buffers.take(class);
            rest.append(unopened);
        }
        let count = self.plain;
        let mut whole = std::mem::replace(&mut self.buffer, rest);
        whole.truncate(count);
        (self.plain, self.wire) = (0, 0);
        self.on_consumed(count);
        whole
    }

    fn on_consumed(&mut self, count: usize) {
        self.count += count as u64;
        if let Some(live) = &self.live {
            live.on_in(count, false);
        }
    }

    /// Tells `live` from now on what comes from the client.
    pub fn tell(&mut self, live: &Arc<Live>) {
        self.live = Some(Arc::clone(live));
    }

    /// Tells `gauge` from now on of records that carry no payload: nothing is forwarded for them.
    pub fn measure(&mut self, gauge: Rc<Gauge>) {
        self.gauge = Some(gauge);
    }

    /// Has the end of the socket reset the connection, as [`Transport::reset_on_close`] says.
    pub fn reset_on_close(&self) {
        self.io.reset_on_close();
    }

    /// As [`Transport::acknowledge`] says.
    pub fn acknowledge(&self) {
        self.io.acknowledge();
    }

    /// The number by which the kernel knows the socket; None where it has none.
    #[must_use]
    pub fn cookie(&self) -> Option<u64> {
        self.io.cookie()
    }

    /// Plaintext bytes consumed so far.
    #[must_use]
    pub fn count(&self) -> Count {
        self.count
    }

    /// The end, once it has been reached; unconsumed plaintext may still be there.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether input comes in bulk: more than one read in a row filled its buffer.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        self.appetite.class == Class::Bulk
    }

    /// Says that input does not come in bulk any more.
    pub fn end_bulk(&mut self) {
        self.appetite = Appetite { class: Class::Small, small_reads: 0 };
    }

    /// Says that what comes is small and seldom: waiting for it is to pin as little as possible.
    pub fn expect_little(&mut self) {
        self.appetite = Appetite { class: Class::Tiny, small_reads: 0 };
    }

    /// The buffers in use.
    #[must_use]
    pub fn buffers(&self) -> Rc<Buffers> {
        Rc::clone(&self.buffers)
    }

    /// The deadlines of the socket.
    #[must_use]
    pub fn watch(&self) -> &Watched<T> {
        &self.watch
    }

    /// The same, to be kept.
    #[must_use]
    pub fn share_watch(&self) -> Rc<Watched<T>> {
        Rc::clone(&self.watch)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> T {
        self.io.clone()
    }

    /// Waits until there is more plaintext than before, or the end.
    ///
    /// Giving the future up loses nothing: the next call goes on waiting.
    ///
    /// # Errors
    /// As [`StreamError`] says; the half is of no further use then.
    pub fn fill(&mut self) -> impl Future<Output = Result<Fill, StreamError>> {
        poll_fn(|cx| self.poll_fill(cx))
    }

    /// The same, but takes only the first bytes of what is there, so that the rest can be spliced.
    ///
    /// # Errors
    /// As [`Reader::fill`].
    pub async fn fill_beginning(&mut self) -> Result<Fill, StreamError> {
        self.demand = Demand::Beginning;
        let fill = self.fill().await;
        self.demand = Demand::Everything;
        fill
    }

    /// The same as a poll function. Must not be called with plaintext unconsumed unless more of it is wanted: while the
    /// receive is in flight that plaintext cannot be seen.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Fill, StreamError>> {
        loop {
            if let Some(in_flight) = &mut self.in_flight {
                let (result, buffer) = ready!(Pin::new(&mut in_flight.receive).poll(cx));
                self.plain = in_flight.plain;
                self.wire = in_flight.plain;
                let demand = in_flight.demand;
                self.in_flight = None;
                self.buffer = buffer;
                self.on_received(result, demand)?;
            }
            let before = self.plain;
            self.open_records()?;
            if self.plain > before {
                return Poll::Ready(Ok(Fill::Data));
            }
            if let Some(end) = self.end {
                return Poll::Ready(Ok(Fill::End(end)));
            }
            self.tell_swallowed();
            match self.failure.take() {
                Some(error) => self.on_error(error)?,
                None => self.receive()?,
            }
        }
    }

    /// Tells of records that carried nothing, when nothing else is left of what came with them.
    fn tell_swallowed(&mut self) {
        if std::mem::take(&mut self.has_swallowed)
            && self.buffer.is_empty()
            && let Some(gauge) = &self.gauge
        {
            gauge.swallowed(Direction::Up);
        }
    }

    /// Whether a receive is in flight and nothing has come: the state in which an idle connection may be reused.
    pub fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.plain == 0 && self.end.is_none() && self.poll_fill(&mut cx).is_pending()
    }

    fn on_received(
        &mut self,
        result: io::Result<usize>,
        demand: Demand,
    ) -> Result<(), StreamError> {
        match result {
            Ok(0) => self.on_eof(),
            Ok(count) => {
                self.on_data(count)?;
                match demand {
                    Demand::Beginning => Ok(()),
                    Demand::Everything => {
                        self.appetite.on_read(count);
                        if self.buffer.spare() == 0 { self.receive_rest() } else { Ok(()) }
                    }
                }
            }
            Err(error) if is_retry(&error) => Ok(()),
            Err(error) => self.on_error(error),
        }
    }

    fn on_eof(&mut self) -> Result<(), StreamError> {
        if let Some(cause) = self.watch.shut() {
            return Err(cause.into());
        }
        let end = if matches!(self.layer, Layer::None) { End::Clean } else { End::Truncated };
        self.end.get_or_insert(end);
        Ok(())
    }

    /// A full buffer means that there is more: takes what is there into a larger one, without waiting.
    fn receive_rest(&mut self) -> Result<(), StreamError> {
        let class = Class::holding(self.buffer.capacity());
        if class == Class::Bulk {
            return Ok(());
        }
        self.move_to(class.larger());
        match self.io.try_recv(&mut self.buffer, usize::MAX) {
            // It comes again at the next receive, after the bytes before it have been used: there may be a close_notify among
            // them.
            Ok(0) => Ok(()),
            Err(error) => {
                self.failure = (!is_retry(&error)).then_some(error);
                Ok(())
            }
            Ok(count) => {
                self.on_data(count)?;
                self.appetite.on_read(count);
                Ok(())
            }
        }
    }

    /// Moves plaintext and unopened bytes, without the gap, to a buffer of `class`, which holds them.
    fn move_to(&mut self, class: Class) {
        let mut other = self.buffers.take(class);
        self.indent(&mut other);
        other.append(&self.buffer.filled()[..self.plain]);
        other.append(&self.buffer.filled()[self.wire..]);
        self.wire = self.plain;
        self.buffers.give(std::mem::replace(&mut self.buffer, other));
    }

    /// Leaves room in an empty buffer for bulk: no more is received into it than another one takes with the framing of records around.
    fn indent(&self, buffer: &mut Buffer) {
        if matches!(self.layer, Layer::None) && buffer.capacity() == Class::Bulk.bytes() {
            buffer.clear_indented(BULK_FRAMING_BYTES);
        }
    }

    /// Starts a receive into a buffer with room for at least the rest of the record that has begun.
    fn receive(&mut self) -> Result<(), StreamError> {
        let unopened = self.buffer.len() - self.wire;
        let kept = self.plain + unopened;
        if kept == 0 {
            let class = match self.demand {
                Demand::Everything => self.appetite.waiting_class(),
                Demand::Beginning => Class::Small,
            };
            if Class::holding(self.buffer.capacity()) != class || self.buffer.capacity() == 0 {
                let buffer = self.buffers.take(class);
                self.buffers.give(std::mem::replace(&mut self.buffer, buffer));
            }
            self.buffer.clear();
        } else {
            let missing = match &self.layer {
                Layer::User(opener) => opener.missing(&self.buffer.filled()[self.wire..]),
                Layer::None | Layer::Kernel(_) => 1,
            };
            if self.buffer.capacity() < kept + missing {
                if kept + missing > Class::Bulk.bytes() {
                    return Err(StreamError::Overflow);
                }
                self.move_to(Class::holding(kept + missing));
            } else if self.buffer.capacity() > Class::Record.bytes()
                && kept + missing <= Class::Record.bytes()
            {
                self.move_to(Class::Record);
            } else if self.buffer.spare() < missing {
                let (plain, wire) = (self.plain, self.wire);
                self.buffer.filled_mut().copy_within(wire.., plain);
                self.buffer.truncate(kept);
                self.buffer.compact();
                self.wire = plain;
            }
        }
        // The gap goes along inside the buffer only if it is empty, so that one number describes the layout.
        if self.wire != self.plain {
            let (plain, wire) = (self.plain, self.wire);
            self.buffer.filled_mut().copy_within(wire.., plain);
            self.buffer.truncate(kept);
        }
        let buffer = std::mem::take(&mut self.buffer);
        let (receive, plain) = (self.io.recv(buffer), self.plain);
        self.in_flight = Some(InFlight { receive, plain, demand: self.demand });
        self.plain = 0;
        self.wire = 0;
        Ok(())
    }
}

impl<T: Transport> Drop for Reader<T> {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.buffer));
    }
}

impl<T: Transport> std::fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("plain", &self.plain)
            .field("wire", &(self.buffer.len() - self.wire))
            .field("in_flight", &self.in_flight.is_some())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Whether an operation is simply to be done again.
pub(crate) fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
