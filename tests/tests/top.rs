//! `tlsplice top` as a command: what it says without a gateway, and with one.

use std::path::Path;
use std::process::{Command, Output};

use tlsplice_tests::gateway::binary;

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
