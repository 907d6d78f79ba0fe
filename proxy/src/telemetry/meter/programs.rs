//! The programs in the kernel: loaded, attached, and asked.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};
use socket2::SockRef;
use tlsplice_ebpf_common::{Conn, Link, Waits};

use super::cgroup::{Group, GroupError};
use super::places::Places;
use super::slots::{Slot, Slots};

/// The programs, built by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/tlsplice.bpf.o");

/// Connections that may wait to be accepted, on top of those that are served.
const WAITING_MAX: u32 = 4096;

/// Idle connections to upstreams, which stay linked, on top of those in use.
const IDLE_MAX: u32 = 4096;

/// Why nothing is measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// No group of processes to attach to.
    #[error("{0}")]
    Group(#[from] GroupError),
    /// A capability is missing.
    #[error("the kernel does not permit BPF ({0})")]
    NotPermitted(String),
    /// The kernel has no BPF, or not what is needed.
    #[error("this kernel lacks what is needed ({0})")]
    NotSupported(String),
    /// The maps did not fit.
    #[error("the kernel has no memory for {0} connections ({1})")]
    NoMemory(u32, String),
    /// The verifier refused a program.
    #[error("the kernel's verifier refused {0}")]
    Refused(String),
    /// Another program holds the group for itself.
    #[error("another BPF program holds the control group {0} exclusively ({1})")]
    Held(String, String),
    /// Programs are attached, and are not run.
    #[error(
        "the kernel does not run programs for this process's sockets, as before Linux 5.14 when a net_cls or net_prio \
         group is in use"
    )]
    NotRun,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl LoadError {
    /// What to do.
    pub(super) fn cure(&self) -> &'static str {
        match self {
            Self::Group(GroupError::NotMounted) => {
                "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"
            }
            Self::Group(GroupError::Io(..)) => {
                "give the process a view of its own control group, as in a mount of cgroup2"
            }
            Self::NotPermitted(_) => {
                "give the process CAP_BPF and CAP_NET_ADMIN, and on Linux 5.10 also LimitMEMLOCK=infinity (in containers \
                 the runtime must allow the bpf system call, too)"
            }
            Self::NotSupported(_) => "run Linux 5.10 or later with CONFIG_CGROUP_BPF",
            Self::NoMemory(..) => {
                "lower telemetry.connections, of which each takes 1.8 to 3.1 KB, or give the process more memory"
            }
            Self::Refused(_) | Self::Other(_) => "please report this with the kernel's version",
            Self::Held(..) => "run the gateway in a group of its own",
            Self::NotRun => "remove those groups (they are cgroup v1) and restart the machine",
        }
    }
}

/// Loaded programs and their maps. Dropping it detaches and unloads them, as the end of the process does.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) maps: Mutex<Maps>,
    pub(super) capacity: u32,
    group: String,
    /// Detached before the process leaves the group.
    _programs: Ebpf,
    own_group: Group,
}

/// The maps, and who has which place in the arrays. A call takes a microsecond or less.
pub(super) struct Maps {
    pub(super) places: Places,
    pub(super) conns: HashMap<MapData, u64, Conn>,
    pub(super) links: Links,
    pub(super) waits: Array<MapData, Waits>,
    pub(super) stats: Array<MapData, u64>,
}

/// Links of sockets: in an array by the low bits of the cookie, or by the whole cookie where another socket has that entry.
pub(super) struct Links {
    slots: Slots,
    by_slot: Array<MapData, Link>,
    by_cookie: HashMap<MapData, u64, Link>,
}

impl Links {
    /// Writes the link of the socket that it names.
    pub(super) fn insert(&mut self, link: Link) -> Result<(), MapError> {
        match self.slots.take(link.cookie) {
            Slot::Own(index) => self.by_slot.set(index, link, 0),
            Slot::Apart => self.by_cookie.insert(link.cookie, link, 0),
        }
    }

    /// That of this socket; None when it has none.
    pub(super) fn get(&self, cookie: u64) -> Option<Link> {
        match self.slots.of(cookie)? {
            Slot::Own(index) => self.by_slot.get(&index, 0).ok(),
            Slot::Apart => self.by_cookie.get(&cookie, 0).ok(),
        }
    }

    /// Deletes it, where there is one.
    pub(super) fn remove(&mut self, cookie: u64) {
        match self.slots.give_back(cookie) {
            Some(Slot::Own(index)) => drop(self.by_slot.set(index, Link::default(), 0)),
            Some(Slot::Apart) => drop(self.by_cookie.remove(&cookie)),
            None => {}
        }
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Programs {
    /// Joins a group, loads, attaches, and makes sure that the programs see sockets. For `connections` at once.
    pub(super) fn load(connections: u32) -> Result<Self, LoadError> {
        let group = Group::join()?;
        let directory = group.open()?;
        let capacity = connections.saturating_add(WAITING_MAX);
        let pairs = connections.saturating_mul(2);
        let sockets = pairs.saturating_add(IDLE_MAX);
        let slots = Slots::new(sockets);
        let mut programs = EbpfLoader::new()
            .override_global("LINKS_MASK", &slots.mask(), true)
            .map_max_entries("CONNS", capacity)
            .map_max_entries("LINKS", slots.count())
            .map_max_entries("SOCKS", sockets)
            .map_max_entries("WAITS", pairs)
            .load(OBJECT)
            .map_err(|error| judge(&error, connections))?;
        let name = group.path().display().to_string();
        let attach_failed = |error: ProgramError| attach_error(&name, &error);
        let sock: &mut SockOps = program(&mut programs, "tlsplice_sock")?;
        sock.load().map_err(|error| program_error("tlsplice_sock", &error))?;
        sock.attach(&directory, CgroupAttachMode::Single).map_err(attach_failed)?;
        let directions = [
            ("tlsplice_in", CgroupSkbAttachType::Ingress),
            ("tlsplice_out", CgroupSkbAttachType::Egress),
        ];
        for (name, direction) in directions {
            let packets: &mut CgroupSkb = program(&mut programs, name)?;
            packets.load().map_err(|error| program_error(name, &error))?;
            packets
                .attach(&directory, direction, CgroupAttachMode::Single)
                .map_err(attach_failed)?;
        }
        let maps = Maps {
            places: Places::new(connections),
            conns: map(&mut programs, "CONNS")?,
            links: Links {
                slots,
                by_slot: map(&mut programs, "LINKS")?,
                by_cookie: map(&mut programs, "SOCKS")?,
            },
            waits: map(&mut programs, "WAITS")?,
            stats: map(&mut programs, "STATS_MAP")?,
        };
        prove(&maps)?;
        let group_name = name;
        Ok(Self {
            maps: Mutex::new(maps),
            capacity: connections,
            group: group_name,
            _programs: programs,
            own_group: group,
        })
    }

    pub(super) fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    /// The group that this process goes back to at the end, when it made one for itself.
    pub(super) fn parent(&self) -> Option<&Path> {
        self.own_group.parent()
    }
}

/// Makes a connection to itself, which the programs must have seen.
fn prove(maps: &Maps) -> Result<(), LoadError> {
    let connected = || -> io::Result<(TcpStream, TcpStream, u64)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        let cookie = SockRef::from(&server).cookie()?;
        Ok((client, server, cookie))
    };
    let Ok((client, server, cookie)) = connected() else {
        tracing::debug!("no connection over loopback: it stays unproven that programs are run");
        return Ok(());
    };
    let seen = maps.conns.get(&cookie, 0);
    drop((client, server));
    match seen {
        Ok(_) => Ok(()),
        Err(MapError::KeyNotFound) => Err(LoadError::NotRun),
        Err(error) => Err(LoadError::Other(chain(&error))),
    }
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let found = programs.program_mut(name).map(TryInto::try_into);
    match found {
        Some(Ok(program)) => Ok(program),
        Some(Err(error)) => Err(LoadError::Other(chain(&error))),
        None => Err(LoadError::Other(format!("there is no program {name} in the object"))),
    }
}

fn map<M: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, name: &str) -> Result<M, LoadError> {
    let map = programs.take_map(name);
    let map =
        map.ok_or_else(|| LoadError::Other(format!("there is no map {name} in the object")))?;
    map.try_into().map_err(|error: MapError| LoadError::Other(chain(&error)))
}

fn judge(error: &EbpfError, connections: u32) -> LoadError {
    match errno(error) {
        Some(libc::ENOMEM) => LoadError::NoMemory(connections, chain(error)),
        _ => by_errno(error, chain(error)),
    }
}

fn program_error(name: &str, error: &ProgramError) -> LoadError {
    match (error, errno(error)) {
        (_, Some(libc::EPERM)) => LoadError::NotPermitted(format!("{name}: EPERM")),
        (ProgramError::LoadError { io_error, verifier_log }, Some(_)) => {
            // The last lines say why; the ones before tell the way there.
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(3)..].join(" | ");
            LoadError::Refused(format!("{name} ({io_error}: {tail})"))
        }
        _ => by_errno(error, chain(error)),
    }
}

fn attach_error(group: &str, error: &ProgramError) -> LoadError {
    match errno(error) {
        // Loading has shown that the capabilities are there.
        Some(libc::EPERM) => LoadError::Held(group.to_owned(), chain(error)),
        _ => by_errno(error, chain(error)),
    }
}

fn by_errno(error: &(dyn std::error::Error + 'static), text: String) -> LoadError {
    match errno(error) {
        Some(libc::EPERM | libc::EACCES) => LoadError::NotPermitted(text),
        Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => LoadError::NotSupported(text),
        _ => LoadError::Other(text),
    }
}

/// The number of the system's error that is behind `error`.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// An error with all that is behind it.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}
