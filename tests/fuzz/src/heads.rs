use tlsplice::config::HeaderEdits;
use tlsplice::message::fields;
use tlsplice::message::framing::Framing;
use tlsplice::message::name::{Name, Role};
use tlsplice::message::request::{RequestError, RequestHead};
use tlsplice::message::response::{ResponseError, ResponseHead};
use tlsplice::message::rewrite::{self, Identity, Mapping, ResponseContext};
use tlsplice::message::via::{self, Pseudonym};
use tlsplice::message::{HeadLimits, Parsed, Version};
use tlsplice_tests::strict;

use crate::input::Input;

const LIMITS: HeadLimits = HeadLimits { bytes: 1024, fields: 24 };
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A head read line by line, apart from the gateway's parser.
struct Reading<'b> {
    start: &'b [u8],
    fields: Vec<(String, &'b [u8])>,
    len: usize,
}

impl<'b> Reading<'b> {
    /// The head at the front of `bytes`, an empty line before it aside; None when it has no end or a line is no field.
    fn of(bytes: &'b [u8]) -> Option<Self> {
        let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        let head = &bytes[skipped..];
        let end = head.windows(4).position(|four| four == b"\r\n\r\n")?;
        let mut lines = head[..end]
            .split(|&byte| byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let start = lines.next()?;
        let field = |line: &'b [u8]| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = std::str::from_utf8(&line[..colon]).ok()?.to_ascii_lowercase();
            let is_clean =
                !line.contains(&b'\r') && !name.is_empty() && !name.contains([' ', '\t']);
            is_clean.then(|| (name, line[colon + 1..].trim_ascii()))
        };
        let fields = lines.map(field).collect::<Option<Vec<_>>>()?;
        Some(Self { start, fields, len: skipped + end + 4 })
    }

    fn values(&self, name: &str) -> Vec<&'b [u8]> {
        self.fields.iter().filter(|(own, _)| own == name).map(|&(_, value)| value).collect()
    }

    /// Length and coding as a strict server reads them; panics where two servers could differ.
    fn length(&self) -> Framing {
        let lengths = self.values("content-length");
        let codings = self.values("transfer-encoding");
        match (&lengths[..], &codings[..]) {
            ([], []) => Framing::None,
            ([length], []) => {
                assert!(
                    !length.is_empty() && length.iter().all(u8::is_ascii_digit),
                    "{}",
                    length.escape_ascii()
                );
                let text = std::str::from_utf8(length).expect("digits");
                match text.parse().expect("it fits") {
                    0 => Framing::None,
                    length => Framing::Length(length),
                }
            }
            ([], [coding]) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"), "{}", coding.escape_ascii());
                Framing::Chunked
            }
            _ => panic!("{} lengths and {} codings", lengths.len(), codings.len()),
        }
    }

    fn lists(&self, name: &str, option: &str) -> bool {
        let values = self.values(name);
        let mut options = values.iter().flat_map(|value| value.split(|&byte| byte == b','));
        options.any(|one| one.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    }
}

/// Where a head is cut: everywhere, or in some places of a long one.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..=len).step_by((len / 64).max(1)).chain([len])
}

/// The verdict on `bytes` as it is when they come one by one.
fn split_agrees<E: std::fmt::Debug + PartialEq>(
    bytes: &[u8],
    verdict: impl Fn(&[u8]) -> Result<Option<String>, E>,
) {
    let whole = verdict(bytes);
    let first = cuts(bytes.len()).map(|cut| verdict(&bytes[..cut])).find(|one| *one != Ok(None));
    match whole {
        Ok(None) => assert_eq!(first, None, "a part says more than the whole"),
        // Which of several faults is told of may depend on what has come.
        Err(_) => assert!(matches!(first, Some(Err(_))), "{first:?} instead of {whole:?}"),
        Ok(Some(_)) => assert_eq!(first, Some(whole), "in parts"),
    }
}

fn request_verdict(bytes: &[u8]) -> Result<Option<String>, RequestError> {
    let mut slots = fields::slots();
    Ok(match RequestHead::parse(bytes, &mut slots, LIMITS)? {
        Parsed::Partial => None,
        Parsed::Complete(head, len) => Some(format!("{head:?} {len}")),
    })
}

pub(crate) fn request(bytes: &[u8]) {
    split_agrees(bytes, request_verdict);
    let mut slots = fields::slots();
    let Ok(Parsed::Complete(head, len)) = RequestHead::parse(bytes, &mut slots, LIMITS) else {
        return;
    };
    let reading = Reading::of(bytes).expect("a head that others can read, too");
    assert_eq!(reading.len, len);
    assert_eq!(reading.fields.len(), head.fields.len());
    assert_eq!(reading.length(), head.framing);
    assert!(head.framing != Framing::UntilClose);
    let words: Vec<&[u8]> = reading.start.split(|&byte| byte == b' ').collect();
    let [method, target, version] = words[..] else { panic!("{}", reading.start.escape_ascii()) };
    assert_eq!(method, head.method.as_bytes());
    assert!(
        target.ends_with(format!("{}{}", head.target.path, head.target.query).as_bytes())
            || head.target.path == "/"
    );
    assert_eq!(version == b"HTTP/1.1", head.version == Version::Http11);
    let hosts = reading.values("host");
    assert!(hosts.len() == 1 || head.version == Version::Http10 && hosts.is_empty());
    for host in hosts {
        assert!(head.authority.as_bytes().eq_ignore_ascii_case(host), "{}", head.authority);
    }
    assert!(!(head.keep_alive && reading.lists("connection", "close")));
    if head.websocket_key.is_some() {
        assert!(reading.lists("connection", "upgrade") && reading.lists("upgrade", "websocket"));
        assert_eq!((head.method, head.framing), ("GET", Framing::None));
    }
}

/// Whether the request was HEAD, and the key of its upgrade.
fn asked(byte: u8) -> (bool, Option<&'static str>) {
    (byte & 1 == 1, (byte & 2 == 2).then_some(KEY))
}

fn response_verdict(
    bytes: &[u8],
    asked: (bool, Option<&str>),
) -> Result<Option<String>, ResponseError> {
    let mut slots = fields::slots();
    Ok(match ResponseHead::parse(bytes, &mut slots, LIMITS, asked.0, asked.1)? {
        Parsed::Partial => None,
        Parsed::Complete(head, len) => Some(format!("{head:?} {len}")),
    })
}

pub(crate) fn response(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let asked = asked(input.byte());
    let bytes = input.rest();
    split_agrees(bytes, |bytes| response_verdict(bytes, asked));
    let mut slots = fields::slots();
    let parsed = ResponseHead::parse(bytes, &mut slots, LIMITS, asked.0, asked.1);
    let Ok(Parsed::Complete(head, len)) = parsed else { return };
    let reading = Reading::of(bytes).expect("a head that others can read, too");
    assert_eq!(reading.len, len);
    assert_eq!(reading.fields.len(), head.fields.len());
    let declared = reading.length();
    match head.framing {
        Framing::None => {
            let has_none = asked.0 || head.status < 200 || matches!(head.status, 204 | 304);
            assert!(has_none || declared == Framing::None);
        }
        Framing::UntilClose => {
            assert!(declared == Framing::None && !head.keep_alive);
            assert!(reading.values("content-length").is_empty());
        }
        framing => assert_eq!(framing, declared),
    }
    if head.status == 101 {
        assert!(asked.1.is_some() && reading.lists("upgrade", "websocket"));
    }
}

pub(crate) fn rewrite(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choices = input.byte();
    if choices & 0x80 == 0 {
        rewrite_request(choices, input.rest());
    } else {
        rewrite_response(choices, input.rest());
    }
}

fn edits(are_some: bool) -> HeaderEdits {
    if !are_some {
        return HeaderEdits::default();
    }
    HeaderEdits {
        remove: vec!["x-gone".to_owned(), "accept".to_owned()],
        set: vec![("x-set".to_owned(), "once".to_owned())],
    }
}

fn rewrite_request(choices: u8, bytes: &[u8]) {
    const PEER: &str = "192.0.2.7";
    let mut slots = fields::slots();
    let Ok(Parsed::Complete(head, _)) = RequestHead::parse(bytes, &mut slots, LIMITS) else {
        return;
    };
    if head.is_for_gateway() {
        return;
    }
    let identity = Identity {
        peer: PEER.parse().expect("an address"),
        peer_is_trusted: choices & 1 == 1,
        https: choices & 2 == 2,
        port: 443,
        pseudonym: Pseudonym::new(7),
    };
    let desk = Mapping { public: "/desk/", upstream: "/guacamole/" };
    let is_desk = head.target.agrees_on(desk.public)
        && tlsplice::message::target::is_under(&head.target.seen, desk.public);
    let mapping = if is_desk { desk } else { Mapping { public: "/", upstream: "/" } };
    let edits = edits(choices & 4 == 4);
    let mut out = Vec::new();
    rewrite::write_request(&head, mapping, identity, &edits, &mut out);

    let text = out.escape_ascii();
    let found = strict::head(&out).unwrap_or_else(|wrong| panic!("{wrong}")).expect("it is whole");
    assert_eq!(found.len, out.len(), "{text}");
    assert_eq!(found.request.method, head.method);
    let reading = Reading::of(&out).expect("lines");
    assert_eq!(reading.length(), head.framing, "{text}");
    if !head.authority.is_empty() {
        let limits = HeadLimits { bytes: 1 << 16, fields: fields::FIELDS_MAX };
        let mut slots = fields::slots();
        let Ok(Parsed::Complete(again, len)) = RequestHead::parse(&out, &mut slots, limits) else {
            panic!("not understood by the gateway itself: {text}")
        };
        assert_eq!(len, out.len());
        assert_eq!(
            (
                again.method,
                again.framing,
                again.authority,
                again.websocket_key,
                again.expects_continue
            ),
            (head.method, head.framing, head.authority, head.websocket_key, head.expects_continue)
        );
        assert_eq!(again.target.query, head.target.query);
        assert!(tlsplice::message::target::is_under(&again.target.seen, mapping.upstream));
    }
    for (name, value) in &reading.fields {
        let is_ours =
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"]
                .contains(&name.as_str());
        match Name::of(name).role() {
            Role::Identity => assert!(is_ours && reading.values(name).len() == 1, "{text}"),
            Role::HopByHop => match name.as_str() {
                "host" | "content-length" | "transfer-encoding" => {}
                "expect" => assert!(head.expects_continue),
                "connection" => assert!(head.websocket_key.is_some() && *value == b"Upgrade"),
                "upgrade" => assert!(head.websocket_key.is_some() && *value == b"websocket"),
                _ => panic!("{name} in {text}"),
            },
            Role::Protected | Role::EndToEnd => {}
        }
    }
    let vias = reading.values("via");
    assert!(via::names(vias, identity.pseudonym), "we would know it again: {text}");
    let told = reading.values("x-forwarded-for");
    let is_true = if identity.peer_is_trusted {
        told[0].ends_with(PEER.as_bytes())
    } else {
        told[0] == PEER.as_bytes()
    };
    assert!(is_true, "{text}");
    assert!(edits.set.is_empty() || reading.values("x-set") == [&b"once"[..]]);
    assert!(edits.remove.iter().all(|name| reading.values(name).is_empty()));
}

fn rewrite_response(choices: u8, bytes: &[u8]) {
    let asked = asked(choices);
    let version = if choices & 4 == 4 { Version::Http10 } else { Version::Http11 };
    let mut slots = fields::slots();
    let parsed = ResponseHead::parse(bytes, &mut slots, LIMITS, asked.0, asked.1);
    let Ok(Parsed::Complete(head, _)) = parsed else { return };
    // As the connection chooses it.
    let framing = match (head.framing, version) {
        (Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (Framing::Chunked, Version::Http10) => Framing::UntilClose,
        (framing, _) => framing,
    };
    let edits = edits(choices & 8 == 8);
    let context = ResponseContext {
        version,
        framing,
        close: choices & 16 == 16 || framing == Framing::UntilClose,
        mapping: Mapping { public: "/desk/", upstream: "/guacamole/" },
        upstream_authorities: &["127.0.0.1:8080".to_owned()],
        public: ("https", "desk.example.org"),
        hsts: (choices & 32 == 32).then_some("max-age=1"),
        edits: &edits,
    };
    let mut out = Vec::new();
    rewrite::write_response(&head, &context, &mut out);
    let text = out.escape_ascii();
    let limits = HeadLimits { bytes: 1 << 16, fields: fields::FIELDS_MAX };
    let mut slots = fields::slots();
    let parsed = ResponseHead::parse(&out, &mut slots, limits, asked.0, asked.1);
    let Ok(Parsed::Complete(again, len)) = parsed else { panic!("not understood: {text}") };
    assert_eq!(len, out.len(), "nothing but one head: {text}");
    assert_eq!((again.status, again.described_length), (head.status, head.described_length));
    if head.status >= 200 && !asked.0 {
        assert_eq!(again.framing, framing, "{text}");
    }
    if head.status >= 200 && head.status != 101 {
        let reading = Reading::of(&out).expect("lines");
        assert_eq!(reading.lists("connection", "close"), context.close, "{text}");
        assert!(reading.values("upgrade").is_empty() && reading.values("trailer").is_empty());
    }
}
