//! What the gateway does often, recorded once for the compiler: it keeps such code together, apart from what is rare, and in
//! straight lines.
//!
//! `proxy/rustc-VERSION.profdata` is the record, and every release build of these commands uses it. Names of functions in it
//! hold only for the compiler that made it, whose version is in the name; with another one the build does without, and
//! says so. Functions that have changed since they were recorded are built as if they had not been.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use tlsplice_fixtures::{Error, Result};

use crate::compiler::{self, Llvm};
use crate::tools;

/// What the benchmark does with a gateway that counts: everything that is worth being quick, some seconds of each.
const TRAINING: [&str; 7] = ["--quick", "--rivals", "none", "--runs", "1", "--window-ms", "500"];

/// Builds the gateway as it is installed, with the recorded profile, and what else `arguments` name.
pub(crate) fn build_release(arguments: &[&str]) -> Result<()> {
    let build = ["build", "--release", "--locked", "--package", "tlsplice"];
    let mut command = tools::cargo(&[&build[..], arguments].concat());
    let version = compiler::version()?;
    let recorded = file(&version);
    if recorded.exists() {
        let mut flags = flags("-Cprofile-use=", &named_by_content(&recorded)?);
        // Else there is a warning for each function that has changed since.
        flags.push("\u{1f}-Cllvm-args=-no-pgo-warn-mismatch");
        command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    } else {
        eprintln!(
            "there is no profile for rustc {version}, with which small requests cost a tenth less; `cargo xtask profile` \
             records one"
        );
    }
    tools::must_succeed("the build", &mut command)
}

/// Builds the gateway, and tells where it is.
pub(crate) fn build() -> Result<ExitCode> {
    build_release(&[])?;
    println!("{}", tools::target().join("release/tlsplice").display());
    Ok(ExitCode::SUCCESS)
}

/// Builds a gateway that counts, has the benchmark use it, and keeps what was counted.
pub(crate) fn record() -> Result<ExitCode> {
    let llvm = Llvm::find()?;
    let directory = tools::target().join("profile");
    let raw = directory.join("raw");
    eprintln!("==> [1/3] a gateway that counts");
    // It runs without the protection that lets the gateway open no file at its end.
    let package = ["--package", "tlsplice-bench"];
    let build = ["build", "--release", "--locked", "--bin", "tlsplice-unconfined"];
    let mut counting = tools::cargo(&[&build[..], &package].concat());
    counting.env("CARGO_ENCODED_RUSTFLAGS", flags("-Cprofile-generate=", &raw));
    counting.env("CARGO_TARGET_DIR", &directory);
    tools::must_succeed("the build", &mut counting)?;
    // What programs of the build itself counted.
    tools::remove_folder(&raw)?;
    eprintln!("==> [2/3] the load");
    let build = ["build", "--release", "--locked", "--bin", "tlsplice-bench"];
    tools::must_succeed("the build", &mut tools::cargo(&[&build[..], &package].concat()))?;
    let mut bench = Command::new(tools::target().join("release/tlsplice-bench"));
    bench.args(TRAINING).arg("--tlsplice").arg(directory.join("release/tlsplice-unconfined"));
    tools::must_succeed("the benchmark", &mut bench)?;
    eprintln!("==> [3/3] the profile");
    let profile = file(&compiler::version()?);
    llvm.merge(&raw, &profile)?;
    println!("{}", profile.display());
    Ok(ExitCode::SUCCESS)
}

fn file(version: &str) -> PathBuf {
    tools::workspace().join(format!("proxy/rustc-{version}.profdata"))
}

/// A copy whose name tells what is in it: cargo builds again when flags change, and does not look into files that they name.
fn named_by_content(recorded: &Path) -> Result<PathBuf> {
    let bytes = fs::read(recorded).map_err(Error::io("cannot read the profile"))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let directory = tools::target().join("profile");
    let copy = directory.join(format!("{:016x}.profdata", hasher.finish()));
    let failed = || Error::io(format!("cannot write {}", copy.display()));
    fs::create_dir_all(&directory).map_err(failed())?;
    if !copy.exists() {
        fs::write(&copy, bytes).map_err(failed())?;
    }
    Ok(copy)
}

/// The user's own flags for the compiler, and `flag` with `path`, as cargo takes them from `CARGO_ENCODED_RUSTFLAGS`: there
/// a path may have spaces.
fn flags(flag: &str, path: &Path) -> OsString {
    let mut flags = OsString::new();
    for own in env::var("RUSTFLAGS").unwrap_or_default().split_whitespace() {
        flags.push(own);
        flags.push("\u{1f}");
    }
    flags.push(flag);
    flags.push(path);
    flags
}
