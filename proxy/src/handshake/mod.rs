//! TLS in user space until the secrets are known. No I/O here: bytes in, bytes out.
//!
//! rustls is given one record at a time. What stands behind the last record of the handshake is never given to it: it
//! stays in the caller's buffer, unopened, for the record layer that takes over. That is what a handover of the keys to
//! the kernel needs, and the user-space record layer needs it just as much: bytes that rustls had opened would be lost.

mod witness;

use std::sync::Arc;

use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError};
use rustls::{ExtractedSecrets, ServerConfig};
use thiserror::Error;

pub use witness::Witness;

use crate::limits::{HANDSHAKE_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_WIRE_MAX};
use crate::message::request::looks_like_http;
use crate::transport::Buffer;

/// The type of a record of a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Longest word that may be a method, in bytes.
const METHOD_BYTES_MAX: usize = 32;

/// Why a handshake failed.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The first bytes are a request in plain HTTP.
    #[error("plain HTTP on a TLS port")]
    PlainHttp,
    /// The bytes are no TLS records.
    #[error("not TLS")]
    NotTls,
    /// More bytes than a handshake can need.
    #[error("the handshake exceeds {HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    /// The peer closed or left the handshake with an alert.
    #[error("the peer ended the handshake")]
    Closed,
    /// What rustls found; an alert, where one is due, was put into the output.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The output did not take what rustls had to say.
    #[error("{0}")]
    Encode(#[from] EncodeError),
}

/// What a handshake needs next.
#[derive(Debug)]
pub enum Progress {
    /// More bytes. A caller that must not read beyond the record in progress reads at most `next_read_max`.
    NeedInput {
        /// Bytes that complete the header of the next record, or its body.
        next_read_max: usize,
    },
    /// It is complete. The output is to be sent before anything else is.
    Established(Box<Established>),
}

/// Proof that rustls was given whole records only and none behind the handshake, so that the record layer starts at a
/// record boundary. Only [`Handshake`] can make one.
#[derive(Debug)]
pub struct RecordAligned(());

/// Everything that the record layer needs.
pub struct Established {
    /// Traffic secrets with their sequence numbers.
    pub secrets: ExtractedSecrets,
    /// Makes the next secrets when keys are updated.
    pub key_schedule: KernelConnection<ServerConnectionData>,
    /// No byte is left inside rustls.
    pub aligned: RecordAligned,
}

impl std::fmt::Debug for Established {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("suite", &self.key_schedule.negotiated_cipher_suite())
            .finish_non_exhaustive()
    }
}

/// The server side of one handshake.
pub struct Handshake {
    connection: Option<Box<UnbufferedServerConnection>>,
    /// Bytes at the front of the input that rustls has been given and not released.
    given: usize,
    /// Bytes given in all.
    total: usize,
}

impl Handshake {
    /// A handshake that has not begun. `config` must allow the extraction of secrets.
    ///
    /// # Errors
    /// When rustls finds the configuration unusable.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let connection = Box::new(UnbufferedServerConnection::new(config)?);
        Ok(Self { connection: Some(connection), given: 0, total: 0 })
    }

    /// Whether [`Handshake::on_bytes`] may compute for long with this input: a record of a handshake is complete in it.
    #[must_use]
    pub fn is_long_step(&self, input: &[u8]) -> bool {
        let mut rest = input.get(self.given..).unwrap_or_default();
        while let [content_type, _, _, high, low, body @ ..] = rest
            && let Some(behind) = body.get(usize::from(u16::from_be_bytes([*high, *low]))..)
        {
            if *content_type == HANDSHAKE {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// Takes what it needs from the front of `input` and appends what is to be sent to `output`, also when it fails.
    ///
    /// # Errors
    /// As [`HandshakeError`] says; the connection is to be closed after the output was sent.
    pub fn on_bytes(
        &mut self,
        input: &mut Buffer,
        output: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        loop {
            let step = self.step(input, output)?;
            match step {
                Step::Again => {}
                Step::Established => return self.establish(),
                Step::Blocked => {
                    let missing = self.give_record(input.filled())?;
                    if missing > 0 {
                        if input.len() == input.capacity() {
                            return Err(HandshakeError::TooLong);
                        }
                        return Ok(Progress::NeedInput { next_read_max: missing });
                    }
                }
            }
        }
    }

    /// Makes the next complete record visible to rustls; else returns how many bytes it lacks.
    fn give_record(&mut self, input: &[u8]) -> Result<usize, HandshakeError> {
        let record = &input[self.given..];
        if self.total == 0 && !is_judged(record)? {
            return Ok(1);
        }
        if record.len() < RECORD_HEADER_BYTES {
            return Ok(RECORD_HEADER_BYTES - record.len());
        }
        let len = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([record[3], record[4]]));
        // Types 20 to 23, version 3.x (RFC 8446 §5.1).
        if !(20..=23).contains(&record[0]) || record[1] != 3 || len > RECORD_WIRE_MAX {
            return Err(HandshakeError::NotTls);
        }
        if record.len() < len {
            return Ok(len - record.len());
        }
        self.given += len;
        self.total += len;
        if self.total > HANDSHAKE_BYTES_MAX { Err(HandshakeError::TooLong) } else { Ok(0) }
    }

    /// Lets rustls do one thing.
    fn step(&mut self, input: &mut Buffer, output: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        let Some(connection) = &mut self.connection else { return Err(HandshakeError::Closed) };
        let status = connection.process_tls_records(&mut input.filled_mut()[..self.given]);
        let discard = status.discard;
        let step = match status.state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(output, |room| data.encode(room)).map(|()| Step::Again)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Established),
            Ok(_) => Err(HandshakeError::Closed),
            Err(error) => Err(error.into()),
        };
        // Data may be written before the client's Finished (RFC 8446 §2, figure 1). Asked only now: an abbreviated
        // handshake of TLS 1.2 ends with that Finished, and the next record must not be given to rustls any more.
        let is_early = connection.is_handshaking();
        input.consume(discard);
        self.given -= discard;
        if step.is_err() {
            self.encode_alert(input, output);
        }
        match step {
            Ok(Step::Established) if is_early => Ok(Step::Blocked),
            step => step,
        }
    }

    /// After an error rustls still has its alert to say, as the last thing: asked once more, it would find the error
    /// again. It must see the same input as before, because it remembers where in it the fragments of a message lie.
    fn encode_alert(&mut self, input: &mut Buffer, output: &mut Vec<u8>) {
        /// In the clear, or under the keys of the handshake (RFC 8446 §5.2).
        const ALERT: [u8; 2] = [21, 23];
        let Some(mut connection) = self.connection.take() else { return };
        loop {
            let start = output.len();
            let given = &mut input.filled_mut()[..self.given];
            let status = connection.process_tls_records(given);
            let discard = status.discard;
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { return };
            if encode(output, |room| data.encode(room)).is_err()
                || output.get(start).is_none_or(|kind| ALERT.contains(kind))
            {
                return;
            }
            input.consume(discard);
            self.given -= discard;
        }
    }

    fn establish(&mut self) -> Result<Progress, HandshakeError> {
        let connection = self.connection.take().ok_or(HandshakeError::Closed)?;
        debug_assert_eq!(self.given, 0, "rustls released every record it was given");
        let (secrets, key_schedule) = connection.dangerous_into_kernel_connection()?;
        let aligned = RecordAligned(());
        Ok(Progress::Established(Box::new(Established { secrets, key_schedule, aligned })))
    }
}

enum Step {
    Again,
    Blocked,
    Established,
}

/// Whether the first bytes are enough to tell records from requests in plain HTTP, in whatever pieces they come.
fn is_judged(bytes: &[u8]) -> Result<bool, HandshakeError> {
    match bytes.first() {
        None | Some(22) => return Ok(true),
        Some(first) if !first.is_ascii_uppercase() => return Err(HandshakeError::NotTls),
        Some(_) => {}
    }
    // A method is known by the blank behind it.
    let word = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    if word > METHOD_BYTES_MAX {
        return Err(HandshakeError::NotTls);
    }
    if word == bytes.len() {
        return Ok(false);
    }
    Err(if looks_like_http(bytes) { HandshakeError::PlainHttp } else { HandshakeError::NotTls })
}

/// Appends what `write` encodes, with as much room as it asks for.
fn encode(
    output: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), HandshakeError> {
    let start = output.len();
    let mut room = 1024;
    loop {
        output.resize(start + room, 0);
        match write(&mut output[start..]) {
            Ok(count) => {
                output.truncate(start + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => room = size.required_size,
            Err(error) => {
                output.truncate(start);
                return Err(error.into());
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
