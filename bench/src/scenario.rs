//! Scenarios are files in `bench/scenarios`: what is asked, how often, and the bar that was set.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use tlsplice_fixtures::{Error, Result};

use crate::external::Generator;
use crate::floor::Floor;
use crate::load::Group;

/// The files, in the order of the report.
const FILES: &[(&str, &str)] = &[
    ("get", include_str!("../scenarios/get.toml")),
    ("echo", include_str!("../scenarios/echo.toml")),
    ("paced", include_str!("../scenarios/paced.toml")),
    ("idle", include_str!("../scenarios/idle.toml")),
    ("flush", include_str!("../scenarios/flush.toml")),
    ("mixed", include_str!("../scenarios/mixed.toml")),
    ("bulk", include_str!("../scenarios/bulk.toml")),
    ("handshake", include_str!("../scenarios/handshake.toml")),
    ("scaling", include_str!("../scenarios/scaling.toml")),
    ("tomcat", include_str!("../scenarios/tomcat.toml")),
];

/// One question.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The stem of its file.
    #[serde(skip)]
    pub name: String,
    /// As a heading.
    pub title: String,
    /// Where everything runs.
    pub layout: Layout,
    /// What a unit is called.
    pub unit: String,
    /// Its measurements.
    #[serde(rename = "point")]
    pub points: Vec<Point>,
}

/// Which cores are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Gateway, load and origin share one core: pure cost, without waking other cores.
    OneCore,
    /// The gateway has one core, load and origin another.
    TwoCores,
    /// One worker on one core against two on two; load and origin have two more, where there are so many.
    Scaling,
}

/// One measurement of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// What sets it apart.
    pub name: String,
    /// Part of `--quick`.
    #[serde(default)]
    pub quick: bool,
    /// Not part of any other run, where another point says more.
    #[serde(default)]
    pub superseded: bool,
    /// So few units in a second that a usual window would count too few.
    #[serde(default)]
    pub slow: bool,
    /// Needs a Tomcat.
    #[serde(default)]
    pub tomcat: bool,
    /// Other cores than the scenario's.
    pub layout: Option<Layout>,
    /// Who loads, if not we.
    pub generator: Option<Generator>,
    /// Told beside: what relays that look at nothing cost.
    #[serde(default)]
    pub floors: Vec<Floor>,
    /// Figures with a bar; the first one is what is shown.
    #[serde(rename = "bar")]
    pub bars: Vec<Bar>,
    /// The first group is what is measured, the others disturb it.
    #[serde(rename = "group")]
    pub groups: Vec<Group>,
}

impl Point {
    /// Whether it is part of a run that is quick, or is not.
    #[must_use]
    pub fn is_in(&self, is_quick: bool) -> bool {
        if is_quick { self.quick } else { !self.superseded }
    }

    /// The cores that it uses as a part of `scenario`.
    #[must_use]
    pub fn layout(&self, scenario: &Scenario) -> Layout {
        self.layout.unwrap_or(scenario.layout)
    }

    /// Whether there is something that it must not exceed.
    #[must_use]
    pub fn has_bar(&self) -> bool {
        self.bars.iter().any(|bar| bar.best.is_some() || bar.absolute.is_some())
    }

    /// Whether one of these figures is compared.
    #[must_use]
    pub fn tells(&self, figures: &[Figure]) -> bool {
        self.bars.iter().any(|bar| figures.contains(&bar.figure))
    }

    /// Whether the same load is also run without any gateway.
    #[must_use]
    pub fn is_compared_to_direct(&self) -> bool {
        self.tells(&[Figure::AddedP50, Figure::AddedP99, Figure::P99])
    }
}

/// A figure and what it must not exceed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// What is compared; less is better, except for throughput.
    pub figure: Figure,
    /// Times the best rival.
    pub best: Option<f64>,
    /// An absolute value, in the unit of the figure.
    pub absolute: Option<f64>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Microseconds of CPU per unit.
    CpuPerUnit,
    /// Seconds of CPU per GB.
    CpuPerGb,
    /// Bytes of proportional set size per connection.
    Memory,
    /// Median latency above that without any gateway, microseconds.
    AddedP50,
    /// The same of the 99th percentile, microseconds.
    AddedP99,
    /// 99th percentile of the latency, microseconds.
    P99,
    /// Units per second with two workers divided by those with one.
    Scaling,
}

impl Figure {
    /// With its unit.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::CpuPerUnit => "CPU us",
            Self::CpuPerGb => "CPU s/GB",
            Self::Memory => "PSS KB",
            Self::AddedP50 => "added p50 us",
            Self::AddedP99 => "added p99 us",
            Self::P99 => "p99 us",
            Self::Scaling => "x of one worker",
        }
    }

    /// Whether more is better.
    #[must_use]
    pub fn is_gain(self) -> bool {
        self == Self::Scaling
    }

    /// Whether one disturbance makes what a run shows, which the other gateways of its round were spared.
    #[must_use]
    pub fn is_tail(self) -> bool {
        matches!(self, Self::AddedP99 | Self::P99)
    }
}

/// All scenarios, or the named one; of these the points that have `point` in their names.
///
/// # Errors
/// When a file is malformed or there is nothing of that name.
pub fn load(only: Option<&str>, point: Option<&str>) -> Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for (name, text) in FILES {
        if only.is_some_and(|only| only != *name) {
            continue;
        }
        let mut scenario: Scenario = toml::from_str(text)
            .map_err(|error| Error::failed(format!("bench/scenarios/{name}.toml: {error}")))?;
        (*name).clone_into(&mut scenario.name);
        scenario.points.retain(|found| point.is_none_or(|point| found.name.contains(point)));
        if !scenario.points.is_empty() {
            found.push(scenario);
        }
    }
    if found.is_empty() {
        let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        let (only, point) = (only.unwrap_or("any"), point.unwrap_or_default());
        return Err(Error::failed(format!(
            "no scenario {only:?} with a point {point:?}; there are: {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

/// For `--list`.
#[must_use]
pub fn list(scenarios: &[Scenario]) -> String {
    let mut text = String::new();
    for scenario in scenarios {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<10} {}", scenario.name, scenario.title);
        for point in &scenario.points {
            let quick = if point.quick { " (quick)" } else { "" };
            let _ = writeln!(text, "           - {}{quick}", point.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_well_formed_and_every_point_has_a_figure_and_a_load() {
        let all = load(None, None).expect("they are well-formed");
        assert_eq!(all.len(), FILES.len());
        for point in all.iter().flat_map(|scenario| &scenario.points) {
            assert!(!point.bars.is_empty() && !point.groups.is_empty(), "{}", point.name);
        }
        // What is superseded is measured at times.
        assert!(
            all.iter()
                .flat_map(|scenario| &scenario.points)
                .all(|point| !point.superseded || point.quick)
        );
        // One point costs seconds; a short run is a matter of few points.
        assert!(
            all.iter().flat_map(|scenario| &scenario.points).filter(|point| point.quick).count()
                <= 14
        );
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = load(Some("nonsense"), None).expect_err("no such file").to_string();
        assert!(error.contains("get, echo"), "{error}");
        assert!(load(Some("get"), Some("nonsense")).is_err());
    }

    #[test]
    fn points_are_chosen_by_a_part_of_their_name() {
        let few = load(Some("get"), Some("plain, 64")).expect("there are some");
        assert!(few[0].points.iter().all(|point| point.name.contains("plain, 64")));
        assert!(!few[0].points.is_empty() && list(&few).contains("plain, 64"));
    }
}
