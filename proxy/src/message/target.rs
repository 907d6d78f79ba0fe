//! Request targets as Tomcat sees them.
//!
//! Tomcat removes `;parameters` from each segment, decodes `%XX` once and then resolves `.`, `..` and `//`. A route
//! that matched the raw path could therefore be left again behind our back. So the path is matched in Tomcat's view,
//! whatever could leave a prefix there is refused, and the bytes that go upstream are those that came.

use std::borrow::Cow;

use thiserror::Error;

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// Neither origin-form nor absolute-form (RFC 9112 §3.2), nor `*` for OPTIONS.
    #[error("the target is neither a path nor an http URL")]
    Form,
    /// A byte that may not stand in a URI (RFC 3986 §2).
    #[error("the target contains a byte that is not allowed in a URI")]
    Byte,
    /// `%` without two hexadecimal digits.
    #[error("the target contains an incomplete percent-encoding")]
    Encoding,
    /// An encoded slash, backslash, control byte or NUL in the path, or encoded bytes that are no UTF-8.
    #[error("the path contains an encoded byte that servers read differently")]
    EncodedByte,
    /// `.`, `..` or an empty segment.
    #[error("the path contains a dot segment or an empty segment")]
    Segment,
}

/// A checked target in origin-form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'b> {
    /// The path as it came; begins with `/`, or is `*`.
    pub path: &'b str,
    /// The query as it came, with its `?`; empty without one. Never touched.
    pub query: &'b str,
    /// The path as Tomcat sees it: without parameters, decoded once.
    pub seen: Cow<'b, [u8]>,
}

impl<'b> Target<'b> {
    /// Checks a target in origin-form, with or without a query.
    ///
    /// # Errors
    /// When a server could read its path differently than we do.
    pub fn parse(text: &'b str) -> Result<Self, TargetError> {
        let query_start = memchr::memchr(b'?', text.as_bytes()).unwrap_or(text.len());
        let (path, query) = text.split_at(query_start);
        if !path.starts_with('/') {
            return Err(TargetError::Form);
        }
        if !consists_of(path, &PATH_BYTES) || !consists_of(query, &QUERY_BYTES) {
            return Err(TargetError::Byte);
        }
        let seen = seen(path)?;
        // `%c0%ae` is a dot to decoders that allow more bytes than needed.
        if let Cow::Owned(decoded) = &seen
            && std::str::from_utf8(decoded).is_err()
        {
            return Err(TargetError::EncodedByte);
        }
        if may_have_bad_segments(&seen) {
            check_segments(&seen[1..])?;
        }
        Ok(Self { path, query, seen })
    }

    /// `*`, the target of a server-wide OPTIONS.
    #[must_use]
    pub fn asterisk() -> Self {
        Self { path: "*", query: "", seen: Cow::Borrowed(b"*") }
    }

    /// Whether the raw path begins with the bytes of `prefix` as the seen one does. Where it does not (an encoded letter
    /// inside the prefix), a mapping could not replace it and the two views differ.
    #[must_use]
    pub fn agrees_on(&self, prefix: &str) -> bool {
        let prefix = prefix.trim_end_matches('/');
        self.path == "*" || self.path.starts_with(prefix)
    }
}

/// Whether `path` lies under `prefix`, by whole segments: `/a/` and `/a` both contain `/a` and `/a/b`, not `/ab`.
#[must_use]
pub fn is_under(path: &[u8], prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/').as_bytes();
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Writes `path` with the prefix `from` replaced by `to`. `path` must lie under `from`.
pub fn write_mapped(path: &str, from: &str, to: &str, out: &mut Vec<u8>) {
    let (from, to) = (from.trim_end_matches('/'), to.trim_end_matches('/'));
    let rest = path.strip_prefix(from).unwrap_or(path);
    out.extend_from_slice(to.as_bytes());
    out.extend_from_slice(rest.as_bytes());
    if to.is_empty() && rest.is_empty() {
        out.push(b'/');
    }
}

/// What may stand in a query, by byte: looked up, as every byte of every target is.
static QUERY_BYTES: [bool; 256] = graphic_except(b"\"#<>\\");
/// What may stand in a path.
static PATH_BYTES: [bool; 256] = graphic_except(b"\"#<>\\^`{|}?");

fn consists_of(text: &str, allowed: &[bool; 256]) -> bool {
    // To the end, whatever is found: a branch less for each byte.
    text.bytes().fold(true, |is_allowed, byte| is_allowed & allowed[usize::from(byte)])
}

/// Visible ASCII without `excluded`.
const fn graphic_except(excluded: &[u8]) -> [bool; 256] {
    let mut allowed = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        allowed[byte as usize] = true;
        byte += 1;
    }
    let mut index = 0;
    while index < excluded.len() {
        allowed[excluded[index] as usize] = false;
        index += 1;
    }
    allowed
}

/// Whether `//` or `/.` is in `path`; in most there is neither, and no segment need be looked at.
fn may_have_bad_segments(path: &[u8]) -> bool {
    // No branch for a byte, so that the compiler looks at many of them at once.
    path.iter().zip(&path[1..]).fold(false, |found, (&byte, &next)| {
        found | (byte == b'/') & ((next == b'/') | (next == b'.'))
    })
}

fn check_segments(path: &[u8]) -> Result<(), TargetError> {
    let mut segments = path.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if segment == b"." || segment == b".." || segment.is_empty() && !is_last {
            return Err(TargetError::Segment);
        }
    }
    Ok(())
}

/// Removes parameters and decodes once.
fn seen(path: &str) -> Result<Cow<'_, [u8]>, TargetError> {
    let bytes = path.as_bytes();
    if memchr::memchr2(b'%', b';', bytes).is_none() {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let mut in_parameter = false;
    while at < bytes.len() {
        let byte = match bytes[at] {
            b'%' => {
                let pair = bytes.get(at + 1..at + 3).ok_or(TargetError::Encoding)?;
                at += 2;
                let decoded = hex(pair[0])? << 4 | hex(pair[1])?;
                // `%3b` and `%25` are harmless when decoded once, but a second decoding behind us would see a parameter
                // or another escape; the slash and its likes change the segments.
                if decoded < 0x20 || decoded == 0x7f || b"/\\;%".contains(&decoded) {
                    return Err(TargetError::EncodedByte);
                }
                decoded
            }
            b';' => {
                in_parameter = true;
                b';'
            }
            b'/' => {
                in_parameter = false;
                b'/'
            }
            byte => byte,
        };
        if !in_parameter {
            out.push(byte);
        }
        at += 1;
    }
    Ok(Cow::Owned(out))
}

fn hex(digit: u8) -> Result<u8, TargetError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(TargetError::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_targets_pass_untouched() {
        for (text, path, query, seen) in [
            ("/", "/", "", "/"),
            (
                "/guacamole/tunnel?read:UUID:0",
                "/guacamole/tunnel",
                "?read:UUID:0",
                "/guacamole/tunnel",
            ),
            ("/a%20b/c?x=%2f..%2f", "/a%20b/c", "?x=%2f..%2f", "/a b/c"),
            ("/a;jsessionid=1/b;c", "/a;jsessionid=1/b;c", "", "/a/b"),
            ("/a/b/", "/a/b/", "", "/a/b/"),
            ("/...", "/...", "", "/..."),
            ("/?/../x", "/", "?/../x", "/"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.path, target.query), (path, query));
            assert_eq!(&*target.seen, seen.as_bytes());
        }
    }

    #[test]
    fn whatever_could_leave_a_prefix_is_refused() {
        for (text, error) in [
            ("/a/../b", TargetError::Segment),
            ("/a/%2e%2E/b", TargetError::Segment),
            ("/a/..;x=1/b", TargetError::Segment),
            ("/a/.;/b", TargetError::Segment),
            ("/a/..", TargetError::Segment),
            ("//a", TargetError::Segment),
            ("/a//b", TargetError::Segment),
            ("/;x/a", TargetError::Segment),
            ("/a%2f..%2fb", TargetError::EncodedByte),
            ("/a%5c..%5cb", TargetError::EncodedByte),
            ("/a%00", TargetError::EncodedByte),
            ("/a%252e", TargetError::EncodedByte),
            ("/a%3b/b", TargetError::EncodedByte),
            ("/a%c0%ae", TargetError::EncodedByte),
            ("/a%e9", TargetError::EncodedByte),
            ("/a%", TargetError::Encoding),
            ("/a%2", TargetError::Encoding),
            ("/a%zz", TargetError::Encoding),
            ("/a\\b", TargetError::Byte),
            ("/a#b", TargetError::Byte),
            ("/é", TargetError::Byte),
            ("a", TargetError::Form),
            ("", TargetError::Form),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn prefixes_match_whole_segments() {
        assert!(is_under(b"/a", "/a/"));
        assert!(is_under(b"/a/b", "/a"));
        assert!(!is_under(b"/ab", "/a"));
        assert!(is_under(b"/", "/"));
        assert!(is_under(b"/x", "/"));
    }

    #[test]
    fn mapping_replaces_the_prefix_only() {
        let map = |path, from, to| {
            let mut out = Vec::new();
            write_mapped(path, from, to, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(map("/desk/x;p", "/desk/", "/guacamole/"), "/guacamole/x;p");
        assert_eq!(map("/desk", "/desk/", "/guacamole/"), "/guacamole");
        assert_eq!(map("/desk", "/desk/", "/"), "/");
        assert_eq!(map("/desk/", "/desk/", "/"), "/");
        assert_eq!(map("/x", "/", "/guacamole/"), "/guacamole/x");
        assert_eq!(map("/", "/", "/"), "/");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_accepted_path_has_dot_segments(text in "[/.;%a2eEfF5c\\\\?]{0,24}") {
            if let Ok(target) = Target::parse(&text) {
                for segment in target.seen.split(|&byte| byte == b'/') {
                    prop_assert!(segment != b"." && segment != b"..");
                }
                prop_assert_eq!(format!("{}{}", target.path, target.query), text);
            }
        }
    }
}
