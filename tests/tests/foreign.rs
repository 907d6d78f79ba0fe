//! TLS peers by other hands: curl and OpenSSL's own client.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{packages, pattern};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::{certificate, need};

fn before_demo() -> (Demo, Gateway) {
    need(packages::CLIENTS);
    let demo = Demo::start().expect("it starts");
    let gateway = Gateway::start(&Config::to(demo.address()));
    (demo, gateway)
}

#[test]
fn curl_moves_bodies_whole_with_each_version_and_cipher() {
    const BYTES: usize = 3_000_000;
    let (_demo, gateway) = before_demo();
    let directory = tempfile::tempdir().expect("a directory");
    let upload = directory.path().join("upload");
    std::fs::write(&upload, pattern::bytes(BYTES)).expect("it is written");
    let hash = pattern::sha256_of_pattern(BYTES as u64);
    let cases: [&[&str]; 6] = [
        &["--tlsv1.3", "--tls13-ciphers", "TLS_AES_128_GCM_SHA256"],
        &["--tlsv1.3", "--tls13-ciphers", "TLS_AES_256_GCM_SHA384"],
        &["--tlsv1.3", "--tls13-ciphers", "TLS_CHACHA20_POLY1305_SHA256"],
        &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    ];
    let curl = |arguments: &[&str], path: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(&certificate().authority)
            .args(arguments)
            .arg(format!("https://localhost:{}{path}", gateway.https.port()))
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        output.stdout
    };
    for case in cases {
        let down = curl(case, &format!("/bytes/{BYTES}"));
        assert_eq!(pattern::sha256(&down), hash, "{case:?}");
        let file = format!("@{}", upload.display());
        let mut arguments = case.to_vec();
        arguments.extend(["--data-binary", &file]);
        let up = String::from_utf8_lossy(&curl(&arguments, "/sink")).into_owned();
        assert!(up.contains(&hash), "{case:?}: {up}");
    }
}

#[test]
fn openssl_verifies_asks_and_gets_a_clean_end() {
    let (_demo, gateway) = before_demo();
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-quiet", "-nocommands", "-tls1_3", "-servername", "localhost"])
        .args(["-verify_return_error", "-CAfile"])
        .arg(&certificate().authority)
        .args(["-connect", &gateway.https.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = Process::spawn("openssl", &mut command).expect("it starts");
    let mut stdin = client.child_mut().stdin.take().expect("it is piped");
    let stdout = client.child_mut().stdout.take().expect("it is piped");
    let request = b"GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stdin.write_all(request).expect("it reads");
    stdin.flush().expect("it reads");
    let lines: Vec<String> = BufReader::new(stdout).lines().map_while(Result::ok).collect();
    assert_eq!(lines.first().map(String::as_str), Some("HTTP/1.1 200 OK"), "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.contains("\"scheme\":\"https\"")), "{lines:?}");
    let status = client.wait(tlsplice_tests::PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
}
