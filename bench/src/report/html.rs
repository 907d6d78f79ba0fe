//! The report as one file: no script, no font, nothing from elsewhere.

use std::fmt::Write as _;

use super::{Report, chart, table};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left}\
.bad{color:#a4161a;font-weight:600}.good{color:#0b6e4f}pre{font-size:11px;overflow-x:auto}svg{max-width:100%;height:auto}";

/// The whole page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>tlsplice benchmark</title>\
         <style>{STYLE}</style></head><body><h1>tlsplice benchmark</h1><p>{}, {}. Up to {} interleaved runs of {} s, twice as many where there is a bar, and shorter ones elsewhere; \
         medians, with the ratio to the best rival and its 95 % bootstrap interval: the median of what a round shows, and of \
         99th percentiles that of the medians. Less is better unless a bar says \
         otherwise.</p><ul>",
        escape(&report.date),
        escape(&report.machine),
        report.runs,
        report.window_seconds,
    );
    for (name, version) in &report.versions {
        // Writing to a string cannot fail.
        let _ = write!(html, "<li>{}: {}</li>", escape(name), escape(version));
    }
    html.push_str("</ul><h2>Figures and bars</h2><table>");
    for (index, line) in table::bars(report).lines().enumerate() {
        if index == 1 {
            continue;
        }
        let tag = if index == 0 { "th" } else { "td" };
        html.push_str("<tr>");
        for field in line.trim_matches('|').split('|') {
            let field = field.trim();
            let class = match field {
                "met" => " class=\"good\"",
                "NOT MET" => " class=\"bad\"",
                _ => "",
            };
            let _ = write!(html, "<{tag}{class}>{}</{tag}>", escape(field));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table><h2>At a glance</h2>");
    html.push_str(&chart::summary(report));
    html.push_str("<h2>Latency</h2>");
    for outcome in &report.outcomes {
        if let Some(svg) = chart::latency(outcome) {
            let _ = write!(
                html,
                "<h3>{}: {} (per {})</h3>{svg}",
                escape(&outcome.title),
                escape(&outcome.point),
                escape(&outcome.unit)
            );
        }
    }
    let _ = write!(
        html,
        "<h2>Details</h2><p>Rates depend on the machine's other work and are not claims.</p><pre>{}</pre></body></html>",
        escape(&table::details(report))
    );
    html
}

/// For text and attribute values.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
