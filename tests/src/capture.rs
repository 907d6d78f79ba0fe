use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;

/// Largest frame: segments of the loopback device grow to 64 KiB with their headers.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Memory for frames that nobody has looked at yet, in bytes.
const BACKLOG_BYTES: usize = 64 << 20;

/// After so long without a frame everything has been seen.
const QUIET: Duration = Duration::from_millis(200);

/// Watches all TCP segments over IPv4 of this machine, as the wire would carry them.
pub struct Capture {
    is_stopped: Arc<AtomicBool>,
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
    /// Starts to watch.
    ///
    /// # Errors
    /// `PermissionDenied` for others than root.
    pub fn start() -> io::Result<Self> {
        let protocol = NonZeroU32::new(u32::from(EVERY_PROTOCOL.to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        set_socket_recv_buffer_size_force(&socket, BACKLOG_BYTES)
            .or_else(|_| set_socket_recv_buffer_size(&socket, BACKLOG_BYTES))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(QUIET))?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let thread = thread::spawn(move || watch(&socket, &stopped));
        Ok(Self { is_stopped, thread })
    }

    /// Everything seen, once nothing more comes.
    ///
    /// # Panics
    /// When the kernel stopped telling.
    #[must_use]
    pub fn finish(self) -> Vec<Segment> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic").expect("the kernel tells")
    }
}

fn watch(socket: &OwnedFd, is_stopped: &AtomicBool) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        match recv(socket, &mut frame[..], RecvFlags::empty()) {
            Ok((count, _)) => segments.extend(segment(&frame[..count])),
            Err(rustix::io::Errno::AGAIN) if is_stopped.load(Ordering::Relaxed) => {
                return Ok(segments);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a frame carries, if that is something above TCP and IPv4.
fn segment(frame: &[u8]) -> Option<Segment> {
    const ETHERNET: usize = 14;
    let packet = frame.get(ETHERNET..)?;
    let is_tcp = frame[12..ETHERNET] == [8, 0] && *packet.get(9)? == 6;
    if !is_tcp {
        return None;
    }
    let tcp = packet.get(usize::from(packet[0] & 15) * 4..)?;
    let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    (!payload.is_empty()).then(|| Segment { ports: [port(0), port(2)], payload: payload.to_vec() })
}
