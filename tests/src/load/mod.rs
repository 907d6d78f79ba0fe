//! Many tunnels, of which few are in use, while hostile clients of every kind do their worst.
//!
//! What is asked is how long messages of the tunnels in use take, with and without the others, in turn, so that whatever
//! else the machine does meets both.

mod hostile;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::Value;
use tlsplice_bench::load::{Client, Front, Fronts, Group, Tally, Work};
use tlsplice_bench::measure;
use tlsplice_bench::origin::Origin;

use self::hostile::{Hostility, Slowness};
use crate::gateway::{Config, Gateway, LEVEL_VARIABLE, binary};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tunnels that are open and silent.
    pub idle: usize,
    /// Tunnels with messages.
    pub active: usize,
    /// Messages per second of each of them.
    pub per_second: u64,
    /// Slow clients of each kind.
    pub slow: usize,
    /// Handshakes per second that come to nothing.
    pub handshakes: u32,
    /// How often it is measured without hostile clients and with them.
    pub turns: usize,
    /// How long each time.
    pub window: Duration,
}

impl Options {
    /// What is promised for a gateway.
    pub const WHOLE: Self = Self {
        idle: 5000,
        active: 200,
        // The client waits by looking again where less than a millisecond is left.
        per_second: 1,
        slow: 100,
        handshakes: 500,
        turns: 4,
        window: Duration::from_secs(15),
    };
}

/// Payload of a message, bytes.
const MESSAGE_BYTES: usize = 128;

/// Tunnels that are opened by one client: it gives them a fixed time.
const BATCH: usize = 250;

/// Latencies of messages, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Messages.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

impl Latency {
    fn of(tally: &Tally) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a minute")]
        let milliseconds = |value: u64| value as f64 / 1e6;
        Self {
            count: tally.units,
            p50: milliseconds(tally.latency.value_at_quantile(0.5)),
            p99: milliseconds(tally.latency.value_at_quantile(0.99)),
            max: milliseconds(tally.latency.max()),
        }
    }
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Tunnels that were open and silent all the time.
    pub idle: usize,
    /// Tunnels with messages.
    pub active: usize,
    /// Proportional memory of the gateway for each idle tunnel, bytes.
    pub bytes_per_idle_tunnel: f64,
    /// Without hostile clients.
    pub calm: Latency,
    /// With them.
    pub hostile: Latency,
    /// Handshakes of the flood that the gateway answered.
    pub handshakes: u64,
    /// In how much time, seconds.
    pub hostile_s: f64,
    /// Slow clients that the gateway has ended and that saw it.
    pub ended: BTreeMap<String, u64>,
    /// Connections that were not taken.
    pub refused: u64,
    /// Why requests did not end well, as the access log tells it.
    pub reasons: BTreeMap<String, u64>,
    /// Share of a core that the gateway took, percent: without hostile clients, and with them.
    pub gateway_percent: [f64; 2],
    /// Descriptors of the gateway with all tunnels, before the first hostile client and after the last.
    pub descriptors: [usize; 2],
    /// Whether gateway, origin and what measures them took precedence over all other work of the machine.
    pub is_urgent: bool,
}

impl Report {
    /// How many times as long messages take.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.hostile.p99 / self.calm.p99
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} idle tunnels: {:.1} KiB each",
            self.idle,
            self.bytes_per_idle_tunnel / 1024.0
        )?;
        writeln!(
            f,
            "{} active tunnels, milliseconds    messages      p50      p99      max   gateway",
            self.active
        )?;
        let rows = [("without hostile clients", self.calm), ("with them", self.hostile)];
        for ((name, latency), percent) in rows.into_iter().zip(self.gateway_percent) {
            let Latency { count, p50, p99, max } = latency;
            writeln!(
                f,
                "  {name:<30} {count:>10} {p50:>8.2} {p99:>8.2} {max:>8.2} {percent:>7.1} %"
            )?;
        }
        #[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
        let rate = self.handshakes as f64 / self.hostile_s;
        writeln!(f, "  p99: {:.2} times as long", self.ratio())?;
        writeln!(f, "handshakes: {} answered, {rate:.0} per second", self.handshakes)?;
        writeln!(
            f,
            "slow clients that were ended and saw it: {:?}; refused: {}",
            self.ended, self.refused
        )?;
        for (reason, count) in &self.reasons {
            writeln!(f, "  {count:>7}  {reason}")?;
        }
        if !self.is_urgent {
            writeln!(
                f,
                "no precedence over other work of this machine: it is seen in the figures"
            )?;
        }
        write!(f, "descriptors: {} before, {} after", self.descriptors[0], self.descriptors[1])
    }
}

/// What a run holds.
struct Load {
    gateway: Gateway,
    hostility: Hostility,
    active: Client,
    idle: Vec<Client>,
    is_urgent: bool,
}

/// Runs it and tells how far it is. On a machine of two processors and more the gateway has the first one for itself.
///
/// # Errors
/// When a tunnel ends that should not.
///
/// # Panics
/// When what it needs cannot be had.
pub fn run(options: Options, mut progress: impl FnMut(&str)) -> io::Result<Report> {
    raise_descriptors();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores > 1 {
        // Threads that are begun from here on inherit it.
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    }
    let origin = Origin::start((cores > 1).then_some(1)).map_err(io::Error::other)?;
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("access.log");
    let config = Config::to(origin.address).with_workers(1).with_log(&log).with_limits(
        "connections_per_address = 20000\nhead_timeout = \"3s\"\nwrite_timeout = \"3s\"",
    );
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", if cores > 1 { "0" } else { "0-1023" }]).arg(binary());
    command.env(LEVEL_VARIABLE, "info");
    let gateway = Gateway::start_as(&config, &mut command);
    let hostility = Hostility::new(gateway.https);
    let origin_thread = origin.thread.rsplit('/').next().unwrap_or_default();
    let is_urgent = gateway_is_urgent(&gateway) && make_urgent(origin_thread, 2);
    let work = Work::Paced { bytes: MESSAGE_BYTES, per_second: options.per_second };
    let active = open(gateway.https, work, options.active)?;
    let pss = || measure::pss(&[gateway.id()]).ok_or(io::ErrorKind::PermissionDenied);
    let before = pss()?;
    let mut idle = Vec::new();
    while idle.len() * BATCH < options.idle {
        let count = (options.idle - idle.len() * BATCH).min(BATCH);
        idle.push(open(gateway.https, Work::Idle, count)?);
        progress(&format!("{} idle tunnels", (idle.len() - 1) * BATCH + count));
    }
    // They give memory back after a while.
    thread::sleep(Duration::from_secs(2));
    let memory = pss()?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
    let bytes_per_idle_tunnel = memory as f64 / options.idle as f64;
    let mut load = Load { gateway, hostility, active, idle, is_urgent };
    let mut report = load.measure(&options, &mut progress).map_err(|error| {
        let told = reasons(&log).unwrap_or_default();
        io::Error::other(format!("{error}; the access log tells: {told:#?}"))
    })?;
    report.bytes_per_idle_tunnel = bytes_per_idle_tunnel;
    report.reasons = reasons(&log)?;
    Ok(report)
}

fn open(https: SocketAddr, work: Work, connections: usize) -> io::Result<Client> {
    let fronts = Fronts { tls: https, rsa: https, plain: https };
    Client::open(&[Group { work, connections, front: Front::Tls }], fronts)
}

impl Load {
    fn measure(
        &mut self,
        options: &Options,
        progress: &mut impl FnMut(&str),
    ) -> io::Result<Report> {
        let before = self.gateway.descriptors();
        let mut tallies: [Option<Tally>; 2] = [None, None];
        let mut times = [Duration::ZERO; 2];
        let Self { gateway, hostility, active, idle, is_urgent } = self;
        thread::scope(|scope| {
            scope.spawn(|| hostility.flood(options.handshakes.max(1)));
            for kind in Slowness::ALL {
                let hostility = &*hostility;
                scope.spawn(move || hostility.crawl(kind, options.slow));
            }
            // Threads that are begun before do not inherit it.
            let own = fs::read_link("/proc/thread-self").unwrap_or_default();
            let own = own.file_name().unwrap_or_default().to_string_lossy();
            *is_urgent = *is_urgent && make_urgent(&own, 1);
            let mut turn = |is_hostile: bool| {
                hostility.is_on.store(is_hostile, Ordering::Relaxed);
                // What comes and goes with the change counts for nobody.
                active.run(Duration::from_secs(2))?;
                let used = gateway.processor_time();
                let tally = active.run(options.window)?.swap_remove(0);
                times[usize::from(is_hostile)] += gateway.processor_time().saturating_sub(used);
                let latency = Latency::of(&tally);
                let name =
                    if is_hostile { "with hostile clients" } else { "without hostile clients" };
                progress(&format!("{name}: p50 {:.2} ms, p99 {:.2} ms", latency.p50, latency.p99));
                match &mut tallies[usize::from(is_hostile)] {
                    Some(sum) => {
                        sum.units += tally.units;
                        sum.latency.add(&tally.latency).map_err(io::Error::other)
                    }
                    none => {
                        *none = Some(tally);
                        Ok(())
                    }
                }
            };
            let result = (0..options.turns).try_for_each(|_| turn(false).and_then(|()| turn(true)));
            hostility.is_on.store(false, Ordering::Relaxed);
            hostility.is_over.store(true, Ordering::Relaxed);
            result
        })?;
        for client in idle {
            // It fails when one of its tunnels has ended.
            client.run(Duration::from_millis(20))?;
        }
        active.run(Duration::from_secs(1))?;
        let deadline = Instant::now() + crate::PATIENCE;
        while gateway.descriptors() > before && Instant::now() < deadline {
            active.run(Duration::from_millis(100))?;
        }
        let [Some(calm), Some(hostile)] = tallies else {
            return Err(io::Error::other("nothing was measured"));
        };
        let wall =
            options.window.as_secs_f64() * f64::from(u32::try_from(options.turns).unwrap_or(1));
        let ended = Slowness::ALL.into_iter().zip(&hostility.ended);
        Ok(Report {
            idle: options.idle,
            active: options.active,
            bytes_per_idle_tunnel: 0.0,
            calm: Latency::of(&calm),
            hostile: Latency::of(&hostile),
            handshakes: hostility.handshakes.load(Ordering::Relaxed),
            // The time until it is measured belongs to it.
            hostile_s: wall + 2.0 * f64::from(u32::try_from(options.turns).unwrap_or(1)),
            ended: ended
                .map(|(kind, count)| (format!("{kind:?}"), count.load(Ordering::Relaxed)))
                .collect(),
            refused: hostility.refused.load(Ordering::Relaxed),
            reasons: BTreeMap::new(),
            gateway_percent: times.map(|time| 100.0 * time.as_secs_f64() / wall),
            descriptors: [before, gateway.descriptors()],
            is_urgent: *is_urgent,
        })
    }
}

/// Reasons in the access log, and how often.
fn reasons(log: &std::path::Path) -> io::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in BufReader::new(fs::File::open(log)?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if let Some(reason) = line["reason"].as_str() {
            *counts.entry(format!("{} {reason}", line["status"])).or_default() += 1;
        }
    }
    Ok(counts)
}

/// All its threads.
fn gateway_is_urgent(gateway: &Gateway) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.id())).expect("its threads");
    let mut ids = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
    ids.all(|id| make_urgent(&id, 2))
}

/// Lets a thread with this number run before all else on its processor, hostile clients and what has a lower
/// priority among it. False where that is not allowed: then other work is seen in the figures.
fn make_urgent(id: &str, priority: u8) -> bool {
    let mut command = Command::new("chrt");
    command.args(["--rr", "--pid", &priority.to_string(), id]);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// As many descriptors as this process may have; children inherit it.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer a smaller load still works.
    let _ = setrlimit(Resource::Nofile, limit);
}
