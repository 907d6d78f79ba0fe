//! One key of one direction.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::Version;
use crate::limits::RECORD_HEADER_BYTES;

/// Length of the authentication tag of all our suites.
pub(super) const TAG_BYTES: usize = 16;

/// Length of the nonce part that TLS 1.2 sends with each GCM record (RFC 5288 §3).
const EXPLICIT_NONCE_BYTES: usize = 8;

/// How a nonce is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NonceForm {
    /// IV xor sequence number (RFC 8446 §5.3, RFC 7905 §2).
    Implicit,
    /// The record carries the last eight bytes (RFC 5288 §3).
    Explicit,
}

/// A key with its IV.
pub(super) struct Cipher {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    nonce_form: NonceForm,
    pub(super) version: Version,
}

impl Cipher {
    /// None for a suite or key length we do not know.
    pub(super) fn new(version: Version, secrets: ConnectionTrafficSecrets) -> Option<Self> {
        let (is_gcm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (true, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (false, key, iv),
            _ => return None,
        };
        // The label does not always tell the two AES key lengths apart in TLS 1.2; the length does.
        let algorithm = match (is_gcm, key.as_ref().len()) {
            (true, 16) => &AES_128_GCM,
            (true, 32) => &AES_256_GCM,
            (false, 32) => &CHACHA20_POLY1305,
            _ => return None,
        };
        let nonce_form = match version {
            Version::Tls12 if is_gcm => NonceForm::Explicit,
            Version::Tls12 | Version::Tls13 => NonceForm::Implicit,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        let iv = iv.as_ref().try_into().ok()?;
        Some(Self { key, iv, nonce_form, version })
    }

    /// Bytes before the ciphertext: header and explicit nonce.
    pub(super) fn headroom(&self) -> usize {
        match self.nonce_form {
            NonceForm::Implicit => RECORD_HEADER_BYTES,
            NonceForm::Explicit => RECORD_HEADER_BYTES + EXPLICIT_NONCE_BYTES,
        }
    }

    /// Bytes behind the plaintext: in TLS 1.3 its type, and the tag.
    pub(super) fn tailroom(&self) -> usize {
        match self.version {
            Version::Tls12 => TAG_BYTES,
            Version::Tls13 => 1 + TAG_BYTES,
        }
    }

    /// IV xor sequence number.
    fn nonce(&self, sequence: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= part;
        }
        nonce
    }

    /// What the tag covers beside the ciphertext: 13 bytes in TLS 1.2 (RFC 5246 §6.2.3.3), the header in TLS 1.3.
    fn aad(&self, header: [u8; RECORD_HEADER_BYTES], sequence: u64, plain_len: usize) -> AadBytes {
        let mut bytes = [0; 13];
        match self.version {
            Version::Tls13 => {
                bytes[..RECORD_HEADER_BYTES].copy_from_slice(&header);
                AadBytes { bytes, len: RECORD_HEADER_BYTES }
            }
            Version::Tls12 => {
                let [_, _, _, _, _, _, high, low] = (plain_len as u64).to_be_bytes();
                bytes[..8].copy_from_slice(&sequence.to_be_bytes());
                bytes[8..11].copy_from_slice(&header[..3]);
                bytes[11..].copy_from_slice(&[high, low]);
                AadBytes { bytes, len: 13 }
            }
        }
    }

    /// Opens a whole record in place. Returns where its plaintext lies; None when it is not authentic.
    pub(super) fn open(&self, record: &mut [u8], sequence: u64) -> Option<std::ops::Range<usize>> {
        let header: [u8; RECORD_HEADER_BYTES] = record[..RECORD_HEADER_BYTES].try_into().ok()?;
        let start = self.headroom();
        let plain_len = record.len().checked_sub(start + TAG_BYTES)?;
        let nonce = match self.nonce_form {
            NonceForm::Implicit => self.nonce(sequence),
            NonceForm::Explicit => {
                let mut nonce = self.iv;
                nonce[4..].copy_from_slice(&record[RECORD_HEADER_BYTES..start]);
                nonce
            }
        };
        let aad = Aad::from(self.aad(header, sequence, plain_len));
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.open_in_place(nonce, aad, &mut record[start..]).ok()?;
        Some(start..start + plain_len)
    }

    /// Seals a slot in place: `headroom`, plaintext, `tailroom`. None when the slot is too small or the library fails.
    pub(super) fn seal(&self, content_type: u8, slot: &mut [u8], sequence: u64) -> Option<()> {
        let (aad, nonce) = self.frame(content_type, slot, sequence)?;
        let (start, end) = (self.headroom(), slot.len() - TAG_BYTES);
        if self.version == Version::Tls13 {
            slot[end - 1] = content_type;
        }
        let tag = self.key.seal_in_place_separate_tag(nonce, aad, &mut slot[start..end]).ok()?;
        slot[end..].copy_from_slice(tag.as_ref());
        Some(())
    }

    /// Seals `plain` into a slot that has room for exactly that.
    pub(super) fn seal_from(
        &self,
        content_type: u8,
        plain: &[u8],
        slot: &mut [u8],
        sequence: u64,
    ) -> Option<()> {
        let (aad, nonce) = self.frame(content_type, slot, sequence)?;
        let (ciphertext, tail) = slot[self.headroom()..].split_at_mut_checked(plain.len())?;
        let inner_type: &[u8] = match self.version {
            Version::Tls12 => &[],
            Version::Tls13 => &[content_type],
        };
        self.key.seal_out_of_place_scatter(nonce, aad, plain, ciphertext, inner_type, tail).ok()
    }

    /// Writes what stands before the ciphertext in a slot, and returns what sealing it takes.
    fn frame(
        &self,
        content_type: u8,
        slot: &mut [u8],
        sequence: u64,
    ) -> Option<(Aad<AadBytes>, Nonce)> {
        let start = self.headroom();
        let plain_len = slot.len().checked_sub(start + self.tailroom())?;
        let wire_len = u16::try_from(slot.len() - RECORD_HEADER_BYTES).ok()?;
        let outer_type = match self.version {
            Version::Tls12 => content_type,
            Version::Tls13 => super::content::APPLICATION_DATA,
        };
        let [high, low] = wire_len.to_be_bytes();
        let header = [outer_type, 3, 3, high, low];
        slot[..RECORD_HEADER_BYTES].copy_from_slice(&header);
        let nonce = self.nonce(sequence);
        if self.nonce_form == NonceForm::Explicit {
            slot[RECORD_HEADER_BYTES..start].copy_from_slice(&nonce[4..]);
        }
        let aad = Aad::from(self.aad(header, sequence, plain_len));
        Some((aad, Nonce::assume_unique_for_key(nonce)))
    }
}

struct AadBytes {
    bytes: [u8; 13],
    len: usize,
}

impl AsRef<[u8]> for AadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
