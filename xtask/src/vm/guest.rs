//! Inside a guest: what is run there, and what its console says about it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tlsplice_fixtures::{Error, Result};

use super::Unpacked;
use super::kernel::{Kernel, Tls};

/// What is run in each guest.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// The first of [`OFFLOADS`], or all.
    pub(crate) offloads: &'a [&'a str],
    /// Part of the names of tests.
    pub(crate) filter: Option<&'a str>,
}

/// Where the gateway lies.
pub(super) const GATEWAY: &str = "/t/debug/tlsplice";

/// Test programs that run on a kernel alone, without Tomcat and browser.
pub(super) const SUITES: [&str; 9] =
    ["ebpf", "http", "identity", "operations", "records", "refusals", "splice", "tls", "websocket"];

/// Values of `offload` that everything is run with. Kernels that cannot do what the first asks for do as the second.
pub(crate) const OFFLOADS: [&str; 2] = ["always", "never"];

/// Time for one test program, in seconds; emulation is slow, and its host is busy.
const SUITE_SECONDS: u32 = 240;

/// Time for a guest, in seconds.
const GUEST_SECONDS: u32 = 1200;

/// The last words of a guest that has done everything.
const DONE: &str = "GUEST-DONE";

/// Connections that the kernel must have taken over before a run counts as one through the kernel.
const KERNEL_CONNECTIONS_MIN: u64 = 100;

/// The place of a test program. Tests look for what they share three levels above themselves.
pub(super) fn suite(name: &str) -> String {
    format!("/t/debug/deps/{name}")
}

/// What the guest runs as its first process.
pub(super) fn script(modules: &[&str], plan: Plan<'_>) -> String {
    let modules = modules.join(" ");
    let (offloads, suites) = (plan.offloads.join(" "), SUITES.join(" "));
    let filter = plan.filter.unwrap_or_default();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin HOME=/root RUST_BACKTRACE=0 TLSPLICE_TEST_BINARY={GATEWAY}\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         mkdir -p /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || echo \"PROBLEM cgroup2\"\n\
         ip link set lo up; ulimit -n 16384\n\
         for module in {modules}; do insmod /modules/$module.ko || echo \"PROBLEM module $module\"; done\n\
         echo \"KERNEL $(uname -r)\"\n\
         {GATEWAY} --version | sed 's/^/VERSION /'\n\
         for offload in {offloads}; do for suite in {suites}; do\n\
         echo \"SUITE $offload $suite\"\n\
         TLSPLICE_TEST_OFFLOAD=$offload timeout {SUITE_SECONDS} /t/debug/deps/$suite --test-threads=2 {filter} 2>&1\n\
         done; echo \"CONNECTIONS $offload $(grep -w TlsTxSw /proc/net/tls_stat)\"; done\n\
         echo {DONE}\n\
         reboot -f\n"
    )
}

/// What a guest found.
pub(super) struct Verdict {
    passed: u64,
    failed: u64,
    /// Why it is no success.
    pub(super) problems: Vec<String>,
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

/// Boots a kernel and reads what its console says.
pub(super) fn boot(
    directory: &Path,
    kernel: &Kernel,
    unpacked: &Unpacked,
    initramfs: &Path,
    plan: Plan<'_>,
) -> Result<Verdict> {
    let output = Command::new("timeout")
        .arg(GUEST_SECONDS.to_string())
        .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", "1024", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(&unpacked.image)
        .arg("-initrd")
        .arg(initramfs)
        // The first process is named outright: kernels may have the interpreter of scripts as a module.
        .args(["-append", "console=ttyS0 quiet panic=-1 nokaslr rdinit=/bin/busybox -- sh /init"])
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("cannot run qemu-system-x86_64 (package qemu-system-x86)"))?;
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let log = directory.join(format!("console-{}.log", kernel.name));
    fs::write(&log, &console).map_err(Error::io(format!("cannot write {}", log.display())))?;
    let mut verdict = judge(&console, kernel.tls, plan);
    if !verdict.is_good() {
        verdict.problems.push(format!("the console is in {}", log.display()));
    }
    Ok(verdict)
}

fn judge(console: &str, expected: Tls, plan: Plan<'_>) -> Verdict {
    let mut verdict = Verdict { passed: 0, failed: 0, problems: Vec::new() };
    let (mut section, mut results) = (String::new(), 0);
    let (mut connections, mut capabilities) = (Vec::new(), Vec::new());
    for line in console.lines() {
        if let Some(name) = line.strip_prefix("SUITE ") {
            name.clone_into(&mut section);
        } else if let Some(problem) = line.strip_prefix("PROBLEM ") {
            verdict.problems.push(problem.to_owned());
        } else if let Some(text) = line.strip_prefix("VERSION TLS ") {
            capabilities.push(text.to_owned());
        } else if let Some(text) = line.strip_prefix("CONNECTIONS ") {
            let count = text.rsplit(|byte: char| !byte.is_ascii_digit()).next();
            connections.push(count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0));
        } else if line.starts_with("test result: ") {
            results += 1;
        } else if let Some(rest) = line.strip_prefix("test ") {
            if rest.ends_with("... ok") {
                verdict.passed += 1;
            } else if let Some(name) = rest.strip_suffix(" ... FAILED") {
                verdict.failed += 1;
                verdict.problems.push(format!("failed: {section} {name}"));
            }
        }
    }
    if !console.lines().any(|line| line == DONE) {
        verdict.problems.push(format!("the guest ended within `{section}`"));
    }
    let suites = plan.offloads.len() * SUITES.len();
    if results != suites {
        verdict.problems.push(format!("{results} of {suites} test programs came to a result"));
    }
    if capabilities_of(&capabilities) != Some(expected) {
        verdict
            .problems
            .push(format!("{expected:?} was expected, but: {}", capabilities.join("; ")));
    }
    let by_kernel = connections.first().copied().unwrap_or(0);
    let is_enough = by_kernel >= KERNEL_CONNECTIONS_MIN;
    // With a filter too little may run to expect much of it.
    if expected != Tls::None && !is_enough && plan.filter.is_none() {
        verdict.problems.push(format!("the kernel took over {by_kernel} connections only"));
    }
    verdict
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

    const PLAN: Plan<'_> = Plan { offloads: &OFFLOADS, filter: None };

    fn console(middle: &str) -> String {
        let mut text = "VERSION TLS in user space, at more CPU: no module\n".to_owned();
        for _ in 0..OFFLOADS.len() * SUITES.len() {
            text.push_str(
                "SUITE always http\ntest a ... ok\ntest result: ok. 1 passed; 0 failed\n",
            );
        }
        text + middle + DONE + "\n"
    }

    #[test]
    fn a_console_without_a_problem_is_good() {
        assert!(judge(&console(""), Tls::None, PLAN).is_good());
    }

    #[test]
    fn failures_panics_and_other_capabilities_are_not() {
        assert!(!judge(&console("test b ... FAILED\n"), Tls::None, PLAN).is_good());
        assert!(!judge(&console("PROBLEM module tls\n"), Tls::None, PLAN).is_good());
        assert!(!judge(&console(""), Tls::Keys, PLAN).is_good());
        assert!(!judge("Kernel panic", Tls::None, PLAN).is_good());
        assert!(!judge(&console("").replace(DONE, ""), Tls::None, PLAN).is_good());
    }
}
