//! Mixed load under a schedule of faults, for as long as one likes.
//!
//! A run is a sequence of rounds. In each one clients come and go, with requests, uploads, downloads and tunnels, well
//! behaved and not, to an upstream that is well and to one behind a network that breaks; the gateway is reloaded
//! meanwhile. Then everybody rests: what clients saw, what the upstreams counted and what the access log tells must agree,
//! and the gateway must hold what it held at rest before, and do nothing.

mod ledger;
mod report;
mod schedule;
mod traffic;
mod upstream;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

pub use self::report::Report;

use self::ledger::{Ledger, Operation, Outcome, Window};
use self::schedule::{Event, Fault, Side, Transport, faults};
use self::traffic::{Field, Visitor, lasting_tunnel};
use self::upstream::Effects;
use self::watch::{Canary, Sample, at_rest};
use crate::PATIENCE;
use crate::fault::{Admission, Ending, FaultProxy, Toxic, Way};
use crate::gateway::{Config, Gateway, LEVEL_VARIABLE, binary};

/// Clients at once.
const CLIENTS: u64 = 12;

/// Tunnels that live as long as the run.
const LASTING: [Transport; 4] =
    [Transport::Plain, Transport::Tls12, Transport::Tls13, Transport::Tls13];

/// Half-open handshakes of one burst.
const HANDSHAKES: usize = 40;

/// Of a connection of the shaky upstream, bytes that pass before it is broken off.
const BROKEN_AFTER: u64 = 5000;

/// What is left of a round for the rest after it, about.
const REST: Duration = Duration::from_secs(3);

/// Until the gateway has come to rest: more than idle connections to upstreams are kept, and than it takes to see that.
const SETTLING: Duration = Duration::from_secs(4);

/// Threads that a request passes on its way to the upstream and back: each of them may have to wait for a processor.
const HOPS: u32 = 6;

/// Numbers of what belongs to no client.
const LASTING_ID: u64 = 1 << 61;
const PROBE_ID: u64 = 1 << 62;

/// Both ends of the pipes that two workers keep for later, and of some that any program has.
const PIPE_ENDS_MAX: usize = 2 * 2 * 16 + 8;

/// Above this share of a core a gateway that has nothing to do does something.
const IDLE_PERCENT_MAX: f64 = 5.0;

/// How long a run is and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of the schedule.
    pub seed: u64,
    /// How long, about.
    pub length: Duration,
    /// In which time a request must succeed after a fault is over.
    pub recovery: Duration,
}

impl Options {
    /// How long clients work in each round.
    fn work(self) -> Duration {
        (self.length / 6).clamp(Duration::from_secs(8), Duration::from_secs(60)) - REST
    }
}

/// What is running.
struct Soak {
    options: Options,
    field: Arc<Field>,
    gateway: Gateway,
    configs: [Config; 2],
    proxy: FaultProxy,
    effects: Effects,
    ledger: Ledger,
    faults: BTreeMap<Fault, u64>,
    windows: Vec<Window>,
    canary: Canary,
    standstill: Duration,
    recoveries: Vec<Recovery>,
    samples: Vec<Sample>,
    log: LogReader,
    begun: Instant,
}

/// Runs it and says after each round how it went.
///
/// # Panics
/// When what it needs cannot be had. What the gateway does wrong is in the report.
pub fn run(options: Options, mut progress: impl FnMut(&str)) -> Report {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.log");
    let effects = Effects::default();
    let (steady, shaky) = (upstream::start(&effects), upstream::start(&effects));
    let proxy = FaultProxy::start(shaky.address(), options.seed);
    let config = |mark: u8| {
        Config::default()
            .with_log(&path)
            .with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n")
            .with(&group("steady", &steady.address().to_string(), mark))
            .with(&group("shaky", &proxy.address().to_string(), mark))
    };
    let configs = [config(0), config(1)];
    let mut command = Command::new(binary());
    command.env(LEVEL_VARIABLE, "info");
    let gateway = Gateway::start_as(&configs[0], &mut command);
    let field = Arc::new(Field::new(gateway.https, gateway.plain()));
    let soak = Soak {
        options,
        field,
        gateway,
        configs,
        proxy,
        effects,
        ledger: Ledger::default(),
        faults: BTreeMap::new(),
        windows: Vec::new(),
        canary: Canary::start(),
        standstill: Duration::ZERO,
        recoveries: Vec::new(),
        samples: Vec::new(),
        log: LogReader::open(&path),
        begun: Instant::now(),
    };
    soak.run(&mut progress)
}

fn group(name: &str, address: &str, mark: u8) -> String {
    format!(
        "[[upstream]]\nname = \"{name}\"\nendpoints = [\"http://{address}\"]\nkeep_alive_timeout = \"1s\"\n\
         [[route]]\npath = \"/{name}/\"\nupstream = \"{name}\"\n\
         response_headers = {{ set = {{ X-Mark = \"{mark}\" }} }}\n"
    )
}

impl Soak {
    fn run(mut self, progress: &mut impl FnMut(&str)) -> Report {
        let work = self.options.work();
        let seed = self.options.seed;
        let (done, is_done) = mpsc::channel();
        thread::scope(|scope| {
            // Whoever waits for one of these is released when they are dropped, also by a panic.
            let mut lasting = Vec::new();
            for (index, transport) in LASTING.into_iter().enumerate() {
                let (end, is_over) = mpsc::channel();
                lasting.push(end);
                let (field, id) = (Arc::clone(&self.field), LASTING_ID + index as u64);
                scope.spawn(move || lasting_tunnel(&field, transport, id, &is_over));
            }
            let mut starts = Vec::new();
            for who in 0..CLIENTS {
                let (start, next) = mpsc::channel::<u64>();
                starts.push(start);
                let (field, done) = (Arc::clone(&self.field), done.clone());
                scope.spawn(move || {
                    while let Ok(round) = next.recv() {
                        Visitor::new(&field, seed, round, who).visit();
                        let _ = done.send(());
                    }
                });
            }
            // From here on the tunnels belong to a configuration of the past.
            let config = self.configs[1].clone();
            self.said("reloaded ", |gateway| gateway.reload(&config));
            for round in 0.. {
                self.field.is_resting.store(false, Ordering::Relaxed);
                for start in &starts {
                    start.send(round).expect("a client waits");
                }
                self.suffer(round, work);
                self.field.is_resting.store(true, Ordering::Relaxed);
                for _ in &starts {
                    is_done.recv_timeout(4 * PATIENCE).expect("each client comes to an end");
                }
                self.rest();
                progress(&self.progress(round + 1));
                for failure in self.ledger.news() {
                    progress(&format!("FAILED  {failure}"));
                }
                if !self.gateway.is_running() {
                    self.ledger.fail(format!("the gateway ended in round {}", round + 1));
                    break;
                }
                if round > 0 && self.begun.elapsed() + work > self.options.length {
                    break;
                }
            }
        });
        self.finish(work)
    }

    /// Goes through the faults of a round.
    fn suffer(&mut self, round: u64, length: Duration) {
        self.windows.clear();
        let start = Instant::now();
        let until =
            |at: Duration| thread::sleep((start + at).saturating_duration_since(Instant::now()));
        let events = faults(self.options.seed, round, length);
        let begins = events.iter().map(|event| (event.at, Edge::Begin, *event));
        let ends = events.iter().map(|event| (event.at + event.lasts, Edge::End, *event));
        let mut edges: Vec<_> = begins.chain(ends).collect();
        edges.sort_by_key(|(at, edge, _)| (*at, *edge));
        let mut open: Vec<(Fault, Instant)> = Vec::new();
        for (at, edge, Event { fault, .. }) in edges {
            until(at);
            match edge {
                Edge::Begin => {
                    open.push((fault, Instant::now()));
                    *self.faults.entry(fault).or_default() += 1;
                    self.begin(fault);
                }
                Edge::End => {
                    self.end(fault);
                    let index = open.iter().position(|(found, _)| *found == fault);
                    let begun = index.map_or(start, |index| open.swap_remove(index).1);
                    self.windows.push(Window { fault, begun, ended: Instant::now() });
                    if fault.is_breaking() {
                        self.recover(fault);
                    }
                }
            }
        }
        until(length);
    }

    fn begin(&mut self, fault: Fault) {
        let proxy = &self.proxy;
        match fault {
            Fault::Restart => {
                proxy.admit(Admission::Refused);
                proxy.reset();
            }
            Fault::Reset => proxy.reset(),
            Fault::Truncation => {
                proxy.set(Way::Down, Toxic::ending(Ending::Close(BROKEN_AFTER)));
            }
            Fault::Breakage => {
                proxy.set(Way::Down, Toxic::ending(Ending::Reset(BROKEN_AFTER)));
            }
            Fault::Stall => proxy.set_both(&Toxic::stalled()),
            Fault::Slices => proxy.set_both(&Toxic::pieces(48, Duration::from_micros(100))),
            Fault::Latency => {
                let jitter = Duration::from_millis(30);
                proxy.set_both(&Toxic { jitter, ..Toxic::late(jitter) });
            }
            Fault::Reload => {
                let count = self.faults.get(&Fault::Reload).copied().unwrap_or_default();
                let config = self.configs[usize::from(count % 2 == 1)].clone();
                self.said("reloaded ", |gateway| gateway.reload(&config));
            }
            Fault::BadReload => {
                self.said("reload refused", |gateway| gateway.reload_text("nonsense"));
            }
            Fault::Handshakes => self.handshakes(),
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Reload | Fault::BadReload | Fault::Handshakes | Fault::Reset => {}
            _ => self.proxy.clear(),
        }
    }

    /// Waits until the gateway has said it once more.
    fn said(&mut self, what: &str, work: impl FnOnce(&mut Gateway)) {
        let before = self.gateway.diagnostics().matches(what).count();
        work(&mut self.gateway);
        let deadline = Instant::now() + PATIENCE;
        while self.gateway.diagnostics().matches(what).count() == before {
            if Instant::now() > deadline {
                return self.ledger.fail(format!("the gateway never said {what:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The beginning of a ClientHello, and nothing more, from many at once.
    fn handshakes(&mut self) {
        let connect = |_| {
            let mut stream = TcpStream::connect(self.field.https)?;
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])?;
            Ok(stream)
        };
        let streams: io::Result<Vec<TcpStream>> = (0..HANDSHAKES).map(connect).collect();
        if let Err(error) = streams {
            self.ledger.fail(format!("a connection was not accepted: {error}"));
        }
    }

    /// The next request succeeds in time.
    fn recover(&mut self, fault: Fault) {
        let (begun, late) = (Instant::now(), self.canary.late());
        let id = PROBE_ID + self.recoveries.len() as u64;
        let attempt = || {
            let mut client = self.field.connect(Transport::Tls13).ok()?;
            let path = Side::Shaky.path();
            let get = format!("GET {path}/get?id={id} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.try_send(get).ok()?;
            (client.try_response().ok()?.status == 200).then_some(())
        };
        let bound = self.options.recovery;
        let waited = || self.canary.late().saturating_sub(late);
        while attempt().is_none() && begun.elapsed() < bound + HOPS * waited() {
            thread::sleep(Duration::from_millis(20));
        }
        let recovery = Recovery { took: begun.elapsed(), waited: waited() };
        self.recoveries.push(recovery);
        if recovery.took > bound + HOPS * recovery.waited {
            self.ledger.fail(format!("after {fault:?} no request succeeded in time: {recovery:?}"));
        }
    }

    /// Everybody rests: looks at what the gateway holds, and judges what was done. The first round is the measure of all
    /// others.
    fn rest(&mut self) {
        let baseline = self.samples.first().map_or(usize::MAX, |sample| sample.descriptors);
        if self.samples.is_empty() {
            thread::sleep(SETTLING);
        }
        let sample = at_rest(&self.gateway, self.begun, baseline, PATIENCE);
        self.samples.push(sample);
        if sample.descriptors > baseline {
            let open = sample.descriptors;
            self.ledger.fail(format!("{open} descriptors are open at rest; there were {baseline}"));
        }
        if sample.pipe_ends > PIPE_ENDS_MAX {
            self.ledger.fail(format!("{} ends of pipes are open at rest", sample.pipe_ends));
        }
        if sample.idle_percent >= IDLE_PERCENT_MAX {
            let percent = sample.idle_percent;
            self.ledger.fail(format!("the gateway takes {percent:.1} % of a core at rest"));
        }
        self.judge();
    }

    fn judge(&mut self) {
        let operations = self.field.take();
        let effects = self.effects.take();
        let lines = self.log.lines_of(&operations);
        let standstills = self.canary.standstills();
        self.standstill += standstills.iter().map(|(from, to)| *to - *from).sum::<Duration>();
        self.ledger.judge(&operations, &self.windows, &standstills, &effects, &lines);
    }

    fn progress(&self, round: u64) -> String {
        let Ledger { operations, failures, .. } = &self.ledger;
        let done: u64 = operations.values().map(|tally| tally.done).sum();
        let broken: u64 = operations.values().map(|tally| tally.broken).sum();
        let sample = self.samples[self.samples.len() - 1];
        format!(
            "{:>5.0} of {} s, round {round}: {done} operations done, {broken} broken by faults, {failures} failures; \
             at rest {} descriptors, {} ends of pipes, {} KiB, {:.1} % CPU",
            self.begun.elapsed().as_secs_f64(),
            self.options.length.as_secs(),
            sample.descriptors,
            sample.pipe_ends,
            sample.resident_bytes / 1024,
            sample.idle_percent,
        )
    }

    /// Stops the gateway, and adds everything up.
    fn finish(mut self, work: Duration) -> Report {
        self.judge();
        self.gateway.signal(Signal::TERM);
        let status = self.gateway.wait();
        if status.code() != Some(0) {
            self.ledger.fail(format!("the gateway ended with {status}"));
        }
        let said = self.gateway.diagnostics();
        for line in said.lines().filter(|line| line.contains("panicked")) {
            self.ledger.fail(format!("the gateway said: {line}"));
        }
        Report::new(&self, work)
    }
}

/// From the end of a fault to the next success.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    took: Duration,
    /// In which nothing that was ready got a processor.
    waited: Duration,
}

/// Beginning and end of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Begin,
    End,
}

/// Lines of the access log as they come.
struct LogReader {
    file: File,
    rest: String,
}

impl LogReader {
    fn open(path: &Path) -> Self {
        let file = File::open(path).expect("the gateway has opened its access log");
        Self { file, rest: String::new() }
    }

    /// New lines, until each operation that was answered has its own, or that takes too long.
    fn lines_of(&mut self, operations: &[Operation]) -> Vec<Value> {
        let is_answered = |operation: &&Operation| {
            matches!(operation.outcome, Outcome::Done | Outcome::Refused(_))
        };
        let answered = operations.iter().filter(is_answered);
        let mut missing: HashSet<u64> = answered.filter_map(|operation| operation.id).collect();
        let mut lines = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.file.read_to_string(&mut self.rest).expect("the access log is text");
            let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
            for line in self.rest.drain(..end).as_str().lines() {
                let line: Value = serde_json::from_str(line).expect("a line is JSON");
                if let Some(id) = line["target"].as_str().and_then(upstream::id_in) {
                    missing.remove(&id);
                }
                lines.push(line);
            }
            if missing.is_empty() || Instant::now() > deadline {
                return lines;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}
