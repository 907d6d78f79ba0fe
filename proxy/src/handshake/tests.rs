use std::sync::Arc;

use proptest::prelude::*;
use rustls::{HandshakeKind, NamedGroup};

use super::testing::{client, client_config, received_by, run, sent_by, server, suites};
use super::*;
use crate::ktls::{self, Opened};

/// Opens everything that came behind the handshake.
fn opened(done: testing::Done) -> Vec<u8> {
    let (mut opener, _sealer) = ktls::session(done.established).expect("a known suite");
    let mut wire = done.leftover.filled().to_vec();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < wire.len() {
        match opener.open(&mut wire[at..]).expect("authentic") {
            Opened::Data { payload, record_len } => {
                plain.extend_from_slice(&wire[at + payload.start..at + payload.end]);
                at += record_len;
            }
            other => panic!("{other:?}"),
        }
    }
    plain
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn a_request_behind_the_last_flight_is_left_for_the_record_layer() {
    for suite in suites() {
        let config = client_config(Some(suite.suite()), &[]);
        let done = run(&mut client(&config), server(&[]), |_| usize::MAX, REQUEST).unwrap();
        assert_eq!(opened(done), REQUEST, "{suite:?}");
    }
}

#[test]
fn every_split_of_the_wire_gives_the_same() {
    for suite in suites() {
        let config = client_config(Some(suite.suite()), &[]);
        for size in [1, 2, 3, 4, 5, 6, 7, 64, 255, 256, 257, 1000] {
            let done = run(&mut client(&config), server(&[]), |_| size, REQUEST).unwrap();
            assert_eq!(opened(done), REQUEST, "{suite:?} in pieces of {size}");
        }
    }
    // Every position, once: the first flight is cut there.
    let config = client_config(None, &[]);
    let first = sent_by(&mut client(&config)).len();
    for at in 1..first {
        let mut pieces = vec![usize::MAX, at];
        let next = move |_| pieces.pop().unwrap_or(usize::MAX);
        let done = run(&mut client(&config), server(&[]), next, REQUEST).unwrap();
        assert_eq!(opened(done), REQUEST, "cut at {at}");
    }
}

#[test]
fn what_is_asked_for_never_reaches_beyond_a_record() {
    for suite in suites() {
        let config = client_config(Some(suite.suite()), &[]);
        for _ in 0..2 {
            let done = run(&mut client(&config), server(&[]), |asked| asked, REQUEST).unwrap();
            assert_eq!(done.overread, 0);
            assert_eq!(opened(done), REQUEST);
        }
    }
}

#[test]
fn tickets_resume_and_the_sequence_numbers_are_right() {
    for suite in suites() {
        let (config, server) = (client_config(Some(suite.suite()), &[]), server(&[]));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut client = client(&config);
            let done = run(&mut client, Arc::clone(&server), |_| usize::MAX, REQUEST).unwrap();
            kinds.push(client.handshake_kind());
            let (mut opener, mut sealer) = ktls::session(done.established).expect("a known suite");
            let mut wire = done.leftover.filled().to_vec();
            assert!(matches!(opener.open(&mut wire), Ok(Opened::Data { .. })), "{suite:?}");
            let mut goodbye = Vec::new();
            sealer.close_notify(&mut goodbye).expect("it is sealed");
            received_by(&mut client, &goodbye).expect("the sequence number is the next one");
        }
        assert_eq!(kinds[0], Some(HandshakeKind::Full));
        assert!(kinds[1..].contains(&Some(HandshakeKind::Resumed)), "{suite:?}: {kinds:?}");
    }
}

#[test]
fn the_hybrid_group_is_taken_first_and_others_are_asked_for() {
    let mut modern = client(&client_config(None, &[]));
    run(&mut modern, server(&[]), |_| usize::MAX, b"x").unwrap();
    let group = |client: &rustls::ClientConnection| {
        client.negotiated_key_exchange_group().map(|group| group.name())
    };
    assert_eq!(group(&modern), Some(NamedGroup::X25519MLKEM768));

    // The share that the client sends is for a group that the server does not have: HelloRetryRequest.
    let groups = [NamedGroup::X25519, NamedGroup::secp256r1];
    for piece in [1, usize::MAX] {
        let mut retried = client(&client_config(None, &groups));
        let server = server(&[NamedGroup::secp256r1]);
        let done = run(&mut retried, server, |_| piece, REQUEST).unwrap();
        assert_eq!(retried.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        assert_eq!(group(&retried), Some(NamedGroup::secp256r1));
        assert_eq!(opened(done), REQUEST);
    }
}

#[test]
fn a_client_hello_may_come_in_records_of_one_byte() {
    let config = client_config(None, &[]);
    let mut client = client(&config);
    let hello = sent_by(&mut client);
    let mut server = Handshake::new(server(&[])).expect("a server");
    let mut input = Buffer::with_capacity(64 * 1024);
    for byte in &hello[RECORD_HEADER_BYTES..] {
        input.append(&[22, 3, 1, 0, 1, *byte]);
    }
    let mut output = Vec::new();
    let progress = server.on_bytes(&mut input, &mut output).expect("it is a hello");
    assert!(matches!(progress, Progress::NeedInput { .. }));
    received_by(&mut client, &output).expect("the server's flight");
}

#[test]
fn no_common_group_is_told_by_an_alert() {
    let config = client_config(None, &[NamedGroup::X25519]);
    let server = server(&[NamedGroup::secp384r1]);
    let (error, output) = run(&mut client(&config), server, |_| usize::MAX, b"").unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
    // A fatal alert in the clear: type 21, level 2, handshake_failure.
    assert_eq!((output[0], &output[5..]), (21, &[2, 40][..]), "{output:?}");
}

/// What a server makes of these first bytes.
fn verdict(bytes: &[u8]) -> Result<Progress, HandshakeError> {
    let mut input = Buffer::with_capacity(128 * 1024);
    input.append(bytes);
    Handshake::new(server(&[])).expect("a server").on_bytes(&mut input, &mut Vec::new())
}

#[test]
fn what_is_not_tls_is_recognised() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"POST ", b"OPTIONS * HTTP/1.0"] {
        assert!(matches!(verdict(bytes), Err(HandshakeError::PlainHttp)), "{bytes:?}");
    }
    // What stands behind the word decides.
    assert!(matches!(verdict(b"POST"), Ok(Progress::NeedInput { next_read_max: 1 })));
    for bytes in [&b"SSH-2.0-x"[..], b"\0", b"\x80\x2e\x01\x03\x01", b"get /", b"\x17\x03\x03"] {
        assert!(matches!(verdict(bytes), Err(HandshakeError::NotTls)), "{bytes:?}");
    }
    for bytes in [&b"\x16\x02\x00\x00\x01a"[..], b"\x16\x03\x01\xff\xff"] {
        assert!(matches!(verdict(bytes), Err(HandshakeError::NotTls)), "{bytes:?}");
    }
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01", b"GE"] {
        assert!(matches!(verdict(bytes), Ok(Progress::NeedInput { .. })), "{bytes:?}");
    }
}

#[test]
fn a_handshake_without_end_is_refused() {
    // Fragments of one message that is never complete.
    let mut bytes = Vec::new();
    for _ in 0..(HANDSHAKE_BYTES_MAX / 1000) + 1 {
        bytes.extend_from_slice(&[22, 3, 1, 3, 232]);
        let mut fragment = [0; 1000];
        fragment[..4].copy_from_slice(&[1, 0, 255, 255]);
        bytes.extend_from_slice(if bytes.len() == 5 { &fragment } else { &[0; 1000] });
    }
    assert!(verdict(&bytes).is_err());
}

/// A message in fragments, the last of which is malformed: rustls once was asked for its alert without the fragments
/// that it still remembered, and panicked.
#[test]
fn an_error_within_a_fragmented_message_does_not_panic() {
    let mut bytes = vec![22, 3, 1, 0, 6, 1, 0, 4, 0, 3, 3];
    bytes.extend_from_slice(&[23, 3, 3, 0, 1, 0]);
    assert!(verdict(&bytes).is_err());
    for kind in 20..=23 {
        for len in 0..=255_u8 {
            let mut bytes = vec![22, 3, 1, 0, len];
            bytes.extend((0..len).map(|index| index.wrapping_mul(37)));
            bytes.extend_from_slice(&[kind, 3, 3, 0, 2, 2, 40]);
            let _ = verdict(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = verdict(&bytes);
        let mut record = vec![22, 3, 1, 2, 0];
        record.extend_from_slice(&bytes);
        let _ = verdict(&record);
    }

    #[test]
    fn a_changed_handshake_fails_or_succeeds_but_never_panics(
        at in 0.0..1.0_f64,
        to in any::<u8>(),
        size in 1_usize..2000,
    ) {
        let config = client_config(None, &[]);
        let mut hello = sent_by(&mut client(&config));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "a place within a few hundred bytes")]
        let at = (at * hello.len() as f64) as usize;
        hello[at] = to;
        let mut server = Handshake::new(server(&[])).expect("a server");
        let mut input = Buffer::with_capacity(64 * 1024);
        for piece in hello.chunks(size) {
            input.compact();
            input.append(piece);
            if server.on_bytes(&mut input, &mut Vec::new()).is_err() {
                break;
            }
        }
    }
}

#[test]
fn a_witness_tells_the_name_that_was_asked_for_in_lower_case() {
    // With a group that the client does not offer first, it is asked to begin again.
    for groups in [&[][..], &[NamedGroup::secp384r1]] {
        let (witness, config) = Witness::of(&server(groups));
        assert_eq!(witness.name(), None);
        let name = rustls::pki_types::ServerName::try_from("LocalHost").expect("a name");
        let mut client = rustls::ClientConnection::new(client_config(None, &[]), name).unwrap();
        run(&mut client, config, |_| usize::MAX, b"x").unwrap();
        assert_eq!(witness.name(), Some("localhost"));
    }
}

#[test]
fn what_is_established_is_shown_without_its_secrets() {
    let done = run(&mut client(&client_config(None, &[])), server(&[]), |_| 100, b"x").unwrap();
    let shown = format!("{:?}", done.established);
    assert!(shown.starts_with("Established { suite:") && !shown.contains("secret"), "{shown}");
}

#[test]
fn a_record_that_does_not_fit_and_a_hello_without_end_are_too_long() {
    let mut handshake = Handshake::new(server(&[])).unwrap();
    let (mut input, mut output) = (Buffer::with_capacity(64), Vec::new());
    input.append(&[&[22, 3, 1, 1, 0][..], &[1; 59]].concat());
    let error = handshake.on_bytes(&mut input, &mut output).unwrap_err();
    assert!(matches!(error, HandshakeError::TooLong), "{error}");

    let mut handshake = Handshake::new(server(&[])).unwrap();
    let mut input = Buffer::with_capacity(4 * HANDSHAKE_BYTES_MAX);
    // A message of 16 MB that begins and begins.
    let fragment = [&[22, 3, 1, 64, 0, 1, 255, 255, 255][..], &[0; (1 << 14) - 4]].concat();
    while input.append(&fragment) == fragment.len() {}
    let error = handshake.on_bytes(&mut input, &mut output).unwrap_err();
    assert!(matches!(error, HandshakeError::TooLong | HandshakeError::Tls(_)), "{error}");
    // Whatever follows: it is over.
    let error = handshake.on_bytes(&mut Buffer::with_capacity(64), &mut output).unwrap_err();
    assert!(matches!(error, HandshakeError::Closed | HandshakeError::TooLong), "{error}");
}

#[test]
fn plain_http_is_told_from_noise_in_any_pieces() {
    for (bytes, is_http) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], true),
        (b"PROPFIND /", true),
        (b"GET\x16\x03\x01", false),
        (b"GO x", false),
        (b"A", false),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKL /", false),
    ] {
        for piece in [1, 2, 3, 5, bytes.len()] {
            let mut handshake = Handshake::new(server(&[])).unwrap();
            let (mut input, mut output) = (Buffer::with_capacity(256), Vec::new());
            let verdict = bytes.chunks(piece).find_map(|part| {
                input.append(part);
                handshake.on_bytes(&mut input, &mut output).err()
            });
            let name = bytes.escape_ascii();
            match verdict {
                Some(HandshakeError::PlainHttp) => assert!(is_http, "{name} by {piece}"),
                Some(HandshakeError::NotTls) => assert!(!is_http, "{name} by {piece}"),
                None => assert_eq!(bytes, b"A", "it might still become a method"),
                Some(error) => panic!("{error}: {name} by {piece}"),
            }
            assert!(output.is_empty(), "{name} by {piece}");
        }
    }
}

/// A server that has answered the hello of `client`, with its answer.
fn answered(client: &mut rustls::ClientConnection) -> (Handshake, Vec<u8>) {
    let mut server = Handshake::new(server(&[])).expect("a server");
    let mut output = Vec::new();
    let mut input = Buffer::with_capacity(64 * 1024);
    input.append(&sent_by(client));
    let progress = server.on_bytes(&mut input, &mut output).expect("it is a hello");
    assert!(matches!(progress, Progress::NeedInput { next_read_max: 5 }) && input.is_empty());
    (server, output)
}

#[test]
fn a_client_that_leaves_a_handshake_ends_it_and_is_not_answered() {
    for suite in suites() {
        let mut client = client(&client_config(Some(suite.suite()), &[]));
        let (mut server, mut output) = answered(&mut client);
        let answer = output.len();
        let mut input = Buffer::with_capacity(1024);
        input.append(&[21, 3, 3, 0, 2, 2, 40]);
        let error = server.on_bytes(&mut input, &mut output).expect_err("it is over");
        let told = rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure);
        assert!(matches!(&error, HandshakeError::Tls(error) if *error == told), "{error:?}");
        assert_eq!(output.len(), answer, "{suite:?}");
        // It stays over.
        input.append(&[22, 3, 3, 0, 1, 0]);
        let error = server.on_bytes(&mut input, &mut output).expect_err("it is over");
        assert!(matches!(error, HandshakeError::Closed), "{error}");
    }
}

#[test]
fn a_changed_last_flight_is_told_by_an_alert_that_the_client_can_read() {
    for suite in suites() {
        let mut client = client(&client_config(Some(suite.suite()), &[]));
        let (mut server, answer) = answered(&mut client);
        received_by(&mut client, &answer).expect("the server's flight");
        let mut flight = sent_by(&mut client);
        *flight.last_mut().expect("a flight") ^= 1;
        let mut input = Buffer::with_capacity(64 * 1024);
        input.append(&flight);
        let mut output = Vec::new();
        let error = server.on_bytes(&mut input, &mut output).expect_err("it was changed");
        assert!(matches!(error, HandshakeError::Tls(rustls::Error::DecryptError)), "{error}");
        let told = received_by(&mut client, &output).expect_err("an alert");
        let expected = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert_eq!(told, expected, "{suite:?}");
    }
}

/// The hello is answered before it is found that nothing can be signed: the alert stands behind that answer.
#[test]
fn an_alert_behind_an_answer_is_sent_with_it() {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let algorithms = &mut provider.signature_verification_algorithms;
    let is_rsa = |scheme: rustls::SignatureScheme| {
        scheme.as_str().is_some_and(|name| name.starts_with("RSA"))
    };
    let mapping = algorithms.mapping.iter().copied().filter(|(scheme, _)| is_rsa(*scheme));
    algorithms.mapping = mapping.collect::<Vec<_>>().leak();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = client(&Arc::new(config));
    let mut server = Handshake::new(server(&[])).expect("a server");
    let (mut input, mut output) = (Buffer::with_capacity(64 * 1024), Vec::new());
    input.append(&sent_by(&mut client));
    let error = server.on_bytes(&mut input, &mut output).expect_err("it cannot sign");
    assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
    let told = received_by(&mut client, &output).expect_err("an alert");
    assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told:?}");
}
