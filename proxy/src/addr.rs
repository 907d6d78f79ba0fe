//! Addresses and the questions asked of them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The address of a client, as the kernel reported it at accept; v4-mapped IPv6 is shown as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(SocketAddr);

impl ClientAddr {
    /// Takes the address from accept and removes a v4-mapping, so that access rules written for
    /// IPv4 apply.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The IP address, never v4-mapped.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// What counts as one client in limits per address: an IPv4 address, or the /64 of an IPv6
    /// address, since one subscriber is given at least that much (RFC 6177 §2).
    #[must_use]
    pub fn subscriber(&self) -> IpAddr {
        match self.0.ip() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
            }
        }
    }
}

impl std::fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A list of networks, as in `allow`, `deny` and `trusted_proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrSet(Vec<IpNet>);

impl CidrSet {
    /// Wraps networks in the order of the file.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether no network is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the order of the file.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }

    /// Whether any network contains `address`; a v4-mapped one is taken as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> ClientAddr {
        ClientAddr::new(text.parse().unwrap())
    }

    #[test]
    fn a_mapped_address_is_shown_and_matched_as_ipv4() {
        let client = client("[::ffff:192.0.2.7]:4711");
        assert_eq!(client.to_string(), "192.0.2.7:4711");
        let set = CidrSet::new(vec!["192.0.2.0/24".parse().unwrap()]);
        assert!(set.contains(client.ip()));
        assert!(set.contains("::ffff:192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn a_subscriber_is_an_ipv4_address_or_a_slash_64() {
        assert_eq!(client("192.0.2.7:1").subscriber(), IpAddr::from([192, 0, 2, 7]));
        let one = client("[2001:db8:1:2:3:4:5:6]:1").subscriber();
        assert_eq!(one, client("[2001:db8:1:2:ffff::]:9").subscriber());
        assert_ne!(one, client("[2001:db8:1:3::]:1").subscriber());
    }

    #[test]
    fn an_empty_set_contains_nothing() {
        assert!(CidrSet::default().is_empty());
        assert!(!CidrSet::default().contains(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    proptest! {
        #[test]
        fn membership_is_equality_of_prefixes(
            network in any::<u32>(),
            bits in 0..=32_u8,
            address in any::<u32>(),
            near in any::<bool>(),
        ) {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            // Random addresses are almost never inside; half of them are moved there.
            let address = if near { (network & mask) | (address & !mask) } else { address };
            let set = CidrSet::new(vec![
                IpNet::new(Ipv4Addr::from_bits(network).into(), bits).unwrap(),
            ]);
            let inside = network & mask == address & mask;
            prop_assert_eq!(set.contains(Ipv4Addr::from_bits(address).into()), inside);
            let other = Ipv6Addr::from_bits(u128::from(address) << 64 | 1 << 100);
            prop_assert!(!set.contains(other.into()));
        }
    }
}
