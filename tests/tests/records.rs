//! The record layer under a client that does unusual things in the middle of a transfer, whoever runs it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS, tls_config, tls_stream};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What a test sends in two parts.
const BODY_BYTES: usize = 2_000_000;

fn before_demo() -> (Demo, Gateway) {
    let demo = Demo::start().expect("it starts");
    let gateway = Gateway::start(&Config::to(demo.address()));
    (demo, gateway)
}

fn connect(gateway: &Gateway) -> Stream {
    tls_stream(gateway.https, &Arc::new(tls_config(&[&rustls::version::TLS13])), "localhost")
}

fn send(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Everything until the end of the connection, and how it ended.
fn read_all(stream: &mut Stream) -> (Vec<u8>, io::Result<()>) {
    let (mut all, mut piece) = (Vec::new(), vec![0; 65_536]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (all, Ok(())),
            Ok(count) => all.extend_from_slice(&piece[..count]),
            Err(error) => return (all, Err(error)),
        }
    }
}

/// Whether this kernel, or user space, follows a client that changes its key.
fn follows_updates(gateway: &Gateway) -> bool {
    !gateway.diagnostics().contains("no key updates in this kernel")
}

#[test]
fn a_key_update_within_an_upload_loses_nothing_or_ends_it_visibly() {
    let (_demo, gateway) = before_demo();
    let body = pattern::bytes(BODY_BYTES);
    let mut stream = connect(&gateway);
    let head = format!(
        "POST /sink HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    send(&mut stream, head.as_bytes()).expect("it reads");
    let mut sent = Ok(());
    for piece in body.chunks(BODY_BYTES / 10) {
        sent = send(&mut stream, piece)
            .and_then(|()| stream.conn.refresh_traffic_keys().map_err(io::Error::other));
        if sent.is_err() {
            break;
        }
    }
    let (answer, end) = read_all(&mut stream);
    let text = String::from_utf8_lossy(&answer).into_owned();
    if follows_updates(&gateway) {
        sent.and(end).expect("the connection goes on");
        assert!(text.contains(&pattern::sha256(&body)), "{text}");
    } else {
        assert!(!text.starts_with("HTTP/1.1 200"), "a part was taken for the whole: {text}");
    }
}

#[test]
fn key_updates_within_a_download_lose_nothing_or_end_it_visibly() {
    let (_demo, gateway) = before_demo();
    let mut stream = connect(&gateway);
    let request =
        format!("GET /bytes/{BODY_BYTES} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    send(&mut stream, request.as_bytes()).expect("it reads");
    let (mut all, mut piece) = (Vec::new(), vec![0; 20_000]);
    for _ in 0..20 {
        let Ok(count @ 1..) = stream.read(&mut piece) else { break };
        all.extend_from_slice(&piece[..count]);
        let asked = stream.conn.refresh_traffic_keys().map_err(io::Error::other);
        if asked.and_then(|()| stream.flush()).is_err() {
            break;
        }
    }
    let (rest, end) = read_all(&mut stream);
    all.extend(rest);
    let body_at = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let body = pattern::bytes(BODY_BYTES);
    assert!(body.starts_with(&all[body_at..]), "what came is the beginning of what was sent");
    if follows_updates(&gateway) {
        end.expect("the connection goes on");
        assert_eq!(all.len() - body_at, BODY_BYTES);
    }
}

#[test]
fn a_corrupted_record_within_an_upload_never_completes_it() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |connection| {
        connection.request()?;
        tell.send(connection.take(BODY_BYTES).is_ok()).map_err(io::Error::other)
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    for version in VERSIONS {
        let mut stream = tls_stream(gateway.https, &Arc::new(tls_config(&[version])), "localhost");
        let head =
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
        send(&mut stream, head.as_bytes()).expect("it reads");
        send(&mut stream, &vec![b'x'; BODY_BYTES / 2]).expect("it reads");
        stream.conn.writer().write_all(&[b'y'; 10_000]).expect("memory takes it");
        let mut wire = Vec::new();
        stream.conn.write_tls(&mut wire).expect("memory takes it");
        wire[5_000] ^= 1;
        // It may have closed before the end.
        let _ = stream.sock.write_all(&wire);
        let (answer, _) = read_all(&mut stream);
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        let is_whole =
            told.recv_timeout(tlsplice_tests::PATIENCE).expect("the upstream hears of it");
        assert!(!is_whole, "the upstream saw a whole body");
    }
    let line = gateway.wait_for_access(|line| line["outcome"] == "aborted");
    assert_eq!(line["fault"], "downstream", "{line}");
}

#[test]
fn a_client_that_never_reads_is_given_up_and_nobody_else_notices() {
    let demo = Demo::start().expect("it starts");
    let config = Config::to(demo.address()).with_limits("write_timeout = \"1s\"");
    let gateway = Gateway::start(&config);
    let request = b"GET /bytes/100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut deaf: Vec<Stream> = (0..4).map(|_| connect(&gateway)).collect();
    for stream in &mut deaf {
        send(stream, request).expect("it reads");
    }
    let mut client = Client::tls(gateway.https);
    let mut slowest = Duration::ZERO;
    while gateway.access_log().iter().filter(|line| line["outcome"] == "aborted").count()
        < deaf.len()
    {
        let begun = Instant::now();
        assert_eq!(client.get("/whoami").status, 200);
        slowest = slowest.max(begun.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    // Far above what a busy machine needs, far below what waiting for a deaf client would take.
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
    for line in gateway.access_log().iter().filter(|line| line["outcome"] == "aborted") {
        assert_eq!(line["fault"], "downstream", "{line}");
    }
}
