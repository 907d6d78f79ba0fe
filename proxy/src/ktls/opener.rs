//! The receiving half.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::cipher::{Cipher, TAG_BYTES};
use super::control::{self, Budget, Control};
use super::{RecordError, RecordLimit, Schedule, Version, content};
use crate::limits::{RECORD_HEADER_BYTES, RECORD_PLAINTEXT_MAX};

/// What stood at the front of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The record is not complete; see [`Opener::missing`].
    Partial,
    /// Plaintext, opened in place.
    Data {
        /// Where it lies.
        payload: Range<usize>,
        /// Length of the record.
        record_len: usize,
    },
    /// A record that was dealt with here.
    Handled {
        /// Its length.
        record_len: usize,
    },
    /// A record that changed the peer's key.
    KeyUpdated {
        /// Its length.
        record_len: usize,
    },
    /// The peer will send nothing more, and says so.
    CloseNotify,
}

/// Opens records.
pub struct Opener {
    cipher: Cipher,
    sequence: u64,
    pub(super) schedule: Rc<RefCell<Schedule>>,
    budget: Budget,
    limit: RecordLimit,
}

impl Opener {
    pub(super) fn new(
        cipher: Cipher,
        sequence: u64,
        schedule: Rc<RefCell<Schedule>>,
        limit: RecordLimit,
    ) -> Self {
        Self { cipher, sequence, schedule, budget: Budget::default(), limit }
    }

    /// Whether the peer's key has protected so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        match self.cipher.version {
            Version::Tls12 => self.limit.is_reached(self.sequence),
            Version::Tls13 => self.limit.is_overdue(self.sequence),
        }
    }

    /// How many bytes complete the record that `bytes` begin, or its header; 0 when it is complete.
    #[must_use]
    pub fn missing(&self, bytes: &[u8]) -> usize {
        match record_len(bytes) {
            None => RECORD_HEADER_BYTES - bytes.len(),
            Some(len) => len.saturating_sub(bytes.len()),
        }
    }

    /// Opens the record at the front of `bytes` in place.
    ///
    /// # Errors
    /// As [`RecordError`] says; the connection is to be closed then.
    pub fn open(&mut self, bytes: &mut [u8]) -> Result<Opened, RecordError> {
        let Some(record_len) = record_len(bytes) else { return Ok(Opened::Partial) };
        self.check_header(bytes[0], [bytes[1], bytes[2]], record_len)?;
        let Some(record) = bytes.get_mut(..record_len) else { return Ok(Opened::Partial) };
        if self.limit.is_exceeded(self.sequence) {
            return Err(RecordError::KeyExhausted);
        }
        let outer_type = record[0];
        let payload = self.cipher.open(record, self.sequence).ok_or(RecordError::Authentication)?;
        self.sequence += 1;
        if self.limit.is_reached(self.sequence) {
            self.schedule.borrow_mut().on_peer_key_worn();
        }
        let (content_type, payload) = match self.cipher.version {
            Version::Tls12 => (outer_type, payload),
            Version::Tls13 => inner_type(record, payload)?,
        };
        if payload.len() > RECORD_PLAINTEXT_MAX {
            return Err(RecordError::TooLong(payload.len()));
        }
        if content_type == content::APPLICATION_DATA {
            if !payload.is_empty() {
                self.budget.on_data();
                return Ok(Opened::Data { payload, record_len });
            }
            self.budget.on_idle_record()?;
            return Ok(Opened::Handled { record_len });
        }
        match control::read(self.cipher.version, content_type, &record[payload])? {
            Control::CloseNotify => return Ok(Opened::CloseNotify),
            Control::Nothing => self.budget.on_idle_record()?,
            Control::KeyUpdate { is_asked } => {
                self.budget.on_key_update()?;
                let mut schedule = self.schedule.borrow_mut();
                self.cipher = schedule.next_receive()?;
                self.sequence = 0;
                schedule.on_key_update(is_asked);
                return Ok(Opened::KeyUpdated { record_len });
            }
        }
        Ok(Opened::Handled { record_len })
    }

    fn check_header(&self, kind: u8, version: [u8; 2], len: usize) -> Result<(), RecordError> {
        let (is_known, overhead_max) = match self.cipher.version {
            // RFC 8446 §5.2: everything protected looks like application data.
            Version::Tls13 => (kind == content::APPLICATION_DATA, 256),
            Version::Tls12 => ((20..=23).contains(&kind), 2048),
        };
        if version != [3, 3] || !is_known {
            return Err(RecordError::Malformed);
        }
        let body = len - RECORD_HEADER_BYTES;
        if body > RECORD_PLAINTEXT_MAX + overhead_max {
            return Err(RecordError::TooLong(body));
        }
        if body < TAG_BYTES { Err(RecordError::Authentication) } else { Ok(()) }
    }
}

/// Length of the record that `bytes` begin; None while its header is not complete.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    Some(RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

/// Takes the padding and the type from the end (RFC 8446 §5.4).
fn inner_type(record: &[u8], payload: Range<usize>) -> Result<(u8, Range<usize>), RecordError> {
    let inner = &record[payload.clone()];
    let at = inner.iter().rposition(|&byte| byte != 0).ok_or(RecordError::Unexpected)?;
    Ok((inner[at], payload.start..payload.start + at))
}
