//! The machine: its cores, and what a process may have.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_on_the_first_core_still_knows_the_second() {
        let (all, of_the_load) = (cores(), load_core());
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: 0 }));
        assert_eq!(thread::available_parallelism().map_or(0, usize::from), 1, "what it sees");
        assert_eq!((cores(), load_core()), (all, of_the_load));
    }
}
