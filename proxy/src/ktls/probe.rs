//! What this kernel can do, found out by doing it: versions say nothing, because distributions build without the module,
//! leave ciphers out, and port features back.

mod loopback;

use ktls::CryptoInfo;
use ktls_sys::bindings as layout;
use rustls::{CipherSuite, SupportedCipherSuite};

use loopback::{Kernel, RecordLayer};

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
        Self::of(&Kernel)
    }

    fn of(layer: &dyn RecordLayer) -> Self {
        let results: Vec<_> =
            COMBINATIONS.iter().map(|&combination| loopback::try_out(layer, combination)).collect();
        let works = COMBINATIONS
            .iter()
            .zip(&results)
            .find(|(combination, result)| combination.is_tls13 && result.is_ok());
        let can_rekey =
            works.is_some_and(|(combination, _)| loopback::try_rekey(layer, *combination).is_ok());
        let readiness = works
            .and_then(|(combination, _)| loopback::try_readiness(layer, *combination).ok())
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

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::testing::Transparent;
    use super::*;

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

    #[test]
    fn a_suite_without_combination_is_not_covered() {
        assert_eq!(Combination::of(CipherSuite::TLS_RSA_WITH_AES_128_CBC_SHA), None);
    }

    /// Names of the suites that are covered.
    fn covered(support: &Support) -> Vec<CipherSuite> {
        let suites = crate::handshake::testing::suites();
        suites.iter().filter(|suite| support.covers(**suite)).map(|suite| suite.suite()).collect()
    }

    #[test]
    fn a_probe_finds_everything_where_nothing_is_refused() {
        let support = Support::of(&Transparent::default());
        assert_eq!(covered(&support).len(), COMBINATIONS.len());
        assert!(support.is_any() && support.can_rekey());
        // What is not sealed is readable as soon as a part of it has come.
        assert_eq!(support.readiness, Readiness::Premature);
    }

    #[test]
    fn a_probe_finds_what_is_refused_and_tries_the_rest() {
        let first = COMBINATIONS[0];
        let layer = Transparent::without_key(first, libc::ENOENT).without_rekey();
        let support = Support::of(&layer);
        let covered = covered(&support);
        assert_eq!(covered.len(), COMBINATIONS.len() - 1);
        assert!(!covered.contains(&CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert!(!support.can_rekey());
        let lines = support.describe().join("\n");
        let reason =
            "in user space: TLS 1.3 AES-128-GCM (the kernel has no cipher module for TLS 1.3";
        assert!(lines.contains(reason) && lines.contains("no key updates"), "{lines}");
    }

    #[test]
    fn a_probe_without_the_layer_finds_nothing_and_says_how_to_get_it() {
        let support = Support::of(&Transparent::without_layer(libc::ENOENT));
        assert!(covered(&support).is_empty() && !support.is_any() && !support.can_rekey());
        assert_eq!(support.readiness, Readiness::Unknown);
        let lines = support.describe();
        assert!(lines.len() == 1 && lines[0].contains("modprobe tls"), "{lines:?}");
    }
}
