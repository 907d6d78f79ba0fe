//! What the wire shows: on the side of TLS nothing of what a test sends can be read, not even when the kernel refuses to take
//! the keys over halfway.

use std::fs;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use tlsplice_tests::capture::{Capture, Segment};
use tlsplice_tests::client::{Client, every_cipher};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::inject::{Injection, TRACED};
use tlsplice_tests::is_guest;
use tlsplice_tests::origin::Origin;

/// What is looked for.
const MARKER: &[u8] = b"-PLAINTEXT-MARKER-";

/// Bytes of each body.
const BODY_BYTES: usize = 400_000;

/// How many calls of a connection are made to fail, one after the other.
const CALLS: usize = 8;

fn body() -> Vec<u8> {
    MARKER.iter().copied().cycle().take(BODY_BYTES).collect()
}

fn shows_marker(segment: &&Segment) -> bool {
    segment.payload.windows(MARKER.len()).any(|window| window == MARKER)
}

/// None where this user may not watch; a guest must.
fn watch() -> Option<Capture> {
    match Capture::start() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_guest() => {
            eprintln!("not run: only root may watch the wire");
            None
        }
        capture => Some(capture.expect("the wire can be watched")),
    }
}

/// One that sends each body back.
fn mirror() -> Origin {
    Origin::start(|connection| {
        loop {
            connection.request()?;
            let body = connection.take(BODY_BYTES)?;
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n"))?;
            connection.send(body)?;
        }
    })
}

fn ask(gateway: &Gateway, config: &Arc<ClientConfig>, body: &[u8]) -> io::Result<()> {
    let mut client = Client::with(gateway.https, config, "localhost");
    client.try_send(format!(
        "POST /{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES}\r\n\r\n",
        String::from_utf8_lossy(MARKER)
    ))?;
    client.try_send(body)?;
    let response = client.try_response()?;
    assert!(response.status != 200 || response.body == body, "a response of other bytes");
    if response.status == 200 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn expect_no_marker(segments: &[Segment], gateway: &Gateway) {
    let port = gateway.https.port();
    let (tls, plain): (Vec<_>, Vec<_>) =
        segments.iter().partition(|segment| segment.ports.contains(&port));
    assert!(plain.iter().any(shows_marker), "the side without TLS shows what is looked for");
    let shown = tls.iter().filter(|segment| shows_marker(segment)).count();
    assert_eq!(shown, 0, "of {} segments on the side of TLS", tls.len());
}

#[test]
fn nothing_can_be_read_on_the_side_of_tls() {
    let Some(capture) = watch() else { return };
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    capture.add(origin.address().port());
    capture.add(gateway.https.port());
    let ciphers = every_cipher();
    for (name, config) in &ciphers {
        // Twice: the second handshake resumes the first session.
        for _ in 0..2 {
            ask(&gateway, config, &body()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    let segments = capture.finish();
    expect_no_marker(&segments, &gateway);
    let from_gateway = segments.iter().filter(|segment| segment.ports[0] == gateway.https.port());
    let seen: usize = from_gateway.map(|segment| segment.payload.len()).sum();
    assert!(seen >= 2 * ciphers.len() * BODY_BYTES, "only {seen} bytes were seen");
}

#[test]
fn nothing_can_be_read_when_a_call_for_the_handover_fails() {
    let Some(capture) = watch() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let origin = mirror();
    capture.add(origin.address().port());
    let mut injected = String::new();
    let mut gateways = Vec::new();
    for (index, (name, config)) in every_cipher().into_iter().enumerate() {
        // Two ciphers stand for all: one of each version.
        if index % 3 != 0 {
            continue;
        }
        for when in 1..=CALLS {
            let config_of_it = Config::to(origin.address()).with_workers(1).with(TRACED);
            let gateway = Gateway::start(&config_of_it);
            capture.add(gateway.https.port());
            let log = directory.path().join(format!("{index}-{when}"));
            let thread = gateway.thread("worker-0");
            let when = when.to_string();
            let injection = Injection::begin(&thread, "setsockopt", "ENOMEM", &when, &log);
            let Some(injection) = injection else { return };
            let result = ask(&gateway, &config, &body());
            // Where the first connection makes fewer calls it is the second that fails; everybody else succeeds.
            let again = ask(&gateway, &config, &body()).or_else(|error| match result {
                Ok(()) => ask(&gateway, &config, &body()),
                Err(_) => Err(error),
            });
            again.unwrap_or_else(|error| {
                panic!("{name}, after call {when} failed ({result:?}): {error}")
            });
            injection.end();
            let text = fs::read_to_string(&log).expect("strace wrote it");
            injected.extend(text.lines().filter(|line| line.contains("INJECTED")));
            injected.push('\n');
            gateways.push(gateway);
        }
    }
    let segments = capture.finish();
    for gateway in &gateways {
        expect_no_marker(&segments, gateway);
    }
    assert!(injected.contains("INJECTED"), "some call was made to fail");
    if gateways[0].diagnostics().contains("in the kernel: ") {
        // One gateway met the failure before the kernel had anything, another between the two halves.
        for text in ["TLS stays in user space", "one half of the record layer only"] {
            let is_said = gateways.iter().any(|gateway| gateway.diagnostics().contains(text));
            assert!(is_said, "no gateway said {text:?}: {injected}");
        }
    }
}
