//! Building the heads that we send: to the application, and back to the client.

use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use httparse::Header;

use super::Version;
use super::fields::{Fields, list, starts_with_ignore_case};
use super::framing::Framing;
use super::name::{Name, Role};
use super::request::RequestHead;
use super::response::ResponseHead;
use super::target::{is_under, write_mapped};
use super::via::Pseudonym;
use crate::config::HeaderEdits;

/// How the public path and the path at the application belong together.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// Public prefix.
    pub public: &'a str,
    /// Prefix at the application.
    pub upstream: &'a str,
}

/// Who the client is, as the application is told.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Address of the peer.
    pub peer: IpAddr,
    /// The peer is a proxy whose X-Forwarded-For is believed.
    pub peer_is_trusted: bool,
    /// The client speaks TLS with us.
    pub https: bool,
    /// Port of the listener.
    pub port: u16,
    /// What we call ourselves towards the application.
    pub pseudonym: Pseudonym,
}

impl Identity {
    /// Scheme of the public URL.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

/// Appends the head of `request` as it goes to the application.
pub fn write_request(
    request: &RequestHead<'_, '_>,
    mapping: Mapping<'_>,
    identity: Identity,
    edits: &HeaderEdits,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    write_mapped(request.target.path, mapping.public, mapping.upstream, out);
    out.extend_from_slice(request.target.query.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(request.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut lines = Lines::new(&request.fields, out);
    for (name, field, line) in request.fields.lines() {
        let forwards = match name.role() {
            Role::HopByHop | Role::Identity => false,
            // Handshake fields without a valid handshake would let the application see an upgrade that we do not.
            Role::Protected => request.websocket_key.is_some() || !name.is_of_websocket(),
            Role::EndToEnd => !(request.lists_fields && is_listed(&request.fields, field.name)),
        };
        if name == Name::MaxForwards && request.method == "OPTIONS" {
            // RFC 9110 §7.6.2: one less for each hop. What is no number limits nothing.
            let left = std::str::from_utf8(field.value).ok().and_then(|left| left.parse().ok());
            if let Some(left) = left.and_then(|left: u64| left.checked_sub(1)) {
                write_number_field(lines.flush(), "Max-Forwards", left);
            }
        } else if forwards && !is_edited(edits, field.name) {
            lines.add(field, line);
        }
    }
    lines.flush();
    write_identity(request, identity, out);
    for (name, value) in &edits.set {
        write_field(out, name, value.as_bytes());
    }
    if request.expects_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    write_framing(request.framing, Some(request.method), out);
    if request.websocket_key.is_some() {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn write_identity(request: &RequestHead<'_, '_>, identity: Identity, out: &mut Vec<u8>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    if identity.peer_is_trusted {
        for address in believed_addresses(&request.fields) {
            write_address(out, address);
            out.extend_from_slice(b", ");
        }
    }
    write_address(out, identity.peer);
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(identity.scheme().as_bytes());
    if !request.authority.is_empty() {
        out.extend_from_slice(b"\r\nX-Forwarded-Host: ");
        out.extend_from_slice(request.authority.as_bytes());
    }
    out.extend_from_slice(b"\r\nX-Forwarded-Port: ");
    write_number(out, identity.port);
    out.extend_from_slice(match request.version {
        Version::Http10 => b"\r\nVia: 1.0 ",
        Version::Http11 => b"\r\nVia: 1.1 ",
    });
    out.extend_from_slice(identity.pseudonym.name());
    out.extend_from_slice(b"\r\n");
}

/// The addresses that a trusted proxy reports, nearest last. The list is read from its right end, where it is most
/// trustworthy, and cut at the first element that is not an address.
fn believed_addresses(fields: &Fields<'_, '_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    'fields: for value in fields.values(Name::ForwardedFor).rev() {
        let elements: Vec<&[u8]> = list(value).collect();
        for element in elements.into_iter().rev() {
            let address = std::str::from_utf8(element).ok().and_then(|text| text.parse().ok());
            match address {
                Some(address) => addresses.push(address),
                None => break 'fields,
            }
        }
    }
    addresses.reverse();
    addresses
}

/// What a response needs beside its own head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseContext<'a> {
    /// The client's version.
    pub version: Version,
    /// How the body is sent.
    pub framing: Framing,
    /// The connection ends behind this response.
    pub close: bool,
    /// The route's mapping.
    pub mapping: Mapping<'a>,
    /// Authorities (host:port) of the upstream's endpoints, which no client can reach.
    pub upstream_authorities: &'a [String],
    /// Scheme and authority of the public URL.
    pub public: (&'static str, &'a str),
    /// Value of Strict-Transport-Security, where it is set.
    pub hsts: Option<&'a str>,
    /// The route's edits.
    pub edits: &'a HeaderEdits,
}

/// Appends the head of `response` as it goes to the client.
pub fn write_response(
    response: &ResponseHead<'_, '_>,
    context: &ResponseContext<'_>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(out, response.status);
    out.push(b' ');
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    let hsts_is_ours = context.hsts.is_some();
    let mut lines = Lines::new(&response.fields, out);
    for (name, field, line) in response.fields.lines() {
        let is_dropped = name.is_hop_by_hop_in_response()
            || response.lists_fields
                && name.role() == Role::EndToEnd
                && is_listed(&response.fields, field.name);
        let is_replaced = is_edited(context.edits, field.name)
            || hsts_is_ours && name == Name::StrictTransportSecurity;
        if is_dropped || is_replaced {
            continue;
        }
        match name {
            Name::Location | Name::ContentLocation => {
                let out = lines.flush();
                start_field(out, field.name);
                write_public_url(field.value, context, out);
                out.extend_from_slice(b"\r\n");
            }
            Name::SetCookie => {
                let out = lines.flush();
                start_field(out, field.name);
                write_public_cookie(field.value, context, out);
                out.extend_from_slice(b"\r\n");
            }
            _ => lines.add(field, line),
        }
    }
    lines.flush();
    for (name, value) in &context.edits.set {
        write_field(out, name, value.as_bytes());
    }
    if let Some(hsts) = context.hsts {
        write_field(out, "Strict-Transport-Security", hsts.as_bytes());
    }
    match response.described_length {
        Some(length) => write_number_field(out, "Content-Length", length),
        None if response.status >= 200 && response.status != 204 && response.status != 304 => {
            write_framing(context.framing, None, out);
        }
        None => {}
    }
    if response.status == 101 {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else if response.status >= 200 {
        write_connection(context.version, context.close, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the Connection field where the default of the client's version is not what happens.
pub(super) fn write_connection(version: Version, close: bool, out: &mut Vec<u8>) {
    match (version, close) {
        (_, true) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, false) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Version::Http11, false) => {}
    }
}

/// `method` is None for a response. A request without body says so where its method expects one.
fn write_framing(framing: Framing, method: Option<&str>, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => write_number_field(out, "Content-Length", length),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None if matches!(method, Some("POST" | "PUT" | "PATCH")) => {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Framing::None | Framing::UntilClose => {}
    }
}

/// An URL of the application becomes the public one, or stays what it is.
fn write_public_url(url: &[u8], context: &ResponseContext<'_>, out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(url) else {
        out.extend_from_slice(url);
        return;
    };
    let (scheme, public) = context.public;
    let absolute = ["http://", "https://"]
        .into_iter()
        .find(|scheme| starts_with_ignore_case(text, scheme))
        .map(|scheme| &text[scheme.len()..]);
    match absolute {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            let is_ours = authority.eq_ignore_ascii_case(public)
                || context
                    .upstream_authorities
                    .iter()
                    .any(|own| authority.eq_ignore_ascii_case(own));
            if is_ours && !public.is_empty() {
                append(out, format_args!("{scheme}://{public}"));
                write_public_path(path, context.mapping, out);
            } else {
                out.extend_from_slice(url);
            }
        }
        // `//host/path` names another host.
        None if text.starts_with('/') && !text.starts_with("//") => {
            write_public_path(text, context.mapping, out);
        }
        None => out.extend_from_slice(url),
    }
}

fn write_public_path(url: &str, mapping: Mapping<'_>, out: &mut Vec<u8>) {
    let (path, rest) = url.split_at(url.find(['?', '#', ';']).unwrap_or(url.len()));
    if path.starts_with('/') && is_under(path.as_bytes(), mapping.upstream) {
        write_mapped(path, mapping.upstream, mapping.public, out);
    } else {
        out.extend_from_slice(path.as_bytes());
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Path and Domain of a cookie become the public ones (RFC 6265 §4.1.1).
fn write_public_cookie(cookie: &[u8], context: &ResponseContext<'_>, out: &mut Vec<u8>) {
    for (index, attribute) in cookie.split(|&byte| byte == b';').enumerate() {
        if index > 0 {
            out.push(b';');
        }
        let value_of = |name: &str| {
            let text = std::str::from_utf8(attribute).ok().filter(|_| index > 0)?;
            let (key, value) = text.split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        };
        if let Some(path) = value_of("path") {
            out.extend_from_slice(b" Path=");
            write_public_path(path, context.mapping, out);
        } else if let Some(domain) = value_of("domain") {
            let bare = |authority: &str| authority.split(':').next().unwrap_or("").to_owned();
            let host = domain.trim_start_matches('.');
            let is_upstream =
                context.upstream_authorities.iter().any(|own| bare(own).eq_ignore_ascii_case(host));
            let public = bare(context.public.1);
            let domain = if is_upstream && !public.is_empty() { &public } else { domain };
            append(out, format_args!(" Domain={domain}"));
        } else {
            out.extend_from_slice(attribute);
        }
    }
}

/// Whether a Connection field names `name` (RFC 9110 §7.6.1).
fn is_listed(fields: &Fields<'_, '_>, name: &str) -> bool {
    let mut options = fields.values(Name::Connection).flat_map(list);
    options.any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

fn is_edited(edits: &HeaderEdits, name: &str) -> bool {
    edits.remove.iter().any(|removed| removed.eq_ignore_ascii_case(name))
        || edits.set.iter().any(|(set, _)| set.eq_ignore_ascii_case(name))
}

/// Fields that go on as they are. Lines that follow one another, and are written as we write them, are copied together.
struct Lines<'a, 'b> {
    head: &'b [u8],
    /// Of the head: what is still to be copied.
    run: Range<usize>,
    out: &'a mut Vec<u8>,
}

impl<'a, 'b> Lines<'a, 'b> {
    fn new(fields: &Fields<'_, 'b>, out: &'a mut Vec<u8>) -> Self {
        Self { head: fields.head(), run: 0..0, out }
    }

    fn add(&mut self, field: &Header<'_>, line: Option<Range<usize>>) {
        match line {
            Some(line) if line.start == self.run.end => self.run.end = line.end,
            Some(line) => {
                self.flush();
                self.run = line;
            }
            None => write_field(self.flush(), field.name, field.value),
        }
    }

    /// Copies what is left, so that anything else can be written behind it.
    fn flush(&mut self) -> &mut Vec<u8> {
        self.out.extend_from_slice(&self.head[std::mem::take(&mut self.run)]);
        self.out
    }
}

fn start_field(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    start_field(out, name);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_number_field(out: &mut Vec<u8>, name: &str, number: impl itoa::Integer) {
    start_field(out, name);
    write_number(out, number);
    out.extend_from_slice(b"\r\n");
}

/// Appends `number`. Every head has some: no formatter writes them.
fn write_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                if octet >= 100 {
                    out.push(b'0' + octet / 100);
                }
                if octet >= 10 {
                    out.push(b'0' + octet / 10 % 10);
                }
                out.push(b'0' + octet % 10);
            }
        }
        // Which zeros are left out is for the standard library to know (RFC 5952).
        IpAddr::V6(address) => append(out, format_args!("{address}")),
    }
}

/// Formats into the head; writing to a vector cannot fail.
pub(super) fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "a vector takes every byte");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{HeadLimits, Parsed, fields};
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 65536, fields: 100 };
    const SAME: Mapping<'static> = Mapping { public: "/", upstream: "/" };

    fn identity(trusted: bool) -> Identity {
        Identity {
            peer: "192.0.2.7".parse().unwrap(),
            peer_is_trusted: trusted,
            https: true,
            port: 443,
            pseudonym: Pseudonym::new(7),
        }
    }

    fn request(bytes: &str, mapping: Mapping<'_>, trusted: bool, edits: &HeaderEdits) -> String {
        let mut slots = fields::slots();
        let Ok(Parsed::Complete(head, _)) =
            RequestHead::parse(bytes.as_bytes(), &mut slots, LIMITS)
        else {
            panic!("not understood: {bytes}")
        };
        let mut out = Vec::new();
        write_request(&head, mapping, identity(trusted), edits, &mut out);
        String::from_utf8(out).unwrap()
    }

    const OURS: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                        X-Forwarded-Host: h\r\nX-Forwarded-Port: 443\r\nVia: 1.1 tlsplice-0000000000000007\r\n";

    #[test]
    fn identity_is_stripped_and_set_whatever_the_client_says() {
        let forged = "GET /a?q HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.2.3.4\r\nx-forwarded-proto: http\r\n\
                      X_Forwarded_For: 5.6.7.8\r\nForwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n\
                      REMOTE_USER: admin\r\nX-Client-Verified: SUCCESS\r\nAccept: */*\r\n\
                      Connection: X-Forwarded-For, Cookie, Accept, keep-alive\r\nCookie: a=b\r\n\r\n";
        let expected = format!("GET /a?q HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\n{OURS}\r\n");
        assert_eq!(request(forged, SAME, false, &HeaderEdits::default()), expected);
    }

    #[test]
    fn behind_a_trusted_proxy_the_peer_is_appended_to_real_addresses_only() {
        let bytes = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: evil, 10.0.0.1\r\n\
                     X-Forwarded-For: 2001:db8::1\r\n\r\n";
        let out = request(bytes, SAME, true, &HeaderEdits::default());
        assert!(out.contains("X-Forwarded-For: 10.0.0.1, 2001:db8::1, 192.0.2.7\r\n"), "{out}");
        assert_eq!(out.matches("X-Forwarded-For").count(), 1);
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        for text in ["0.0.0.0", "9.10.99.100", "101.109.110.199", "200.209.250.255", "2001:db8::1"]
        {
            let mut out = Vec::new();
            write_address(&mut out, text.parse().unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn each_hop_takes_one_from_max_forwards_of_options_only() {
        let with = |method: &str, left: &str| {
            let bytes = format!("{method} / HTTP/1.1\r\nHost: h\r\nMax-Forwards: {left}\r\n\r\n");
            request(&bytes, SAME, false, &HeaderEdits::default())
        };
        assert!(with("OPTIONS", "5").contains("\r\nMax-Forwards: 4\r\n"));
        assert!(!with("OPTIONS", "x").contains("Max-Forwards"));
        assert!(with("GET", "5").contains("\r\nMax-Forwards: 5\r\n"));
    }

    #[test]
    fn the_prefix_is_mapped_and_edits_apply() {
        let edits =
            HeaderEdits { remove: vec!["x-old".into()], set: vec![("X-New".into(), "1".into())] };
        let bytes = "PUT /desk/x?y HTTP/1.1\r\nHost: h\r\nX-Old: 1\r\nx-new: 0\r\nContent-Length: 2\r\n\r\n";
        let mapping = Mapping { public: "/desk/", upstream: "/guacamole/" };
        assert_eq!(
            request(bytes, mapping, false, &edits),
            format!(
                "PUT /guacamole/x?y HTTP/1.1\r\nHost: h\r\n{OURS}X-New: 1\r\nContent-Length: 2\r\n\r\n"
            )
        );
    }

    #[test]
    fn an_upgrade_is_rebuilt_and_a_stray_one_disappears() {
        let handshake = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let good = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\n{handshake}");
        let out = request(&good, SAME, false, &HeaderEdits::default());
        assert!(out.ends_with("Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), "{out}");
        assert!(out.contains("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"));
        let stray = format!("GET / HTTP/1.1\r\nHost: h\r\n{handshake}");
        let out = request(&stray, SAME, false, &HeaderEdits::default());
        assert_eq!(out, format!("GET / HTTP/1.1\r\nHost: h\r\n{OURS}\r\n"));
    }

    #[test]
    fn fields_go_on_as_they_came_however_they_are_written() {
        let bytes = "GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nHost: h\r\nC:3\r\nD: 4\r\nE:\t5 \r\nF: \r\nG:\r\nI: 6 \t\r\n\
                     J:  7\r\nk: 8\r\nx-old: 1\r\nL: : \r\n\r\n";
        let edits = HeaderEdits { remove: vec!["x-old".into()], set: Vec::new() };
        assert_eq!(
            request(bytes, SAME, false, &edits),
            format!(
                "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: \r\nG: \r\nI: 6\r\n\
                 J: 7\r\nk: 8\r\nL: :\r\n{OURS}\r\n"
            )
        );
    }

    fn response(bytes: &str, mapping: Mapping<'_>, framing: Framing, close: bool) -> String {
        response_to(false, bytes, mapping, framing, close)
    }

    fn response_to(
        to_head: bool,
        bytes: &str,
        mapping: Mapping<'_>,
        framing: Framing,
        close: bool,
    ) -> String {
        let mut slots = fields::slots();
        let parsed = ResponseHead::parse(bytes.as_bytes(), &mut slots, LIMITS, to_head, None);
        let Ok(Parsed::Complete(head, _)) = parsed else { panic!("not understood: {bytes}") };
        let context = ResponseContext {
            version: Version::Http11,
            framing,
            close,
            mapping,
            upstream_authorities: &["10.0.0.5:8080".into()],
            public: ("https", "desk.example.org"),
            hsts: Some("max-age=1"),
            edits: &HeaderEdits::default(),
        };
        let mut out = Vec::new();
        write_response(&head, &context, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_length_is_told_where_the_upstream_told_it_and_allowed_by_the_status() {
        let told = |to_head, status, field: &str| {
            let bytes = format!("HTTP/1.1 {status} x\r\n{field}\r\n");
            let sent = response_to(to_head, &bytes, SAME, Framing::None, false);
            sent.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map(str::to_owned)
        };
        assert_eq!(told(true, 200, "Content-Length: 7\r\n").as_deref(), Some("7"));
        // Nothing is known of the body that GET would have had.
        assert_eq!(told(true, 200, ""), None);
        assert_eq!(told(true, 200, "Transfer-Encoding: chunked\r\n"), None);
        assert_eq!(told(false, 200, "Content-Length: 0\r\n").as_deref(), Some("0"));
        assert_eq!(told(false, 304, "Content-Length: 7\r\n").as_deref(), Some("7"));
        // RFC 9110 §8.6: never in these.
        for (to_head, status) in [(false, 204), (true, 204), (true, 103)] {
            assert_eq!(told(to_head, status, "Content-Length: 7\r\n"), None, "{status}");
        }
    }

    #[test]
    fn redirects_and_cookies_name_the_public_address() {
        let mapping = Mapping { public: "/desk/", upstream: "/guacamole/" };
        for (from, to) in [
            (
                "Location: http://10.0.0.5:8080/guacamole/x?y",
                "Location: https://desk.example.org/desk/x?y",
            ),
            (
                "Location: http://desk.example.org/guacamole",
                "Location: https://desk.example.org/desk",
            ),
            ("Location: /guacamole/;jsessionid=1", "Location: /desk/;jsessionid=1"),
            ("Location: /guacamole2/", "Location: /guacamole2/"),
            ("Location: //evil/guacamole/", "Location: //evil/guacamole/"),
            ("Location: http://other/guacamole/", "Location: http://other/guacamole/"),
            ("Location: next", "Location: next"),
            (
                "Set-Cookie: S=1; path=/guacamole; HttpOnly; Domain=10.0.0.5",
                "Set-Cookie: S=1; Path=/desk; HttpOnly; Domain=desk.example.org",
            ),
        ] {
            let bytes = format!("HTTP/1.1 302 Found\r\n{from}\r\nContent-Length: 0\r\n\r\n");
            let out = response(&bytes, mapping, Framing::None, false);
            assert!(out.contains(&format!("\r\n{to}\r\n")), "{from} became {out}");
        }
    }

    #[test]
    fn a_response_loses_its_hop_and_gets_ours() {
        let bytes = "HTTP/1.1 200 Fine\r\nConnection: close, X-Hop, Set-Cookie\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nServer: T\r\n\
                     Set-Cookie: a=b\r\n\
                     Strict-Transport-Security: max-age=9\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(
            response(bytes, SAME, Framing::Chunked, true),
            "HTTP/1.1 200 Fine\r\nServer: T\r\nSet-Cookie: a=b\r\nStrict-Transport-Security: max-age=1\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
    }

    proptest! {
        #[test]
        fn each_field_is_written_as_if_it_were_alone(
            fields in proptest::collection::vec(("[A-Za-z-]{1,12}", "[ \t]{0,2}[ -~]{0,20}[ \t]{0,2}"), 0..12),
        ) {
            let head: String = fields.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect();
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n");
            let mut slots = fields::slots();
            let parsed = ResponseHead::parse(bytes.as_bytes(), &mut slots, LIMITS, false, None);
            let Ok(Parsed::Complete(head, _)) = parsed else { panic!("not understood: {bytes}") };
            let (mut together, mut alone) = (Vec::new(), Vec::new());
            let mut lines = Lines::new(&head.fields, &mut together);
            for (_, field, line) in head.fields.lines() {
                lines.add(field, line);
                write_field(&mut alone, field.name, field.value);
            }
            lines.flush();
            prop_assert_eq!(together, alone);
        }

        #[test]
        fn what_is_written_parses_to_the_same_request(
            method in prop_oneof![Just("GET"), Just("POST"), Just("DELETE")],
            path in "(/[a-z0-9.-]{1,8}x){0,4}/?",
            query in "(\\?[a-z:=&%2f]{0,10})?",
            fields in proptest::collection::vec(("[A-Za-z-]{1,12}x", "[ -~]{0,20}"), 0..10),
            length in proptest::option::of(0_u64..u64::MAX),
        ) {
            let mut bytes = format!("{method} /{} HTTP/1.1\r\nHost: h:1\r\n", format!("{path}{query}").trim_start_matches('/'));
            for (name, value) in &fields {
                bytes.push_str(&format!("{name}: {value}\r\n"));
            }
            if let Some(length) = length {
                bytes.push_str(&format!("Content-Length: {length}\r\n"));
            }
            bytes.push_str("\r\n");
            let mut slots = fields::slots();
            let Ok(Parsed::Complete(head, _)) = RequestHead::parse(bytes.as_bytes(), &mut slots, LIMITS) else {
                return Ok(());
            };
            let mut out = Vec::new();
            write_request(&head, SAME, identity(false), &HeaderEdits::default(), &mut out);
            let mut again = fields::slots();
            let Ok(Parsed::Complete(second, len)) = RequestHead::parse(&out, &mut again, LIMITS) else {
                return Err(TestCaseError::fail("what we wrote is refused by ourselves"));
            };
            prop_assert_eq!(len, out.len());
            prop_assert_eq!(head.method, second.method);
            prop_assert_eq!(head.target, second.target);
            prop_assert_eq!(head.framing, second.framing);
            prop_assert_eq!(head.authority, second.authority);
        }
    }
}
