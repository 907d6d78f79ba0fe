//! `cargo xtask soak` and `cargo xtask load`: build gateway and load as users run them, and start the latter.

use std::hash::{BuildHasher as _, RandomState};
use std::process::{Command, ExitCode};

use tlsplice_fixtures::{Error, Result};

use crate::{profile, tools};

/// How long, and which schedule.
#[derive(clap::Args)]
pub(crate) struct SoakOptions {
    /// How long, about.
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// Of the schedule of faults and clients [default: a new one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// In which time the next request must succeed when a fault is over, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    recovery_ms: u64,
}

/// How much at once.
#[derive(clap::Args)]
pub(crate) struct LoadOptions {
    /// Tunnels that are open and silent.
    #[arg(long, default_value_t = 5000)]
    idle: u32,
    /// Tunnels with messages.
    #[arg(long, default_value_t = 200)]
    active: u32,
    /// Slow clients of each kind.
    #[arg(long, default_value_t = 100)]
    slow: u32,
    /// Handshakes per second that come to nothing.
    #[arg(long, default_value_t = 500)]
    handshakes: u32,
}

/// Builds and starts the soak.
pub(crate) fn soak(options: &SoakOptions) -> Result<ExitCode> {
    let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    let seconds = options.minutes.max(1) * 60;
    eprintln!("{} minutes with seed {seed}; again: --seed {seed}", options.minutes.max(1));
    run("soak", &[("--seconds", seconds), ("--seed", seed), ("--recovery-ms", options.recovery_ms)])
}

/// Builds and starts the load.
pub(crate) fn load(options: &LoadOptions) -> Result<ExitCode> {
    let LoadOptions { idle, active, slow, handshakes } = *options;
    let numbers =
        [("--idle", idle), ("--active", active), ("--slow", slow), ("--handshakes", handshakes)];
    run("load", &numbers.map(|(name, number)| (name, u64::from(number))))
}

fn run(name: &str, numbers: &[(&str, u64)]) -> Result<ExitCode> {
    let driver = format!("tlsplice-{name}");
    profile::build_release(&[
        "--package",
        "tlsplice-tests",
        "--bin",
        "tlsplice",
        "--bin",
        &driver,
    ])?;
    let report = tools::target().join(format!("{name}.json"));
    let release = tools::target().join("release");
    let mut command = Command::new(release.join(&driver));
    command.env("TLSPLICE_TEST_BINARY", profile::gateway());
    for (name, number) in numbers {
        command.arg(name).arg(number.to_string());
    }
    let status = command.arg("--report").arg(&report).status();
    let status = status.map_err(Error::io(format!("cannot run {driver}")))?;
    eprintln!("report: {}", report.display());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
