//! The sending half.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::reader::is_retry;
use super::{Count, StreamError};
use crate::buffers::{Buffers, Class};
use crate::ktls::kernel::{KernelRecordError, KernelSealer};
use crate::ktls::{Sealer, alert, content};
use crate::limits::RECORD_PLAINTEXT_MAX;
use crate::telemetry::Live;
use crate::timers::Watched;
use crate::transport::{Buffer, Transport};

/// Sends plaintext to a socket.
///
/// Pushed bytes are staged where they will be sealed: each record's plaintext stands in a slot with room for its header
/// and tag, so that sealing needs no further copy and the sealed records lie side by side, ready for one send. What fills a
/// record is not copied at all: it is sealed into its slot at once.
pub struct Writer<T: Transport> {
    watch: Rc<Watched<T>>,
    io: T,
    buffers: Rc<Buffers>,
    layer: Layer,
    stage: Buffer,
    /// Bytes at the front of the stage that are records already.
    sealed: usize,
    /// Plaintext bytes in the last slot of the stage, when that slot is still open.
    slot: Option<usize>,
    timeout: Duration,
    state: State,
    count: Count,
    wire_count: Count,
    spliced: Count,
    without_pipe: Count,
    is_spliceable: bool,
    /// Told of what is sent.
    live: Option<Arc<Live>>,
}

/// Who seals records.
enum Layer {
    /// There are none.
    None,
    /// We do.
    User(Box<Sealer>),
    /// The kernel does.
    Kernel(Box<KernelSealer>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A send is under way; found again at the next call it means that the send was given up.
    Sending,
    /// Finished in good order.
    Finished,
}

impl<T: Transport> Writer<T> {
    /// A half without TLS. A send that makes no progress for `timeout` fails.
    #[must_use]
    pub fn plain(watch: Rc<Watched<T>>, io: T, buffers: Rc<Buffers>, timeout: Duration) -> Self {
        Self {
            watch,
            io,
            buffers,
            layer: Layer::None,
            stage: Buffer::default(),
            sealed: 0,
            slot: None,
            timeout,
            state: State::Open,
            count: 0,
            wire_count: 0,
            spliced: 0,
            without_pipe: 0,
            is_spliceable: true,
            live: None,
        }
    }

    /// A half whose plaintext `sealer` seals.
    #[must_use]
    pub fn tls(
        watch: Rc<Watched<T>>,
        io: T,
        buffers: Rc<Buffers>,
        timeout: Duration,
        sealer: Sealer,
    ) -> Self {
        let mut writer = Self::plain(watch, io, buffers, timeout);
        writer.layer = Layer::User(Box::new(sealer));
        writer
    }

    /// A half whose plaintext the kernel seals.
    #[must_use]
    pub fn kernel(
        watch: Rc<Watched<T>>,
        io: T,
        buffers: Rc<Buffers>,
        timeout: Duration,
        sealer: KernelSealer,
    ) -> Self {
        let mut writer = Self::plain(watch, io, buffers, timeout);
        writer.layer = Layer::Kernel(Box::new(sealer));
        writer
    }

    /// Bytes that the kernel took so far: while it does not grow, the peer cannot have seen anything.
    #[must_use]
    pub fn wire_count(&self) -> Count {
        self.wire_count
    }

    /// Plaintext bytes staged or sent so far.
    #[must_use]
    pub fn count(&self) -> Count {
        self.count
    }

    /// Whether a flush would have nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stage.is_empty()
    }

    /// Whether the peer still can be told anything: nothing failed and the end was not sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Stages as much of `bytes` as fits and returns how much that is; what does not fit needs a flush first.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let count = self.push_slot(&bytes[taken..]);
            if count == 0 {
                break;
            }
            taken += count;
        }
        self.on_staged(taken);
        taken
    }

    /// Tells `live` from now on what goes to the client.
    pub fn tell(&mut self, live: &Arc<Live>) {
        self.live = Some(Arc::clone(live));
    }

    /// Stages and sends all of `bytes`; the last part may stay staged until the next flush.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub async fn push_all(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        loop {
            let taken = self.push(bytes);
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return Ok(());
            }
            self.flush().await?;
        }
    }

    /// Whether [`Writer::send_whole`] can take a buffer: nothing is staged, and nobody here seals.
    #[must_use]
    pub fn takes_whole(&self) -> bool {
        self.stage.is_empty() && !matches!(self.layer, Layer::User(_))
    }

    /// Sends all of `buffer` without copying it into the stage.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub async fn send_whole(&mut self, buffer: Buffer) -> Result<(), StreamError> {
        debug_assert!(self.takes_whole(), "it would overtake what is staged, or go unsealed");
        self.on_staged(buffer.len());
        self.buffers.give(std::mem::replace(&mut self.stage, buffer));
        self.flush().await
    }

    fn on_staged(&mut self, count: usize) {
        self.count += count as u64;
        if let Some(live) = &self.live {
            live.on_out(count, false);
        }
    }

    /// Sends everything staged.
    ///
    /// # Errors
    /// The socket's error, [`StreamError::Stalled`] when the peer takes nothing for too long, or
    /// [`StreamError::Broken`] after an earlier failure.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        if self.state != State::Open {
            return Err(StreamError::Broken);
        }
        if self.stage.is_empty() {
            return Ok(());
        }
        // Records that have this key already must not come behind the announcement of the next one, which then is left to
        // the next flush: while it is due nothing is sealed before.
        if self.sealed == 0 {
            self.update_key().await?;
        }
        self.seal()?;
        self.sealed = 0;
        let wire = std::mem::take(&mut self.stage);
        self.send(wire).await
    }

    /// Tells the peer that nothing follows: close_notify where there is TLS, then FIN.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        self.flush().await?;
        match &mut self.layer {
            Layer::None => {}
            Layer::User(sealer) => {
                let mut alert = Vec::new();
                sealer.close_notify(&mut alert)?;
                self.send_control(&alert).await?;
            }
            Layer::Kernel(_) => self.send_record(content::ALERT, &alert::CLOSE_NOTIFY).await?,
        }
        self.io.shutdown(Shutdown::Write);
        self.state = State::Finished;
        Ok(())
    }

    /// Tells the peer by a fatal alert why the connection ends; what is staged and no record yet is dropped. Does nothing
    /// without TLS.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub async fn fail(&mut self, description: u8) -> Result<(), StreamError> {
        if self.state != State::Open {
            return Err(StreamError::Broken);
        }
        self.stage.truncate(self.sealed);
        self.slot = None;
        self.flush().await?;
        match &mut self.layer {
            Layer::None => return Ok(()),
            Layer::User(sealer) => {
                let mut record = Vec::new();
                sealer.alert(description, &mut record)?;
                self.send_control(&record).await?;
            }
            Layer::Kernel(_) => {
                self.send_record(content::ALERT, &[alert::FATAL, description]).await?
            }
        }
        self.io.shutdown(Shutdown::Write);
        self.state = State::Finished;
        Ok(())
    }

    /// Says that all output is to come through here.
    pub fn forbid_splicing(&mut self) {
        self.is_spliceable = false;
    }

    /// Whether our key has sealed so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        match &self.layer {
            Layer::None => false,
            Layer::User(sealer) => sealer.is_key_worn(),
            Layer::Kernel(sealer) => sealer.is_key_worn(),
        }
    }

    /// Whether output can be spliced, when nothing is staged.
    #[must_use]
    pub fn may_splice(&self) -> bool {
        self.is_spliceable && !matches!(self.layer, Layer::User(_)) && self.io.splicer().is_some()
    }

    /// The socket, when what is sent next can be spliced: nobody here seals it, and nothing is staged.
    #[must_use]
    pub fn splice_sink(&self) -> Option<T> {
        let is_free = self.stage.is_empty() && self.state == State::Open;
        (is_free && self.may_splice()).then(|| self.io.clone())
    }

    /// Says that bytes were sent without being seen here.
    pub fn on_spliced(&mut self, count: usize) {
        self.count += count as u64;
        self.wire_count += count as u64;
        self.spliced += count as u64;
        if let Some(live) = &self.live {
            live.on_out(count, true);
        }
        if let Layer::Kernel(sealer) = &mut self.layer {
            sealer.on_sent(count);
        }
    }

    /// Says that there was no pipe to splice through.
    pub fn on_no_pipe(&mut self) {
        self.without_pipe += 1;
    }

    /// How often there was no pipe.
    #[must_use]
    pub fn without_pipe(&self) -> Count {
        self.without_pipe
    }

    /// Bytes that were spliced.
    #[must_use]
    pub fn spliced(&self) -> Count {
        self.spliced
    }

    /// Waits until the socket takes more.
    ///
    /// # Errors
    /// [`StreamError::Stalled`] when it does not in time, or the error of the socket.
    pub async fn writable(&mut self) -> Result<(), StreamError> {
        self.watch.send_within(self.timeout);
        let result = self.io.writable().await;
        self.watch.send_at_leisure();
        result?;
        self.watch.shut().map_or(Ok(()), |cause| Err(cause.into()))
    }

    /// Changes our key when it is due.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub async fn update_key(&mut self) -> Result<(), StreamError> {
        match &mut self.layer {
            Layer::None => Ok(()),
            Layer::User(sealer) => {
                let mut control = Vec::new();
                sealer.take_key_update(&mut control)?;
                if control.is_empty() {
                    return Ok(());
                }
                self.on_key_update();
                self.send_control(&control).await
            }
            Layer::Kernel(sealer) => {
                let Some((content_type, message)) = sealer.due_key_update()? else { return Ok(()) };
                self.send_record(content_type, &message).await?;
                self.on_key_update();
                let (Layer::Kernel(sealer), Some(socket)) = (&mut self.layer, self.io.kernel_tls())
                else {
                    return Ok(());
                };
                sealer.change_key(socket).map_err(|error| match error {
                    KernelRecordError::Record(error) => error.into(),
                    KernelRecordError::Io(error) => error.into(),
                })
            }
        }
    }

    fn on_key_update(&self) {
        if let Some(live) = &self.live {
            live.on_key_update();
        }
    }

    /// Has the kernel seal and send a record that is not data.
    async fn send_record(&mut self, content_type: u8, message: &[u8]) -> Result<(), StreamError> {
        self.state = State::Sending;
        self.watch.send_within(self.timeout);
        let result = loop {
            let Some(socket) = self.io.kernel_tls() else { break Ok(()) };
            match socket.send_record(content_type, message) {
                Ok(()) => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = self.io.writable().await {
                        break Err(error.into());
                    }
                    if let Some(cause) = self.watch.shut() {
                        break Err(cause.into());
                    }
                }
                Err(error) => break Err(error.into()),
            }
        };
        self.watch.send_at_leisure();
        if result.is_ok() {
            self.state = State::Open;
        }
        result
    }

    /// Sends a sealed control record, which stands apart from what is staged.
    async fn send_control(&mut self, record: &[u8]) -> Result<(), StreamError> {
        let mut buffer = self.buffers.take(Class::holding(record.len()));
        buffer.append(record);
        self.send(buffer).await
    }

    /// Sends `buffer` to the last byte.
    async fn send(&mut self, mut buffer: Buffer) -> Result<(), StreamError> {
        self.state = State::Sending;
        let result = loop {
            self.watch.send_within(self.timeout);
            let (result, rest) = self.io.send(buffer).await;
            buffer = rest;
            if let Ok(count) = result {
                self.wire_count += count as u64;
                if let Layer::Kernel(sealer) = &mut self.layer {
                    sealer.on_sent(count);
                }
            }
            match result {
                Ok(_) if buffer.is_empty() => break Ok(()),
                Ok(0) => break Err(StreamError::Io(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = self.io.writable().await {
                        break Err(self.watch.shut().map_or(error.into(), StreamError::from));
                    }
                }
                Err(error) if is_retry(&error) => {}
                Err(error) => {
                    break Err(self.watch.shut().map_or(error.into(), StreamError::from));
                }
            }
        };
        self.watch.send_at_leisure();
        self.buffers.give(buffer);
        if result.is_ok() {
            self.state = State::Open;
        }
        result
    }

    fn margins(&self) -> (usize, usize) {
        match &self.layer {
            Layer::User(sealer) => (sealer.headroom(), sealer.tailroom()),
            Layer::None | Layer::Kernel(_) => (0, 0),
        }
    }

    /// Stages bytes into the open slot, or opens one. Zero when the stage is full.
    fn push_slot(&mut self, bytes: &[u8]) -> usize {
        let Layer::User(_) = &self.layer else {
            self.reserve(bytes.len());
            return self.stage.append(bytes);
        };
        let (headroom, tailroom) = self.margins();
        let used = match self.slot {
            Some(used) if used < RECORD_PLAINTEXT_MAX => used,
            Some(_) => {
                self.close_slot();
                0
            }
            None => 0,
        };
        // Reserving for all of the rest spares growing slot by slot; each slot brings its own margins.
        let slots = bytes.len() / RECORD_PLAINTEXT_MAX + 1;
        self.reserve(bytes.len() + slots * (headroom + tailroom) + tailroom);
        if used == 0
            && let Some(record) = bytes.first_chunk::<RECORD_PLAINTEXT_MAX>()
            && self.push_record(record)
        {
            return record.len();
        }
        let margin = tailroom + if self.slot.is_some() { 0 } else { headroom };
        let wanted = bytes.len().min(RECORD_PLAINTEXT_MAX - used);
        let room = self.stage.spare().saturating_sub(margin).min(wanted);
        if room == 0 {
            return 0;
        }
        if self.slot.is_none() {
            self.stage.advance(headroom);
        }
        self.stage.append(&bytes[..room]);
        self.slot = Some(used + room);
        room
    }

    /// Seals a whole record into the stage. False when there is no room, or when the key is to be changed before.
    fn push_record(&mut self, plain: &[u8; RECORD_PLAINTEXT_MAX]) -> bool {
        let Layer::User(sealer) = &mut self.layer else { return false };
        let len = sealer.headroom() + plain.len() + sealer.tailroom();
        if self.stage.spare() < len || sealer.is_key_update_due() || self.seal().is_err() {
            return false;
        }
        let Layer::User(sealer) = &mut self.layer else { return false };
        let is_sealed = sealer.seal_from(plain, &mut self.stage.spare_mut()[..len]).is_ok();
        if is_sealed {
            self.stage.advance(len);
            self.sealed = self.stage.len();
        }
        is_sealed
    }

    /// Makes room for `more` bytes, as far as the largest buffer allows.
    fn reserve(&mut self, more: usize) {
        if self.stage.spare() >= more {
            return;
        }
        // A head is followed by a body more often than not: growing once costs more than the room.
        let class = Class::holding(self.stage.len() + more).max(Class::Small);
        if class.bytes() > self.stage.capacity() {
            let mut larger = self.buffers.take(class);
            larger.append(self.stage.filled());
            self.buffers.give(std::mem::replace(&mut self.stage, larger));
        }
    }

    fn close_slot(&mut self) {
        if self.slot.take().is_some() {
            let (_, tailroom) = self.margins();
            self.stage.advance(tailroom);
        }
    }

    /// Seals in place every slot that is no record yet.
    fn seal(&mut self) -> Result<(), StreamError> {
        self.close_slot();
        let (headroom, tailroom) = self.margins();
        let Layer::User(sealer) = &mut self.layer else { return Ok(()) };
        let slots = &mut self.stage.filled_mut()[self.sealed..];
        for slot in slots.chunks_mut(headroom + RECORD_PLAINTEXT_MAX + tailroom) {
            sealer.seal_slot(slot)?;
            self.sealed += slot.len();
        }
        Ok(())
    }
}

impl<T: Transport> Drop for Writer<T> {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.stage));
    }
}

impl<T: Transport> std::fmt::Debug for Writer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("staged", &self.stage.len())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
