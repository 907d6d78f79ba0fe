use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 64 };

fn verdict(bytes: &[u8]) -> Result<Option<String>, RequestError> {
    let mut slots = fields::slots();
    Ok(match RequestHead::parse(bytes, &mut slots, LIMITS)? {
        Parsed::Partial => None,
        Parsed::Complete(head, len) => Some(format!(
            "{} {}{} {:?} {:?} {} {} {} {:?}{}",
            head.method,
            head.target.path,
            head.target.query,
            head.version,
            head.framing,
            head.authority,
            head.keep_alive,
            head.expects_continue,
            head.websocket_key,
            if len == bytes.len() { "" } else { " with bytes behind it" },
        )),
    })
}

/// The verdict must not depend on how the bytes arrive.
fn check(bytes: &str, expected: Result<&str, RequestError>) {
    let expected = expected.map(|text| Some(text.to_owned()));
    assert_eq!(verdict(bytes.as_bytes()), expected, "{bytes:?}");
    let first = (0..=bytes.len())
        .map(|cut| verdict(&bytes.as_bytes()[..cut]))
        .find(|verdict| *verdict != Ok(None));
    assert_eq!(first, Some(expected), "split: {bytes:?}");
}

#[test]
fn requests_that_are_understood() {
    check(
        "GET /a?b HTTP/1.1\r\nHost: h:8443\r\n\r\n",
        Ok("GET /a?b Http11 None h:8443 true false None"),
    );
    check(
        "\r\nPOST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n",
        Ok("POST / Http11 Length(5) [::1] true true None"),
    );
    check("GET / HTTP/1.0\r\n\r\n", Ok("GET / Http10 None  false false None"));
    check(
        "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
        Ok("GET / Http10 None h true false None"),
    );
    check(
        "GET http://h/x HTTP/1.1\r\nHost: H\r\nConnection: close\r\n\r\n",
        Ok("GET /x Http11 None h false false None"),
    );
    check("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", Ok("OPTIONS * Http11 None h true false None"));
    check(
        "GET /w HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        Ok("GET /w Http11 None h true false Some(\"dGhlIHNhbXBsZSBub25jZQ==\")"),
    );
    check(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        Ok("GET / Http11 None h true false None"),
    );
}

#[test]
fn requests_that_are_refused() {
    let with = |line: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n");
    let field = Err(RequestError::Head(HeadError::Field));
    for (bytes, error) in [
        ("GET / HTTP/1.1\r\n\r\n".into(), RequestError::HostCount(0)),
        (with("Host: h"), RequestError::HostCount(2)),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), RequestError::Host),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), RequestError::Host),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n".into(), RequestError::Host),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n".into(), RequestError::Host),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n".into(), RequestError::HostMismatch),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), TargetError::Form.into()),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), TargetError::Form.into()),
        ("GET /../x HTTP/1.1\r\nHost: a\r\n\r\n".into(), TargetError::Segment.into()),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestError::Method),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestError::Method),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), HeadError::Version.into()),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(), HeadError::Version.into()),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(), HeadError::StartLine.into()),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), HeadError::StartLine.into()),
        ("GET /\r\nHost: a\r\n\r\n".into(), HeadError::StartLine.into()),
        (with("Expect: x"), RequestError::Expectation),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 1"), FramingError::Conflict.into()),
        (with("Connection: upgrade\r\nUpgrade: websocket"), RequestError::Upgrade),
        (
            with(
                "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: short==",
            ),
            RequestError::Upgrade,
        ),
    ] {
        check(&bytes, Err(error));
    }
    for line in ["A : b", " A: b", ": b", "A", "A\u{b}: b", "(a): b"] {
        let bytes = with(line);
        let found = verdict(bytes.as_bytes());
        let control = Err(RequestError::Head(HeadError::Control));
        assert!(found == field || found == control, "{line:?}: {found:?}");
    }
}

#[test]
fn limits_name_themselves() {
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(64));
    check(&many, Err(HeadError::TooManyFields(64).into()));
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000));
    check(&long, Err(HeadError::TooLong(8192).into()));
}

#[test]
fn plain_http_is_told_from_tls() {
    assert!(looks_like_http(b"GET / HTTP/1.1"));
    assert!(looks_like_http(b"OPTIONS"));
    assert!(!looks_like_http(b"\x16\x03\x01"));
    assert!(!looks_like_http(b"SSH-2.0"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = verdict(&bytes);
        let mut framed = b"GET / HTTP/1.1\r\nHost: h\r\n".to_vec();
        framed.extend_from_slice(&bytes);
        framed.extend_from_slice(b"\r\n\r\n");
        let _ = verdict(&framed);
    }
}

/// Applies `question` to the head that `bytes` are.
fn asked(bytes: &str, question: impl Fn(&RequestHead<'_, '_>) -> bool) -> bool {
    let mut slots = fields::slots();
    match RequestHead::parse(bytes.as_bytes(), &mut slots, LIMITS) {
        Ok(Parsed::Complete(head, _)) => question(&head),
        _ => panic!("{bytes:?} is no head"),
    }
}

#[test]
fn only_options_that_may_go_no_further_are_for_the_gateway() {
    for (line, field, expected) in [
        ("OPTIONS * HTTP/1.1", "X: y", true),
        ("OPTIONS / HTTP/1.1", "Max-Forwards: 0", true),
        ("OPTIONS / HTTP/1.1", "Max-Forwards: 1", false),
        ("OPTIONS / HTTP/1.1", "Max-Forwards: none", false),
        ("OPTIONS / HTTP/1.1", "Max-Forwards: \u{e9}", false),
        ("OPTIONS / HTTP/1.1", "X: y", false),
        ("GET / HTTP/1.1", "Max-Forwards: 0", false),
    ] {
        let bytes = format!("{line}\r\nHost: h\r\n{field}\r\n\r\n");
        assert_eq!(asked(&bytes, |head| head.is_for_gateway()), expected, "{bytes:?}");
    }
}

#[test]
fn the_host_is_told_without_its_port() {
    for (authority, host) in [
        ("h", "h"),
        ("h:80", "h"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("1.2.3.4:5", "1.2.3.4"),
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        assert!(asked(&bytes, |head| head.host() == host), "{authority}");
    }
    assert!(asked("GET / HTTP/1.0\r\n\r\n", |head| head.host().is_empty()));
}

#[test]
fn only_methods_that_may_be_repeated_are_idempotent() {
    for (method, expected) in [
        ("GET", true),
        ("HEAD", true),
        ("PUT", true),
        ("DELETE", true),
        ("OPTIONS", true),
        ("PROPFIND", true),
        ("POST", false),
        ("PATCH", false),
        ("LOCK", false),
    ] {
        let bytes = format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(asked(&bytes, |head| head.is_idempotent()), expected, "{method}");
    }
}
