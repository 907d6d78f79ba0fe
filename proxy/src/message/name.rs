//! Names of fields: what a field is to the gateway.
//!
//! Each field of a head is looked up once, and all that is asked of it later is asked of the [`Name`] that was found.

use super::fields::starts_with_ignore_case;

/// What the gateway does with a field, in either direction.
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

/// A name that something depends on, or what all names of a kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Host`
    Host,
    /// `Expect`
    Expect,
    /// `Upgrade`
    Upgrade,
    /// `Via`
    Via,
    /// `Max-Forwards`
    MaxForwards,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `Sec-WebSocket-Key`
    WebSocketKey,
    /// `Sec-WebSocket-Version`
    WebSocketVersion,
    /// `Sec-WebSocket-Accept`
    WebSocketAccept,
    /// Any other name that begins with `Sec-WebSocket-`.
    WebSocket,
    /// `Location`
    Location,
    /// `Content-Location`
    ContentLocation,
    /// `Set-Cookie`
    SetCookie,
    /// `Strict-Transport-Security`
    StrictTransportSecurity,
    /// Any other one that is for this hop.
    HopByHop,
    /// Another one that is for this hop in a request, and unknown in a response.
    RequestHopByHop,
    /// Another one that says who the client is.
    Identity,
    /// Another one that must survive.
    Protected,
    /// Any other.
    EndToEnd,
}

impl Name {
    /// What the field `name` is.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let mut named = named(name.len()).iter();
        if let Some((_, found)) = named.find(|(own, _)| is(name.as_bytes(), own)) {
            *found
        } else if starts_with_ignore_case(name, "x-forwarded-") || name.contains('_') {
            // CGI and servlet containers map `-` and `_` to the same variable: `X_Forwarded_For` would pass as ours.
            Self::Identity
        } else if starts_with_ignore_case(name, "sec-websocket-") {
            Self::WebSocket
        } else {
            Self::EndToEnd
        }
    }

    /// Its role in a request.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Connection
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::Host
            | Self::Expect
            | Self::Upgrade
            | Self::HopByHop
            | Self::RequestHopByHop => Role::HopByHop,
            Self::ForwardedFor | Self::Identity => Role::Identity,
            Self::Location | Self::SetCookie | Self::Protected => Role::Protected,
            name if name.is_of_websocket() => Role::Protected,
            _ => Role::EndToEnd,
        }
    }

    /// Whether it belongs to the handshake of RFC 6455.
    #[must_use]
    pub fn is_of_websocket(self) -> bool {
        matches!(
            self,
            Self::WebSocketKey | Self::WebSocketVersion | Self::WebSocketAccept | Self::WebSocket
        )
    }

    /// Whether it is for this hop in a response.
    #[must_use]
    pub fn is_hop_by_hop_in_response(self) -> bool {
        self.role() == Role::HopByHop
            && !matches!(self, Self::Host | Self::Expect | Self::RequestHopByHop)
    }
}

const _: () = assert!((Name::EndToEnd as u32) < u32::BITS, "a bit for each");

/// Which names there are in a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names(u32);

impl Names {
    /// Adds one.
    pub fn insert(&mut self, name: Name) {
        self.0 |= 1 << name as u8;
    }

    /// Whether there is a field of this name.
    #[must_use]
    pub fn contains(self, name: Name) -> bool {
        self.0 & 1 << name as u8 != 0
    }
}

/// The names of `len` bytes that are known, in lower case: by length, so that few are compared with each field.
fn named(len: usize) -> &'static [(&'static str, Name)] {
    use Name::{HopByHop, Identity, Protected, RequestHopByHop};
    // Identity is where the client is, who it is, and what it asks for, as other gateways and their applications spell it.
    // `Proxy` is no field of HTTP, but CGI programs take it for the variable HTTP_PROXY (CVE-2016-5385).
    match len {
        2 => &[("te", HopByHop)],
        3 => &[("via", Name::Via)],
        4 => &[("host", Name::Host)],
        5 => &[("proxy", RequestHopByHop), ("range", Protected)],
        6 => &[("cookie", Protected), ("expect", Name::Expect), ("origin", Protected)],
        7 => &[("trailer", HopByHop), ("upgrade", Name::Upgrade)],
        8 => &[("location", Name::Location)],
        9 => &[("client-ip", Identity), ("forwarded", Identity), ("x-real-ip", Identity)],
        10 => &[
            ("connection", Name::Connection),
            ("keep-alive", HopByHop),
            ("set-cookie", Name::SetCookie),
        ],
        11 => &[("remote-user", Identity), ("x-client-ip", Identity)],
        12 => &[("content-type", Protected), ("max-forwards", Name::MaxForwards)],
        13 => &[
            ("authorization", Protected),
            ("cache-control", Protected),
            ("x-remote-user", Identity),
            ("x-rewrite-url", Identity),
        ],
        14 => &[
            ("content-length", Name::ContentLength),
            ("http2-settings", RequestHopByHop),
            ("true-client-ip", Identity),
            ("x-original-url", Identity),
        ],
        15 => &[("guacamole-token", Protected), ("x-forwarded-for", Name::ForwardedFor)],
        16 => &[
            ("cf-connecting-ip", Identity),
            ("content-encoding", Protected),
            ("content-location", Name::ContentLocation),
            ("proxy-connection", HopByHop),
            ("www-authenticate", Protected),
        ],
        17 => &[
            ("transfer-encoding", Name::TransferEncoding),
            ("sec-websocket-key", Name::WebSocketKey),
            ("x-client-verified", Identity),
            ("x-ssl-client-cert", Identity),
        ],
        18 => &[("proxy-authenticate", RequestHopByHop)],
        19 => &[("proxy-authorization", RequestHopByHop), ("x-cluster-client-ip", Identity)],
        20 => {
            &[("sec-websocket-accept", Name::WebSocketAccept), ("x-client-certificate", Identity)]
        }
        21 => &[("sec-websocket-version", Name::WebSocketVersion)],
        22 => &[("guacamole-tunnel-token", Protected), ("x-http-method-override", Identity)],
        25 => &[("strict-transport-security", Name::StrictTransportSecurity)],
        _ => &[],
    }
}

/// Whether `name` is `lower`, which consists of lower-case letters, digits and `-`, but for its case. `name` has no control bytes but
/// tabs, as nothing in a head that was accepted: so the bit that tells the cases apart may be set in whatever is compared.
pub(super) fn is(name: &[u8], lower: &str) -> bool {
    const CASES: u64 = 0x2020_2020_2020_2020;
    let lower = lower.as_bytes();
    if name.len() != lower.len() {
        return false;
    }
    let is_same = |some: &[u8; 8], own: &[u8; 8]| {
        u64::from_ne_bytes(*some) | CASES == u64::from_ne_bytes(*own)
    };
    match (name.last_chunk(), lower.last_chunk()) {
        // The last eight bytes, and all eights before them, which may lie across them.
        (Some(end), Some(own_end)) => {
            let eights = name.as_chunks().0.iter().zip(lower.as_chunks().0);
            is_same(end, own_end) && eights.into_iter().all(|(some, own)| is_same(some, own))
        }
        _ => name.iter().zip(lower).all(|(byte, own)| byte | 0x20 == *own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_the_name_whatever_its_case() {
        for (name, role) in [
            ("Transfer-Encoding", Role::HopByHop),
            ("X-FORWARDED-FOR", Role::Identity),
            ("X-Forwarded-Client-Cert", Role::Identity),
            ("x_forwarded_for", Role::Identity),
            ("REMOTE_USER", Role::Identity),
            ("Remote-User", Role::Identity),
            ("X-Original-URL", Role::Identity),
            ("Cookie", Role::Protected),
            ("Accept", Role::EndToEnd),
            ("Via", Role::EndToEnd),
            ("Content-Location", Role::EndToEnd),
            ("Strict-Transport-Security", Role::EndToEnd),
            ("Sec-WebSocket-Key", Role::Protected),
            ("Sec-WebSocket-Protocol", Role::Protected),
        ] {
            assert_eq!(Name::of(name).role(), role, "{name}");
        }
    }

    #[test]
    fn each_known_name_stands_at_its_length() {
        let mut count = 0;
        for len in 0..64 {
            for (name, expected) in named(len) {
                assert_eq!(
                    (name.len(), Name::of(&name.to_uppercase())),
                    (len, *expected),
                    "{name}"
                );
                let is_lower = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
                assert!(name.bytes().all(is_lower), "{name}");
                count += 1;
            }
        }
        assert_eq!(count, 49);
    }

    #[test]
    fn names_are_the_same_but_for_their_case_only() {
        let all = (0..64).flat_map(named).map(|(name, _)| *name);
        for lower in
            all.chain(["keep-alive", "upgrade", "close", "a-1", "x-long-name-of-25-letters"])
        {
            assert!(is(lower.as_bytes(), lower) && is(lower.to_uppercase().as_bytes(), lower));
            assert!(!is(&lower.as_bytes()[1..], lower) && !is(b"", lower));
            for at in 0..lower.len() {
                for other in (b' '..=u8::MAX).chain([b'\t']) {
                    let mut name = lower.as_bytes().to_vec();
                    name[at] = other;
                    let expected = name.eq_ignore_ascii_case(lower.as_bytes());
                    assert_eq!(is(&name, lower), expected, "{}", name.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn some_that_stop_here_in_a_request_go_on_in_a_response() {
        let stop = |name| Name::of(name).is_hop_by_hop_in_response();
        for name in ["connection", "content-length", "keep-alive", "proxy-connection", "te"] {
            assert!(stop(name), "{name}");
        }
        for name in ["trailer", "transfer-encoding", "upgrade"] {
            assert!(stop(name), "{name}");
        }
        for name in ["host", "proxy", "expect", "http2-settings", "proxy-authenticate"] {
            assert!(!stop(name) && Name::of(name).role() == Role::HopByHop, "{name}");
        }
    }

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut names = Names::default();
        names.insert(Name::Connection);
        names.insert(Name::EndToEnd);
        assert!(names.contains(Name::Connection) && names.contains(Name::EndToEnd));
        assert!(!names.contains(Name::Host));
    }
}
