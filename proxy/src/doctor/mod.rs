//! `tlsplice doctor`: what stands between this machine and a good gateway, what it costs, and the command that cures it.
//!
//! Probes ask the machine; what their answers mean is decided in pure functions beside them. Every probe has a time limit
//! of a few seconds, and nothing is changed for longer than it takes.

mod admin;
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

use crate::accept::Admission;
use crate::config::{Config, FlushLatency, Severity, Telemetry};

/// How long one step on a connection may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Connections to be measured where no configuration says how many.
const CONNECTIONS: usize = 1000;

/// Looks at the kernel, and with a configuration at everything it names, at the gateway that runs with it, and at a
/// private one between a client and an origin of the doctor's own. `stream` is a public path of the application that
/// streams: it is read past the gateway and through it.
#[must_use]
pub fn examine(path: Option<&Path>, stream: Option<&str>) -> Findings {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let descriptors_max = kernel::descriptors_max(&limits);
    let loaded = path.map(|path| (path, Config::load(path)));
    let config = loaded.as_ref().and_then(|(_, loaded)| Some(&loaded.as_ref().ok()?.config));
    let mut findings = kernel::examine(measured(config, descriptors_max));
    let Some((path, loaded)) = loaded else { return Findings::new(findings) };
    let config = match loaded {
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
    findings.push(kernel::descriptors(descriptors_max, config.limits.connections));
    findings.extend(deployment::certificates(&config));
    findings.extend(deployment::upstreams(&config));
    for listener in &config.listeners {
        let (held, finding) = deployment::port(listener, || live::is_ours(&config, listener));
        findings.push(finding);
        if held {
            findings.extend(live::examine(&config, listener, stream));
        }
    }
    let wanted = config.telemetry.flush_latency;
    findings.extend(config.admin.iter().flat_map(|admin| admin::examine(admin, wanted)));
    findings.extend(trial::examine(path));
    Findings::new(findings)
}

/// How many connections the gateway would have the kernel measure. None for none at all.
fn measured(config: Option<&Config>, descriptors_max: Option<u64>) -> Option<usize> {
    let Some(config) = config else { return Some(CONNECTIONS) };
    let admission = Admission::new(&config.limits, descriptors_max.unwrap_or(u64::MAX));
    let Telemetry { flush_latency, connections } = config.telemetry;
    match flush_latency {
        FlushLatency::Auto => Some(connections.unwrap_or(admission.connections_max())),
        FlushLatency::Off => None,
    }
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
