//! What a run has found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::Soak;
use super::ledger::{Ledger, Tally};
use super::watch::{Sample, Slope, slope};

/// Resident memory may grow by this much in an hour,
const GROWTH_PER_HOUR_MAX: f64 = 1024.0 * 1024.0;
/// and by this much at all: short runs say nothing about an hour.
const GROWTH_MAX: f64 = 4.0 * 1024.0 * 1024.0;

/// Everything a run has found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of the schedule.
    seed: u64,
    /// Rounds of load and rest.
    rounds: usize,
    /// Load in each of them, seconds.
    load_s: f64,
    /// All of it, seconds.
    elapsed_s: f64,
    /// Connections to the gateway.
    connections: u64,
    /// WebSocket messages that came back as they were sent.
    messages: u64,
    /// Bytes of bodies and messages that were compared.
    bytes_compared: u64,
    /// Operations, effects, log lines, and what went wrong.
    #[serde(flatten)]
    ledger: Ledger,
    /// For how long the machine stood still, so that what broke then is void, seconds.
    standstill_s: f64,
    /// How often there was each fault.
    faults: BTreeMap<String, u64>,
    /// The longest time from the end of a fault to the next success, seconds.
    recovery_max_s: f64,
    /// Of which nothing that was ready got a processor.
    recovery_waited_s: f64,
    /// Descriptors at rest, per hour.
    descriptors_per_hour: Slope,
    /// Resident memory at rest after the first rounds, bytes per hour.
    resident_bytes_per_hour: Slope,
    /// How much it grew after the first rounds, bytes.
    resident_growth_bytes: f64,
    /// The largest share of a core at rest, percent.
    idle_percent_max: f64,
    /// What the gateway held at rest.
    samples: Vec<Sample>,
}

impl Report {
    pub(super) fn new(soak: &Soak, load: Duration) -> Self {
        let samples = soak.samples.clone();
        // Memory that is used again and again is had in the first rounds.
        let warm = &samples[(samples.len() / 6).max(1).min(samples.len())..];
        let line = |of: fn(&Sample) -> usize| {
            #[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
            let points: Vec<(f64, f64)> =
                warm.iter().map(|sample| (sample.at_s / 3600.0, of(sample) as f64)).collect();
            slope(&points)
        };
        let resident = line(|sample| sample.resident_bytes);
        let hours = match (warm.first(), warm.last()) {
            (Some(first), Some(last)) => (last.at_s - first.at_s) / 3600.0,
            _ => 0.0,
        };
        let mut ledger = soak.ledger.clone();
        let growth = resident.value * hours;
        if growth > GROWTH_MAX && resident.value - 2.0 * resident.error > GROWTH_PER_HOUR_MAX {
            ledger.fail(format!("memory at rest grew by {growth:.0} bytes after the first rounds"));
        }
        let longest = soak.recoveries.iter().max_by_key(|recovery| recovery.took);
        let name = |fault| format!("{fault:?}");
        Self {
            seed: soak.options.seed,
            rounds: samples.len(),
            load_s: load.as_secs_f64(),
            elapsed_s: soak.begun.elapsed().as_secs_f64(),
            connections: soak.field.connections.load(Ordering::Relaxed),
            messages: soak.field.messages.load(Ordering::Relaxed),
            bytes_compared: soak.field.bytes.load(Ordering::Relaxed),
            ledger,
            standstill_s: soak.standstill.as_secs_f64(),
            faults: soak.faults.iter().map(|(fault, count)| (name(*fault), *count)).collect(),
            recovery_max_s: longest.map_or(0.0, |recovery| recovery.took.as_secs_f64()),
            recovery_waited_s: longest.map_or(0.0, |recovery| recovery.waited.as_secs_f64()),
            descriptors_per_hour: line(|sample| sample.descriptors),
            resident_bytes_per_hour: resident,
            resident_growth_bytes: growth,
            idle_percent_max: samples.iter().map(|sample| sample.idle_percent).fold(0.0, f64::max),
            samples,
        }
    }

    /// Effects that upstreams have counted.
    #[must_use]
    pub fn effects(&self) -> u64 {
        self.ledger.effects
    }

    /// How many faults there were.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.ledger.failures == 0 && self.ledger.lost_bytes == 0
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "operation", "done", "left", "broken", "void", "failed"
        )?;
        for (name, tally) in &self.ledger.operations {
            let Tally { done, abandoned, broken, void, failed } = tally;
            writeln!(f, "{name:<20} {done:>9} {abandoned:>9} {broken:>9} {void:>9} {failed:>9}")?;
        }
        let faults: Vec<String> =
            self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        writeln!(
            f,
            "seed {}: {:.0} s, {} connections, {} messages, {} MB compared, {} effects, each once, {} lines of the log",
            self.seed,
            self.elapsed_s,
            self.connections,
            self.messages,
            self.bytes_compared / 1_000_000,
            self.ledger.effects,
            self.ledger.log_lines,
        )?;
        let (Slope { value, error }, descriptors) =
            (self.resident_bytes_per_hour, self.descriptors_per_hour);
        writeln!(
            f,
            "at rest: descriptors {:+.2} per hour, memory {:+.0} KiB per hour (error {:.0}), CPU {:.1} % at most",
            descriptors.value,
            value / 1024.0,
            error / 1024.0,
            self.idle_percent_max,
        )?;
        writeln!(
            f,
            "after a fault the next request succeeded within {:.0} ms, of which {:.0} ms without a processor",
            1e3 * self.recovery_max_s,
            1e3 * self.recovery_waited_s
        )?;
        if self.standstill_s > 0.0 {
            writeln!(
                f,
                "the machine stood still for {:.0} s; what broke then is void",
                self.standstill_s
            )?;
        }
        for example in &self.ledger.examples {
            writeln!(f, "FAILED  {example}")?;
        }
        write!(f, "failures {}, lost bytes {}", self.ledger.failures, self.ledger.lost_bytes)
    }
}
