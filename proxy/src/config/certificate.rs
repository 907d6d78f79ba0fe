//! A chain and its key, read and judged before anything is served with them.
//!
//! No message here repeats what a file holds; a key that was put in the wrong place must not reach
//! a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error as TlsError, InconsistentKeys};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Surroundings;
use super::model::{CertificateSummary, Host};
use super::pem::{Damaged, sections};
use super::report::{Fault, Report};
use super::scalar;
use super::source::explain;
use super::table::Item;

/// Longest warning before the end of a certificate, in seconds: 30 days.
const EXPIRY_WARNING_SECONDS_MAX: i64 = 30 * 86_400;

/// More certificates than this are no chain but a bundle of roots.
const CHAIN_MAX: usize = 16;

/// A certificate that can be served.
#[derive(Debug)]
pub(super) struct Identity {
    /// Chain and key, known to belong together.
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names of the certificate's subjectAltName.
    pub(super) names: Vec<Host>,
    file: PathBuf,
    key_file: PathBuf,
    not_before: i64,
    not_after: i64,
}

impl Identity {
    /// Whether the certificate is good for `name`.
    pub(super) fn covers(&self, name: &Host) -> bool {
        self.names.iter().any(|own| match name {
            Host::Exact(name) => own.matches(name),
            Host::Wildcard(_) => own == name,
        })
    }

    pub(super) fn summary(&self, names: Vec<String>) -> CertificateSummary {
        CertificateSummary {
            file: self.file.clone(),
            key: self.key_file.clone(),
            names,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

/// What a chain says of itself.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<Host>,
    not_before: i64,
    not_after: i64,
}

/// Reads both files and checks them alone and together; everything wrong is noted at the key that
/// names the file. None when either cannot be used.
pub(super) fn load(
    report: &mut Report,
    around: &mut Surroundings<'_>,
    certificate: Option<(Item<'_>, PathBuf)>,
    key: Option<(Item<'_>, PathBuf)>,
) -> Option<Identity> {
    let chain = certificate.and_then(|(item, file)| {
        let chain = item.note(report, read_chain(around, &file))?;
        let valid = check_dates(report, &item, &file, &chain.certificates, around.now);
        Some((item, file, chain, valid))
    });
    let signing_key = key.and_then(|(item, file)| {
        let read = read_key(around, &file);
        Some((item.note(report, read)?, item, file))
    });
    let (item, file, chain, valid) = chain?;
    let (signing_key, key_item, key_file) = signing_key?;
    let matched = match_up(&chain, signing_key, &file, &key_file);
    let key = key_item.note(report, matched)?;
    check_order(report, &item, &file, &chain.certificates);
    valid.then(|| Identity {
        key: Arc::new(key),
        names: chain.names,
        file,
        key_file,
        not_before: chain.not_before,
        not_after: chain.not_after,
    })
}

fn read_chain(around: &mut Surroundings<'_>, file: &Path) -> Result<Chain, Fault> {
    let shown = file.display();
    let contents = around.files.read(file).map_err(|error| unreadable(file, &explain(&error)))?;
    let mut certificates = Vec::new();
    for section in sections(&contents.bytes) {
        let section = section.map_err(|damaged| cannot_be_decoded(file, damaged))?;
        if section.label != b"CERTIFICATE" {
            continue;
        }
        let der = section.decode().map_err(|damaged| cannot_be_decoded(file, damaged))?;
        certificates.push(CertificateDer::from(der.to_vec()));
        if certificates.len() > CHAIN_MAX {
            return Err(Fault::new(
                format!("{shown} holds more than {CHAIN_MAX} certificates"),
                "the server's certificate and its intermediates",
            ));
        }
    }
    let Some(leaf) = certificates.first() else {
        let fault = Fault::new(format!("{shown} holds no certificate"), "a PEM file");
        let has_key = sections(&contents.bytes).flatten().any(|section| is_key(section.label));
        return Err(if has_key {
            fault.hint("it holds a private key: are `certificate` and `key` swapped?")
        } else {
            fault.hint("it must contain -----BEGIN CERTIFICATE-----; DER files are not read")
        });
    };
    for (at, certificate) in certificates.iter().enumerate() {
        if parsed(certificate).is_none() {
            return Err(Fault::new(
                format!("certificate {} in {shown} is damaged", at + 1),
                "X.509 version 3",
            ));
        }
    }
    let leaf = parsed(leaf).ok_or_else(|| Fault::new(format!("{shown} is damaged"), ""))?;
    Ok(Chain {
        names: dns_names(&leaf),
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
        certificates,
    })
}

fn read_key(around: &mut Surroundings<'_>, file: &Path) -> Result<Arc<dyn SigningKey>, Fault> {
    let shown = file.display();
    let contents = around.files.read(file).map_err(|error| unreadable(file, &explain(&error)))?;
    if contents.mode & 0o077 != 0 {
        let fault = Fault::new(
            format!(
                "{shown} has mode {:04o}: others than its owner can use the key",
                contents.mode
            ),
            "no permission for group and others",
        );
        return Err(fault.hint(format!("chmod 600 {}", shell_word(file))));
    }
    let section = sections(&contents.bytes)
        .find(|section| section.as_ref().map_or(true, |found| is_key(found.label)))
        .ok_or_else(|| no_key(file, &contents.bytes))?
        .map_err(|damaged| cannot_be_decoded(file, damaged))?;
    let der = section.decode().map_err(|damaged| cannot_be_decoded(file, damaged))?;
    let key = as_key(section.label, &der).ok_or_else(|| no_key(file, &contents.bytes))?;
    any_supported_type(&key).map_err(|_| {
        Fault::new(
            format!("{shown} holds a key that cannot be used"),
            "RSA of 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519",
        )
    })
}

fn cannot_be_decoded(file: &Path, Damaged: Damaged) -> Fault {
    Fault::new(format!("{} is damaged: its PEM text cannot be decoded", file.display()), "")
}

/// A key in the format that a section's label tells of (RFC 7468 section 10, RFC 8017 appendix A.1.2, RFC 5915
/// section 4); None for what is no private key, or one under a passphrase.
fn as_key<'a>(label: &[u8], der: &'a [u8]) -> Option<PrivateKeyDer<'a>> {
    match label {
        b"PRIVATE KEY" => Some(PrivateKeyDer::Pkcs8(der.into())),
        b"RSA PRIVATE KEY" => Some(PrivateKeyDer::Pkcs1(der.into())),
        b"EC PRIVATE KEY" => Some(PrivateKeyDer::Sec1(der.into())),
        _ => None,
    }
}

fn is_key(label: &[u8]) -> bool {
    as_key(label, &[]).is_some()
}

fn no_key(file: &Path, bytes: &[u8]) -> Fault {
    let has = |marker: &[u8]| memchr::memmem::find(bytes, marker).is_some();
    let fault = Fault::new(format!("{} holds no private key", file.display()), "a PEM file");
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        fault.hint(format!(
            "it holds one under a passphrase; take that off: openssl pkey -in {} -out NEW.pem",
            shell_word(file)
        ))
    } else if has(b"-----BEGIN CERTIFICATE-----") {
        fault.hint("it holds a certificate: are `certificate` and `key` swapped?")
    } else {
        fault.hint("it must contain -----BEGIN PRIVATE KEY-----; DER files are not read")
    }
}

fn match_up(
    chain: &Chain,
    key: Arc<dyn SigningKey>,
    file: &Path,
    key_file: &Path,
) -> Result<CertifiedKey, Fault> {
    let certified = CertifiedKey::new(chain.certificates.clone(), Arc::clone(&key));
    match certified.keys_match() {
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(TlsError::InconsistentKeys(_)) => {
            let fault = Fault::new(
                format!(
                    "{} is not the key of the first certificate in {}",
                    key_file.display(),
                    file.display()
                ),
                "",
            );
            let later = chain.certificates.iter().skip(1).position(|certificate| {
                let alone = CertifiedKey::new(vec![certificate.clone()], Arc::clone(&key));
                alone.keys_match().is_ok()
            });
            Err(match later {
                Some(at) => fault.hint(format!(
                    "it is the key of certificate {}: the server's own must come first",
                    at + 2
                )),
                None => fault,
            })
        }
        // What a certificate is refused for here holds no secret: it went over the wire before.
        Err(error) => Err(Fault::new(
            format!("the certificate in {} cannot be used: {error}", file.display()),
            "",
        )),
    }
}

/// Notes what is expired, not valid yet, or about to expire; false when the chain is no use now.
fn check_dates(
    report: &mut Report,
    item: &Item<'_>,
    file: &Path,
    chain: &[CertificateDer<'_>],
    now: i64,
) -> bool {
    let mut valid = true;
    for (at, certificate) in chain.iter().enumerate() {
        let Some(certificate) = parsed(certificate) else { continue };
        let which = match at {
            0 => format!("the certificate in {}", file.display()),
            _ => format!("intermediate certificate {} in {}", at + 1, file.display()),
        };
        let start = certificate.validity().not_before.timestamp();
        let end = certificate.validity().not_after.timestamp();
        // A certificate that lives for days is renewed in its last third.
        let notice = EXPIRY_WARNING_SECONDS_MAX.min(end.saturating_sub(start) / 3);
        if now > end {
            valid = false;
            let fault = Fault::new(format!("{which} expired on {}", date(end)), "");
            item.error(report, fault.hint("renew it"));
        } else if now < start {
            valid = false;
            let fault = Fault::new(format!("{which} is not valid before {}", date(start)), "");
            item.error(report, fault.hint(format!("this machine's clock says {}", date(now))));
        } else if end.saturating_sub(now) < notice {
            let fault = Fault::new(format!("{which} expires on {}", date(end)), "");
            item.warning(report, fault.hint("renew it"));
        }
    }
    valid
}

/// Each certificate should be signed by the next (RFC 5246 §7.4.2, eased by RFC 8446 §4.4.2); not
/// every client sorts.
fn check_order(report: &mut Report, item: &Item<'_>, file: &Path, chain: &[CertificateDer<'_>]) {
    for (at, pair) in chain.windows(2).enumerate() {
        let [one, next] = pair else { continue };
        let (Some(one), Some(next)) = (parsed(one), parsed(next)) else { continue };
        if one.issuer().as_raw() != next.subject().as_raw() {
            let fault = Fault::new(
                format!(
                    "certificate {} in {} is not issued by the one after it",
                    at + 1,
                    file.display()
                ),
                "",
            );
            item.warning(
                report,
                fault.hint("server first, then each issuer; some clients do not sort"),
            );
            return;
        }
    }
}

fn parsed<'c>(certificate: &'c CertificateDer<'_>) -> Option<X509Certificate<'c>> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then_some(parsed)
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<Host> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let mut names: Vec<Host> = Vec::new();
    for name in &extension.value.general_names {
        let GeneralName::DNSName(name) = name else { continue };
        // A name that is none (some private authorities write such) can never be asked for.
        let Ok(name) = scalar::server_name(name) else { continue };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn unreadable(file: &Path, why: &str) -> Fault {
    Fault::new(format!("cannot read {}: {why}", file.display()), "")
}

/// Seconds since 1970 as RFC 3339 text.
fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}

/// A path as one word of a shell command.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
