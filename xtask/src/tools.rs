//! Where things are, and how programs are called.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
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

/// Removes a folder with all that is in it, if there is one.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("cannot empty {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Runs a command to its end.
pub(crate) fn must_succeed(what: &str, command: &mut Command) -> Result<()> {
    let status = command.status().map_err(Error::io(format!("cannot run {what}")))?;
    if status.success() { Ok(()) } else { Err(Error::failed(format!("{what} failed ({status})"))) }
}

/// A program in `directory` that runs the compiler with `flags` added: for cargo's `RUSTC_WORKSPACE_WRAPPER`, which asks
/// it for the crates of this workspace alone and keeps what it made apart from everything else.
pub(crate) fn compiler_wrapper(directory: &Path, flags: &str) -> Result<PathBuf> {
    let path = directory.join("rustc");
    fs::create_dir_all(directory)
        .map_err(Error::io(format!("cannot make {}", directory.display())))?;
    write_script(&path, &format!("exec \"$@\" {flags}\n"))?;
    Ok(path)
}

/// Writes a program of lines for the shell.
pub(crate) fn write_script(path: &Path, lines: &str) -> Result<()> {
    let failed = || Error::io(format!("cannot write {}", path.display()));
    fs::write(path, format!("#!/bin/sh\n{lines}")).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed())
}

/// Runs a build that tells of its results as JSON, and returns the one program among them.
pub(crate) fn executable_of(command: &mut Command) -> Result<PathBuf> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(Error::io("cannot run cargo"))?;
    let messages = output.stdout.split(|&byte| byte == b'\n');
    let program = messages
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    program
        .filter(|_| output.status.success())
        .ok_or_else(|| Error::failed(format!("the build failed ({})", output.status)))
}

/// Installs Debian packages that are missing, and says which.
pub(crate) fn ensure_packages(wanted: &[&str]) -> Result<()> {
    let missing = packages::missing(wanted)?;
    if !missing.is_empty() {
        eprintln!("installing {} (takes a minute or two)", missing.join(" "));
    }
    packages::ensure(wanted).map(drop)
}
