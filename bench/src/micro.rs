//! Instructions and allocations of steps of the hot path, counted by valgrind: the same on a busy machine.
//!
//! Each step is run N times and 2N times; the difference is free of start and end, and of what only the first call does.

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use tlsplice_fixtures::{Error, Result};

/// Steps of the program `tlsplice-micro`.
const STEPS: [(&str, &str); 3] = [
    ("request", "request head: parse, rewrite, serialise"),
    ("response", "response head: parse"),
    ("chunk", "chunk of 300 B: take out of its framing, frame anew"),
];

const TIMES: u64 = 1_000;

/// Cost of one step, once.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// What is done.
    pub step: String,
    /// Instructions, user space.
    pub instructions: f64,
    /// Allocations.
    pub allocations: f64,
}

/// Counts all steps of `program`.
///
/// # Errors
/// When valgrind is missing, or its output is not what it used to be.
pub fn count(program: &Path) -> Result<Vec<Cost>> {
    STEPS
        .iter()
        .map(|(step, description)| {
            let per_step = |counter: fn(&Path, &str, u64) -> Result<u64>| -> Result<f64> {
                let once = counter(program, step, TIMES)?;
                let twice = counter(program, step, 2 * TIMES)?;
                Ok(crate::run::float(twice.saturating_sub(once)) / crate::run::float(TIMES))
            };
            Ok(Cost {
                step: (*description).to_owned(),
                instructions: per_step(instructions)?,
                allocations: per_step(allocations)?,
            })
        })
        .collect()
}

fn instructions(program: &Path, step: &str, times: u64) -> Result<u64> {
    let options = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let output = valgrind(&options, program, step, times)?;
    number_behind(&output, "Collected :").ok_or_else(|| unexpected(&output))
}

fn allocations(program: &Path, step: &str, times: u64) -> Result<u64> {
    let output = valgrind(&["--tool=memcheck", "--leak-check=no"], program, step, times)?;
    number_behind(&output, "total heap usage:").ok_or_else(|| unexpected(&output))
}

fn valgrind(options: &[&str], program: &Path, step: &str, times: u64) -> Result<String> {
    let output = Command::new("valgrind")
        .args(options)
        .arg(program)
        .args([step, &times.to_string()])
        .output()
        .map_err(Error::io("cannot run valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(text) } else { Err(unexpected(&text)) }
}

fn unexpected(output: &str) -> Error {
    Error::failed(format!("valgrind said what is not understood:\n{output}"))
}

fn number_behind(text: &str, label: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.split_once(label))?.1;
    rest.trim().split(' ').next()?.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_valgrind_are_read() {
        let memcheck = "==1== HEAP SUMMARY:\n==1==   total heap usage: 1,234 allocs, 5 frees, 6 bytes allocated\n";
        assert_eq!(number_behind(memcheck, "total heap usage:"), Some(1234));
        assert_eq!(number_behind("==2== Collected : 987654\n", "Collected :"), Some(987_654));
        assert_eq!(number_behind("nothing", "Collected :"), None);
    }
}
