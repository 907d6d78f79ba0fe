//! Heads of responses.

use thiserror::Error;

use super::fields::{self, Fields, HeadError, Slots, list};
use super::framing::{self, Framing, FramingError};
use super::name::Name;
use super::request::Connection;
use super::{HeadLimits, Parsed, Version};

/// What an upstream did wrong; all of it is answered 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The bytes are not a head.
    #[error("{0}")]
    Head(#[from] HeadError),
    /// The length of the body is not certain.
    #[error("{0}")]
    Framing(#[from] FramingError),
    /// Outside of 100..=599 (RFC 9110 §15).
    #[error("the status {0} does not exist")]
    Status(u16),
    /// RFC 6455 §4.1: the answer does not prove that the upgrade was understood, or nobody asked for one.
    #[error("the answer to the WebSocket upgrade is not valid")]
    Upgrade,
}

/// A response, understood. Borrows from the bytes it was parsed from.
#[derive(Debug)]
pub struct ResponseHead<'s, 'b> {
    /// 100..=599.
    pub status: u16,
    /// The reason phrase as it came.
    pub reason: &'b str,
    /// Length of the body.
    pub framing: Framing,
    /// Content-Length where no body is sent: 0, or that of the body that is not (HEAD, 304).
    pub described_length: Option<u64>,
    /// The upstream will go on with this connection.
    pub keep_alive: bool,
    /// A Connection field may name other fields.
    pub lists_fields: bool,
    /// All fields, as they came.
    pub fields: Fields<'s, 'b>,
}

impl<'s, 'b> ResponseHead<'s, 'b> {
    /// Parses the head at the start of `bytes`, of a response to HEAD or not. `websocket_key` is the key of the upgrade
    /// request, where it was one.
    ///
    /// # Errors
    /// What the upstream did wrong; the connection cannot be used any further then.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'s mut Slots<'b>,
        limits: HeadLimits,
        to_head: bool,
        websocket_key: Option<&str>,
    ) -> Result<Parsed<Self>, ResponseError> {
        let Some(len) = fields::head_len(bytes, limits.bytes)? else {
            return Ok(Parsed::Partial);
        };
        let bytes = &bytes[..len];
        let mut response = httparse::Response::new(&mut []);
        let verdict = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut slots.headers[..limits.fields],
        );
        let fields = Fields::new(bytes, response.headers, &mut slots.marks);
        fields::check(verdict, &fields, limits.fields)?;
        let version = Version::from_minor(response.version).ok_or(HeadError::Version)?;
        let status = response.code.ok_or(HeadError::StartLine)?;
        if !(100..600).contains(&status) {
            return Err(ResponseError::Status(status));
        }
        let connection = Connection::of(version, &fields);
        if status == 101 {
            let accept =
                websocket_key.map(|key| tungstenite::handshake::derive_accept_key(key.as_bytes()));
            if !connection.upgrade || !is_accepted(&fields, accept.as_deref()) {
                return Err(ResponseError::Upgrade);
            }
        }
        let declared = framing::declared(version, &fields)?;
        let framing = framing::of_response(declared, status, to_head);
        let head = Self {
            status,
            reason: response.reason.unwrap_or(""),
            framing,
            described_length: declared
                .length
                .filter(|_| framing == Framing::None && status >= 200 && status != 204),
            keep_alive: connection.keep_alive && framing != Framing::UntilClose,
            lists_fields: connection.lists_fields,
            fields,
        };
        Ok(Parsed::Complete(head, len))
    }

    /// Whether a final response follows.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

fn is_accepted(fields: &Fields<'_, '_>, accept: Option<&str>) -> bool {
    let only = |name| {
        let mut values = fields.values(name);
        values.next().filter(|_| values.next().is_none())
    };
    let upgrade = only(Name::Upgrade)
        .is_some_and(|value| list(value).count() == 1 && value.eq_ignore_ascii_case(b"websocket"));
    upgrade && accept.is_some() && only(Name::WebSocketAccept) == accept.map(str::as_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 64 };
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn verdict(
        bytes: &[u8],
        to_head: bool,
        key: Option<&str>,
    ) -> Result<Option<String>, ResponseError> {
        let mut slots = fields::slots();
        Ok(match ResponseHead::parse(bytes, &mut slots, LIMITS, to_head, key)? {
            Parsed::Partial => None,
            Parsed::Complete(head, len) => Some(format!(
                "{} {} {:?} {:?} {} {len}",
                head.status, head.reason, head.framing, head.described_length, head.keep_alive
            )),
        })
    }

    #[test]
    fn responses_that_are_understood_at_every_split() {
        for (bytes, to_head, expected) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
                false,
                "200 OK Length(3) None true 38",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, "200 OK None Some(3) true 38"),
            ("HTTP/1.1 200 OK\r\n\r\n", false, "200 OK UntilClose None false 19"),
            ("HTTP/1.0 204 \r\n\r\n", false, "204  None None false 17"),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, "100 Continue None None true 25"),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(verdict(&bytes.as_bytes()[..cut], to_head, None), Ok(None));
            }
            assert_eq!(verdict(bytes.as_bytes(), to_head, None), Ok(Some(expected.into())));
        }
    }

    #[test]
    fn the_answer_to_an_upgrade_is_verified() {
        let good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert!(verdict(good.as_bytes(), false, Some(KEY)).is_ok());
        assert_eq!(verdict(good.as_bytes(), false, None), Err(ResponseError::Upgrade));
        for (from, to) in
            [("s3p", "S3p"), ("websocket", "h2c"), ("Connection: upgrade", "Connection: close")]
        {
            let bad = good.replacen(from, to, 1);
            assert_eq!(verdict(bad.as_bytes(), false, Some(KEY)), Err(ResponseError::Upgrade));
        }
    }

    #[test]
    fn responses_that_are_refused() {
        for (bytes, error) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
                FramingError::RepeatedLength.into(),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
                FramingError::UnknownCoding.into(),
            ),
            ("HTTP/1.1 999 x\r\n\r\n", ResponseError::Status(999)),
            ("HTTP/2.0 200 x\r\n\r\n", HeadError::Version.into()),
            ("HTTP/1.1 200 OK\r\n folded\r\n\r\n", HeadError::Field.into()),
            ("ICY 200 OK\r\n\r\n", HeadError::Version.into()),
        ] {
            assert_eq!(verdict(bytes.as_bytes(), false, None), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = b"HTTP/1.1 200 OK\r\n".to_vec();
            framed.extend_from_slice(&bytes);
            framed.extend_from_slice(b"\r\n\r\n");
            let _ = verdict(&framed, false, None);
            let _ = verdict(&bytes, false, None);
        }
    }
}
