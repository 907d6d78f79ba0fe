use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tlsplice_ebpf_common::Direction;

use crate::PATIENCE;
use crate::bpf::Kernel;
use crate::gateway::Gateway;
use crate::wait_for;

/// Stops a gateway as a whole, so that what arrives meanwhile waits inside of it. Copies share the gateway, which may be
/// named after an upstream that holds it has started.
#[derive(Clone, Default)]
pub struct Brake(Arc<OnceLock<Held>>);

struct Held {
    process: Pid,
    kernel: Kernel,
}

impl Brake {
    /// Names the gateway, which must have programs in the kernel.
    ///
    /// # Panics
    /// When it has none, or one was named before.
    pub fn set(&self, gateway: &Gateway) {
        let process = Pid::from_raw(gateway.id().cast_signed()).expect("it runs");
        let kernel = Kernel::of_running(gateway);
        assert!(self.0.set(Held { process, kernel }).is_ok(), "it is set once");
    }

    /// Does `act`, which has bytes of the upstream arrive, while the gateway stands, and lets it go on `delay` after the
    /// kernel has seen them.
    ///
    /// # Errors
    /// That of `act`, or of a gateway that is gone.
    ///
    /// # Panics
    /// When no gateway was named, it does not stop, or nothing arrives.
    pub fn hold(&self, delay: Duration, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let Held { process, kernel } = self.0.get().expect("a gateway was named");
        stop(*process)?;
        act()?;
        let begun = Instant::now();
        while !kernel.is_waiting(Direction::Down) {
            assert!(begun.elapsed() < PATIENCE, "the kernel has not seen them arrive");
        }
        let arrived = Instant::now();
        while arrived.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill_process(*process, Signal::CONT)?;
        Ok(())
    }
}

/// Does `act` while a gateway stands.
///
/// # Panics
/// When it does not stop.
pub fn standing<T>(gateway: &Gateway, act: impl FnOnce() -> T) -> T {
    let process = Pid::from_raw(gateway.id().cast_signed()).expect("it runs");
    stop(process).expect("it can be stopped");
    let done = act();
    kill_process(process, Signal::CONT).expect("it goes on");
    done
}

/// Stops all threads.
fn stop(process: Pid) -> io::Result<()> {
    kill_process(process, Signal::STOP)?;
    wait_for("the gateway's standstill", || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).ok()?;
        let stands = |task: fs::DirEntry| {
            fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
        };
        tasks.flatten().all(stands).then_some(())
    });
    Ok(())
}
