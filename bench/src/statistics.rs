//! Medians, and how sure one can be of a ratio. Pure.

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

/// How many times as much, with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Ours divided by theirs.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The median of what ours is divided by theirs in each pair, of which both met the same noise. Its interval is that of a
/// percentile bootstrap with a fixed seed: the same runs give the same. None of nothing.
#[must_use]
pub fn ratio(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Ratio> {
    let quotients: Vec<f64> = pairs
        .into_iter()
        .filter(|(_, theirs)| *theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    if quotients.is_empty() {
        return None;
    }
    bootstrap(median(&quotients), |random| median(&random.resample(&quotients)))
}

/// The median of ours divided by that of theirs, with an interval as [`ratio`] has: for what pairs do not make alike. Of two
/// runs of which a single disturbance met one, the quotient says only which. None without runs of both.
#[must_use]
pub fn ratio_of_medians(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    if ours.is_empty() || median(theirs) <= 0.0 {
        return None;
    }
    bootstrap(median(ours) / median(theirs), |random| {
        median(&random.resample(ours)) / median(&random.resample(theirs))
    })
}

/// `value` with the middle 95 % of what `resampled` returns.
fn bootstrap(value: f64, mut resampled: impl FnMut(&mut Random) -> f64) -> Option<Ratio> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut values: Vec<f64> = (0..RESAMPLES).map(|_| resampled(&mut random)).collect();
    values.sort_by(f64::total_cmp);
    let low = *values.get(values.len() * 25 / 1000)?;
    let high = *values.get((values.len() * 975 / 1000).min(values.len() - 1))?;
    Some(Ratio { value, low, high })
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
    fn noise_that_both_meet_is_no_noise() {
        let noise = [1.0, 3.0, 1.5, 2.0, 1.1];
        let both = ratio(noise.map(|noise| (5.0 * noise, 10.0 * noise))).expect("a ratio");
        assert_eq!((both.value, both.low, both.high), (0.5, 0.5, 0.5));
        let ours = ratio(noise.map(|noise| (5.0 * noise, 10.0))).expect("a ratio");
        assert!((ours.value - 0.75).abs() < 1e-9);
        assert!(ours.low < ours.value && ours.value < ours.high);
    }

    #[test]
    fn disturbances_of_single_runs_leave_medians_alone() {
        let ours = [1.0, 50.0, 1.0, 1.0, 50.0];
        let theirs = [70.0, 2.0, 2.0, 70.0, 2.0];
        let medians = ratio_of_medians(&ours, &theirs).expect("a ratio");
        assert_eq!(medians.value, 0.5);
        assert!(medians.low < 0.5 && medians.high > 1.0, "so few runs prove nothing: {medians:?}");
        // Fewer of theirs, as when some do not count.
        assert_eq!(ratio_of_medians(&ours, &[2.0]).map(|ratio| ratio.value), Some(0.5));
    }

    #[test]
    fn nothing_has_no_ratio() {
        assert_eq!(ratio([]), None);
        assert_eq!(ratio([(1.0, 0.0)]), None);
        assert_eq!(ratio_of_medians(&[], &[1.0]), None);
        assert_eq!(ratio_of_medians(&[1.0], &[]), None);
        assert_eq!(ratio_of_medians(&[1.0], &[0.0]), None);
    }
}
