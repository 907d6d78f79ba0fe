//! The record layer under a client that does unusual things in the middle of a transfer, whoever runs it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;
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

/// What a client says in the middle of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// close_notify: it asks nothing more, and goes on reading.
    CloseNotify,
    /// An alert that ends everything.
    FatalAlert,
    /// A record that is not authentic.
    Forgery,
}

impl Word {
    fn say(self, stream: &mut Stream) {
        match self {
            Self::CloseNotify => {
                stream.conn.send_close_notify();
                stream.flush().expect("it reads");
            }
            Self::FatalAlert => {
                // What does not verify, be it a record or the rest of one, makes the client send its alert.
                while stream.conn.process_new_packets().is_ok() {
                    let _ = stream.conn.reader().read(&mut [0; 65_536]);
                    let forged = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
                    stream.conn.read_tls(&mut &forged[..]).expect("memory gives it");
                }
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut stream.sock).expect("it reads");
                }
            }
            Self::Forgery => {
                stream.conn.writer().write_all(&[b'x'; 1_000]).expect("memory takes it");
                let mut wire = Vec::new();
                stream.conn.write_tls(&mut wire).expect("memory takes it");
                wire[500] ^= 1;
                stream.sock.write_all(&wire).expect("it reads");
            }
        }
    }
}

#[test]
fn what_a_client_says_within_a_download_is_heard() {
    /// More than all buffers on the way hold.
    const LEN: usize = 100_000_000;
    let (_demo, gateway) = before_demo();
    let mut aborted = 0;
    for version in VERSIONS {
        for word in [Word::CloseNotify, Word::FatalAlert, Word::Forgery] {
            let len = if word == Word::CloseNotify { BODY_BYTES } else { LEN };
            let config = Arc::new(tls_config(&[version]));
            let mut stream = tls_stream(gateway.https, &config, "localhost");
            let request = format!(
                "GET /bytes/{len} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            send(&mut stream, request.as_bytes()).expect("it reads");
            let mut first = vec![0; 100_000];
            stream.read_exact(&mut first).expect("it begins");
            word.say(&mut stream);
            if word == Word::CloseNotify {
                let (rest, end) = read_all(&mut stream);
                end.expect("the rest comes, and a clean end");
                let all = [first, rest].concat();
                let body_at =
                    all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
                assert!(all[body_at..] == pattern::bytes(len), "{version:?}");
            } else {
                aborted += 1;
                let lines = tlsplice_tests::wait_for("the end of the download", || {
                    let lines = gateway.access_log();
                    let ended = lines.into_iter().filter(|line| line["outcome"] == "aborted");
                    let ended: Vec<_> = ended.collect();
                    (ended.len() == aborted).then_some(ended)
                });
                let line = lines.last().expect("one at least");
                assert_eq!(line["fault"], "downstream", "{version:?}, {word:?}: {line}");
            }
        }
    }
    assert_eq!(Client::tls(gateway.https).get("/whoami").status, 200);
}

/// Clients that ask for more than all buffers on the way hold, and read nothing.
fn deaf(gateway: &Gateway) -> Vec<Stream> {
    const REQUEST: &[u8] = b"GET /bytes/100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut deaf: Vec<Stream> = (0..4).map(|_| connect(gateway)).collect();
    for stream in &mut deaf {
        send(stream, REQUEST).expect("it reads");
    }
    deaf
}

fn given_up(gateway: &Gateway) -> Vec<Value> {
    let lines = gateway.access_log().into_iter();
    lines.filter(|line| line["outcome"] == "aborted").collect()
}

#[test]
fn a_client_that_never_reads_is_given_up() {
    let demo = Demo::start().expect("it starts");
    let config = Config::to(demo.address()).with_limits("write_timeout = \"1s\"");
    let gateway = Gateway::start(&config);
    let deaf = deaf(&gateway);
    let lines = tlsplice_tests::wait_for("the end of all of them", || {
        let lines = given_up(&gateway);
        (lines.len() == deaf.len()).then_some(lines)
    });
    for line in lines {
        assert_eq!(line["fault"], "downstream", "{line}");
    }
}

#[test]
fn nobody_else_notices_clients_that_never_read() {
    let demo = Demo::start().expect("it starts");
    // One worker for all: who waits for one of them keeps everybody waiting, until that one is given up.
    let config = Config::to(demo.address()).with_workers(1).with_limits("write_timeout = \"5m\"");
    let gateway = Gateway::start(&config);
    let _deaf = deaf(&gateway);
    let mut client = Client::tls(gateway.https);
    for _ in 0..50 {
        assert_eq!(client.get("/whoami").status, 200);
    }
    assert!(given_up(&gateway).is_empty(), "they are still there");
}
