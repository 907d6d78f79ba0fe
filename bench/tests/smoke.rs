//! The benchmark from end to end, as short as it can be: it measures something, and writes what it found. No figure is
//! judged here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The gateway's program, built on first use.
fn gateway() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--quiet", "--locked", "--package", "tlsplice"];
    let status = Command::new(cargo).args(arguments).status().expect("cargo runs");
    assert!(status.success(), "the gateway does not build");
    PathBuf::from(env!("CARGO_BIN_EXE_tlsplice-bench")).with_file_name("tlsplice")
}

fn bench(scenario: &str) -> Value {
    let out = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_tlsplice-bench"))
        .arg("--tlsplice")
        .arg(gateway())
        .arg("--out")
        .arg(out.path())
        .args(["--quick", "--rivals", "none", "--runs", "1", "--window-ms", "250"])
        .args(["--scenario", scenario])
        // The machine has another one, presumably.
        .args(["--congestion-control", "reno"])
        .output()
        .expect("the benchmark runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let page = fs::read_to_string(out.path().join("report.html")).expect("a page");
    assert!(page.contains("<svg") && !page.contains("<script"), "{page}");
    assert!(
        fs::read_to_string(out.path().join("summary.svg"))
            .is_ok_and(|svg| svg.ends_with("</svg>\n"))
    );
    let json = fs::read_to_string(out.path().join("report.json")).expect("a report");
    serde_json::from_str(&json).expect("JSON")
}

#[test]
fn requests_and_messages_are_counted_and_cost_something() {
    for scenario in ["get", "echo", "handshake"] {
        let report = bench(scenario);
        assert!(
            report["machine"].as_str().is_some_and(|told| told.contains("TCP reno")),
            "{report}"
        );
        let outcomes = report["outcomes"].as_array().expect("outcomes");
        assert!(!outcomes.is_empty());
        for outcome in outcomes {
            let cell = &outcome["cells"][0];
            assert_eq!(cell["failure"], Value::Null, "{outcome}");
            let sample = &cell["samples"][0];
            assert!(sample["cpu_us_per_unit"].as_f64().is_some_and(|cost| cost > 1.0), "{outcome}");
            assert!(
                sample["units_per_second"].as_f64().is_some_and(|rate| rate > 1.0),
                "{outcome}"
            );
        }
    }
}
