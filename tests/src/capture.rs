use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;

/// `IPPROTO_RAW` of netinet/in.h: whole packets are sent, with their header.
const RAW: u32 = 255;

/// Protocol numbers of TCP and UDP.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Bytes before the packet.
const ETHERNET: usize = 14;

/// Largest frame: segments of the loopback device grow to 64 KiB with their headers.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Memory for frames that nobody has looked at yet, in bytes.
const BACKLOG_BYTES: usize = 64 << 20;

/// How long a watcher waits for a frame before it gives up, and how often the end is told again: it may get lost.
const MOMENT: Duration = Duration::from_millis(200);

/// Watches TCP segments over IPv4 of some ports of this machine, as the wire would carry them. Others are let go at once:
/// whatever else is busy on this machine costs no memory.
pub struct Capture {
    ports: Arc<Mutex<BTreeSet<u16>>>,
    /// What it sends to itself is the end: everything before that has been seen then, however busy the machine is.
    end: UdpSocket,
    thread: JoinHandle<io::Result<Vec<Segment>>>,
}

/// What a segment carried, and the ports it went between.
#[derive(Debug)]
pub struct Segment {
    /// Source and destination.
    pub ports: [u16; 2],
    /// Bytes above TCP.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts to watch; no port yet.
    ///
    /// # Errors
    /// `PermissionDenied` for others than root.
    pub fn start() -> io::Result<Self> {
        let socket = watcher()?;
        let end = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let end_port = end.local_addr()?.port();
        let ports = Arc::default();
        let watched = Arc::clone(&ports);
        let thread = thread::spawn(move || watch(&socket, &watched, end_port));
        Ok(Self { ports, end, thread })
    }

    /// From here on segments from and to this port are kept.
    pub fn add(&self, port: u16) {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
    }

    /// Everything seen, once nothing more comes.
    ///
    /// # Panics
    /// When the kernel stopped telling.
    #[must_use]
    pub fn finish(self) -> Vec<Segment> {
        let address = self.end.local_addr().expect("it is bound");
        while !self.thread.is_finished() {
            self.end.send_to(b"end", address).expect("it can be sent");
            thread::sleep(MOMENT);
        }
        self.thread.join().expect("it does not panic").expect("the kernel tells")
    }
}

/// A network that delivers segments twice.
pub struct Repeater {
    watcher: OwnedFd,
    sender: OwnedFd,
}

impl Repeater {
    /// Starts to watch.
    ///
    /// # Errors
    /// `PermissionDenied` for others than root.
    pub fn start() -> io::Result<Self> {
        let (flags, raw) = (SocketFlags::CLOEXEC, NonZeroU32::new(RAW).map(Protocol::from_raw));
        let sender = socket_with(AddressFamily::INET, SocketType::RAW, flags, raw)?;
        Ok(Self { watcher: watcher()?, sender })
    }

    /// Delivers once more the first segment with payload that was sent from this port since the start.
    ///
    /// # Errors
    /// When none was seen, or the kernel refuses.
    pub fn repeat(&self, port: u16) -> io::Result<()> {
        let mut frame = vec![0; FRAME_BYTES_MAX];
        loop {
            let (count, _) = recv(&self.watcher, &mut frame[..], RecvFlags::empty())?;
            let frame = &mut frame[..count];
            if segment(frame).is_some_and(|segment| segment.ports[0] == port) {
                let packet = &mut frame[ETHERNET..];
                sum(packet);
                let to = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
                sendto(&self.sender, packet, SendFlags::empty(), &to)?;
                return Ok(());
            }
        }
    }
}

/// Writes the checksum of TCP (RFC 9293, section 3.1), which a loopback device leaves out, into a packet of IPv4.
fn sum(packet: &mut [u8]) {
    let tcp = usize::from(packet[0] & 15) * 4;
    packet[tcp + 16..tcp + 18].fill(0);
    let length = u32::try_from(packet.len() - tcp).unwrap_or(u32::MAX);
    let words = |bytes: &[u8]| -> u32 {
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        bytes.chunks(2).map(word).sum()
    };
    // Addresses, protocol and length come before the segment.
    let mut sum = words(&packet[12..20]) + u32::from(TCP) + length + words(&packet[tcp..]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    packet[tcp + 16..tcp + 18].copy_from_slice(&[high, low]);
}

/// A socket that sees every frame of this machine.
fn watcher() -> io::Result<OwnedFd> {
    let protocol = NonZeroU32::new(u32::from(EVERY_PROTOCOL.to_be())).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
    set_socket_recv_buffer_size_force(&socket, BACKLOG_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(&socket, BACKLOG_BYTES))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(MOMENT))?;
    Ok(socket)
}

fn watch(
    socket: &OwnedFd,
    ports: &Mutex<BTreeSet<u16>>,
    end_port: u16,
) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        match recv(socket, &mut frame[..], RecvFlags::empty()) {
            Ok((count, _)) => {
                let frame = &frame[..count];
                if datagram_port(frame) == Some(end_port) {
                    return Ok(segments);
                }
                let watched = ports.lock().unwrap_or_else(PoisonError::into_inner);
                let is_watched =
                    |segment: &Segment| segment.ports.iter().any(|port| watched.contains(port));
                segments.extend(segment(frame).filter(is_watched));
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a frame carries, if that is IPv4.
fn packet(frame: &[u8]) -> Option<&[u8]> {
    let is_ipv4 = frame.get(12..ETHERNET)? == [8, 0];
    frame.get(ETHERNET..).filter(|_| is_ipv4)
}

/// The destination of a datagram of UDP.
fn datagram_port(frame: &[u8]) -> Option<u16> {
    let packet = packet(frame).filter(|packet| packet.get(9) == Some(&UDP))?;
    let udp = packet.get(usize::from(packet[0] & 15) * 4..)?;
    Some(u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]))
}

/// What a frame carries, if that is something above TCP and IPv4.
fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = packet(frame).filter(|packet| packet.get(9) == Some(&TCP))?;
    let tcp = packet.get(usize::from(packet[0] & 15) * 4..)?;
    let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    (!payload.is_empty()).then(|| Segment { ports: [port(0), port(2)], payload: payload.to_vec() })
}
