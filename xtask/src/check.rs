//! `cargo xtask test`: every check and test, in the order in which a failure is found soonest.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use tlsplice_fixtures::{Error, Result, packages};

use crate::{ebpf, fuzz, sbom, tools, vm};

/// The version of cargo-deny that is installed where there is none.
const CARGO_DENY: &str = "0.20.2";

/// What is tested.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only tests whose name contains this, and no other check.
    #[arg(value_name = "NAME")]
    filter: Option<String>,
}

/// Runs the checks; the first one that fails ends it, but all tests are run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut checks = 0;
    // Beside the steps below: tests, fuzz targets, and kernels.
    let steps_in_all = 9;
    if options.filter.is_none() {
        let steps: [(&str, &dyn Fn() -> Result<()>); 6] = [
            ("packages", &ensure_packages),
            ("format", &|| cargo("format", &["fmt", "--all", "--check"])),
            ("lints", &|| {
                cargo(
                    "clippy",
                    &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
                )
            }),
            ("dependencies", &deny),
            ("advisories", &|| sbom::check_advisories(&cargo_deny()?)),
            ("BPF object", &ebpf::check),
        ];
        for (index, (name, step)) in steps.iter().enumerate() {
            eprintln!("==> [{}/{steps_in_all}] {name}", index + 1);
            let start = Instant::now();
            step()?;
            eprintln!("    {name}: {:.0?}", start.elapsed());
            checks += 1;
        }
        eprintln!("==> [{}/{steps_in_all}] tests", steps_in_all - 2);
    }
    let summary = tests(options.filter.as_deref())?;
    let mut is_good = summary.is_success;
    if options.filter.is_none() {
        eprintln!("==> [{}/{steps_in_all}] fuzz targets", steps_in_all - 1);
        let start = Instant::now();
        let properties_hold = fuzz::short()?;
        is_good &= properties_hold;
        checks += u32::from(properties_hold);
        eprintln!("    fuzz targets: {:.0?}", start.elapsed());
        eprintln!("==> [{steps_in_all}/{steps_in_all}] kernels");
        let start = Instant::now();
        let kernels_are_good = vm::short()?;
        is_good &= kernels_are_good;
        checks += u32::from(kernels_are_good);
        eprintln!("    kernels: {:.0?}", start.elapsed());
    }
    for name in &summary.failures {
        println!("FAILED  {name}");
    }
    println!(
        "{checks} checks passed; tests: {} passed, {} failed, {} skipped; {:.0} s",
        summary.passed,
        summary.failed,
        summary.skipped,
        begun.elapsed().as_secs_f64()
    );
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(what: &str, arguments: &[&str]) -> Result<()> {
    tools::must_succeed(what, &mut tools::cargo(arguments))
}

fn ensure_packages() -> Result<()> {
    let wanted = [packages::TOMCAT, packages::BROWSER, packages::CLIENTS].concat();
    tools::ensure_packages(&wanted)
}

/// Licences, bans and sources, and how many crates there are.
fn deny() -> Result<()> {
    let program = cargo_deny()?;
    // Crates for other systems are read too; from here on the network is not needed.
    cargo("the download of crates", &["fetch", "--quiet", "--locked"])?;
    let mut command = Command::new(program);
    command
        .args(["--offline", "--all-features", "check", "--hide-inclusion-graph"])
        .args(["licenses", "bans", "sources"])
        .current_dir(tools::workspace());
    tools::must_succeed("cargo-deny", &mut command)?;
    eprintln!("    {}", sbom::Bill::read()?.count());
    Ok(())
}

/// The cargo-deny of this machine, else one built once under the build folder.
fn cargo_deny() -> Result<PathBuf> {
    let is_installed = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if is_installed {
        return Ok(PathBuf::from("cargo-deny"));
    }
    let root = tools::target().join("tools");
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        eprintln!("building cargo-deny {CARGO_DENY} (once, takes some minutes)");
        let mut command = tools::cargo(&[
            "install",
            "--quiet",
            "--locked",
            "cargo-deny",
            "--version",
            CARGO_DENY,
        ]);
        command.arg("--root").arg(&root);
        tools::must_succeed("the build of cargo-deny", &mut command)?;
    }
    Ok(program)
}

/// What all test binaries say together.
#[derive(Default)]
struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    is_success: bool,
}

impl Summary {
    fn on_line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |name: &str| {
                let parts = counts.split([';', '.']).map(str::trim);
                let mut numbers = parts.filter_map(|part| part.strip_suffix(name));
                numbers.find_map(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
            self.skipped += count("ignored");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

/// Runs the tests and shows their output as it comes.
fn tests(filter: Option<&str>) -> Result<Summary> {
    let failed = || Error::io("cannot run the tests");
    let mut command = tools::cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(filter).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed())?;
    let mut summary = Summary::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.map_err(failed())?;
            summary.on_line(&line);
            // Nobody looks at a closed terminal, but the tests still count.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
    summary.is_success = child.wait().map_err(failed())?.success();
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_added() {
        let mut summary = Summary::default();
        for line in [
            "test message::a ... ok",
            "test message::b ... FAILED",
            "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ] {
            summary.on_line(line);
        }
        assert_eq!((summary.passed, summary.failed, summary.skipped), (10, 1, 2));
        assert_eq!(summary.failures, ["message::b"]);
    }
}
