//! TCP connections that clients make: who they are.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use tlsplice_ebpf_common::{Conn, Stat};

use crate::maps::{CONNS, count, link};

// include/uapi/linux/bpf.h
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const STATE_CB_FLAG: i32 = 1 << 2;
const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;

/// Reads a field of the context where it is. Otherwise the compiler merges reads into one at an offset that it computes,
/// which the verifier refuses.
macro_rules! field {
    ($ops:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands out a context that is valid for the whole run.
        unsafe { read_volatile(addr_of!((*$ops).$($field)+)) }
    };
}

/// Follows a connection.
#[inline(always)]
pub fn changed(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    match field!(ops, op) {
        PASSIVE_ESTABLISHED_CB => established(ops),
        // SAFETY: a state change has two arguments, which the kernel has filled in.
        STATE_CB
            if unsafe { read_volatile(addr_of!((*ops).__bindgen_anon_1.args[1])) } == TCP_CLOSE =>
        {
            closed(ops);
        }
        _ => {}
    }
}

#[inline(always)]
fn cookie(ops: *mut bpf_sock_ops) -> u64 {
    // SAFETY: the pointer is the context that the kernel gave.
    unsafe { bpf_get_socket_cookie(ops.cast()) }
}

#[inline(always)]
fn established(ops: *mut bpf_sock_ops) {
    let family = field!(ops, family);
    let v4 = field!(ops, remote_ip4);
    let v6 = [
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ];
    let port = field!(ops, remote_port);
    // The words hold network order, whatever the order of the machine; this one is little-endian.
    let address = if family == AF_INET {
        [0, 0xffff_0000 | (v4 as u64) << 32]
    } else {
        [v6[0] as u64 | (v6[1] as u64) << 32, v6[2] as u64 | (v6[3] as u64) << 32]
    };
    let conn = Conn {
        address,
        port: u32::from_be(port) as u16 as u64,
        // The kernel keeps eight times the value.
        srtt_us: field!(ops, srtt_us) as u64 >> 3,
    };
    count(Stat::Established);
    if CONNS.insert(&cookie(ops), &conn, 0).is_err() {
        count(Stat::InsertErrors);
        return;
    }
    // SAFETY: the pointer is the context that the kernel gave.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_CB_FLAG) };
}

/// A connection that the gateway has not linked may never have been accepted: then nobody else deletes it.
#[inline(always)]
fn closed(ops: *mut bpf_sock_ops) {
    let cookie = cookie(ops);
    if link(cookie).is_none() {
        let _absent_if_deleted_meanwhile = CONNS.remove(&cookie);
    }
}
