//! A guest: how it is booted, and what its console says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tlsplice_fixtures::{Error, Result};

use super::Unpacked;
use super::kernel::{Kernel, Tls};
use super::plan::{BEGUN, Choice, DONE, Extent, Plan};

/// Time for a guest, in seconds.
const GUEST_SECONDS: u32 = 7200;

/// Connections that the kernel must have taken over before a run counts as one through the kernel.
const KERNEL_CONNECTIONS_MIN: u64 = 100;

/// What a guest found.
pub(super) struct Verdict {
    passed: u64,
    failed: u64,
    /// What the modes cost: the run, the name of a figure, and the figure.
    pub(super) costs: Vec<(String, String, f64)>,
    /// What tests said of the attack table, for [`crate::attacks`].
    pub(super) rows: Vec<String>,
    /// Why it is no success.
    pub(super) problems: Vec<String>,
    /// What failed tests printed, and what the kernel said of faults of its own: where this is all that is kept, as in CI, it
    /// must tell what happened.
    pub(super) evidence: Vec<String>,
}

impl Verdict {
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.failed == 0 && self.passed > 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_good() { "good" } else { "NOT GOOD" };
        write!(f, "{word}: {} passed, {} failed", self.passed, self.failed)
    }
}

/// Mark at the start of lines that a failed test printed.
pub(super) const PRINTED: &str = "  | ";

/// Words by which a kernel begins to tell of a fault of its own.
const FAULTS: [&str; 4] = ["BUG: ", "Oops: ", "WARNING: ", "Kernel panic"];

/// Lines of the console that belong to such a fault, from the one with these words on: registers and the way there.
const FAULT_LINES: usize = 40;

/// Times that a kernel is booted which panics before it runs anything of ours. It patches its own code while it comes up,
/// which an emulated second processor may see too late and take for a fault (`Oops: int3`).
const BOOTS_MAX: u32 = 3;

/// Boots a kernel and reads what its console says.
pub(super) fn boot(
    directory: &Path,
    kernel: &Kernel,
    unpacked: &Unpacked,
    initramfs: &Path,
    plan: Plan<'_>,
) -> Result<Verdict> {
    let log = directory.join(format!("console-{}.log", kernel.name));
    let mut console = emulate(&log, unpacked, initramfs, plan)?;
    for _ in 1..BOOTS_MAX {
        if console.lines().any(|line| line.starts_with(BEGUN)) {
            break;
        }
        eprintln!("    Linux {:<7} did not come up under emulation: once more", kernel.name);
        console = emulate(&log, unpacked, initramfs, plan)?;
    }
    let mut verdict = judge(&console, kernel, plan);
    if !verdict.is_good() {
        verdict.problems.push(format!("the console is in {}", log.display()));
    }
    Ok(verdict)
}

/// What costs an emulated processor much and guards against nothing there: detours around branches that it does not predict,
/// a second set of page tables, zeroing of memory. Not `mitigations=off`, by which the verifier of eBPF would check less
/// (`bpf_bypass_spec_v1` of `linux/bpf.h`).
const LIGHT: &str = "spectre_v2=off retbleed=off spec_rstack_overflow=off nopti init_on_alloc=0";

/// Runs a machine until it ends, and returns what its console said.
fn emulate(log: &Path, unpacked: &Unpacked, initramfs: &Path, plan: Plan<'_>) -> Result<String> {
    let console =
        fs::File::create(log).map_err(Error::io(format!("cannot write {}", log.display())))?;
    // What counts instructions counts those of a kernel as it comes.
    let light = if plan.extent == Extent::Cost { "" } else { LIGHT };
    // Its exit status tells less than the last words on the console.
    Command::new("timeout")
        .arg(GUEST_SECONDS.to_string())
        .arg("qemu-system-x86_64")
        .args(
            match plan.extent {
                // Time is counted in instructions: one for each nanosecond.
                Extent::Cost => {
                    "-cpu max -accel tcg,thread=single -smp 1 -icount shift=0,sleep=off"
                }
                // Without the processor's copying by bytes, which emulation does one byte at a time: the kernel takes words.
                Extent::Full | Extent::Short | Extent::Attacks => {
                    "-cpu max,-erms -accel tcg,thread=multi -smp 2"
                }
            }
            .split(' '),
        )
        .args(["-m", "2048", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        // The host's loopback is 10.0.2.2 there.
        .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-serial", "stdio", "-kernel"])
        .arg(&unpacked.image)
        .arg("-initrd")
        .arg(initramfs)
        // The first process is named outright: kernels may have the interpreter of scripts as a module.
        // On a busy host the emulated timer may be too late for the kernel's test of it, which is a panic.
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 nokaslr no_timer_check {light} rdinit=/bin/busybox -- sh /init"))
        .stdin(Stdio::null())
        .stdout(console)
        .status()
        .map_err(Error::io("cannot run qemu-system-x86_64 (package qemu-system-x86)"))?;
    let console = fs::read(log).map_err(Error::io(format!("cannot read {}", log.display())))?;
    Ok(String::from_utf8_lossy(&console).replace('\r', ""))
}

fn judge(console: &str, kernel: &Kernel, plan: Plan<'_>) -> Verdict {
    let expected = kernel.tls;
    let mut verdict = Verdict {
        passed: 0,
        failed: 0,
        costs: Vec::new(),
        rows: Vec::new(),
        problems: Vec::new(),
        evidence: evidence(console),
    };
    let (mut planned, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut connections = BTreeMap::new();
    let mut capabilities = Vec::new();
    for line in console.lines() {
        if let Some(test) = line.strip_prefix("PLANNED ") {
            planned.insert(test);
        } else if let Some(problem) = line.strip_prefix("PROBLEM ") {
            verdict.problems.push(problem.to_owned());
        } else if let Some(text) = line.strip_prefix("VERSION TLS ") {
            capabilities.push(text.to_owned());
        } else if let Some(text) = line.strip_prefix("CONNECTIONS ") {
            let (name, count) = text.split_once(' ').unwrap_or((text, ""));
            let count = count.rsplit(|byte: char| !byte.is_ascii_digit()).next();
            connections.insert(name, count.and_then(|count| count.parse().ok()).unwrap_or(0));
        } else if let Some(text) = line.strip_prefix("COST ") {
            let mut words = text.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            let (run, name) = (word(), word());
            match word().parse() {
                Ok(figure) => verdict.costs.push((run, name, figure)),
                Err(_) => verdict.problems.push(format!("no figure: {text}")),
            }
        } else if line.starts_with("GROUP ") || line.starts_with("REASON ") {
            verdict.rows.push(line.to_owned());
        } else if let Some(text) = line.strip_prefix("RESULT ") {
            let (status, rest) = text.split_once(' ').unwrap_or((text, ""));
            let (test, time) = rest.rsplit_once(' ').unwrap_or((rest, ""));
            if !seen.insert(test) {
                verdict.problems.push(format!("{test} ran twice"));
            }
            if status == "0" {
                verdict.passed += 1;
            } else {
                verdict.failed += 1;
                verdict.problems.push(format!("failed: {test} (status {status}, {time})"));
            }
        }
    }
    if !console.lines().any(|line| line == DONE) {
        verdict.problems.push("the guest ended too early".to_owned());
    }
    for test in planned.symmetric_difference(&seen) {
        verdict.problems.push(format!("no result: {test}"));
    }
    let runs = plan.runs(kernel);
    for (run, suite) in runs.iter().flat_map(|run| run.suites.iter().map(move |suite| (run, suite)))
    {
        // With a filter, a suite may have nothing that fits it.
        let prefix = format!("{} {suite} ", run.name);
        if plan.choice.filter.is_none() && !planned.iter().any(|test| test.starts_with(&prefix)) {
            verdict.problems.push(format!("no tests: {prefix}"));
        }
    }
    if capabilities_of(&capabilities) != Some(expected) {
        verdict
            .problems
            .push(format!("{expected:?} was expected, but: {}", capabilities.join("; ")));
    }
    let by_kernel: u64 = connections.values().copied().max().unwrap_or(0);
    let is_enough = by_kernel >= KERNEL_CONNECTIONS_MIN;
    // Of what is chosen too little may run to expect much of it.
    let is_tested = plan.choice == Choice::default() && plan.extent != Extent::Cost;
    if expected != Tls::None && !is_enough && is_tested {
        verdict.problems.push(format!("the kernel took over {by_kernel} connections only"));
    }
    verdict
}

/// Lines that failed tests printed, and those of the kernel about faults of its own.
fn evidence(console: &str) -> Vec<String> {
    let mut lines_left: usize = 0;
    let mut belongs = |line: &&str| {
        if FAULTS.iter().any(|words| line.contains(words)) && !line.starts_with(PRINTED) {
            lines_left = FAULT_LINES;
        }
        let is_of_fault = lines_left > 0;
        lines_left = lines_left.saturating_sub(1);
        is_of_fault || line.starts_with(PRINTED)
    };
    console.lines().filter(|line| belongs(line)).map(str::to_owned).collect()
}

/// What the gateway says that the kernel can do.
fn capabilities_of(lines: &[String]) -> Option<Tls> {
    let first = lines.first()?;
    match first.strip_prefix("in the kernel: ") {
        None if first.starts_with("in user space") => Some(Tls::None),
        // Two versions with three ciphers each.
        Some(names) if names.split(", ").count() == 6 => {
            let can_rekey = !lines.iter().any(|line| line.starts_with("no key updates"));
            Some(if can_rekey { Tls::Rekey } else { Tls::Keys })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernel;

    const PLAN: Plan<'_> =
        Plan { extent: Extent::Short, choice: Choice { filter: None, run: None }, tomcat_port: 0 };

    const OLDEST: &Kernel = &kernel::ALL[0];

    fn console(middle: &str) -> String {
        let mut text = "VERSION TLS in user space, at more CPU: no module\n".to_owned();
        for run in PLAN.runs(OLDEST) {
            for suite in run.suites {
                let test = format!("{} {suite} a", run.name);
                text.push_str(&format!("PLANNED {test}\nRESULT 0 {test} 1s\n"));
            }
        }
        text + middle + DONE + "\n"
    }

    #[test]
    fn a_console_without_a_problem_is_good() {
        let verdict = judge(&console(""), OLDEST, PLAN);
        assert!(verdict.is_good(), "{:?}", verdict.problems);
    }

    #[test]
    fn what_failed_tests_printed_and_faults_of_the_kernel_are_evidence() {
        let console = "RESULT 101 r s t 1s\n  | panicked at\nRESULT 0 r s u 1s\n[ 1.0] BUG: unable\n[ 1.0] RIP: 0010\n";
        let seen = evidence(console);
        assert_eq!(seen, ["  | panicked at", "[ 1.0] BUG: unable", "[ 1.0] RIP: 0010"]);
        assert!(evidence("RESULT 0 r s t 1s\n").is_empty());
        let after = "x\n".repeat(2 * FAULT_LINES);
        assert_eq!(evidence(&format!("Oops: int3\n{after}")).len(), FAULT_LINES);
    }

    #[test]
    fn failures_missing_results_panics_and_other_capabilities_are_not() {
        for middle in [
            "PLANNED r s t\nRESULT 101 r s t 1s\n",
            "PLANNED r s t\nRESULT unseen r s t 1s\n",
            "PLANNED r s t\n",
            "RESULT 0 r s t 1s\n",
            "PLANNED r s t\nRESULT 0 r s t 1s\nRESULT 0 r s t 1s\n",
            "PROBLEM module tls\n",
        ] {
            assert!(!judge(&console(middle), OLDEST, PLAN).is_good(), "{middle}");
        }
        assert!(!judge(&console(""), &kernel::ALL[1], PLAN).is_good());
        assert!(!judge("Kernel panic", OLDEST, PLAN).is_good());
        assert!(!judge(&console("").replace(DONE, ""), OLDEST, PLAN).is_good());
        assert!(!judge(&console("").replace(" degraded ", " other "), OLDEST, PLAN).is_good());
    }
}
