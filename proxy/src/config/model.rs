//! The values a worker reads. They are made by [`super::parse`] alone, so the invariants written at
//! the fields hold everywhere else.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::CidrSet;

/// The whole configuration. Immutable; a reload builds another one.
#[derive(Debug)]
pub struct Config {
    /// At least one; addresses are distinct.
    pub listeners: Vec<Listener>,
    /// Present when any listener speaks TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// What the loaded certificates say of themselves, the default one first; for reports and
    /// metrics.
    pub certificates: Vec<CertificateSummary>,
    /// Routes, most specific first (exact host, wildcard, any host; then the longest path). At
    /// least one. [`Config::route`] is the scan in this order.
    pub routes: Vec<Route>,
    /// Referenced by index from [`Route::upstream`].
    pub upstreams: Vec<Upstream>,
    /// Peers whose X-Forwarded-For is kept and appended to.
    pub trusted_proxies: CidrSet,
    /// Bounds that an administrator may move.
    pub limits: Limits,
    /// None: no access log is written.
    pub access_log: Option<AccessLog>,
    /// What is measured.
    pub telemetry: Telemetry,
    /// None: administrators cannot ask.
    pub admin: Option<Admin>,
    /// As whom it serves.
    pub process: Process,
    /// Number of worker threads, 1..=1024.
    pub workers: usize,
    /// How long tunnels and requests may go on after SIGTERM, up to a day.
    pub drain_timeout: Duration,
}

/// Where administrators ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// A unix socket that only its owner may connect to, at most 107 bytes.
    pub socket: Option<PathBuf>,
    /// A loopback address.
    pub address: Option<SocketAddr>,
}

/// As whom the gateway serves, and within which bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// None: whoever it was started as.
    pub account: Option<Account>,
    /// What becomes of a system call that is not on the list.
    pub filter: CallFilter,
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// The group that the file names, if any.
    pub group_name: Option<String>,
    /// Its number.
    pub user: u32,
    /// The number of its group: its own, or another one that the file names.
    pub group: u32,
    /// The numbers of all groups it is in, `group` included.
    pub groups: Vec<u32>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.user, self.group)
    }
}

/// What becomes of a system call that is not on the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallFilter {
    /// The kernel ends the process.
    #[default]
    Kill,
    /// The kernel's log tells of it.
    Log,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// Whether the kernel measures connections.
    pub flush_latency: FlushLatency,
    /// Connections measured at once; None: as many as are served.
    pub connections: Option<usize>,
}

/// Whether the kernel measures connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushLatency {
    /// Where it can.
    #[default]
    Auto,
    /// No.
    Off,
}

/// What an administrator wants to know of a certificate in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// File that holds the chain.
    pub file: PathBuf,
    /// File that holds its key.
    pub key: PathBuf,
    /// Lower-case names it is chosen for; a wildcard is written `*.example.org`.
    pub names: Vec<String>,
    /// First moment of its validity, in seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// Last moment of its validity, in seconds since 1970-01-01 UTC.
    pub not_after: i64,
}

/// One bound address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where to bind.
    pub address: SocketAddr,
    /// What is spoken there.
    pub service: Service,
    /// Whether the kernel takes TLS over; [`Offload::Never`] where there is none.
    pub offload: Offload,
    /// Whether bulk data may move inside the kernel.
    pub splice: Splice,
}

/// Whether payload may be moved by `splice(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splice {
    /// Bulk data is, where no record layer of this process is in its way.
    Auto,
    /// Everything is copied.
    Never,
}

/// Who runs the record layer of TLS connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The kernel where it can.
    Auto,
    /// The kernel; that it cannot is worth a warning.
    Always,
    /// This process.
    Never,
}

/// What a listener does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// TLS, then routes.
    Https,
    /// Plain HTTP, then routes.
    Http,
    /// Plain HTTP; every request is answered by a redirect to https on `port`.
    RedirectToHttps {
        /// Port in the Location; 443 is left out there.
        port: u16,
    },
}

/// Host and path prefix to an upstream.
#[derive(Debug)]
pub struct Route {
    /// Lower-case host without port; None matches any host.
    pub host: Option<Host>,
    /// Public prefix. Begins and ends with `/`, whichever way the file wrote it; matches whole
    /// segments (`/guacamole/` also matches `/guacamole`).
    pub path: String,
    /// Prefix at the upstream that replaces `path`; equal to `path` when there is no mapping.
    /// Begins and ends with `/`, so replacing one by the other never joins or splits a segment.
    pub upstream_path: String,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
    /// When not empty, only these addresses are served; others get 403.
    pub allow: CidrSet,
    /// These addresses get 403, whatever `allow` says.
    pub deny: CidrSet,
    /// Edits of the request head, applied after our own identity fields are known and unable to
    /// touch them.
    pub request_headers: HeaderEdits,
    /// Edits of the response head.
    pub response_headers: HeaderEdits,
    /// Value of Strict-Transport-Security on TLS listeners.
    pub hsts: Option<String>,
    /// Largest request body in bytes; None is no bound.
    pub body_bytes_max: Option<u64>,
    /// Deadline for the answer to an upgrade; shorter than `upstream.response_timeout` for
    /// Guacamole.
    pub upgrade_timeout: Duration,
    /// A tunnel without a byte in either direction for this long is closed.
    pub tunnel_idle_timeout: Duration,
    /// Origins that may open a WebSocket, as a browser writes them (lower case, no default port);
    /// empty: any.
    pub allowed_origins: Vec<String>,
    /// What the application behind it needs.
    pub app: App,
    /// `host/path` in canonical form, `*` for any host; for logs and metrics. Unique.
    pub name: String,
}

/// How a route or a certificate names hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// This host.
    Exact(String),
    /// `*.example.org`: any one label before `.example.org` (stored with its leading dot).
    Wildcard(String),
}

/// Application behind a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// Nothing special.
    Generic,
    /// Apache Guacamole: tokens are redacted in logs, tunnel requests are folded there.
    Guacamole,
}

/// Ordered edits of a head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Lower-case names to remove.
    pub remove: Vec<String>,
    /// Name and value to set: all present fields of that name are removed first.
    pub set: Vec<(String, String)>,
}

/// A group of equivalent endpoints.
#[derive(Debug)]
pub struct Upstream {
    /// Name for logs and metrics; for an upstream written as a URL in a route, that URL without its
    /// path.
    pub name: String,
    /// At least one; distinct.
    pub endpoints: Vec<EndpointAddr>,
    /// From the start of connecting to a connected socket.
    pub connect_timeout: Duration,
    /// From the last byte of the request to the first byte of the response.
    pub response_timeout: Duration,
    /// Between two reads of a response body.
    pub idle_timeout: Duration,
    /// How long an idle connection is kept. Below Tomcat's 20 s.
    pub keep_alive_timeout: Duration,
    /// Idle connections kept per worker and endpoint.
    pub keep_alive_max: usize,
    /// Failures in a row that eject an endpoint (when there is more than one).
    pub eject_after: u32,
    /// How long it stays ejected before one request probes it.
    pub eject_time: Duration,
    /// How often names are resolved again.
    pub resolve_interval: Duration,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointAddr {
    /// `http://192.0.2.1:8080`.
    Socket(SocketAddr),
    /// `http://tomcat.internal:8080`, resolved at start and again at intervals.
    Name {
        /// Host name.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `unix:/run/tomcat.sock`.
    Unix(PathBuf),
}

/// Bounds that an administrator may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request or response head, 1 KiB..=64 KiB.
    pub head_bytes: usize,
    /// Fields of a head, 1..=256.
    pub head_fields: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections per client address (IPv6: per /64).
    pub connections_per_address: usize,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request head to its end.
    pub head_timeout: Duration,
    /// Between two requests.
    pub keep_alive_timeout: Duration,
    /// A request body below this many bytes per second (after a grace of 10 s) is ended with 408; 0
    /// turns the rule off.
    pub body_rate_min: u64,
    /// A client that takes no byte of a response for this long is closed.
    pub write_timeout: Duration,
}

/// Where and how requests are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// File or standard output.
    pub target: LogTarget,
    /// Line format.
    pub format: LogFormat,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// A file, appended to and opened again on SIGHUP.
    File(PathBuf),
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Combined log format with our figures behind it.
    Combined,
}
