//! Bulk through the gateway: byte for byte, whichever path it takes, and told in the log.

use std::io;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS};
use tlsplice_tests::gateway::{Config, Gateway, SPLICE_VARIABLE};
use tlsplice_tests::inject::{Injection, TRACED};
use tlsplice_tests::origin::Origin;

/// Sizes around the point where splicing begins, and around those of records, pipes and sockets' buffers.
const SIZES: [usize; 9] =
    [65_535, 65_536, 65_537, 81_920, 262_143, 262_144, 262_145, 1_000_003, 6_000_001];

fn with_plain_listener(config: Config) -> Gateway {
    Gateway::start(&config.with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n"))
}

/// A client of every kind: without TLS, and with each version of it.
fn clients(gateway: &Gateway) -> impl Iterator<Item = Client> {
    // Each connects when its turn comes: a connection that waits for long without a handshake is closed.
    let plain = std::iter::once_with(|| Client::plain(gateway.plain()));
    plain.chain(VERSIONS.iter().map(|version| Client::tls_version(gateway.https, version)))
}

/// Whether the listener with TLS must not splice in this run.
fn is_splicing_forbidden() -> bool {
    std::env::var(SPLICE_VARIABLE).is_ok_and(|value| value == "never")
}

/// Bulk is spliced wherever no record layer of the gateway is in the way, and nothing forbids it.
fn expect_bulk_path(line: &Value) {
    let is_forbidden = is_splicing_forbidden();
    let expected = match line["tls"].as_str() {
        Some("user") => ("copy", if is_forbidden { "configured" } else { "user_tls" }),
        Some("kernel") if is_forbidden => ("copy", "configured"),
        _ => ("splice", ""),
    };
    let reason = line["path_reason"].as_str().unwrap_or_default();
    assert_eq!((line["path"].as_str().unwrap_or_default(), reason), expected, "{line}");
}

#[test]
fn downloads_and_uploads_arrive_whole_on_every_path() {
    let demo = Demo::start().expect("it starts");
    let gateway = with_plain_listener(Config::to(demo.address()));
    for mut client in clients(&gateway) {
        for len in SIZES {
            let body = pattern::bytes(len);
            let response = client.get(&format!("/bytes/{len}"));
            assert!(response.body == body, "{len} bytes down");
            client.send(format!(
                "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n"
            ));
            client.send(&body);
            assert!(client.response().text().contains(&pattern::sha256(&body)), "{len} bytes up");
        }
    }
    let bulk = |line: &Value| line["bytes_out"] == SIZES[8] || line["bytes_in"] == SIZES[8];
    let lines = tlsplice_tests::wait_for("all lines", || {
        let lines: Vec<_> = gateway.access_log().into_iter().filter(bulk).collect();
        (lines.len() == 6).then_some(lines)
    });
    for line in lines {
        expect_bulk_path(&line);
    }
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let demo = Demo::start().expect("it starts");
    let gateway = with_plain_listener(Config::to(demo.address()));
    let len = 8_000_000;
    for mut client in clients(&gateway) {
        client.send(format!("GET /bytes/{len} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(client.head().status, 200);
        let mut body = Vec::new();
        for pause in [100, 0, 50, 0, 0, 20, 0] {
            thread::sleep(Duration::from_millis(pause));
            body.extend(client.take(1_000_000));
        }
        body.extend(client.take(len - body.len()));
        assert!(body == pattern::bytes(len));
        // The connection is as good as before.
        assert_eq!(client.get("/whoami").status, 200);
    }
}

#[test]
fn an_upstream_that_stalls_and_sends_in_odd_pieces_loses_nothing() {
    let body = pattern::bytes(700_001);
    let sent = body.clone();
    let origin = Origin::start(move |connection| {
        loop {
            connection.request()?;
            let len = sent.len();
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n"))?;
            let (mut rest, mut size) = (&sent[..], 1);
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(size.min(rest.len()));
                connection.send(piece)?;
                rest = more;
                size = size * 7 % 150_001 + 1;
                if size % 5 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        for _ in 0..3 {
            assert!(client.get("/").body == body);
        }
    }
}

#[test]
fn a_download_cut_by_the_upstream_is_cut_for_the_client() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")?;
        connection.send(vec![b'x'; 3_000_000])?;
        connection.close();
        Ok(())
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head().status, 200);
        let mut received = 0;
        let end = loop {
            match client.try_take(1) {
                Ok(_) => received += 1 + client.drop_received(),
                Err(error) => break error,
            }
        };
        assert!(received <= 3_000_000);
        assert!(!matches!(end.kind(), io::ErrorKind::WouldBlock), "still open: {end}");
    }
    let line = gateway.wait_for_access(|_| true);
    assert_eq!((&line["outcome"], &line["fault"]), (&"aborted".into(), &"upstream".into()));
}

#[test]
fn a_body_that_ends_with_its_connection_is_copied_and_the_log_says_why() {
    let body = pattern::bytes(1_000_000);
    let sent = body.clone();
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\n\r\n")?;
        connection.send(&sent)?;
        connection.close();
        Ok(())
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        assert!(client.get("/").body == body);
    }
    let lines = tlsplice_tests::wait_for("all lines", || {
        let lines = gateway.access_log();
        (lines.len() == 3).then_some(lines)
    });
    for line in lines {
        assert_eq!(line["path"], "copy", "{line}");
        let reason = match (line["tls"].as_str(), is_splicing_forbidden()) {
            (Some("user" | "kernel"), true) => "configured",
            (Some("user"), false) => "user_tls",
            _ => "unknown_length",
        };
        assert_eq!(line["path_reason"], reason, "{line}");
    }
}

#[test]
fn without_pipes_bulk_is_copied_and_the_log_says_so() {
    const LEN: usize = 3_000_001;
    let demo = Demo::start().expect("it starts");
    let config = Config::to(demo.address()).with_workers(1).with(TRACED);
    let gateway = with_plain_listener(config);
    let directory = tempfile::tempdir().expect("a directory");
    let thread = gateway.thread("worker-0");
    let log = directory.path().join("log");
    let injection = Injection::begin(&thread, "pipe2", "EMFILE", "1+", &log);
    let Some(injection) = injection else { return };
    let body = pattern::bytes(LEN);
    let round = |requests: usize| {
        for mut client in clients(&gateway) {
            assert!(client.get(&format!("/bytes/{LEN}")).body == body);
        }
        tlsplice_tests::wait_for("all lines", || {
            let lines = gateway.access_log();
            (lines.len() == requests).then_some(lines)
        })
    };
    let lines = round(3);
    injection.end();
    for line in lines {
        assert_eq!(line["path"], "copy", "{line}");
        let reason = match (line["tls"].as_str(), is_splicing_forbidden()) {
            (Some("user" | "kernel"), true) => "configured",
            (Some("user"), false) => "user_tls",
            _ => "no_pipe",
        };
        assert_eq!(line["path_reason"], reason, "{line}");
    }
    for line in &round(6)[3..] {
        expect_bulk_path(line);
    }
}

#[test]
fn clients_that_go_away_leave_nothing_behind() {
    let demo = Demo::start().expect("it starts");
    let gateway = with_plain_listener(Config::to(demo.address()));
    let round = || {
        for mut client in clients(&gateway) {
            client.send("GET /bytes/50000000 HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(client.head().status, 200);
            client.take(100_000);
        }
    };
    round();
    tlsplice_tests::wait_for("the end of the first", || {
        (gateway.access_log().len() >= 3).then_some(())
    });
    // Each of two workers keeps up to 16 free pipes; 120 connections that leaked would be far above that.
    let most = gateway.descriptors() + 2 * 2 * 16;
    for _ in 0..40 {
        round();
    }
    tlsplice_tests::wait_for("descriptors as before", || {
        (gateway.descriptors() <= most).then_some(())
    });
    for mut client in clients(&gateway) {
        assert_eq!(client.get("/whoami").status, 200);
    }
}

/// A body in chunks: large ones, small ones between them, and one of a single byte at the end.
fn in_chunks(body: &[u8]) -> Vec<u8> {
    let (mut wire, mut rest, mut round) = (Vec::new(), body, 0);
    while !rest.is_empty() {
        let size = [300_001, 17, 65_536, 4_000, 1_048_576, 65_535][round % 6].min(rest.len());
        let size = if size == rest.len() && size > 1 { size - 1 } else { size };
        let (chunk, more) = rest.split_at(size);
        wire.extend(format!("{size:x};n={round}\r\n").as_bytes());
        wire.extend(chunk);
        wire.extend(b"\r\n");
        (rest, round) = (more, round + 1);
    }
    wire.extend(b"0\r\nX-Trailer: dropped\r\n\r\n");
    wire
}

#[test]
fn chunked_bodies_keep_every_byte_both_ways_and_large_chunks_are_spliced() {
    let body = pattern::bytes(5_000_003);
    let wire = in_chunks(&body);
    let down = wire.clone();
    let origin = Origin::start(move |connection| {
        loop {
            if connection.request()?.starts_with("GET") {
                connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for (index, piece) in down.chunks(77_777).enumerate() {
                    connection.send(piece)?;
                    if index % 10 == 3 {
                        thread::sleep(Duration::from_millis(3));
                    }
                }
            } else {
                let mut hash = pattern::Hash::new();
                loop {
                    let line = connection.until(b"\r\n")?;
                    let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
                    let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
                    hash.update(&connection.take(size)?);
                    if connection.take(2)? != b"\r\n" {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    if size == 0 {
                        break;
                    }
                }
                connection.respond(&hash.finish())?;
            }
        }
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        for _ in 0..2 {
            assert!(client.get("/").body == body);
            client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
            for piece in wire.chunks(123_457) {
                client.send(piece);
            }
            assert_eq!(client.response().text(), pattern::sha256(&body));
        }
    }
    let lines = tlsplice_tests::wait_for("all lines", || {
        let lines = gateway.access_log();
        (lines.len() == 12).then_some(lines)
    });
    for line in lines {
        expect_bulk_path(&line);
    }
}

#[test]
fn a_large_chunk_cut_by_the_upstream_is_cut_for_the_client() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        connection.send("100000\r\n")?;
        connection.send(vec![b'x'; 0xc_0000])?;
        connection.close();
        Ok(())
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let error = client.try_response().expect_err("it was cut");
        assert!(!matches!(error.kind(), io::ErrorKind::WouldBlock), "still open: {error}");
    }
    let line = gateway.wait_for_access(|_| true);
    assert_eq!((&line["outcome"], &line["fault"]), (&"aborted".into(), &"upstream".into()));
}

#[test]
fn uploads_cut_by_the_client_never_complete_and_whole_ones_in_odd_pieces_do() {
    const LEN: usize = 3_000_001;
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |connection| {
        loop {
            connection.request()?;
            let body = connection.take(LEN);
            tell.send(body.as_ref().map(|body| pattern::sha256(body)).ok())
                .map_err(io::Error::other)?;
            body?;
            connection.respond("whole")?;
        }
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    let body = pattern::bytes(LEN);
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LEN}\r\n\r\n");
    for mut client in clients(&gateway) {
        client.send(&head);
        let (mut rest, mut size) = (&body[..], 1);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(size.min(rest.len()));
            client.send(piece);
            (rest, size) = (more, size * 5 % 200_003 + 1);
            if size % 4 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(client.response().text(), "whole");
        let hash = told.recv_timeout(tlsplice_tests::PATIENCE).expect("the upstream says");
        assert_eq!(hash, Some(pattern::sha256(&body)));
        client.send(&head);
        client.send(&body[..LEN / 2]);
        drop(client);
        let hash = told.recv_timeout(tlsplice_tests::PATIENCE).expect("the upstream says");
        assert_eq!(hash, None, "a part was taken for the whole");
    }
}

/// A handshake of RFC 6455 §1.3 with its answer.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_tunnel_in_bulk_keeps_every_byte_and_lets_keystrokes_through() {
    const BULK: usize = 12_000_000;
    const KEYSTROKES: usize = 40;
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        let mut writer = connection.stream.try_clone()?;
        let bulk = thread::spawn(move || {
            let body = pattern::bytes(BULK);
            let (mut rest, mut size) = (&body[..], 1);
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(size.min(rest.len()));
                io::Write::write_all(&mut writer, piece)?;
                rest = more;
                size = size * 5 % 400_009 + 1;
            }
            Ok::<_, io::Error>(())
        });
        // Each keystroke is there before the client sends the next, whatever comes the other way.
        let keys = connection.take(KEYSTROKES)?;
        bulk.join().map_err(|_| io::ErrorKind::Other)??;
        connection.send(&keys)?;
        connection.wait_for_close();
        Ok(())
    });
    let gateway = with_plain_listener(Config::to(origin.address()));
    for mut client in clients(&gateway) {
        client.send(UPGRADE);
        assert_eq!(client.head().status, 101);
        let body = pattern::bytes(BULK);
        let step = BULK / KEYSTROKES;
        for index in 0..KEYSTROKES {
            client.send("k");
            let piece = client.take(step);
            assert!(piece == body[index * step..(index + 1) * step], "piece {index}");
        }
        assert_eq!(client.take(KEYSTROKES), vec![b'k'; KEYSTROKES]);
        client.finish();
        client.expect_close();
    }
    let lines = tlsplice_tests::wait_for("all lines", || {
        let lines = gateway.access_log();
        (lines.len() == 3).then_some(lines)
    });
    for line in lines {
        expect_bulk_path(&line);
        assert_eq!(line["bytes_out"], BULK + KEYSTROKES, "{line}");
        assert_eq!((&line["bytes_in"], &line["outcome"]), (&KEYSTROKES.into(), &"complete".into()));
    }
}

#[test]
fn small_messages_of_others_go_on_during_bulk() {
    let demo = Demo::start().expect("it starts");
    let gateway = with_plain_listener(Config::to(demo.address()));
    let (plain, https) = (gateway.plain(), gateway.https);
    let bulk: Vec<_> = (0..4)
        .map(|index| {
            thread::spawn(move || {
                let mut client =
                    if index % 2 == 0 { Client::plain(plain) } else { Client::tls(https) };
                client.get("/bytes/30000000").body.len()
            })
        })
        .collect();
    let mut client = Client::tls(https);
    let mut answers = 0;
    while bulk.iter().any(|thread| !thread.is_finished()) {
        assert_eq!(client.get("/whoami").status, 200);
        answers += 1;
    }
    // One that waits for the bulk to end is answered once.
    assert!(answers >= 3, "only {answers}");
    for thread in bulk {
        assert_eq!(thread.join().expect("it ends"), 30_000_000);
    }
}
