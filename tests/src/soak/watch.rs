//! What the gateway holds when nobody asks anything of it, round after round.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::gateway::Gateway;

/// Resources at rest.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    /// Since the beginning, seconds.
    pub(super) at_s: f64,
    /// Descriptors without pipes.
    pub(super) descriptors: usize,
    /// Ends of pipes.
    pub(super) pipe_ends: usize,
    /// Resident memory, bytes.
    pub(super) resident_bytes: usize,
    /// Processor time at rest: share of one core, percent.
    pub(super) idle_percent: f64,
}

/// Processor time is watched for so long.
const IDLE: Duration = Duration::from_secs(1);

/// Descriptors of the gateway: all but pipes, and ends of pipes.
///
/// # Panics
/// When the kernel does not tell.
#[must_use]
pub(super) fn descriptors(gateway: &Gateway) -> (usize, usize) {
    let all = fs::read_dir(format!("/proc/{}/fd", gateway.id())).expect("its descriptors");
    let targets = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_pipe = |target: &std::path::PathBuf| target.to_string_lossy().starts_with("pipe:");
    let (pipes, others): (Vec<_>, Vec<_>) = targets.partition(is_pipe);
    (others.len(), pipes.len())
}

/// Waits until no more than `baseline` descriptors are open, at most for `patience`, and looks.
#[must_use]
pub(super) fn at_rest(
    gateway: &Gateway,
    begun: Instant,
    baseline: usize,
    patience: Duration,
) -> Sample {
    let deadline = Instant::now() + patience;
    while descriptors(gateway).0 > baseline && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let before = gateway.processor_time();
    let watched = Instant::now();
    thread::sleep(IDLE);
    let used = gateway.processor_time().saturating_sub(before);
    let (descriptors, pipe_ends) = descriptors(gateway);
    Sample {
        at_s: begun.elapsed().as_secs_f64(),
        descriptors,
        pipe_ends,
        resident_bytes: gateway.resident_bytes(),
        idle_percent: 100.0 * used.as_secs_f64() / watched.elapsed().as_secs_f64(),
    }
}

/// Knows for how long a thread that was ready did not get a processor: what then takes long is not the gateway's doing.
pub(super) struct Canary(Arc<Mutex<Lateness>>);

#[derive(Default)]
struct Lateness {
    sum: Duration,
    standstills: Vec<(Instant, Instant)>,
}

/// Between two looks of a canary.
const LOOK: Duration = Duration::from_millis(10);

/// When a thread waits for so long the machine stands still, and deadlines pass that nobody could meet.
const STANDSTILL: Duration = Duration::from_secs(1);

impl Canary {
    /// One that lives as long as it is owned.
    pub(super) fn start() -> Self {
        let shared = Arc::new(Mutex::new(Lateness::default()));
        let owned = Arc::downgrade(&shared);
        thread::spawn(move || {
            while let Some(shared) = owned.upgrade() {
                let before = Instant::now();
                thread::sleep(LOOK);
                let late = before.elapsed().saturating_sub(LOOK);
                let mut lateness = shared.lock().unwrap_or_else(PoisonError::into_inner);
                lateness.sum += late;
                if late > STANDSTILL {
                    lateness.standstills.push((before, before + late));
                }
            }
        });
        Self(shared)
    }

    /// All such time so far.
    pub(super) fn late(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sum
    }

    /// When the machine stood still, since the last call.
    pub(super) fn standstills(&self) -> Vec<(Instant, Instant)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).standstills)
    }
}

/// A straight line through points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Slope {
    /// Per unit of x.
    pub(super) value: f64,
    /// Its standard error; 0 when there are too few points to tell.
    pub(super) error: f64,
}

/// The line with the least squares.
#[must_use]
pub(super) fn slope(points: &[(f64, f64)]) -> Slope {
    #[expect(clippy::cast_precision_loss, reason = "rounds are few")]
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if points.len() < 2 || spread == 0.0 {
        return Slope { value: 0.0, error: 0.0 };
    }
    let value = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|point| (point.1 - y - value * (point.0 - x)).powi(2)).sum();
    let error = if count > 2.0 { (rest / (count - 2.0) / spread).sqrt() } else { 0.0 };
    Slope { value, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_with_its_error() {
        let line: Vec<(f64, f64)> =
            (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        let found = slope(&line);
        assert!((found.value - 3.0).abs() < 1e-9 && found.error < 1e-6, "{found:?}");
        let flat = slope(&[(0.0, 5.0), (1.0, 7.0), (2.0, 5.0), (3.0, 7.0)]);
        assert!((flat.value - 0.4).abs() < 1e-9 && flat.error > 0.4, "{flat:?}");
        assert_eq!(slope(&[(1.0, 5.0)]), Slope { value: 0.0, error: 0.0 });
    }
}
