//! What a gateway costs, as the kernel accounts for it.
//!
//! Run time comes from `schedstat`: nanoseconds, of every thread, with the kernel's own workers for its ring and with
//! the network work done in its name. Threads that ended within a window are missed.

use std::fs;
use std::ops::Sub;

/// Counters of a process and all its descendants, or the difference between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time, nanoseconds.
    pub cpu_ns: u64,
    /// Voluntary and involuntary context switches.
    pub switches: u64,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// The process and everything that descends from it.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// The parent in `/proc/PID/stat`; the name before it may hold anything, also parentheses.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// What these processes have used so far. A thread that has ended counts for nothing.
#[must_use]
pub fn usage(processes: &[u32]) -> Usage {
    let mut sum = Usage::default();
    for pid in processes {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let path = task.path();
            let schedstat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            sum.cpu_ns += run_time(&schedstat);
            // Reading the status of thousands of idle threads would itself be load.
            if run_time(&schedstat) > 0 {
                let status = fs::read_to_string(path.join("status")).unwrap_or_default();
                sum.switches += switches(&status);
            }
        }
    }
    sum
}

/// Run time of the calling thread, nanoseconds.
#[must_use]
pub fn this_thread_ns() -> u64 {
    run_time(&fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default())
}

/// The calling thread, for [`thread_ns`].
#[must_use]
pub fn this_thread() -> String {
    fs::read_link("/proc/thread-self")
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Run time of a thread of this process, nanoseconds.
#[must_use]
pub fn thread_ns(thread: &str) -> u64 {
    run_time(&fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default())
}

/// Run time of the children of this process that have ended, nanoseconds, in steps of the kernel's ticks.
#[must_use]
pub fn children_ns() -> u64 {
    const TICK_NS: u64 = 10_000_000;
    ended_children(&fs::read_to_string("/proc/self/stat").unwrap_or_default()) * TICK_NS
}

/// `cutime` and `cstime` of a `stat`, ticks.
fn ended_children(stat: &str) -> u64 {
    let Some((_, rest)) = stat.rsplit_once(") ") else { return 0 };
    rest.split(' ').skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn run_time(schedstat: &str) -> u64 {
    schedstat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn switches(status: &str) -> u64 {
    let fields = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
    status
        .lines()
        .filter_map(|line| {
            let value = fields.iter().find_map(|field| line.strip_prefix(field))?;
            value.trim().parse::<u64>().ok()
        })
        .sum()
}

/// Proportional set size of these processes, bytes: shared pages count by their share. None without permission.
#[must_use]
pub fn pss(processes: &[u32]) -> Option<u64> {
    let mut sum = 0;
    for pid in processes {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        sum += pss_of(&rollup)?;
    }
    Some(sum)
}

fn pss_of(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_of_the_kernel_are_read() {
        assert_eq!(parent("7 (a (b) c) S 42 7 7 0"), Some(42));
        assert_eq!(run_time("123456 789 10\n"), 123_456);
        let stat = "1 (x) S 2 3 4 5 6 7 8 9 10 11 100 200 300 400 20 0";
        assert_eq!(ended_children(stat), 700);
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(switches(status), 12);
        assert_eq!(
            pss_of("Rss:  9 kB\nPss:                  12 kB\nPss_Anon: 3 kB\n"),
            Some(12_288)
        );
    }

    #[test]
    fn work_shows() {
        let own = [std::process::id()];
        let before = usage(&own);
        let mut x = 1_u64;
        for i in 0..20_000_000_u64 {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
        }
        let used = usage(&own) - before;
        assert!(used.cpu_ns > 1_000_000, "{used:?}");
        assert!(pss(&own).is_some_and(|bytes| bytes > 100_000));
        assert!(tree(std::process::id()).contains(&own[0]));
    }
}
