//! Packets of linked sockets: when payload comes, and when it has gone on.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;
use tlsplice_ebpf_common::{BUCKETS, Direction, Histogram, Link, Role, Stat, bucket, key};

use crate::maps::{HIST, PEND, SOCKS, count};

/// Protocol number of TCP.
const TCP: u8 = 6;

/// What a packet says of itself.
struct Segment {
    /// Sequence number of its first byte.
    sequence: u32,
    /// Bytes of payload.
    payload: u32,
}

impl Segment {
    /// Sequence number behind its last byte.
    #[inline(always)]
    fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.payload)
    }
}

/// Whether a sequence number is beyond another one. They wrap around: the sign of the difference tells.
#[inline(always)]
fn is_ahead(end: u32, known: u32) -> bool {
    (end.wrapping_sub(known) as i32) > 0
}

/// Payload of a linked socket arrives: from now on it waits.
#[inline(always)]
pub fn arrived(ctx: &SkBuffContext) {
    let Some(link) = link(ctx) else { return };
    // SAFETY: the map keeps the value until the program has ended, even when it is deleted meanwhile.
    let (client, role, received, has_received) =
        unsafe { ((*link).client, (*link).role, (*link).received as u32, (*link).has_received) };
    let Some(segment) = segment(ctx) else { return };
    if segment.payload == 0 {
        return;
    }
    let end = segment.end();
    // What the network delivers twice was passed on, or waits, already.
    if has_received != 0 && !is_ahead(end, received) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        (*link).received = end as u64;
        (*link).has_received = 1;
    }
    let direction = if role == Role::Client as u64 { Direction::Up } else { Direction::Down };
    let key = key(client, direction);
    let Some(since) = PEND.get_ptr_mut(&key) else { return };
    // SAFETY: as above; the value is eight aligned bytes.
    if unsafe { *since } == 0 {
        // SAFETY: as above.
        unsafe { *since = bpf_ktime_get_ns() };
    } else if let Some(histogram) = HIST.get_ptr_mut(&key) {
        // SAFETY: as above.
        unsafe { (*histogram).coalesced = (*histogram).coalesced.wrapping_add(1) };
    }
}

/// Payload of a linked socket leaves: what waited at the other one waits no more.
#[inline(always)]
pub fn leaves(ctx: &SkBuffContext) {
    let Some(link) = link(ctx) else { return };
    // SAFETY: the map keeps the value until the program has ended, even when it is deleted meanwhile.
    let (client, role, sent, has_sent) =
        unsafe { ((*link).client, (*link).role, (*link).sent as u32, (*link).has_sent) };
    let Some(segment) = segment(ctx) else { return };
    if segment.payload == 0 {
        return;
    }
    let end = segment.end();
    if has_sent != 0 && !is_ahead(end, sent) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        (*link).sent = end as u64;
        (*link).has_sent = 1;
    }
    let direction = if role == Role::Client as u64 { Direction::Down } else { Direction::Up };
    let key = key(client, direction);
    let Some(since) = PEND.get_ptr_mut(&key) else { return };
    // SAFETY: as above; the value is eight aligned bytes.
    let start = unsafe { *since };
    if start == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { *since = 0 };
    let Some(histogram) = HIST.get_ptr_mut(&key) else { return };
    // SAFETY: a helper without arguments.
    let delay = unsafe { bpf_ktime_get_ns() }.wrapping_sub(start);
    record(histogram, delay);
    count(Stat::Delays);
}

#[inline(always)]
fn record(histogram: *mut Histogram, delay_ns: u64) {
    // SAFETY: the pointer is to a value that the map keeps until the program has ended; each access is to one of its
    // fields, and the index is within the array. The index goes through memory because the verifier would otherwise
    // reject, for a program without CAP_PERFMON, a pointer that is computed on several paths.
    unsafe {
        let bucket = bucket(delay_ns / 1000);
        write_volatile(addr_of_mut!((*histogram).last_bucket), bucket);
        let index = read_volatile(addr_of!((*histogram).last_bucket)) as usize & (BUCKETS - 1);
        let counter = addr_of_mut!((*histogram).buckets[index]);
        *counter = (*counter).wrapping_add(1);
        (*histogram).count = (*histogram).count.wrapping_add(1);
        (*histogram).sum_ns = (*histogram).sum_ns.wrapping_add(delay_ns);
        if delay_ns > (*histogram).max_ns {
            (*histogram).max_ns = delay_ns;
        }
    }
}

/// The link of the packet's socket; None for most sockets of the machine.
#[inline(always)]
fn link(ctx: &SkBuffContext) -> Option<*mut Link> {
    // SAFETY: the pointer is the context that the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    SOCKS.get_ptr_mut(&cookie)
}

/// Reads the headers. Packets begin with that of IP here; its version, not the family of the socket, says which, since a
/// socket for IPv6 may carry IPv4.
#[inline(always)]
fn segment(ctx: &SkBuffContext) -> Option<Segment> {
    let len = ctx.skb.len();
    let head: [u8; 40] = load(ctx, 0)?;
    match head[0] >> 4 {
        4 => {
            if head[9] != TCP {
                return None;
            }
            let ip = (head[0] & 15) as u32 * 4;
            if ip == 20 {
                return payload(len, 20, [head[24], head[25], head[26], head[27]], head[32]);
            }
            let tcp: [u8; 16] = load(ctx, ip)?;
            payload(len, ip, [tcp[4], tcp[5], tcp[6], tcp[7]], tcp[12])
        }
        6 => {
            // TCP connections have no extension headers in practice.
            if head[6] != TCP {
                return None;
            }
            let tcp: [u8; 16] = load(ctx, 40)?;
            payload(len, 40, [tcp[4], tcp[5], tcp[6], tcp[7]], tcp[12])
        }
        _ => None,
    }
}

#[inline(always)]
fn payload(len: u32, ip: u32, sequence: [u8; 4], offset: u8) -> Option<Segment> {
    let headers = ip + (offset >> 4) as u32 * 4;
    Some(Segment { sequence: u32::from_be_bytes(sequence), payload: len.saturating_sub(headers) })
}

#[inline(always)]
fn load<const N: usize>(ctx: &SkBuffContext, at: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the pointer and the length are those of one array on the stack.
    let failed =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the helper has written all of it.
    Some(unsafe { bytes.assume_init() })
}
