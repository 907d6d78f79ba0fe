//! Records that are not data, whoever opened them.

use super::{RecordError, Version, content};

/// Records without data that may follow each other.
const IDLE_RECORDS_MAX: u8 = 32;

/// What a record that is not data asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// The peer will send nothing more.
    CloseNotify,
    /// Nothing.
    Nothing,
    /// The peer's key changes with the next record.
    KeyUpdate {
        /// Ours is to change too.
        is_asked: bool,
    },
}

/// Understands the record of `content_type` that holds `message`.
///
/// # Errors
/// When it has no business after a handshake.
pub(super) fn read(
    version: Version,
    content_type: u8,
    message: &[u8],
) -> Result<Control, RecordError> {
    match content_type {
        content::ALERT => read_alert(message),
        content::HANDSHAKE => read_handshake(version, message),
        _ => Err(RecordError::Unexpected),
    }
}

fn read_alert(message: &[u8]) -> Result<Control, RecordError> {
    const WARNING: u8 = 1;
    const USER_CANCELED: u8 = 90;
    const NO_RENEGOTIATION: u8 = 100;
    match *message {
        [_, 0] => Ok(Control::CloseNotify),
        [WARNING, USER_CANCELED | NO_RENEGOTIATION] => Ok(Control::Nothing),
        [_, description] => Err(RecordError::PeerAlert(description)),
        _ => Err(RecordError::Unexpected),
    }
}

/// Only a KeyUpdate is of use after the handshake, and it stands alone in its record: keys change at a record boundary
/// (RFC 8446 §5.1). We asked for no client certificate, and a client sends no ticket.
fn read_handshake(version: Version, message: &[u8]) -> Result<Control, RecordError> {
    const KEY_UPDATE: u8 = 24;
    if version == Version::Tls12 {
        return Err(RecordError::Renegotiation);
    }
    match *message {
        [KEY_UPDATE, 0, 0, 1, asked @ (0 | 1)] => Ok(Control::KeyUpdate { is_asked: asked == 1 }),
        _ => Err(RecordError::Unexpected),
    }
}

/// How much a peer may send that moves no data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    idle_records: u8,
    key_updates: u8,
}

impl Budget {
    pub(super) fn on_data(&mut self) {
        *self = Self::default();
    }

    pub(super) fn on_idle_record(&mut self) -> Result<(), RecordError> {
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(RecordError::EmptyRecords);
        }
        Ok(())
    }

    pub(super) fn on_key_update(&mut self) -> Result<(), RecordError> {
        self.key_updates += 1;
        if self.key_updates >= IDLE_RECORDS_MAX {
            return Err(RecordError::KeyUpdates);
        }
        self.on_idle_record()
    }
}
