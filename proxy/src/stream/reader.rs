//! The receiving half.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Count, StreamError};
use crate::buffers::{Buffers, Class};
use crate::ktls::kernel::{KernelOpener, KernelRecordError, Taken};
use crate::ktls::{Opened, Opener, RecordError};
use crate::pipes::Pipe;
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
    demand: Demand,
    is_spliceable: bool,
    end: Option<End>,
    record_error: Option<RecordError>,
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

/// A socket whose next input can be spliced.
#[derive(Debug)]
pub enum SpliceSource<T> {
    /// It carries no TLS.
    Plain(T),
    /// The kernel opens its records, of which one call moves one at most.
    Records(T),
}

impl<T: Transport> SpliceSource<T> {
    /// Moves at most `count` bytes into the empty `pipe`, without waiting.
    ///
    /// # Errors
    /// The error of `splice(2)`: `WouldBlock` when there is nothing, `EINVAL` where it cannot be done, which a record
    /// that is no data is a case of.
    pub fn fill(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        let unsuitable = || io::Error::from(io::ErrorKind::InvalidInput);
        match self {
            Self::Plain(socket) => socket.splicer().ok_or_else(unsuitable)?.fill(pipe, count),
            Self::Records(socket) => {
                socket.splicer().ok_or_else(unsuitable)?.fill_opened(pipe, count)
            }
        }
    }

    /// Whether waiting for the socket to become readable says that it has something. Linux 6.1 reports one whose kernel
    /// holds a part of a record as readable, again and again.
    #[must_use]
    pub fn tells_readiness(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

/// Who opens records.
enum Layer {
    /// There are none.
    None,
    /// We do.
    User(Box<Opener>),
    /// The kernel does; what is not data is left to us.
    Kernel(Box<KernelOpener>),
}

struct InFlight<R> {
    receive: R,
    plain: usize,
    demand: Demand,
}

/// Which size of buffer the next wait gets: grows at once, shrinks after a few small reads.
#[derive(Clone, Copy, Debug)]
struct Appetite {
    class: Class,
    small_reads: u8,
}

impl Appetite {
    const SMALL_READS_MAX: u8 = 4;

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
            demand: Demand::Everything,
            is_spliceable: true,
            end: None,
            record_error: None,
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

    /// What was wrong with the record layer, for the alert that the peer is owed.
    #[must_use]
    pub fn record_error(&self) -> Option<RecordError> {
        self.record_error
    }

    /// Says that all input is to come through here.
    pub fn forbid_splicing(&mut self) {
        self.is_spliceable = false;
    }

    /// Whether input can be spliced, when nothing received is here.
    #[must_use]
    pub fn may_splice(&self) -> bool {
        let is_opened_here = matches!(self.layer, Layer::User(_));
        self.is_spliceable && !is_opened_here && self.io.splicer().is_some()
    }

    /// The socket, when what it receives next can be spliced: no record layer of ours has to see it, and nothing received
    /// is still here.
    #[must_use]
    pub fn splice_source(&self) -> Option<SpliceSource<T>> {
        let is_free = self.in_flight.is_none() && self.buffer.is_empty() && self.end.is_none();
        match self.layer {
            _ if !is_free || !self.may_splice() => None,
            Layer::None => Some(SpliceSource::Plain(self.io.clone())),
            Layer::Kernel(_) => Some(SpliceSource::Records(self.io.clone())),
            Layer::User(_) => None,
        }
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

    /// Says that bytes left the socket without being seen here.
    ///
    /// # Errors
    /// [`StreamError::Record`] when the key of the peer has protected more than it may.
    pub fn on_spliced(&mut self, count: usize) -> Result<(), StreamError> {
        self.count += count as u64;
        if let Some(live) = &self.live {
            live.on_in(count, true);
        }
        self.on_data(count)
    }

    fn on_data(&mut self, count: usize) -> Result<(), StreamError> {
        let (Layer::Kernel(opener), Some(socket)) = (&mut self.layer, self.io.kernel_tls()) else {
            return Ok(());
        };
        opener.on_data(socket, count).map_err(|error| {
            self.record_error = Some(error);
            error.into()
        })
    }

    /// Whether the peer's key has protected so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        match &self.layer {
            Layer::None => false,
            Layer::User(opener) => opener.is_key_worn(),
            Layer::Kernel(opener) => opener.is_key_worn(),
        }
    }

    /// Waits until a receive would find something.
    ///
    /// # Errors
    /// When the deadline passes first, or the socket fails.
    pub async fn readable(&self) -> Result<(), StreamError> {
        self.io.readable().await?;
        self.watch.shut().map_or(Ok(()), |cause| Err(cause.into()))
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
            if std::mem::take(&mut self.has_swallowed)
                && self.buffer.is_empty()
                && let Some(gauge) = &self.gauge
            {
                gauge.swallowed(Direction::Up);
            }
            self.receive()?;
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

    /// An error may stand for a record that is not data.
    fn on_error(&mut self, error: io::Error) -> Result<(), StreamError> {
        if let Some(cause) = self.watch.shut() {
            return Err(cause.into());
        }
        let is_kernel = matches!(self.layer, Layer::Kernel(_));
        if is_kernel && KernelOpener::is_control(&error) {
            return self.take_control();
        }
        match KernelOpener::record_error(&error) {
            Some(record) if is_kernel => Err(self.fail(record)),
            _ => Err(error.into()),
        }
    }

    /// Takes the record that is not data, at which the kernel stopped.
    fn take_control(&mut self) -> Result<(), StreamError> {
        /// More than any message that may come has, so that it comes in one piece.
        const ROOM_BYTES: usize = 64;
        if self.buffer.spare() < ROOM_BYTES {
            self.grow(Class::Bulk);
        }
        let (Layer::Kernel(opener), Some(socket)) = (&mut self.layer, self.io.kernel_tls()) else {
            return Ok(());
        };
        match opener.take(socket, self.buffer.spare_mut()) {
            Ok(Taken::Handled) => {
                self.has_swallowed = true;
                Ok(())
            }
            Ok(Taken::KeyUpdated) => {
                self.has_swallowed = true;
                self.live.iter().for_each(|live| live.on_key_update());
                Ok(())
            }
            Ok(Taken::CloseNotify) => {
                self.end = Some(End::Clean);
                Ok(())
            }
            // Zero bytes of data are the end of the stream, or an empty record: the next receive tells.
            Ok(Taken::Data(count)) => {
                self.buffer.advance(count);
                Ok(())
            }
            // What is no record at all gives the same error, once; after that nothing would ever come.
            Ok(Taken::Nothing) => Err(self.fail(RecordError::Malformed)),
            Err(KernelRecordError::Record(record)) => Err(self.fail(record)),
            Err(KernelRecordError::Io(error)) => Err(error.into()),
        }
    }

    /// Remembers the error for the alert.
    fn fail(&mut self, error: RecordError) -> StreamError {
        self.record_error = Some(error);
        error.into()
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
        self.grow(class.larger());
        match self.io.try_recv(&mut self.buffer, usize::MAX) {
            Ok(0) => self.on_eof(),
            Ok(count) => {
                self.appetite.on_read(count);
                Ok(())
            }
            // An error comes again at the next receive, after the bytes before it have been used.
            Err(_) => Ok(()),
        }
    }

    /// Moves plaintext and unopened bytes, without the gap, to a buffer of `class`.
    fn grow(&mut self, class: Class) {
        let mut larger = self.buffers.take(class);
        larger.append(&self.buffer.filled()[..self.plain]);
        larger.append(&self.buffer.filled()[self.wire..]);
        self.wire = self.plain;
        self.buffers.give(std::mem::replace(&mut self.buffer, larger));
    }

    /// Starts a receive into a buffer with room for at least the rest of the record that has begun.
    fn receive(&mut self) -> Result<(), StreamError> {
        let unopened = self.buffer.len() - self.wire;
        let kept = self.plain + unopened;
        if kept == 0 {
            let class = match self.demand {
                Demand::Everything => self.appetite.class,
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
                self.grow(Class::holding(kept + missing));
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

    /// Opens every complete record in the buffer.
    fn open_records(&mut self) -> Result<(), StreamError> {
        let Layer::User(opener) = &mut self.layer else {
            self.plain = self.buffer.len();
            self.wire = self.plain;
            return Ok(());
        };
        while self.end.is_none() {
            let record = &mut self.buffer.filled_mut()[self.wire..];
            let opened =
                opener.open(record).inspect_err(|&error| self.record_error = Some(error))?;
            match opened {
                Opened::Partial => break,
                Opened::Data { payload, record_len } if self.plain == 0 => {
                    // Nothing stands before it: the plaintext stays where it was decrypted.
                    self.buffer.consume(self.wire + payload.start);
                    self.plain = payload.len();
                    self.wire = record_len - payload.start;
                }
                Opened::Data { payload, record_len } => {
                    let from = self.wire + payload.start..self.wire + payload.end;
                    self.plain += payload.len();
                    let to = self.plain - payload.len();
                    self.buffer.filled_mut().copy_within(from, to);
                    self.wire += record_len;
                }
                Opened::Handled { record_len } => {
                    self.wire += record_len;
                    self.has_swallowed = true;
                }
                Opened::KeyUpdated { record_len } => {
                    self.wire += record_len;
                    self.has_swallowed = true;
                    self.live.iter().for_each(|live| live.on_key_update());
                }
                Opened::CloseNotify => self.end = Some(End::Clean),
            }
            if self.plain == 0 {
                self.buffer.consume(self.wire);
                self.wire = 0;
            }
        }
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
