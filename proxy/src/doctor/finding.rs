//! What was found, as values; and how they look.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The gateway serves, with less than it could.
    Warn,
    /// It does not serve, or not well enough.
    Fail,
}

/// One line of the doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two; stable, for scripts.
    pub topic: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What is the case.
    pub fact: String,
    /// What that costs; None when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// The command, or the change, that cures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(topic: &'static str, fact: impl Into<String>) -> Self {
        Self { topic, verdict: Verdict::Ok, fact: fact.into(), cost: None, cure: None }
    }

    /// Something is missing.
    pub(super) fn warn(
        topic: &'static str,
        fact: impl Into<String>,
        cost: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        let (cost, cure) = (Some(cost.into()), Some(cure.into()));
        Self { topic, verdict: Verdict::Warn, fact: fact.into(), cost, cure }
    }

    /// Something stands in the way.
    pub(super) fn fail(
        topic: &'static str,
        fact: impl Into<String>,
        cost: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(topic, fact, cost, cure) }
    }
}

/// All findings, in the order in which they were made.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// The worst of them.
    pub verdict: Verdict,
    /// All of them.
    pub findings: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        let verdict = findings.iter().map(|finding| finding.verdict).max();
        Self { verdict: verdict.unwrap_or(Verdict::Ok), findings }
    }

    /// One line for each, with cost and cure below those that are not well.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for Finding { topic, verdict, fact, cost, cure } in &self.findings {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{verdict:<5} {topic:<12} {fact}");
            for (name, value) in [("costs", cost), ("do", cure)] {
                if let Some(value) = value {
                    let _ = writeln!(text, "{:18} {name}: {value}", "");
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_every_line_tells_cost_and_cure() {
        let all = Findings::new(vec![
            Finding::ok("kernel", "Linux 6.12"),
            Finding::fail("port", "held by nginx", "nothing is served", "stop nginx"),
            Finding::warn("bpf", "no CAP_BPF", "no latency", "setcap"),
        ]);
        assert_eq!(all.verdict, Verdict::Fail);
        assert_eq!(
            all.render(),
            "ok    kernel       Linux 6.12\n\
             FAIL  port         held by nginx\n\
             \u{20}                  costs: nothing is served\n\
             \u{20}                  do: stop nginx\n\
             warn  bpf          no CAP_BPF\n\
             \u{20}                  costs: no latency\n\
             \u{20}                  do: setcap\n"
        );
        assert_eq!(Findings::new(Vec::new()).verdict, Verdict::Ok);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(
            (&json["verdict"], &json["findings"][1]["cure"]),
            (&"fail".into(), &"stop nginx".into())
        );
    }
}
