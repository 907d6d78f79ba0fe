//! Which endpoint gets the next request. Pure: time is passed in.

use std::time::Duration;

use crate::timers::Tick;

/// What is known of an endpoint from the requests that went there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Used; this many failures in a row so far.
    Healthy {
        /// Fewer than the policy's bound.
        failures: u32,
    },
    /// Left out until then.
    Ejected {
        /// End of the ejection.
        until: Tick,
    },
    /// One request finds out whether it is back; nobody else is sent there.
    Probing,
}

impl Default for Health {
    fn default() -> Self {
        Self::Healthy { failures: 0 }
    }
}

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Failures in a row; at least 1.
    pub eject_after: u32,
    /// Time without requests.
    pub eject_time: Duration,
}

impl Health {
    /// A connection was made or an answer came.
    pub fn on_success(&mut self) {
        *self = Self::default();
    }

    /// A connection could not be made, or broke before an answer.
    pub fn on_failure(&mut self, now: Tick, policy: Policy) {
        let failures = match *self {
            Self::Healthy { failures } => failures + 1,
            Self::Ejected { .. } | Self::Probing => policy.eject_after,
        };
        *self = if failures >= policy.eject_after {
            Self::Ejected { until: now.after(policy.eject_time) }
        } else {
            Self::Healthy { failures }
        };
    }

    /// Whether a request may go there at `now`.
    #[must_use]
    pub fn is_available(&self, now: Tick) -> bool {
        match *self {
            Self::Healthy { .. } => true,
            Self::Ejected { until } => until <= now,
            Self::Probing => false,
        }
    }

    /// A request goes there at `now`.
    pub fn on_chosen(&mut self) {
        if matches!(self, Self::Ejected { .. }) {
            *self = Self::Probing;
        }
    }

    /// A request that went there is over. A probe without a result is due again at once.
    pub fn on_released(&mut self) {
        if *self == Self::Probing {
            *self = Self::Ejected { until: Tick::START };
        }
    }
}

/// One endpoint, as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Requests in progress there.
    pub busy: usize,
    /// What is known of it.
    pub health: Health,
    /// It has failed this very request.
    pub tried: bool,
}

/// The index of the endpoint for the next request, of `count`: the least busy available one, in turn among equals. When none is
/// available the least busy one not yet tried: to try is better than to give up unasked. None when all were tried.
#[must_use]
pub fn choose(
    count: usize,
    candidate: impl Fn(usize) -> Candidate,
    turn: usize,
    now: Tick,
) -> Option<usize> {
    let best = |only_available: bool| {
        (0..count)
            .map(|offset| (turn % count + offset) % count)
            .map(|index| (index, candidate(index)))
            .filter(|(_, candidate)| !candidate.tried)
            .filter(|(_, candidate)| !only_available || candidate.health.is_available(now))
            .min_by_key(|(_, candidate)| candidate.busy)
            .map(|(index, _)| index)
    };
    best(true).or_else(|| best(false))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { eject_after: 3, eject_time: Duration::from_secs(10) };

    fn at(seconds: u64) -> Tick {
        Tick::START.after(Duration::from_secs(seconds))
    }

    #[test]
    fn three_failures_eject_and_one_probe_brings_back() {
        let mut health = Health::default();
        for _ in 0..2 {
            health.on_failure(at(0), POLICY);
            assert!(health.is_available(at(0)));
        }
        health.on_failure(at(0), POLICY);
        assert!(!health.is_available(at(9)));
        assert!(health.is_available(at(10)));
        health.on_chosen();
        assert!(!health.is_available(at(10)), "one probe at a time");
        health.on_failure(at(10), POLICY);
        assert!(!health.is_available(at(19)), "a failed probe ejects at once");
        health.on_chosen();
        health.on_success();
        assert_eq!(health, Health::Healthy { failures: 0 });
    }

    #[test]
    fn a_success_forgets_failures() {
        let mut health = Health::Healthy { failures: 2 };
        health.on_success();
        health.on_failure(at(0), POLICY);
        assert!(health.is_available(at(0)));
    }

    proptest! {
        #[test]
        fn the_choice_is_the_least_busy_of_those_allowed(
            raw in proptest::collection::vec((0_usize..5, 0_u8..3, any::<bool>()), 1..8),
            turn in 0_usize..20,
        ) {
            let candidates: Vec<Candidate> = raw.iter().map(|&(busy, health, tried)| Candidate {
                busy,
                health: match health {
                    0 => Health::default(),
                    1 => Health::Ejected { until: at(5) },
                    _ => Health::Probing,
                },
                tried,
            }).collect();
            let untried: Vec<&Candidate> = candidates.iter().filter(|candidate| !candidate.tried).collect();
            match choose(candidates.len(), |index| candidates[index], turn, at(1)) {
                None => prop_assert!(untried.is_empty()),
                Some(index) => {
                    let chosen = candidates[index];
                    prop_assert!(!chosen.tried);
                    let healthy = untried.iter().filter(|candidate| candidate.health.is_available(at(1)));
                    if let Some(least) = healthy.map(|candidate| candidate.busy).min() {
                        prop_assert!(chosen.health.is_available(at(1)));
                        prop_assert_eq!(chosen.busy, least);
                    }
                }
            }
        }
    }
}
