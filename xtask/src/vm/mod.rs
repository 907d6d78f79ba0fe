//! `cargo xtask vm`: the gateway on Debian's own kernels, under QEMU's software emulation.
//!
//! The end-to-end tests are built static and run inside, in each path of the record layer. Software emulation is slow but
//! runs everywhere; what is measured in it is right or wrong, never fast or slow.

mod foreign;
mod guest;
mod initramfs;
mod kernel;
mod packages;
mod plan;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_fixtures::{Error, Result, packages as fixtures, pattern};

use crate::{attacks, tools};
use kernel::Kernel;
use plan::{Choice, Extent, Plan};

/// Debian packages that the lane runs on.
const TOOLS: &[&str] = &["qemu-system-x86", "xz-utils"];

/// A file that Tomcat serves to a test in each guest, and its size in bytes.
const LARGE_FILE: &str = "guest.bin";
const LARGE_FILE_BYTES: usize = 3_000_000;

/// Which kernels, and which tests.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Some of the kernels 5.10, 6.1, 6.12 and newest, with commas between.
    #[arg(long, value_name = "KERNEL", default_value = "all", value_delimiter = ',', value_parser = ["5.10", "6.1", "6.12", "newest", "all"])]
    kernel: Vec<String>,

    /// Only tests whose name, or whose suite's, contains one of these.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,

    /// Only one path of the data, or one size of packets: a part of what the console calls a run, as `kernel/copy@1500`.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,

    /// What `cargo xtask test` runs: what is about kernels in the mode that is preferred, and payload in the other one that
    /// leaves TLS to the kernel.
    #[arg(long, conflicts_with_all = ["filter", "run", "cost"])]
    short: bool,

    /// Count the instructions that each mode costs instead, on 6.12 or the kernel that is named.
    #[arg(long, conflicts_with_all = ["filter", "run"])]
    cost: bool,
}

/// Runs the lane as the command does.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let extent = match (options.cost, options.short) {
        (true, _) => Extent::Cost,
        (false, true) => Extent::Short,
        (false, false) => Extent::Full,
    };
    let is_all = options.kernel.iter().any(|name| name == "all");
    let kernels: Vec<&str> = match extent {
        Extent::Cost if is_all => vec!["6.12"],
        _ => options.kernel.iter().map(String::as_str).collect(),
    };
    let names = options.filter.join(" ");
    let filter = Some(names.as_str()).filter(|names| !names.is_empty());
    let choice = Choice { filter, run: options.run.as_deref() };
    let (is_good, rows) = run(&kernels, extent, choice)?;
    if !rows.is_empty() {
        print!("{}", attacks::table(&rows));
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the test command runs, as `--short` does.
pub(crate) fn short() -> Result<bool> {
    run(&["all"], Extent::Short, Choice::default()).map(|(is_good, _)| is_good)
}

/// Runs the attack table on the kernel named so, or on all, in every mode; whether everything passed, and the lines that
/// say what came of the rows.
pub(crate) fn attacks(kernel: &str) -> Result<(bool, Vec<String>)> {
    run(&[kernel], Extent::Attacks, Choice::default())
}

/// Runs tests on the kernels named so, or on all; true when everything passed, and what was said of the attack table.
fn run(names: &[&str], extent: Extent, choice: Choice<'_>) -> Result<(bool, Vec<String>)> {
    tools::ensure_packages(TOOLS)?;
    let directory = tools::target().join("vm");
    let archive = packages::Archive::open(&directory)?;
    let mut programs = build(&directory)?;
    programs.extend(foreign::programs()?);
    let mut guests = Vec::new();
    let is_wanted = |kernel: &&Kernel| names.contains(&"all") || names.contains(&kernel.name);
    for kernel in kernel::ALL.iter().filter(is_wanted) {
        match kernel.fetch(&archive)? {
            Some(unpacked) => guests.push((kernel, unpacked)),
            None => eprintln!("    Linux {}: skipped, its package cannot be had", kernel.name),
        }
    }
    if guests.is_empty() {
        return Err(Error::failed("no kernel was run"));
    }
    let tomcat = if extent == Extent::Cost { None } else { Some(start_tomcat(&directory)?) };
    let tomcat_port = tomcat.as_ref().map_or(0, |tomcat| tomcat.address().port());
    let plan = Plan { extent, choice, tomcat_port };
    if extent != Extent::Cost {
        for (name, reason) in plan::LEFT_OUT {
            eprintln!("    left out in guests: {name} ({reason})");
        }
    }
    let run = |kernel: &Kernel, unpacked: &Unpacked| {
        let start = Instant::now();
        let image = initramfs::write(&directory, kernel, unpacked, &programs, plan)?;
        let verdict = guest::boot(&directory, kernel, unpacked, &image, plan)?;
        // Evidence is a help with problems and none of its own: kernels warn of this and that.
        let evidence: &[String] = if verdict.is_good() { &[] } else { &verdict.evidence };
        let problems: String =
            verdict.problems.iter().chain(evidence).map(|line| format!("\n      {line}")).collect();
        eprintln!("    Linux {:<7} {verdict} ({:.0?}){problems}", kernel.name, start.elapsed());
        print_costs(&verdict.costs);
        Ok((verdict.is_good(), verdict.rows))
    };
    // A guest waits as much as it works: two at a time use a machine better than one, and more would time out. The oldest
    // kernel, which has one mode only, fills the gap at the end.
    let queue = Mutex::new(guests.iter().rev());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some_of_them = || -> Vec<_> {
        std::iter::from_fn(next).map(|(kernel, unpacked)| run(kernel, unpacked)).collect()
    };
    let results: Vec<Result<(bool, Vec<String>)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(some_of_them)).collect();
        let lost = || vec![Err(Error::failed("the thread of a guest panicked"))];
        let results = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost()));
        results.flatten().collect()
    });
    let (mut is_good, mut rows) = (true, Vec::new());
    for result in results {
        let (is_guest_good, said) = result?;
        is_good &= is_guest_good;
        rows.extend(said);
    }
    Ok((is_good, rows))
}

/// A Tomcat on the loopback of the host, with what a test in each guest fetches from it.
fn start_tomcat(directory: &Path) -> Result<Tomcat> {
    fixtures::ensure(fixtures::TOMCAT)?;
    let tomcat = Tomcat::start(&directory.join("tomcat"))?;
    let file = tomcat.webapp().join(LARGE_FILE);
    fs::write(&file, pattern::bytes(LARGE_FILE_BYTES))
        .map_err(Error::io(format!("cannot write {}", file.display())))?;
    Ok(tomcat)
}

fn print_costs(costs: &[(String, String, f64)]) {
    for (run, name, figure) in costs {
        println!(
            "{:<16} {:<40} {figure:>10.2}",
            run.split('@').next().unwrap_or(run),
            name.replace('_', " ")
        );
    }
}

/// A program for the guest, with its place there.
struct Program {
    file: PathBuf,
    place: String,
}

/// Builds the gateway and the tests static, so that they need nothing of the guest.
fn build(directory: &Path) -> Result<Vec<Program>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    eprintln!("    building the gateway and its tests for the guests");
    let mut command = tools::cargo(&[
        "build",
        "--quiet",
        "--locked",
        "--release",
        "--target",
        TARGET,
        "--message-format=json",
        "--package",
        "tlsplice",
        "--package",
        "tlsplice-tests",
        "--bins",
    ]);
    // By name: all other tests, those of units above all, would take longer than these.
    command
        .args(plan::programs().flat_map(|name| ["--test", name]))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", directory.join("build"))
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        // Collecting entropy from the processor's timing takes an emulated one a second in each process; the kernel's is enough.
        .env("AWS_LC_SYS_NO_JITTER_ENTROPY", "1")
        .stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(Error::io("cannot run cargo"))?;
    if !output.status.success() {
        return Err(Error::failed("the static build failed"));
    }
    let mut programs = Vec::new();
    for line in output.stdout.split(|&byte| byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let (Some(file), Some(name)) =
            (message["executable"].as_str(), message["target"]["name"].as_str())
        else {
            continue;
        };
        let is_test = message["profile"]["test"] == true;
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let place = match (kind, is_test) {
            ("bin", false) if name == "tlsplice" => plan::GATEWAY.to_owned(),
            ("test", true) if plan::programs().any(|known| known == name) => plan::suite(name),
            _ => continue,
        };
        programs.push(Program { file: PathBuf::from(file), place });
    }
    if programs.len() == plan::programs().count() + 1 {
        return Ok(programs);
    }
    let places: Vec<&str> = programs.iter().map(|program| program.place.as_str()).collect();
    Err(Error::failed(format!("the static build gave only {}", places.join(", "))))
}

/// What is inside a kernel's packages.
struct Unpacked {
    image: PathBuf,
    /// Kernel modules by name, with `_` for `-`.
    modules: Vec<(String, PathBuf)>,
    busybox: PathBuf,
}

impl Kernel {
    fn fetch(&self, archive: &packages::Archive) -> Result<Option<Unpacked>> {
        let Some(root) = archive.kernel(self)? else { return Ok(None) };
        let (image, modules) = kernel::find(&root)?;
        Ok(Some(Unpacked { image, modules, busybox: archive.busybox()? }))
    }
}
