//! The record layer from the end of the handshake on: in the kernel ([`kernel`]) where [`probe`] says that it can, else in
//! user space, where records are opened and sealed in place.
//!
//! What is ours in either case: key updates in both directions with a budget, alerts, the limit of records per key, and
//! the refusal of everything that has no business after a handshake (renegotiation, client certificates,
//! change_cipher_spec).

mod cipher;
mod control;
/// The keys go into the kernel.
pub mod kernel;
mod limit;
mod opener;
/// What this kernel can do.
pub mod probe;
mod sealer;

use std::cell::RefCell;
use std::rc::Rc;

use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};
use thiserror::Error;

pub use opener::{Opened, Opener};
pub use sealer::Sealer;

use crate::handshake::{Established, HandshakeError};
use cipher::Cipher;
use limit::RecordLimit;

/// What is wrong with a record, or with what we were about to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Version or type that no record has here.
    #[error("a malformed TLS record")]
    Malformed,
    /// Longer than RFC 8446 §5.2 or RFC 5246 §6.2.3 allow.
    #[error("a TLS record of {0} bytes is too long")]
    TooLong(usize),
    /// It was not sealed with this key, or was changed on its way.
    #[error("a TLS record fails authentication")]
    Authentication,
    /// A record without content type, or a message that may not come now (RFC 8446 §5).
    #[error("an unexpected TLS message")]
    Unexpected,
    /// RFC 8446 §4.1.2: refused, as every server does today.
    #[error("the client asks for renegotiation")]
    Renegotiation,
    /// The peer sent a fatal alert.
    #[error("the peer sent the TLS alert {0}")]
    PeerAlert(u8),
    /// Records without data, one after the other.
    #[error("too many empty TLS records")]
    EmptyRecords,
    /// Key updates without data between them: they cost us more than the peer.
    #[error("too many TLS key updates")]
    KeyUpdates,
    /// The next secret could not be made.
    #[error("the TLS key cannot be updated")]
    KeySchedule,
    /// The peer changes its key, and this kernel cannot follow: nothing more can be read, but everything can be sent.
    #[error("the client updates its TLS key, which this kernel cannot follow")]
    KeyUpdateUnsupported,
    /// TLS 1.2 cannot change keys, nor can some kernels, and this one has protected as many records as it may.
    #[error("the TLS key is used up")]
    KeyExhausted,
}

impl RecordError {
    /// The description of the alert that tells the peer (RFC 8446 §6, RFC 5246 §7.2); None when it gets none.
    #[must_use]
    pub fn alert(&self) -> Option<u8> {
        match self {
            Self::Malformed => Some(alert::DECODE_ERROR),
            Self::TooLong(_) => Some(alert::RECORD_OVERFLOW),
            Self::Authentication => Some(alert::BAD_RECORD_MAC),
            Self::Unexpected | Self::EmptyRecords | Self::KeyUpdates => {
                Some(alert::UNEXPECTED_MESSAGE)
            }
            // RFC 5246 §7.2.2 has a warning for this, which a client may ignore; we close.
            Self::Renegotiation => Some(alert::HANDSHAKE_FAILURE),
            Self::KeySchedule | Self::KeyExhausted => Some(alert::INTERNAL_ERROR),
            Self::PeerAlert(_) | Self::KeyUpdateUnsupported => None,
        }
    }
}

/// Alerts (RFC 8446 §6).
pub(crate) mod alert {
    /// The level of those that end a connection.
    pub(crate) const FATAL: u8 = 2;
    /// Level and description of the goodbye.
    pub(crate) const CLOSE_NOTIFY: [u8; 2] = [1, 0];
    pub(super) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(super) const BAD_RECORD_MAC: u8 = 20;
    pub(super) const RECORD_OVERFLOW: u8 = 22;
    pub(super) const HANDSHAKE_FAILURE: u8 = 40;
    pub(super) const DECODE_ERROR: u8 = 50;
    pub(super) const INTERNAL_ERROR: u8 = 80;
}

/// What opener and sealer share: both run on one thread.
struct Schedule {
    keys: KernelConnection<ServerConnectionData>,
    /// The peer asked us to update our key (RFC 8446 §4.6.3).
    is_update_asked: bool,
    peer: PeerKey,
}

/// What we want of the peer's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerKey {
    /// Nothing.
    Good,
    /// It has protected enough: with our next key we ask for another one.
    Worn,
    /// We have asked.
    Asked,
}

/// What our next key is announced with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announcement {
    /// Nothing is to be announced.
    None,
    /// A key update that asks for nothing.
    Update,
    /// One that asks the peer for its own.
    UpdateAndAsk,
}

impl Announcement {
    /// The handshake message (RFC 8446 §4.6.3).
    fn message(self) -> Option<[u8; 5]> {
        match self {
            Self::None => None,
            Self::Update => Some([24, 0, 0, 1, 0]),
            Self::UpdateAndAsk => Some([24, 0, 0, 1, 1]),
        }
    }
}

impl Schedule {
    fn new(keys: KernelConnection<ServerConnectionData>) -> Self {
        Self { keys, is_update_asked: false, peer: PeerKey::Good }
    }

    /// The peer's key has protected enough.
    fn on_peer_key_worn(&mut self) {
        if self.peer == PeerKey::Good {
            self.peer = PeerKey::Worn;
        }
    }

    /// The peer changes its key, and may want us to do so too.
    fn on_key_update(&mut self, is_asked: bool) {
        self.is_update_asked |= is_asked;
        self.peer = PeerKey::Good;
    }

    /// Whether something is to be announced though our own key is good.
    fn is_announcement_due(&self) -> bool {
        self.is_update_asked || self.peer == PeerKey::Worn
    }

    /// What is to be announced now; `is_worn` says that our own key has sealed enough.
    fn take_announcement(&mut self, is_worn: bool) -> Announcement {
        let is_asked = std::mem::take(&mut self.is_update_asked);
        match self.peer {
            PeerKey::Worn => {
                self.peer = PeerKey::Asked;
                Announcement::UpdateAndAsk
            }
            PeerKey::Good | PeerKey::Asked if is_asked || is_worn => Announcement::Update,
            PeerKey::Good | PeerKey::Asked => Announcement::None,
        }
    }

    fn next_receive(&mut self) -> Result<Cipher, RecordError> {
        let (_, secrets) = self.keys.update_rx_secret().map_err(|_| RecordError::KeySchedule)?;
        Cipher::new(Version::Tls13, secrets).ok_or(RecordError::KeySchedule)
    }

    fn next_send(&mut self) -> Result<Cipher, RecordError> {
        let (_, secrets) = self.keys.update_tx_secret().map_err(|_| RecordError::KeySchedule)?;
        Cipher::new(Version::Tls13, secrets).ok_or(RecordError::KeySchedule)
    }
}

/// Version of the record layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

/// Content types (RFC 8446 §5.1).
pub(crate) mod content {
    pub(crate) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const APPLICATION_DATA: u8 = 23;
}

/// Both halves of the record layer that follows a handshake.
///
/// # Errors
/// When the negotiated suite is none of AES-128-GCM, AES-256-GCM and ChaCha20-Poly1305.
pub fn session(established: Established) -> Result<(Opener, Sealer), HandshakeError> {
    halves(established, RecordLimit::KEY)
}

fn halves(
    established: Established,
    limit: RecordLimit,
) -> Result<(Opener, Sealer), HandshakeError> {
    let Established { secrets, key_schedule, aligned: _ } = established;
    let version = match key_schedule.protocol_version() {
        ProtocolVersion::TLSv1_3 => Version::Tls13,
        _ => Version::Tls12,
    };
    let unsupported = || HandshakeError::Tls(rustls::Error::General("unsupported cipher".into()));
    let cipher =
        |secrets: ConnectionTrafficSecrets| Cipher::new(version, secrets).ok_or_else(unsupported);
    let schedule = Rc::new(RefCell::new(Schedule::new(key_schedule)));
    let opener = Opener::new(cipher(secrets.rx.1)?, secrets.rx.0, Rc::clone(&schedule), limit);
    let sealer = Sealer::new(cipher(secrets.tx.1)?, secrets.tx.0, schedule, limit);
    Ok((opener, sealer))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
