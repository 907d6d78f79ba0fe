//! Medians, and how sure one can be of a ratio of medians. Pure.

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;

/// The median; zero of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A ratio of medians with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Ours divided by theirs.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The ratio of the medians, by percentile bootstrap with a fixed seed: the same runs give the same interval.
#[must_use]
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let base = median(theirs);
    if ours.is_empty() || base <= 0.0 {
        return None;
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let below = median(&random.resample(theirs));
            (below > 0.0).then(|| median(&random.resample(ours)) / below)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let low = *ratios.get(ratios.len() * 25 / 1000)?;
    let high = *ratios.get((ratios.len() * 975 / 1000).min(ratios.len() - 1))?;
    Some(Ratio { value: median(ours) / base, low, high })
}

/// Xorshift: enough to choose samples.
struct Random(u64);

impl Random {
    fn resample(&mut self, values: &[f64]) -> Vec<f64> {
        (0..values.len()).map(|_| values[self.below(values.len())]).collect()
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 33) % bound as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_interval_holds_the_ratio_and_widens_with_noise() {
        let quiet =
            ratio(&[5.0, 5.1, 4.9, 5.0, 5.0], &[10.0, 10.1, 9.9, 10.0, 10.0]).expect("a ratio");
        assert!((quiet.value - 0.5).abs() < 1e-9);
        assert!(quiet.low <= quiet.value && quiet.value <= quiet.high);
        let noisy =
            ratio(&[3.0, 5.1, 8.0, 5.0, 5.0], &[7.0, 10.1, 15.0, 10.0, 10.0]).expect("a ratio");
        assert!(noisy.high - noisy.low > quiet.high - quiet.low);
    }

    #[test]
    fn nothing_has_no_ratio() {
        assert_eq!(ratio(&[], &[1.0]), None);
        assert_eq!(ratio(&[1.0], &[]), None);
    }
}
