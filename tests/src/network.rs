use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tlsplice_fixtures::process::Process;

use crate::wait_for;

/// A network of this thread's own, with a loopback device and nothing else. Threads and processes that this thread starts
/// from then on are in it, too. It is gone when all of them are.
pub struct Network {
    holder: Process,
}

impl Network {
    /// Makes one and moves this thread into it. None for others than root.
    ///
    /// # Panics
    /// When root cannot have it.
    #[must_use]
    pub fn enter() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: only root may have a network of its own");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdout(Stdio::null());
        let holder = Process::spawn("a network", &mut command).expect("it starts");
        let network = Self { holder };
        let own =
            std::fs::read_link("/proc/thread-self/ns/net").expect("this thread has a network");
        wait_for("the network", || (std::fs::read_link(network.path()).ok()? != own).then_some(()));
        network.join();
        run("ip", &["link", "set", "lo", "up"]);
        Some(network)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Moves another thread into it.
    ///
    /// # Panics
    /// When it cannot be.
    pub fn join(&self) {
        let file = File::open(self.path()).expect("the network is there");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may");
    }
}

/// Runs a program, in the network of this thread.
///
/// # Panics
/// When it fails.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Sets what a packet filter is to do, in the words of nft(8).
///
/// # Panics
/// When nft does not take it.
pub fn filter(rules: &str) {
    run("nft", &[rules]);
}

/// How many packets the rules with a counter have met; None without such rules.
///
/// # Panics
/// When nft does not tell.
#[must_use]
pub fn met() -> Option<u64> {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts = text.split("counter packets ").skip(1);
    let counts = counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    counts.reduce(|sum, count| sum + count)
}

/// Sets a variable of the kernel for the network of this thread.
///
/// # Panics
/// When it cannot be set.
pub fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}
