//! System calls that are not operations on a ring.
//!
//! None of them waits: they are made between two operations, on a thread that serves every other connection too.
#![expect(unsafe_code, reason = "system calls; each block states what the kernel requires")]

/// The record layer of the kernel.
pub mod tls;

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::SockRef;

use crate::limits::PIPE_NARROW_BYTES;

/// Receives what is there into `into`, without waiting, whether or not the socket is `O_NONBLOCK`. Zero is the end of
/// the stream (or an empty `into`).
///
/// # Errors
/// The error of `recv(2)`, of which `WouldBlock` says that nothing is there; `EINTR` is retried.
pub fn recv(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    retried(|| {
        // SAFETY: the pointer and the length are those of one slice that is borrowed exclusively for the call, so that
        // the kernel writes initialised memory that nobody else reads. The descriptor is borrowed, hence open.
        unsafe {
            libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT)
        }
    })
}

/// Sends what the socket takes of `bytes`, without waiting and without SIGPIPE.
///
/// # Errors
/// The error of `send(2)`, of which `WouldBlock` says that the socket is full; `EINTR` is retried.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retried(|| {
        // SAFETY: the pointer and the length are those of one slice that is borrowed for the call; the kernel only
        // reads it. The descriptor is borrowed, hence open.
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }
    })
}

/// Whether a receive would find something: `Some` with whether that is a byte rather than the end.
///
/// # Errors
/// The error of `recv(2)`, of which `WouldBlock` says that nothing is there; `EINTR` is retried.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    let count = retried(|| {
        // SAFETY: the pointer is to one live, writable byte, and the length says so. The descriptor is borrowed.
        unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) }
    })?;
    Ok(count > 0)
}

/// Moves at most `count` bytes between a pipe and a socket, without waiting for the pipe. It waits for the socket where
/// that is not `O_NONBLOCK` and has nothing (or no room).
///
/// # Errors
/// The error of `splice(2)`.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let null = std::ptr::null_mut();
    // SAFETY: both descriptors are borrowed, hence open; no offsets are named.
    let moved = unsafe { libc::splice(from.as_raw_fd(), null, to.as_raw_fd(), null, count, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Whether `poll(2)` reports a socket as readable within `time`. Waits, so not for a thread that serves.
///
/// # Errors
/// The error of `poll(2)`.
pub fn readable_within(socket: BorrowedFd<'_>, time: std::time::Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live, writable entry, and the count says so. The descriptor is borrowed, hence open.
    let count = unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count > 0) }
}

/// Sets or clears `O_NONBLOCK`.
///
/// # Errors
/// The error of `ioctl(2)`.
pub fn set_nonblocking(socket: BorrowedFd<'_>, is_nonblocking: bool) -> io::Result<()> {
    let mut value = libc::c_int::from(is_nonblocking);
    // SAFETY: the pointer is to a live integer, which this request reads. The descriptor is borrowed, hence open.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONBIO, &raw mut value) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A pipe of `bytes`, or of a smaller one of the sizes in [`limits`](crate::limits), or of what the system allows: its reading
/// and its writing end, neither of which waits, and its capacity.
///
/// # Errors
/// The error of `pipe2(2)`.
pub fn pipe(bytes: usize) -> io::Result<(OwnedFd, OwnedFd, usize)> {
    let mut ends = [0; 2];
    // SAFETY: the pointer is to two live, writable integers.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    let read = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    let resize = |bytes| {
        let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open; the call names no memory. Beyond the user's share of pages it fails, and the
        // pipe keeps the size it has.
        let got = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, wanted) };
        (got >= 0).then_some(got)
    };
    let sizes = [bytes, bytes.min(PIPE_NARROW_BYTES)];
    let got = sizes.into_iter().find_map(resize).unwrap_or_else(|| {
        // SAFETY: as above.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ) }
    });
    let capacity = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok((read, write, capacity))
}

/// Shuts one or both directions of a socket, or makes a listener stop. Operations that wait on them complete.
///
/// Errors are of no use to a caller: the one there is, `ENOTCONN`, says that the peer was faster.
pub fn shutdown(socket: BorrowedFd<'_>, how: Shutdown) {
    drop(SockRef::from(&socket).shutdown(how));
}

/// Has a TCP socket acknowledge what it has received, and what it receives next not at once but when this is called again, with
/// what it sends, or when the kernel's patience ends (40 ms). Nothing comes of it on a socket of another kind.
pub fn acknowledge(socket: BorrowedFd<'_>) {
    let be_quick = |is_quick| rustix::net::sockopt::set_tcp_quickack(socket, is_quick);
    // Turning it on sends what is due, turning it off begins to wait (`__tcp_sock_set_quickack`).
    let _ = be_quick(true).and_then(|()| be_quick(false));
}

/// Raises the bound on open descriptors (`RLIMIT_NOFILE`) to what the administrator allows, and returns it.
///
/// # Errors
/// The error of `getrlimit(2)` or `setrlimit(2)`; the bound is unchanged then.
pub fn raise_descriptors_max() -> io::Result<u64> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the pointer is to a live, writable `rlimit`.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `getrlimit` succeeded, so it has filled the structure in.
    let mut limit = unsafe { limit.assume_init() };
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a live, initialised `rlimit`, which the kernel only reads.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// Calls until the outcome is not `EINTR`, and turns it into a result.
fn retried(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn neither_call_waits_on_a_blocking_socket() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut into = [0; 16];
        let empty = recv(here.as_fd(), &mut into).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);

        assert_eq!(send(there.as_fd(), b"hello").unwrap(), 5);
        assert_eq!(recv(here.as_fd(), &mut into).unwrap(), 5);
        assert_eq!(&into[..5], b"hello");

        let full = loop {
            if let Err(error) = send(here.as_fd(), &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_shut_by_the_peer_ends_and_refuses() {
        let (here, there) = UnixStream::pair().unwrap();
        shutdown(there.as_fd(), Shutdown::Both);
        assert_eq!(recv(here.as_fd(), &mut [0; 1]).unwrap(), 0);
        let broken = send(here.as_fd(), b"x").unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
        drop(there);
        shutdown(here.as_fd(), Shutdown::Both);
    }

    #[test]
    fn the_bound_on_descriptors_is_raised_once_and_then_stays() {
        let first = raise_descriptors_max().unwrap();
        assert_eq!(raise_descriptors_max().unwrap(), first);
    }
}
