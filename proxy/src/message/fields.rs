//! Bytes and names of header fields.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use httparse::Header;
use memchr::memmem::Finder;
use thiserror::Error;

/// Most fields a head may ever have; the configured limit is at most this.
pub const FIELDS_MAX: usize = 256;

/// Room for the fields of one head, on the caller's stack.
pub type Slots<'b> = [MaybeUninit<Header<'b>>; FIELDS_MAX];

/// Empty room for fields.
#[must_use]
pub fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// Why the bytes of a head cannot be a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// RFC 9112 §2.2 lets a recipient accept it; a second parser behind us may not.
    #[error("a line ends in LF without CR")]
    BareLf,
    /// RFC 9112 §2.2: a bare CR is not a line end.
    #[error("CR without LF")]
    BareCr,
    /// RFC 9110 §5.5: control bytes are invalid in a field.
    #[error("a control byte")]
    Control,
    /// The head is longer than the limit.
    #[error("the head is longer than {0} bytes")]
    TooLong(usize),
    /// The head has more fields than the limit.
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
    /// The start line does not parse.
    #[error("the start line is malformed")]
    StartLine,
    /// A field does not parse: folded line, space before the colon, empty name, no colon.
    #[error("a field line is malformed")]
    Field,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the version is not supported")]
    Version,
}

/// Length of the head at the start of `bytes`, or None while its empty line has not arrived.
///
/// # Errors
/// On a byte no head may contain, at the first such byte, and when no end is found within `max` bytes.
pub fn head_len(bytes: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
    let window = &bytes[..bytes.len().min(max)];
    match end(window) {
        Some(len) if is_clean(&window[..len]) => Ok(Some(len)),
        _ => walk(bytes, max),
    }
}

/// Where the first empty line ends.
fn end(window: &[u8]) -> Option<usize> {
    // Without the CR before it, which stands at every line's end and would halt the search there.
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\n\r\n"));
    if window.starts_with(b"\r\n") {
        return Some(2);
    }
    EMPTY_LINE.find(window).map(|at| at + 3)
}

/// Whether CR and LF stand side by side only, and no other control byte is in `head`, which ends in CRLF.
fn is_clean(head: &[u8]) -> bool {
    // No branch for a byte, so that the compiler looks at many of them at once.
    let is_wrong = head.iter().zip(&head[1..]).fold(false, |is_wrong, (&byte, &next)| {
        let is_torn = (byte == b'\r') != (next == b'\n');
        let is_control =
            (byte < 0x20) & (byte != b'\t') & (byte != b'\r') & (byte != b'\n') | (byte == 0x7f);
        is_wrong | is_torn | is_control
    });
    !is_wrong && head[0] != b'\n'
}

/// [`head_len`], one line after the other: what is missing or wrong, at the first byte that is.
fn walk(bytes: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
    let window = &bytes[..bytes.len().min(max)];
    let mut line_start = 0;
    for lf in memchr::memchr_iter(b'\n', window) {
        if lf == 0 || window[lf - 1] != b'\r' {
            return Err(HeadError::BareLf);
        }
        let line = &window[line_start..lf - 1];
        check_line(line)?;
        if line.is_empty() {
            return Ok(Some(lf + 1));
        }
        line_start = lf + 1;
    }
    let rest = &window[line_start..];
    // The last byte may be the CR of a line end whose LF has not arrived.
    check_line(rest.strip_suffix(b"\r").unwrap_or(rest))?;
    if bytes.len() >= max { Err(HeadError::TooLong(max)) } else { Ok(None) }
}

fn check_line(line: &[u8]) -> Result<(), HeadError> {
    for &byte in line {
        if byte < 0x20 && byte != b'\t' || byte == 0x7f {
            return Err(if byte == b'\r' { HeadError::BareCr } else { HeadError::Control });
        }
    }
    Ok(())
}

/// The verdict of httparse in our words.
pub(super) fn from_httparse(error: httparse::Error, fields_max: usize) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields(fields_max),
        httparse::Error::Version => HeadError::Version,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => HeadError::Field,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
            HeadError::StartLine
        }
    }
}

/// Elements of a comma-separated list, without surrounding blanks and without empty elements (RFC 9110 §5.6.1).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
#[must_use]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What the gateway does with a field of a given name, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Meant for this connection only, or framing: never forwarded, rebuilt where needed (RFC 9110 §7.6.1).
    HopByHop,
    /// Says who the client is: only ours may reach the application.
    Identity,
    /// Must survive even when a Connection field lists it: dropping it would change what the request means.
    Protected,
    /// Everything else.
    EndToEnd,
}

/// The role of the field `name` in a request.
#[must_use]
pub fn role(name: &str) -> Role {
    let mut named = named(name.len()).iter();
    if let Some((_, role)) = named.find(|(own, _)| is(name.as_bytes(), own)) {
        *role
    } else if starts_with_ignore_case(name, "x-forwarded-") || name.contains('_') {
        // CGI and servlet containers map `-` and `_` to the same variable: `X_Forwarded_For` would pass as ours.
        Role::Identity
    } else if starts_with_ignore_case(name, "sec-websocket-") {
        Role::Protected
    } else {
        Role::EndToEnd
    }
}

/// The names of `len` bytes that have a role of their own: by length, so that few are compared with each field.
fn named(len: usize) -> &'static [(&'static str, Role)] {
    use Role::{HopByHop, Identity, Protected};
    // Identity is where the client is, who it is, and what it asks for, as other gateways and their applications spell it.
    // `Proxy` is no field of HTTP, but CGI programs take it for the variable HTTP_PROXY (CVE-2016-5385).
    match len {
        2 => &[("te", HopByHop)],
        4 => &[("host", HopByHop)],
        5 => &[("proxy", HopByHop), ("range", Protected)],
        6 => &[("cookie", Protected), ("expect", HopByHop), ("origin", Protected)],
        7 => &[("trailer", HopByHop), ("upgrade", HopByHop)],
        8 => &[("location", Protected)],
        9 => &[("client-ip", Identity), ("forwarded", Identity), ("x-real-ip", Identity)],
        10 => &[("connection", HopByHop), ("keep-alive", HopByHop), ("set-cookie", Protected)],
        11 => &[("remote-user", Identity), ("x-client-ip", Identity)],
        12 => &[("content-type", Protected)],
        13 => &[
            ("authorization", Protected),
            ("cache-control", Protected),
            ("x-remote-user", Identity),
            ("x-rewrite-url", Identity),
        ],
        14 => &[
            ("content-length", HopByHop),
            ("http2-settings", HopByHop),
            ("true-client-ip", Identity),
            ("x-original-url", Identity),
        ],
        15 => &[("guacamole-token", Protected)],
        16 => &[
            ("cf-connecting-ip", Identity),
            ("content-encoding", Protected),
            ("proxy-connection", HopByHop),
            ("www-authenticate", Protected),
        ],
        17 => &[
            ("transfer-encoding", HopByHop),
            ("x-client-verified", Identity),
            ("x-ssl-client-cert", Identity),
        ],
        18 => &[("proxy-authenticate", HopByHop)],
        19 => &[("proxy-authorization", HopByHop), ("x-cluster-client-ip", Identity)],
        20 => &[("x-client-certificate", Identity)],
        22 => &[("guacamole-tunnel-token", Protected), ("x-http-method-override", Identity)],
        _ => &[],
    }
}

/// Whether `name` is `lower`, which is in lower case, but for its case: half of the work of comparing any two.
pub(super) fn is(name: &[u8], lower: &str) -> bool {
    let mut pairs = name.iter().zip(lower.bytes());
    name.len() == lower.len() && pairs.all(|(byte, lower)| byte.to_ascii_lowercase() == lower)
}

/// Whether `text` begins with `prefix`, ignoring ASCII case.
#[must_use]
pub fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    let start = text.as_bytes().get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_and_nowhere_else() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        assert_eq!(head_len(head, 1024), Ok(Some(27)));
        for cut in 0..27 {
            assert_eq!(head_len(&head[..cut], 1024), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_parsers_disagree_about_are_refused_whole_and_split() {
        let cases: [(&[u8], HeadError); 6] = [
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\r\rb\r\n\r\n", HeadError::BareCr),
            (b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", HeadError::Control),
            (b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", HeadError::Control),
            (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", HeadError::Control),
        ];
        for (bytes, error) in cases {
            assert_eq!(head_len(bytes, 1024), Err(error));
            let first = (0..=bytes.len()).find_map(|cut| head_len(&bytes[..cut], 1024).err());
            assert_eq!(first, Some(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_limit_holds_for_complete_and_endless_heads() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(head_len(head, head.len()), Ok(Some(head.len())));
        assert_eq!(head_len(head, head.len() - 1), Err(HeadError::TooLong(head.len() - 1)));
    }

    proptest! {
        #[test]
        fn a_head_is_judged_at_a_glance_as_line_by_line(
            pieces in proptest::collection::vec("a{0,40}(\r\n|\r\n|\r\n|\r|\n|\t|\x00|\x7f)?", 0..8),
            tail in "(\r\n\r\n)?.{0,8}",
            max in 1..200_usize,
        ) {
            let bytes = pieces.concat() + &tail;
            prop_assert_eq!(head_len(bytes.as_bytes(), max), walk(bytes.as_bytes(), max));
        }
    }

    #[test]
    fn roles_follow_the_name_whatever_its_case() {
        assert_eq!(role("Transfer-Encoding"), Role::HopByHop);
        assert_eq!(role("X-FORWARDED-FOR"), Role::Identity);
        assert_eq!(role("x_forwarded_for"), Role::Identity);
        assert_eq!(role("REMOTE_USER"), Role::Identity);
        assert_eq!(role("Remote-User"), Role::Identity);
        assert_eq!(role("X-Original-URL"), Role::Identity);
        assert_eq!(role("Cookie"), Role::Protected);
        assert_eq!(role("Accept"), Role::EndToEnd);
        assert_eq!(role("Sec-WebSocket-Key"), Role::Protected);
    }

    #[test]
    fn each_name_with_a_role_stands_at_its_length() {
        let mut count = 0;
        for len in 0..64 {
            for (name, expected) in named(len) {
                assert_eq!((name.len(), role(name)), (len, *expected), "{name}");
                assert_eq!(name.to_ascii_lowercase(), *name);
                count += 1;
            }
        }
        assert_eq!(count, 41);
    }
}
