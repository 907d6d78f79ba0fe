//! What clients did, what came of it, and whether that may be.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::schedule::{Fault, Side};
use super::upstream::{Effect, id_in};

/// What came of an operation, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything that was expected, byte for byte.
    Done,
    /// The gateway said, with this status, that it could not be had.
    Refused(u16),
    /// It was cut off, and the client could see that.
    Broken(String),
    /// Nothing came any more, for longer than anything takes.
    Silent,
    /// The client left.
    Abandoned,
    /// What must never be: other bytes, fewer that looked like all, or an answer of another request.
    Wrong {
        /// What it was.
        what: String,
        /// Bytes that are missing or are not those that were sent.
        lost: u64,
    },
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    /// Its number, which is in its target; those without a target of their own have none.
    pub(super) id: Option<u64>,
    /// What it is called in the report.
    pub(super) name: &'static str,
    /// Which upstream it went to.
    pub(super) side: Side,
    /// Whether the upstream counts it.
    pub(super) has_effect: bool,
    /// Status that belongs to [`Outcome::Done`].
    pub(super) status: u16,
    /// When it began.
    pub(super) begun: Instant,
    /// When it was over.
    pub(super) ended: Instant,
    /// What came of it.
    pub(super) outcome: Outcome,
}

/// A fault, when it was there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// What it was.
    pub(super) fault: Fault,
    /// From when on.
    pub(super) begun: Instant,
    /// Until when.
    pub(super) ended: Instant,
}

impl Window {
    fn touches(&self, operation: &Operation, grace: Duration) -> bool {
        operation.begun <= self.ended + grace && operation.ended >= self.begun
    }
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    /// With everything that was expected.
    pub(super) done: u64,
    /// Ended by the client.
    pub(super) abandoned: u64,
    /// Refused or visibly cut off by a fault that may do that.
    pub(super) broken: u64,
    /// The same while the machine itself stood still.
    pub(super) void: u64,
    /// Anything else.
    pub(super) failed: u64,
}

/// What has been judged so far.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Ledger {
    /// By the operation's name.
    pub(super) operations: BTreeMap<&'static str, Tally>,
    /// Effects that were counted.
    pub(super) effects: u64,
    /// Lines of the access log that belong to an operation.
    pub(super) log_lines: u64,
    /// Bytes that were missing or others than those that were sent.
    pub(super) lost_bytes: u64,
    /// Number of failures.
    pub(super) failures: u64,
    /// The first of them, in words.
    pub(super) examples: Vec<String>,
    #[serde(skip)]
    told: usize,
}

/// Failures that are told in words.
const EXAMPLES_MAX: usize = 50;

/// After a fault is over, for so long it may still be felt: the time in which the next request must succeed.
const GRACE: Duration = Duration::from_secs(1);

impl Ledger {
    /// Notes what must not be.
    pub(super) fn fail(&mut self, what: String) {
        self.failures += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what);
        }
    }

    /// Failures in words since the last call.
    pub(super) fn news(&mut self) -> &[String] {
        let told = std::mem::replace(&mut self.told, self.examples.len());
        &self.examples[told..]
    }

    /// Judges a round: each operation by the faults that were there, by the effects that the upstream counted and by the
    /// lines that the gateway wrote.
    pub(super) fn judge(
        &mut self,
        operations: &[Operation],
        windows: &[Window],
        standstills: &[(Instant, Instant)],
        effects: &HashMap<u64, Effect>,
        lines: &[Value],
    ) {
        let mut logged: HashMap<u64, Vec<&Value>> = HashMap::new();
        for line in lines {
            if let Some(id) = line["target"].as_str().and_then(id_in) {
                logged.entry(id).or_default().push(line);
            }
        }
        for operation in operations {
            let touching = windows.iter().filter(|window| window.touches(operation, GRACE));
            let may_break =
                operation.side == Side::Shaky && touching.clone().any(|w| w.fault.is_breaking());
            let is_void = standstills
                .iter()
                .any(|(from, to)| operation.begun <= *to + GRACE && operation.ended >= *from);
            let mut faults = self.judge_outcome(operation, may_break, is_void);
            if let Some(id) = operation.id {
                let effect = effects.get(&id).copied().unwrap_or_default();
                self.effects += u64::from(effect.done);
                faults.extend(effect_fault(operation, effect));
                let lines = logged.get(&id).map_or(&[][..], Vec::as_slice);
                self.log_lines += lines.len() as u64;
                faults.extend(log_fault(operation, lines));
            }
            let tally = self.operations.entry(operation.name).or_default();
            match (&operation.outcome, faults.is_empty()) {
                (_, false) => tally.failed += 1,
                (Outcome::Done, true) => tally.done += 1,
                (Outcome::Abandoned, true) => tally.abandoned += 1,
                (_, true) if may_break => tally.broken += 1,
                (_, true) => tally.void += 1,
            }
            for fault in faults {
                let beside: Vec<Fault> = touching.clone().map(|window| window.fault).collect();
                let Operation { id, name, side, .. } = operation;
                let lines = id.and_then(|id| logged.get(&id));
                self.fail(format!(
                    "{name} {id:?} at {}: {fault}; faults at that time: {beside:?}; log: {lines:?}",
                    side.path()
                ));
            }
        }
    }

    fn judge_outcome(
        &mut self,
        operation: &Operation,
        may_break: bool,
        is_void: bool,
    ) -> Vec<String> {
        match &operation.outcome {
            Outcome::Done | Outcome::Abandoned => Vec::new(),
            Outcome::Refused(502..=504) | Outcome::Broken(_) if may_break || is_void => Vec::new(),
            // A request that was slow because nothing ran, too.
            Outcome::Silent | Outcome::Refused(408) if is_void => Vec::new(),
            Outcome::Silent => vec!["nothing came any more".to_owned()],
            Outcome::Refused(status) => vec![format!("was answered with {status}")],
            Outcome::Broken(how) => vec![format!("was cut off: {how}")],
            Outcome::Wrong { what, lost } => {
                self.lost_bytes += lost;
                vec![what.clone()]
            }
        }
    }
}

/// Once at most, and once when the client was told that all went well.
fn effect_fault(operation: &Operation, effect: Effect) -> Option<String> {
    if !operation.has_effect {
        return (effect != Effect::default()).then(|| format!("had the effect {effect:?}"));
    }
    let once = Effect { begun: 1, done: 1 };
    if effect.begun > 1 || effect.done > 1 {
        return Some(format!("came to the upstream more than once: {effect:?}"));
    }
    (operation.outcome == Outcome::Done && effect != once)
        .then(|| format!("was answered, but the upstream counted {effect:?}"))
}

/// One line for each request that was answered, with the status that the client saw, and a cause where it went wrong.
fn log_fault(operation: &Operation, lines: &[&Value]) -> Option<String> {
    let expected = match operation.outcome {
        Outcome::Done => Some(operation.status),
        Outcome::Refused(status) => Some(status),
        Outcome::Broken(_) | Outcome::Silent | Outcome::Abandoned | Outcome::Wrong { .. } => None,
    };
    if lines.len() > 1 {
        return Some(format!("has {} lines in the access log", lines.len()));
    }
    let Some(line) = lines.first() else {
        return expected.map(|status| format!("has no line in the access log, with {status}"));
    };
    if expected.is_some_and(|status| line["status"] != status) {
        return Some(format!(
            "is in the access log with {} instead of {expected:?}",
            line["status"]
        ));
    }
    // That a tunnel was idle explains itself.
    let is_explained = line["fault"].is_string() && line["reason"].is_string();
    let is_plain = ["complete", "idle"].iter().any(|outcome| line["outcome"] == *outcome);
    (!is_plain && !is_explained).then(|| format!("ended without a cause in the access log: {line}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(change: impl Fn(&mut Operation), effect: (u32, u32), lines: &[Value]) -> Ledger {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut operation = Operation {
            id: Some(7),
            name: "POST",
            side: Side::Shaky,
            has_effect: true,
            status: 200,
            begun,
            ended: begun + second,
            outcome: Outcome::Done,
        };
        change(&mut operation);
        let windows = [
            Window { fault: Fault::Restart, begun, ended: begun + second },
            Window { fault: Fault::Slices, begun: begun + 20 * second, ended: begun + 25 * second },
        ];
        let standstill = (begun + 40 * second, begun + 50 * second);
        let effects = HashMap::from([(7, Effect { begun: effect.0, done: effect.1 })]);
        let mut ledger = Ledger::default();
        ledger.judge(&[operation], &windows, &[standstill], &effects, lines);
        ledger
    }

    fn line(status: u16, outcome: &str) -> Value {
        json!({ "target": "/a?id=7", "status": status, "outcome": outcome,
                "fault": "upstream", "reason": "reset" })
    }

    #[test]
    fn an_effect_is_had_once() {
        let whole = [line(200, "complete")];
        assert_eq!(judged(|_| {}, (1, 1), &whole).failures, 0);
        for effect in [(0, 0), (1, 0), (2, 1), (2, 2)] {
            assert_eq!(judged(|_| {}, effect, &whole).failures, 1, "{effect:?}");
        }
        let refused = |operation: &mut Operation| operation.outcome = Outcome::Refused(502);
        for effect in [(0, 0), (1, 0), (1, 1)] {
            assert_eq!(judged(refused, effect, &[line(502, "refused")]).failures, 0, "{effect:?}");
        }
        assert_eq!(judged(refused, (2, 0), &[line(502, "refused")]).failures, 1);
        let get = |operation: &mut Operation| operation.has_effect = false;
        assert_eq!(judged(get, (0, 0), &whole).failures, 0);
        assert_eq!(judged(get, (1, 1), &whole).failures, 1);
    }

    #[test]
    fn only_what_a_fault_touches_may_break() {
        let cut = [line(200, "aborted")];
        let broken = |operation: &mut Operation| operation.outcome = Outcome::Broken("eof".into());
        assert_eq!(judged(broken, (1, 1), &cut).failures, 0);
        let steady = |operation: &mut Operation| {
            broken(operation);
            operation.side = Side::Steady;
        };
        assert_eq!(judged(steady, (1, 1), &cut).failures, 1);
        for seconds in [10, 22] {
            let later = |operation: &mut Operation| {
                broken(operation);
                operation.begun += Duration::from_secs(seconds);
                operation.ended = operation.begun;
            };
            assert_eq!(judged(later, (1, 1), &cut).failures, 1, "after {seconds} s");
        }
        let wrong = |operation: &mut Operation| {
            operation.outcome = Outcome::Wrong { what: "other bytes".into(), lost: 9 };
        };
        let ledger = judged(wrong, (1, 1), &cut);
        assert_eq!((ledger.failures, ledger.lost_bytes), (1, 9));
        let odd = |operation: &mut Operation| operation.outcome = Outcome::Refused(404);
        assert_eq!(judged(odd, (0, 0), &[line(404, "refused")]).failures, 1);
    }

    #[test]
    fn a_machine_that_stands_still_excuses_what_breaks_and_nothing_else() {
        let at = |seconds: u64, outcome: Outcome| {
            let change = move |operation: &mut Operation| {
                operation.begun += Duration::from_secs(seconds);
                operation.ended = operation.begun;
                operation.side = Side::Steady;
                operation.outcome = outcome.clone();
            };
            judged(change, (1, 1), &[line(502, "aborted")]).failures
        };
        for outcome in [Outcome::Silent, Outcome::Refused(502), Outcome::Broken("eof".into())] {
            assert_eq!((at(45, outcome.clone()), at(30, outcome)), (0, 1));
        }
        let wrong = Outcome::Wrong { what: "other bytes".into(), lost: 9 };
        assert_eq!(at(45, wrong), 1);
    }

    #[test]
    fn the_log_tells_the_same() {
        let whole = line(200, "complete");
        for lines in [&[][..], &[whole.clone(), whole.clone()], &[line(502, "complete")]] {
            assert_eq!(judged(|_| {}, (1, 1), lines).failures, 1, "{lines:?}");
        }
        let refused = |operation: &mut Operation| operation.outcome = Outcome::Refused(502);
        let silent = json!({ "target": "/a?id=7", "status": 502, "outcome": "refused" });
        assert_eq!(judged(refused, (0, 0), &[silent]).failures, 1);
        let other = json!({ "target": "/a?id=8", "status": 200, "outcome": "complete" });
        assert_eq!(judged(|_| {}, (1, 1), &[whole, other]).failures, 0);
    }
}
