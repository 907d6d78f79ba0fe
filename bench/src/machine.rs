//! The machine: its cores, and what a process may have.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{Error, Result};

/// Load and origin have both ends of every connection in one process.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, what does not fit fails and is told.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many cores this process had when it was first asked: a thread that has been pinned sees only its own.
pub(crate) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// The core that the gateway does not have, where there is one.
pub(crate) fn load_core() -> usize {
    cores().min(2) - 1
}

/// Pins a thread, named as `/proc` does it.
pub(crate) fn taskset(thread: &str, cores: &str) -> Result<()> {
    let thread = thread.rsplit('/').next().unwrap_or_default();
    let status = Command::new("taskset")
        .args(["--cpu-list", "--pid", cores, thread])
        .stdout(Stdio::null())
        .status()
        .map_err(Error::io("cannot run taskset"))?;
    if status.success() { Ok(()) } else { Err(Error::failed("taskset cannot pin the load")) }
}

/// Keeps all cores from sleeping until what it returns is dropped: a virtual one that sleeps may take milliseconds to wake,
/// whatever it is woken for. What does that runs only when nothing else wants to (`SCHED_IDLE`), and gives way to
/// whatever is woken; on a core that is always busy it gets a turn of some milliseconds now and then.
///
/// # Errors
/// When there is no `chrt`.
pub(crate) fn keep_awake() -> Result<Vec<Process>> {
    let keep = |core: usize| {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "taskset", "--cpu-list", &core.to_string()]);
        command.args(["sh", "-c", "while :; do :; done"]);
        Process::spawn("what keeps a core awake", &mut command)
    };
    (0..cores()).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// `sched(7)`.
    const SCHED_IDLE: u32 = 5;

    #[test]
    fn a_thread_on_the_first_core_still_knows_the_second() {
        let (all, of_the_load) = (cores(), load_core());
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: 0 }));
        assert_eq!(thread::available_parallelism().map_or(0, usize::from), 1, "what it sees");
        assert_eq!((cores(), load_core()), (all, of_the_load));
    }

    #[test]
    fn cores_are_kept_awake_by_what_gives_way_and_ends() {
        let awake = keep_awake().expect("chrt");
        let policy = |process: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).ok()?;
            // The 41st field; the second one is a name in parentheses.
            stat.rsplit_once(") ")?.1.split(' ').nth(38)?.parse::<u32>().ok()
        };
        let begun = Instant::now();
        while !awake.iter().all(|process| policy(process) == Some(SCHED_IDLE)) {
            assert!(begun.elapsed() < Duration::from_secs(10), "they do not run");
            thread::sleep(Duration::from_millis(5));
        }
        let ids: Vec<u32> = awake.iter().map(Process::id).collect();
        assert_eq!(ids.len(), cores());
        drop(awake);
        assert!(ids.iter().all(|id| !std::path::Path::new(&format!("/proc/{id}")).exists()));
    }
}
