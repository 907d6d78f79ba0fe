//! The file as an administrator meets it: what is accepted and what it means, what is refused and
//! how the refusal reads. Certificates are made on the spot; no test touches the disk except those
//! of the disk.

mod bad;
mod good;
mod handshake;
mod routing;
mod scalar;
mod tls;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair, date_time_ymd};

use super::{
    Account, AccountError, FileContents, FileSource, Loaded, Problem, Report, Severity,
    Surroundings, parse,
};

/// 2026-01-01T00:00:00Z, when every test takes place.
const NOW: i64 = 1_767_225_600;

/// Files by absolute path, with modes.
#[derive(Default)]
struct Memory {
    files: HashMap<PathBuf, (Vec<u8>, u32)>,
}

impl Memory {
    fn put(&mut self, path: &str, text: &str) {
        self.put_mode(path, text, 0o600);
    }

    fn put_mode(&mut self, path: &str, text: &str, mode: u32) {
        self.files.insert(PathBuf::from(path), (text.as_bytes().to_vec(), mode));
    }

    /// A directory `/etc/tlsplice` with `cert.pem` and `key.pem` for desk.example.org.
    fn with_certificate() -> Self {
        Self::with_certificate_of(&pair(&["desk.example.org", "*.apps.example.org"]))
    }

    fn with_certificate_of(pair: &Pair) -> Self {
        let mut memory = Self::default();
        memory.put("/etc/tlsplice/cert.pem", &pair.certificate);
        memory.put("/etc/tlsplice/key.pem", &pair.key);
        memory
    }

    fn parse(&mut self, text: &str) -> Result<Loaded, Report> {
        let mut surroundings =
            Surroundings { files: self, directory: Path::new("/etc/tlsplice"), now: NOW, cores: 4 };
        parse(text, Path::new("tlsplice.toml"), &mut surroundings)
    }
}

/// A configuration that names no files, for tests elsewhere.
pub(crate) fn alone(text: &str) -> super::Config {
    Memory::default().parse(text).map(|loaded| loaded.config).expect("a good configuration")
}

impl FileSource for Memory {
    fn read(&mut self, path: &Path) -> io::Result<FileContents> {
        let (bytes, mode) = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(FileContents { bytes: bytes.clone().into(), mode: *mode })
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        path == Path::new("/var/log") || path == Path::new("/etc/tlsplice")
    }

    fn account(&mut self, user: &str, group: Option<&str>) -> Result<Account, AccountError> {
        let number = match group {
            None => 901,
            Some("web") => 33,
            Some(_) => return Err(AccountError::NoGroup),
        };
        let account = Account {
            name: user.to_owned(),
            group_name: group.map(str::to_owned),
            user: 900,
            group: number,
            groups: vec![number],
        };
        (user == "tlsplice").then_some(account).ok_or(AccountError::NoUser)
    }
}

struct Pair {
    certificate: String,
    key: String,
}

/// A self-signed certificate, valid through 2025 and 2026.
fn pair(names: &[&str]) -> Pair {
    pair_between(names, (2025, 1, 1), (2027, 1, 1))
}

fn pair_between(names: &[&str], from: (i32, u8, u8), until: (i32, u8, u8)) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params(names, from, until).self_signed(&key).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn params(names: &[&str], from: (i32, u8, u8), until: (i32, u8, u8)) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    params
}

/// An authority, and a certificate issued by it: (issued, authority's certificate).
fn issued(names: &[&str], until: (i32, u8, u8)) -> (Pair, Pair) {
    let mut authority = params(&[], (2025, 1, 1), until);
    authority.distinguished_name.push(DnType::CommonName, "an authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let key_pem = authority_key.serialize_pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let leaf = params(names, (2025, 1, 1), (2027, 1, 1)).signed_by(&key, &issuer).unwrap();
    (
        Pair { certificate: leaf.pem(), key: key.serialize_pem() },
        Pair { certificate: authority_certificate.pem(), key: key_pem },
    )
}

/// A plain listener and a route, to which tests add what they are about.
const PLAIN: &str = "\
[[listener]]
address = \"127.0.0.1:80\"
service = \"http\"
[[route]]
upstream = \"http://127.0.0.1:8080\"
";

/// What the file means, or the report as text.
fn accept(text: &str) -> Loaded {
    Memory::with_certificate().parse(text).unwrap_or_else(|report| panic!("{report}"))
}

/// The report on a file that must be refused.
fn refuse(text: &str) -> Report {
    match Memory::with_certificate().parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(report) => report,
    }
}
