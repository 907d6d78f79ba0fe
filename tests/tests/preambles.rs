//! What comes before or instead of a request: preambles, handshakes in odd shapes, connections in bulk.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, NamedGroup};
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_tests::client::{Client, VERSIONS, tls_config, tls_config_trusting, tls_stream};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::wait_for;

/// Types of records.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn serving() -> (Origin, Gateway) {
    let origin = Origin::mirror();
    let gateway = Gateway::start(
        &Config::to(origin.address())
            .with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n"),
    );
    (origin, gateway)
}

fn still_serves(gateway: &Gateway) {
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
}

/// A ClientHello with its record header.
fn hello() -> Vec<u8> {
    let config = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(config, name).expect("a client");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("memory takes it");
    wire
}

/// The type of the first record of the answer; None when the gateway closes without one.
fn first_record(gateway: &Gateway, pieces: &[&[u8]], finishes: bool) -> Option<u8> {
    let mut client = Client::plain(gateway.https);
    for piece in pieces {
        // The gateway may have had enough before.
        drop(client.try_send(piece));
    }
    if finishes {
        drop(client.try_finish());
    }
    client.try_take(1).ok().map(|byte| byte[0])
}

#[test]
fn a_request_for_a_site_with_another_certificate_is_misdirected() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = Certificate::ensure(directory.path(), &["other.example.net"]).expect("it is made");
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with(&format!(
        "[[tls.site]]\ncertificate = {:?}\nkey = {:?}\nnames = \"other.example.net\"\n",
        other.chain, other.key
    ));
    let gateway = Gateway::start(&config);
    let trusting = Arc::new(tls_config_trusting(&other.authority));
    let ask = |client: &mut Client, host: &str| {
        client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).status
    };
    let mut client = Client::with(gateway.https, &trusting, "other.example.net");
    assert_eq!(ask(&mut client, "Other.Example.net:443"), 200);
    assert_eq!(ask(&mut client, "localhost"), 421);
    assert_eq!(ask(&mut client, "other.example.net"), 200, "the connection goes on");
    let mut client = Client::tls(gateway.https);
    assert_eq!(ask(&mut client, "other.example.net"), 421);
    // Names of one certificate may share a connection.
    assert_eq!(ask(&mut client, "desk.example.org"), 200);
}

#[test]
fn a_proxy_preamble_is_no_handshake() {
    let (origin, gateway) = serving();
    for preamble in [
        &b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ] {
        let hello = hello();
        let first = first_record(&gateway, &[preamble, &hello], false);
        assert!(!matches!(first, Some(HANDSHAKE)), "{}", preamble.escape_ascii());
    }
    assert_eq!(origin.accepted(), 0);
    still_serves(&gateway);
}

#[test]
fn server_names_that_are_no_names_end_the_handshake() {
    let (_origin, gateway) = serving();
    let hello = hello();
    let at = hello.windows(9).position(|name| name == b"localhost").expect("it is in there");
    for name in [
        b"lo\r\nlhost",
        b"local\0ost",
        b"lo%0d\n\x1b[0",
        b"127.0.0.1",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut hello = hello.clone();
        hello[at..at + 9].copy_from_slice(name);
        let first = first_record(&gateway, &[&hello], false);
        // An address is no name, and is served as if there were none (RFC 6066 §3).
        let is_address = name == b"127.0.0.1";
        assert!(first == Some(ALERT) || is_address, "{}: {first:?}", name.escape_ascii());
    }
    still_serves(&gateway);
    assert!(!gateway.diagnostics().contains("\x1b[0"), "nothing of it reaches a terminal");
}

#[test]
fn old_versions_of_tls_are_refused_with_an_alert() {
    let (_origin, gateway) = serving();
    let old = |minor: u8, suites: &[u8]| {
        let mut body = vec![3, minor];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, u8::try_from(suites.len()).expect("few")]);
        body.extend_from_slice(suites);
        body.extend_from_slice(&[1, 0]);
        let len = u8::try_from(body.len()).expect("short");
        [&[HANDSHAKE, 3, minor, 0, len + 4, 1, 0, 0, len][..], &body].concat()
    };
    // AES-CBC, 3DES, RC4, and an export cipher.
    let weak = [0, 0x2f, 0, 0x0a, 0, 5, 0, 3];
    let strong = [0xc0, 0x2b, 0xc0, 0x2f];
    for (minor, suites) in
        [(0, &weak[..]), (1, &weak), (2, &weak), (3, &weak), (1, &strong), (2, &strong)]
    {
        let first = first_record(&gateway, &[&old(minor, suites)], false);
        assert_eq!(first, Some(ALERT), "3.{minor} {suites:?}");
    }
    let version_2 = [0x80, 0x0c, 1, 0, 2, 0, 3, 0, 0, 0, 0, 1, 0, 0x80];
    assert_eq!(first_record(&gateway, &[&version_2], false), None);
    still_serves(&gateway);
}

#[test]
fn hellos_in_odd_pieces_neither_hang_nor_crash() {
    let (_origin, gateway) = serving();
    let hello = hello();
    let record = |body: &[u8]| {
        let [high, low] = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&[HANDSHAKE, 3, 1, high, low][..], body].concat()
    };
    let single: Vec<u8> = hello[5..].iter().flat_map(|&byte| record(&[byte])).collect();
    assert_eq!(first_record(&gateway, &[&single], false), Some(HANDSHAKE), "in records of a byte");
    let bytes: Vec<&[u8]> = hello.chunks(1).collect();
    assert_eq!(first_record(&gateway, &bytes, false), Some(HANDSHAKE), "byte by byte");
    let endless = [&[1, 0, 0xff, 0xff][..], &[0; 12_000]].concat();
    let endless: Vec<u8> = endless.chunks(3000).flat_map(record).collect();
    for (name, pieces) in [
        (
            "a hello without end",
            &[&endless[..], &endless, &endless, &endless, &endless, &endless][..],
        ),
        ("hello and goodbye", &[&hello, &[ALERT, 3, 3, 0, 2, 1, 0]]),
        ("empty records", &[&record(&[]).repeat(2000)]),
        ("half a hello", &[&hello[..100]]),
    ] {
        // What comes first does not matter, only that it comes to an end.
        let mut client = Client::plain(gateway.https);
        for piece in pieces {
            drop(client.try_send(piece));
        }
        drop(client.try_finish());
        wait_for(name, || (!client.receive().unwrap_or(false)).then_some(()));
    }
    still_serves(&gateway);
}

#[test]
fn a_request_in_the_flight_of_the_finished_is_not_lost() {
    let (_origin, gateway) = serving();
    for version in VERSIONS {
        for _ in 0..5 {
            let config = Arc::new(tls_config(&[version]));
            let mut stream = tls_stream(gateway.https, &config, "localhost");
            // Kept until the handshake is complete on this side.
            stream.conn.writer().write_all(GET).expect("memory takes it");
            while stream.conn.is_handshaking() {
                let mut flight = Vec::new();
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut flight).expect("memory takes it");
                }
                stream.sock.write_all(&flight).expect("it reads");
                stream.conn.read_tls(&mut stream.sock).expect("it answers");
                stream.conn.process_new_packets().expect("it is valid");
            }
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).expect("it answers");
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
}

/// Takes sessions of any name for any other.
#[derive(Debug)]
struct Mixing(ClientSessionMemoryCache, ServerName<'static>);

impl ClientSessionStore for Mixing {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(self.1.clone(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&self.1)
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(self.1.clone(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&self.1)
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&self.1);
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(self.1.clone(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&self.1)
    }
}

#[test]
fn a_ticket_of_another_name_leads_to_a_full_handshake() {
    let (_origin, gateway) = serving();
    for version in VERSIONS {
        let mut config = tls_config(&[version]);
        let name = ServerName::try_from("localhost").expect("a name");
        config.resumption =
            Resumption::store(Arc::new(Mixing(ClientSessionMemoryCache::new(8), name)));
        let config = Arc::new(config);
        let kind = |name: &str| {
            let mut stream = tls_stream(gateway.https, &config, name);
            stream.write_all(GET).expect("it reads");
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).expect("it answers");
            stream.conn.handshake_kind()
        };
        assert_eq!(kind("localhost"), Some(HandshakeKind::Full));
        assert_eq!(kind("localhost"), Some(HandshakeKind::Resumed), "tickets are taken");
        assert_ne!(kind("desk.example.org"), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

#[test]
fn tls_on_the_plain_port_is_refused() {
    let (origin, gateway) = serving();
    let mut client = Client::plain(gateway.plain());
    client.send(hello());
    drop(client.try_finish());
    let answer = client.try_response().ok().map(|response| response.status);
    assert!(matches!(answer, None | Some(400)), "{answer:?}");
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn a_gateway_that_is_its_own_upstream_comes_to_an_end() {
    let port = tlsplice_fixtures::free_port().expect("a port");
    let config = Config::default().with(&format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\nservice = \"http\"\n\
             [[route]]\nupstream = \"http://127.0.0.1:{port}\"\n"
    ));
    let gateway = Gateway::start(&config);
    let before = gateway.descriptors();
    // Neither fields that the client wants dropped nor the upgrade to a tunnel hide where a request has been.
    for line in ["", "Connection: Via\r\nVia: 1.1 other\r\n", WEBSOCKET] {
        let mut client = Client::tls(gateway.https);
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{line}\r\n");
        assert_eq!(client.ask(request).status, 508, "{line}");
    }
    let log = wait_for("each request in the log, once with its client and once round", || {
        Some(gateway.access_log()).filter(|log| log.len() >= 6)
    });
    assert_eq!(log.len(), 6, "{log:?}");
    let reasons: Vec<_> = log.iter().filter_map(|line| line["reason"].as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("leads back to it")), "{reasons:?}");
    wait_for("the release of descriptors", || {
        // What is kept for reuse on both sides of itself goes with its time.
        (gateway.descriptors() <= before).then_some(())
    });
}
