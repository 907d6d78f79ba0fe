//! The sending half.

use std::cell::RefCell;
use std::rc::Rc;

use super::cipher::Cipher;
use super::{RecordError, RecordLimit, Schedule, Version, alert, content};

/// Seals records.
pub struct Sealer {
    cipher: Cipher,
    sequence: u64,
    schedule: Rc<RefCell<Schedule>>,
    limit: RecordLimit,
}

impl Sealer {
    pub(super) fn new(
        cipher: Cipher,
        sequence: u64,
        schedule: Rc<RefCell<Schedule>>,
        limit: RecordLimit,
    ) -> Self {
        Self { cipher, sequence, schedule, limit }
    }

    /// Bytes that a slot holds before its plaintext.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.cipher.headroom()
    }

    /// Bytes that a slot holds behind its plaintext.
    #[must_use]
    pub fn tailroom(&self) -> usize {
        self.cipher.tailroom()
    }

    /// Turns a slot (headroom, at most 16 KiB of plaintext, tailroom) into a record, in place.
    ///
    /// # Errors
    /// When the slot is malformed: a defect of the caller.
    pub fn seal_slot(&mut self, slot: &mut [u8]) -> Result<(), RecordError> {
        self.seal_as(content::APPLICATION_DATA, slot)
    }

    /// Seals `plain`, at most 16 KiB, into a slot of exactly its size: without a copy of it, for which
    /// [`Sealer::seal_slot`] would have to be preceded by one. Nothing is sealed when it fails.
    ///
    /// # Errors
    /// When the slot has another size: a defect of the caller.
    pub fn seal_from(&mut self, plain: &[u8], slot: &mut [u8]) -> Result<(), RecordError> {
        let sealed = self.cipher.seal_from(content::APPLICATION_DATA, plain, slot, self.sequence);
        sealed.ok_or(RecordError::Malformed)?;
        self.sequence += 1;
        Ok(())
    }

    /// Whether [`Sealer::take_key_update`] would change the key, or refuse: what is sealed now must be sent before it is
    /// called.
    #[must_use]
    pub fn is_key_update_due(&self) -> bool {
        self.limit.is_reached(self.sequence) || self.schedule.borrow().is_announcement_due()
    }

    /// Appends close_notify to `wire`.
    ///
    /// # Errors
    /// When sealing fails.
    pub fn close_notify(&mut self, wire: &mut Vec<u8>) -> Result<(), RecordError> {
        self.append(content::ALERT, &alert::CLOSE_NOTIFY, wire)
    }

    /// Appends a fatal alert to `wire`; nothing may follow it (RFC 8446 §6.2).
    ///
    /// # Errors
    /// When sealing fails.
    pub fn alert(&mut self, description: u8, wire: &mut Vec<u8>) -> Result<(), RecordError> {
        self.append(content::ALERT, &[alert::FATAL, description], wire)
    }

    /// Whether the key has sealed so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        self.cipher.version == Version::Tls12 && self.limit.is_reached(self.sequence)
    }

    /// Changes the key when it is due: because the peer asked, because it is to ask the peer for the same, or because the
    /// key has sealed enough. Appends what the peer must be told to `wire`.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`] in TLS 1.2, which cannot change keys.
    pub fn take_key_update(&mut self, wire: &mut Vec<u8>) -> Result<(), RecordError> {
        if self.cipher.version == Version::Tls12 {
            let is_exceeded = self.limit.is_exceeded(self.sequence);
            return if is_exceeded { Err(RecordError::KeyExhausted) } else { Ok(()) };
        }
        let is_worn = self.limit.is_reached(self.sequence);
        let announcement = self.schedule.borrow_mut().take_announcement(is_worn);
        if let Some(message) = announcement.message() {
            self.append(content::HANDSHAKE, &message, wire)?;
            self.cipher = self.schedule.borrow_mut().next_send()?;
            self.sequence = 0;
        }
        Ok(())
    }

    /// Appends one record of any type to `wire`.
    pub(super) fn append(
        &mut self,
        content_type: u8,
        plain: &[u8],
        wire: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        let start = wire.len();
        wire.resize(start + self.headroom(), 0);
        wire.extend_from_slice(plain);
        wire.resize(wire.len() + self.tailroom(), 0);
        self.seal_as(content_type, &mut wire[start..])
    }

    fn seal_as(&mut self, content_type: u8, slot: &mut [u8]) -> Result<(), RecordError> {
        self.cipher.seal(content_type, slot, self.sequence).ok_or(RecordError::Malformed)?;
        self.sequence += 1;
        Ok(())
    }
}
