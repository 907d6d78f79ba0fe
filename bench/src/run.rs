//! The runs: A C B, B A C, …, so that all gateways meet the same noise and none is always the first. Whatever fails is told, and the
//! others go on.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_fixtures::{Error, Result};

use crate::certificate::Certificates;
use crate::external::Generator;
use crate::floor::{FLOORS, Floor};
use crate::gateways::{Gateway, Kind, Setting};
use crate::load::{Client, Front, Fronts, Group, Work};
use crate::machine::{cores, keep_awake, load_core, raise_descriptors, taskset};
use crate::measure::{self, Usage};
use crate::origin::Origin;
use crate::outcome::{Cell, DIRECT, Outcome, Role, Sample, float};
use crate::scenario::{Figure, Layout, Point, Scenario};
use crate::schedule::{self, Need, Timing};

/// Above this share of its core, load and origin are the bottleneck,
const LOAD_IS_BUSY: f64 = 0.97;
/// unless the gateway's core is this busy too.
const GATEWAY_IS_BUSY: f64 = 0.9;
/// Tunnels take this long to give memory back after they became idle.
const SETTLE: Duration = Duration::from_millis(1000);
/// How long a window may get in which nothing is done yet, on a machine that is slow or busy.
const WINDOW_MAX: Duration = Duration::from_secs(5);
/// Enough for the tunnels of all points but idle ones. Apache with four times as many took 150 or 580 us for the same request, from start to
/// start: by chance it kept to some tens of its threads, or went on through hundreds.
pub(crate) const THREADS: usize = 1500;
/// Enough for idle tunnels.
const IDLE_THREADS: usize = 6000;
const SYSCALL_WINDOW: Duration = Duration::from_millis(200);

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
    /// What counts of a run, where there is a bar; elsewhere a part of it does.
    pub window: Duration,
    /// After this, what is left is skipped and told.
    pub bound: Duration,
    /// Configurations and logs.
    pub directory: PathBuf,
    /// The `tlsplice` program.
    pub binary: PathBuf,
    /// Where the next release of Debian is unpacked.
    pub next: PathBuf,
}

impl Plan {
    /// The points to be run, with their scenarios.
    pub fn points(&self) -> impl Iterator<Item = (&Scenario, &Point)> {
        let all = self.scenarios.iter();
        let all =
            all.flat_map(|scenario| scenario.points.iter().map(move |point| (scenario, point)));
        all.filter(|(_, point)| point.is_in(self.quick))
    }

    /// The floors that are told beside a point.
    #[must_use]
    pub fn floors<'a>(&self, point: &'a Point) -> &'a [Floor] {
        if self.quick { &[] } else { &point.floors }
    }
}

/// Everything that runs while the plan is carried out.
struct Bench<'a> {
    plan: &'a Plan,
    setting: Setting,
    origin: Origin,
    tomcat: Option<Result<Tomcat>>,
    /// Those of the plan, and the floors.
    gateways: Vec<(Kind, Option<Gateway>)>,
    begun: Instant,
}

/// One column of a point.
#[derive(Clone, Copy)]
enum Subject {
    /// Index in the list of gateways.
    Gateway(usize),
    /// The load goes to the origin.
    Direct,
}

/// Carries the plan out.
///
/// # Errors
/// When there is nowhere to put things. Whatever fails later is told in its place.
pub fn run(plan: &Plan) -> Result<Vec<Outcome>> {
    let directory = &plan.directory;
    std::fs::create_dir_all(directory)
        .map_err(Error::io(format!("cannot make {}", directory.display())))?;
    raise_descriptors();
    // Before anything is pinned.
    let _ = cores();
    let origin = Origin::start(Some(0))?;
    let needs_tomcat = plan.points().any(|(_, point)| point.tomcat);
    let tomcat = needs_tomcat.then(|| Tomcat::start(&directory.join("tomcat")));
    let setting = Setting {
        directory: directory.clone(),
        binary: plan.binary.clone(),
        next: plan.next.clone(),
        certificates: Certificates::make(directory)?,
        origin: origin.address,
        tomcat: match &tomcat {
            Some(Ok(tomcat)) => tomcat.address(),
            _ => origin.address,
        },
        workers: 1,
        cores: "0".to_owned(),
        threads: THREADS,
        wrapper: Vec::new(),
    };
    let floors = FLOORS.map(Kind::Floor);
    let kinds = plan.kinds.iter().chain(&floors);
    let gateways = kinds.map(|kind| (kind.clone(), None)).collect();
    let mut bench = Bench { plan, setting, origin, tomcat, gateways, begun: Instant::now() };
    let mut outcomes = Vec::new();
    let needs = schedule::needs(plan);
    for (index, (scenario, point)) in plan.points().enumerate() {
        let seconds = bench.begun.elapsed().as_secs();
        eprint!("{seconds:>4} s  {} / {}: ", scenario.name, point.name);
        let outcome = bench.point(scenario, point, &needs[index..]);
        eprintln!("{}", outcome.brief());
        outcomes.push(outcome);
    }
    // In good order: a gateway may write something at its end.
    for gateway in bench.gateways.into_iter().filter_map(|(_, gateway)| gateway) {
        if let Err(error) = gateway.end() {
            eprintln!("{error}");
        }
    }
    Ok(outcomes)
}

impl Bench<'_> {
    /// Runs a point, which is the first of those that have `needs`.
    fn point(&mut self, scenario: &Scenario, point: &Point, needs: &[Need]) -> Outcome {
        let layout = point.layout(scenario);
        let mut outcome = Outcome {
            scenario: scenario.name.clone(),
            title: scenario.title.clone(),
            point: point.name.clone(),
            unit: scenario.unit.clone(),
            layout,
            cells: Vec::new(),
            rows: Vec::new(),
            skipped: self.obstacle(point),
            note: None,
        };
        if outcome.skipped.is_none() {
            outcome.skipped = self.pin(layout).err().map(|error| error.to_string());
        }
        if outcome.skipped.is_some() {
            return outcome;
        }
        if layout == Layout::Scaling && cores() < 4 {
            outcome.note = Some(format!(
                "{} cores, which load and origin share with the workers: throughput says nothing. Told is twice the \
                 CPU per request of one worker, divided by that of two: what two cores of their own would allow.",
                cores()
            ));
        }
        let mut subjects: Vec<Subject> = (0..self.plan.kinds.len()).map(Subject::Gateway).collect();
        subjects.extend(point.is_compared_to_direct().then_some(Subject::Direct));
        // Where load or gateway are always busy, as at other points, what keeps a core awake would get turns of its own.
        let is_awake = point.tells(&[Figure::AddedP50, Figure::AddedP99]);
        let _awake = match is_awake.then(keep_awake).transpose() {
            Ok(awake) => awake,
            Err(error) => {
                outcome.skipped = Some(error.to_string());
                return outcome;
            }
        };
        let told = FLOORS.iter().zip(self.plan.kinds.len()..);
        let told = told.filter(|(floor, _)| self.plan.floors(point).contains(floor));
        subjects.extend(told.map(|(_, index)| Subject::Gateway(index)));
        outcome.cells = subjects.iter().map(|subject| self.cell(*subject)).collect();
        let begun = Instant::now();
        let share = schedule::share(self.plan.bound.saturating_sub(self.begun.elapsed()), needs);
        if point.tomcat
            && let Err(error) = self.warm_tomcat(&point.groups)
        {
            outcome.skipped = Some(format!("no Tomcat: {error}"));
            return outcome;
        }
        let runs = schedule::runs(self.plan, point);
        let slices = schedule::slices(self.plan, layout, point);
        let is_kept = point.groups.iter().all(schedule::is_kept);
        let mut clients: Vec<Option<Client>> = subjects.iter().map(|_| None).collect();
        let runs_min = schedule::runs_min(self.plan);
        for slice in 0..runs * slices {
            let run = slice / slices;
            if slice % slices == 0 && !share.allows(begun.elapsed(), run, runs_min) {
                let note = outcome.note.take().unwrap_or_default();
                let note = format!("{note} {run} runs: there was no time for more.");
                outcome.note = Some(note.trim_start().to_owned());
                break;
            }
            for column in schedule::order(slice, subjects.len()) {
                let (cell, client) = (&mut outcome.cells[column], &mut clients[column]);
                if cell.failure.is_some() {
                    continue;
                }
                if let Err(error) = self.sample(layout, point, subjects[column], cell, client) {
                    cell.failure = Some(error.to_string());
                }
                if !is_kept {
                    *client = None;
                }
                if slice % slices == 0 {
                    eprint!(".");
                }
            }
        }
        outcome.cells.iter_mut().for_each(Cell::finish);
        outcome.judge(&point.bars);
        outcome
    }

    fn warm_tomcat(&self, groups: &[Group]) -> Result<()> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let address = self.setting.tomcat;
        let fronts = Fronts { tls: address, rsa: address, plain: address };
        let plain = without_tls(groups);
        let begun = Instant::now();
        while let Some(left) = schedule::TOMCAT_WARM_UP.checked_sub(begun.elapsed()) {
            // Tomcat ends a connection with its hundredth response, which is an error of the run and none here.
            let _ = Client::open(&plain, fronts).map_err(failed)?.run(left);
        }
        Ok(())
    }

    /// Why a point cannot be run.
    fn obstacle(&self, point: &Point) -> Option<String> {
        if self.begun.elapsed() > self.plan.bound {
            return Some("the time for this run of the benchmark was over".to_owned());
        }
        match &self.tomcat {
            Some(Err(error)) if point.tomcat => Some(format!("no Tomcat: {error}")),
            _ => None,
        }
    }

    fn cell(&self, subject: Subject) -> Cell {
        match subject {
            Subject::Direct => Cell::new(DIRECT.to_owned(), Role::Reference),
            Subject::Gateway(index) => {
                let kind = &self.gateways[index].0;
                let role = match (kind.is_ours(), kind.is_rival()) {
                    (true, _) => Role::Ours,
                    (_, true) => Role::Rival,
                    _ => Role::Reference,
                };
                Cell::new(kind.name().to_owned(), role)
            }
        }
    }

    /// Load and origin go where the layout wants them.
    fn pin(&self, layout: Layout) -> Result<()> {
        let all = |cores: usize| (0..cores).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
        let (load, origin) = match layout {
            Layout::OneCore => ("0".to_owned(), "0".to_owned()),
            Layout::TwoCores => (load_core().to_string(), load_core().to_string()),
            Layout::Scaling if cores() < 4 => (all(cores()), all(cores())),
            Layout::Scaling => ("3".to_owned(), "2".to_owned()),
        };
        taskset(&measure::this_thread(), &load)?;
        taskset(&self.origin.thread, &origin)
    }

    fn sample(
        &mut self,
        layout: Layout,
        point: &Point,
        subject: Subject,
        cell: &mut Cell,
        kept: &mut Option<Client>,
    ) -> Result<()> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        if let Subject::Gateway(index) = subject {
            if let Some(Group { work: Work::Idle, connections, .. }) = point.groups.first() {
                return cell.add(self.idle(index, &point.groups, *connections)?, None);
            }
            if layout == Layout::Scaling {
                return cell.add(self.scaled(index, point)?, None);
            }
        }
        let (fronts, processes, groups) = match subject {
            Subject::Gateway(index) => {
                let gateway = self.gateway(index)?;
                (gateway.fronts, gateway.processes(), point.groups.clone())
            }
            Subject::Direct => self.direct(&point.groups),
        };
        if let Some(generator) = point.generator {
            let window = schedule::timing(self.plan, layout, point).window;
            let sample = self.external(generator, window, &groups, fronts, &processes, layout)?;
            return cell.add(sample, None);
        }
        let mut client = match kept.take() {
            Some(client) => client,
            None => Client::open(&groups, fronts).map_err(failed)?,
        };
        let timing = schedule::timing(self.plan, layout, point);
        let (sample, histogram) = self.window(&mut client, &processes, layout, timing)?;
        let is_first = cell.samples.is_empty();
        cell.add(sample, Some(histogram))?;
        if is_first && !processes.is_empty() {
            cell.syscalls_per_unit = syscalls(&mut client, &processes);
        }
        *kept = Some(client);
        Ok(())
    }

    /// A gateway that runs: it is started when it is first needed, and again when it has ended.
    fn gateway(&mut self, index: usize) -> Result<&Gateway> {
        let (kind, gateway) = &mut self.gateways[index];
        if gateway.as_mut().is_some_and(Gateway::is_over) {
            *gateway = None;
        }
        match gateway {
            Some(gateway) => Ok(gateway),
            None => Ok(gateway.insert(Gateway::start(kind, &self.setting)?)),
        }
    }

    fn direct(&self, groups: &[Group]) -> (Fronts, Vec<u32>, Vec<Group>) {
        let address = self.origin.address;
        let fronts = Fronts { tls: address, rsa: address, plain: address };
        (fronts, Vec::new(), without_tls(groups))
    }

    fn window(
        &self,
        client: &mut Client,
        processes: &[u32],
        layout: Layout,
        timing: Timing,
    ) -> Result<(Sample, Histogram<u64>)> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let Timing { warm_up, window } = timing;
        if !warm_up.is_zero() {
            client.run(warm_up).map_err(failed)?;
        }
        let usage = measure::usage(processes);
        let load = |client: &Client| {
            let ran = measure::this_thread_ns() + measure::thread_ns(&self.origin.thread);
            ran.saturating_sub(client.looked_in_vain())
        };
        let load_before = load(client);
        let begun = Instant::now();
        let mut tallies = client.run(window).map_err(failed)?;
        // Nothing of what was done so far is lost, since nothing was.
        while tallies.iter().all(|tally| tally.units == 0) && begun.elapsed() < WINDOW_MAX {
            tallies = client.run(window).map_err(failed)?;
        }
        let wall = begun.elapsed().as_secs_f64();
        let load = load(client).saturating_sub(load_before);
        let usage = measure::usage(processes) - usage;
        let tally =
            tallies.into_iter().next().ok_or_else(|| Error::failed("a point without load"))?;
        let connections = float(tally.units);
        if client.is_resuming() && float(client.resumed()) < 0.9 * connections {
            return Err(Error::failed("the gateway did not resume sessions"));
        }
        check(tally.units, processes, usage)?;
        let units = float(tally.units) / client.bytes_per_unit();
        let quantile = |q: f64| float(tally.latency.value_at_quantile(q)) / 1e3;
        let sample = Sample {
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: float(tally.latency.max()) / 1e3,
            ..Sample::default()
        };
        Ok((sample.with(units, usage, load, wall, layout), tally.latency))
    }

    /// Memory of idle tunnels, in a process of its own: what earlier load left behind does not count.
    fn idle(&self, index: usize, groups: &[Group], connections: usize) -> Result<Sample> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let kind = &self.gateways[index].0;
        let directory = self.setting.directory.join("idle");
        let setting = Setting { directory, threads: IDLE_THREADS, ..self.setting.clone() };
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

    /// One worker, then two. With a core for everyone the sample's rate is the ratio of their throughputs, else that of
    /// what two of them could do by their cost.
    fn scaled(&self, index: usize, point: &Point) -> Result<Sample> {
        let failed = |error: io::Error| Error::failed(error.to_string());
        let kind = &self.gateways[index].0;
        let is_alone = cores() >= 4;
        let one = if is_alone { "0" } else { "0,1" };
        let mut samples = Vec::new();
        for (workers, cores) in [(1, one), (2, "0,1")] {
            let directory = self.setting.directory.join(format!("scaling-{workers}"));
            let setting =
                Setting { directory, workers, cores: cores.to_owned(), ..self.setting.clone() };
            let gateway = Gateway::start(kind, &setting)?;
            let mut client = Client::open(&point.groups, gateway.fronts).map_err(failed)?;
            let processes = gateway.processes();
            let timing = schedule::timing(self.plan, Layout::Scaling, point);
            samples.push(self.window(&mut client, &processes, Layout::Scaling, timing)?.0);
        }
        let [one, two] = &samples[..] else { unreachable!("two are made") };
        let ratio = if is_alone {
            two.units_per_second / one.units_per_second
        } else {
            // Noise may make two workers cheaper for each request; more than two cores they are not.
            (2.0 * one.cpu_us_per_unit / two.cpu_us_per_unit).min(2.0)
        };
        // Load and origin have a core each, so both together can use two.
        let is_void =
            is_alone && (two.load_share > 1.8 || two.gateway_share < 2.0 * GATEWAY_IS_BUSY);
        Ok(Sample { units_per_second: ratio, is_void, ..two.clone() })
    }

    /// One run of a load by other hands. Its connections and handshakes are in what is measured; they are few.
    fn external(
        &self,
        generator: Generator,
        window: Duration,
        groups: &[Group],
        fronts: Fronts,
        processes: &[u32],
        layout: Layout,
    ) -> Result<Sample> {
        let group = groups.first().ok_or_else(|| Error::failed("a point without load"))?;
        let core = if layout == Layout::OneCore { 0 } else { load_core() };
        let load = || measure::thread_ns(&self.origin.thread) + measure::children_ns();
        let (before, load_before) = (measure::usage(processes), load());
        let begun = Instant::now();
        let address = fronts.address(group.front);
        let count = generator.run(group, address, window, core, &self.setting.directory)?;
        let wall = begun.elapsed().as_secs_f64();
        let usage = measure::usage(processes) - before;
        check(count.requests, processes, usage)?;
        let (p50_us, p99_us) = count.latency.unwrap_or_default();
        let sample = Sample { p50_us, p99_us, ..Sample::default() };
        Ok(sample.with(float(count.requests), usage, load() - load_before, wall, layout))
    }
}

impl Sample {
    /// Fills in what follows from the units done, what the gateway used, and what load and origin ran for, nanoseconds,
    /// within `wall` seconds.
    fn with(self, units: f64, usage: Usage, load_ns: u64, wall: f64, layout: Layout) -> Self {
        let load_share = float(load_ns) / 1e9 / wall;
        let gateway_share = float(usage.cpu_ns) / 1e9 / wall;
        Self {
            cpu_us_per_unit: float(usage.cpu_ns) / 1e3 / units,
            switches_per_unit: float(usage.switches) / units,
            units_per_second: units / wall,
            load_share,
            gateway_share,
            is_void: layout == Layout::TwoCores
                && load_share > LOAD_IS_BUSY
                && gateway_share < GATEWAY_IS_BUSY,
            ..self
        }
    }
}

/// Whether something was done, and by those who were looked at.
fn check(units: u64, processes: &[u32], usage: Usage) -> Result<()> {
    if units == 0 {
        return Err(Error::failed("nothing was done within the window"));
    }
    if !processes.is_empty() && usage.cpu_ns == 0 {
        return Err(Error::failed("the processes that were measured are not those that worked"));
    }
    Ok(())
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

/// The same load for who knows no TLS.
fn without_tls(groups: &[Group]) -> Vec<Group> {
    groups.iter().map(|group| Group { front: Front::Plain, ..group.clone() }).collect()
}
