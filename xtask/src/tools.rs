//! Where things are, and how programs are called.

use std::path::{Path, PathBuf};
use std::process::Command;

use tlsplice_fixtures::{Error, Result, packages};

/// The top of the workspace.
pub(crate) fn workspace() -> &'static Path {
    // xtask lies directly below it, and is always run by cargo from its sources.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The build folder, where also everything that the commands make is kept.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => workspace().join(path),
        None => workspace().join("target"),
    }
}

/// `cargo` with `arguments`, at the top of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(workspace());
    command
}

/// Runs a command to its end.
pub(crate) fn must_succeed(what: &str, command: &mut Command) -> Result<()> {
    let status = command.status().map_err(Error::io(format!("cannot run {what}")))?;
    if status.success() { Ok(()) } else { Err(Error::failed(format!("{what} failed ({status})"))) }
}

/// Installs Debian packages that are missing, and says which.
pub(crate) fn ensure_packages(wanted: &[&str]) -> Result<()> {
    let missing = packages::missing(wanted)?;
    if !missing.is_empty() {
        eprintln!("installing {} (takes a minute or two)", missing.join(" "));
    }
    packages::ensure(wanted).map(drop)
}
