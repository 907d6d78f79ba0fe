//! The program behind `cargo xtask load`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tlsplice_tests::load::{self, Options};

/// Messages of tunnels in use may take so many times as long beside hostile clients.
const RATIO_MAX: f64 = 3.0;

/// Tunnels beside hostile clients.
#[derive(Parser)]
struct Arguments {
    /// Tunnels that are open and silent.
    #[arg(long, default_value_t = Options::WHOLE.idle)]
    idle: usize,
    /// Tunnels with messages.
    #[arg(long, default_value_t = Options::WHOLE.active)]
    active: usize,
    /// Slow clients of each kind.
    #[arg(long, default_value_t = Options::WHOLE.slow)]
    slow: usize,
    /// Handshakes per second that come to nothing.
    #[arg(long, default_value_t = Options::WHOLE.handshakes)]
    handshakes: u32,
    /// Where the report is written, as JSON.
    #[arg(long)]
    report: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { idle, active, slow, handshakes, report } = Arguments::parse();
    let options = Options { idle, active, slow, handshakes, ..Options::WHOLE };
    let found = match load::run(options, |line| eprintln!("{line}")) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{found}");
    let json = serde_json::to_string_pretty(&found).expect("a report is JSON");
    if let Err(error) = std::fs::write(&report, json) {
        eprintln!("error: cannot write {}: {error}", report.display());
        return ExitCode::FAILURE;
    }
    let is_left = found.descriptors[1] > found.descriptors[0];
    if found.ratio() < RATIO_MAX && !is_left { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
