//! What the gateway has the kernel observe: who connects, and how long bytes wait in the gateway.
//!
//! ```text
//! client --ingress--> client's socket   [gateway]   upstream's socket --egress--> upstream      Direction::Up
//! client <--egress--- client's socket   [gateway]   upstream's socket <-ingress-- upstream      Direction::Down
//! ```
//!
//! The first payload that arrives on one socket of a linked pair starts a delay; the first payload that then leaves the
//! other one, and was never sent before, ends it. Nothing here changes, delays or drops a packet.
#![no_std]
#![no_main]

mod maps;
mod packet;
mod socket;

use aya_ebpf::macros::{cgroup_skb, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};

/// Lets the packet pass, as both programs for packets always do.
const PASS: i32 = 1;

/// Payload arrives.
#[cgroup_skb(ingress)]
pub fn tlsplice_in(ctx: SkBuffContext) -> i32 {
    packet::arrived(&ctx);
    PASS
}

/// Payload leaves.
#[cgroup_skb(egress)]
pub fn tlsplice_out(ctx: SkBuffContext) -> i32 {
    packet::leaves(&ctx);
    PASS
}

/// A TCP connection changes.
#[sock_ops]
pub fn tlsplice_sock(ctx: SockOpsContext) -> u32 {
    socket::changed(&ctx);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Every helper in use is open to any licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
