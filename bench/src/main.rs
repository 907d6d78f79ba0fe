//! The program behind `cargo xtask bench`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser as _;
use tlsplice_bench::floor::{self, Addresses, FLOORS, Floor};
use tlsplice_bench::gateways::Kind;
use tlsplice_bench::micro::Cost;
use tlsplice_bench::options::Options;
use tlsplice_bench::report::{self, Report};
use tlsplice_bench::run::{self, Plan};
use tlsplice_bench::{install, micro, network, scenario};
use tlsplice_fixtures::{Error, Result};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [first, rest @ ..] if let Some(floor) = floor(first) => relay(floor, rest),
        _ => bench(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn floor(name: &str) -> Option<Floor> {
    FLOORS.into_iter().find(|floor| floor.name() == name)
}

/// A process of its own, as the gateways are.
fn relay(floor: Floor, arguments: &[String]) -> Result<()> {
    let [plain, tls, origin, certificate, key] = arguments else {
        return Err(Error::failed("the relay takes three addresses and two files"));
    };
    let address = |text: &str| {
        let failed = |_| Error::failed(format!("{text:?} is no address"));
        text.parse::<SocketAddr>().map_err(failed)
    };
    let addresses =
        Addresses { plain: address(plain)?, tls: address(tls)?, origin: address(origin)? };
    floor::run(floor, addresses, Path::new(certificate), Path::new(key))
        .map_err(Error::io("the relay ended"))
}

fn bench(options: &Options) -> Result<()> {
    let scenarios = scenario::load(options.scenario.as_deref(), options.point.as_deref())?;
    if options.list {
        print!("{}", scenario::list(&scenarios));
        return Ok(());
    }
    if options.micro {
        return count(options);
    }
    let has_kernel_tls = has_kernel_tls(&options.tlsplice)?;
    if options.paths && !has_kernel_tls {
        println!(
            "This kernel has no TLS (module `tls`): TLS is done in user space whatever `offload` says, and there is \
             nothing to compare it with. `modprobe tls` may help. What follows is user/copy alone.\n"
        );
    }
    let (kinds, left_out) =
        install::rivals(options.kinds(has_kernel_tls)?, &options.scratch().join("next"))?;
    let plan = Plan {
        kinds,
        scenarios,
        quick: options.quick,
        runs: options.runs.max(1),
        warm_up: options.warm_up(),
        window: options.window(),
        bound: options.bound(),
        directory: options.scratch().join("run"),
        binary: options.tlsplice.clone(),
        next: options.scratch().join("next"),
    };
    install::tools(&plan)?;
    // Not before: what is installed comes from the network of the machine.
    let _network = network::enter(options.congestion_control.as_deref())?;
    let version = |kind: &Kind| (kind.name().to_owned(), kind.version(&plan.binary, &plan.next));
    let versions = plan.kinds.iter().map(version).collect();
    let outcomes = run::run(&plan)?;
    let report = Report {
        date: report::today(),
        machine: report::machine(),
        versions,
        left_out,
        runs: plan.runs,
        window_seconds: plan.window.as_secs_f64(),
        outcomes,
    };
    println!("\n{}\n{}", report::details(&report), report::bars(&report));
    if options.paths {
        println!("{}", report::advice(&report));
    }
    println!("{}", report.provenance());
    report.write(&options.out())?;
    println!("report: {}", options.out().join("report.html").display());
    Ok(())
}

fn count(options: &Options) -> Result<()> {
    install::valgrind()?;
    let program = |name| options.tlsplice.with_file_name(name);
    let print = |costs: Vec<Cost>| {
        for cost in costs {
            println!("{:<66} {:>12.0} {:>12.2}", cost.step, cost.instructions, cost.allocations);
        }
    };
    println!("{:<66} {:>12} {:>12}", "step", "instructions", "allocations");
    print(micro::count(&program("tlsplice-micro"))?);
    let gateway = program("tlsplice-unconfined");
    print(micro::count_requests(&gateway, &options.scratch().join("micro"))?);
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
