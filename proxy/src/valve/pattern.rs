//! Regular expressions for addresses, exact in the dialect of Java and for both ways in which an IPv6 address is written:
//! in full, as Java prints a peer, and compressed, as this gateway writes X-Forwarded-For.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How Java prints an address: IPv6 in full, without leading zeros.
pub(super) fn java_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:x}"));
            groups.join(":")
        }
    }
}

/// Matches this address and no other. One of a link may carry the name of its interface, as Java prints it.
pub(super) fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => escaped(address),
        IpAddr::V6(inner) => {
            let (full, short) = (java_text(address), inner.to_string());
            let both = if full == short { full } else { format!("{full}|{}", escape_dots(&short)) };
            match inner.is_unicast_link_local() {
                true => format!("(?:{both})(?:%[0-9A-Za-z_.-]+)?"),
                false => both,
            }
        }
    }
}

/// Matches the addresses of this network and no others; None for an IPv6 network whose compressed forms no short
/// expression describes.
pub(super) fn network(network: IpNet) -> Option<String> {
    match network {
        IpNet::V4(network) => Some(network_v4(network)),
        IpNet::V6(network) => network_v6(network),
    }
}

/// Several expressions as one.
pub(super) fn any_of(mut patterns: Vec<String>) -> String {
    patterns.dedup();
    patterns.join("|")
}

fn escaped(address: Ipv4Addr) -> String {
    escape_dots(&address.to_string())
}

fn escape_dots(text: &str) -> String {
    text.replace('.', r"\.")
}

fn network_v4(network: Ipv4Net) -> String {
    let (first, last) = (network.network().octets(), network.broadcast().octets());
    let octets: Vec<String> =
        first.into_iter().zip(last).map(|(first, last)| octet(first, last)).collect();
    octets.join(r"\.")
}

/// Decimal numbers from `first` to `last` without leading zeros.
fn octet(first: u8, last: u8) -> String {
    if first == last {
        return first.to_string();
    }
    if (first, last) == (0, 255) {
        return r"\d{1,3}".to_owned();
    }
    let mut tens = Vec::new();
    for ten in first / 10..=last / 10 {
        let lowest = if ten == first / 10 { first % 10 } else { 0 };
        let highest = if ten == last / 10 { last % 10 } else { 9 };
        let prefix = if ten == 0 { String::new() } else { ten.to_string() };
        tens.push(match lowest == highest {
            true => format!("{prefix}{lowest}"),
            false => format!("{prefix}[{lowest}-{highest}]"),
        });
    }
    format!("(?:{})", tens.join("|"))
}

/// A prefix of whole groups, none of them zero, begins every text of every address in it and of no other.
fn network_v6(network: Ipv6Net) -> Option<String> {
    if network.prefix_len() == 128 {
        return Some(address(IpAddr::V6(network.addr())));
    }
    let groups = usize::from(network.prefix_len() / 16);
    let segments: [u16; 8] = Ipv6Addr::segments(&network.network());
    let prefix = segments.get(..groups)?;
    let is_plain = network.prefix_len().is_multiple_of(16) && groups > 0 && !prefix.contains(&0);
    is_plain.then(|| {
        let prefix: Vec<String> = prefix.iter().map(|group| format!("{group:x}")).collect();
        format!("{}:[0-9a-f:]+", prefix.join(":"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn full_match(pattern: &str, text: &str) -> bool {
        Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(text)
    }

    #[test]
    fn an_address_matches_itself_as_java_and_as_the_gateway_write_it() {
        for (text, java) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "0:0:0:0:0:0:0:1"),
            ("2001:db8::a0b", "2001:db8:0:0:0:0:0:a0b"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6"),
        ] {
            let pattern = address(text.parse().unwrap());
            assert!(full_match(&pattern, text) && full_match(&pattern, java), "{pattern}");
            assert_eq!(java_text(text.parse().unwrap()), java);
        }
        let link = address("fe80::1".parse().unwrap());
        assert!(full_match(&link, "fe80:0:0:0:0:0:0:1%eth0") && full_match(&link, "fe80::1"));
        assert!(!full_match(&address("10.0.0.1".parse().unwrap()), "10.0.0.11"));
    }

    #[test]
    fn what_no_short_expression_describes_is_refused() {
        for text in ["::/0", "2001:db8::/33", "2001:0:1::/48"] {
            assert_eq!(network(text.parse().unwrap()), None, "{text}");
        }
        assert_eq!(
            network("10.0.0.0/8".parse().unwrap()).unwrap(),
            r"10\.\d{1,3}\.\d{1,3}\.\d{1,3}"
        );
    }

    proptest! {
        #[test]
        fn a_network_matches_its_addresses_only(
            bits in any::<u32>(), len in 0..=32_u8, other in any::<u32>(), near in any::<bool>(),
        ) {
            let network = Ipv4Net::new(Ipv4Addr::from_bits(bits), len).unwrap().trunc();
            let other = if near { bits ^ (other & 0xffff) } else { other };
            let address = Ipv4Addr::from_bits(other);
            let pattern = network_v4(network);
            prop_assert_eq!(full_match(&pattern, &address.to_string()), network.contains(&address));
        }

        #[test]
        fn an_ipv6_network_matches_its_addresses_only(
            first in 1..=u16::MAX, second in 1..=u16::MAX, rest in any::<u64>(), other in any::<u16>(),
            zeros in 0..64_u32, near in any::<bool>(),
        ) {
            let prefix = u128::from(first) << 112 | u128::from(second) << 96;
            let network = Ipv6Net::new(Ipv6Addr::from_bits(prefix), 32).unwrap();
            let prefix = if near { prefix } else { prefix ^ u128::from(other) << 96 };
            let address = Ipv6Addr::from_bits(prefix | u128::from(rest >> zeros));
            let pattern = network_v6(network).unwrap();
            let inside = network.contains(&address);
            prop_assert_eq!(full_match(&pattern, &address.to_string()), inside);
            prop_assert_eq!(full_match(&pattern, &java_text(address.into())), inside);
        }
    }
}
