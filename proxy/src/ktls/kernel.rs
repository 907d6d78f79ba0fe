//! The record layer in the kernel: how it gets the keys, and what remains ours (facts of `linux/tls.h` and
//! `net/tls/tls_sw.c`).
//!
//! The kernel seals and opens data. Records that are not data it hands out one by one, and it neither counts records
//! nor changes keys by itself.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use ktls::CryptoInfo;
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, SupportedCipherSuite};
use thiserror::Error;
use zeroize::Zeroize as _;

use super::control::{self, Budget, Control};
use super::probe::Support;
use super::{RecordError, RecordLimit, Schedule, Version, content};
use crate::handshake::Established;
use crate::limits::RECORD_PLAINTEXT_MAX;
use crate::transport::{KernelTls, TlsDirection};

/// Why the kernel did not take over.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// Nothing has changed: the record layer of this process can be used.
    #[error("{1}")]
    Refused(Box<Established>, io::Error),
    /// Half of it is done; the connection must end, because anything sent now could be plaintext.
    #[error("the kernel took one half of the record layer only: {0}")]
    Lost(io::Error),
    /// The keys have no form that the kernel knows.
    #[error("the kernel knows no such key")]
    Unsupported,
}

/// Whether a handover can be tried at all.
#[must_use]
pub fn is_possible(established: &Established, support: &Support) -> bool {
    support.covers(established.key_schedule.negotiated_cipher_suite())
}

/// Gives the keys to the kernel. The caller has sent everything that the handshake had to say, and received nothing
/// behind it, which [`crate::handshake::RecordAligned`] vouches for.
///
/// # Errors
/// As [`HandoverError`] says.
pub fn handover(
    established: Established,
    socket: &dyn KernelTls,
    support: &Support,
) -> Result<(KernelOpener, KernelSealer), HandoverError> {
    if let Err(error) = socket.attach() {
        return Err(HandoverError::Refused(Box::new(established), error));
    }
    let Established { secrets, key_schedule, aligned: _ } = established;
    let suite = key_schedule.negotiated_cipher_suite();
    let version = match key_schedule.protocol_version() {
        ProtocolVersion::TLSv1_3 => Version::Tls13,
        _ => Version::Tls12,
    };
    let (received, sent) = (secrets.rx.0, secrets.tx.0);
    let receive = key(suite, secrets.rx).ok_or(HandoverError::Unsupported)?;
    let send = key(suite, secrets.tx).ok_or(HandoverError::Unsupported)?;
    socket.set_key(TlsDirection::Send, &send.0).map_err(HandoverError::Lost)?;
    socket.set_key(TlsDirection::Receive, &receive.0).map_err(HandoverError::Lost)?;
    let schedule = Rc::new(RefCell::new(Schedule::new(key_schedule)));
    let can_rekey = support.can_rekey() && version == Version::Tls13;
    let keys = Keys { schedule, suite, can_rekey, limit: RecordLimit::KEY };
    let opener = KernelOpener {
        keys: keys.clone(),
        version,
        budget: Budget::default(),
        records: received,
        uncounted: 0,
    };
    Ok((opener, KernelSealer { keys, records: sent }))
}

/// A key in the layout of the kernel; wiped when dropped, since from then on only the kernel needs it.
struct KernelKey(CryptoInfo);

impl Drop for KernelKey {
    fn drop(&mut self) {
        match &mut self.0 {
            CryptoInfo::AesGcm128(info) => info.key.zeroize(),
            CryptoInfo::AesGcm256(info) => info.key.zeroize(),
            CryptoInfo::Chacha20Poly1305(info) => info.key.zeroize(),
            // No suite of ours has another layout.
            CryptoInfo::AesCcm128(_) | CryptoInfo::Sm4Gcm(_) | CryptoInfo::Sm4Ccm(_) => {}
        }
    }
}

fn key(suite: SupportedCipherSuite, secrets: (u64, ConnectionTrafficSecrets)) -> Option<KernelKey> {
    CryptoInfo::from_rustls(suite, secrets).ok().map(KernelKey)
}

/// What both halves need to change keys.
#[derive(Clone)]
struct Keys {
    schedule: Rc<RefCell<Schedule>>,
    suite: SupportedCipherSuite,
    can_rekey: bool,
    limit: RecordLimit,
}

impl Keys {
    /// The next key of one direction. A step that cannot be taken back, so only where the kernel can follow.
    fn next(&self, direction: TlsDirection) -> Result<KernelKey, RecordError> {
        let mut schedule = self.schedule.borrow_mut();
        let secrets = match direction {
            TlsDirection::Receive => schedule.keys.update_rx_secret(),
            TlsDirection::Send => schedule.keys.update_tx_secret(),
        };
        let secrets = secrets.map_err(|_| RecordError::KeySchedule)?;
        key(self.suite, secrets).ok_or(RecordError::KeySchedule)
    }
}

/// What a record that is not data was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// There is none (any more).
    Nothing,
    /// It was dealt with here.
    Handled,
    /// The peer changed its key.
    KeyUpdated,
    /// The peer will send nothing more.
    CloseNotify,
    /// It was data after all, so many bytes: the error that led here was about a record before it.
    Data(usize),
}

/// The receiving half: what the kernel does not do.
pub struct KernelOpener {
    keys: Keys,
    version: Version,
    budget: Budget,
    /// Records opened with this key when the kernel was last asked.
    records: u64,
    /// Bytes received since then: more than there can have been records with data.
    uncounted: usize,
}

impl KernelOpener {
    /// Bytes after which the kernel is asked how many records they were; far fewer than a key may protect records.
    const UNCOUNTED_MAX: usize = 1 << 20;

    /// Says that `count` bytes of data came.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`] when the key has protected more than it may.
    pub fn on_data(&mut self, socket: &dyn KernelTls, count: usize) -> Result<(), RecordError> {
        self.budget.on_data();
        self.uncounted += count;
        if self.uncounted < Self::UNCOUNTED_MAX {
            return Ok(());
        }
        // A kernel that does not tell: as if each byte had been a record.
        let most = self.records + self.uncounted as u64;
        self.records = socket.sequence(TlsDirection::Receive).unwrap_or(most);
        self.uncounted = 0;
        let limit = self.keys.limit;
        if limit.is_exceeded(self.records) {
            return Err(RecordError::KeyExhausted);
        }
        if limit.is_reached(self.records) && self.keys.can_rekey {
            self.keys.schedule.borrow_mut().on_peer_key_worn();
        }
        Ok(())
    }

    /// Whether the peer's key has protected so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        match self.keys.can_rekey {
            true => self.keys.limit.is_overdue(self.records),
            false => self.keys.limit.is_reached(self.records),
        }
    }

    /// Whether a failed receive says that a record which is not data stands first (`EIO`; for `splice(2)` `EINVAL`).
    #[must_use]
    pub fn is_control(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
    }

    /// What a failed receive says of the records, if it does.
    #[must_use]
    pub fn record_error(error: &io::Error) -> Option<RecordError> {
        match error.raw_os_error() {
            // Both directions are dead then: not even an alert can be sent.
            Some(libc::EBADMSG) => Some(RecordError::Authentication),
            Some(libc::EMSGSIZE) => Some(RecordError::TooLong(RECORD_PLAINTEXT_MAX)),
            _ => None,
        }
    }

    /// Takes one record that is not data. `spill` gets what turns out to be data; it must have room for a byte.
    ///
    /// # Errors
    /// When the peer broke the protocol, or asks for what the kernel cannot do, or the socket fails.
    pub fn take(
        &mut self,
        socket: &dyn KernelTls,
        spill: &mut [u8],
    ) -> Result<Taken, KernelRecordError> {
        let (content_type, count) = match socket.recv_record(spill) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Taken::Nothing),
            Err(error) => {
                return Err(match Self::record_error(&error) {
                    Some(record) => record.into(),
                    None => error.into(),
                });
            }
        };
        if content_type == content::APPLICATION_DATA {
            self.on_data(socket, count)?;
            return Ok(Taken::Data(count));
        }
        match control::read(self.version, content_type, &spill[..count])? {
            Control::CloseNotify => return Ok(Taken::CloseNotify),
            Control::Nothing => self.budget.on_idle_record()?,
            Control::KeyUpdate { is_asked } => {
                self.budget.on_key_update()?;
                if !self.keys.can_rekey {
                    return Err(RecordError::KeyUpdateUnsupported.into());
                }
                let key = self.keys.next(TlsDirection::Receive)?;
                socket.set_key(TlsDirection::Receive, &key.0)?;
                (self.records, self.uncounted) = (0, 0);
                self.keys.schedule.borrow_mut().on_key_update(is_asked);
                return Ok(Taken::KeyUpdated);
            }
        }
        Ok(Taken::Handled)
    }
}

/// Why a record that is not data could not be dealt with.
#[derive(Debug, Error)]
pub enum KernelRecordError {
    /// The record layer.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The sending half: what the kernel does not do.
pub struct KernelSealer {
    keys: Keys,
    /// Records sealed with this key, at most: each send begins a new one.
    records: u64,
}

impl KernelSealer {
    /// Says that one call sent so many bytes.
    pub fn on_sent(&mut self, count: usize) {
        self.records += 1 + (count / RECORD_PLAINTEXT_MAX) as u64;
    }

    /// Whether the key has sealed so many records that the connection should end at the next opportunity.
    #[must_use]
    pub fn is_key_worn(&self) -> bool {
        !self.keys.can_rekey && self.keys.limit.is_reached(self.records)
    }

    /// The message that announces our next key, when it is time for that: because the peer asked, because it is to ask the
    /// peer for the same, or because this one has sealed enough.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`] where keys cannot be changed.
    pub fn due_key_update(&mut self) -> Result<Option<(u8, [u8; 5])>, RecordError> {
        let limit = self.keys.limit;
        if !self.keys.can_rekey {
            let is_exceeded = limit.is_exceeded(self.records);
            return if is_exceeded { Err(RecordError::KeyExhausted) } else { Ok(None) };
        }
        let is_worn = limit.is_reached(self.records);
        let announcement = self.keys.schedule.borrow_mut().take_announcement(is_worn);
        Ok(announcement.message().map(|message| (content::HANDSHAKE, message)))
    }

    /// Changes the key, after the message of [`KernelSealer::due_key_update`] was sent with the old one.
    ///
    /// # Errors
    /// When there is no next key, or the kernel refuses it; nothing can be sent any more then.
    pub fn change_key(&mut self, socket: &dyn KernelTls) -> Result<(), KernelRecordError> {
        let key = self.keys.next(TlsDirection::Send)?;
        socket.set_key(TlsDirection::Send, &key.0)?;
        self.records = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
