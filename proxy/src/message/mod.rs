//! HTTP/1.1 heads, framing, rewriting, replies. Pure: bytes in, bytes out; no I/O, no clock.
//!
//! A head is parsed by httparse, with a check of its bytes that knows no lenience, and is never forwarded as a whole: the
//! rewriter builds a new one from what was understood. So nothing that two parsers could read differently gets through.

/// The body of a chunked message.
pub mod chunked;
/// Bytes of heads, and the fields in them.
pub mod fields;
/// How long a body is: the one decision that request smuggling is about.
pub mod framing;
/// Names of fields: what a field is to the gateway.
pub mod name;
/// What of a target may be written to a log.
pub mod redact;
/// The one map from an error to what the client reads.
pub mod reply;
/// Heads of requests.
pub mod request;
/// Heads of responses.
pub mod response;
/// Building the heads that we send.
pub mod rewrite;
/// Request targets as Tomcat sees them.
pub mod target;
/// Which gateways a request has come through.
pub mod via;

/// Bounds of a head; from `config::Limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the start line to the empty line.
    pub bytes: usize,
    /// Number of fields, at most [`fields::FIELDS_MAX`].
    pub fields: usize,
}

/// Result of parsing what has arrived so far.
#[derive(Debug)]
pub enum Parsed<H> {
    /// The head is not complete yet.
    Partial,
    /// The head, and its length in bytes including the empty line.
    Complete(H, usize),
}

/// Version of a message. Minor versions above 1 are not known to anybody and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl Version {
    pub(crate) fn from_minor(minor: Option<u8>) -> Option<Self> {
        match minor {
            Some(0) => Some(Self::Http10),
            Some(1) => Some(Self::Http11),
            _ => None,
        }
    }
}
