use std::fs;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::loaded_programs;
use tlsplice_ebpf_common::{Conn, Direction, Histogram, Link, key};

use crate::client::Client;
use crate::gateway::Gateway;

/// The maps and programs of a gateway, seen through its descriptors.
#[derive(Debug)]
pub struct Kernel {
    conns: HashMap<MapData, u64, Conn>,
    socks: HashMap<MapData, u64, Link>,
    pending: HashMap<MapData, u64, u64>,
    histograms: HashMap<MapData, u64, Histogram>,
    programs: Vec<u32>,
}

impl Kernel {
    /// What the process has in the kernel; None when that is nothing.
    ///
    /// # Panics
    /// When the kernel does not tell, as without root.
    #[must_use]
    pub fn of(process: u32) -> Option<Self> {
        let programs = ids(process, "prog_id:");
        if programs.is_empty() {
            return None;
        }
        let maps = ids(process, "map_id:");
        let (conns, socks) = (open(&maps, "CONNS"), open(&maps, "SOCKS"));
        let (pending, histograms) = (open(&maps, "PEND"), open(&maps, "HIST"));
        Some(Self { conns, socks, pending, histograms, programs })
    }

    /// The same of a gateway that must have something there.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn of_running(gateway: &Gateway) -> Self {
        Self::of(gateway.id())
            .expect("the gateway has programs: these tests need root, cgroup2 and BPF")
    }

    /// Entries of the maps of connections, sockets and delays.
    #[must_use]
    pub fn entries(&self) -> (usize, usize, usize) {
        (self.conns.keys().count(), self.socks.keys().count(), self.histograms.keys().count())
    }

    /// The record of the connection that a client made from this port, and its key.
    #[must_use]
    pub fn conn(&self, port: u16) -> Option<(u64, Conn)> {
        self.conns.iter().flatten().find(|(_, conn)| conn.port == u64::from(port))
    }

    /// Delays of the connection that a client made from this port.
    #[must_use]
    pub fn delays(&self, port: u16, direction: Direction) -> Option<Histogram> {
        let (client, _) = self.conn(port)?;
        self.histograms.get(&key(client, direction), 0).ok()
    }

    /// Whether bytes that came this way wait in the gateway, whatever the connection.
    #[must_use]
    pub fn is_waiting(&self, direction: Direction) -> bool {
        let is_of = |client: u64| client % 2 == direction as u64;
        self.pending.iter().flatten().any(|(client, since)| is_of(client) && since != 0)
    }

    /// Changes the record of the connection that a client made from this port.
    ///
    /// # Panics
    /// When there is none.
    pub fn change(&mut self, port: u16, change: impl FnOnce(&mut Conn)) {
        let (client, mut conn) = self.conn(port).expect("there is a record");
        change(&mut conn);
        self.conns.insert(client, conn, 0).expect("root may write to the map");
    }

    /// Deletes the record of the connection that a client made from this port.
    ///
    /// # Panics
    /// When there is none.
    pub fn delete(&mut self, port: u16) {
        let (client, _) = self.conn(port).expect("there is a record");
        self.conns.remove(&client).expect("root may write to the map");
    }

    /// Whether any of its programs is still loaded.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        loaded_programs().flatten().any(|program| self.programs.contains(&program.id()))
    }
}

/// Asserts that a gateway has nothing in the kernel, has said once why, what that costs and what to do, and serves.
///
/// # Panics
/// When one of these is not so.
#[track_caller]
pub fn serves_without(gateway: &Gateway, cause: &str, cure: &str) {
    const COST: &str =
        "Without it flush latency, round-trip times and retransmissions are not measured";
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN eBPF")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    for part in ["eBPF cannot be had: ", cause, COST, cure] {
        assert!(warnings[0].contains(part), "{part:?} is missing: {warnings:?}");
    }
    let line = gateway.wait_for_access(|line| line["status"] == 200);
    assert!(line.get("flush_p50_ms").is_none() && line["client"] == "127.0.0.1", "{line}");
}

/// Numbers of what the descriptors of a process stand for.
fn ids(process: u32, name: &str) -> Vec<u32> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fdinfo")) else {
        return Vec::new();
    };
    let id = |path| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    let mut ids: Vec<u32> =
        descriptors.flatten().filter_map(|descriptor| id(descriptor.path())).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn open<V: Pod>(ids: &[u32], name: &str) -> HashMap<MapData, u64, V> {
    let is_it =
        |id: &&u32| MapInfo::from_id(**id).is_ok_and(|info| info.name_as_str() == Some(name));
    let id = ids.iter().find(is_it).unwrap_or_else(|| panic!("the gateway has a map {name}"));
    let data = MapData::from_id(*id).expect("the map can be opened");
    let map = Map::from_map_data(data).expect("the map has a known type");
    map.try_into().expect("the map has these types")
}
