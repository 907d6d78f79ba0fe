//! How long a body is (RFC 9112 §6.3).

use thiserror::Error;

use super::Version;
use super::fields::{Fields, list};
use super::name::Name;

/// Length of a body. There is no other source of this knowledge in the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly this many bytes, at least one.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// All bytes until the connection ends; responses only.
    UntilClose,
}

/// Why the framing of a message is not certain. Never guessed, always refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// RFC 9112 §6.1: the classic of request smuggling.
    #[error("both Transfer-Encoding and Content-Length")]
    Conflict,
    /// RFC 9112 §6.3 lets equal values be merged; nobody needs it.
    #[error("more than one Content-Length")]
    RepeatedLength,
    /// RFC 9110 §8.6: only digits.
    #[error("Content-Length is not a number")]
    BadLength,
    /// More than one field or more than one coding.
    #[error("Transfer-Encoding is not exactly `chunked`")]
    BadCoding,
    /// RFC 9112 §6.1: a coding we do not implement.
    #[error("an unknown transfer coding")]
    UnknownCoding,
    /// RFC 9112 §6.1: a 1.0 message with this field has faulty framing.
    #[error("Transfer-Encoding in an HTTP/1.0 message")]
    CodingInHttp10,
}

/// What the fields say, before the kind of message is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub length: Option<u64>,
    pub chunked: bool,
}

pub(super) fn declared(
    version: Version,
    fields: &Fields<'_, '_>,
) -> Result<Declared, FramingError> {
    let mut length = None;
    for value in fields.values(Name::ContentLength) {
        if length.is_some() || value.contains(&b',') {
            return Err(FramingError::RepeatedLength);
        }
        length = Some(parse_length(value)?);
    }
    let mut chunked = false;
    for value in fields.values(Name::TransferEncoding) {
        if chunked {
            return Err(FramingError::BadCoding);
        }
        check_coding(value)?;
        chunked = true;
    }
    if chunked && length.is_some() {
        return Err(FramingError::Conflict);
    }
    if chunked && version == Version::Http10 {
        return Err(FramingError::CodingInHttp10);
    }
    Ok(Declared { length, chunked })
}

fn parse_length(value: &[u8]) -> Result<u64, FramingError> {
    let number = value.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    });
    number.filter(|_| !value.is_empty()).ok_or(FramingError::BadLength)
}

fn check_coding(value: &[u8]) -> Result<(), FramingError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let known = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if list(value).any(known) || value.trim_ascii().is_empty() {
        Err(FramingError::BadCoding)
    } else {
        Err(FramingError::UnknownCoding)
    }
}

/// The framing of a request (RFC 9112 §6.3, rules 3 to 7). Never [`Framing::UntilClose`].
///
/// # Errors
/// When the fields contradict each other or are malformed.
pub fn of_request(version: Version, fields: &Fields<'_, '_>) -> Result<Framing, FramingError> {
    Ok(match declared(version, fields)? {
        Declared { chunked: true, .. } => Framing::Chunked,
        Declared { length: Some(length @ 1..), .. } => Framing::Length(length),
        Declared { .. } => Framing::None,
    })
}

/// The framing of a final response to a request that was HEAD or not (RFC 9112 §6.3, rules 1 to 8).
pub(super) fn of_response(declared: Declared, status: u16, to_head: bool) -> Framing {
    if to_head || status < 200 || status == 204 || status == 304 {
        return Framing::None;
    }
    match declared {
        Declared { chunked: true, .. } => Framing::Chunked,
        Declared { length: Some(0), .. } => Framing::None,
        Declared { length: Some(length), .. } => Framing::Length(length),
        Declared { length: None, .. } => Framing::UntilClose,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::slots;
    use super::*;

    fn request_of(version: Version, fields: &[(&str, &str)]) -> Result<Framing, FramingError> {
        with_fields(fields, |fields| of_request(version, fields))
    }

    fn request(fields: &[(&str, &str)]) -> Result<Framing, FramingError> {
        request_of(Version::Http11, fields)
    }

    fn with_fields<T>(fields: &[(&str, &str)], of: impl FnOnce(&Fields<'_, '_>) -> T) -> T {
        let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let head = lines.collect::<String>() + "\r\n";
        let mut headers = [httparse::EMPTY_HEADER; 4];
        let parsed = httparse::parse_headers(head.as_bytes(), &mut headers);
        let Ok(httparse::Status::Complete((_, headers))) = parsed else { panic!("fields: {head}") };
        of(&Fields::new(head.as_bytes(), headers, &mut slots().marks))
    }

    #[test]
    fn requests() {
        let cl = "Content-Length";
        let te = "Transfer-Encoding";
        assert_eq!(request(&[]), Ok(Framing::None));
        assert_eq!(request(&[(cl, "0")]), Ok(Framing::None));
        assert_eq!(request(&[("content-LENGTH", "42")]), Ok(Framing::Length(42)));
        assert_eq!(request(&[(te, "CHUNKED")]), Ok(Framing::Chunked));
        // Other fields say nothing about it.
        assert_eq!(request(&[("Host", "a"), ("TE", "gzip"), (cl, "5")]), Ok(Framing::Length(5)));
        assert_eq!(request(&[(te, "chunked"), (cl, "3")]), Err(FramingError::Conflict));
        assert_eq!(request(&[(cl, "3"), (cl, "3")]), Err(FramingError::RepeatedLength));
        assert_eq!(request(&[(cl, "3, 3")]), Err(FramingError::RepeatedLength));
        for bad in ["+3", "-1", "0x3", "3 3", "", "18446744073709551616", "٣"] {
            assert_eq!(request(&[(cl, bad)]), Err(FramingError::BadLength), "{bad}");
        }
        for bad in ["chunked, chunked", "gzip, chunked", "chunked;q=1, chunked", ""] {
            assert_eq!(request(&[(te, bad)]), Err(FramingError::BadCoding), "{bad}");
        }
        for bad in ["identity", "xchunked", "chunked\u{a0}", "gzip", "chunked;q=1"] {
            assert_eq!(request(&[(te, bad)]), Err(FramingError::UnknownCoding), "{bad}");
        }
        assert_eq!(request(&[(te, "chunked"), (te, "chunked")]), Err(FramingError::BadCoding));
        assert_eq!(
            request_of(Version::Http10, &[(te, "chunked")]),
            Err(FramingError::CodingInHttp10)
        );
    }

    #[test]
    fn responses() {
        let of = |status, to_head, fields: &[(&str, &str)]| {
            with_fields(fields, |fields| declared(Version::Http11, fields))
                .map(|declared| of_response(declared, status, to_head))
        };
        assert_eq!(of(200, false, &[]), Ok(Framing::UntilClose));
        assert_eq!(of(200, false, &[("Content-Length", "0")]), Ok(Framing::None));
        assert_eq!(of(200, true, &[("Content-Length", "9")]), Ok(Framing::None));
        for status in [100, 199, 204, 304] {
            assert_eq!(of(status, false, &[("Content-Length", "9")]), Ok(Framing::None));
        }
        for status in [200, 201, 205, 303, 404] {
            assert_eq!(of(status, false, &[("Content-Length", "9")]), Ok(Framing::Length(9)));
        }
        assert_eq!(of(204, false, &[]), Ok(Framing::None));
        assert_eq!(of(200, false, &[("Transfer-Encoding", "chunked")]), Ok(Framing::Chunked));
    }
}
