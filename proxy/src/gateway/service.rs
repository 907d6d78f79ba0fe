//! What a service manager is told (`sd_notify(3)`). Without one, nothing happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::telemetry::WorkerCounters;

/// Tells the service manager, and keeps its watchdog quiet for as long as every worker's clock goes.
pub(super) struct Manager {
    /// Half of what the watchdog allows; None without one.
    interval: Option<Duration>,
    pinged: Instant,
    /// What each worker's clock showed then.
    ticks: Vec<u64>,
}

impl Manager {
    pub(super) fn new() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|time| time / 2);
        Self { interval, pinged: Instant::now(), ticks: Vec::new() }
    }

    /// How long may pass until [`Self::tend`] is called again.
    pub(super) fn patience(&self, otherwise: Duration) -> Duration {
        self.interval.map_or(otherwise, |interval| otherwise.min(interval / 2))
    }

    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Before a reload; [`Self::ready`] follows.
    pub(super) fn reloading(&self) {
        // Since version 253 it wants to know when that was.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Pings the watchdog when it is time to. A worker whose clock stands still is told to nobody: the manager restarts
    /// a gateway that is silent.
    pub(super) fn tend(&mut self, workers: &[Arc<WorkerCounters>]) {
        let Some(interval) = self.interval else { return };
        if self.pinged.elapsed() < interval {
            return;
        }
        let ticks: Vec<u64> = workers.iter().map(|worker| worker.ticks.get()).collect();
        if !are_alive(&self.ticks, &ticks) {
            tracing::error!(
                "a worker stands still; the service manager's watchdog is not kept quiet"
            );
            return;
        }
        tell(&[NotifyState::Watchdog]);
        (self.pinged, self.ticks) = (Instant::now(), ticks);
    }
}

/// Whether every clock has gone on.
fn are_alive(before: &[u64], now: &[u64]) -> bool {
    before.iter().zip(now).all(|(before, now)| before != now)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clock_that_stands_still_counts() {
        assert!(are_alive(&[], &[0, 0]), "nothing is known at the start");
        assert!(are_alive(&[3, 9], &[4, 12]));
        assert!(!are_alive(&[3, 9], &[4, 9]));
    }
}
