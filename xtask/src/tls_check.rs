//! `cargo xtask tls-check`: what scanners by other hands think of the gateway's TLS.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// The version of sslyze that is installed.
const SSLYZE: &str = "6.2.0";

/// What Debian calls the other one, and what a Python environment needs.
const PACKAGES: &[&str] = &["testssl.sh", "python3-venv"];

/// What testssl.sh finds and this check passes over, and why.
const EXCUSED: &[(&str, &str)] = &[
    (
        "cipher_order",
        "the client chooses, as Mozilla's guideline has it: all ciphers on offer are good, and a client without AES \
         instructions knows that ChaCha20 is better for it",
    ),
    ("cert_revocation", "the certificate is this command's own, and says nothing of revocation"),
];

/// How long the gateway may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs both scanners against a gateway in front of the demo.
pub(crate) fn run() -> Result<ExitCode> {
    tools::ensure_packages(PACKAGES)?;
    tools::must_succeed("the build", &mut tools::cargo(&["build", "--package", "tlsplice"]))?;
    let directory = tools::target().join("tls-check");
    let certificate = Certificate::ensure(&directory.join("certificate"), &[])?;
    let demo = Demo::start()?;
    let port = tlsplice_fixtures::free_port()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _gateway =
        start(&directory, address, &certificate, &format!("http://{}/", demo.address()))?;
    let mut is_good = true;
    let mut judge = |name: &str, verdict: Result<String>| match verdict {
        Ok(text) => println!("{name}: good{text}"),
        Err(error) => {
            is_good = false;
            println!("{name}: {error}");
        }
    };
    eprintln!("testssl.sh (some minutes)");
    judge("testssl.sh", testssl(&directory, port, &certificate.authority));
    match sslyze_program() {
        Ok(program) => judge("sslyze", sslyze(&program, port, &certificate.authority)),
        Err(error) => println!("sslyze: skipped, it cannot be installed: {error}"),
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn start(
    directory: &Path,
    address: SocketAddr,
    certificate: &Certificate,
    upstream: &str,
) -> Result<Process> {
    let quote = |text: &str| Value::from(text).to_string();
    let config = directory.join("tlsplice.toml");
    // Fields that are the application's affair; scanners miss them.
    let text = format!(
        "[[listener]]\naddress = \"{address}\"\n[tls]\ncertificate = {}\nkey = {}\n[[route]]\nupstream = {}\n\
         response_headers = {{ set = {{ X-Frame-Options = \"DENY\", X-Content-Type-Options = \"nosniff\", \
         Content-Security-Policy = \"default-src 'self'\", Referrer-Policy = \"no-referrer\" }} }}\n",
        quote(&certificate.chain.to_string_lossy()),
        quote(&certificate.key.to_string_lossy()),
        quote(upstream),
    );
    fs::write(&config, text).map_err(Error::io("cannot write the configuration"))?;
    let mut command = Command::new(tools::target().join("debug/tlsplice"));
    let mut gateway =
        Process::spawn("the gateway", command.arg("run").arg("--config").arg(&config))?;
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = gateway.try_wait()? {
            return Err(Error::failed(format!("the gateway ended at once ({status})")));
        }
        if begun.elapsed() > START_TIMEOUT {
            let what = format!("listening on {address}");
            return Err(Error::Timeout { what, seconds: START_TIMEOUT.as_secs() });
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(gateway)
}

fn testssl(directory: &Path, port: u16, authority: &Path) -> Result<String> {
    let report = directory.join("testssl.json");
    // It does not write over one.
    let _ = fs::remove_file(&report);
    let log = directory.join("testssl.txt");
    let output = fs::File::create(&log).map_err(Error::io("cannot write its report"))?;
    let mut command = Command::new("testssl");
    command
        .args(["--quiet", "--warnings", "off", "--color", "0", "--ip", "127.0.0.1", "--add-ca"])
        .arg(authority)
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("https://localhost:{port}/"))
        .stdout(output);
    // Its exit status counts what it could not do.
    command.status().map_err(Error::io("cannot run testssl"))?;
    let text = fs::read_to_string(&report).map_err(Error::io("testssl wrote no report"))?;
    judge_testssl(&text)
}

/// From the findings of testssl.sh to a verdict: an error names those of medium severity or worse.
fn judge_testssl(report: &str) -> Result<String> {
    let findings: Vec<Value> = serde_json::from_str(report)
        .map_err(|error| Error::failed(format!("testssl's report cannot be read: {error}")))?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let is_bad = |finding: &&Value| {
        matches!(&*text(finding, "severity"), "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL")
    };
    let (mut excuses, mut faults) = (String::new(), Vec::new());
    for finding in findings.iter().filter(is_bad) {
        let id = text(finding, "id");
        match EXCUSED.iter().find(|(excused, _)| *excused == id) {
            Some((_, reason)) => {
                // Writing to a string cannot fail.
                let _ = write!(excuses, "\n  passed over: {id}: {reason}");
            }
            None => faults.push(format!(
                "{id} ({}): {}",
                text(finding, "severity"),
                text(finding, "finding")
            )),
        }
    }
    // Each protocol that is on offer is a finding of its own; a scan that saw none saw nothing.
    let has_seen = findings.iter().any(|finding| text(finding, "id") == "TLS1_3");
    match (&faults[..], has_seen) {
        ([], true) => Ok(format!(", {} findings below medium{excuses}", findings.len())),
        ([], false) => Err(Error::failed("it saw no TLS at all")),
        (faults, _) => Err(Error::failed(faults.join("; "))),
    }
}

/// sslyze in an environment of its own, installed once.
fn sslyze_program() -> Result<PathBuf> {
    let environment = tools::target().join("tools/sslyze");
    let program = environment.join("bin/sslyze");
    if !program.exists() {
        eprintln!("installing sslyze {SSLYZE} from PyPI (once)");
        let mut make = Command::new("python3");
        tools::must_succeed("python3 -m venv", make.args(["-m", "venv"]).arg(&environment))?;
        let mut install = Command::new(environment.join("bin/pip"));
        install.args(["install", "--quiet", "--disable-pip-version-check"]);
        tools::must_succeed("pip", install.arg(format!("sslyze=={SSLYZE}")))?;
    }
    Ok(program)
}

fn sslyze(program: &Path, port: u16, authority: &Path) -> Result<String> {
    let output = Command::new(program)
        .args(["--mozilla_config=intermediate", "--certinfo", "--certinfo_ca_file"])
        .arg(authority)
        .arg(format!("localhost:{port}"))
        .output()
        .map_err(Error::io("cannot run sslyze"))?;
    judge_sslyze(&String::from_utf8_lossy(&output.stdout))
}

/// Whether sslyze finds what Mozilla recommends ("intermediate").
fn judge_sslyze(text: &str) -> Result<String> {
    let (_, verdict) = text
        .split_once("COMPLIANCE AGAINST TLS CONFIGURATION")
        .ok_or_else(|| Error::failed("it gave no verdict"))?;
    if verdict.contains(": OK - Compliant.") {
        return Ok(", what Mozilla's \"intermediate\" configuration asks for".to_owned());
    }
    let faults = verdict.lines().filter_map(|line| line.trim().strip_prefix("* "));
    Err(Error::failed(faults.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_medium_severity_count_unless_there_is_a_reason() {
        let report = |id: &str, severity: &str| {
            format!(
                r#"[{{"id":"TLS1_3","severity":"OK","finding":"offered"}},
                    {{"id":"{id}","severity":"{severity}","finding":"x"}}]"#
            )
        };
        assert!(judge_testssl(&report("BEAST", "OK")).is_ok());
        assert!(judge_testssl(&report("DNS_CAArecord", "LOW")).is_ok());
        for severity in ["MEDIUM", "HIGH", "CRITICAL"] {
            let error = judge_testssl(&report("BEAST", severity)).expect_err("it is bad");
            assert!(error.to_string().contains("BEAST"), "{error}");
        }
        let excused = judge_testssl(&report("cipher_order", "HIGH")).expect("there is a reason");
        assert!(excused.contains("passed over: cipher_order"), "{excused}");
        assert!(judge_testssl("[]").is_err(), "nothing seen is nothing proved");
    }

    #[test]
    fn sslyze_says_yes_or_why_not() {
        let verdict =
            |text: &str| judge_sslyze(&format!("COMPLIANCE AGAINST TLS CONFIGURATION\n{text}"));
        assert!(verdict("    localhost:1: OK - Compliant.\n").is_ok());
        let error = verdict("  localhost:1: FAILED - Not compliant.\n     * ciphers: RC4\n");
        assert!(error.expect_err("it is bad").to_string().contains("ciphers: RC4"));
        assert!(judge_sslyze("").is_err());
    }
}
