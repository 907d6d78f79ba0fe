//! Heads on their way, understood and written as the gateway does it, and nothing else of HTTP.

use std::net::SocketAddr;

use tlsplice::buffers::{Buffers, Class};
use tlsplice::config::HeaderEdits;
use tlsplice::message::fields::slots;
use tlsplice::message::request::RequestHead;
use tlsplice::message::response::ResponseHead;
use tlsplice::message::rewrite::{
    Identity, Mapping, ResponseContext, write_request, write_response,
};
use tlsplice::message::via::Pseudonym;
use tlsplice::message::{HeadLimits, Parsed, Version};
use tlsplice::transport::Buffer;

const LIMITS: HeadLimits = HeadLimits { bytes: 16 * 1024, fields: 100 };
const MAPPING: Mapping<'_> = Mapping { public: "/", upstream: "/" };

/// What is done to that with which a received part begins.
pub(super) enum Heads {
    /// Nothing.
    Pass,
    /// A request's head is written anew.
    Requests(Identity, HeaderEdits),
    /// A response's head is.
    Responses(HeaderEdits),
}

impl Heads {
    /// Of both directions: from the client at `peer`, and to it.
    pub(super) fn of(peer: SocketAddr, https: bool) -> [Self; 2] {
        let identity = Identity {
            peer: peer.ip(),
            peer_is_trusted: false,
            https,
            port: peer.port(),
            pseudonym: Pseudonym::new(1),
        };
        [Self::Requests(identity, HeaderEdits::default()), Self::Responses(HeaderEdits::default())]
    }

    /// What goes on of what was received. A part that does not begin with a whole head goes on as it is: heads are small
    /// here, and come in one piece.
    pub(super) fn rewrite(
        &self,
        received: Buffer,
        written: &mut Vec<u8>,
        buffers: &Buffers,
    ) -> Buffer {
        written.clear();
        let len = match self {
            Self::Pass => None,
            Self::Requests(identity, edits) => {
                request(received.filled(), *identity, edits, written)
            }
            Self::Responses(edits) => response(received.filled(), edits, written),
        };
        let Some(len) = len else { return received };
        let body = &received.filled()[len..];
        let mut whole = buffers.take(Class::holding(written.len() + body.len()));
        whole.append(written);
        whole.append(body);
        buffers.give(received);
        whole
    }
}

/// The length of the head that was read.
fn request(
    bytes: &[u8],
    identity: Identity,
    edits: &HeaderEdits,
    out: &mut Vec<u8>,
) -> Option<usize> {
    let mut slots = slots();
    let Ok(Parsed::Complete(head, len)) = RequestHead::parse(bytes, &mut slots, LIMITS) else {
        return None;
    };
    write_request(&head, MAPPING, identity, edits, out);
    Some(len)
}

fn response(bytes: &[u8], edits: &HeaderEdits, out: &mut Vec<u8>) -> Option<usize> {
    let mut slots = slots();
    let parsed = ResponseHead::parse(bytes, &mut slots, LIMITS, false, None);
    let Ok(Parsed::Complete(head, len)) = parsed else { return None };
    let context = ResponseContext {
        version: Version::Http11,
        framing: head.framing,
        close: false,
        mapping: MAPPING,
        upstream_authorities: &[],
        public: ("https", ""),
        hsts: None,
        edits,
    };
    write_response(&head, &context, out);
    Some(len)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn passed(heads: &Heads, bytes: &[u8]) -> Vec<u8> {
        let buffers = Buffers::default();
        let mut received = buffers.take(Class::holding(bytes.len()));
        received.append(bytes);
        heads.rewrite(received, &mut Vec::new(), &buffers).filled().to_vec()
    }

    #[test]
    fn heads_are_written_anew_and_what_follows_them_is_kept() {
        let [requests, responses] =
            Heads::of(SocketAddr::from((IpAddr::from([192, 0, 2, 7]), 1)), true);
        let text = String::from_utf8(passed(&requests, b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"))
            .expect("text");
        assert!(text.starts_with("GET /a HTTP/1.1\r\nHost: x\r\n"), "{text}");
        assert!(text.contains("\r\nX-Forwarded-For: 192.0.2.7\r\n"), "{text}");
        let answer = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi";
        let text = String::from_utf8(passed(&responses, answer)).expect("text");
        assert!(
            text.ends_with("Content-Length: 2\r\n\r\nhi") && !text.contains("keep-alive"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_head_passes_as_it_is() {
        let [requests, responses] =
            Heads::of(SocketAddr::from((IpAddr::from([192, 0, 2, 7]), 1)), false);
        for heads in [requests, responses, Heads::Pass] {
            assert_eq!(passed(&heads, b"\x81\x02hi"), b"\x81\x02hi");
        }
    }
}
