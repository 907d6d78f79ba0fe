//! The one map from an error to what the client reads.

use thiserror::Error;

use super::Version;
use super::chunked::ChunkError;
use super::fields::HeadError;
use super::framing::FramingError;
use super::request::RequestError;
use super::response::ResponseError;
use super::rewrite::{append, write_connection};
use crate::error::Fault;

/// Why a request is answered by the gateway itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The request is malformed or not allowed.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The chunked body of the request is malformed.
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    /// The head took too long.
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    /// The body came slower than the minimum rate.
    #[error("the request body came too slowly")]
    BodyTimeout,
    /// The body exceeds the route's bound.
    #[error("the request body exceeds {0} bytes")]
    BodyTooLarge(u64),
    /// No route for this host and path.
    #[error("no route")]
    NoRoute,
    /// An upstream is this gateway, or leads back to it.
    #[error("the request has come through this gateway before: an upstream leads back to it")]
    Loop,
    /// The connection was made for another site.
    #[error("the Host field names another site than the handshake did")]
    Misdirected,
    /// The route's access rules.
    #[error("the address is not allowed")]
    AccessDenied,
    /// The route's list of origins for WebSockets.
    #[error("the origin is not allowed")]
    OriginDenied,
    /// Plain HTTP on a TLS port.
    #[error("plain HTTP on a TLS port")]
    PlainHttp,
    /// No endpoint could be reached.
    #[error("no endpoint could be reached")]
    Unreachable,
    /// No endpoint could be reached in time.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// This machine lacks what it takes to connect: descriptors, memory, local ports.
    #[error("nothing is left to connect with")]
    Exhausted,
    /// The upstream went away before it answered.
    #[error("the upstream closed before its response")]
    UpstreamClosed,
    /// The upstream's answer is malformed.
    #[error("{0}")]
    Response(#[from] ResponseError),
    /// The upstream sent interim responses without end.
    #[error("too many interim responses")]
    TooManyInterim,
    /// The upstream did not answer in time.
    #[error("the upstream did not answer in time")]
    ResponseTimeout,
}

impl Refusal {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Request(_)
            | Self::Chunk(_)
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::BodyTooLarge(_)
            | Self::NoRoute
            | Self::Misdirected
            | Self::AccessDenied
            | Self::OriginDenied
            | Self::PlainHttp => Fault::Downstream,
            Self::Loop | Self::Exhausted => Fault::Local,
            Self::Unreachable
            | Self::ConnectTimeout
            | Self::UpstreamClosed
            | Self::Response(_)
            | Self::TooManyInterim
            | Self::ResponseTimeout => Fault::Upstream,
        }
    }

    /// Status code and reason.
    #[must_use]
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Request(error) => request_status(*error),
            Self::Chunk(_) | Self::PlainHttp => (400, "Bad Request"),
            Self::HeadTimeout | Self::BodyTimeout => (408, "Request Timeout"),
            Self::BodyTooLarge(_) => (413, "Content Too Large"),
            Self::NoRoute => (404, "Not Found"),
            Self::Loop => (508, "Loop Detected"),
            Self::Misdirected => (421, "Misdirected Request"),
            Self::AccessDenied | Self::OriginDenied => (403, "Forbidden"),
            Self::Unreachable | Self::UpstreamClosed | Self::Response(_) | Self::TooManyInterim => {
                (502, "Bad Gateway")
            }
            Self::Exhausted => (503, "Service Unavailable"),
            Self::ConnectTimeout | Self::ResponseTimeout => (504, "Gateway Timeout"),
        }
    }

    /// Whether the connection must end behind the reply: when it is not certain where the next request begins.
    #[must_use]
    pub fn closes(&self) -> bool {
        match self {
            Self::Request(_)
            | Self::Chunk(_)
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::BodyTooLarge(_)
            | Self::PlainHttp => true,
            Self::NoRoute
            | Self::Loop
            | Self::Misdirected
            | Self::AccessDenied
            | Self::OriginDenied
            | Self::Unreachable
            | Self::ConnectTimeout
            | Self::Exhausted
            | Self::UpstreamClosed
            | Self::Response(_)
            | Self::TooManyInterim
            | Self::ResponseTimeout => false,
        }
    }
}

fn request_status(error: RequestError) -> (u16, &'static str) {
    match error {
        RequestError::Head(HeadError::TooLong(_) | HeadError::TooManyFields(_)) => {
            (431, "Request Header Fields Too Large")
        }
        RequestError::Head(HeadError::Version) => (505, "HTTP Version Not Supported"),
        RequestError::Framing(FramingError::UnknownCoding) => (501, "Not Implemented"),
        RequestError::Method => (405, "Method Not Allowed"),
        RequestError::Expectation => (417, "Expectation Failed"),
        RequestError::Head(_)
        | RequestError::Framing(_)
        | RequestError::Target(_)
        | RequestError::HostCount(_)
        | RequestError::Host
        | RequestError::HostMismatch
        | RequestError::Upgrade => (400, "Bad Request"),
    }
}

/// The methods that people use; those of WebDAV pass too.
const ALLOW: &[u8] = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n";

/// Appends the answer to an OPTIONS that asks the gateway itself.
pub fn write_options(version: Version, close: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\n");
    out.extend_from_slice(ALLOW);
    write_connection(version, close, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole reply. Its body is one line that names nothing internal.
pub fn write_refusal(
    refusal: Refusal,
    version: Version,
    close: bool,
    to_head: bool,
    out: &mut Vec<u8>,
) {
    let (status, reason) = refusal.status();
    let hint = match refusal {
        Refusal::PlainHttp => ": this port speaks https",
        _ => "",
    };
    let body_len = "000 ".len() + reason.len() + hint.len() + "\n".len();
    append(
        out,
        format_args!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Cache-Control: no-store\r\nContent-Length: {body_len}\r\n"
        ),
    );
    match status {
        405 => out.extend_from_slice(ALLOW),
        502..=504 => out.extend_from_slice(b"Retry-After: 2\r\n"),
        _ => {}
    }
    write_connection(version, close, out);
    out.extend_from_slice(b"\r\n");
    if !to_head {
        append(out, format_args!("{status} {reason}{hint}\n"));
    }
}

/// Appends the redirect of a plain listener to `https://host[:port]` + `target`. All three have been checked.
pub fn write_redirect(
    (host, port): (&str, u16),
    target: &str,
    version: Version,
    close: bool,
    out: &mut Vec<u8>,
) {
    append(out, format_args!("HTTP/1.1 308 Permanent Redirect\r\nLocation: https://{host}"));
    if port != 443 {
        append(out, format_args!(":{port}"));
    }
    append(out, format_args!("{target}\r\nContent-Length: 0\r\n"));
    write_connection(version, close, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::{HeadLimits, Parsed, fields, response::ResponseHead};
    use super::*;

    #[test]
    fn every_reply_is_a_response_of_the_length_it_says() {
        use Fault::{Downstream, Local, Upstream};
        let request = |error: RequestError| Refusal::Request(error);
        for (refusal, status, fault) in [
            (request(RequestError::Method), 405, Downstream),
            (request(RequestError::Expectation), 417, Downstream),
            (request(RequestError::HostCount(2)), 400, Downstream),
            (request(HeadError::TooLong(1).into()), 431, Downstream),
            (request(HeadError::TooManyFields(1).into()), 431, Downstream),
            (request(HeadError::Version.into()), 505, Downstream),
            (request(FramingError::UnknownCoding.into()), 501, Downstream),
            (request(FramingError::Conflict.into()), 400, Downstream),
            (Refusal::Chunk(ChunkError::Size), 400, Downstream),
            (Refusal::HeadTimeout, 408, Downstream),
            (Refusal::BodyTimeout, 408, Downstream),
            (Refusal::BodyTooLarge(1), 413, Downstream),
            (Refusal::NoRoute, 404, Downstream),
            (Refusal::Misdirected, 421, Downstream),
            (Refusal::AccessDenied, 403, Downstream),
            (Refusal::OriginDenied, 403, Downstream),
            (Refusal::PlainHttp, 400, Downstream),
            (Refusal::Loop, 508, Local),
            (Refusal::Unreachable, 502, Upstream),
            (Refusal::Exhausted, 503, Local),
            (Refusal::ConnectTimeout, 504, Upstream),
            (Refusal::UpstreamClosed, 502, Upstream),
            (Refusal::Response(ResponseError::Upgrade), 502, Upstream),
            (Refusal::TooManyInterim, 502, Upstream),
            (Refusal::ResponseTimeout, 504, Upstream),
        ] {
            assert_eq!((refusal.status().0, refusal.fault()), (status, fault), "{refusal}");
            let mut out = Vec::new();
            write_refusal(refusal, Version::Http11, refusal.closes(), false, &mut out);
            let mut slots = fields::slots();
            let limits = HeadLimits { bytes: 1024, fields: 16 };
            let parsed = ResponseHead::parse(&out, &mut slots, limits, false, None);
            let Ok(Parsed::Complete(head, len)) = parsed else { panic!("{refusal} is malformed") };
            assert_eq!(head.status, refusal.status().0);
            assert_eq!(head.keep_alive, !refusal.closes());
            let body = super::super::framing::Framing::Length((out.len() - len) as u64);
            assert_eq!(head.framing, body);
        }
    }

    #[test]
    fn a_redirect_keeps_the_target_and_leaves_out_the_usual_port() {
        let mut out = Vec::new();
        write_redirect(("h", 443), "/a?b", Version::Http11, true, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Location: https://h/a?b\r\n") && text.contains("Connection: close"));
    }

    #[test]
    fn a_redirect_names_a_port_of_its_own() {
        let mut out = Vec::new();
        write_redirect(("h", 8443), "/a", Version::Http10, false, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Location: https://h:8443/a\r\n"), "{text}");
        assert!(text.contains("Connection: keep-alive\r\n"), "{text}");
    }

    #[test]
    fn an_options_for_the_gateway_is_told_what_it_may_do() {
        for (version, close, connection) in [
            (Version::Http11, false, None),
            (Version::Http11, true, Some("Connection: close\r\n")),
            (Version::Http10, false, Some("Connection: keep-alive\r\n")),
        ] {
            let mut out = Vec::new();
            write_options(version, close, &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.starts_with("HTTP/1.1 204 ") && text.ends_with("\r\n\r\n"), "{text}");
            assert!(text.contains("\r\nAllow: GET, ") && !text.contains("TRACE"), "{text}");
            assert_eq!(text.contains("Connection: "), connection.is_some());
            assert!(text.contains(connection.unwrap_or_default()), "{text}");
        }
    }
}
