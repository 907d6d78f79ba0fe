//! The maps. Sizes are set by the gateway when it loads them; a full map costs measurements, never a connection.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use tlsplice_ebpf_common::{Conn, Link, STATS, Stat, Waits};

const ENTRIES: u32 = 16_384;

/// Connections of clients, by cookie. Entries of those never accepted go when they close; the others are the gateway's
/// to delete, since it may ask after the end.
#[map]
pub static CONNS: HashMap<u64, Conn> = HashMap::with_max_entries(ENTRIES, 0);

/// `BPF_F_MMAPABLE` of linux/bpf.h (5.5). Nobody maps these maps: with it their values begin with a page, so that none lies
/// across more lines of the cache than it must.
const ON_PAGES: u32 = 1 << 10;

/// Entries of `LINKS` less one; a power of two less one. Set by the gateway.
#[unsafe(no_mangle)]
static LINKS_MASK: u32 = 0;

/// Sockets to be observed, by cookie & `LINKS_MASK`. Written by the gateway. An array, since it is asked for all payload: a
/// look-up costs a few instructions and no line of the cache beside that of the entry.
#[map]
pub static LINKS: Array<Link> = Array::with_max_entries(ENTRIES, ON_PAGES);

/// Those whose entry in `LINKS` is another socket's, by cookie. Written by the gateway.
#[map]
pub static SOCKS: HashMap<u64, Link> = HashMap::with_max_entries(ENTRIES, 0);

/// What waits, and delays, by `index`. Written by the gateway, which also clears what it consumes itself.
#[map]
pub static WAITS: Array<Waits> = Array::with_max_entries(ENTRIES, ON_PAGES);

/// What the socket with this cookie carries; None for most sockets of the machine. No socket has cookie 0, as free entries do.
#[inline(always)]
pub fn link(cookie: u64) -> Option<*mut Link> {
    // SAFETY: it is a constant, which the loader has set; read as if it might change, so that the compiler does not take it for
    // what it is here.
    let mask = unsafe { read_volatile(addr_of!(LINKS_MASK)) };
    let own = LINKS.get_ptr_mut(cookie as u32 & mask);
    // SAFETY: the array keeps its values.
    let own = own.filter(|link| unsafe { (**link).cookie } == cookie);
    own.or_else(|| SOCKS.get_ptr_mut(&cookie))
}

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
