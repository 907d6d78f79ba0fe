//! HTTP/1.1 through the gateway: what an upstream sees of a request, and a client of a response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

/// A gateway before one origin.
fn before(origin: &Origin) -> Gateway {
    Gateway::start(&Config::to(origin.address()))
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::mirror();
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    let requests: String =
        (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..20 {
        let expected = format!("GET /{n} HTTP/1.1\r\n");
        assert!(client.response().text().starts_with(&expected));
    }
    assert_eq!(origin.accepted(), 1, "one connection serves them all");
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let origin = Origin::mirror();
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    for byte in b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.response().status, 200);
}

#[test]
fn each_byte_leaves_before_the_next_is_sent() {
    for version in VERSIONS {
        let (ask, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let origin = Origin::start(move |connection| {
            connection.request()?;
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for byte in b'a'..=b'z' {
                connection.send([b'1', b'\r', b'\n', byte, b'\r', b'\n'])?;
                // Nothing more comes until the client says that it has this one.
                wait.lock().expect("one user").recv().map_err(std::io::Error::other)?;
            }
            connection.send("0\r\n\r\n")
        });
        let gateway = before(&origin);
        let mut client = Client::tls_version(gateway.https, version);
        client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head().status, 200);
        for byte in b'a'..=b'z' {
            assert_eq!(client.try_chunk().expect("a chunk"), [byte]);
            ask.send(()).expect("the origin waits");
        }
        assert!(client.try_chunk().expect("the last chunk").is_empty());
    }
}

#[test]
fn each_byte_of_a_request_leaves_at_once() {
    let (tell, told) = std::sync::mpsc::channel::<u8>();
    let origin = Origin::start(move |connection| {
        connection.request()?;
        for _ in 0..10 {
            let chunk = connection.take(6)?;
            tell.send(chunk[3]).map_err(std::io::Error::other)?;
        }
        connection.until(b"0\r\n\r\n")?;
        connection.respond("done")
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for byte in b'0'..=b'9' {
        client.send([b'1', b'\r', b'\n', byte, b'\r', b'\n']);
        let seen = told.recv_timeout(tlsplice_tests::PATIENCE).expect("the origin has it");
        assert_eq!(seen, byte);
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn responses_without_a_body_leave_the_connection_usable() {
    let origin = Origin::start(|connection| {
        loop {
            let head = connection.request()?;
            let response = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            };
            connection.send(response)?;
        }
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("HEAD /head HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.head().field("content-length"), Some("1000"));
    assert_eq!(client.get("/204").status, 204);
    assert_eq!(client.get("/304").status, 304);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn interim_responses_pass_before_the_final_one() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        let body = connection.take(4)?;
        connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        connection.respond(&String::from_utf8_lossy(&body))
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("body");
    let hints = client.head();
    assert_eq!((hints.status, hints.field("link")), (103, Some("</a>")));
    assert_eq!(client.response().text(), "body");
}

#[test]
fn an_early_response_reaches_a_client_that_still_sends() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nfull")?;
        connection.wait_for_close();
        Ok(())
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nbegin");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "full"));
    assert_eq!(response.field("connection"), Some("close"));
}

#[test]
fn an_http_1_0_client_gets_neither_chunks_nor_interim_responses() {
    let origin = Origin::start(|connection| {
        let head = connection.request()?;
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        connection.send("HTTP/1.1 103 Early Hints\r\n\r\n")?;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        connection.send("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "abcde"));
    assert_eq!(response.field("transfer-encoding"), None);
}

#[test]
fn a_response_until_the_end_of_the_connection_becomes_chunks() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\n\r\nsome")?;
        connection.send(" more")?;
        connection.close();
        Ok(())
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/").text(), "some more");
}

#[test]
fn trailers_and_extensions_of_chunks_are_dropped_both_ways() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        let body = connection.until(b"0\r\n\r\n")?;
        assert_eq!(String::from_utf8_lossy(&body), "3\r\nabc\r\n0\r\n\r\n");
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        connection.send("2;ext=1\r\nok\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")?;
        connection.request()?;
        connection.respond("next")
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3;a=b\r\nabc\r\n0\r\nX-Secret: 1\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(client.get("/").text(), "next");
}

#[test]
fn the_absolute_form_names_host_and_path() {
    let origin = Origin::mirror();
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    let seen = client
        .ask("GET https://desk.example.org/a?b HTTP/1.1\r\nHost: desk.example.org\r\n\r\n")
        .text();
    assert!(seen.starts_with("GET /a?b HTTP/1.1\r\nHost: desk.example.org\r\n"), "{seen}");
}

#[test]
fn a_client_that_has_said_everything_still_gets_its_answer() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        std::thread::sleep(Duration::from_millis(200));
        connection.respond("late")
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.finish();
    assert_eq!(client.response().text(), "late");
    client.expect_close();
}

#[test]
fn bodies_of_all_sizes_arrive_whole_both_ways() {
    let demo = Demo::start().expect("it starts");
    let gateway = Gateway::start(&Config::to(demo.address()));
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        for len in [0, 1, 2, 1000, 16_383, 16_384, 16_385, 65_536, 262_145, 3_000_000_usize] {
            let body = pattern::bytes(len);
            let hash = pattern::sha256(&body);
            client.send(format!(
                "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n"
            ));
            client.send(&body);
            assert!(client.response().text().contains(&hash), "{len} bytes up");

            client.send(
                "PUT /sink HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            );
            for piece in body.chunks(10_007) {
                client.send(format!("{:x}\r\n", piece.len()));
                client.send(piece);
                client.send("\r\n");
            }
            client.send("0\r\n\r\n");
            assert!(client.response().text().contains(&hash), "{len} bytes up in chunks");

            let response = client.get(&format!("/bytes/{len}"));
            assert_eq!(pattern::sha256(&response.body), hash, "{len} bytes down");
        }
    }
}

#[test]
fn a_post_is_never_sent_twice_and_a_get_is_when_nothing_came_back() {
    let posts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&posts);
    let origin = Origin::start(move |connection| {
        let head = connection.request()?;
        if head.starts_with("POST /die") {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        connection.respond("first")?;
        // The second request on a connection is read, and the connection dies.
        let head = connection.request()?;
        if head.starts_with("POST /die") {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        connection.close();
        Ok(())
    });
    let gateway = before(&origin);
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/").text(), "first");
    assert_eq!(client.get("/die").text(), "first", "asked again on a new connection");
    let post = "POST /die HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(client.ask(post).status, 502);
    assert_eq!(posts.load(Ordering::Relaxed), 1);
}

#[test]
fn a_body_beyond_its_bound_is_refused() {
    let demo = Demo::start().expect("it starts");
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\nbody_bytes_max = \"1KiB\"\n",
        demo.address()
    ));
    let gateway = Gateway::start(&config);
    let announced = "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1025\r\n\r\n";
    assert_eq!(Client::tls(gateway.https).ask(announced).status, 413);
    let mut client = Client::tls(gateway.https);
    client.send("POST /sink HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        client.send(format!("200\r\n{}\r\n", "x".repeat(0x200)));
    }
    assert_eq!(client.response().status, 413);
    let fits = format!(
        "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    );
    assert_eq!(Client::tls(gateway.https).ask(fits).status, 200);
}
