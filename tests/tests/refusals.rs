//! What the gateway answers itself: malformed requests, upstreams that fail, clients that are slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

/// Requests that two parsers could read differently, and requests that are plainly wrong: name, bytes, status.
const MALFORMED: &[(&str, &str, u16)] = &[
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        400,
    ),
    ("length list", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\na", 400),
    ("signed length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na", 400),
    ("hex length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\na", 400),
    (
        "huge length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n",
        400,
    ),
    (
        "length and chunks",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "chunked not last",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "chunked in 1.0",
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("space before colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
    ("folded field", "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400),
    ("leading fold", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
    ("bare LF", "GET / HTTP/1.1\nHost: h\n\n", 400),
    ("bare CR in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", 400),
    ("NUL in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n", 400),
    ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("host against target", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    ("TRACE", "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    ("version 2", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    ("space in target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("dots in path", "GET /a/../b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("encoded dots", "GET /a/%2e%2e/b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("NUL in path", "GET /a%00b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("h2c upgrade", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("chunk size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    (
        "chunk size with sign",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n",
        400,
    ),
    (
        "chunk size overflow",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        400,
    ),
    (
        "chunk with bare LF",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n",
        400,
    ),
    (
        "chunk without end",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        400,
    ),
];

#[test]
fn malformed_requests_are_refused_and_the_next_one_is_not_read() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        seen.fetch_add(1, Ordering::Relaxed);
        connection.wait_for_close();
        Ok(())
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut wrong = Vec::new();
    for (name, request, status) in MALFORMED {
        let mut client = Client::tls(gateway.https);
        client.send(request);
        client.send("GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match client.try_response() {
            Ok(response) if response.status == *status => client.expect_close(),
            Ok(response) => wrong.push(format!("{name}: {} for {status}", response.status)),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let passed = MALFORMED.iter().filter(|(name, ..)| name.starts_with("chunk ")).count();
    assert!(requests.load(Ordering::Relaxed) <= passed, "a malformed head went upstream");
}

#[test]
fn heads_beyond_their_bounds_are_refused() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_limits("head_bytes = 2048\nhead_fields = 10");
    let gateway = Gateway::start(&config);
    let get = |rest: String| {
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n");
        Client::tls(gateway.https).ask(request).status
    };
    assert_eq!(get(format!("A: {}\r\n", "x".repeat(1900))), 200);
    assert_eq!(get(format!("A: {}\r\n", "x".repeat(2100))), 431);
    assert_eq!(get("A: b\r\n".repeat(9)), 200);
    assert_eq!(get("A: b\r\n".repeat(10)), 431);
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(3000));
    assert!(matches!(Client::tls(gateway.https).ask(long).status, 414 | 431));
    assert!(origin.accepted() <= 2, "only the two good ones went upstream");
}

#[test]
fn upstreams_that_fail_are_told_apart_and_named_only_in_the_log() {
    let dies = Origin::start(|connection| {
        connection.request()?;
        connection.close();
        Ok(())
    });
    let hangs = Origin::start(|connection| {
        connection.request()?;
        connection.wait_for_close();
        Ok(())
    });
    let talks_nonsense = Origin::answering("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    let conflicting = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    );
    let refused = tlsplice_fixtures::free_port().expect("a port");
    let mut config = Config::default().with(&format!(
        "[[upstream]]\nname = \"slow\"\nendpoints = \"http://{}\"\nresponse_timeout = \"300ms\"\n\
         [[route]]\npath = \"/hangs\"\nupstream = \"slow\"\n",
        hangs.address()
    ));
    let addresses = [
        ("dies", dies.address().to_string()),
        ("nonsense", talks_nonsense.address().to_string()),
        ("conflict", conflicting.address().to_string()),
        ("refused", format!("127.0.0.1:{refused}")),
        ("unknown", "no-such-host.invalid:80".to_owned()),
    ];
    for (name, address) in &addresses {
        config = config
            .with(&format!("[[route]]\npath = \"/{name}\"\nupstream = \"http://{address}\"\n"));
    }
    let gateway = Gateway::start(&config);
    for (path, status) in [
        ("dies", 502),
        ("hangs", 504),
        ("nonsense", 502),
        ("conflict", 502),
        ("refused", 502),
        ("unknown", 502),
        ("nowhere", 404),
    ] {
        let response = Client::tls(gateway.https).get(&format!("/{path}"));
        assert_eq!(response.status, status, "{path}");
        let text = format!("{:?} {}", response.fields, response.text());
        assert!(!text.contains("127.0.0.1") && !text.contains("invalid"), "{path}: {text}");
        assert!(!text.to_lowercase().contains("tlsplice"), "{path}: {text}");
        let target = format!("/{path}");
        let line = gateway.wait_for_access(|line| line["target"] == target.as_str());
        assert_eq!(line["status"], status);
        if status > 500 {
            assert_eq!(line["fault"], "upstream", "{line}");
            assert!(line["reason"].is_string() && line["upstream"].is_string(), "{line}");
        }
    }
}

#[test]
fn a_response_cut_off_is_cut_off_for_the_client_too() {
    let origin = Origin::start(|connection| {
        let head = connection.request()?;
        if head.starts_with("GET /length") {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
        } else {
            connection
                .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")?;
        }
        connection.close();
        Ok(())
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    for path in ["/length", "/chunked"] {
        let mut client = Client::tls(gateway.https);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(client.head().status, 200);
        client.expect_cut();
        let line = gateway.wait_for_access(|line| line["target"] == path);
        assert_eq!((&line["outcome"], &line["fault"]), (&"aborted".into(), &"upstream".into()));
    }
}

#[test]
fn a_body_that_comes_too_slowly_gets_408() {
    let begun = Instant::now();
    let silent = Origin::start(|connection| {
        connection.request()?;
        connection.wait_for_close();
        Ok(())
    });
    let gateway = Gateway::start(&Config::to(silent.address()));
    let mut client = Client::tls(gateway.https);
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nslow");
    assert_eq!(client.response().status, 408);
    client.expect_close();
    assert!(begun.elapsed() >= Duration::from_secs(10), "there is a grace");
}

#[test]
fn a_head_that_comes_too_slowly_gets_408() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_limits("head_timeout = \"300ms\"");
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    client.send("GET / HTTP/1.1\r\n");
    assert_eq!(client.response().status, 408);
    client.expect_close();
}

#[test]
fn a_handshake_has_a_deadline() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_limits("handshake_timeout = \"300ms\"");
    let gateway = Gateway::start(&config);
    let mut client = Client::plain(gateway.https);
    client.send([22, 3, 1]);
    assert!(!client.receive().unwrap_or(false), "the gateway closes");
}

#[test]
fn plain_http_on_the_tls_port_is_told_so() {
    let origin = Origin::mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::plain(gateway.https);
    let response = client.get("/");
    assert_eq!(response.status, 400);
    assert!(response.text().to_lowercase().contains("https"), "{}", response.text());
    client.expect_close();
    let mut client = Client::plain(gateway.https);
    client.send("SSH-2.0-x\r\n");
    assert!(!client.receive().unwrap_or(false), "noise gets nothing");
}

#[test]
fn one_address_gets_no_more_connections_than_its_share() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_limits("connections_per_address = 3");
    let gateway = Gateway::start(&config);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::tls(gateway.https)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let mut fourth = Client::plain(gateway.https);
    assert!(!fourth.receive().unwrap_or(false), "the fourth is closed at once");
    drop(clients.pop());
    tlsplice_tests::wait_for("a free place", || {
        let mut client = Client::tls(gateway.https);
        client.try_send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").ok()?;
        client.try_response().ok()
    });
}
