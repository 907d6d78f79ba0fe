//! The network that is measured in: a namespace of its own, in which nobody else sends, and every connection has the congestion
//! control that was asked for, whatever the machine's own is.
//!
//! One that paces (BBR) sets a timer for each segment. In a virtual machine, which presumably is left for each timer, bulk over TLS
//! took 1.7 to 2.6 times the CPU with it, and timers' work is on the account of whoever runs when they fire.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use rustix::net::sockopt::tcp_congestion;
use tlsplice_fixtures::network::{Network, run};
use tlsplice_fixtures::{Result, packages};

/// What Linux, and so Debian, has where nobody has chosen another one.
const USUAL: &str = "cubic";

/// For the network as it is.
const OF_THE_MACHINE: &str = "machine";

/// Moves this thread, and all that it starts from then on, into a network of its own, whose connections have the congestion
/// control `wanted`. Where nobody asked for one and the usual one cannot be had, it is told, and that of the machine is used.
///
/// # Errors
/// When what the user has named cannot be had.
pub fn enter(wanted: Option<&str>) -> Result<Option<Network>> {
    if wanted == Some(OF_THE_MACHINE) {
        return Ok(None);
    }
    match make(wanted.unwrap_or(USUAL)) {
        Ok(network) => Ok(Some(network)),
        Err(error) if wanted.is_some() => Err(error),
        Err(error) => {
            let present = congestion_control().unwrap_or_default();
            eprintln!(
                "{error}. All connections have the congestion control of this machine, {present}: figures can be compared with \
                 each other, and not with those of a machine that has another one."
            );
            Ok(None)
        }
    }
}

fn make(congestion_control: &str) -> Result<Network> {
    packages::ensure(&["iproute2"])?;
    let network = Network::enter()?;
    for to in ["127.0.0.0/8", "127.0.0.1"] {
        // As an attribute of routes (ip-route(8)), because the sysctl may be read-only in a container.
        let route = "dev lo table local proto kernel scope host src 127.0.0.1 congctl";
        let route = ["route", "replace", "local", to].into_iter().chain(route.split(' '));
        run("ip", &route.chain([congestion_control]).collect::<Vec<_>>())?;
    }
    Ok(network)
}

/// The congestion control of a connection over loopback.
///
/// # Errors
/// When none can be made.
pub fn congestion_control() -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(tcp_congestion(TcpStream::connect(listener.local_addr()?)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error_where_it_was_asked_for() {
        assert!(enter(Some("none-such")).is_err());
    }

    #[test]
    fn the_network_of_the_machine_is_used_where_it_was_asked_for() {
        let before = std::fs::read_link("/proc/thread-self/ns/net").expect("there is one");
        assert!(enter(Some(OF_THE_MACHINE)).expect("nothing is done").is_none());
        let after = std::fs::read_link("/proc/thread-self/ns/net").expect("there is one");
        assert_eq!(before, after);
    }
}
