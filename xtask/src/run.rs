//! `cargo xtask run`: everything that a running gateway needs, made on the spot.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_fixtures::{Error, Result, packages};

use crate::{profile, tools};

/// Time that the gateway's report gets once it listens.
const REPORT_TIME: Duration = Duration::from_millis(250);

/// How often the gateway is looked after.
const POLL: Duration = Duration::from_millis(50);

/// Time in which a gateway that works is listening.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What is served.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Serve this configuration file as it is; nothing else is started.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["upstream", "tomcat", "listen"])]
    config: Option<PathBuf>,

    /// Serve this application, for example http://127.0.0.1:8080/guacamole/.
    #[arg(long, value_name = "URL", conflicts_with = "tomcat")]
    upstream: Option<String>,

    /// Start a private Tomcat 10 with its examples and a RemoteIpValve, and serve that.
    #[arg(long)]
    tomcat: bool,

    /// Listen there for https. Use 0.0.0.0:8443 to be reached from other machines.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
}

/// What stands behind the gateway; ends when dropped.
enum Upstream {
    Demo(Demo),
    Tomcat(Box<Tomcat>),
    Url(String),
}

impl Upstream {
    fn start(options: &Options, directory: &Path) -> Result<Self> {
        if let Some(url) = &options.upstream {
            return Ok(Self::Url(url.clone()));
        }
        if !options.tomcat {
            return Demo::start().map(Self::Demo);
        }
        tools::ensure_packages(packages::TOMCAT)?;
        eprintln!("starting Tomcat (takes a few seconds)");
        Tomcat::start(&directory.join("tomcat")).map(|tomcat| Self::Tomcat(Box::new(tomcat)))
    }

    fn url(&self) -> String {
        match self {
            Self::Demo(demo) => format!("http://{}/", demo.address()),
            Self::Tomcat(tomcat) => format!("http://{}/", tomcat.address()),
            Self::Url(url) => url.clone(),
        }
    }

    /// What to open first.
    fn page(&self) -> &'static str {
        match self {
            Self::Tomcat(_) => "/examples/websocket/echo.xhtml",
            Self::Demo(_) | Self::Url(_) => "/",
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Demo(demo) => format!("an embedded demo on {}", demo.address()),
            Self::Tomcat(tomcat) => format!("a private Tomcat on {}", tomcat.address()),
            Self::Url(url) => url.clone(),
        }
    }
}

/// Builds, prepares, serves, and ends when the gateway does.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // Before anything is started, so that an early Ctrl-C leaves nothing behind.
    let signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Error::io("cannot listen to signals"))?;
    profile::build_release(&[])?;
    let binary = profile::gateway();
    let Some(config) = &options.config else { return run_prepared(options, &binary, signals) };
    let gateway = start_gateway(&binary, config)?;
    follow(gateway, signals, |_| Ok(true))
}

fn run_prepared(options: &Options, binary: &Path, signals: Signals) -> Result<ExitCode> {
    let directory = tools::target().join("run");
    let upstream = Upstream::start(options, &directory)?;
    let listen = options.listen;
    let address = listen.ip().to_string();
    let names: &[&str] = if listen.ip().is_unspecified() { &[] } else { &[&address] };
    let certificate = Certificate::ensure(&directory.join("certificate"), names)?;
    let config = directory.join("tlsplice.toml");
    fs::write(&config, configuration(listen, &certificate, &upstream.url()))
        .map_err(Error::io(format!("cannot write {}", config.display())))?;
    let gateway = start_gateway(binary, &config)?;
    let welcome = welcome(listen, &certificate, &config, &upstream);
    let probe = reachable(listen);
    let begun = Instant::now();
    follow(gateway, signals, move |_| {
        if TcpStream::connect_timeout(&probe, POLL).is_ok() {
            // The gateway's own report, which comes as soon as it listens, goes first.
            thread::sleep(REPORT_TIME);
            eprint!("{welcome}");
            return Ok(true);
        }
        if begun.elapsed() > START_TIMEOUT {
            let what = format!("listening on {listen}");
            return Err(Error::Timeout { what, seconds: START_TIMEOUT.as_secs() });
        }
        Ok(false)
    })
}

fn start_gateway(binary: &Path, config: &Path) -> Result<Process> {
    Process::spawn("the gateway", Command::new(binary).arg("run").arg("--config").arg(config))
}

/// An address under which a listener on `listen` is reached from here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        ip if !ip.is_unspecified() => listen,
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port())),
        IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listen.port())),
    }
}

/// TOML strings and JSON strings are written alike.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn configuration(listen: SocketAddr, certificate: &Certificate, upstream: &str) -> String {
    format!(
        "# Written by `cargo xtask run`; copy it to begin a configuration of your own.\n\
         [[listener]]\naddress = {}\n\n\
         [tls]\ncertificate = {}\nkey = {}\n\n\
         [[route]]\nupstream = {}\n\n\
         [access_log]\ntarget = \"stdout\"\nformat = \"combined\"\n",
        quote(&listen.to_string()),
        quote(&certificate.chain.to_string_lossy()),
        quote(&certificate.key.to_string_lossy()),
        quote(upstream),
    )
}

/// What the developer does next.
fn welcome(
    listen: SocketAddr,
    certificate: &Certificate,
    config: &Path,
    upstream: &Upstream,
) -> String {
    let host = match listen.ip() {
        ip if ip.is_unspecified() || ip.is_loopback() => "localhost".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    line("upstream", &upstream.describe());
    line("config", &config.display().to_string());
    line(
        "trust",
        &format!("{} (or accept the browser's warning)", certificate.authority.display()),
    );
    line("stop", "Ctrl-C");
    line("open", &format!("https://{host}:{}{}", listen.port(), upstream.page()));
    text
}

/// Passes signals on until the gateway ends; its exit status becomes ours. `on_poll` is called until it is true.
fn follow(
    mut gateway: Process,
    mut signals: Signals,
    mut on_poll: impl FnMut(&mut Process) -> Result<bool>,
) -> Result<ExitCode> {
    let mut is_welcomed = false;
    loop {
        if let Some(status) = gateway.try_wait()? {
            return Ok(exit_code(status));
        }
        for signal in signals.pending() {
            let passed_on = if signal == SIGHUP { Signal::HUP } else { Signal::TERM };
            gateway.signal(passed_on)?;
        }
        if !is_welcomed {
            is_welcomed = on_poll(&mut gateway)?;
        }
        thread::sleep(POLL);
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_reached_through_loopback() {
        let reach = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(reach("0.0.0.0:8443"), "127.0.0.1:8443");
        assert_eq!(reach("[::]:8443"), "[::1]:8443");
        assert_eq!(reach("192.0.2.1:443"), "192.0.2.1:443");
    }
}
