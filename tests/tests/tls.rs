//! TLS as clients see it: versions, key exchange, tickets, names, and how a connection ends.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::NamedGroup;
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_tests::client::{
    Client, VERSIONS, tls_config, tls_config_of, tls_config_trusting, tls_stream,
};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn answering() -> (Origin, Gateway) {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&Config::to(origin.address()));
    (origin, gateway)
}

#[test]
fn the_hybrid_key_exchange_comes_first_and_tickets_are_taken() {
    let (_origin, gateway) = answering();
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut stream = tls_stream(gateway.https, &config, "localhost");
            stream.write_all(GET).expect("it reads");
            let mut answer = [0; 40];
            assert!(stream.read(&mut answer).expect("it answers") > 0);
            kinds.push(stream.conn.handshake_kind());
            if version.version == rustls::ProtocolVersion::TLSv1_3 && kinds.len() == 1 {
                let group = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
                assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
            }
        }
        let resumed = Some(rustls::HandshakeKind::Resumed);
        assert_eq!(kinds[0], Some(rustls::HandshakeKind::Full));
        assert!(kinds[1..].contains(&resumed), "{kinds:?}");
    }
}

#[test]
fn a_client_may_insist_on_another_group() {
    let (_origin, gateway) = answering();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // The key share that is sent first is one that the server must ask to change (HelloRetryRequest) or accept.
    provider.kx_groups.retain(|group| group.name() == NamedGroup::secp384r1);
    let config = tls_config_of(provider);
    let mut client = Client::with(gateway.https, &Arc::new(config), "localhost");
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn both_sides_say_goodbye() {
    let (_origin, gateway) = answering();
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().text(), "ok");
        client.expect_close();
        let mut client = Client::tls_version(gateway.https, version);
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
        client.finish();
        client.expect_close();
    }
}

#[test]
fn only_http_1_1_is_spoken() {
    let (_origin, gateway) = answering();
    let mut config = tls_config(rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut stream = tls_stream(gateway.https, &Arc::new(config.clone()), "localhost");
    stream.write_all(GET).expect("it reads");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = tls_stream(gateway.https, &Arc::new(config), "localhost");
    assert!(
        stream.write_all(GET).and_then(|()| stream.flush()).is_err() || {
            let mut byte = [0];
            stream.read(&mut byte).is_err()
        }
    );
}

#[test]
fn names_choose_certificates() {
    let directory = tempfile::tempdir().expect("a directory");
    let site = |name: &str| {
        Certificate::ensure(&directory.path().join(name), &[name]).expect("it is made")
    };
    let exact = site("exact.example.net");
    let other = site("other.example.net");
    let table = |certificate: &Certificate, name: &str| {
        format!(
            "[[tls.site]]\ncertificate = {:?}\nkey = {:?}\nnames = {name:?}\n",
            certificate.chain, certificate.key
        )
    };
    let origin = Origin::mirror();
    let config = Config::to(origin.address())
        .with(&table(&exact, "exact.example.net"))
        .with(&table(&other, "other.example.net"));
    let gateway = Gateway::start(&config);
    for (name, authority) in [
        ("exact.example.net", &exact.authority),
        ("other.example.net", &other.authority),
        ("localhost", &tlsplice_tests::certificate().authority),
    ] {
        let config = tls_config_trusting(authority);
        let mut client = Client::with(gateway.https, &Arc::new(config), name);
        client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert_eq!(client.response().status, 200, "{name}");
    }
}

#[test]
fn a_bad_record_is_answered_by_its_alert() {
    let (_origin, gateway) = answering();
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        let mut stream = tls_stream(gateway.https, &config, "localhost");
        stream.write_all(GET).and_then(|()| stream.flush()).expect("it reads");
        let mut answer = [0; 100];
        assert!(stream.read(&mut answer).expect("it answers") > 0);
        stream.conn.writer().write_all(GET).expect("memory takes it");
        let mut wire = Vec::new();
        stream.conn.write_tls(&mut wire).expect("memory takes it");
        let last = wire.len() - 1;
        wire[last] ^= 1;
        stream.sock.write_all(&wire).expect("it reads");
        let error = stream.read(&mut answer).expect_err("an alert");
        let text = error.to_string();
        // After a bad record the kernel sends nothing any more, not even an alert.
        let is_told = text.contains("BadRecordMac");
        assert!(is_told || tls_path(&gateway) == "kernel", "{version:?}: {text}");
    }
}

/// Where the record layer of the first connection ran.
fn tls_path(gateway: &Gateway) -> String {
    gateway.wait_for_access(|_| true)["tls"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_record_layer_runs_where_it_should() {
    let (_origin, gateway) = answering();
    assert_eq!(Client::tls(gateway.https).get("/").text(), "ok");
    let can_kernel = gateway.diagnostics().contains("in the kernel: ");
    assert_eq!(tls_path(&gateway), if can_kernel { "kernel" } else { "user" });
    let line = gateway.wait_for_access(|_| true);
    assert_eq!(line["tls_reason"].is_null(), can_kernel, "a reason is given: {line}");
}

#[test]
fn key_updates_are_followed_or_the_connection_ends_in_good_order() {
    let (_origin, gateway) = answering();
    let config = Arc::new(tls_config(&[&rustls::version::TLS13]));
    let mut stream = tls_stream(gateway.https, &config, "localhost");
    let follows = !gateway.diagnostics().contains("no key updates in this kernel");
    let mut first = [0; 200];
    stream.write_all(GET).and_then(|()| stream.flush()).expect("it reads");
    assert!(stream.read(&mut first).expect("an answer") > 0);
    for round in 0..3 {
        stream.conn.refresh_traffic_keys().expect("TLS 1.3");
        stream.write_all(GET).and_then(|()| stream.flush()).expect("it reads");
        let mut answer = [0; 200];
        let count = stream.read(&mut answer).expect("an answer, or close_notify");
        if !follows {
            assert_eq!(count, 0, "closed in good order");
            return;
        }
        let text = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200"), "round {round}: {text}");
    }
}

#[test]
fn a_storm_of_key_updates_ends_the_connection() {
    let (_origin, gateway) = answering();
    let config = Arc::new(tls_config(&[&rustls::version::TLS13]));
    let mut stream = tls_stream(gateway.https, &config, "localhost");
    stream.write_all(GET).and_then(|()| stream.flush()).expect("it reads");
    let mut answer = [0; 200];
    assert!(stream.read(&mut answer).expect("an answer") > 0);
    for _ in 0..10_000 {
        // It may have closed long before the last of them.
        let sent = stream.conn.refresh_traffic_keys().map_err(std::io::Error::other);
        if sent.and_then(|()| stream.flush()).is_err() {
            break;
        }
    }
    // Answers to some of them may come first.
    let mut ended = stream.read(&mut answer);
    while matches!(ended, Ok(1..)) {
        ended = stream.read(&mut answer);
    }
    // Everybody else is served as before.
    assert_eq!(Client::tls(gateway.https).get("/").text(), "ok");
}
