//! Silences towards a browser. Pure: the time is told.

use std::cell::Cell;
use std::time::Duration;

use serde::Serialize;

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

/// Watches the time between bytes.
#[derive(Debug)]
pub struct Gaps {
    last: Cell<Tick>,
    risk: Cell<UnstableRisk>,
}

impl Gaps {
    /// From `now` on.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self { last: Cell::new(now), risk: Cell::default() }
    }

    /// Bytes were sent, or it is over.
    pub fn on_bytes(&self, now: Tick) {
        let silence = now.since(self.last.replace(now));
        if silence > UNSTABLE_AFTER {
            let mut risk = self.risk.get();
            risk.over_1500_ms = risk.over_1500_ms.saturating_add(1);
            risk.over_15_s = risk.over_15_s.saturating_add(u32::from(silence > DEAD_AFTER));
            self.risk.set(risk);
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn risk(&self) -> UnstableRisk {
        self.risk.get()
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
