//! `cargo xtask bench`: builds the gateway and the benchmark as users run them, and starts the latter.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result, packages};

use crate::tools;

/// Programs that are compared: name, and the package, which is also what its service is called.
const RIVALS: [(&str, &str); 3] =
    [("nginx", "nginx"), ("haproxy", "haproxy"), ("apache", "apache2")];

/// What is measured.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The points that matter most, in about 4 minutes; without it all, in about 30.
    #[arg(long)]
    quick: bool,
    /// Only this scenario; `--list` names them.
    #[arg(long, value_name = "S")]
    scenario: Option<String>,
    /// Rivals, separated by commas; `none` for the gateway alone.
    #[arg(long, value_delimiter = ',', default_value = "nginx,haproxy,apache")]
    rivals: Vec<String>,
    /// Where report.json, report.html and summary.svg are written [default: target/bench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Compare TLS in user space with TLS in the kernel on this machine, and say which `offload` is best.
    #[arg(long)]
    paths: bool,
    /// Count instructions and allocations of steps of the hot path instead, by valgrind.
    #[arg(long)]
    micro: bool,
    /// List the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Runs of each gateway and point [default: 5].
    #[arg(long)]
    runs: Option<usize>,
    /// Milliseconds that count in each run [default: 1000, with --quick 250].
    #[arg(long)]
    window_ms: Option<u64>,
}

/// Builds and starts it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if !options.list {
        install(options)?;
    }
    let build = ["build", "--release", "--locked", "--package", "tlsplice"];
    tools::must_succeed(
        "the build",
        &mut tools::cargo(&[&build[..], &["--package", "tlsplice-bench"]].concat()),
    )?;
    let release = tools::target().join("release");
    let out = options.out.clone().unwrap_or_else(|| tools::target().join("bench"));
    let mut command = Command::new(release.join("tlsplice-bench"));
    command.arg("--tlsplice").arg(release.join("tlsplice")).arg("--out").arg(out);
    command.arg("--rivals").arg(options.rivals.join(","));
    let flags = [
        ("--quick", options.quick),
        ("--paths", options.paths),
        ("--micro", options.micro),
        ("--list", options.list),
    ];
    for (flag, is_set) in flags {
        command.args(is_set.then_some(flag));
    }
    if let Some(scenario) = &options.scenario {
        command.args(["--scenario", scenario]);
    }
    if let Some(runs) = options.runs {
        command.args(["--runs", &runs.to_string()]);
    }
    if let Some(window) = options.window_ms {
        command.args(["--window-ms", &window.to_string()]);
    }
    let status = command.status().map_err(Error::io("cannot run the benchmark"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Rivals that are missing; the services that their packages start are stopped, for they take ports and time.
fn install(options: &Options) -> Result<()> {
    if options.micro {
        return tools::ensure_packages(&["valgrind"]);
    }
    if options.paths {
        return tools::ensure_packages(packages::TOMCAT);
    }
    let wanted: Vec<&str> = RIVALS
        .iter()
        .filter(|(name, _)| options.rivals.iter().any(|rival| rival == name))
        .map(|(_, package)| *package)
        .collect();
    let missing = packages::missing(&wanted)?;
    tools::ensure_packages(&[&wanted[..], packages::TOMCAT].concat())?;
    for package in missing {
        // Fails where no service manager runs, and then nothing was started.
        let _ = Command::new("service")
            .args([package, "stop"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    Ok(())
}
