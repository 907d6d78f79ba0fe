//! `cargo xtask attacks`: the attack table, and what came of each group.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// Runs the tests of the table and prints a table of its own.
pub(crate) fn run() -> Result<ExitCode> {
    let mut command = tools::cargo(&["test", "--locked", "--quiet", "--package", "tlsplice-tests"]);
    command.args(["--test", "attacks", "--no-fail-fast", "--", "--nocapture"]);
    let child = command.stdout(Stdio::piped()).spawn();
    let output = child
        .and_then(std::process::Child::wait_with_output)
        .map_err(Error::io("cannot run the tests of the attack table"))?;
    print!("{}", table(&String::from_utf8_lossy(&output.stdout)));
    Ok(if output.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// From what the tests print to what people read.
fn table(output: &str) -> String {
    let mut groups = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for line in output.lines() {
        // A name of a test may stand in front.
        if let Some((_, rest)) = line.split_once("GROUP ")
            && let Some((name, counts)) = rest.split_once(' ')
        {
            groups.insert(name.to_owned(), counts.to_owned());
        } else if let Some((_, rest)) = line.split_once("REASON ")
            && let Some((row, reason)) = rest.split_once(' ')
        {
            reasons.insert(row.parse::<u32>().unwrap_or(0), reason.to_owned());
        }
    }
    let mut text = "group  offload  passed  failed  not applicable\n".to_owned();
    for (name, counts) in &groups {
        let (offload, numbers) = counts.split_once(' ').unwrap_or((counts, ""));
        let mut numbers = numbers.trim_matches(['[', ']']).split(", ");
        let mut number = || numbers.next().unwrap_or("?");
        let (passed, failed, other) = (number(), number(), number());
        text += &format!("{name:<7}{offload:<9}{passed:>6}{failed:>8}{other:>16}\n");
    }
    for (row, reason) in &reasons {
        text += &format!("row {row}: not applicable, or not all of it: {reason}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_and_reasons_are_found_wherever_they_stand() {
        let output = "test g_tls ... REASON 129 too many\nGROUP G auto [11, 0, 2]\nother\n";
        let text = super::table(output);
        assert!(text.contains("\nG      auto         11       0               2\n"), "{text}");
        assert!(text.contains("\nrow 129: not applicable, or not all of it: too many\n"), "{text}");
    }
}
