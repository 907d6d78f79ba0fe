//! What the gateway does often, recorded once for the compiler: it keeps such code together, apart from what is rare, and in
//! straight lines. What it has made is then put into another order (`layout`).
//!
//! `proxy/rustc-VERSION.profdata` is the record, and every release build of these commands uses it. Names of functions in it
//! hold only for the compiler that made it, whose version is in the name; with another one the build does without, and
//! says so. Functions that have changed since they were recorded are built as if they had not been, and so are most of the
//! gateway's when one of its dependencies is another, since names tell of those, too.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use tlsplice_fixtures::{Error, Result};

use crate::compiler::{self, Llvm};
use crate::layout::{self, Bolt};
use crate::tools;

/// What the benchmark does with a gateway that counts: everything that is worth being quick, some seconds of each.
const TRAINING: [&str; 7] = ["--quick", "--rivals", "none", "--runs", "1", "--window-ms", "500"];

/// Runs the program that is named as the script is, without its ending.
const UNCONFINED: &str = "exec strace -D -f --seccomp-bpf -qq -o \"${0%.sh}.strace\" \
    -e trace=seccomp,landlock_restrict_self -e inject=seccomp,landlock_restrict_self:retval=0 \"${0%.sh}\" \"$@\"\n";

/// What is recorded.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Record the order of the code only, and keep the profile for the compiler.
    #[arg(long)]
    order: bool,
}

/// Builds the gateway as it is installed, with what was recorded, and what else `arguments` name.
pub(crate) fn build_release(arguments: &[&str]) -> Result<()> {
    let version = compiler::version()?;
    if !file(&version).exists() {
        eprintln!(
            "there is no profile for rustc {version}, with which small requests cost a tenth less; `cargo xtask profile` \
             records one"
        );
        return compile(arguments, None, None);
    }
    let record = layout_file(&version);
    let bolt = if record.exists() { Bolt::find().map(Some) } else { Ok(None) };
    let bolt = or_word(bolt).flatten();
    compile(arguments, Some(&file(&version)), bolt.as_ref().map(|_| layout::MOVABLE))?;
    // Until it has succeeded, the program is as it was linked, which serves as well.
    or_word(bolt.map_or(Ok(()), |bolt| bolt.apply(&gateway(), &record, &directory())));
    Ok(())
}

/// What came of a step on the way to code in order, or a word on what its failure costs.
fn or_word<T>(result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error| {
            eprintln!(
                "the code stays as it was linked, with which requests on few connections cost about a twentieth more: {error}"
            );
        })
        .ok()
}

/// Builds with a profile and one more flag, where there are any.
fn compile(arguments: &[&str], profile: Option<&Path>, flag: Option<&str>) -> Result<()> {
    let build = ["build", "--release", "--locked", "--package", "tlsplice"];
    let mut command = tools::cargo(&[&build[..], arguments].concat());
    if let Some(profile) = profile {
        let mut flags = flags("-Cprofile-use=", &named_by_content(profile)?);
        // Else there is a warning for each function that has changed since.
        flags.push("\u{1f}-Cllvm-args=-no-pgo-warn-mismatch");
        if let Some(flag) = flag {
            flags.push("\u{1f}");
            flags.push(flag);
        }
        command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    }
    tools::must_succeed("the build", &mut command)
}

/// Builds the gateway, and tells where it is.
pub(crate) fn build() -> Result<ExitCode> {
    build_release(&[])?;
    println!("{}", gateway().display());
    Ok(ExitCode::SUCCESS)
}

/// Records what is asked for: first for the compiler, then for the order of what it makes of that.
pub(crate) fn record(options: &Options) -> Result<ExitCode> {
    let version = compiler::version()?;
    let bolt = Bolt::find()?;
    tools::ensure_packages(&["strace"])?;
    if !options.order {
        record_profile(&version)?;
    }
    record_order(&bolt, &version)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds a gateway that counts, has the benchmark use it, and keeps what was counted.
fn record_profile(version: &str) -> Result<()> {
    let llvm = Llvm::find()?;
    let directory = directory();
    let raw = directory.join("raw");
    eprintln!("==> [profile 1/3] a gateway that counts calls");
    // It runs without the protection that lets the gateway open no file at its end.
    let package = ["--package", "tlsplice-bench"];
    let build = ["build", "--release", "--locked", "--bin", "tlsplice-unconfined"];
    let mut counting = tools::cargo(&[&build[..], &package].concat());
    counting.env("CARGO_ENCODED_RUSTFLAGS", flags("-Cprofile-generate=", &raw));
    counting.env("CARGO_TARGET_DIR", &directory);
    tools::must_succeed("the build", &mut counting)?;
    // What programs of the build itself counted.
    tools::remove_folder(&raw)?;
    eprintln!("==> [profile 2/3] the load");
    let build = ["build", "--release", "--locked", "--bin", "tlsplice-bench"];
    tools::must_succeed("the build", &mut tools::cargo(&[&build[..], &package].concat()))?;
    train(&directory.join("release/tlsplice-unconfined"))?;
    eprintln!("==> [profile 3/3] the profile");
    let profile = file(version);
    llvm.merge(&raw, &profile)?;
    println!("{}", profile.display());
    Ok(())
}

/// Has the benchmark use the gateway as it is installed, but for the order of its code, and keeps how often what was run.
fn record_order(bolt: &Bolt, version: &str) -> Result<()> {
    eprintln!("==> [order 1/3] a gateway built with the profile that counts blocks");
    compile(&["--package", "tlsplice-bench"], Some(&file(version)), Some(layout::MOVABLE))?;
    let (counts, counting) = (directory().join("counts"), directory().join("counting"));
    tools::remove_folder(&counts)?;
    fs::create_dir_all(&counts).map_err(Error::io("cannot make a folder"))?;
    bolt.instrument(&gateway(), &counting, &counts)?;
    eprintln!("==> [order 2/3] the load");
    train(&unconfined(&counting)?)?;
    eprintln!("==> [order 3/3] the order");
    let record = layout_file(version);
    bolt.record(&gateway(), &counts, &record)?;
    println!("{}", record.display());
    Ok(())
}

/// A program that runs `gateway` without the protection that lets it open no file at its end: strace has the calls that ask
/// the kernel for it succeed without being made. It is the very gateway, as its order must be that of the one installed: of another
/// program that does the same, a third of what ran was in functions that are compiled otherwise.
fn unconfined(gateway: &Path) -> Result<PathBuf> {
    let path = gateway.with_extension("sh");
    tools::write_script(&path, UNCONFINED)?;
    Ok(path)
}

/// Has the benchmark use a gateway.
fn train(gateway: &Path) -> Result<()> {
    let mut bench = Command::new(benchmark());
    bench.args(TRAINING).arg("--tlsplice").arg(gateway);
    tools::must_succeed("the benchmark", &mut bench)
}

/// Where the gateway is built.
pub(crate) fn gateway() -> PathBuf {
    tools::target().join("release/tlsplice")
}

/// Where the benchmark is built.
pub(crate) fn benchmark() -> PathBuf {
    tools::target().join("release/tlsplice-bench")
}

/// Where what is made on the way is kept.
fn directory() -> PathBuf {
    tools::target().join("profile")
}

fn layout_file(version: &str) -> PathBuf {
    tools::workspace().join(format!("proxy/rustc-{version}.layout.gz"))
}

fn file(version: &str) -> PathBuf {
    tools::workspace().join(format!("proxy/rustc-{version}.profdata"))
}

/// A copy whose name tells what is in it: cargo builds again when flags change, and does not look into files that they name.
fn named_by_content(recorded: &Path) -> Result<PathBuf> {
    let bytes = fs::read(recorded).map_err(Error::io("cannot read the profile"))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let directory = directory();
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
