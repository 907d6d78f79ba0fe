//! Tables for the terminal and for Markdown.

use std::fmt::Write as _;

use super::Report;
use crate::floor::{FLOORS, Floor};
use crate::outcome::{Cell, Outcome, Row};
use crate::scenario::Figure;
use crate::statistics::median;

/// One line for each figure: all gateways, the ratio to the best rival, and the bar. Valid as Markdown.
#[must_use]
pub fn bars(report: &Report) -> String {
    let mut names: Vec<&str> = report.versions.iter().map(|(name, _)| name.as_str()).collect();
    let rows = report.outcomes.iter().flat_map(|outcome| &outcome.rows);
    let is_told = |floor: &&str| rows.clone().any(|row| row.medians.contains_key(*floor));
    names.extend(FLOORS.map(Floor::name).iter().filter(|floor| is_told(floor)));
    let mut lines = vec![
        std::iter::once("What")
            .chain(["Figure"])
            .chain(names.iter().copied())
            .chain(["x best rival (95 %)", "Bar", ""])
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    for outcome in &report.outcomes {
        let what = format!("{}: {}", outcome.scenario, outcome.point);
        if let Some(why) = &outcome.skipped {
            let mut line = vec![what.clone()];
            line.resize(names.len() + 4, String::new());
            line.push(why.clone());
            lines.push(line);
        }
        for row in &outcome.rows {
            let mut line = vec![what.clone(), row.figure.label().to_owned()];
            line.extend(names.iter().map(|name| cell(outcome, row, name)));
            line.extend([ratio(row), bar(row), verdict(row).to_owned()]);
            lines.push(line);
        }
    }
    let columns = lines[0].len();
    let widths: Vec<usize> =
        (0..columns).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (field, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(text, "| {field:width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    for outcome in &report.outcomes {
        if let Some(note) = &outcome.note {
            let _ = writeln!(text, "\n{}: {}: {note}", outcome.scenario, outcome.point);
        }
    }
    text
}

/// What goes with the figures: rates, system calls, context switches and latencies.
#[must_use]
pub fn details(report: &Report) -> String {
    let mut text = String::new();
    for outcome in &report.outcomes {
        for cell in &outcome.cells {
            let of = |value: fn(&crate::outcome::Sample) -> f64| {
                median(&cell.samples.iter().map(value).collect::<Vec<_>>())
            };
            let syscalls =
                cell.syscalls_per_unit.map_or("n/a".to_owned(), |count| format!("{count:.2}"));
            let what = format!("{}: {}", outcome.scenario, outcome.point);
            let rate = of(|sample| sample.units_per_second);
            let rate = if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") };
            let void = cell.samples.iter().filter(|sample| sample.is_void).count();
            let _ = write!(
                text,
                "{what:<58} {:<13} {rate:>9}/s  syscalls {syscalls:>7}  switches {:>6.3}  p50 {:>8.1} us  \
                 p99 {:>9.1} us  load {:>3.0} %",
                cell.gateway,
                of(|sample| sample.switches_per_unit),
                of(|sample| sample.p50_us),
                of(|sample| sample.p99_us),
                100.0 * of(|sample| sample.load_share),
            );
            if void > 0 {
                let _ = write!(text, "  void {void} of {}", cell.samples.len());
            }
            if let Some(failure) = &cell.failure {
                let _ = write!(text, "  FAILED: {failure}");
            }
            text.push('\n');
        }
    }
    text
}

/// Which path was cheapest for what.
#[must_use]
pub fn advice(report: &Report) -> String {
    let mut text = String::from("Cheapest path on this machine:\n");
    for outcome in &report.outcomes {
        let Some(row) = outcome.rows.first() else { continue };
        let best = row.medians.iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
        let Some((name, value)) = best else { continue };
        let offload = if name.starts_with("kernel") { "always" } else { "never" };
        let _ = writeln!(
            text,
            "  {:<55} {name:<14} {} {} (offload = {offload:?})",
            format!("{}: {}", outcome.scenario, outcome.point),
            number(row.figure, *value),
            row.figure.label(),
        );
    }
    text
}

fn cell(outcome: &Outcome, row: &Row, name: &str) -> String {
    if let Some(value) = row.medians.get(name) {
        return number(row.figure, *value);
    }
    let found: Option<&Cell> = outcome.cells.iter().find(|cell| cell.gateway == name);
    match found {
        Some(cell) if cell.failure.is_some() => "failed".to_owned(),
        Some(_) => "void".to_owned(),
        None => "-".to_owned(),
    }
}

/// A figure with as many digits as it deserves.
#[must_use]
pub(super) fn number(figure: Figure, value: f64) -> String {
    let value = if figure == Figure::Memory { value / 1024.0 } else { value };
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn ratio(row: &Row) -> String {
    let Some(ratio) = row.ratio else { return "-".to_owned() };
    format!("{:.2} ({:.2}-{:.2})", ratio.value, ratio.low, ratio.high)
}

fn bar(row: &Row) -> String {
    match (row.bar.best, row.bar.absolute) {
        (Some(bound), _) => format!("<= {bound:.2}x"),
        (None, Some(bound)) if row.figure.is_gain() => format!(">= {bound}"),
        (None, Some(bound)) => format!("<= {}", number(row.figure, bound)),
        (None, None) => String::new(),
    }
}

/// A verdict is unsure when the bar lies within the interval.
fn verdict(row: &Row) -> &'static str {
    let is_unsure = row
        .bar
        .best
        .zip(row.ratio)
        .is_some_and(|(bound, ratio)| ratio.low <= bound && bound < ratio.high);
    match (row.is_met, row.bar.best.or(row.bar.absolute)) {
        (Some(true), _) if is_unsure => "met (unsure)",
        (Some(true), _) => "met",
        (Some(false), _) if is_unsure => "not met (unsure)",
        (Some(false), _) => "NOT MET",
        (None, Some(_)) => "void",
        (None, None) => "",
    }
}
