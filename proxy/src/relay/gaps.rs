//! Silences towards a browser. Pure: the time is told.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::telemetry::Counter;
use crate::timers::Tick;

/// Silence after which Guacamole's client shows the connection as unstable.
pub const UNSTABLE_AFTER: Duration = Duration::from_millis(1500);

/// Silence after which Guacamole's client gives the connection up.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);

/// How often nothing was sent for too long; the longer silences are among the shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnstableRisk {
    /// Silences above [`UNSTABLE_AFTER`].
    pub over_1500_ms: u32,
    /// Silences above [`DEAD_AFTER`].
    pub over_15_s: u32,
}

/// The same while it is counted, for others to read.
#[derive(Debug, Default)]
pub struct RiskCounters {
    over_1500_ms: Counter,
    over_15_s: Counter,
}

impl RiskCounters {
    /// What was counted so far.
    #[must_use]
    pub fn risk(&self) -> UnstableRisk {
        let read = |counter: &Counter| u32::try_from(counter.get()).unwrap_or(u32::MAX);
        UnstableRisk { over_1500_ms: read(&self.over_1500_ms), over_15_s: read(&self.over_15_s) }
    }
}

/// Watches the time between bytes.
#[derive(Debug)]
pub struct Gaps {
    last: Cell<Tick>,
    risk: Arc<RiskCounters>,
}

impl Gaps {
    /// From `now` on.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self::counting(now, Arc::default())
    }

    /// From `now` on, in these counters.
    #[must_use]
    pub fn counting(now: Tick, risk: Arc<RiskCounters>) -> Self {
        Self { last: Cell::new(now), risk }
    }

    /// Bytes were sent, or it is over.
    pub fn on_bytes(&self, now: Tick) {
        let silence = now.since(self.last.replace(now));
        if silence > UNSTABLE_AFTER {
            self.risk.over_1500_ms.add(1);
            self.risk.over_15_s.add(u64::from(silence > DEAD_AFTER));
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn risk(&self) -> UnstableRisk {
        self.risk.risk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_are_counted_by_their_length() {
        let gaps = Gaps::new(Tick::START);
        let mut now = Tick::START;
        for millis in [1400, 1500, 1550, 14_000, 15_050] {
            now = now.after(Duration::from_millis(millis));
            gaps.on_bytes(now);
        }
        assert_eq!(gaps.risk(), UnstableRisk { over_1500_ms: 3, over_15_s: 1 });
    }
}
