//! The program behind `cargo xtask bench`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use tlsplice_bench::gateways::{Kind, Route};
use tlsplice_bench::report::{self, Report};
use tlsplice_bench::run::{self, Plan};
use tlsplice_bench::scenario;
use tlsplice_fixtures::{Error, Result};

/// Compares tlsplice with its rivals, and with itself.
#[derive(Parser)]
struct Arguments {
    /// The points that matter most, in less than 4 minutes instead of 30.
    #[arg(long)]
    quick: bool,
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<String>,
    /// Rivals, separated by commas; `none` for tlsplice alone.
    #[arg(long, value_delimiter = ',', default_value = "nginx,haproxy,apache")]
    rivals: Vec<String>,
    /// Where report.json, report.html and summary.svg are written.
    #[arg(long)]
    out: PathBuf,
    /// Compare the record layer in user space with that in the kernel, without rivals.
    #[arg(long)]
    paths: bool,
    /// Count instructions and allocations of steps of the hot path instead.
    #[arg(long)]
    micro: bool,
    /// List the scenarios.
    #[arg(long)]
    list: bool,
    /// Runs of each gateway and point.
    #[arg(long)]
    runs: Option<usize>,
    /// Milliseconds that count in each run.
    #[arg(long)]
    window_ms: Option<u64>,
    /// The gateway's program.
    #[arg(long)]
    tlsplice: PathBuf,
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    if arguments.micro {
        let program = arguments.tlsplice.with_file_name("tlsplice-micro");
        println!("{:<55} {:>12} {:>12}", "step", "instructions", "allocations");
        for cost in tlsplice_bench::micro::count(&program)? {
            println!("{:<55} {:>12.0} {:>12.2}", cost.step, cost.instructions, cost.allocations);
        }
        return Ok(());
    }
    let scenarios = scenario::load(arguments.scenario.as_deref())?;
    if arguments.list {
        for scenario in &scenarios {
            println!("{:<10} {}", scenario.name, scenario.title);
            for point in &scenario.points {
                println!(
                    "           - {}{}",
                    point.name,
                    if point.quick { " (quick)" } else { "" }
                );
            }
        }
        return Ok(());
    }
    let window = Duration::from_millis(arguments.window_ms.unwrap_or(if arguments.quick {
        250
    } else {
        1000
    }));
    let plan = Plan {
        kinds: kinds(arguments)?,
        scenarios,
        quick: arguments.quick,
        runs: arguments.runs.unwrap_or(5).max(1),
        warm_up: window / 4,
        window,
        bound: Duration::from_secs(if arguments.quick { 205 } else { 1680 }),
        directory: arguments.out.join("run"),
        binary: arguments.tlsplice.clone(),
    };
    let versions = plan
        .kinds
        .iter()
        .map(|kind| (kind.name().to_owned(), kind.version(&plan.binary)))
        .collect();
    let report = Report {
        date: report::today(),
        machine: report::machine(),
        versions,
        runs: plan.runs,
        window_seconds: plan.window.as_secs_f64(),
        outcomes: run::run(&plan)?,
    };
    println!("\n{}\n{}", report::details(&report), report::bars(&report));
    if arguments.paths {
        println!("{}", report::advice(&report));
    }
    report.write(&arguments.out)?;
    println!("{}, {}", report.date, report.machine);
    for (name, version) in &report.versions {
        println!("  {name}: {version}");
    }
    println!("report: {}", arguments.out.join("report.html").display());
    Ok(())
}

/// Whether the gateway found out, by doing it, that the kernel takes TLS over.
fn has_kernel_tls(binary: &Path) -> Result<bool> {
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .map_err(Error::io(format!("cannot run {}", binary.display())))?;
    Ok(!String::from_utf8_lossy(&output.stdout).contains("TLS in user space"))
}

fn kinds(arguments: &Arguments) -> Result<Vec<Kind>> {
    if arguments.paths {
        let routes: &[Route] = if has_kernel_tls(&arguments.tlsplice)? {
            &[Route::UserCopy, Route::KernelCopy, Route::KernelSplice]
        } else {
            println!(
                "This kernel has no TLS (module `tls`): TLS is done in user space whatever `offload` says, and there \
                 is nothing to compare it with. `modprobe tls` may help. What follows is user/copy alone.\n"
            );
            &[Route::UserCopy]
        };
        return Ok(routes.iter().copied().map(Kind::Tlsplice).collect());
    }
    let mut kinds = vec![Kind::Tlsplice(Route::Auto)];
    for name in arguments.rivals.iter().filter(|name| *name != "none") {
        kinds.push(match name.as_str() {
            "nginx" => Kind::Nginx,
            "haproxy" => Kind::Haproxy,
            "apache" => Kind::Apache,
            other => {
                return Err(Error::failed(format!(
                    "unknown rival {other:?}; there are nginx, haproxy, apache and none"
                )));
            }
        });
    }
    Ok(kinds)
}
