//! Delays counted in buckets, and what can be read from them. Pure.

use std::time::Duration;

use tlsplice_ebpf_common::{BUCKETS, Waits};

/// Delays of one direction of a connection, or of many added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Delays counted.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// The longest.
    pub max: Duration,
    /// Packets that arrived while another one waited: their delays are not in here.
    pub coalesced: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            count: 0,
            sum: Duration::ZERO,
            max: Duration::ZERO,
            coalesced: 0,
            buckets: [0; BUCKETS],
        }
    }
}

impl From<&Waits> for Latency {
    fn from(waits: &Waits) -> Self {
        Self {
            count: waits.count,
            sum: Duration::from_nanos(waits.sum_ns),
            max: Duration::from_nanos(waits.max_ns),
            coalesced: waits.coalesced.into(),
            buckets: waits.buckets.map(u64::from),
        }
    }
}

impl Latency {
    /// The median.
    #[must_use]
    pub fn p50(&self) -> Option<Duration> {
        self.quantile(0.5)
    }

    /// What 99 of 100 do not exceed.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        self.quantile(0.99)
    }

    /// What the share `q`, 0 to 1, does not exceed, to an eighth: the middle of its bucket, and never above the longest.
    /// None without a delay.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total: u64 = self.buckets.iter().sum();
        if total == 0 {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count; beyond 2^52 delays the last digits do not matter"
        )]
        let rank = ((total as f64 * q.clamp(0.0, 1.0)).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(middle(index).min(self.max));
            }
        }
        Some(self.max)
    }

    /// The arithmetic mean. None without a delay.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.count).unwrap_or(u32::MAX);
        self.sum.checked_div(count)
    }

    /// Adds the delays of another connection.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
        self.coalesced += other.coalesced;
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }

    /// Buckets from the shortest on: the bound that their delays stay below, and how many there are.
    pub fn histogram(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(index, &count)| (lower(index + 1), count))
    }
}

/// The shortest delay of a bucket.
fn lower(index: usize) -> Duration {
    let index = index as u64;
    let us = match index {
        0..4 => index,
        _ => {
            let (octave, quarter) = (index / 4, index % 4);
            (4 + quarter).checked_shl(u32::try_from(octave - 1).unwrap_or(u32::MAX)).unwrap_or(0)
        }
    };
    Duration::from_micros(us)
}

fn middle(index: usize) -> Duration {
    (lower(index) + lower(index + 1)) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tlsplice_ebpf_common::bucket;

    use super::*;

    fn of(delays_us: &[u64]) -> Latency {
        let mut waits = Waits::EMPTY;
        for &us in delays_us {
            waits.count += 1;
            waits.sum_ns += us * 1000;
            waits.max_ns = waits.max_ns.max(us * 1000);
            waits.buckets[bucket(us) as usize] += 1;
        }
        Latency::from(&waits)
    }

    #[test]
    fn nothing_measured_has_no_figures() {
        let latency = Latency::default();
        assert_eq!((latency.p50(), latency.p99(), latency.mean()), (None, None, None));
    }

    #[test]
    fn figures_of_a_few_delays() {
        let latency = of(&[10, 10, 10, 5000]);
        assert_eq!(latency.p50(), Some(Duration::from_micros(11)));
        assert_eq!(latency.max, Duration::from_millis(5));
        assert_eq!(latency.quantile(1.0).unwrap().as_micros(), 4608, "the middle of 4096 to 5120");
        assert_eq!(latency.mean(), Some(Duration::from_nanos(1_257_500)));
    }

    #[test]
    fn connections_add_up() {
        let mut sum = of(&[1, 2]);
        sum.add(&of(&[1000]));
        assert_eq!((sum.count, sum.max), (3, Duration::from_millis(1)));
        assert_eq!(sum.histogram().map(|(_, count)| count).sum::<u64>(), 3);
    }

    proptest! {
        #[test]
        fn a_delay_lies_in_its_bucket(us in 0_u64..u64::from(u32::MAX)) {
            let index = bucket(us) as usize;
            prop_assert!(index < BUCKETS);
            prop_assert!(lower(index) <= Duration::from_micros(us));
            prop_assert!(Duration::from_micros(us) < lower(index + 1));
            let width = lower(index + 1) - lower(index);
            prop_assert!(index < 4 || width * 4 <= lower(index), "known to a quarter");
        }

        #[test]
        fn quantiles_rise_and_stay_below_the_longest(
            delays in proptest::collection::vec(0_u64..10_000_000, 1..50),
        ) {
            let latency = of(&delays);
            let (p50, p99) = (latency.p50().unwrap(), latency.p99().unwrap());
            prop_assert!(p50 <= p99 && p99 <= latency.max);
        }
    }
}
