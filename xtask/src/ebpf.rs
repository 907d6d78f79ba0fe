//! `cargo xtask ebpf`: the programs for the kernel, from their sources to the object beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use tlsplice_fixtures::{Error, Result};

use crate::tools;

mod cost;

/// The compiler for BPF that Debian has, and the tool that strips.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "llvm"];

/// Debian's compiler; rustup's comes first in the path and has no BPF.
const RUSTC: &str = "/usr/bin/rustc";

/// The version of the linker; its LLVM must not be older than the compiler's.
const BPF_LINKER: &str = "0.13.0";

/// The version of LLVM that linker is built for.
const LLVM: &str = "22";

const TARGET: &str = "bpfel-unknown-none";

#[derive(Args)]
pub(crate) struct Options {
    /// Build, and compare with the object that is checked in instead of replacing it.
    #[arg(long)]
    check: bool,

    /// Print what the programs cost: instructions, time per packet, and CPU per request. Needs root.
    #[arg(long, conflicts_with = "check")]
    cost: bool,
}

/// The command.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    if options.cost {
        return cost::print();
    }
    if options.check {
        check()?;
        println!("{} is what its sources make", object().display());
        return Ok(ExitCode::SUCCESS);
    }
    let bytes = build()?;
    fs::write(object(), &bytes).map_err(Error::io("cannot write the object"))?;
    println!("{}: {} bytes", object().display(), bytes.len());
    Ok(ExitCode::SUCCESS)
}

/// Builds, and compares byte for byte with what is checked in.
pub(crate) fn check() -> Result<()> {
    let built = build()?;
    let kept = fs::read(object()).map_err(Error::io("cannot read the object"))?;
    if built == kept {
        return Ok(());
    }
    let place = tools::target().join("ebpf/tlsplice.bpf.o");
    Err(Error::failed(format!(
        "{} ({} bytes) is not what its sources make ({} bytes, kept as {}): run `cargo xtask ebpf` and commit it",
        object().display(),
        kept.len(),
        built.len(),
        place.display()
    )))
}

/// The object that the gateway is built with.
fn object() -> PathBuf {
    sources().join("tlsplice.bpf.o")
}

fn sources() -> PathBuf {
    tools::workspace().join("ebpf")
}

/// A compiler that knows BPF.
enum Compiler {
    /// One with a library for it.
    Prebuilt(PathBuf),
    /// A nightly that builds the library from its sources.
    Nightly,
}

impl Compiler {
    fn find() -> Result<Self> {
        let prebuilt = std::env::var_os("EBPF_RUSTC").map_or_else(|| RUSTC.into(), PathBuf::from);
        if has_core(&prebuilt) {
            return Ok(Self::Prebuilt(prebuilt));
        }
        let nightly = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
        let sysroot = nightly.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let library = "lib/rustlib/src/rust/library/core";
        if sysroot.is_ok_and(|sysroot| Path::new(sysroot.trim()).join(library).is_dir()) {
            return Ok(Self::Nightly);
        }
        tools::ensure_packages(&PACKAGES)?;
        Ok(Self::Prebuilt(RUSTC.into()))
    }
}

/// Whether a compiler has the core library for BPF.
fn has_core(rustc: &Path) -> bool {
    let printed = Command::new(rustc).args(["--print", "sysroot"]).output();
    let Ok(printed) = printed else { return false };
    let sysroot = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    let library = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(library).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// Builds the object and returns its bytes without debug information.
fn build() -> Result<Vec<u8>> {
    let compiler = Compiler::find()?;
    let linker = linker()?;
    let place = tools::target().join("ebpf");
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v2".to_owned(),
    ];
    // Line information names files; the object must not depend on where they are.
    for (from, to) in [(sources(), "ebpf"), (cargo_home(), "cargo")] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let mut command = Command::new("cargo");
    let mut build = vec!["build", "--quiet", "--release", "--locked", "--target", TARGET];
    match &compiler {
        Compiler::Prebuilt(rustc) => {
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
        Compiler::Nightly => {
            command.arg("+nightly");
            build.push("-Zbuild-std=core");
        }
    }
    command
        .args(build)
        .arg("--target-dir")
        .arg(&place)
        .current_dir(sources())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // Set by the cargo that runs this, for the toolchain of the workspace.
        .env_remove("RUSTFLAGS");
    if matches!(compiler, Compiler::Nightly) {
        command.env_remove("RUSTUP_TOOLCHAIN");
    }
    tools::must_succeed("the build of the BPF programs", &mut command)?;
    let stripped = place.join("tlsplice.bpf.o");
    let mut strip = Command::new("llvm-objcopy");
    strip.arg("--strip-debug").arg(place.join(TARGET).join("release/tlsplice-ebpf")).arg(&stripped);
    tools::must_succeed("llvm-objcopy (Debian package llvm)", &mut strip)?;
    fs::read(&stripped).map_err(Error::io("cannot read the object that was built"))
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// The linker of this machine, else one built once under the build folder with Debian's LLVM.
fn linker() -> Result<PathBuf> {
    let root = tools::target().join("tools");
    let program = root.join("bin/bpf-linker");
    if is_linker(&program) {
        return Ok(program);
    }
    if is_linker(Path::new("bpf-linker")) {
        return Ok("bpf-linker".into());
    }
    eprintln!("building bpf-linker {BPF_LINKER} (once, takes some minutes)");
    let library = llvm()?;
    // All that its build wants of an installation of LLVM.
    let prefix = root.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib")).map_err(Error::io("cannot make a directory"))?;
    // It may stand there from an earlier attempt.
    drop(fs::remove_file(&link));
    std::os::unix::fs::symlink(&library, &link).map_err(Error::io("cannot link to LLVM"))?;
    let mut command = tools::cargo(&["install", "--quiet", "--locked", "bpf-linker"]);
    command
        .args(["--version", BPF_LINKER, "--no-default-features", "--features"])
        .arg(format!("llvm-{LLVM}"))
        .arg("--root")
        .arg(&root)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    tools::must_succeed("the build of bpf-linker", &mut command)?;
    Ok(program)
}

fn is_linker(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER))
}

/// LLVM's library, which comes with Debian's compiler.
fn llvm() -> Result<PathBuf> {
    let prefix = format!("libLLVM.so.{LLVM}.");
    let directories = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let files = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let found = files.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    });
    found.ok_or_else(|| {
        Error::failed(format!("there is no {prefix}* (Debian package libllvm{LLVM})"))
    })
}
