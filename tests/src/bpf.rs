use std::{fmt, fs};

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use aya::programs::loaded_programs;
use tlsplice_ebpf_common::{Conn, Direction, Link, Waits, index};

use crate::client::Client;
use crate::gateway::Gateway;

/// The maps and programs of a gateway, seen through its descriptors.
pub struct Kernel {
    conns: HashMap<MapData, u64, Conn>,
    links: Array<MapData, Link>,
    socks: HashMap<MapData, u64, Link>,
    waits: Array<MapData, Waits>,
    programs: Vec<u32>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("programs", &self.programs).finish_non_exhaustive()
    }
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
        let conns = open(&maps, "CONNS");
        let (links, socks) = (open(&maps, "LINKS"), open(&maps, "SOCKS"));
        let waits = open(&maps, "WAITS");
        Some(Self { conns, links, socks, waits, programs })
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

    /// How many connections the kernel has a record of.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.keys().count()
    }

    /// How many sockets carry something that is measured.
    #[must_use]
    pub fn linked(&self) -> usize {
        self.links().count()
    }

    /// How many connections are measured.
    #[must_use]
    pub fn measured(&self) -> usize {
        self.places(Direction::Down).filter(|waits| waits.client != 0).count()
    }

    /// Whether the sockets with these cookies fall on the same entry of the map of links.
    #[must_use]
    pub fn shares(&self, cookie: u64, other: u64) -> bool {
        (cookie ^ other) & u64::from(self.links.len() - 1) == 0
    }

    /// Whether the link of the client that made a connection from this port is kept apart, since another socket has its entry.
    #[must_use]
    pub fn is_kept_apart(&self, port: u16) -> bool {
        self.conn(port).is_some_and(|(client, _)| self.socks.get(&client, 0).is_ok())
    }

    /// What sockets carry.
    fn links(&self) -> impl Iterator<Item = Link> {
        let by_slot = self.links.iter().map(|link| link.expect("root may read the map"));
        let by_cookie = self.socks.iter().flatten().map(|(_, link)| link);
        by_slot.filter(|link| link.cookie != 0).chain(by_cookie)
    }

    /// One direction of every place for a connection.
    fn places(&self, direction: Direction) -> impl Iterator<Item = Waits> {
        let place = move |place| self.waits.get(&index(place, direction), 0);
        (0..self.waits.len() / 2).map(move |number| place(number).expect("root may read the map"))
    }

    /// The record of the connection that a client made from this port, and its key.
    #[must_use]
    pub fn conn(&self, port: u16) -> Option<(u64, Conn)> {
        self.conns.iter().flatten().find(|(_, conn)| conn.port == u64::from(port))
    }

    /// Delays of the connection that a client made from this port.
    #[must_use]
    pub fn delays(&self, port: u16, direction: Direction) -> Option<Waits> {
        let (client, _) = self.conn(port)?;
        self.places(direction).find(|waits| waits.client == client)
    }

    /// How often segments were sent again to the client that made a connection from this port.
    #[must_use]
    pub fn retransmits(&self, port: u16) -> Option<u32> {
        let (client, _) = self.conn(port)?;
        Some(self.links().find(|link| link.cookie == client)?.retransmits)
    }

    /// Whether bytes that came this way wait in the gateway, whichever of its first connections they are of: others are not
    /// looked at, so that it takes microseconds.
    #[must_use]
    pub fn is_waiting(&self, direction: Direction) -> bool {
        self.places(direction).take(8).any(|waits| waits.since != 0)
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

fn open<M: TryFrom<Map, Error = MapError>>(ids: &[u32], name: &str) -> M {
    let is_it =
        |id: &&u32| MapInfo::from_id(**id).is_ok_and(|info| info.name_as_str() == Some(name));
    let id = ids.iter().find(is_it).unwrap_or_else(|| panic!("the gateway has a map {name}"));
    let data = MapData::from_id(*id).expect("the map can be opened");
    let map = Map::from_map_data(data).expect("the map has a known type");
    map.try_into().expect("the map has these types")
}
