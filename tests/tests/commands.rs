//! `cargo xtask run`, as a newcomer types it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tlsplice_fixtures::browser::Browser;
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{certificate::Certificate, packages};
use tlsplice_tests::{PATIENCE, target};

/// A release build from nothing takes minutes.
const BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

#[test]
fn run_serves_a_demo_that_a_browser_shows_and_ends_with_0() {
    packages::ensure(packages::BROWSER).expect("the packages can be installed");
    let port = tlsplice_fixtures::free_port().expect("a port");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in a workspace");
    let mut command = Command::new(cargo);
    command
        .args(["xtask", "run", "--listen", &format!("127.0.0.1:{port}")])
        .current_dir(workspace)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut run = Process::spawn("cargo xtask run", &mut command).expect("it starts");
    let stderr = run.child_mut().stderr.take().expect("stderr is piped");
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // Two processes write it, so that on a busy machine the address to open may come before the gateway's own lines.
    let (mut report, mut url) = (Vec::<String>::new(), None);
    let is_there = |report: &[String], word: &str| report.iter().any(|line| line.contains(word));
    let words = ["workers", "TLS", "an embedded demo", "config", "trust"];
    while url.is_none() || !words.iter().all(|word| is_there(&report, word)) {
        let line = lines.recv_timeout(BUILD_TIMEOUT).unwrap_or_else(|_| {
            panic!("the report is not complete:\n{}", report.join("\n"));
        });
        if let Some(address) = line.trim().strip_prefix("open  ") {
            url = Some(address.trim().to_owned());
        }
        report.push(line);
    }
    let url = url.unwrap_or_default();
    assert_eq!(url, format!("https://localhost:{port}/"));

    let certificate = Certificate::ensure(&target().join("run/certificate"), &["127.0.0.1"])
        .expect("the one that is in use");
    let directory = tempfile::tempdir().expect("a directory");
    let mut browser = Browser::start(&directory.path().join("profile"), &certificate.spki_sha256)
        .expect("Chromium starts");
    browser.open(&url).expect("the page loads");
    let text = |id: &str| format!("document.getElementById('{id}').textContent");
    browser.wait_until(&format!("Number({}) > 5", text("count"))).expect("messages come back");
    browser.wait_until(&format!("Number({}) > 1", text("tick"))).expect("events come");
    for (id, expected) in [
        ("address", "127.0.0.1".to_owned()),
        ("scheme", "https".into()),
        ("host", format!("localhost:{port}")),
    ] {
        assert_eq!(browser.evaluate(&text(id)).expect("it is shown"), expected.as_str());
    }
    let shots = target().join("screenshots");
    fs::create_dir_all(&shots).expect("a directory");
    browser.screenshot(&shots.join("demo.png")).expect("a screenshot");
    assert_eq!(browser.console_errors(), Vec::<String>::new(), "the page's console");
    // An open page has a WebSocket and an event stream, which would use up the drain deadline.
    drop(browser);

    run.signal(Signal::INT).expect("it runs");
    let status = run.wait(PATIENCE * 2).expect("it ends");
    assert_eq!(status.code(), Some(0));
}
