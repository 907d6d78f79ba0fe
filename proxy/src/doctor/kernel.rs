//! The kernel and what it permits this process.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;
use std::{fs, io};

use super::Finding;
use crate::ktls::probe::Support;
use crate::telemetry::{Lack, Meter};
use crate::uring::{self, Delivery, Ring, Setup, StartError};
use crate::{limits, sys};

/// Capabilities by their number in `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF")];

/// Asks the kernel everything. `connections` are to be measured at once, if any.
pub(super) fn examine(connections: Option<usize>) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut findings = vec![
        version(release.trim()),
        ring(uring::start(Setup::default(), |ring| async move { ring })),
    ];
    findings.extend(kernel_tls(&Support::probe()));
    findings.push(splice(try_splice()));
    findings.push(cgroup(&mountinfo));
    findings.push(match connections {
        None => Finding::ok("eBPF", "switched off (telemetry.flush_latency)"),
        // Loaded, attached, seen to run, and gone again.
        Some(connections) => bpf(
            &missing_capabilities(&status),
            Meter::try_start(connections).map(|meter| meter.describe()),
        ),
    });
    findings
}

fn version(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 10) => Finding::fail(
            "kernel",
            format!("Linux {release}"),
            "older than 5.10: nothing has been tested here",
            "install a newer kernel",
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

fn ring(started: Result<Ring, StartError>) -> Finding {
    let topic = "io_uring";
    let wanted = Setup::default().submissions;
    match started {
        Ok(ring) if ring.submissions < wanted => Finding::warn(
            topic,
            format!("a small ring for want of locked memory: {ring}"),
            "more trips into the kernel under load",
            "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
        ),
        Ok(ring) if ring.delivery < Delivery::Deferred => Finding::warn(
            topic,
            ring.to_string(),
            "no DEFER_TASKRUN: more calls of the kernel for each message",
            "Linux 6.1 or newer has it",
        ),
        Ok(ring) => Finding::ok(topic, ring.to_string()),
        Err(error) => {
            let cure = match &error {
                StartError::Disabled(_) => "sysctl kernel.io_uring_disabled=0",
                StartError::Forbidden => {
                    "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
                     (docker run --security-opt seccomp=FILE)"
                }
                StartError::Memory => "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
                StartError::Descriptors(_) => "LimitNOFILE=65536 in the unit, or ulimit -n 65536",
                StartError::Absent | StartError::TooOld(_) | StartError::Other(_) => {
                    "run Linux 5.10 or newer with CONFIG_IO_URING, and let no seccomp profile hide it"
                }
            };
            Finding::fail(topic, error.to_string(), "the gateway cannot run", cure)
        }
    }
}

fn kernel_tls(support: &Support) -> Vec<Finding> {
    let topic = "kernel TLS";
    let mut lines = support.describe().into_iter();
    let first = lines.next().unwrap_or_default();
    if !support.is_any() {
        let cost = "TLS in user space: no splicing towards browsers";
        return vec![Finding::warn(topic, first, cost, "modprobe tls")];
    }
    let rest = lines.map(|line| {
        let cost = "those connections are served by user space, or end when the key changes";
        Finding::warn(topic, line, cost, "a newer kernel; nothing need be done for browsers")
    });
    std::iter::once(Finding::ok(topic, first)).chain(rest).collect()
}

/// A byte from a socket through a pipe into a socket.
fn try_splice() -> io::Result<()> {
    let timeout = Some(Duration::from_secs(1));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_read_timeout(timeout)?;
    far.set_read_timeout(timeout)?;
    let (read, write, _) = sys::pipe(limits::PIPE_NARROW_BYTES)?;
    near.write_all(b"x")?;
    let moved = sys::splice(far.as_fd(), write.as_fd(), 1)?;
    sys::splice(read.as_fd(), far.as_fd(), moved)?;
    let mut byte = [0];
    near.read_exact(&mut byte)?;
    far.flush()?;
    if byte == *b"x" { Ok(()) } else { Err(io::Error::other("a byte was changed")) }
}

fn splice(outcome: io::Result<()>) -> Finding {
    match outcome {
        Ok(()) => Finding::ok("splice", "socket to pipe to socket"),
        Err(error) => Finding::fail(
            "splice",
            format!("a byte does not go from socket to pipe to socket: {error}"),
            "large bodies fail",
            "allow splice and pipe2 in the seccomp profile",
        ),
    }
}

fn cgroup(mountinfo: &str) -> Finding {
    let mount = mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4))?
    });
    match mount {
        Some(path) => Finding::ok("cgroup2", format!("mounted at {path}")),
        None => Finding::warn(
            "cgroup2",
            "not mounted",
            "eBPF cannot be attached: no flush latency per connection",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

/// Capabilities for eBPF that `/proc/self/status` does not show as effective.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(number, _)| bits >> number & 1 == 0);
    missing.map(|(_, name)| *name).collect()
}

fn bpf(missing: &[&str], tried: Result<String, Lack>) -> Finding {
    let (topic, cost) = ("eBPF", "flush latency and RTT per connection are not measured");
    match tried {
        Ok(what) => Finding::ok(topic, format!("programs load and run: {what}")),
        Err(lack) if missing.is_empty() => Finding::warn(topic, lack.cause, cost, lack.cure),
        Err(lack) => {
            let fact = format!("this process lacks {}: {}", missing.join(" and "), lack.cause);
            let cure = "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN in the unit";
            Finding::warn(topic, fact, cost, cure)
        }
    }
}

/// The hard limit on open files in `/proc/self/limits`, to which the gateway raises its own; None for no limit.
pub(super) fn descriptors_max(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether the descriptors are enough for the connections that the configuration wants.
pub(super) fn descriptors(max: Option<u64>, connections: usize) -> Finding {
    let topic = "files";
    let wanted = 2 * connections as u64 + limits::DESCRIPTORS_RESERVED;
    match max {
        Some(max) if max < wanted => {
            let affordable = max.saturating_sub(limits::DESCRIPTORS_RESERVED) / 2;
            let fact = format!(
                "at most {max} descriptors are enough for {affordable} connections; \
                 limits.connections is {connections}"
            );
            let cure = format!("LimitNOFILE={wanted} in the unit, or ulimit -Hn {wanted}");
            match affordable {
                0 => Finding::fail(topic, fact, "every connection is shed", cure),
                _ => Finding::warn(topic, fact, "connections beyond that are shed", cure),
            }
        }
        _ => Finding::ok(topic, format!("enough descriptors for {connections} connections")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn old_kernels_fail() {
        assert_eq!(version("6.1.0-28-amd64").verdict, Verdict::Ok);
        assert_eq!(version("5.10.1").verdict, Verdict::Ok);
        assert_eq!(version("4.19.0-1").verdict, Verdict::Fail);
    }

    #[test]
    fn each_refusal_of_a_ring_has_its_cure() {
        let cure = |error| ring(Err(error)).cure.unwrap();
        assert!(cure(StartError::Disabled(2)).contains("sysctl kernel.io_uring_disabled=0"));
        assert!(cure(StartError::Forbidden).contains("seccomp"));
        assert!(cure(StartError::Memory).contains("MEMLOCK"));
        let Setup { submissions, completions, delivery } = Setup::default();
        let good = Ring { delivery, submissions, completions };
        assert_eq!(ring(Ok(good)).verdict, Verdict::Ok);
        assert_eq!(ring(Ok(Ring { submissions: 64, ..good })).verdict, Verdict::Warn);
        let older = Ring { delivery: Delivery::SingleIssuer, ..good };
        assert_eq!(ring(Ok(older)).verdict, Verdict::Warn);
    }

    #[test]
    fn mounts_capabilities_and_limits_are_read() {
        let mounts = "25 30 0:22 / /proc rw - proc proc rw\n30 1 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n";
        assert!(cgroup(mounts).fact.ends_with("/sys/fs/cgroup"));
        assert_eq!(cgroup("").verdict, Verdict::Warn);
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000001000\n"), ["CAP_BPF"]);
        assert_eq!(missing_capabilities(""), ["CAP_NET_ADMIN", "CAP_BPF"]);
        let limits = "Max processes  1 2 processes\nMax open files            1024                 4096                 files\n";
        assert_eq!(descriptors_max(limits), Some(4096));
        assert_eq!(descriptors(Some(4096), 1000).verdict, Verdict::Ok);
        assert!(descriptors(Some(4096), 20_000).fact.contains("1984 connections"));
        assert_eq!(descriptors(Some(100), 20_000).verdict, Verdict::Fail);
    }

    #[test]
    fn a_refused_bpf_is_a_warning_with_its_cure() {
        let refused = || Err(Lack { cause: "it is refused".to_owned(), cure: "allow it" });
        let found = bpf(&[], refused());
        assert_eq!((found.verdict, found.cure.as_deref()), (Verdict::Warn, Some("allow it")));
        let found = bpf(&["CAP_BPF"], refused());
        assert!(found.fact.contains("CAP_BPF") && found.cure.unwrap().contains("Ambient"));
        assert_eq!(bpf(&["CAP_BPF"], Ok("in /x".to_owned())).verdict, Verdict::Ok);
    }

    #[test]
    fn splicing_works_on_the_machine_that_tests() {
        try_splice().unwrap();
    }
}
