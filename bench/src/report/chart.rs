//! Charts as SVG: bars side by side, and latency over percentiles. Nothing is fetched, nothing runs.

use std::fmt::Write as _;

use super::Report;
use super::table::number;
use crate::outcome::{Outcome, Row};

/// Ours first; the others keep theirs throughout.
const COLOURS: [&str; 5] = ["#0b6e4f", "#8d99ae", "#b5838d", "#c9ada7", "#6d6875"];
const LINE: usize = 18;
const LABEL: usize = 330;
const BAR: usize = 360;
const WIDTH: usize = LABEL + BAR + 90;

/// The figures of all rows, each relative to its largest.
#[must_use]
pub fn summary(report: &Report) -> String {
    let rows: Vec<(&Outcome, &Row)> = report
        .outcomes
        .iter()
        .flat_map(|outcome| outcome.rows.iter().map(move |row| (outcome, row)))
        .filter(|(_, row)| row.bar.best.or(row.bar.absolute).is_some())
        .collect();
    let names: Vec<&str> = report.versions.iter().map(|(name, _)| name.as_str()).collect();
    let group = names.len() * LINE / 2 + 10;
    let height = 40 + rows.len() * group;
    let mut svg = open(WIDTH, height);
    for (index, name) in names.iter().enumerate() {
        let x = 10 + index * 140;
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(svg, r#"<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/>"#);
        text(&mut svg, x + 18, 20, name);
    }
    for (at, (outcome, row)) in rows.iter().enumerate() {
        let top = 34 + at * group;
        text(
            &mut svg,
            10,
            top + group / 2,
            &format!("{}: {}, {}", outcome.scenario, outcome.point, row.figure.label()),
        );
        let largest = row.medians.values().fold(f64::MIN_POSITIVE, |a, b| a.max(*b));
        for (index, name) in names.iter().enumerate() {
            let Some(value) = row.medians.get(*name) else { continue };
            let y = top + index * LINE / 2;
            let width = (value / largest) * 360.0;
            let colour = COLOURS[index % COLOURS.len()];
            let _ = write!(
                svg,
                r#"<rect x="{LABEL}" y="{y}" width="{width:.1}" height="8" fill="{colour}"/>"#
            );
            let _ = write!(
                svg,
                r##"<text x="{:.0}" y="{}" font-size="9" fill="#444">{}</text>"##,
                330.0 + width + 4.0,
                y + 8,
                number(row.figure, *value)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Latency over percentiles, both axes logarithmic, of all gateways at one point.
pub(super) fn latency(outcome: &Outcome) -> Option<String> {
    let cells: Vec<_> = outcome.cells.iter().filter(|cell| cell.latency.len() > 1).collect();
    let values = cells.iter().flat_map(|cell| cell.latency.iter().map(|(_, value)| value.max(1.0)));
    let (low, high) = values.fold((f64::MAX, 1.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    if cells.is_empty() || high <= low {
        return None;
    }
    let mut svg = open(620, 240);
    // 0, 90, 99, 99.9 and 99.99 % are equally far apart.
    let x = |q: f64| 60.0 + -(1.0 - q).max(1e-4).log10() / 4.0 * 420.0;
    let y = |value: f64| 200.0 - (value.max(1.0) / low).ln() / (high / low).ln() * 170.0;
    for (q, name) in [(0.0, "0 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (1.0, "max")]
    {
        let _ = write!(
            svg,
            r##"<line x1="{0:.1}" y1="30" x2="{0:.1}" y2="200" stroke="#ddd"/><text x="{0:.1}" y="216" font-size="10" text-anchor="middle">{name}</text>"##,
            x(q)
        );
    }
    for value in [low, (low * high).sqrt(), high] {
        let _ = write!(
            svg,
            r#"<text x="54" y="{:.1}" font-size="10" text-anchor="end">{value:.0} us</text>"#,
            y(value) + 3.0
        );
    }
    for (index, cell) in cells.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> = cell
            .latency
            .iter()
            .map(|(q, value)| format!("{:.1},{:.1}", x(*q), y(*value)))
            .collect();
        let _ = write!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            points.join(" ")
        );
        let top = 34 + index * LINE;
        let _ = write!(svg, r#"<rect x="500" y="{top}" width="12" height="12" fill="{colour}"/>"#);
        text(&mut svg, 518, top + 10, &cell.gateway);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn open(width: usize, height: usize) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>"##
    )
}

fn text(svg: &mut String, x: usize, y: usize, content: &str) {
    let _ = write!(
        svg,
        r#"<text x="{x}" y="{y}" font-size="11">{}</text>"#,
        super::html::escape(content)
    );
}
