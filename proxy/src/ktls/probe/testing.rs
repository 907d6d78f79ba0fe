//! A kernel for the probe, with a record layer that can be told what to refuse.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use ktls::CryptoInfo;

use super::loopback::RecordLayer;
use super::{Aead, Combination};
use crate::transport::TlsDirection;

/// Seals nothing: what goes in comes out as it is.
pub(super) struct Transparent {
    /// What attaching fails with.
    no_layer: Option<i32>,
    /// The combination that has no key, and what setting one fails with.
    no_key: Option<(Combination, i32)>,
    can_rekey: bool,
    /// Keys that are set.
    keys: RefCell<Vec<(RawFd, TlsDirection)>>,
}

impl Default for Transparent {
    fn default() -> Self {
        Self { no_layer: None, no_key: None, can_rekey: true, keys: RefCell::default() }
    }
}

impl Transparent {
    pub(super) fn without_layer(errno: i32) -> Self {
        Self { no_layer: Some(errno), ..Self::default() }
    }

    pub(super) fn without_key(combination: Combination, errno: i32) -> Self {
        Self { no_key: Some((combination, errno)), ..Self::default() }
    }

    /// Each direction of a socket takes one key, and no other after it.
    pub(super) fn without_rekey(self) -> Self {
        Self { can_rekey: false, ..self }
    }
}

/// What a key is for.
fn combination(key: &CryptoInfo) -> Combination {
    let (version, aead) = match key {
        CryptoInfo::AesGcm128(key) => (key.info.version, Aead::Aes128Gcm),
        CryptoInfo::AesGcm256(key) => (key.info.version, Aead::Aes256Gcm),
        CryptoInfo::Chacha20Poly1305(key) => (key.info.version, Aead::Chacha20Poly1305),
        _ => panic!("no suite of ours has such a key"),
    };
    Combination { is_tls13: version == 0x0304, aead }
}

impl RecordLayer for Transparent {
    fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        // The number may have been that of a socket which is closed.
        self.keys.borrow_mut().retain(|(number, _)| *number != socket.as_raw_fd());
        self.no_layer.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn set_key(
        &self,
        socket: BorrowedFd<'_>,
        direction: TlsDirection,
        key: &CryptoInfo,
    ) -> io::Result<()> {
        if let Some((refused, errno)) = self.no_key
            && refused == combination(key)
        {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let entry = (socket.as_raw_fd(), direction);
        if self.keys.borrow().contains(&entry) && !self.can_rekey {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.keys.borrow_mut().push(entry);
        Ok(())
    }
}
