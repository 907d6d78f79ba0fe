//! The maps. Sizes are set by the gateway when it loads them; a full map costs measurements, never a connection.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use tlsplice_ebpf_common::{Conn, Histogram, Link, STATS, Stat};

const ENTRIES: u32 = 16_384;

/// Connections of clients, by cookie. Entries of those never accepted go when they close; the others are the gateway's
/// to delete, since it may ask after the end.
#[map]
pub static CONNS: HashMap<u64, Conn> = HashMap::with_max_entries(ENTRIES, 0);

/// Sockets to be observed, by cookie. Written by the gateway.
#[map]
pub static SOCKS: HashMap<u64, Link> = HashMap::with_max_entries(ENTRIES, 0);

/// When the first payload that has not gone on arrived, by `key`; 0 when none waits. Written by the gateway, which also
/// clears what it consumes itself.
#[map]
pub static PEND: HashMap<u64, u64> = HashMap::with_max_entries(ENTRIES, 0);

/// Delays, by `key`. Written by the gateway.
#[map]
pub static HIST: HashMap<u64, Histogram> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

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
