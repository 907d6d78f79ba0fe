//! What came of the runs of a point, and how it compares.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use tlsplice_fixtures::{Error, Result};

use crate::scenario::{Bar, Figure, Layout};
use crate::statistics::{self, Ratio};

/// The name of the runs without any gateway.
pub const DIRECT: &str = "direct";

/// What a column of the comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// This project.
    Ours,
    /// Somebody else's gateway.
    Rival,
    /// No gateway: what there is to be measured against.
    Reference,
}

/// One run, or one slice of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// CPU of the gateway per unit, microseconds.
    pub cpu_us_per_unit: f64,
    /// Context switches of the gateway per unit.
    pub switches_per_unit: f64,
    /// Units per second: shown, never claimed.
    pub units_per_second: f64,
    /// Latency, microseconds.
    pub p50_us: f64,
    /// Latency, microseconds.
    pub p99_us: f64,
    /// Latency, microseconds.
    pub max_us: f64,
    /// Proportional set size per connection, bytes.
    pub pss_bytes: Option<f64>,
    /// CPU of load and origin divided by the time that passed.
    pub load_share: f64,
    /// CPU of the gateway divided by the time that passed.
    pub gateway_share: f64,
    /// Whether load and origin were the bottleneck.
    pub is_void: bool,
}

/// All runs of one gateway at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Who.
    pub gateway: String,
    /// What it is.
    pub role: Role,
    /// In the order of time.
    pub samples: Vec<Sample>,
    /// Why there are none, or fewer.
    pub failure: Option<String>,
    /// System calls of the gateway per unit, from a short run of their own.
    pub syscalls_per_unit: Option<f64>,
    /// Percentiles of the latency of all runs that count, microseconds.
    pub latency: Vec<(f64, f64)>,
    #[serde(skip)]
    histogram: Option<Histogram<u64>>,
}

/// A figure of all gateways against its bar.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is compared.
    pub figure: Figure,
    /// The bar.
    pub bar: Bar,
    /// Medians by name.
    pub medians: BTreeMap<String, f64>,
    /// The best rival.
    pub best: Option<String>,
    /// Ours against it.
    pub ratio: Option<Ratio>,
    /// None without a bar, or when there is nothing to compare.
    pub is_met: Option<bool>,
}

/// What was found at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Stem of the scenario's file.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// The point.
    pub point: String,
    /// Name of a unit.
    pub unit: String,
    /// Cores.
    pub layout: Layout,
    /// By gateway.
    pub cells: Vec<Cell>,
    /// By figure.
    pub rows: Vec<Row>,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// What has to be known about the figures.
    pub note: Option<String>,
}

impl Cell {
    pub(crate) fn new(gateway: String, role: Role) -> Self {
        Self {
            gateway,
            role,
            samples: Vec::new(),
            failure: None,
            syscalls_per_unit: None,
            latency: Vec::new(),
            histogram: None,
        }
    }

    /// Adds a run.
    ///
    /// # Errors
    /// When its latencies are not those of our own load.
    pub(crate) fn add(&mut self, sample: Sample, histogram: Option<Histogram<u64>>) -> Result<()> {
        if let Some(histogram) = histogram.filter(|_| !sample.is_void) {
            match &mut self.histogram {
                Some(sum) => {
                    sum.add(&histogram).map_err(|error| Error::failed(error.to_string()))?
                }
                None => self.histogram = Some(histogram),
            }
        }
        self.samples.push(sample);
        Ok(())
    }

    pub(crate) fn finish(&mut self) {
        const QUANTILES: [f64; 12] =
            [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0];
        if let Some(histogram) = &self.histogram {
            let at = |q| (q, float(histogram.value_at_quantile(q)) / 1e3);
            self.latency = QUANTILES.into_iter().map(at).collect();
        }
    }

    /// The figure in each sample, by round; None in those that do not count. What is added to `direct` is so within the round,
    /// too.
    #[must_use]
    pub fn values(&self, figure: Figure, direct: Option<&Self>) -> Vec<Option<f64>> {
        let added = |round: usize, of: fn(&Sample) -> f64| {
            let base = direct.and_then(|cell| cell.samples.get(round).filter(|base| !base.is_void));
            Some((of(&self.samples[round]) - of(base?)).max(0.0))
        };
        let value = |(round, sample): (usize, &Sample)| match figure {
            _ if sample.is_void => None,
            Figure::CpuPerUnit => Some(sample.cpu_us_per_unit),
            Figure::CpuPerGb => Some(sample.cpu_us_per_unit / 1e6),
            Figure::Memory => sample.pss_bytes,
            Figure::AddedP50 => added(round, |sample| sample.p50_us),
            Figure::AddedP99 => added(round, |sample| sample.p99_us),
            Figure::P99 => Some(sample.p99_us),
            Figure::Scaling => Some(sample.units_per_second),
        };
        self.samples.iter().enumerate().map(value).collect()
    }
}

impl Outcome {
    pub(crate) fn judge(&mut self, bars: &[Bar]) {
        let direct = self.cells.iter().find(|cell| cell.gateway == DIRECT);
        for bar in bars {
            let figure = bar.figure;
            let all: Vec<(&Cell, Vec<Option<f64>>)> = self
                .cells
                .iter()
                .filter(|cell| cell.gateway != DIRECT || figure == Figure::P99)
                .map(|cell| (cell, cell.values(figure, direct)))
                .filter(|(_, values)| values.iter().any(Option::is_some))
                .collect();
            let counted =
                |values: &[Option<f64>]| -> Vec<f64> { values.iter().flatten().copied().collect() };
            let median = |values: &[Option<f64>]| statistics::median(&counted(values));
            let medians = all
                .iter()
                .map(|(cell, values)| (cell.gateway.clone(), median(values)))
                .collect::<BTreeMap<_, _>>();
            let ours =
                all.iter().find(|(cell, _)| cell.role == Role::Ours).map(|(_, values)| values);
            // Each rival's runs are compared with ours of the same round, which met the same noise, but where noise is a
            // matter of single runs; the best is the one that ours is worst against.
            let sign = if figure.is_gain() { -1.0 } else { 1.0 };
            let rivals = all.iter().filter(|(cell, _)| cell.role == Role::Rival);
            let (best, ratio) = rivals
                .filter_map(|(cell, theirs)| {
                    let ours = ours?;
                    let ratio = if figure.is_tail() {
                        statistics::ratio_of_medians(&counted(ours), &counted(theirs))
                    } else {
                        let pairs = ours.iter().zip(theirs).filter_map(|(a, b)| a.zip(*b));
                        statistics::ratio(pairs)
                    };
                    Some((cell.gateway.clone(), ratio?))
                })
                .max_by(|(_, a), (_, b)| (sign * a.value).total_cmp(&(sign * b.value)))
                .unzip();
            let ours = ours.map(|values| median(values));
            let is_met = match (bar.best, bar.absolute, ours) {
                (Some(bound), _, _) => ratio.map(|ratio| ratio.value <= bound),
                (None, Some(bound), Some(ours)) if figure.is_gain() => Some(ours >= bound),
                (None, Some(bound), Some(ours)) => Some(ours <= bound),
                _ => None,
            };
            self.rows.push(Row { figure, bar: *bar, medians, best, ratio, is_met });
        }
    }

    /// For the progress line.
    pub(crate) fn brief(&self) -> String {
        if let Some(why) = &self.skipped {
            return why.clone();
        }
        let Some(row) = self.rows.first() else { return String::new() };
        let scale = if row.figure == Figure::Memory { 1024.0 } else { 1.0 };
        let medians: Vec<String> = row
            .medians
            .iter()
            .map(|(name, value)| format!("{name} {:.2}", value / scale))
            .collect();
        format!(" {} ({})", medians.join(", "), row.figure.label())
    }
}

/// Counts here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str, role: Role, cpu: [f64; 3], void: usize) -> Cell {
        let mut cell = Cell::new(name.to_owned(), role);
        for (round, cpu_us_per_unit) in cpu.into_iter().enumerate() {
            let sample = Sample { cpu_us_per_unit, is_void: round == void, ..Sample::default() };
            cell.add(sample, None).expect("without latencies");
        }
        cell
    }

    #[test]
    fn what_is_added_is_so_within_the_round() {
        let cell = |p50s: [f64; 3], void: usize| {
            let mut cell = Cell::new(String::new(), Role::Reference);
            for (round, p50_us) in p50s.into_iter().enumerate() {
                let sample = Sample { p50_us, is_void: round == void, ..Sample::default() };
                cell.add(sample, None).expect("without latencies");
            }
            cell
        };
        let direct = cell([10.0, 10.0, 30.0], 1);
        let added = cell([15.0, 15.0, 35.0], 3).values(Figure::AddedP50, Some(&direct));
        assert_eq!(added, [Some(5.0), None, Some(5.0)]);
        assert_eq!(cell([1.0; 3], 3).values(Figure::AddedP50, None), [None; 3]);
    }

    #[test]
    fn tails_are_compared_by_their_medians_with_the_rival_of_the_least() {
        let cell = |name: &str, role: Role, p99s: [f64; 3]| {
            let mut cell = Cell::new(name.to_owned(), role);
            for p99_us in p99s {
                cell.add(Sample { p99_us, ..Sample::default() }, None).expect("without latencies");
            }
            cell
        };
        let mut outcome = Outcome {
            scenario: String::new(),
            title: String::new(),
            point: String::new(),
            unit: String::new(),
            layout: Layout::OneCore,
            // One disturbance in ours, and in the others in other rounds.
            cells: vec![
                cell("ours", Role::Ours, [900.0, 90.0, 90.0]),
                cell("good", Role::Rival, [100.0, 100.0, 1_000.0]),
                cell("unlucky", Role::Rival, [80.0, 200.0, 400.0]),
            ],
            rows: Vec::new(),
            skipped: None,
            note: None,
        };
        outcome.judge(&[Bar { figure: Figure::P99, best: Some(1.0), absolute: None }]);
        let row = &outcome.rows[0];
        assert_eq!(row.best.as_deref(), Some("good"));
        assert_eq!(row.ratio.map(|ratio| ratio.value), Some(0.9));
        assert_eq!(row.is_met, Some(true));
    }

    #[test]
    fn gateways_are_compared_within_a_round_with_the_rival_that_is_hardest_to_beat() {
        let bar = Bar { figure: Figure::CpuPerUnit, best: Some(0.6), absolute: None };
        let mut outcome = Outcome {
            scenario: String::new(),
            title: String::new(),
            point: String::new(),
            unit: String::new(),
            layout: Layout::OneCore,
            // The machine is three times as slow in the last round; of each, another round does not count.
            cells: vec![
                cell("ours", Role::Ours, [5.0, 5.0, 15.0], 1),
                cell("good", Role::Rival, [99.0, 10.0, 30.0], 0),
                cell("better", Role::Rival, [8.0, 8.0, 24.0], 3),
            ],
            rows: Vec::new(),
            skipped: None,
            note: None,
        };
        outcome.judge(&[bar]);
        let row = &outcome.rows[0];
        assert_eq!(row.best.as_deref(), Some("better"));
        assert_eq!(row.ratio.map(|ratio| ratio.value), Some(0.625));
        assert_eq!(row.is_met, Some(false));
        outcome.cells.pop();
        outcome.judge(&[bar]);
        assert_eq!(
            outcome.rows[1].ratio.map(|ratio| ratio.value),
            Some(0.5),
            "the last round alone"
        );
    }
}
