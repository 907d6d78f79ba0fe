//! Packets of linked sockets: when payload comes, and when it has gone on.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_tcp_sock,
};
use aya_ebpf::programs::SkBuffContext;
use tlsplice_ebpf_common::{BUCKETS, Direction, Link, Role, Stat, Waits, bucket, index};

use crate::maps::{self, WAITS, count};

/// Protocol number of TCP.
const TCP: u8 = 6;

/// Whether a sequence number is beyond another one. They wrap around: the sign of the difference tells.
#[inline(always)]
fn is_ahead(end: u32, known: u32) -> bool {
    (end.wrapping_sub(known) as i32) > 0
}

/// Payload of a linked socket arrives: from now on it waits.
#[inline(always)]
pub fn arrived(ctx: &SkBuffContext) {
    let Some(end) = payload_end(ctx) else { return };
    let Some(link) = link(ctx) else { return };
    // SAFETY: the memory is the map's until the program has ended. When the link is deleted meanwhile it may be half written, or
    // that of another socket, and what is noted in it may cost that a figure.
    let (client, place, role, received, has_received) = unsafe {
        let (received, has_received) = ((*link).received, (*link).has_received);
        ((*link).client, (*link).place, (*link).role, received, has_received)
    };
    // What the network delivers twice was passed on, or waits, already.
    if has_received != 0 && !is_ahead(end, received) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        (*link).received = end;
        (*link).has_received = 1;
    }
    let direction = if role == Role::Client as u32 { Direction::Up } else { Direction::Down };
    let Some(waits) = waits(place, direction, client) else { return };
    // SAFETY: the array keeps its values.
    unsafe {
        if (*waits).since == 0 {
            (*waits).since = bpf_ktime_get_ns();
        } else {
            (*waits).coalesced = (*waits).coalesced.wrapping_add(1);
        }
    }
}

/// Payload of a linked socket leaves: what waited at the other one waits no more.
#[inline(always)]
pub fn leaves(ctx: &SkBuffContext) {
    let Some(end) = payload_end(ctx) else { return };
    let Some(link) = link(ctx) else { return };
    // SAFETY: the memory is the map's until the program has ended. When the link is deleted meanwhile it may be half written, or
    // that of another socket, and what is noted in it may cost that a figure.
    let (client, place, role, sent, has_sent) = unsafe {
        let (sent, has_sent) = ((*link).sent, (*link).has_sent);
        ((*link).client, (*link).place, (*link).role, sent, has_sent)
    };
    if role == Role::Client as u32 {
        observe(ctx, link);
    }
    if has_sent != 0 && !is_ahead(end, sent) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        (*link).sent = end;
        (*link).has_sent = 1;
    }
    let direction = if role == Role::Client as u32 { Direction::Down } else { Direction::Up };
    let Some(waits) = waits(place, direction, client) else { return };
    // SAFETY: the array keeps its values.
    let start = unsafe { (*waits).since };
    if start == 0 {
        return;
    }
    // SAFETY: as above; the helper has no arguments.
    let delay = unsafe {
        (*waits).since = 0;
        bpf_ktime_get_ns().wrapping_sub(start)
    };
    record(waits, delay);
    count(Stat::Delays);
}

/// What waits at this place, if it is still the client's.
#[inline(always)]
fn waits(place: u32, direction: Direction, client: u64) -> Option<*mut Waits> {
    // SAFETY: the array keeps its values.
    WAITS.get_ptr_mut(index(place, direction)).filter(|waits| unsafe { (**waits).client } == client)
}

/// Notes what the network does to the connection. The kernel has counted a segment that is sent again before it sends it
/// (`__tcp_retransmit_skb`).
#[inline(always)]
fn observe(ctx: &SkBuffContext, link: *mut Link) {
    // SAFETY: the pointer is the context that the kernel gave, which is valid for the whole run.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: the pointer is to the packet's socket, which the kernel keeps for the whole run.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return;
    }
    // SAFETY: the pointer is to a view of the same socket; of the link, as in `leaves`.
    unsafe {
        // The kernel keeps eight times the value.
        (*link).srtt_us = (*tcp).srtt_us >> 3;
        (*link).retransmits = (*tcp).total_retrans;
    }
}

#[inline(always)]
fn record(waits: *mut Waits, delay_ns: u64) {
    // SAFETY: the pointer is to a value that the map keeps until the program has ended; each access is to one of its
    // fields, and the index is within the array. The index goes through memory because the verifier would otherwise
    // reject, for a program without CAP_PERFMON, a pointer that is computed on several paths.
    unsafe {
        let bucket = bucket(delay_ns / 1000);
        write_volatile(addr_of_mut!((*waits).last_bucket), bucket);
        let index = read_volatile(addr_of!((*waits).last_bucket)) as usize & (BUCKETS - 1);
        let counter = addr_of_mut!((*waits).buckets[index]);
        *counter = (*counter).wrapping_add(1);
        (*waits).count = (*waits).count.wrapping_add(1);
        (*waits).sum_ns = (*waits).sum_ns.wrapping_add(delay_ns);
        if delay_ns > (*waits).max_ns {
            (*waits).max_ns = delay_ns;
        }
    }
}

/// The link of the packet's socket.
#[inline(always)]
fn link(ctx: &SkBuffContext) -> Option<*mut Link> {
    // SAFETY: the pointer is the context that the kernel gave.
    maps::link(unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) })
}

/// The sequence number behind the payload, by the headers; None without payload. Packets begin with the header of IP here; its
/// version, not the family of the socket, says which, since a socket for IPv6 may carry IPv4.
///
/// They are copied, which takes 20 to 40 ns more than to read them where they are: to compare a pointer into a packet with its
/// end, the verifier demands CAP_PERFMON before Linux 6.6 (d75e30dddf73, "bpf: Fix issue in verifying allow_ptr_leaks").
#[inline(always)]
fn payload_end(ctx: &SkBuffContext) -> Option<u32> {
    let len = ctx.skb.len();
    let head: [u8; 40] = load(ctx, 0)?;
    match head[0] >> 4 {
        4 => {
            if head[9] != TCP {
                return None;
            }
            let ip = (head[0] & 15) as u32 * 4;
            if ip == 20 {
                return behind(len, 20, [head[24], head[25], head[26], head[27]], head[32]);
            }
            let tcp: [u8; 16] = load(ctx, ip)?;
            behind(len, ip, [tcp[4], tcp[5], tcp[6], tcp[7]], tcp[12])
        }
        6 => {
            // TCP connections have no extension headers in practice.
            if head[6] != TCP {
                return None;
            }
            let tcp: [u8; 16] = load(ctx, 40)?;
            behind(len, 40, [tcp[4], tcp[5], tcp[6], tcp[7]], tcp[12])
        }
        _ => None,
    }
}

/// The same, by length of the packet and of its header of IP, and by what the header of TCP says.
#[inline(always)]
fn behind(len: u32, ip: u32, sequence: [u8; 4], offset: u8) -> Option<u32> {
    let headers = ip + (offset >> 4) as u32 * 4;
    if len <= headers {
        return None;
    }
    Some(u32::from_be_bytes(sequence).wrapping_add(len - headers))
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
