//! What this kernel can do, found out by doing it: versions say nothing, because distributions build without the module,
//! leave ciphers out, and port features back.
//!
//! Each cipher is tried over loopback in both directions with more than 64 KiB in odd pieces, byte for byte, copied and
//! spliced.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use ktls::CryptoInfo;
use ktls_sys::bindings as layout;
use rustls::{CipherSuite, SupportedCipherSuite};

use crate::sys::{self, tls};
use crate::transport::TlsDirection;

/// Time that one loopback transfer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sizes of the pieces of a transfer: 69,141 bytes in all.
const PIECES: [usize; 9] = [1, 17, 300, 4096, 16_383, 16_384, 16_385, 15_574, 1];

/// A cipher of the record layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aead {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    Chacha20Poly1305,
}

/// A version of TLS with a cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combination {
    /// TLS 1.3, else 1.2.
    pub is_tls13: bool,
    /// The cipher.
    pub aead: Aead,
}

/// All that there are.
pub const COMBINATIONS: [Combination; 6] = {
    const fn of(is_tls13: bool, aead: Aead) -> Combination {
        Combination { is_tls13, aead }
    }
    [
        of(true, Aead::Aes128Gcm),
        of(true, Aead::Aes256Gcm),
        of(true, Aead::Chacha20Poly1305),
        of(false, Aead::Aes128Gcm),
        of(false, Aead::Aes256Gcm),
        of(false, Aead::Chacha20Poly1305),
    ]
};

impl Combination {
    /// The combination that a suite of rustls stands for; None for one that we do not know.
    #[must_use]
    pub fn of(suite: CipherSuite) -> Option<Self> {
        let (is_tls13, aead) = match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => (true, Aead::Aes128Gcm),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => (true, Aead::Aes256Gcm),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => (true, Aead::Chacha20Poly1305),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => (false, Aead::Aes128Gcm),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => (false, Aead::Aes256Gcm),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => {
                (false, Aead::Chacha20Poly1305)
            }
            _ => return None,
        };
        Some(Self { is_tls13, aead })
    }

    /// A key that is not secret, for the probe; `seed` tells the two directions apart.
    fn test_key(self, seed: u8) -> CryptoInfo {
        let info = |cipher_type: u32| layout::tls_crypto_info {
            version: if self.is_tls13 { 0x0304 } else { 0x0303 },
            // All of them are below 2^16 (linux/tls.h).
            cipher_type: u16::try_from(cipher_type).unwrap_or_default(),
        };
        let rec_seq = [0; 8];
        match self.aead {
            Aead::Aes128Gcm => CryptoInfo::AesGcm128(layout::tls12_crypto_info_aes_gcm_128 {
                info: info(layout::TLS_CIPHER_AES_GCM_128),
                iv: [seed; 8],
                key: [seed; 16],
                salt: [seed; 4],
                rec_seq,
            }),
            Aead::Aes256Gcm => CryptoInfo::AesGcm256(layout::tls12_crypto_info_aes_gcm_256 {
                info: info(layout::TLS_CIPHER_AES_GCM_256),
                iv: [seed; 8],
                key: [seed; 32],
                salt: [seed; 4],
                rec_seq,
            }),
            Aead::Chacha20Poly1305 => {
                CryptoInfo::Chacha20Poly1305(layout::tls12_crypto_info_chacha20_poly1305 {
                    info: info(layout::TLS_CIPHER_CHACHA20_POLY1305),
                    iv: [seed; 12],
                    key: [seed; 32],
                    salt: layout::__IncompleteArrayField::new(),
                    rec_seq,
                })
            }
        }
    }
}

impl std::fmt::Display for Combination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = if self.is_tls13 { "1.3" } else { "1.2" };
        let aead = match self.aead {
            Aead::Aes128Gcm => "AES-128-GCM",
            Aead::Aes256Gcm => "AES-256-GCM",
            Aead::Chacha20Poly1305 => "ChaCha20-Poly1305",
        };
        write!(f, "TLS {version} {aead}")
    }
}

/// What the kernel can take over.
#[derive(Debug)]
pub struct Support {
    /// One for each of [`COMBINATIONS`]: it works, or why not.
    results: Vec<Result<(), String>>,
    can_rekey: bool,
    readiness: Readiness,
}

/// What a poll says of a socket that holds a part of a record only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not readable.
    Exact,
    /// Readable, though nothing can be received (seen on Linux 6.1): whoever waits like that would spin. The gateway
    /// waits by receives instead.
    Premature,
    /// It could not be found out.
    Unknown,
}

impl Support {
    /// Nothing, for this reason.
    #[must_use]
    pub fn none(reason: &str) -> Self {
        let results = COMBINATIONS.iter().map(|_| Err(reason.to_owned())).collect();
        Self { results, can_rekey: false, readiness: Readiness::Unknown }
    }

    /// Everything, for tests that stand in for the kernel themselves.
    #[cfg(test)]
    pub(crate) fn everything(can_rekey: bool) -> Self {
        let results = COMBINATIONS.iter().map(|_| Ok(())).collect();
        Self { results, can_rekey, readiness: Readiness::Exact }
    }

    /// Tries everything. Takes some milliseconds, and blocks.
    #[must_use]
    pub fn probe() -> Self {
        let results: Vec<_> =
            COMBINATIONS.iter().map(|&combination| try_out(combination)).collect();
        let works = COMBINATIONS
            .iter()
            .zip(&results)
            .find(|(combination, result)| combination.is_tls13 && result.is_ok());
        let can_rekey = works.is_some_and(|(combination, _)| try_rekey(*combination).is_ok());
        let readiness = works
            .and_then(|(combination, _)| try_readiness(*combination).ok())
            .unwrap_or(Readiness::Unknown);
        Self { results, can_rekey, readiness }
    }

    /// Whether a connection with this suite can be taken over.
    #[must_use]
    pub fn covers(&self, suite: SupportedCipherSuite) -> bool {
        let Some(wanted) = Combination::of(suite.suite()) else { return false };
        COMBINATIONS
            .iter()
            .zip(&self.results)
            .any(|(combination, result)| *combination == wanted && result.is_ok())
    }

    /// Whether any cipher works.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.results.iter().any(Result::is_ok)
    }

    /// Whether keys can be changed while a connection lives (Linux 6.14 and later).
    #[must_use]
    pub fn can_rekey(&self) -> bool {
        self.can_rekey
    }

    /// Lines for an administrator: what works, what does not and what to do about it.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let names = |wanted: bool| {
            let chosen = COMBINATIONS.iter().zip(&self.results);
            let chosen = chosen.filter(|(_, result)| result.is_ok() == wanted);
            chosen.map(|(combination, _)| combination.to_string()).collect::<Vec<_>>().join(", ")
        };
        let reason = self.results.iter().find_map(|result| result.as_ref().err());
        match (self.is_any(), reason) {
            (false, Some(reason)) => {
                vec![format!("in user space, at more CPU per byte of bulk data: {reason}")]
            }
            (_, reason) => {
                let mut lines = vec![format!("in the kernel: {}", names(true))];
                if let Some(reason) = reason {
                    lines.push(format!("in user space: {} ({reason})", names(false)));
                }
                if self.readiness == Readiness::Premature {
                    let text = "a part of a record looks like a whole one to poll; nothing here relies on that";
                    lines.push(text.to_owned());
                }
                if !self.can_rekey {
                    let text = "no key updates in this kernel (Linux 6.14 has them): a client that asks for one, \
                                which browsers do not, is disconnected";
                    lines.push(text.to_owned());
                }
                lines
            }
        }
    }
}

/// A connection to ourselves, with the layer attached at both ends.
fn attached_pair() -> Result<(TcpStream, TcpStream), String> {
    let explain = |error: io::Error| format!("the probe has no loopback connection: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(explain)?;
    let near = TcpStream::connect(listener.local_addr().map_err(explain)?).map_err(explain)?;
    let (far, _) = listener.accept().map_err(explain)?;
    for end in [&near, &far] {
        end.set_read_timeout(Some(TIMEOUT)).map_err(explain)?;
        end.set_write_timeout(Some(TIMEOUT)).map_err(explain)?;
        end.set_nodelay(true).map_err(explain)?;
        tls::attach(end.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => {
                "the kernel has no module `tls`, or it is not loaded (modprobe tls)".to_owned()
            }
            _ => format!("TCP_ULP tls: {error}"),
        })?;
    }
    Ok((near, far))
}

/// Sends pieces both ways through the kernel.
fn try_out(combination: Combination) -> Result<(), String> {
    let (near, far) = attached_pair()?;
    for (sender, receiver, seed) in [(&near, &far, 1), (&far, &near, 2)] {
        set(sender, TlsDirection::Send, combination, seed)?;
        set(receiver, TlsDirection::Receive, combination, seed)?;
    }
    for (sender, receiver) in [(&near, &far), (&far, &near)] {
        splice_through(sender, receiver)?;
    }
    for (mut sender, mut receiver) in [(&near, &far), (&far, &near)] {
        for (index, len) in PIECES.into_iter().enumerate() {
            let step = u8::try_from(index).unwrap_or_default().wrapping_mul(31);
            let piece: Vec<u8> = (0..=250).cycle().skip(step.into()).take(len).collect();
            let failed = |error: io::Error| format!("a loopback transfer failed: {error}");
            sender.write_all(&piece).map_err(failed)?;
            let mut received = vec![0; len];
            receiver.read_exact(&mut received).map_err(failed)?;
            if received != piece {
                return Err(
                    "a loopback transfer changed its bytes: do not trust this kernel".into()
                );
            }
        }
    }
    Ok(())
}

/// Pieces that go into one socket and come out of the other through pipes, in what the kernel seals and opens.
fn splice_through(sender: &TcpStream, receiver: &TcpStream) -> Result<(), String> {
    /// Sizes: 81,952 bytes in all, with a part of a record at the end of each.
    const PIECES: [usize; 4] = [300, 16_385, 65_000, 267];
    let failed = |error: io::Error| format!("a loopback transfer by splice failed: {error}");
    let (read, write, _) = sys::pipe().map_err(failed)?;
    let (mut source, mut sink) = (File::from(write), File::from(read));
    let deadline = Instant::now() + TIMEOUT;
    for (index, len) in PIECES.into_iter().enumerate() {
        let step = u8::try_from(index).unwrap_or_default().wrapping_mul(59);
        let piece: Vec<u8> = (0..=250).cycle().skip(step.into()).take(len).collect();
        source.write_all(&piece).map_err(failed)?;
        let mut held = len;
        while held > 0 {
            held -= sys::splice(sink.as_fd(), sender.as_fd(), held).map_err(failed)?;
        }
        let mut received = Vec::with_capacity(len);
        while received.len() < len {
            match sys::splice(receiver.as_fd(), source.as_fd(), len - received.len()) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    let start = received.len();
                    received.resize(start + count, 0);
                    sink.read_exact(&mut received[start..]).map_err(failed)?;
                }
                // The record is on its way.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(failed(error));
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if received != piece {
            return Err(
                "a loopback transfer by splice changed its bytes: do not trust this kernel".into(),
            );
        }
    }
    Ok(())
}

/// Sends a part of a record to a socket whose records the kernel opens, and asks whether it is readable.
fn try_readiness(combination: Combination) -> Result<Readiness, String> {
    /// Time in which the part has certainly arrived, and within which a poll that is exact waits.
    const MOMENT: Duration = Duration::from_millis(20);
    let (mut near, far) = attached_pair()?;
    set(&far, TlsDirection::Receive, combination, 1)?;
    // Without a key this end sends as it is: a header that promises 4 KiB, and some of them.
    let mut part = vec![23, 3, 3, 16, 0];
    part.resize(100, 0);
    near.write_all(&part).map_err(|error| error.to_string())?;
    match sys::readable_within(far.as_fd(), MOMENT) {
        Ok(true) => Ok(Readiness::Premature),
        Ok(false) => Ok(Readiness::Exact),
        Err(error) => Err(error.to_string()),
    }
}

fn set(
    socket: &TcpStream,
    direction: TlsDirection,
    combination: Combination,
    seed: u8,
) -> Result<(), String> {
    tls::set_key(socket.as_fd(), direction, &combination.test_key(seed)).map_err(
        |error| match error.raw_os_error() {
            Some(libc::ENOENT) => format!("the kernel has no cipher module for {combination}"),
            _ => format!("the kernel refuses a key for {combination}: {error}"),
        },
    )
}

/// Changes a key.
fn try_rekey(combination: Combination) -> Result<(), String> {
    let (near, _far) = attached_pair()?;
    set(&near, TlsDirection::Send, combination, 1)?;
    set(&near, TlsDirection::Send, combination, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_more_than_64_kib_in_all() {
        assert!(PIECES.iter().sum::<usize>() > 65_536);
    }

    #[test]
    fn every_suite_of_ours_has_its_combination() {
        for suite in crate::handshake::testing::suites() {
            assert!(Combination::of(suite.suite()).is_some(), "{suite:?}");
        }
    }

    #[test]
    fn a_probe_says_what_works_or_why_nothing_does() {
        let support = Support::probe();
        let lines = support.describe();
        assert!(lines[0].starts_with(if support.is_any() {
            "in the kernel"
        } else {
            "in user space"
        }));
        let partial = Support {
            results: (0..6)
                .map(|index| if index == 2 { Err("no".into()) } else { Ok(()) })
                .collect(),
            can_rekey: false,
            readiness: Readiness::Premature,
        };
        let text = partial.describe().join("\n");
        for part in [
            "in the kernel: TLS 1.3 AES-128-GCM,",
            "in user space: TLS 1.3 ChaCha20-Poly1305 (no)",
            "looks like a whole one to poll",
            "no key updates in this kernel",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert_eq!(Support::everything(true).describe().len(), 1);
        assert!(!Support::none("switched off").is_any());
        assert!(Support::none("switched off").describe()[0].contains("switched off"));
    }
}
