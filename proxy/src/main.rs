//! The command line.

use std::io::{IsTerminal as _, Stderr};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use tlsplice::config::{Config, Loaded};
use tlsplice::doctor::{self, Verdict};
use tlsplice::ktls::probe::Support;
use tlsplice::top::{self, Mode, Sort, Source};
use tlsplice::valve::{self, Sources};
use tlsplice::{confine, gateway, uring};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::fmt::writer::EitherWriter;

/// TLS gateway for Apache Guacamole and other Tomcat applications.
///
/// Browsers speak https and WebSocket to it; it speaks plain HTTP to Tomcat, tells Tomcat who the browser is, and never
/// holds a byte back.
#[derive(Parser)]
#[command(max_term_width = 100, disable_version_flag = true, arg_required_else_help = true)]
struct Arguments {
    /// Print the version, the build, and what this kernel offers.
    #[arg(long, short = 'V')]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    ///
    /// Nothing is bound before the whole configuration is good. SIGHUP reads it again and changes to it as a whole or,
    /// when anything in it is wrong, not at all. SIGTERM and Ctrl-C stop accepting, finish requests, give tunnels the
    /// time that `drain_timeout` says, and exit with 0; a second one ends at once.
    ///
    /// Exit status: 0 stopped as asked, 1 could not start, 2 wrong command line.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Judge a configuration with all files it names, and print everything that is wrong with it.
    ///
    /// The verdict is that of `run` and of a reload. Exit status: 0 good (perhaps with warnings), 1 not usable, 2 wrong
    /// command line.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Find what stands between this machine and a good gateway, what it costs, and the command that cures it.
    ///
    /// Changes nothing. With a configuration also: certificates, ports, upstreams, the gateway that runs with it as a
    /// browser sees it, and a private one between a client and an origin of its own. Exit status: 0 nothing failed
    /// (perhaps with warnings), 1 something failed, 2 wrong command line.
    Doctor {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// A path of the application that streams, such as "/events": read past the gateway that runs and through it.
        #[arg(long, value_name = "PATH", requires = "config")]
        stream: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print the RemoteIpValve that makes Tomcat believe this gateway and nobody else, or judge the one it has.
    ///
    /// Exit status: 0 printed, or nothing found; 1 something found, or no address to print; 2 wrong command line.
    TomcatValve {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Judge the valve in this file instead of printing one.
        #[arg(long, value_name = "SERVER.XML")]
        lint: Option<PathBuf>,
        /// An address that Tomcat sees and this machine does not know of, such as that of Docker's bridge.
        #[arg(long, value_name = "ADDRESS")]
        source: Vec<IpAddr>,
    },
    /// Watch the connections of a running gateway, the slowest first, and why they are slow.
    ///
    /// It asks the admin endpoint, which `[admin]` configures. Keys: q quits, arrows scroll, letters sort (they are
    /// named on the screen). Exit status: 0 seen, 1 no answer, 2 wrong command line.
    Top(Top),
}

#[derive(clap::Args)]
struct Top {
    /// The admin socket of the gateway.
    #[arg(long, value_name = "PATH", default_value = top::SOCKET)]
    socket: PathBuf,
    /// The loopback address of its admin endpoint, instead of a socket.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "socket")]
    address: Option<SocketAddr>,
    /// The configuration file of the gateway, to find the endpoint in its `[admin]`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["socket", "address"])]
    config: Option<PathBuf>,
    /// Print one table instead of drawing on the terminal.
    #[arg(long)]
    once: bool,
    /// Print one snapshot as JSON, with `why_slow` in each connection: "network", "gateway", "tomcat" or null.
    #[arg(long, requires = "once")]
    json: bool,
    /// Seconds between two snapshots, 0.1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    let bounds = 0.1..=3600.0;
    if !bounds.contains(&seconds) {
        return Err("0.1 to 3600 seconds are possible".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn version() -> String {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let ring = uring::start(uring::Setup::default(), |ring| async move { ring.to_string() })
        .unwrap_or_else(|error| format!("not usable: {error}"));
    format!(
        "tlsplice {} ({build}, {})\nkernel {}: io_uring {ring}\nTLS {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        kernel.trim(),
        Support::probe().describe().join("\nTLS "),
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Run { config }) => run(&config),
        Some(Command::Check { config }) => check(&config),
        Some(Command::Doctor { config, stream, json }) => {
            doctor(config.as_deref(), stream.as_deref(), json)
        }
        Some(Command::TomcatValve { config, lint, source }) => {
            tomcat_valve(&config, lint.as_deref(), &source)
        }
        Some(Command::Top(options)) => watch(&options),
        None if arguments.version => {
            println!("{}", version());
            ExitCode::SUCCESS
        }
        None => Arguments::command().error(ErrorKind::MissingSubcommand, "no command given").exit(),
    }
}

fn load(path: &Path) -> Option<Config> {
    let colour = std::io::stderr().is_terminal();
    match Config::load(path) {
        Ok(Loaded { config, warnings }) => {
            if !warnings.is_empty() {
                eprintln!("{}", warnings.render(colour));
            }
            Some(config)
        }
        Err(report) => {
            eprintln!("{}", report.render(colour));
            None
        }
    }
}

fn check(path: &Path) -> ExitCode {
    let Some(config) = load(path) else { return ExitCode::FAILURE };
    println!(
        "{} is good: {} listeners, {} routes, {} upstreams",
        path.display(),
        config.listeners.len(),
        config.routes.len(),
        config.upstreams.len()
    );
    if config.tls.is_some() {
        println!("TLS on this machine: {}", Support::probe().describe().join("; "));
    }
    ExitCode::SUCCESS
}

fn doctor(path: Option<&Path>, stream: Option<&str>, json: bool) -> ExitCode {
    let findings = doctor::examine(path, stream);
    match json.then(|| serde_json::to_string_pretty(&findings)) {
        Some(Ok(text)) => println!("{text}"),
        Some(Err(_)) | None => print!("{}", findings.render()),
    }
    if findings.verdict == Verdict::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tomcat_valve(path: &Path, lint: Option<&Path>, source: &[IpAddr]) -> ExitCode {
    let Some(config) = load(path) else { return ExitCode::FAILURE };
    let sources = Sources::find(&config, source);
    let Some(file) = lint else {
        let Some(text) = valve::render(&sources, &config.trusted_proxies) else {
            eprint!("no upstream sees an address of this gateway:\n{}", valve::account(&sources));
            return ExitCode::FAILURE;
        };
        print!("{text}");
        return ExitCode::SUCCESS;
    };
    let xml = match std::fs::read_to_string(file) {
        Ok(xml) => xml,
        Err(error) => {
            eprintln!("cannot read {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let findings = valve::lint(&xml, &sources, &config.trusted_proxies);
    for finding in &findings {
        println!("{}: {finding}", file.display());
    }
    if findings.is_empty() {
        println!("{} is good: Tomcat believes this gateway, and nobody else", file.display());
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

fn watch(options: &Top) -> ExitCode {
    let source = match (&options.config, options.address) {
        (Some(path), _) => {
            let Some(config) = load(path) else { return ExitCode::FAILURE };
            let Some(source) = config.admin.and_then(Source::of) else {
                eprintln!("{} has no `[admin]`: its gateway cannot be asked", path.display());
                return ExitCode::FAILURE;
            };
            source
        }
        (None, Some(address)) => Source::Address(address),
        (None, None) => Source::Socket(options.socket.clone()),
    };
    let mode = match (options.once, options.json) {
        (false, _) => Mode::Live(options.interval),
        (true, false) => Mode::Table,
        (true, true) => Mode::Json,
    };
    match top::run(&source, mode, options.sort, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Diagnostics of a gateway that serves take the same way as the access log: a terminal that is held up must not hold up
/// a worker. Before that they are written at once, since the thread on that way is started with no rights to lose.
static DIAGNOSTICS: OnceLock<NonBlocking> = OnceLock::new();

fn diagnostics() -> EitherWriter<NonBlocking, Stderr> {
    match DIAGNOSTICS.get() {
        Some(sink) => EitherWriter::A(sink.clone()),
        None => EitherWriter::B(std::io::stderr()),
    }
}

fn run(path: &Path) -> ExitCode {
    // Before a key is read.
    if let Err(error) = confine::hide_memory() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let Some(config) = load(path) else { return ExitCode::FAILURE };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TLSPLICE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(diagnostics)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_target(false)
        .init();
    let mut guard = None;
    let confined = || {
        let (sink, flusher) = tracing_appender::non_blocking(std::io::stderr());
        // It is set once: this is called once.
        drop(DIAGNOSTICS.set(sink));
        guard = Some(flusher);
    };
    match gateway::run(config, path, confined, |report| eprint!("{report}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
