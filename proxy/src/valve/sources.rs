//! Which address each upstream sees: what the kernel would use to connect, without sending anything.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Config;
use crate::pool::{Endpoint, Target};

/// What one endpoint sees of this gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Connections from this address.
    Address(IpAddr),
    /// No address: a unix socket.
    Unix,
    /// It cannot be found out, and why.
    Unknown(String),
}

/// What the endpoints of a configuration see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Each endpoint (and each address of its name) with what it sees.
    pub sights: Vec<(String, Sight)>,
    /// Addresses that somebody added by hand, such as that of a translator in between.
    pub added: Vec<IpAddr>,
}

impl Sources {
    /// Asks the resolver and the routing table; sends nothing, but a resolver may block for seconds.
    #[must_use]
    pub fn find(config: &Config, added: &[IpAddr]) -> Self {
        let mut sources = Self { sights: Vec::new(), added: added.to_vec() };
        for addr in config.upstreams.iter().flat_map(|upstream| &upstream.endpoints) {
            let endpoint = Endpoint::new(addr.clone());
            let name = endpoint.to_string();
            if let Err(error) = endpoint.resolve() {
                let why = format!("the name cannot be resolved: {error}");
                sources.sights.push((name, Sight::Unknown(why)));
                continue;
            }
            for target in endpoint.targets().iter() {
                let shown = match endpoint.is_name() {
                    true => format!("{name} ({target})"),
                    false => name.clone(),
                };
                let sight = match target {
                    Target::Unix(_) => Sight::Unix,
                    Target::Tcp(to) => local_address(*to)
                        .map_or_else(|error| Sight::Unknown(error.to_string()), Sight::Address),
                };
                sources.sights.push((shown, sight));
            }
        }
        sources
    }

    /// The addresses, IPv4 first, each once.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let seen = self.sights.iter().filter_map(|(_, sight)| match sight {
            Sight::Address(address) => Some(*address),
            Sight::Unix | Sight::Unknown(_) => None,
        });
        seen.chain(self.added.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The address that the kernel would connect from. A UDP socket asks the same routing table and sends nothing.
fn local_address(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        let to = |text: &str| local_address(text.parse().unwrap());
        assert_eq!(to("127.0.0.1:8080").unwrap(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(to("[::1]:8080").unwrap(), IpAddr::V6(Ipv6Addr::LOCALHOST));
    }

    #[test]
    fn each_address_counts_once_and_ipv4_comes_first() {
        let address = |text: &str| Sight::Address(text.parse().unwrap());
        let sources = Sources {
            sights: vec![
                ("a".into(), address("::1")),
                ("b".into(), Sight::Unix),
                ("c".into(), address("10.0.0.5")),
                ("d".into(), address("10.0.0.5")),
            ],
            added: vec!["172.17.0.1".parse().unwrap()],
        };
        let shown: Vec<String> = sources.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.5", "172.17.0.1", "::1"]);
    }
}
