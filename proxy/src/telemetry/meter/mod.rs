//! How long bytes wait in this gateway, and who connects to it, as the kernel sees it.
//!
//! Programs in the kernel (`ebpf/`) measure; here they are loaded, told which sockets belong together, and asked. Nothing
//! of a connection depends on it: what cannot be measured is served all the same.

mod cgroup;
mod places;
mod programs;
mod slots;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use aya::maps::MapError;
pub use tlsplice_ebpf_common::Direction;
use tlsplice_ebpf_common::{Conn, Link, Role, Stat, Waits, index};

use super::latency::Latency;
use crate::confine::{Place, Use};
use programs::{Maps, Programs};

/// What there is to lose, for warnings.
const COST: &str = "flush latency, round-trip times and retransmissions are not measured, client addresses come from \
                    accept alone, and everything else works as ever";

/// Measures connections, or says why it does not. One for all workers; a call takes a microsecond or less.
#[derive(Debug)]
pub struct Meter {
    state: State,
    mismatches: AtomicU64,
    unseen: AtomicU64,
    unmeasured: AtomicU64,
    told_of_unseen: Once,
    told_of_unmeasured: Once,
}

#[derive(Debug)]
enum State {
    Off(String),
    On(Box<Programs>),
}

/// Why nothing can be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is the case.
    pub cause: String,
    /// What to do.
    pub cure: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.cure)
    }
}

/// One connection as the kernel has seen it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Flush latency: from the arrival of bytes of the upstream to their leaving towards the client.
    pub down: Latency,
    /// Input latency: the same from the client to the upstream.
    pub up: Latency,
    /// Smoothed round-trip time of the client's connection when payload was last sent to it. None before the first sample.
    pub srtt: Option<Duration>,
    /// Segments sent to the client again until then.
    pub retransmits: u64,
}

/// How the meter itself does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that can be measured at once.
    pub capacity: u64,
    /// Connections that the kernel has seen to be established.
    pub established: u64,
    /// Connections that found the kernel's map full.
    pub insert_errors: u64,
    /// Connections that the gateway could not have measured, since a map was full.
    pub unmeasured: u64,
    /// Accepted connections of which the kernel had no record.
    pub unseen: u64,
    /// Accepted connections with another address in the kernel's record than accept said.
    pub mismatches: u64,
    /// Delays measured since the start.
    pub delays: u64,
}

impl Meter {
    /// One that measures nothing, for this reason.
    #[must_use]
    pub fn disabled(reason: impl Into<String>) -> Arc<Self> {
        Arc::new(Self::new(State::Off(reason.into())))
    }

    /// Has the kernel measure up to `connections` at once, and this process's sockets that are made from now on. When
    /// that cannot be had, a warning says why, and the meter is one that measures nothing.
    #[must_use]
    pub fn start(connections: usize) -> Arc<Self> {
        Self::try_start(connections).unwrap_or_else(|lack| {
            tracing::warn!("eBPF cannot be had: {lack}. Without it {COST}");
            Self::disabled(lack.to_string())
        })
    }

    /// The same without a warning.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn try_start(connections: usize) -> Result<Arc<Self>, Lack> {
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        let programs = Programs::load(connections)
            .map_err(|error| Lack { cause: error.to_string(), cure: error.cure() })?;
        Ok(Arc::new(Self::new(State::On(Box::new(programs)))))
    }

    fn new(state: State) -> Self {
        Self {
            state,
            mismatches: AtomicU64::new(0),
            unseen: AtomicU64::new(0),
            unmeasured: AtomicU64::new(0),
            told_of_unseen: Once::new(),
            told_of_unmeasured: Once::new(),
        }
    }

    /// Whether it measures.
    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(self.state, State::On(_))
    }

    /// Why it does not measure; None when it does.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &self.state {
            State::On(_) => None,
            State::Off(reason) => Some(reason),
        }
    }

    /// One line for the start-up report.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.state {
            State::On(programs) => {
                format!(
                    "flush latency of up to {} connections, in {}",
                    programs.capacity,
                    programs.group()
                )
            }
            State::Off(reason) => format!("off: {reason}"),
        }
    }

    fn programs(&self) -> Option<&Programs> {
        match &self.state {
            State::On(programs) => Some(programs),
            State::Off(_) => None,
        }
    }

    /// Where its control group is left and removed at the end.
    pub fn places(&self) -> Option<Place> {
        let directory = self.programs()?.parent()?.to_owned();
        Some(Place { directory, usage: Use::Leave })
    }

    /// Whether the kernel answers this thread, as far as rights go.
    #[must_use]
    pub fn answers(&self) -> bool {
        let Some(programs) = self.programs() else { return true };
        let answer = programs.maps().stats.get(&(Stat::Established as u32), 0);
        answer.err().is_none_or(|error| programs::errno(&error) != Some(libc::EPERM))
    }

    /// Where the connection with this cookie comes from, in the kernel's record, which must name `accepted` too: another
    /// address there is counted and logged. None without a record, as for connections that ended before they were
    /// accepted; of others, for which `is_connected`, that is counted and logged too.
    pub fn source(
        &self,
        client: u64,
        accepted: SocketAddr,
        is_connected: impl FnOnce() -> bool,
    ) -> Option<SocketAddr> {
        let programs = self.programs()?;
        let maps = programs.maps();
        let Ok(record) = maps.conns.get(&client, 0) else {
            if is_connected() {
                self.on_unseen(&maps, accepted);
            }
            return None;
        };
        drop(maps);
        let source = address(&record);
        if canonical(source) != canonical(accepted) {
            self.mismatches.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                "the connection that accept says is from {accepted} comes from {source} in the kernel's record; \
                 access rules keep to the former"
            );
        }
        Some(source)
    }

    fn on_unseen(&self, maps: &Maps, accepted: SocketAddr) {
        self.unseen.fetch_add(1, Ordering::Relaxed);
        self.told_of_unseen.call_once(|| {
            let why = if count_of(maps, Stat::InsertErrors) > 0 {
                "the map of connections is full; raise telemetry.connections"
            } else {
                "the programs did not see it, or something has deleted its record; find out what else manages BPF here, \
                 and restart the gateway"
            };
            warn(&format!("the kernel has no record of the connection from {accepted}: {why}"));
        });
    }

    /// Begins to measure a connection. What has arrived before does not count.
    pub fn begin(&self, client: u64) -> bool {
        let Some(programs) = self.programs() else { return false };
        let maps = &mut *programs.maps();
        let begun = begin(maps, client);
        if let Err(error) = begun {
            forget(maps, client);
            self.unmeasured.fetch_add(1, Ordering::Relaxed);
            self.told_of_unmeasured.call_once(|| {
                warn(&format!(
                    "a connection is not measured: {error}; more than {} at once are not: raise telemetry.connections",
                    programs.capacity
                ));
            });
            return false;
        }
        true
    }

    /// From now on the upstream's socket carries what the client's does.
    pub fn link(&self, client: u64, upstream: u64) {
        let Some(programs) = self.programs() else { return };
        let maps = &mut *programs.maps();
        let Some(place) = maps.places.of(client) else { return };
        let link = new_link(upstream, client, place, Role::Upstream);
        if maps.links.insert(link).is_err() {
            self.unmeasured.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The upstream's socket carries nothing any more that is to be measured.
    pub fn unlink(&self, upstream: u64) {
        if let Some(programs) = self.programs() {
            programs.maps().links.remove(upstream);
        }
    }

    /// Bytes that came this way were consumed here: nothing will leave for them.
    pub fn swallowed(&self, client: u64, direction: Direction) {
        let Some(programs) = self.programs() else { return };
        let maps = &mut *programs.maps();
        // The connection may not be measured, or not any more.
        let Some(place) = maps.places.of(client) else { return };
        let index = index(place, direction);
        let Ok(waits) = maps.waits.get(&index, 0) else { return };
        if waits.since != 0 {
            // What a program notes of this direction between the two calls is lost.
            drop(maps.waits.set(index, Waits { since: 0, ..waits }, 0));
        }
    }

    /// What has been measured of a connection. None when it is not.
    #[must_use]
    pub fn reading(&self, client: u64) -> Option<Reading> {
        let maps = self.programs()?.maps();
        let place = maps.places.of(client)?;
        let down = maps.waits.get(&index(place, Direction::Down), 0).ok()?;
        let up = maps.waits.get(&index(place, Direction::Up), 0).ok()?;
        let link = maps.links.get(client).unwrap_or_default();
        let srtt_us = match link.srtt_us {
            0 => maps.conns.get(&client, 0).map_or(0, |conn| conn.srtt_us),
            known => known.into(),
        };
        Some(Reading {
            down: Latency::from(&down),
            up: Latency::from(&up),
            srtt: (srtt_us > 0).then(|| Duration::from_micros(srtt_us)),
            retransmits: link.retransmits.into(),
        })
    }

    /// Deletes all that is kept of a connection. To be called at its end, and harmless at any other time.
    pub fn forget(&self, client: u64) {
        if let Some(programs) = self.programs() {
            forget(&mut programs.maps(), client);
        }
    }

    /// How the meter itself does; None when it is off.
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        let programs = self.programs()?;
        let maps = programs.maps();
        Some(Stats {
            capacity: programs.capacity.into(),
            established: count_of(&maps, Stat::Established),
            insert_errors: count_of(&maps, Stat::InsertErrors),
            unmeasured: self.unmeasured.load(Ordering::Relaxed),
            unseen: self.unseen.load(Ordering::Relaxed),
            mismatches: self.mismatches.load(Ordering::Relaxed),
            delays: count_of(&maps, Stat::Delays),
        })
    }
}

/// A warning about single connections: one for each cause, while counters tell how many there are.
fn warn(text: &str) {
    tracing::warn!("eBPF: {text}. For it {COST}");
}

fn new_link(cookie: u64, client: u64, place: u32, role: Role) -> Link {
    Link { cookie, client, place, role: role as u32, ..Link::default() }
}

/// Why a connection is not measured.
#[derive(Debug, thiserror::Error)]
enum NotBegun {
    #[error("all places are taken")]
    NoPlace,
    #[error("{}", programs::chain(.0))]
    Map(#[from] MapError),
}

fn begin(maps: &mut Maps, client: u64) -> Result<(), NotBegun> {
    let place = maps.places.take(client).ok_or(NotBegun::NoPlace)?;
    for direction in [Direction::Down, Direction::Up] {
        maps.waits.set(index(place, direction), Waits { client, ..Waits::EMPTY }, 0)?;
    }
    Ok(maps.links.insert(new_link(client, client, place, Role::Client))?)
}

/// Entries may be missing: the kernel deletes those of connections that were never linked.
fn forget(maps: &mut Maps, client: u64) {
    maps.links.remove(client);
    if let Some(place) = maps.places.give_back(client) {
        for direction in [Direction::Down, Direction::Up] {
            drop(maps.waits.set(index(place, direction), Waits::EMPTY, 0));
        }
    }
    drop(maps.conns.remove(&client));
}

fn count_of(maps: &Maps, stat: Stat) -> u64 {
    maps.stats.get(&(stat as u32), 0).unwrap_or(0)
}

fn address(conn: &Conn) -> SocketAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&conn.address[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&conn.address[1].to_ne_bytes());
    let port = u16::try_from(conn.port).unwrap_or(0);
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port)
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read() {
        let conn = |text: &str, port| {
            let bytes = text.parse::<Ipv6Addr>().unwrap().octets();
            let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            Conn { address: [word(0), word(8)], port, ..Conn::default() }
        };
        assert_eq!(address(&conn("::ffff:192.0.2.7", 5)).to_string(), "192.0.2.7:5");
        assert_eq!(address(&conn("2001:db8::7", 65_535)).to_string(), "[2001:db8::7]:65535");
    }

    #[test]
    fn one_that_is_off_answers_nothing_and_says_why() {
        let meter = Meter::disabled("it is switched off");
        assert!(!meter.is_on() && !meter.begin(1));
        assert_eq!((meter.reading(1), meter.stats()), (None, None));
        assert_eq!(meter.describe(), "off: it is switched off");
        meter.swallowed(1, Direction::Up);
        meter.forget(1);
    }
}
