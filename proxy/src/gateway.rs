//! The control thread: starts workers, listens to signals, changes configurations, ends in good order.

mod crew;
mod service;

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tokio::sync::watch;

use crate::accept::Admission;
use crate::admin::{self, AdminError, View};
use crate::config::{
    Config, FlushLatency, Listener, Offload, PERMISSION_DENIED, Problem, Service, Telemetry,
};
use crate::confine::{self, ConfineError, Confinement};
use crate::generation::Shared;
use crate::ktls::probe::Support;
use crate::sys;
use crate::telemetry::{Counter, Meter, WorkerCounters};
use crate::uring::Delivery;
use crate::worker::{Orders, Phase, Started, WorkerError};
use crew::{Crew, Equipment};
use service::Manager;

/// How often the control thread looks after what needs no haste.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Why the gateway did not start or ended badly.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// A worker could not start.
    #[error("{0}")]
    Worker(#[from] WorkerError),
    /// A thread or the signal handler could not be had.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The access log cannot be opened.
    #[error("{0}; the access log is opened as the user that the gateway serves as")]
    Log(#[source] io::Error),
    /// Privileges cannot be given up.
    #[error("{0}")]
    Confine(#[from] ConfineError),
    /// The admin endpoint cannot be had.
    #[error("{0}")]
    Admin(#[from] AdminError),
    /// A worker ended without being told to.
    #[error("a worker ended unexpectedly")]
    WorkerLost,
}

enum Event {
    Signal(i32),
    Ended,
}

/// Serves `config`, which was read from `path`, until a signal ends it. `confined` is called when the process has given up
/// what it has to; threads that it starts have no more rights than this one. `report` gets the start-up report.
///
/// # Errors
/// When it cannot start, or a worker is lost.
pub fn run(
    config: Config,
    path: &Path,
    confined: impl FnOnce(),
    report: impl FnOnce(&str),
) -> Result<(), GatewayError> {
    confine::raise_locked_memory();
    let descriptors_max = sys::raise_descriptors_max()?;
    let admission = Admission::new(&config.limits, descriptors_max);
    let (sender, events) = mpsc::channel();
    // Before anything is served: a signal that comes early must not kill what has begun.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let began = Instant::now();
    let account = config.process.account.as_ref();
    let endpoint = config.admin.as_ref().map(|admin| admin::Endpoint::bind(admin, account));
    let endpoint = endpoint.transpose()?;
    let kernel_tls = Arc::new(support(&config));
    // Sockets belong to the control group in which they are made.
    let meter = meter(&config, admission.connections_max());
    let equipment = Equipment {
        admission: Arc::clone(&admission),
        kernel_tls: Arc::clone(&kernel_tls),
        meter: Arc::clone(&meter),
        counters: (0..config.workers).map(WorkerCounters::new).collect(),
    };
    let crew = Crew::muster(&config, &equipment, &sender)?;
    let confinement = Confinement::new(&config, path, meter.places(), || meter.answers())?;
    let confinement = Arc::new(confinement);
    crew.enter(&confinement)?;
    confinement.enter()?;
    confinement.seal()?;
    confined();

    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    warn_of_what_a_reload_cannot_read(&config, path);
    let shared = Shared::new(config).map_err(GatewayError::Log)?;
    let orders = watch::Sender::new(Orders { shared: Arc::clone(&shared), phase: Phase::Serving });
    let started = crew.started.clone();
    let gateway = Gateway {
        path: path.to_owned(),
        workers: crew.serve(&orders)?,
        orders,
        admission,
        counters: equipment.counters,
        dropped_lines: Arc::default(),
        confinement,
        manager: Manager::new(),
        resolved: Instant::now(),
    };
    let places = endpoint.as_ref().map(admin::Endpoint::describe).unwrap_or_default();
    let view = || View {
        workers: gateway.counters.clone(),
        meter: Arc::clone(&meter),
        orders: gateway.orders.subscribe(),
        began,
        dropped_lines: Arc::clone(&gateway.dropped_lines),
    };
    // Its file is removed at the end.
    let _socket = endpoint.map(|endpoint| endpoint.serve(view())).transpose()?;
    report(&describe(
        &shared.config,
        &started,
        gateway.admission.connections_max(),
        &kernel_tls,
        &meter,
        &places,
        &gateway.confinement,
    ));
    gateway.manager.ready();
    gateway.control(&events)
}

struct Gateway {
    path: PathBuf,
    orders: watch::Sender<Orders>,
    admission: Arc<Admission>,
    counters: Vec<Arc<WorkerCounters>>,
    dropped_lines: Arc<Counter>,
    workers: Vec<crew::Handle>,
    confinement: Arc<Confinement>,
    manager: Manager,
    resolved: Instant,
}

impl Gateway {
    /// Follows signals until all workers have ended.
    fn control(mut self, events: &mpsc::Receiver<Event>) -> Result<(), GatewayError> {
        let mut running = self.workers.len();
        let mut abort_at = None;
        while running > 0 {
            self.manager.tend(&self.counters);
            match events.recv_timeout(self.manager.patience(HOUSEKEEPING)) {
                Ok(Event::Signal(SIGHUP)) => {
                    self.manager.reloading();
                    self.reload();
                    self.manager.ready();
                }
                Ok(Event::Signal(_)) if abort_at.is_none() => {
                    self.manager.stopping();
                    let timeout = self.orders.borrow().shared.config.drain_timeout;
                    tracing::info!(
                        "draining: open tunnels and requests have {} s; a second signal ends at once",
                        timeout.as_secs()
                    );
                    abort_at = Some(Instant::now() + timeout);
                    self.orders.send_modify(|orders| orders.phase = Phase::Draining);
                }
                Ok(Event::Signal(_)) => abort_at = Some(Instant::now()),
                Ok(Event::Ended) if abort_at.is_some() => running -= 1,
                Ok(Event::Ended) => return Err(GatewayError::WorkerLost),
                Err(_) => self.keep_house(),
            }
            if abort_at.is_some_and(|at| at <= Instant::now())
                && self.orders.borrow().phase != Phase::Aborting
            {
                tracing::info!("closing what is still open");
                self.orders.send_modify(|orders| orders.phase = Phase::Aborting);
            }
        }
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| GatewayError::WorkerLost)??;
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// The whole new configuration, or nothing of it.
    fn reload(&mut self) {
        let old = Arc::clone(&self.orders.borrow().shared);
        let loaded = match old.config.load_next(&self.path) {
            Ok(loaded) => loaded,
            Err(report) => {
                tracing::error!(
                    "reload refused, the configuration in use stays:\n{}",
                    report.render(false)
                );
                let denied = |problem: &Problem| problem.message.contains(PERMISSION_DENIED);
                if report.problems().iter().any(denied) {
                    tracing::error!(
                        "the gateway runs without the rights it was started with: it reads what its user may, in \
                         directories that its configuration named at the start; other directories need a restart"
                    );
                }
                return;
            }
        };
        if !loaded.warnings.is_empty() {
            tracing::warn!("{}", loaded.warnings.render(false));
        }
        if loaded.config.listeners != old.config.listeners
            || loaded.config.workers != old.config.workers
            || loaded.config.telemetry != old.config.telemetry
            || loaded.config.admin != old.config.admin
            || loaded.config.process != old.config.process
        {
            tracing::error!(
                "reload refused, the configuration in use stays: listeners, the number of \
                 workers, `telemetry`, `admin` and `process` change only by a restart"
            );
            return;
        }
        if let Some(place) = self.confinement.closed_to(&loaded.config, &self.path) {
            tracing::error!(
                "reload refused, the configuration in use stays: it needs {}, which was closed to the gateway at its \
                 start; restart it",
                place.directory.display()
            );
            return;
        }
        match Shared::new(loaded.config) {
            Ok(shared) => {
                self.admission.set_limits(&shared.config.limits);
                self.orders.send_modify(|orders| orders.shared = shared);
                self.resolved = Instant::now();
                tracing::info!("reloaded {}", self.path.display());
            }
            Err(error) => {
                tracing::error!("reload refused, the configuration in use stays: {error}");
            }
        }
    }

    fn keep_house(&mut self) {
        let shared = Arc::clone(&self.orders.borrow().shared);
        let interval = shared.config.upstreams.iter().map(|upstream| upstream.resolve_interval);
        if interval.min().is_some_and(|interval| self.resolved.elapsed() >= interval) {
            self.resolved = Instant::now();
            // A resolver may block for seconds; signals must not wait for it.
            let name = "resolver".to_owned();
            let resolving = Arc::clone(&shared);
            drop(thread::Builder::new().name(name).spawn(move || resolving.resolve()));
        }
        if let Some((failed, error)) = shared.log.as_ref().and_then(|log| log.take_failed()) {
            self.dropped_lines.add(failed);
            tracing::warn!("the access log cannot be written: {error}; {failed} lines are lost");
        }
        if let Some(dropped) = shared.log.as_ref().map(|log| log.take_dropped()).filter(|&n| n > 0)
        {
            self.dropped_lines.add(dropped);
            tracing::warn!("the access log is too slow: {dropped} lines were dropped");
        }
        let shed = self.admission.take_shed();
        if shed > 0 {
            tracing::warn!(
                "{shed} connections were not admitted: a limit of connections is reached"
            );
        }
    }
}

/// What the kernel can do for TLS, if any listener wants to know.
fn support(config: &Config) -> Support {
    let wants = |listener: &&Listener| {
        listener.service == Service::Https && listener.offload != Offload::Never
    };
    let Some(_) = config.listeners.iter().find(wants) else {
        return Support::none("no listener asks for more (offload)");
    };
    let support = Support::probe();
    let is_required = config.listeners.iter().any(|listener| listener.offload == Offload::Always);
    if is_required && !support.is_any() {
        for line in support.describe() {
            tracing::warn!("offload = \"always\" cannot be had; TLS {line}");
        }
    }
    support
}

/// What measures connections, if the configuration wants it.
fn meter(config: &Config, connections_max: usize) -> Arc<Meter> {
    let Telemetry { flush_latency, connections } = config.telemetry;
    match flush_latency {
        FlushLatency::Auto => Meter::start(connections.unwrap_or(connections_max)),
        FlushLatency::Off => Meter::disabled("it is switched off (telemetry.flush_latency)"),
    }
}

/// Keys are read as whoever starts the gateway; a reload reads them as whom it serves.
fn warn_of_what_a_reload_cannot_read(config: &Config, path: &Path) {
    let identities = config.certificates.iter().flat_map(|one| [&*one.file, &*one.key]);
    for file in std::iter::once(path).chain(identities) {
        if let Err(error) = File::open(file) {
            tracing::warn!(
                "{} cannot be read any more ({error}): reloads will be refused until the user that the gateway runs \
                 as may read it",
                file.display()
            );
        }
    }
}

/// The start-up report.
fn describe(
    config: &Config,
    started: &Started,
    connections_max: usize,
    kernel_tls: &Support,
    meter: &Meter,
    admin: &[String],
    confinement: &Confinement,
) -> String {
    let mut text = format!("tlsplice {} is serving\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    for (listener, address) in config.listeners.iter().zip(&started.addresses) {
        let (scheme, note) = match listener.service {
            Service::Https => ("https", ""),
            Service::Http => ("http", " (without TLS)"),
            Service::RedirectToHttps { .. } => ("http", " (redirects to https)"),
        };
        line("listening", format!("{scheme}://{address}{note}"));
    }
    for route in &config.routes {
        line("route", format!("{} -> {}", route.name, config.upstreams[route.upstream].name));
    }
    line("workers", format!("{}, each with its own ring ({})", config.workers, started.ring));
    line("connections", format!("at most {connections_max}"));
    for place in admin {
        line("admin", place.clone());
    }
    line("confined", confinement.describe());
    line("eBPF", meter.describe());
    for text in kernel_tls.describe() {
        line("TLS", text);
    }
    if started.ring.delivery < Delivery::Deferred {
        line("missing", "io_uring DEFER_TASKRUN (Linux 6.1): more CPU per message".into());
    } else if started.ring.delivery < Delivery::Standing {
        line(
            "missing",
            "io_uring RECV_MULTISHOT as of Linux 6.15: some 5 % more CPU per message".into(),
        );
    }
    text
}
