//! `tlsplice top` as a command: what it says without a gateway, and with one.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway, binary};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::wait_for;

fn top(socket: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("top").arg("--socket").arg(socket).args(more).output().expect("it runs")
}

#[test]
fn without_an_admin_socket_it_says_what_is_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = top(&directory.path().join("admin.sock"), &["--once"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("admin.sock: `[admin]` must be configured"), "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_terminal_it_says_how_to_do_without() {
    let output = top(Path::new("/nonexistent"), &[]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("no terminal: `--once`"), "{told}");
}

#[test]
fn a_wrong_command_line_is_told_apart() {
    for wrong in [&["--json"][..], &["--interval", "0"], &["--interval", "NaN"], &["--sort", "x"]] {
        let output = top(Path::new("/nonexistent"), wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

/// A gateway whose admin socket is in the directory.
fn watched(upstream: SocketAddr) -> (Gateway, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let gateway =
        Gateway::start(&Config::to(upstream).with(&format!("[admin]\nsocket = {socket:?}")));
    (gateway, directory)
}

fn client(from: &str, gateway: &Gateway) -> Client {
    let from = from.parse::<IpAddr>().expect("an address");
    Client::tls_from(SocketAddr::new(from, 0), gateway.https)
}

fn snapshot(directory: &TempDir) -> Value {
    let output = top(&directory.path().join("admin.sock"), &["--once", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_slow_upstream_is_found_and_a_quick_one_not_accused() {
    let origin = Origin::start(|connection| {
        loop {
            let request = connection.request()?;
            if request.contains("/late") {
                thread::sleep(Duration::from_millis(400));
            }
            connection.respond("answer")?;
        }
    });
    let (gateway, directory) = watched(origin.address());
    let mut late = client("127.0.0.2", &gateway);
    let mut quick = client("127.0.0.3", &gateway);
    assert_eq!(late.get("/late?token=secret").status, 200);
    assert_eq!(quick.get("/quick").status, 200);
    // A worker may tell of a response a moment after the client has it.
    let told = wait_for("both connections", || {
        let told = snapshot(&directory);
        let all = told["connections"].as_array().expect("a list");
        (all.iter().filter(|it| it["first_byte_ms"].is_number()).count() == 2).then_some(told)
    });
    let of = |address: &str| {
        let all = told["connections"].as_array().expect("a list");
        all.iter().find(|it| it["client"] == address).expect("the connection").clone()
    };
    let (late, quick) = (of("127.0.0.2"), of("127.0.0.3"));
    assert_eq!(late["why_slow"], "tomcat", "{told:#}");
    assert!(late["first_byte_ms"].as_f64().expect("a number") >= 400.0, "{told:#}");
    assert_ne!(quick["why_slow"], "tomcat", "{told:#}");
    assert!(!told.to_string().contains("secret"));
}

#[test]
fn the_table_names_the_client_and_the_upstream() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (gateway, directory) = watched(origin.address());
    let mut client = client("127.0.0.2", &gateway);
    assert_eq!(client.get("/").status, 200);
    let row = wait_for("the row", || {
        let output = top(&directory.path().join("admin.sock"), &["--once", "--sort", "age"]);
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().find(|line| line.starts_with("127.0.0.2:")).map(str::to_owned)
    });
    assert!(row.contains(&origin.address().to_string()), "{row}");
}
