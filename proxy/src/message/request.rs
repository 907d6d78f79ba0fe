//! Heads of requests.

use thiserror::Error;

use super::fields::{self, Fields, HeadError, Slots, is_token_byte, list};
use super::framing::{self, Framing, FramingError};
use super::name::{Name, is};
use super::target::{Target, TargetError};
use super::{HeadLimits, Parsed, Version};

/// What a client did wrong. [`super::reply`] says what it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The bytes are not a head.
    #[error("{0}")]
    Head(#[from] HeadError),
    /// The length of the body is not certain.
    #[error("{0}")]
    Framing(#[from] FramingError),
    /// The target is refused.
    #[error("{0}")]
    Target(#[from] TargetError),
    /// A method outside of the allow-list; TRACE and CONNECT among them.
    #[error("the method is not allowed")]
    Method,
    /// RFC 9112 §3.2: exactly one Host in HTTP/1.1.
    #[error("the request has {0} Host fields")]
    HostCount(usize),
    /// Not a host name or address with an optional port.
    #[error("the Host field is malformed")]
    Host,
    /// The authority of an absolute-form target is not the Host field.
    #[error("the target and the Host field name different hosts")]
    HostMismatch,
    /// RFC 6455 §4.2.1: the handshake is incomplete.
    #[error("the WebSocket upgrade is malformed")]
    Upgrade,
    /// RFC 9110 §10.1.1: only 100-continue is defined.
    #[error("an unknown expectation")]
    Expectation,
}

/// Methods that pass. WebDAV's pass because Tomcat's WebDAV servlet speaks them.
const METHODS: [&str; 14] = [
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
];

/// A request, understood. Borrows from the bytes it was parsed from.
#[derive(Debug)]
pub struct RequestHead<'s, 'b> {
    /// One of the allowed methods.
    pub method: &'b str,
    /// Checked, in origin-form.
    pub target: Target<'b>,
    /// The client's version.
    pub version: Version,
    /// Host with its port as the client wrote it; empty for an HTTP/1.0 request without one.
    pub authority: &'b str,
    /// Length of the body.
    pub framing: Framing,
    /// The client wants to go on with this connection.
    pub keep_alive: bool,
    /// A Connection field may name other fields.
    pub lists_fields: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// The key of a valid WebSocket handshake.
    pub websocket_key: Option<&'b str>,
    /// All fields, as they came.
    pub fields: Fields<'s, 'b>,
}

impl<'s, 'b> RequestHead<'s, 'b> {
    /// Parses the head at the start of `bytes`.
    ///
    /// # Errors
    /// What the client did wrong; the connection cannot be used any further then.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'s mut Slots<'b>,
        limits: HeadLimits,
    ) -> Result<Parsed<Self>, RequestError> {
        // RFC 9112 §2.2: an empty line before a request is skipped; some clients send one behind a body.
        let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        let Some(len) = fields::head_len(&bytes[skipped..], limits.bytes)? else {
            return Ok(Parsed::Partial);
        };
        let bytes = &bytes[skipped..skipped + len];
        let mut request = httparse::Request::new(&mut []);
        let verdict = request.parse_with_uninit_headers(bytes, &mut slots.headers[..limits.fields]);
        let fields = Fields::new(bytes, request.headers, &mut slots.marks);
        match fields::check(verdict, &fields, limits.fields) {
            Ok(()) => {}
            // With a third blank it is not the version that is wrong (RFC 9112 §3).
            Err(HeadError::Version) if blanks_in_start_line(bytes) != 2 => {
                return Err(HeadError::StartLine.into());
            }
            Err(error) => return Err(error.into()),
        }
        let version = Version::from_minor(request.version).ok_or(HeadError::Version)?;
        let head = Self::understand(
            request.method.ok_or(HeadError::StartLine)?,
            request.path.ok_or(HeadError::StartLine)?,
            version,
            fields,
        )?;
        Ok(Parsed::Complete(head, skipped + len))
    }

    fn understand(
        method: &'b str,
        target: &'b str,
        version: Version,
        fields: Fields<'s, 'b>,
    ) -> Result<Self, RequestError> {
        if !METHODS.contains(&method) {
            return Err(RequestError::Method);
        }
        let framing = framing::of_request(version, &fields)?;
        let host = host(version, &fields)?;
        let (authority, target) = resolve(method, target, host)?;
        let connection = Connection::of(version, &fields);
        let expects_continue = expectation(version, &fields)?;
        let websocket_key = match fields.values(Name::Upgrade).next() {
            Some(protocol) if connection.upgrade && version == Version::Http11 => {
                websocket_key(method, protocol, framing, &fields)?
            }
            _ => None,
        };
        Ok(Self {
            method,
            target,
            version,
            authority,
            framing,
            keep_alive: connection.keep_alive,
            lists_fields: connection.lists_fields,
            expects_continue,
            websocket_key,
            fields,
        })
    }

    /// Host without its port.
    #[must_use]
    pub fn host(&self) -> &'b str {
        let bytes = self.authority.as_bytes();
        // It has been checked: the last colon, unless it stands in brackets, is that of the port.
        let port = memchr::memrchr2(b':', b']', bytes).filter(|&at| bytes[at] == b':');
        &self.authority[..port.unwrap_or(bytes.len())]
    }

    /// Whether it asks the gateway itself, not the application: the server as a whole (RFC 9110 §9.3.7), or whoever it
    /// has come to when it may not be forwarded any further (§7.6.2).
    #[must_use]
    pub fn is_for_gateway(&self) -> bool {
        self.method == "OPTIONS"
            && (self.target.path == "*"
                || self.field("max-forwards").and_then(|left| left.parse().ok()) == Some(0_u64))
    }

    /// Whether doing it twice is the same as doing it once (RFC 9110 §9.2.2).
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "PROPFIND")
    }

    /// The first field `name` as text; None when absent or not visible ASCII.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'b str> {
        std::str::from_utf8(self.fields.first(name)?).ok()
    }
}

/// What the Connection fields say (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub keep_alive: bool,
    pub upgrade: bool,
    /// An option may be the name of a field.
    pub lists_fields: bool,
}

impl Connection {
    pub(super) fn of(version: Version, fields: &Fields<'_, '_>) -> Self {
        let (mut close, mut keep_alive, mut upgrade, mut lists_fields) =
            (false, false, false, false);
        for option in fields.values(Name::Connection).flat_map(list) {
            if is(option, "keep-alive") {
                keep_alive = true;
            } else if is(option, "upgrade") {
                upgrade = true;
            } else {
                close |= is(option, "close");
                lists_fields = true;
            }
        }
        let keep_alive = match version {
            Version::Http11 => !close,
            Version::Http10 => keep_alive && !close,
        };
        Self { keep_alive, upgrade, lists_fields }
    }
}

fn blanks_in_start_line(head: &[u8]) -> usize {
    head.iter().take_while(|&&byte| byte != b'\r').filter(|&&byte| byte == b' ').count()
}

fn host<'b>(version: Version, fields: &Fields<'_, 'b>) -> Result<Option<&'b str>, RequestError> {
    let mut hosts = fields.values(Name::Host);
    let first = hosts.next();
    let count = usize::from(first.is_some()) + hosts.count();
    match first {
        Some(host) if count == 1 => {
            let host = std::str::from_utf8(host).map_err(|_| RequestError::Host)?;
            split_authority(host).ok_or(RequestError::Host)?;
            Ok(Some(host))
        }
        None if version == Version::Http10 => Ok(None),
        _ => Err(RequestError::HostCount(count)),
    }
}

/// Host and port of an authority without user information (RFC 3986 §3.2).
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_len = if authority.starts_with('[') {
        let end = authority.find(']')?;
        authority[1..end].parse::<std::net::Ipv6Addr>().ok()?;
        end + 1
    } else {
        memchr::memchr(b':', authority.as_bytes()).unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(host_len);
    let is_name_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if host.is_empty() || !host.starts_with('[') && !host.bytes().all(is_name_byte) {
        return None;
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            // Nothing listens on port 0 (RFC 6335 §6).
            let port = digits.parse().ok().filter(|&port| port != 0)?;
            Some((host, Some(port)))
        }
        _ => None,
    }
}

/// Brings the target into origin-form (RFC 9112 §3.2).
fn resolve<'b>(
    method: &str,
    target: &'b str,
    host: Option<&'b str>,
) -> Result<(&'b str, Target<'b>), RequestError> {
    if target.starts_with('/') {
        return Ok((host.unwrap_or(""), Target::parse(target)?));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((host.unwrap_or(""), Target::asterisk()));
    }
    let rest = ["http://", "https://"]
        .into_iter()
        .find(|scheme| fields::starts_with_ignore_case(target, scheme))
        .and_then(|scheme| target.get(scheme.len()..))
        .ok_or(TargetError::Form)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    split_authority(authority).ok_or(RequestError::Host)?;
    if host.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
        return Err(RequestError::HostMismatch);
    }
    let path = if path.is_empty() { "/" } else { path };
    Ok((authority, Target::parse(path)?))
}

fn expectation(version: Version, fields: &Fields<'_, '_>) -> Result<bool, RequestError> {
    let mut expects = false;
    for value in fields.values(Name::Expect) {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(RequestError::Expectation);
        }
        expects = true;
    }
    // RFC 9110 §10.1.1: to be ignored in HTTP/1.0.
    Ok(expects && version == Version::Http11)
}

/// RFC 6455 §4.2.1. Other protocols than WebSocket are not offered, so their Upgrade is ignored (RFC 9110 §7.8).
fn websocket_key<'b>(
    method: &str,
    protocol: &[u8],
    framing: Framing,
    fields: &Fields<'_, 'b>,
) -> Result<Option<&'b str>, RequestError> {
    if !list(protocol).any(|name| name.eq_ignore_ascii_case(b"websocket")) {
        return Ok(None);
    }
    let mut keys = fields.values(Name::WebSocketKey);
    let key = keys.next().and_then(|key| std::str::from_utf8(key).ok());
    let is_alone = keys.next().is_none()
        && fields.values(Name::Upgrade).count() == 1
        && protocol.eq_ignore_ascii_case(b"websocket")
        && fields.values(Name::WebSocketVersion).count() == 1;
    match key {
        Some(key)
            if is_alone
                && method == "GET"
                && framing == Framing::None
                && is_websocket_key(key.as_bytes()) =>
        {
            Ok(Some(key))
        }
        _ => Err(RequestError::Upgrade),
    }
}

/// Sixteen bytes in base64: 22 digits and two paddings.
fn is_websocket_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22]
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

/// Whether `bytes` could be the start of a request in plain HTTP; asked of bytes that should have been TLS.
#[must_use]
pub fn looks_like_http(bytes: &[u8]) -> bool {
    let word = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    word >= 3 && bytes.get(word).is_none_or(|&byte| byte == b' ' && is_token_byte(bytes[0]))
}

#[cfg(test)]
mod tests;
