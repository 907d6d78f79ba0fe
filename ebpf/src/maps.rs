//! The maps. Sizes are set by the gateway when it loads them; a full map costs measurements, never a connection.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use tlsplice_ebpf_common::{Conn, Histogram, Link, Pending, STATS, Stat};

const ENTRIES: u32 = 16_384;

/// Connections of clients, by cookie. Entries of those never accepted go when they close; the others are the gateway's
/// to delete, since it may ask after the end.
#[map]
pub static CONNS: HashMap<u64, Conn> = HashMap::with_max_entries(ENTRIES, 0);

/// Sockets to be observed, by cookie. Written by the gateway.
#[map]
pub static SOCKS: HashMap<u64, Link> = HashMap::with_max_entries(ENTRIES, 0);

/// What waits, by `index`. Written by the gateway, which also clears what it consumes itself. An array, since it is asked
/// for all payload of linked sockets: a look-up costs a few instructions and no line of the cache beside that of the entry.
#[map]
pub static PEND: Array<Pending> = Array::with_max_entries(ENTRIES, 0);

/// Delays, by `index`. Written by the gateway. An array for the same reason, though it takes its memory when it is made.
#[map]
pub static HIST: Array<Histogram> = Array::with_max_entries(ENTRIES, 0);

/// Counters, by `Stat`.
#[map]
pub static STATS_MAP: Array<u64> = Array::with_max_entries(STATS, 0);

/// Counts one.
#[inline(always)]
pub fn count(stat: Stat) {
    if let Some(counter) = STATS_MAP.get_ptr_mut(stat as u32) {
        // SAFETY: the pointer is into a value of eight aligned bytes, which the map keeps. Two processors may count at
        // once; a count lost that way costs nothing.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}
