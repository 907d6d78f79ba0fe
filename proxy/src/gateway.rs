//! The control thread: starts workers, listens to signals, changes configurations, ends in good order.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tokio::sync::watch;

use crate::accept::Admission;
use crate::admin::{self, AdminError, View};
use crate::config::{Config, FlushLatency, Listener, Offload, Service, Telemetry};
use crate::generation::Shared;
use crate::ktls::probe::Support;
use crate::sys;
use crate::telemetry::{Counter, Meter, WorkerCounters};
use crate::worker::{self, Orders, Phase, Started, WorkerError};

/// How often the control thread looks after what needs no haste.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Why the gateway did not start or ended badly.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// A worker could not start.
    #[error("{0}")]
    Worker(#[from] WorkerError),
    /// The access log, a thread or the signal handler could not be had.
    #[error("{0}")]
    Io(#[from] io::Error),
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

/// Serves `config`, which was read from `path`, until a signal ends it. `report` gets the start-up report.
///
/// # Errors
/// When it cannot start, or a worker is lost.
pub fn run(config: Config, path: &Path, report: impl FnOnce(&str)) -> Result<(), GatewayError> {
    let descriptors_max = sys::raise_descriptors_max()?;
    let admission = Admission::new(&config.limits, descriptors_max);
    let (sender, events) = mpsc::channel();
    // Before anything is served: a signal that comes early must not kill what has begun.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let signal_sender = sender.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if signal_sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    let shared = Shared::new(config)?;
    let began = Instant::now();
    let endpoint = shared.config.admin.as_ref().map(admin::Endpoint::bind).transpose()?;
    let orders = watch::Sender::new(Orders { shared: Arc::clone(&shared), phase: Phase::Serving });
    let kernel_tls = Arc::new(support(&shared.config));
    // Sockets belong to the control group in which they are made.
    let meter = meter(&shared.config, admission.connections_max());
    let mut gateway = Gateway {
        path: path.to_owned(),
        orders,
        admission,
        kernel_tls: Arc::clone(&kernel_tls),
        meter: Arc::clone(&meter),
        counters: (0..shared.config.workers).map(WorkerCounters::new).collect(),
        dropped_lines: Arc::default(),
        workers: Vec::new(),
        resolved: Instant::now(),
    };
    let started = gateway.start(&shared, &sender)?;
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
    ));
    gateway.control(&events)
}

struct Gateway {
    path: PathBuf,
    orders: watch::Sender<Orders>,
    admission: Arc<Admission>,
    kernel_tls: Arc<Support>,
    meter: Arc<Meter>,
    counters: Vec<Arc<WorkerCounters>>,
    dropped_lines: Arc<Counter>,
    workers: Vec<JoinHandle<Result<(), WorkerError>>>,
    resolved: Instant,
}

impl Gateway {
    /// Starts all workers. The first one takes the ports that the configuration leaves open.
    fn start(
        &mut self,
        shared: &Arc<Shared>,
        events: &mpsc::Sender<Event>,
    ) -> Result<Started, GatewayError> {
        let mut addresses: Vec<SocketAddr> =
            shared.config.listeners.iter().map(|listener| listener.address).collect();
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut first = None;
        for index in 0..shared.config.workers {
            let core = cores.get(index % cores.len().max(1)).copied();
            let started = self.start_worker(index, core, addresses, events.clone())?;
            addresses = started.addresses.clone();
            first.get_or_insert(started);
        }
        first.ok_or(GatewayError::WorkerLost)
    }

    fn start_worker(
        &mut self,
        index: usize,
        core: Option<core_affinity::CoreId>,
        addresses: Vec<SocketAddr>,
        events: mpsc::Sender<Event>,
    ) -> Result<Started, GatewayError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let orders = self.orders.subscribe();
        let admission = Arc::clone(&self.admission);
        let kernel_tls = Arc::clone(&self.kernel_tls);
        let meter = Arc::clone(&self.meter);
        let counters = Arc::clone(&self.counters[index]);
        let run = move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!("worker {index} cannot be pinned to core {}", core.id);
            }
            let started = |started| drop(sender.send(started));
            let result = worker::run(
                &addresses,
                orders,
                &admission,
                &kernel_tls,
                &meter,
                &counters,
                started,
            );
            drop(events.send(Event::Ended));
            result
        };
        let handle = thread::Builder::new().name(format!("worker-{index}")).spawn(run)?;
        match receiver.recv() {
            Ok(started) => {
                self.workers.push(handle);
                Ok(started)
            }
            Err(_) => match handle.join() {
                Ok(Err(error)) => Err(error.into()),
                Ok(Ok(())) | Err(_) => Err(GatewayError::WorkerLost),
            },
        }
    }

    /// Follows signals until all workers have ended.
    fn control(mut self, events: &mpsc::Receiver<Event>) -> Result<(), GatewayError> {
        let mut running = self.workers.len();
        let mut abort_at = None;
        while running > 0 {
            match events.recv_timeout(HOUSEKEEPING) {
                Ok(Event::Signal(SIGHUP)) => self.reload(),
                Ok(Event::Signal(_)) if abort_at.is_none() => {
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
        let loaded = match Config::load(&self.path) {
            Ok(loaded) => loaded,
            Err(report) => {
                tracing::error!(
                    "reload refused, the configuration in use stays:\n{}",
                    report.render(false)
                );
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
        {
            tracing::error!(
                "reload refused, the configuration in use stays: listeners, the number of \
                 workers, `telemetry` and `admin` change only by a restart"
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

/// The start-up report.
fn describe(
    config: &Config,
    started: &Started,
    connections_max: usize,
    kernel_tls: &Support,
    meter: &Meter,
    admin: &[String],
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
    line("eBPF", meter.describe());
    for text in kernel_tls.describe() {
        line("TLS", text);
    }
    if !started.ring.cooperative {
        line("missing", "io_uring COOP_TASKRUN (Linux 5.19): more CPU per message".into());
    }
    text
}
