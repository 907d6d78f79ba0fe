//! `tlsplice doctor`: what stands between this machine and a good gateway, what it costs, and the command that cures it.
//!
//! Probes ask the machine; what their answers mean is decided in pure functions beside them. Every probe has a time limit
//! of a few seconds, and nothing is changed.

mod client;
mod deployment;
mod finding;
mod kernel;
mod live;
mod stream;
mod trial;

use std::fs;
use std::path::Path;
use std::time::Duration;

pub use finding::{Finding, Findings, Verdict};

use crate::config::{Config, Severity};

/// How long one step on a connection may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Looks at the kernel, and with a configuration at everything it names, at the gateway that runs with it, and at a
/// private one between a client and an origin of the doctor's own. `stream` is a public path of the application that
/// streams: it is read past the gateway and through it.
#[must_use]
pub fn examine(path: Option<&Path>, stream: Option<&str>) -> Findings {
    let mut findings = kernel::examine();
    let Some(path) = path else { return Findings::new(findings) };
    let config = match Config::load(path) {
        Ok(loaded) => {
            findings.push(Finding::ok("config", format!("{} is good", path.display())));
            findings.extend(problems(&loaded.warnings));
            loaded.config
        }
        Err(report) => {
            findings.extend(problems(&report));
            return Findings::new(findings);
        }
    };
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    findings.push(kernel::descriptors(kernel::descriptors_max(&limits), config.limits.connections));
    findings.extend(deployment::certificates(&config));
    findings.extend(deployment::upstreams(&config));
    for listener in &config.listeners {
        let (held, finding) = deployment::port(listener, || live::is_ours(&config, listener));
        findings.push(finding);
        if held {
            findings.extend(live::examine(&config, listener, stream));
        }
    }
    findings.extend(trial::examine(path));
    Findings::new(findings)
}

/// What the configuration itself says.
fn problems(report: &crate::config::Report) -> Vec<Finding> {
    let finding = |problem: &crate::config::Problem| {
        let fact = match problem.line {
            0 => problem.message.clone(),
            line => format!("{}:{line}: {}", report.file().display(), problem.message),
        };
        let cure = match (&problem.hint, problem.expected.as_str()) {
            (Some(hint), _) => hint.clone(),
            (None, "") => format!("tlsplice check --config {}", report.file().display()),
            (None, expected) => format!("write {expected}"),
        };
        match problem.severity {
            Severity::Error => Finding::fail("config", fact, "the gateway does not start", cure),
            Severity::Warning => Finding::warn("config", fact, "it serves, for now", cure),
        }
    };
    report.problems().iter().map(finding).collect()
}
