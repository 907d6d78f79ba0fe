use std::process::Command;

pub use tlsplice_fixtures::network::Network;

/// A network of this thread's own; None for others than root.
///
/// # Panics
/// When root cannot have it.
#[must_use]
pub fn enter() -> Option<Network> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root may have a network of its own");
        return None;
    }
    Some(Network::enter().unwrap_or_else(|error| panic!("{error}")))
}

/// Runs a program, in the network of this thread.
///
/// # Panics
/// When it fails.
pub fn run(program: &str, arguments: &[&str]) {
    tlsplice_fixtures::network::run(program, arguments).unwrap_or_else(|error| panic!("{error}"));
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
