//! The program behind `cargo xtask soak`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tlsplice_tests::soak::{self, Options};

/// Mixed load under a schedule of faults.
#[derive(Parser)]
struct Arguments {
    /// How long, about.
    #[arg(long)]
    seconds: u64,
    /// Of the schedule.
    #[arg(long)]
    seed: u64,
    /// In which time the next request must succeed after a fault.
    #[arg(long, default_value_t = 1000)]
    recovery_ms: u64,
    /// Where the report is written, as JSON.
    #[arg(long)]
    report: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        seed: arguments.seed,
        length: Duration::from_secs(arguments.seconds),
        recovery: Duration::from_millis(arguments.recovery_ms),
    };
    let report = soak::run(options, |line| eprintln!("{line}"));
    println!("{report}");
    let json = serde_json::to_string_pretty(&report).expect("a report is JSON");
    if let Err(error) = std::fs::write(&arguments.report, json) {
        eprintln!("error: cannot write {}: {error}", arguments.report.display());
        return ExitCode::FAILURE;
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
