//! A socket arrives, is counted, and is admitted or shed before a byte of it is read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::ClientAddr;
use crate::config::Limits;
use crate::limits::DESCRIPTORS_RESERVED;

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    /// As many connections as the configuration, or the bound on descriptors, allows.
    #[error("the limit of connections is reached")]
    Full,
    /// As many connections from this address as the configuration allows.
    #[error("the limit of connections per address is reached")]
    AddressFull,
}

/// Counts connections of all workers. Touched twice per connection, never per request.
#[derive(Debug)]
pub struct Admission {
    connections_max: AtomicUsize,
    per_address_max: AtomicUsize,
    descriptors_max: u64,
    state: Mutex<State>,
    shed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    total: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// A place for one connection; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    key: IpAddr,
}

impl Admission {
    /// Bounds from the configuration, and from the number of descriptors that the process may open.
    #[must_use]
    pub fn new(limits: &Limits, descriptors_max: u64) -> Arc<Self> {
        let admission = Arc::new(Self {
            connections_max: AtomicUsize::new(0),
            per_address_max: AtomicUsize::new(0),
            descriptors_max,
            state: Mutex::default(),
            shed: AtomicU64::new(0),
        });
        admission.set_limits(limits);
        admission
    }

    /// Takes the bounds of another configuration. Connections admitted before stay.
    pub fn set_limits(&self, limits: &Limits) {
        // Each connection may need a second descriptor, towards the upstream.
        let affordable = self.descriptors_max.saturating_sub(DESCRIPTORS_RESERVED) / 2;
        let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
        self.connections_max.store(limits.connections.min(affordable), Ordering::Relaxed);
        self.per_address_max.store(limits.connections_per_address, Ordering::Relaxed);
    }

    /// The bound in force on connections.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        self.connections_max.load(Ordering::Relaxed)
    }

    /// Admits a connection from `client`.
    ///
    /// # Errors
    /// Which bound it would exceed.
    pub fn admit(self: &Arc<Self>, client: ClientAddr) -> Result<Ticket, Shed> {
        let key = key(client.ip());
        let result = self.count(key);
        match result {
            Ok(()) => Ok(Ticket { admission: Arc::clone(self), key }),
            Err(shed) => {
                self.shed.fetch_add(1, Ordering::Relaxed);
                Err(shed)
            }
        }
    }

    fn count(&self, key: IpAddr) -> Result<(), Shed> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.total >= self.connections_max() {
            return Err(Shed::Full);
        }
        let count = state.per_address.get(&key).copied().unwrap_or(0);
        if count >= self.per_address_max.load(Ordering::Relaxed) {
            return Err(Shed::AddressFull);
        }
        state.per_address.insert(key, count + 1);
        state.total += 1;
        Ok(())
    }

    /// Connections shed since the last call.
    pub fn take_shed(&self) -> u64 {
        self.shed.swap(0, Ordering::Relaxed)
    }
}

/// One client: an IPv4 address, or an IPv6 /64, which is what a subscriber gets.
fn key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.total -= 1;
        if let Some(count) = state.per_address.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.per_address.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> ClientAddr {
        ClientAddr::new(std::net::SocketAddr::new(address.parse().unwrap(), 1))
    }

    fn admission(connections: usize, per_address: usize, descriptors: u64) -> Arc<Admission> {
        let second = std::time::Duration::from_secs(1);
        let limits = Limits {
            head_bytes: 1024,
            head_fields: 10,
            connections,
            connections_per_address: per_address,
            handshake_timeout: second,
            head_timeout: second,
            keep_alive_timeout: second,
            body_rate_min: 1,
            write_timeout: second,
        };
        Admission::new(&limits, descriptors)
    }

    #[test]
    fn places_come_back_when_tickets_go() {
        let admission = admission(2, 2, 10_000);
        let first = admission.admit(client("192.0.2.1")).unwrap();
        let _second = admission.admit(client("192.0.2.2")).unwrap();
        assert_eq!(admission.admit(client("192.0.2.3")).unwrap_err(), Shed::Full);
        drop(first);
        assert!(admission.admit(client("192.0.2.3")).is_ok());
        assert_eq!(admission.take_shed(), 1);
    }

    #[test]
    fn an_ipv6_subscriber_is_one_client() {
        let admission = admission(10, 1, 10_000);
        let _first = admission.admit(client("2001:db8::1")).unwrap();
        assert_eq!(admission.admit(client("2001:db8::2")).unwrap_err(), Shed::AddressFull);
        assert!(admission.admit(client("2001:db8:0:1::2")).is_ok());
        assert!(admission.state.lock().unwrap().per_address.len() == 1, "no entry is left behind");
    }

    #[test]
    fn descriptors_bound_connections() {
        assert_eq!(admission(1000, 10, DESCRIPTORS_RESERVED + 20).connections_max(), 10);
    }
}
