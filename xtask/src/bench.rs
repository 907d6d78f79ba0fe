//! `cargo xtask bench`: builds the gateway and the benchmark as users run them, and starts the latter.

use std::process::{Command, ExitCode};

use tlsplice_fixtures::{Error, Result};

use crate::profile;

/// What is measured: known to the benchmark only, `--help` too.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Options of the benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and starts it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    profile::build_release(&["--package", "tlsplice-bench"])?;
    let status = Command::new(profile::benchmark())
        .arg("--tlsplice")
        .arg(profile::gateway())
        .args(&options.arguments)
        .status()
        .map_err(Error::io("cannot run the benchmark"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
