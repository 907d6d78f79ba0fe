//! Instructions and allocations of steps of the hot path, and of the whole gateway, counted by valgrind: the same on a
//! busy machine.
//!
//! The gateway is the program `tlsplice-unconfined`: under valgrind, `tlsplice` itself cannot give up what it has to.
//!
//! Each is run N times and 2N times; the difference is free of start and end, and of what only the first call does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use tlsplice_fixtures::{Error, Result};

use crate::certificate::Certificates;
use crate::gateways::{Gateway, Kind, Route, Setting};
use crate::load::{Client, Front, Group, Work};
use crate::origin::Origin;
use crate::outcome::float;
use crate::run::THREADS;

/// Steps of the program `tlsplice-micro`.
const STEPS: [(&str, &str); 3] = [
    ("request", "request head: parse, rewrite, serialise"),
    ("response", "response head: parse"),
    ("chunk", "chunk of 300 B: take out of its framing, frame anew"),
];

const TIMES: u64 = 1_000;
/// How long the gateway is loaded under valgrind, which is slow.
const FEW: Duration = Duration::from_millis(500);
const MANY: Duration = Duration::from_secs(4);
const CALLGRIND: [&str; 2] = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
const MEMCHECK: [&str; 2] = ["--tool=memcheck", "--leak-check=no"];

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
                Ok(float(twice.saturating_sub(once)) / float(TIMES))
            };
            Ok(Cost {
                step: (*description).to_owned(),
                instructions: per_step(instructions)?,
                allocations: per_step(allocations)?,
            })
        })
        .collect()
}

/// What the whole gateway is asked for: it opens, parses, rewrites, seals and relays.
fn requests() -> [(&'static str, Work, Front); 4] {
    let get = Work::Get { path: "/small".to_owned() };
    let message = Work::Echo { bytes: 300 };
    [
        ("gateway: small GET, plain", get.clone(), Front::Plain),
        ("gateway: small GET, TLS (two records opened or sealed)", get, Front::Tls),
        ("gateway: WebSocket message of 300 B and its echo, plain", message.clone(), Front::Plain),
        ("gateway: the same over TLS (two records opened or sealed)", message, Front::Tls),
    ]
}

/// Counts user space of the whole gateway `program` per request, with one connection that is kept. `directory` is for
/// its configuration.
///
/// # Errors
/// When valgrind cannot run the gateway.
pub fn count_requests(program: &Path, directory: &Path) -> Result<Vec<Cost>> {
    std::fs::create_dir_all(directory)
        .map_err(Error::io(format!("cannot make {}", directory.display())))?;
    let origin = Origin::start(None)?;
    let base = Setting {
        directory: directory.to_owned(),
        binary: program.to_owned(),
        next: directory.to_owned(),
        certificates: Certificates::make(directory)?,
        origin: origin.address,
        tomcat: origin.address,
        workers: 1,
        cores: "0-4095".to_owned(),
        threads: THREADS,
        wrapper: Vec::new(),
    };
    let count = |(name, work, front): (&str, Work, Front)| {
        let group = Group { work, connections: 1, front };
        let behind = |options: &[&str], label: &str| {
            per_request(&base, options, label, &group)
                .map_err(|error| Error::failed(format!("{name}, valgrind {}: {error}", options[0])))
        };
        Ok(Cost {
            step: name.to_owned(),
            instructions: behind(&CALLGRIND, "Collected :")?,
            allocations: behind(&MEMCHECK, "total heap usage:")?,
        })
    };
    requests().into_iter().map(count).collect()
}

/// What valgrind counts behind `label`, per unit of `group`.
fn per_request(base: &Setting, options: &[&str], label: &str, group: &Group) -> Result<f64> {
    let wrapper = std::iter::once("valgrind").chain(options.iter().copied());
    let setting = Setting { wrapper: wrapper.map(ToOwned::to_owned).collect(), ..base.clone() };
    let count = |window: Duration| -> Result<(u64, u64)> {
        let gateway = Gateway::start(&Kind::Tlsplice(Route::Auto), &setting)?;
        let tally = Client::open(std::slice::from_ref(group), gateway.fronts)
            .and_then(|mut client| client.run(window))
            .map_err(|error| gateway.failed(&error))?;
        let said = gateway.end()?;
        let counted = number_behind(&said, label).ok_or_else(|| unexpected(&said))?;
        Ok((counted, tally.iter().map(|tally| tally.units).sum()))
    };
    let (few, few_units) = count(FEW)?;
    let (many, many_units) = count(MANY)?;
    if many_units <= few_units {
        return Err(Error::failed("the machine is too busy to count by: a longer run did less"));
    }
    Ok(float(many.saturating_sub(few)) / float(many_units - few_units))
}

fn instructions(program: &Path, step: &str, times: u64) -> Result<u64> {
    let output = valgrind(&CALLGRIND, program, step, times)?;
    number_behind(&output, "Collected :").ok_or_else(|| unexpected(&output))
}

fn allocations(program: &Path, step: &str, times: u64) -> Result<u64> {
    let output = valgrind(&MEMCHECK, program, step, times)?;
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
