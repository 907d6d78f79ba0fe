//! WebSocket through the gateway: the upgrade, the tunnel, and how both end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS, tls_config};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::websocket::{close, exchange, open};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

/// The handshake of RFC 6455 §1.3.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: guacamole\r\n\r\n";

/// Its answer.
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: guacamole\r\n\r\n";

#[test]
fn messages_of_all_sizes_come_back_whole() {
    let demo = Demo::start().expect("it starts");
    let gateway = Gateway::start(&Config::to(demo.address()));
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        let mut socket = open(gateway.https, &config, "/echo").expect("it opens");
        for len in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
            let sent = Message::binary(pattern::bytes(len));
            let received = exchange(&mut socket, vec![sent.clone()], 1);
            assert!(received[0] == sent, "{len} bytes");
        }
        let texts: Vec<Message> = (0..200).map(|n| Message::text(format!("{n}"))).collect();
        assert_eq!(exchange(&mut socket, texts.clone(), texts.len()), texts);
        let frame = CloseFrame { code: CloseCode::Library(4000), reason: "bye".into() };
        assert_eq!(close(socket, frame.clone()), Some(frame));
    }
}

#[test]
fn early_frames_are_kept_on_both_sides() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        // In one segment with the 101.
        connection.send(format!("{ACCEPT}first from the server"))?;
        let early = connection.until(b"client")?;
        connection.send(early)
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    // A client may not do this before the 101, but its bytes must not be taken for a request either.
    client.send(format!("{UPGRADE}first from the client"));
    let head = client.head();
    assert_eq!((head.status, head.field("sec-websocket-protocol")), (101, Some("guacamole")));
    assert_eq!(client.take(21), b"first from the server");
    assert_eq!(client.take(21), b"first from the client");
}

#[test]
fn only_a_true_101_opens_a_tunnel() {
    let wrong = [
        ("accept", ACCEPT.replace("s3pPLM", "XXXXXX")),
        ("no accept", ACCEPT.replace("Sec-WebSocket-Accept", "X")),
        ("no upgrade", ACCEPT.replace("Upgrade: websocket\r\n", "")),
        ("other protocol", ACCEPT.replace("Upgrade: websocket", "Upgrade: h2c")),
    ];
    for (name, answer) in wrong {
        let origin = Origin::start(move |connection| {
            connection.request()?;
            connection.send(&answer)?;
            connection.wait_for_close();
            Ok(())
        });
        let gateway = Gateway::start(&Config::to(origin.address()));
        assert_eq!(Client::tls(gateway.https).ask(UPGRADE).status, 502, "{name}");
    }
}

#[test]
fn a_refusal_of_the_upgrade_passes_and_the_connection_goes_on() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")?;
        connection.request()?;
        connection.respond("next")
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.ask(UPGRADE).status, 403);
    assert_eq!(client.get("/").text(), "next");
}

#[test]
fn requests_that_are_no_valid_handshake_do_not_upgrade() {
    let origin = Origin::mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    for (from, to) in [
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: keep-alive, Upgrade", "Connection: keep-alive"),
    ] {
        let text = client.ask(UPGRADE.replace(from, to)).text().to_lowercase();
        assert!(text.starts_with("get /ws") && !text.contains("upgrade"), "{text}");
        assert!(!text.contains("sec-websocket"), "{text}");
    }
    for (from, to) in [
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "X: y"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
        ("GET", "POST"),
    ] {
        let status = Client::tls(gateway.https).ask(UPGRADE.replace(from, to)).status;
        assert_eq!(status, 400, "{to}");
    }
}

#[test]
fn an_upgrade_that_hangs_is_answered_in_time() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.wait_for_close();
        Ok(())
    });
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\napp = \"guacamole\"\nupgrade_timeout = \"400ms\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let begun = Instant::now();
    assert_eq!(Client::tls(gateway.https).ask(UPGRADE).status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn each_half_of_a_tunnel_ends_for_itself() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        // The client's end comes first, and the answer still gets through.
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut connection.stream, &mut all)?;
        connection.send(format!("got {}", all.len()))
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        client.send(UPGRADE);
        assert_eq!(client.head().status, 101);
        client.send([0; 1000]);
        client.finish();
        assert_eq!(client.take(8), b"got 1000");
        client.expect_close();
    }
    let line = gateway.wait_for_access(|line| line["kind"] == "tunnel");
    assert_eq!(line["outcome"], "complete", "{line}");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1000.into(), &8.into()), "{line}");
    assert_eq!(line["status"], 101);
}

#[test]
fn a_tunnel_without_a_byte_is_closed_after_its_time() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        connection.wait_for_close();
        Ok(())
    });
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\ntunnel_idle_timeout = \"1s\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    client.expect_close();
    assert_eq!(gateway.wait_for_access(|line| line["kind"] == "tunnel")["outcome"], "idle");
}

#[test]
fn a_tunnel_cut_on_one_side_is_cut_on_the_other() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        connection.take(1)?;
        // A reset instead of an end.
        rustix::net::sockopt::set_socket_linger(&connection.stream, Some(Duration::ZERO))?;
        Err(std::io::ErrorKind::Other.into())
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    client.send("x");
    client.expect_cut();
    let line = gateway.wait_for_access(|line| line["kind"] == "tunnel");
    assert_eq!((&line["outcome"], &line["fault"]), (&"aborted".into(), &"upstream".into()));
}

#[test]
fn origins_that_are_not_allowed_are_refused() {
    let origin = Origin::answering(ACCEPT);
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\nallowed_origins = \"https://desk.example.org\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let ask = |field: &str| {
        let request =
            UPGRADE.replace("Host: localhost\r\n", &format!("Host: localhost\r\n{field}"));
        let mut client = Client::tls(gateway.https);
        client.send(request);
        client.head().status
    };
    assert_eq!(ask("Origin: https://desk.example.org\r\n"), 101);
    assert_eq!(ask("Origin: https://evil.example.org\r\n"), 403);
    assert_eq!(ask(""), 403);
}
