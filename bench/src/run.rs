//! The runs: A B C A B C …, so that all gateways meet the same noise.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_fixtures::{Error, Result};

use crate::certificate::Certificates;
use crate::gateways::{Gateway, Kind, Setting};
use crate::load::{Client, Front, Fronts, Group, Work};
use crate::measure;
use crate::origin::Origin;
use crate::scenario::{Bar, Figure, Layout, Point, Scenario};
use crate::statistics::{self, Ratio};

/// Above this share of its core, load and origin are the bottleneck,
const LOAD_IS_BUSY: f64 = 0.97;
/// unless the gateway's core is this busy too.
const GATEWAY_IS_BUSY: f64 = 0.9;
/// Tunnels take this long to give memory back after they became idle.
const SETTLE: Duration = Duration::from_millis(1000);
/// Runs of points that measure memory.
const IDLE_RUNS: usize = 3;
const WARM_UP_MIN: Duration = Duration::from_millis(400);
const SYSCALL_WINDOW: Duration = Duration::from_millis(300);
/// The name of the runs without any gateway.
pub const DIRECT: &str = "direct";

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Programs to be compared.
    pub kinds: Vec<Kind>,
    /// Scenarios to be run.
    pub scenarios: Vec<Scenario>,
    /// Only the points that are marked so.
    pub quick: bool,
    /// Runs of each gateway and point.
    pub runs: usize,
    /// Before what counts.
    pub warm_up: Duration,
    /// What counts.
    pub window: Duration,
    /// After this, what is left is skipped and told.
    pub bound: Duration,
    /// Configurations and logs.
    pub directory: PathBuf,
    /// The `tlsplice` program.
    pub binary: PathBuf,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// CPU of the gateway per unit, microseconds.
    pub cpu_us_per_unit: f64,
    /// Context switches of the gateway per unit.
    pub switches_per_unit: f64,
    /// Units per second: shown, never claimed.
    pub units_per_second: f64,
    /// Latency, microseconds.
    pub p50_us: f64,
    /// Latency, microseconds.
    pub p99_us: f64,
    /// Latency, microseconds.
    pub max_us: f64,
    /// Proportional set size per connection, bytes.
    pub pss_bytes: Option<f64>,
    /// CPU of load and origin divided by the time that passed.
    pub load_share: f64,
    /// CPU of the gateway divided by the time that passed.
    pub gateway_share: f64,
    /// Whether load and origin were the bottleneck.
    pub is_void: bool,
}

/// All runs of one gateway at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Who.
    pub gateway: String,
    /// Whether it is this project.
    pub is_ours: bool,
    /// In the order of time.
    pub samples: Vec<Sample>,
    /// Why there are none, or fewer.
    pub failure: Option<String>,
    /// System calls of the gateway per unit, from a short run of their own.
    pub syscalls_per_unit: Option<f64>,
    /// Percentiles of the latency of all runs that count, microseconds.
    pub latency: Vec<(f64, f64)>,
    #[serde(skip)]
    histogram: Option<Histogram<u64>>,
}

/// A figure of all gateways against its bar.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is compared.
    pub figure: Figure,
    /// The bar.
    pub bar: Bar,
    /// Medians by name.
    pub medians: BTreeMap<String, f64>,
    /// The best rival.
    pub best: Option<String>,
    /// Ours against it.
    pub ratio: Option<Ratio>,
    /// None without a bar, or when there is nothing to compare.
    pub is_met: Option<bool>,
}

/// What was found at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Stem of the scenario's file.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// The point.
    pub point: String,
    /// Name of a unit.
    pub unit: String,
    /// Cores.
    pub layout: Layout,
    /// By gateway.
    pub cells: Vec<Cell>,
    /// By figure.
    pub rows: Vec<Row>,
    /// Why it was not run.
    pub skipped: Option<String>,
}

/// Everything that runs while the plan is carried out.
struct Bench<'a> {
    plan: &'a Plan,
    setting: Setting,
    origin: Origin,
    gateways: Vec<(Kind, Gateway)>,
    begun: Instant,
}

/// Carries the plan out.
///
/// # Errors
/// When something cannot be started. A gateway that fails at a point is told in its cell.
pub fn run(plan: &Plan) -> Result<Vec<Outcome>> {
    let directory = &plan.directory;
    std::fs::create_dir_all(directory)
        .map_err(Error::io(format!("cannot make {}", directory.display())))?;
    let origin = Origin::start(Some(0))?;
    let chosen = |point: &&Point| point.quick || !plan.quick;
    let needs_tomcat = plan
        .scenarios
        .iter()
        .flat_map(|scenario| &scenario.points)
        .filter(chosen)
        .any(|p| p.tomcat);
    let tomcat = needs_tomcat.then(|| Tomcat::start(&directory.join("tomcat"))).transpose()?;
    let setting = Setting {
        directory: directory.clone(),
        binary: plan.binary.clone(),
        certificates: Certificates::make(directory)?,
        origin: origin.address,
        tomcat: tomcat.as_ref().map_or(origin.address, Tomcat::address),
        workers: 1,
        cores: "0".to_owned(),
    };
    let mut bench = Bench { plan, setting, origin, gateways: Vec::new(), begun: Instant::now() };
    for kind in &plan.kinds {
        let gateway = Gateway::start(kind, &bench.setting)?;
        bench.gateways.push((kind.clone(), gateway));
    }
    let mut outcomes = Vec::new();
    for scenario in &plan.scenarios {
        for point in scenario.points.iter().filter(chosen) {
            eprint!("{} / {}: ", scenario.name, point.name);
            let outcome = bench.point(scenario, point)?;
            eprintln!("{}", outcome.brief());
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

impl Bench<'_> {
    fn point(&mut self, scenario: &Scenario, point: &Point) -> Result<Outcome> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let skipped = if self.begun.elapsed() > self.plan.bound {
            Some("the time for this run of the benchmark was over".to_owned())
        } else if scenario.layout == Layout::Scaling && cores < 4 {
            Some(format!("void: two workers and their load need 4 cores, here are {cores}"))
        } else {
            None
        };
        let mut outcome = Outcome {
            scenario: scenario.name.clone(),
            title: scenario.title.clone(),
            point: point.name.clone(),
            unit: scenario.unit.clone(),
            layout: scenario.layout,
            cells: Vec::new(),
            rows: Vec::new(),
            skipped,
        };
        if outcome.skipped.is_some() {
            return Ok(outcome);
        }
        let load_core = if scenario.layout == Layout::OneCore { 0 } else { cores.min(2) - 1 };
        self.pin(load_core)?;
        let needs_direct = point
            .bars
            .iter()
            .any(|bar| matches!(bar.figure, Figure::AddedP50 | Figure::AddedP99 | Figure::P99));
        let names = self.plan.kinds.iter().map(|kind| (kind.name().to_owned(), kind.is_ours()));
        outcome.cells = names
            .chain(needs_direct.then(|| (DIRECT.to_owned(), false)))
            .map(|(gateway, is_ours)| Cell::new(gateway, is_ours))
            .collect();
        // Each starts a process and opens all tunnels anew; what it finds hardly differs.
        let is_idle = point.groups.iter().any(|group| group.work == Work::Idle);
        let runs = if is_idle { self.plan.runs.min(IDLE_RUNS) } else { self.plan.runs };
        for round in 0..runs {
            for index in 0..outcome.cells.len() {
                let cell = &mut outcome.cells[index];
                if cell.failure.is_some() {
                    continue;
                }
                if let Err(error) = self.sample(scenario, point, index, round, cell) {
                    cell.failure = Some(error.to_string());
                }
                eprint!(".");
            }
        }
        outcome.cells.iter_mut().for_each(Cell::finish);
        outcome.judge(&point.bars);
        Ok(outcome)
    }

    /// Load and origin go to this core.
    fn pin(&self, core: usize) -> Result<()> {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
        let thread = self.origin.thread.rsplit('/').next().unwrap_or_default();
        let status = Command::new("taskset")
            .args(["--cpu-list", "--pid", &core.to_string(), thread])
            .stdout(Stdio::null())
            .status()
            .map_err(Error::io("cannot run taskset"))?;
        if status.success() { Ok(()) } else { Err(Error::failed("taskset cannot pin the origin")) }
    }

    fn sample(
        &mut self,
        scenario: &Scenario,
        point: &Point,
        index: usize,
        round: usize,
        cell: &mut Cell,
    ) -> Result<()> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        if let Some(Group { work: Work::Idle, connections, .. }) = point.groups.first() {
            cell.samples.push(self.idle(index, &point.groups, *connections)?);
            return Ok(());
        }
        if scenario.layout == Layout::Scaling {
            cell.samples.push(self.scaled(index, point)?);
            return Ok(());
        }
        let (fronts, processes, groups) = match self.gateways.get(index) {
            Some((_, gateway)) => (gateway.fronts, gateway.processes(), point.groups.clone()),
            None => self.direct(&point.groups),
        };
        let mut client = Client::open(&groups, fronts).map_err(failed)?;
        let (sample, histogram) = self.window(&mut client, &processes, scenario.layout)?;
        if !sample.is_void {
            match &mut cell.histogram {
                Some(sum) => {
                    sum.add(&histogram).map_err(|error| Error::failed(error.to_string()))?
                }
                None => cell.histogram = Some(histogram),
            }
        }
        cell.samples.push(sample);
        if round == 0 && !processes.is_empty() {
            cell.syscalls_per_unit = syscalls(&mut client, &processes);
        }
        Ok(())
    }

    fn direct(&self, groups: &[Group]) -> (Fronts, Vec<u32>, Vec<Group>) {
        let address = self.origin.address;
        let groups = groups.iter().map(|group| Group { front: Front::Plain, ..group.clone() });
        (Fronts { tls: address, rsa: address, plain: address }, Vec::new(), groups.collect())
    }

    fn window(
        &self,
        client: &mut Client,
        processes: &[u32],
        layout: Layout,
    ) -> Result<(Sample, Histogram<u64>)> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let warm_up = match layout {
            Layout::OneCore => self.plan.warm_up,
            // What piled up while the connections were made is not to be seen in latencies.
            Layout::TwoCores | Layout::Scaling => self.plan.warm_up.max(WARM_UP_MIN),
        };
        client.run(warm_up).map_err(failed)?;
        let usage = measure::usage(processes);
        let load = measure::this_thread_ns() + measure::thread_ns(&self.origin.thread);
        let begun = Instant::now();
        let tallies = client.run(self.plan.window).map_err(failed)?;
        let wall = begun.elapsed().as_secs_f64();
        let load = measure::this_thread_ns() + measure::thread_ns(&self.origin.thread) - load;
        let usage = measure::usage(processes) - usage;
        let tally =
            tallies.into_iter().next().ok_or_else(|| Error::failed("a point without load"))?;
        let connections = float(tally.units);
        if client.is_resuming() && float(client.resumed()) < 0.9 * connections {
            return Err(Error::failed("the gateway did not resume sessions"));
        }
        if tally.units == 0 {
            return Err(Error::failed("nothing was done within the window"));
        }
        let units = float(tally.units) / client.bytes_per_unit();
        let quantile = |q: f64| float(tally.latency.value_at_quantile(q)) / 1e3;
        let mut sample = Sample {
            cpu_us_per_unit: float(usage.cpu_ns) / 1e3 / units,
            switches_per_unit: float(usage.switches) / units,
            units_per_second: units / wall,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: float(tally.latency.max()) / 1e3,
            pss_bytes: None,
            load_share: float(load) / 1e9 / wall,
            gateway_share: float(usage.cpu_ns) / 1e9 / wall,
            is_void: false,
        };
        sample.is_void = layout != Layout::OneCore
            && sample.load_share > LOAD_IS_BUSY
            && sample.gateway_share < GATEWAY_IS_BUSY;
        Ok((sample, tally.latency))
    }

    /// Memory of idle tunnels, in a process of its own: what earlier load left behind does not count.
    fn idle(&self, index: usize, groups: &[Group], connections: usize) -> Result<Sample> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let kind = &self.plan.kinds[index];
        let setting =
            Setting { directory: self.setting.directory.join("idle"), ..self.setting.clone() };
        let gateway = Gateway::start(kind, &setting)?;
        let few: Vec<Group> =
            groups.iter().map(|group| Group { connections: 50, ..group.clone() }).collect();
        drop(Client::open(&few, gateway.fronts).map_err(failed)?);
        thread::sleep(SETTLE / 4);
        let unreadable = || Error::failed("the kernel does not tell the memory of this process");
        let before = measure::pss(&gateway.processes()).ok_or_else(unreadable)?;
        let mut client = Client::open(groups, gateway.fronts).map_err(failed)?;
        client.run(SETTLE).map_err(failed)?;
        let after = measure::pss(&gateway.processes()).ok_or_else(unreadable)?;
        let each = float(after.saturating_sub(before)) / float(connections as u64);
        Ok(Sample { pss_bytes: Some(each), ..Sample::default() })
    }

    /// One worker, then two; the sample's rate is their ratio.
    fn scaled(&self, index: usize, point: &Point) -> Result<Sample> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let kind = &self.plan.kinds[index];
        self.pin(2)?;
        core_affinity::set_for_current(core_affinity::CoreId { id: 3 });
        let mut rates = Vec::new();
        let mut last = Sample::default();
        for (workers, cores) in [(1, "0"), (2, "0,1")] {
            let directory = self.setting.directory.join(format!("scaling-{workers}"));
            let setting =
                Setting { directory, workers, cores: cores.to_owned(), ..self.setting.clone() };
            let gateway = Gateway::start(kind, &setting)?;
            let mut client = Client::open(&point.groups, gateway.fronts).map_err(failed)?;
            last = self.window(&mut client, &gateway.processes(), Layout::Scaling)?.0;
            rates.push(last.units_per_second);
        }
        // Load and origin have a core each, so both together can use two.
        last.is_void = last.load_share > 1.8 || last.gateway_share < 2.0 * GATEWAY_IS_BUSY;
        last.units_per_second = rates[1] / rates[0];
        Ok(last)
    }
}

/// System calls per unit by the tracepoint, where the kernel lets us.
fn syscalls(client: &mut Client, processes: &[u32]) -> Option<f64> {
    let list: Vec<String> = processes.iter().map(u32::to_string).collect();
    let perf = Command::new("perf")
        .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &list.join(",")])
        .args(["--timeout", &SYSCALL_WINDOW.as_millis().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // A little longer than perf counts; rates are compared, because it begins when it is ready.
    let begun = Instant::now();
    let tallies = client.run(SYSCALL_WINDOW * 2).ok()?;
    let rate =
        float(tallies.first()?.units) / client.bytes_per_unit() / begun.elapsed().as_secs_f64();
    let output = perf.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count: f64 = text.lines().find_map(|line| line.split(',').next()?.parse().ok())?;
    (rate > 0.0 && count > 0.0).then(|| count / SYSCALL_WINDOW.as_secs_f64() / rate)
}

impl Cell {
    fn new(gateway: String, is_ours: bool) -> Self {
        Self {
            gateway,
            is_ours,
            samples: Vec::new(),
            failure: None,
            syscalls_per_unit: None,
            latency: Vec::new(),
            histogram: None,
        }
    }

    fn finish(&mut self) {
        const QUANTILES: [f64; 12] =
            [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0];
        if let Some(histogram) = &self.histogram {
            let at = |q| (q, float(histogram.value_at_quantile(q)) / 1e3);
            self.latency = QUANTILES.into_iter().map(at).collect();
        }
    }

    /// The figure in each run that counts.
    #[must_use]
    pub fn values(&self, figure: Figure, direct: Option<&Self>) -> Vec<f64> {
        let base = |of: fn(&Sample) -> f64| {
            direct.map_or(0.0, |cell| statistics::median(&cell.valid().map(of).collect::<Vec<_>>()))
        };
        let (p50, p99) = (base(|sample| sample.p50_us), base(|sample| sample.p99_us));
        self.valid()
            .filter_map(|sample| match figure {
                Figure::CpuPerUnit => Some(sample.cpu_us_per_unit),
                Figure::CpuPerGb => Some(sample.cpu_us_per_unit / 1e6),
                Figure::Memory => sample.pss_bytes,
                Figure::AddedP50 => Some((sample.p50_us - p50).max(0.0)),
                Figure::AddedP99 => Some((sample.p99_us - p99).max(0.0)),
                Figure::P99 => Some(sample.p99_us),
                Figure::Scaling => Some(sample.units_per_second),
            })
            .collect()
    }

    fn valid(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| !sample.is_void)
    }
}

impl Outcome {
    fn judge(&mut self, bars: &[Bar]) {
        let direct = self.cells.iter().find(|cell| cell.gateway == DIRECT);
        for bar in bars {
            let figure = bar.figure;
            let all: Vec<(&Cell, Vec<f64>)> = self
                .cells
                .iter()
                .filter(|cell| cell.gateway != DIRECT || figure == Figure::P99)
                .map(|cell| (cell, cell.values(figure, direct)))
                .filter(|(_, values)| !values.is_empty())
                .collect();
            let medians = all
                .iter()
                .map(|(cell, values)| (cell.gateway.clone(), statistics::median(values)))
                .collect::<BTreeMap<_, _>>();
            let sign = if figure.is_gain() { -1.0 } else { 1.0 };
            let best = all
                .iter()
                .filter(|(cell, _)| !cell.is_ours && cell.gateway != DIRECT)
                .min_by(|(_, a), (_, b)| {
                    (sign * statistics::median(a)).total_cmp(&(sign * statistics::median(b)))
                });
            let ours = all.iter().find(|(cell, _)| cell.is_ours).map(|(_, values)| values);
            let ratio = ours.zip(best).and_then(|(ours, best)| statistics::ratio(ours, &best.1));
            let is_met = match (bar.best, bar.absolute, ours) {
                (Some(bound), _, _) => ratio.map(|ratio| ratio.value <= bound),
                (None, Some(bound), Some(ours)) if figure.is_gain() => {
                    Some(statistics::median(ours) >= bound)
                }
                (None, Some(bound), Some(ours)) => Some(statistics::median(ours) <= bound),
                _ => None,
            };
            let best = best.map(|(cell, _)| cell.gateway.clone());
            self.rows.push(Row { figure, bar: *bar, medians, best, ratio, is_met });
        }
    }

    /// For the progress line.
    fn brief(&self) -> String {
        if let Some(why) = &self.skipped {
            return why.clone();
        }
        let Some(row) = self.rows.first() else { return String::new() };
        let scale = if row.figure == Figure::Memory { 1024.0 } else { 1.0 };
        let medians: Vec<String> = row
            .medians
            .iter()
            .map(|(name, value)| format!("{name} {:.2}", value / scale))
            .collect();
        format!(" {} ({})", medians.join(", "), row.figure.label())
    }
}

/// Counts here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
