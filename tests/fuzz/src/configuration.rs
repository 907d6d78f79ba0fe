use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tlsplice::config::{
    self, Account, AccountError, FileContents, FileSource, Loaded, Report, Surroundings,
};
use zeroize::Zeroizing;

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;

/// Files of `/etc/tlsplice`, in memory.
struct Memory<'a>(&'a HashMap<PathBuf, String>);

static FILES: LazyLock<HashMap<PathBuf, String>> = LazyLock::new(|| {
    let made =
        rcgen::generate_simple_self_signed(["desk.example.org".to_owned()]).expect("a certificate");
    [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())]
        .map(|(name, text)| (Path::new("/etc/tlsplice").join(name), text))
        .into()
});

impl FileSource for Memory<'_> {
    fn read(&mut self, path: &Path) -> io::Result<FileContents> {
        let text = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(FileContents { bytes: Zeroizing::new(text.clone().into_bytes()), mode: 0o600 })
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        path == Path::new("/etc/tlsplice")
    }

    fn account(&mut self, _: &str, _: Option<&str>) -> Result<Account, AccountError> {
        Err(AccountError::NoUser)
    }
}

pub(crate) fn parse(text: &str) -> Result<Loaded, Report> {
    parse_among(&FILES, text)
}

fn parse_among(files: &HashMap<PathBuf, String>, text: &str) -> Result<Loaded, Report> {
    let mut surroundings = Surroundings {
        files: &mut Memory(files),
        directory: Path::new("/etc/tlsplice"),
        now: NOW,
        cores: 4,
    };
    config::parse(text, Path::new("tlsplice.toml"), &mut surroundings)
}

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let first = parse(text);
    let (report, is_refused) = match &first {
        Ok(loaded) => (&loaded.warnings, false),
        Err(report) => (report, true),
    };
    assert_eq!(report.has_errors(), is_refused, "refused if and only if something is wrong");
    let lines = text.split('\n').count();
    for problem in report.problems() {
        assert!((1..=lines).contains(&problem.line), "{problem:?}");
        assert!(!problem.message.is_empty(), "{problem:?}");
        if let Some(span) = &problem.span {
            assert!(text.get(span.clone()).is_some(), "{problem:?}");
        }
    }
    let rendered = report.render(false);
    assert!(!rendered.contains("PRIVATE KEY"), "no key in a report");
    let again = parse(text);
    let report = match &again {
        Ok(loaded) => &loaded.warnings,
        Err(report) => report,
    };
    assert_eq!(report.render(false), rendered, "the same verdict each time");
    if let Ok(loaded) = &first {
        within_bounds(&loaded.config);
    }
}

/// What the README promises of a configuration that was taken.
fn within_bounds(config: &config::Config) {
    assert!((1..=config::WORKERS_MAX).contains(&config.workers));
    assert!(!config.listeners.is_empty() && !config.routes.is_empty());
    assert!((1024..=65_536).contains(&config.limits.head_bytes));
    assert!((1..=256).contains(&config.limits.head_fields));
    for route in &config.routes {
        assert!(route.upstream < config.upstreams.len());
        for path in [&route.path, &route.upstream_path] {
            assert!(path.starts_with('/') && path.ends_with('/'), "{path}");
            assert!(
                !path.contains("..") && !path.contains("//") && !path.contains(['%', ';', '*']),
                "{path}"
            );
        }
        let edits = [&route.request_headers, &route.response_headers];
        for (name, value) in edits.iter().flat_map(|edits| &edits.set) {
            let is_line =
                |text: &str| text.chars().all(|letter| letter >= ' ' && letter != '\u{7f}');
            assert!(
                !name.contains([':', ' ']) && is_line(name) && is_line(value.trim()),
                "{name}: {value}"
            );
        }
    }
}

/// The first byte tells whether the rest is the file of the certificate, of the key, or of both. In it `\x01` stands for
/// a good certificate and `\x02` for its key, which no fuzzer would come upon.
pub(crate) fn identity(bytes: &[u8]) {
    const CONFIGURATION: &str = "[[listener]]\naddress = \"127.0.0.1:443\"\n\
        [tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n\
        [[route]]\nupstream = \"http://127.0.0.1:8080\"\n";
    let Some((choice, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (chain, key) = (Path::new("/etc/tlsplice/cert.pem"), Path::new("/etc/tlsplice/key.pem"));
    let (good_chain, good_key) = (&FILES[chain], &FILES[key]);
    let text = text.replace('\x01', good_chain).replace('\x02', good_key);
    let mut files = FILES.clone();
    if choice % 3 != 1 {
        files.insert(chain.to_owned(), text.clone());
    }
    if choice % 3 != 0 {
        files.insert(key.to_owned(), text);
    }
    let rendered = match parse_among(&files, CONFIGURATION) {
        Ok(loaded) => {
            // Where an independent reading finds one, it is the same.
            let leaf = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes());
            if let Ok(found) = leaf(&files[chain]) {
                assert_eq!(found, leaf(good_chain).expect("a certificate"));
            }
            let secret = |pem: &str| PrivateKeyDer::from_pem_slice(pem.as_bytes());
            if let Ok(found) = secret(&files[key]) {
                assert_eq!(found, secret(good_key).expect("a key"));
            }
            loaded.warnings.render(false)
        }
        Err(report) => report.render(false),
    };
    for line in good_key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!rendered.contains(line), "no key in a report");
    }
}
