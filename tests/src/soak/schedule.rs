//! What happens when: a pure function of the seed, so that a run can be had again.
//!
//! The faults of a round are known before it begins. A client knows its visits one after the other; how many of them fit
//! into a round depends on the machine, which is why each round begins with a sequence of its own.

use std::time::Duration;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};

/// Numbers that look random and are the same for the same seed, on every machine and with every release of the crate.
#[derive(Clone, Debug)]
pub(super) struct Random(Pcg64);

impl Random {
    /// A sequence of its own for each pair of numbers.
    #[must_use]
    pub(super) fn of(seed: u64, round: u64, who: u64) -> Self {
        let mixed = Pcg64::seed_from_u64(seed).next_u64() ^ round;
        let mixed = Pcg64::seed_from_u64(mixed).next_u64() ^ who;
        Self(Pcg64::seed_from_u64(mixed))
    }

    /// From `least` to `most`, both included.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.next_u64() % (most - least + 1)
    }

    /// One of these.
    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let last = u64::try_from(all.len() - 1).unwrap_or(u64::MAX);
        all[usize::try_from(self.between(0, last)).unwrap_or_default()]
    }

    /// True in so many of a hundred cases.
    pub(super) fn percent(&mut self, share: u64) -> bool {
        self.between(1, 100) <= share
    }

    fn milliseconds(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.between(least, most))
    }

    /// Sizes of all magnitudes up to `2^magnitude` bytes: small ones are as frequent as large ones.
    fn size(&mut self, magnitude: u64) -> u64 {
        let most = 1 << self.between(0, magnitude);
        self.between(most / 2, most)
    }
}

/// What goes wrong, or merely happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The upstream is gone, with all of its connections, and comes back.
    Restart,
    /// All connections of the upstream are reset, once.
    Reset,
    /// The upstream ends its connections in the midst of what it says.
    Truncation,
    /// The same with resets.
    Breakage,
    /// Nothing comes from the upstream, for less time than anybody waits.
    Stall,
    /// The upstream sends in pieces of a few bytes.
    Slices,
    /// Everything takes its time on the way from and to the upstream.
    Latency,
    /// SIGHUP with a good configuration.
    Reload,
    /// SIGHUP with a configuration that is refused.
    BadReload,
    /// Many clients begin a handshake at once and vanish.
    Handshakes,
}

impl Fault {
    /// All of them.
    #[cfg(test)]
    const ALL: [Self; 10] = [
        Self::Restart,
        Self::Reset,
        Self::Truncation,
        Self::Breakage,
        Self::Stall,
        Self::Slices,
        Self::Latency,
        Self::Reload,
        Self::BadReload,
        Self::Handshakes,
    ];

    /// Those of the upstream, of which there is one at a time.
    const OF_UPSTREAM: [Self; 7] = [
        Self::Restart,
        Self::Reset,
        Self::Truncation,
        Self::Breakage,
        Self::Stall,
        Self::Slices,
        Self::Latency,
    ];

    /// What happens beside them.
    const OF_OTHERS: [Self; 4] = [Self::Reload, Self::Reload, Self::BadReload, Self::Handshakes];

    /// Whether exchanges with the upstream that has it may come to nothing. All others must be as if it were not there.
    #[must_use]
    pub(super) fn is_breaking(self) -> bool {
        matches!(self, Self::Restart | Self::Reset | Self::Truncation | Self::Breakage)
    }

    fn lasts(self, random: &mut Random) -> Duration {
        match self {
            Self::Reset | Self::Reload | Self::BadReload | Self::Handshakes => Duration::ZERO,
            Self::Stall => random.milliseconds(100, 800),
            _ => random.milliseconds(200, 1500),
        }
    }
}

/// One fault of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// When it begins, from the beginning of the round.
    pub(super) at: Duration,
    /// Until it ends.
    pub(super) lasts: Duration,
    /// What it is.
    pub(super) fault: Fault,
}

/// The faults of a round that takes this long, by when they begin. None lasts beyond it.
#[must_use]
pub(super) fn faults(seed: u64, round: u64, length: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    let lanes: [(&[Fault], u64); 2] = [(&Fault::OF_UPSTREAM, 2500), (&Fault::OF_OTHERS, 4000)];
    for (lane, (faults, pause)) in lanes.into_iter().enumerate() {
        let mut random = Random::of(seed, round, u64::MAX - lane as u64);
        let mut at = random.milliseconds(300, pause);
        loop {
            let fault = random.one_of(faults);
            let lasts = fault.lasts(&mut random);
            if at + lasts > length {
                break;
            }
            events.push(Event { at, lasts, fault });
            // Time for the upstream to be as before, and for exchanges that no fault touches.
            at += lasts + random.milliseconds(1500, pause + 1500);
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

/// How a client reaches the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Without TLS.
    Plain,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Which upstream a client talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that has no faults.
    Steady,
    /// The one that has.
    Shaky,
}

impl Side {
    /// The path of its route.
    #[must_use]
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Steady => "/steady",
            Self::Shaky => "/shaky",
        }
    }
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Content-Length.
    Length,
    /// Chunks.
    Chunked,
}

/// How a client leaves without having finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It closes its socket; TLS is not told.
    Vanish,
    /// It resets its connection.
    Reset,
}

/// One exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A GET with a small answer.
    Get,
    /// A POST whose effect must be had once.
    Effect,
    /// A POST with a body, hashed at both ends; an effect, too.
    Upload {
        /// Of the body, bytes.
        size: u64,
        /// How it is told.
        framing: Framing,
    },
    /// A GET with a body, hashed at both ends.
    Download {
        /// Of the body, bytes.
        size: u64,
        /// How it is told.
        framing: Framing,
        /// The client stops reading for so long when half of it has come.
        stall: Duration,
    },
    /// A POST whose head comes in pieces with pauses between them.
    SlowEffect {
        /// Between two pieces.
        pause: Duration,
    },
    /// A POST whose client leaves before the end of the body.
    AbandonedUpload {
        /// Of the body, bytes.
        size: u64,
        /// How much of it is sent.
        sent: u64,
        /// How the client leaves.
        exit: Exit,
    },
    /// A GET whose client leaves before the end of the body.
    AbandonedDownload {
        /// Of the body, bytes.
        size: u64,
        /// How much of it is read.
        taken: u64,
        /// How the client leaves.
        exit: Exit,
    },
    /// A POST whose client leaves without waiting for the response.
    AbandonedEffect {
        /// How the client leaves.
        exit: Exit,
    },
}

impl Step {
    /// Whether the client ends its connection with it.
    #[must_use]
    pub(super) fn is_abandoned(self) -> bool {
        use Step::{AbandonedDownload, AbandonedEffect, AbandonedUpload};
        matches!(self, AbandonedUpload { .. } | AbandonedDownload { .. } | AbandonedEffect { .. })
    }

    /// Its name in the report.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "request",
            Self::Effect => "POST",
            Self::Upload { .. } => "upload",
            Self::Download { stall: Duration::ZERO, .. } => "download",
            Self::Download { .. } => "stalled download",
            Self::SlowEffect { .. } => "slow head",
            Self::AbandonedUpload { .. } => "abandoned upload",
            Self::AbandonedDownload { .. } => "abandoned download",
            Self::AbandonedEffect { .. } => "abandoned POST",
        }
    }
}

/// What a client does with one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// Exchanges one after the other, each after a pause.
    Requests(Vec<(Duration, Step)>),
    /// A WebSocket.
    Tunnel {
        /// Sizes of the messages of each burst; each burst is sent after a pause, and comes back.
        bursts: Vec<(Duration, Vec<u64>)>,
        /// How the client leaves, if not in good order.
        exit: Option<Exit>,
    },
}

/// One connection of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// How.
    pub(super) transport: Transport,
    /// Where to.
    pub(super) side: Side,
    /// What for.
    pub(super) visit: Visit,
}

/// The next connection of a client.
pub(super) fn call(random: &mut Random) -> Call {
    let transport = random.one_of(&[Transport::Plain, Transport::Tls12, Transport::Tls13]);
    let side = random.one_of(&[Side::Steady, Side::Shaky]);
    let visit = if random.percent(25) { tunnel(random) } else { requests(random) };
    Call { transport, side, visit }
}

fn tunnel(random: &mut Random) -> Visit {
    let bursts = (0..random.between(1, 8))
        .map(|_| {
            let count = random.between(1, 4);
            (random.milliseconds(20, 300), (0..count).map(|_| random.size(15)).collect())
        })
        .collect();
    let exit = random.percent(20).then(|| random.one_of(&[Exit::Vanish, Exit::Reset]));
    Visit::Tunnel { bursts, exit }
}

fn requests(random: &mut Random) -> Visit {
    let mut steps = Vec::new();
    for _ in 0..random.between(1, 12) {
        let step = step(random);
        steps.push((random.milliseconds(20, 300), step));
        if step.is_abandoned() {
            break;
        }
    }
    Visit::Requests(steps)
}

fn step(random: &mut Random) -> Step {
    let exit = random.one_of(&[Exit::Vanish, Exit::Reset]);
    let framing = random.one_of(&[Framing::Length, Framing::Chunked]);
    match random.between(1, 100) {
        1..=35 => Step::Get,
        36..=60 => Step::Effect,
        61..=72 => Step::Upload { size: random.size(21), framing },
        73..=84 => Step::Download { size: random.size(21), framing, stall: Duration::ZERO },
        85..=88 => {
            let stall = random.milliseconds(100, 1500);
            Step::Download { size: random.between(1 << 20, 1 << 23), framing, stall }
        }
        89..=91 => Step::SlowEffect { pause: random.milliseconds(5, 100) },
        92..=94 => {
            let size = random.size(20) + 2;
            Step::AbandonedUpload { size, sent: random.between(0, size - 1), exit }
        }
        95..=97 => {
            let size = random.size(22) + 2;
            Step::AbandonedDownload { size, taken: random.between(0, size - 1), exit }
        }
        _ => Step::AbandonedEffect { exit },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn calls(seed: u64, round: u64, who: u64) -> Vec<Call> {
        let mut random = Random::of(seed, round, who);
        (0..500).map(|_| call(&mut random)).collect()
    }

    #[test]
    fn a_seed_is_a_schedule_and_another_seed_is_another() {
        assert_eq!(faults(7, 3, MINUTE), faults(7, 3, MINUTE));
        assert_eq!(calls(7, 3, 1), calls(7, 3, 1));
        for (seed, round, who) in [(8, 3, 1), (7, 4, 1), (7, 3, 2)] {
            assert_ne!(calls(seed, round, who), calls(7, 3, 1));
        }
        assert_ne!(faults(8, 3, MINUTE), faults(7, 3, MINUTE));
        assert_ne!(faults(7, 4, MINUTE), faults(7, 3, MINUTE));
    }

    #[test]
    fn the_numbers_are_the_same_with_every_release() {
        let mut random = Random::of(1, 2, 3);
        let numbers: Vec<u64> = (0..4).map(|_| random.between(0, 999_999)).collect();
        assert_eq!(numbers, [343_647, 739_619, 802_775, 69_144]);
    }

    #[test]
    fn every_fault_comes_and_upstreams_have_one_at_a_time() {
        let mut seen = BTreeSet::new();
        for round in 0..20 {
            let mut free = Duration::ZERO;
            for event in faults(1, round, MINUTE) {
                seen.insert(event.fault);
                assert!(event.at + event.lasts <= MINUTE, "{event:?}");
                if Fault::OF_UPSTREAM.contains(&event.fault) {
                    assert!(event.at >= free, "{event:?} begins before {free:?}");
                    free = event.at + event.lasts + Duration::from_millis(1500);
                }
            }
        }
        assert_eq!(seen, BTreeSet::from(Fault::ALL));
    }

    #[test]
    fn every_step_comes_with_sizes_that_fit() {
        let mut names = BTreeSet::new();
        for call in calls(1, 1, 1) {
            let Visit::Requests(steps) = call.visit else { continue };
            for (at, (_, step)) in steps.iter().enumerate() {
                names.insert(step.name());
                assert!(!step.is_abandoned() || at + 1 == steps.len());
                if let Step::AbandonedUpload { size, sent: part, .. }
                | Step::AbandonedDownload { size, taken: part, .. } = *step
                {
                    assert!(part < size, "{step:?}");
                }
            }
        }
        assert_eq!(names.len(), 9, "{names:?}");
    }
}
