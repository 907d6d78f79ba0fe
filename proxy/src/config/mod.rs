//! A file becomes values that cannot be wrong.
//!
//! What enters is one TOML file and the certificates it names; what leaves is a `Loaded`
//! configuration, or a `Report` with everything that is wrong in it. Everything a worker reads at
//! run time is decided here once: routes are sorted, names are lower-cased, certificates are
//! matched with their keys. Nothing is bound, resolved or connected here, and no clock is read
//! below `Config::load`.
//!
//! # The file
//!
//! ```toml
//! # workers, drain_timeout, trusted_proxies
//! [[listener]]             # address, service, redirect_port
//! address = ["0.0.0.0:443", "[::]:443"]
//!
//! [tls]                    # certificate, key, unknown_name
//! certificate = "/etc/tlsplice/fullchain.pem"
//! key = "/etc/tlsplice/key.pem"
//!
//! [[route]]                # host, path, upstream, upstream_path, app, and the fields of `Route`
//! upstream = "http://127.0.0.1:8080/guacamole/"
//! app = "guacamole"
//!
//! # [[tls.site]]: certificate, key, names
//! # [[upstream]]: name, endpoints, and the fields of `Upstream`
//! # [limits]: the fields of `Limits`
//! # [access_log]: target, format
//! # [telemetry]: flush_latency, connections
//! # [admin]: socket, address
//! # [process]: user, group, filter
//! ```
//!
//! Unknown keys are refused, values have bounds, and the order of tables never matters. Durations
//! are text with a unit (`ms`, `s`, `m`, `h`), sizes are numbers of bytes or text with a binary
//! unit (`KiB`, `MiB`, `GiB`), and a list of one may be written without its brackets. The README
//! describes every key with its default and its bounds, under "Configuration"; a test keeps it
//! complete.

mod certificate;
mod model;
mod pem;
mod report;
mod routing;
mod scalar;
mod sections;
mod server;
mod source;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use toml::de::DeTable;

pub use model::{
    AccessLog, Account, Admin, App, CallFilter, CertificateSummary, Config, EndpointAddr,
    FlushLatency, HeaderEdits, Host, Limits, Listener, LogFormat, LogTarget, Offload, Process,
    Route, Service, Splice, Telemetry, Upstream,
};
pub use report::{Problem, Report, Severity};
pub use source::{AccountError, Disk, FILE_BYTES_MAX, FileContents, FileSource, PERMISSION_DENIED};

use report::Fault;
use table::Table;

/// Most worker threads.
pub const WORKERS_MAX: usize = 1024;

/// A configuration that is good, and what should be looked at nevertheless.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Warnings only; often empty.
    pub warnings: Report,
}

/// What a file means depends on these and on nothing else.
pub struct Surroundings<'a> {
    /// Where certificates and keys are read from.
    pub files: &'a mut dyn FileSource,
    /// Directory that relative paths in the file start from.
    pub directory: &'a Path,
    /// Now, in seconds since 1970-01-01 UTC.
    pub now: i64,
    /// Cores of this machine: the number of workers when the file gives none.
    pub cores: usize,
}

impl Config {
    /// Reads the file at `path` and all it names.
    ///
    /// # Errors
    /// The report of everything wrong, when anything is.
    pub fn load(path: &Path) -> Result<Loaded, Report> {
        Self::load_from(&mut Disk::new(), path)
    }

    /// The same for a gateway that serves with this configuration.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_next(&self, path: &Path) -> Result<Loaded, Report> {
        Self::load_from(&mut Disk::settled(&self.process), path)
    }

    fn load_from(files: &mut Disk, path: &Path) -> Result<Loaded, Report> {
        let contents = files.read(path).map_err(|error| {
            let message = format!("cannot read {}: {}", path.display(), source::explain(&error));
            Report::of_file(path, message, unreadable_hint(&error))
        })?;
        let text = std::str::from_utf8(&contents.bytes).map_err(|error| {
            let at = error.valid_up_to();
            let message = format!("{} is not UTF-8 text (at byte {at})", path.display());
            Report::of_file(path, message, None)
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut surroundings = Surroundings {
            files,
            directory: path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
            now: i64::try_from(now).unwrap_or(i64::MAX),
            cores: cores(),
        };
        parse(text, path, &mut surroundings)
    }
}

/// Turns the text of a file into a configuration; `file` is its name in reports.
///
/// # Errors
/// The report of everything wrong, when anything is. A file that is no TOML is only judged as such.
pub fn parse(
    text: &str,
    file: &Path,
    surroundings: &mut Surroundings<'_>,
) -> Result<Loaded, Report> {
    let mut report = Report::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let fault = Fault::new(report::mask_pem(error.message()), "");
        report.push(Severity::Error, "", error.span().unwrap_or(0..0), fault);
    }
    if report.has_errors() {
        report.sort();
        return Err(report);
    }

    let mut root = Table::root(&document);
    let workers = sections::workers(&mut root, &mut report, surroundings);
    let drain_timeout = sections::drain_timeout(&mut root, &mut report);
    let trusted_proxies = sections::trusted_proxies(&mut root, &mut report);
    let listeners = sections::listeners(&mut root, &mut report);
    let tls = sections::tls(&mut root, &mut report, surroundings, &listeners);
    let mut upstreams = sections::upstreams(&mut root, &mut report);
    let routes = sections::routes(&mut root, &mut report, &mut upstreams);
    let upstreams = upstreams.finish(&mut report);
    let limits = sections::limits(&mut root, &mut report);
    let access_log = sections::access_log(&mut root, &mut report, surroundings);
    let telemetry = sections::telemetry(&mut root, &mut report);
    let admin = sections::admin(&mut root, &mut report, surroundings);
    let process = sections::process(&mut root, &mut report, surroundings);
    root.finish(&mut report, &[]);

    report.sort();
    if report.has_errors() {
        return Err(report);
    }
    let config = Config {
        listeners,
        tls: tls.server,
        certificates: tls.certificates,
        routes,
        upstreams,
        trusted_proxies,
        limits,
        access_log,
        telemetry,
        admin,
        process,
        workers,
        drain_timeout,
    };
    Ok(Loaded { config, warnings: report })
}

/// Counted once: a reload must not find another number because the files that tell of quotas are closed by then.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn unreadable_hint(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("name the file with --config FILE".to_owned()),
        _ => None,
    }
}
