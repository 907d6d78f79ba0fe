//! What was found, for people and for programs.

mod chart;
mod html;
mod table;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use tlsplice_fixtures::{Error, Result};

use crate::network::congestion_control;
use crate::outcome::Outcome;

pub use chart::summary as summary_chart;
pub use html::page;
pub use table::{advice, bars, details};

/// Everything about one run of the benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Day, UTC.
    pub date: String,
    /// Processor, cores, kernel.
    pub machine: String,
    /// Programs by name.
    pub versions: Vec<(String, String)>,
    /// Rivals that could not be had, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Runs of each gateway and point.
    pub runs: usize,
    /// Seconds that counted in each.
    pub window_seconds: f64,
    /// What was found.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Writes `report.json`, `report.html`, `summary.md` and `summary.svg`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        fs::create_dir_all(directory)
            .map_err(Error::io(format!("cannot make {}", directory.display())))?;
        for (name, text) in [
            ("report.json", json),
            ("report.html", page(self)),
            ("summary.md", format!("{}\n{}", self.provenance(), bars(self))),
            ("summary.svg", summary_chart(self)),
        ] {
            let path = directory.join(name);
            fs::write(&path, text)
                .map_err(Error::io(format!("cannot write {}", path.display())))?;
        }
        Ok(())
    }
}

impl Report {
    /// When, where, with what and how: what a table is worth nothing without.
    #[must_use]
    pub fn provenance(&self) -> String {
        // Writing to a string cannot fail.
        let mut text = format!(
            "{}, {}; medians of at most {} interleaved runs of {} s; where there is a bar of up to twice as many, elsewhere of shorter ones.\n",
            self.date, self.machine, self.runs, self.window_seconds
        );
        for (name, version) in &self.versions {
            let _ = writeln!(text, "- {name}: {version}");
        }
        for (name, why) in &self.left_out {
            let _ = writeln!(text, "- {name}: left out: {}", why.trim());
        }
        text
    }
}

/// Processor, cores, kernel and its congestion control, in one line.
#[must_use]
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let is_virtual = cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor"));
    let kind = if is_virtual { "virtual machine, " } else { "" };
    // One that paces sends a part of a transfer from timers, on the account of whoever runs just then.
    let congestion = congestion_control().unwrap_or_default();
    let kernel = kernel.trim();
    format!("{kind}{cores} x {model}, Linux {kernel}, TCP {congestion}, loopback")
}

/// Today, UTC.
#[must_use]
pub fn today() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d"]).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
