//! `cargo xtask attacks`: the attack table, and what came of each group.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::{tools, vm};

/// Where the table is run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// In guests with this kernel (5.10, 6.1, 6.12 or newest), or with all of them, in each path of the data.
    #[arg(long, value_name = "KERNEL", value_parser = ["5.10", "6.1", "6.12", "newest", "all"])]
    kernel: Option<String>,
}

/// Runs the tests of the table and prints a table of its own.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let (is_good, lines) = match &options.kernel {
        Some(kernel) => vm::attacks(kernel)?,
        None => here()?,
    };
    print!("{}", table(&lines));
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether everything passed on this machine, and what was said.
fn here() -> Result<(bool, Vec<String>)> {
    let mut command = tools::cargo(&["test", "--locked", "--quiet", "--package", "tlsplice-tests"]);
    command.args(["--test", "attacks", "--no-fail-fast", "--", "--nocapture"]);
    let child = command.stdout(Stdio::piped()).spawn();
    let output = child
        .and_then(std::process::Child::wait_with_output)
        .map_err(Error::io("cannot run the tests of the attack table"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok((output.status.success(), text.lines().map(ToOwned::to_owned).collect()))
}

/// From what the tests print to what people read.
pub(crate) fn table(lines: &[String]) -> String {
    let mut groups = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for line in lines {
        // A name of a test may stand in front.
        if let Some((_, rest)) = line.split_once("GROUP ")
            && let Some((place, counts)) = rest.split_once(" [")
        {
            let mut words = place.split(' ').map(str::to_owned);
            let mut word = || words.next().unwrap_or_default();
            let (group, kernel, path) = (word(), word(), word());
            groups.insert((kernel, path, group), counts.trim_end_matches(']').to_owned());
        } else if let Some((_, rest)) = line.split_once("REASON ")
            && let Some((row, reason)) = rest.split_once(' ')
        {
            reasons.insert(row.parse::<u32>().unwrap_or(0), reason.to_owned());
        }
    }
    let mut text =
        "group  kernel                      path           passed  failed  not applicable\n"
            .to_owned();
    let (mut last, mut sums) = (None, [0, 0, 0]);
    let sum = |place: &Option<(String, String)>, sums: &[u64; 3]| {
        place.as_ref().map_or_else(String::new, |(kernel, path)| line("all", kernel, path, *sums))
    };
    for ((kernel, path, group), counts) in groups {
        let place = Some((kernel.clone(), path.clone()));
        if place != last {
            text += &sum(&last, &sums);
            (last, sums) = (place, [0, 0, 0]);
        }
        let mut numbers = counts.split(", ").map(|number| number.parse().unwrap_or(0));
        let counts = [0; 3].map(|_: u64| numbers.next().unwrap_or(0));
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
        text += &line(&group, &kernel, &path, counts);
    }
    text += &sum(&last, &sums);
    for (row, reason) in &reasons {
        text += &format!("row {row}: not applicable, or not all of it: {reason}\n");
    }
    text
}

fn line(group: &str, kernel: &str, path: &str, [passed, failed, other]: [u64; 3]) -> String {
    format!("{group:<7}{kernel:<28}{path:<15}{passed:>6}{failed:>8}{other:>16}\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_and_reasons_are_found_wherever_they_stand() {
        let lines = [
            "test g_tls ... REASON 129 too many",
            "GROUP G 6.12.1 user/copy [11, 0, 2]",
            "other",
            "GROUP H 6.12.1 user/copy [8, 1, 0]",
            "GROUP H 6.12.1 kernel/splice [9, 0, 0]",
        ];
        let text = super::table(&lines.map(str::to_owned));
        for line in [
            "G      6.12.1                      user/copy          11       0               2",
            "all    6.12.1                      user/copy          19       1               2",
            "all    6.12.1                      kernel/splice       9       0               0",
            "row 129: not applicable, or not all of it: too many",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{text}");
        }
    }
}
