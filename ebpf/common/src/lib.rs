//! Keys, values and names of the maps that the programs in the kernel share with the gateway.
//!
//! A value that a program builds on its stack has fields of eight bytes only: kernels up to 6.1 refuse two smaller
//! stores into one slot from a program without CAP_PERFMON.
#![no_std]
#![deny(missing_docs)]

/// Buckets of a histogram: a power of two, so that an index can be masked.
pub const BUCKETS: usize = 128;

/// Counters of [`Stat`].
pub const STATS: u32 = 8;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Direction {
    /// From the upstream to the client.
    Down = 0,
    /// From the client to the upstream.
    Up = 1,
}

/// Where one direction of a connection has its entry in the map `WAITS`: by the place that the gateway has given the
/// connection.
#[must_use]
#[inline(always)]
pub const fn index(place: u32, direction: Direction) -> u32 {
    place.wrapping_mul(2) + direction as u32
}

/// A connection that a client has made. Map `CONNS`, by the cookie of the accepted socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Conn {
    /// The client's address as the 16 bytes of an IPv6 address in network order; IPv4 is mapped.
    pub address: [u64; 2],
    /// The client's port.
    pub port: u64,
    /// The round-trip time that its handshake took, in microseconds; 0 when that is not known.
    pub srtt_us: u64,
}

/// What a socket is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// It is the client's.
    Client = 1,
    /// It is the upstream's.
    Upstream = 2,
}

/// Whose bytes a socket carries. Map `LINKS`, by the low bits of the socket's cookie; or, when another socket has that
/// entry, map `SOCKS`, by the cookie. As long as a line of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// The cookie of the socket; 0 when the entry is nobody's.
    pub cookie: u64,
    /// Cookie of the client's socket.
    pub client: u64,
    /// The place of the client's connection: see [`index`].
    pub place: u32,
    /// A [`Role`].
    pub role: u32,
    /// Sequence number behind the last byte sent; above it is what was never sent before.
    pub sent: u32,
    /// Whether `sent` is known: 0 or 1.
    pub has_sent: u32,
    /// Sequence number behind the last byte received; what is below it came again.
    pub received: u32,
    /// Whether `received` is known: 0 or 1.
    pub has_received: u32,
    /// Of the client's: smoothed round-trip time in microseconds when payload was last sent; 0 before.
    pub srtt_us: u32,
    /// Of the client's: segments sent again until then.
    pub retransmits: u32,
    /// Not used.
    pub rest: [u64; 2],
}

/// One direction of a connection: what waits, and how long others have. Map `WAITS`, by [`index`]. What every packet asks for
/// is as long as a line of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Waits {
    /// Cookie of the client's socket whose place this is; 0 when it is nobody's. A link may outlive the connection that it
    /// is for. A program that is at work while the place changes hands may still count one delay for the next connection.
    pub client: u64,
    /// When the first payload that has not gone on arrived, on the monotonic clock, in nanoseconds; 0 when none waits.
    pub since: u64,
    /// Delays counted.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub sum_ns: u64,
    /// The longest in nanoseconds.
    pub max_ns: u64,
    /// Packets that arrived while another one waited, whose delay is not in the histogram.
    pub coalesced: u32,
    /// The bucket counted last; the program needs it in memory to index with it.
    pub last_bucket: u32,
    /// Not used.
    pub rest: [u64; 2],
    /// Delays counted, by [`bucket`].
    pub buckets: [u32; BUCKETS],
}

impl Waits {
    /// Nobody's, without a delay.
    pub const EMPTY: Self = Self {
        client: 0,
        since: 0,
        count: 0,
        sum_ns: 0,
        max_ns: 0,
        coalesced: 0,
        last_bucket: 0,
        rest: [0; 2],
        buckets: [0; BUCKETS],
    };
}

/// The bucket of a delay: microseconds, four buckets per power of two, so that it is known to a quarter at worst.
#[must_use]
#[inline(always)]
pub const fn bucket(us: u64) -> u32 {
    let us = if us > u32::MAX as u64 { u32::MAX } else { us as u32 };
    if us < 4 {
        us
    } else {
        let msb = 31 - us.leading_zeros();
        (msb - 1) * 4 + ((us >> (msb - 2)) & 3)
    }
}

/// A counter. Map `STATS`, by this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stat {
    /// Connections seen to be established by clients.
    Established = 0,
    /// Connections that found `CONNS` full.
    InsertErrors = 1,
    /// Delays measured.
    Delays = 2,
}

// What a packet needs of them.
const _: () = assert!(size_of::<Link>() == 64 && core::mem::offset_of!(Waits, buckets) == 64);

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)`, integers only, and no padding: every pattern of bytes is a value.
    unsafe impl aya::Pod for super::Conn {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Link {}
    // SAFETY: as above; two fields of four bytes stand side by side, and an even number of them last.
    unsafe impl aya::Pod for super::Waits {}
}
