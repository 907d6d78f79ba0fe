//! The record layer of the receiving half.

use std::io;

use super::{End, Reader};
use crate::buffers::Class;
use crate::ktls::kernel::{KernelOpener, KernelRecordError, Taken};
use crate::ktls::{Opened, Opener, RecordError};
use crate::stream::StreamError;
use crate::transport::Transport;

/// Who opens records.
pub(super) enum Layer {
    /// There are none.
    None,
    /// We do.
    User(Box<Opener>),
    /// The kernel does; what is not data is left to us.
    Kernel(Box<KernelOpener>),
}

impl<T: Transport> Reader<T> {
    /// What was wrong with the record layer, for the alert that the peer is owed.
    #[must_use]
    pub fn record_error(&self) -> Option<RecordError> {
        self.record_error
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

    pub(super) fn on_data(&mut self, count: usize) -> Result<(), StreamError> {
        let (Layer::Kernel(opener), Some(socket)) = (&mut self.layer, self.io.kernel_tls()) else {
            return Ok(());
        };
        opener.on_data(socket, count).map_err(|error| {
            self.record_error = Some(error);
            error.into()
        })
    }

    /// Opens every complete record in the buffer.
    pub(super) fn open_records(&mut self) -> Result<(), StreamError> {
        let Layer::User(opener) = &mut self.layer else {
            self.plain = self.buffer.len();
            self.wire = self.plain;
            return Ok(());
        };
        while self.end.is_none() {
            let record = &mut self.buffer.filled_mut()[self.wire..];
            let opened =
                opener.open(record).inspect_err(|&error| self.record_error = Some(error))?;
            if let Opened::Data { record_len, .. } = opened {
                self.record_len = u16::try_from(record_len).expect("no record is longer");
            }
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

    /// An error may stand for a record that is not data.
    pub(super) fn on_error(&mut self, error: io::Error) -> Result<(), StreamError> {
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
            self.move_to(Class::Bulk);
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
}
