//! A bound socket and the connections that arrive there.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{opcode, types};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockRef, TcpKeepalive, Type};

use super::op::{self, InFlight, Operation};
use super::socket::Socket;
use crate::limits::ACCEPTS_AT_ONCE_MAX;
use crate::sys;

/// How a listener is made. Accepted sockets inherit all of it from the kernel, and none of it costs a call per
/// connection. `TCP_NODELAY` is always set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted; the kernel bounds it by `net.core.somaxconn`.
    pub backlog: u32,
    /// Silence after which the kernel begins to probe the peer, and the pause between probes. None: never.
    pub keep_alive: Option<(Duration, Duration)>,
    /// How long sent bytes may lack an acknowledgement before the kernel gives the connection up
    /// (`TCP_USER_TIMEOUT`). None: the kernel's own bound, about 15 minutes.
    pub unacknowledged: Option<Duration>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096, keep_alive: None, unacknowledged: None }
    }
}

/// Why no connection was accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// [`Listener::close`] was called. There will be no more.
    #[error("the listener was closed")]
    Closed,
    /// The process or the system is out of descriptors or of memory for sockets. Connections wait in the backlog; the
    /// next accept fails likewise, at once, until something is closed, so pause before it.
    #[error("no descriptors or memory left to accept a connection: {0}")]
    Exhausted(#[source] io::Error),
    /// The listener is of no further use.
    #[error("cannot accept connections: {0}")]
    Broken(#[source] io::Error),
}

/// A bound TCP socket of one thread. Each thread binds its own to the same address, and the kernel shares connections
/// out among them (`SO_REUSEPORT`).
///
/// Dropping it resets the connections that wait in its backlog. One that arrives in the moment between may stay open
/// without an owner; to be exact, call [`Listener::close`] and accept until [`AcceptError::Closed`].
#[derive(Debug)]
pub struct Listener {
    descriptor: Rc<OwnedFd>,
    pending: RefCell<Option<Pending>>,
    /// Taken out of the backlog together with another one.
    waiting: RefCell<VecDeque<(OwnedFd, SocketAddr)>>,
    closed: Cell<bool>,
}

impl Listener {
    /// Binds to `address` and listens. Port 0 takes a free one. An IPv6 address takes IPv6 only, also `[::]`.
    ///
    /// # Errors
    /// The error of `socket(2)`, `setsockopt(2)`, `bind(2)` or `listen(2)`.
    pub fn bind(address: SocketAddr, options: &ListenOptions) -> io::Result<Self> {
        let socket =
            socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some((idle, interval)) = options.keep_alive {
            let probes = TcpKeepalive::new().with_time(idle).with_interval(interval);
            socket.set_tcp_keepalive(&probes)?;
        }
        socket.set_tcp_user_timeout(options.unacknowledged)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        Ok(Self {
            descriptor: Rc::new(socket.into()),
            pending: RefCell::new(None),
            waiting: RefCell::default(),
            closed: Cell::new(false),
        })
    }

    /// Where it is bound, with the port that was taken.
    ///
    /// # Errors
    /// The error of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&self.descriptor).local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Waits for the next connection. Giving the future up loses nothing: the next call goes on waiting. Connections
    /// that broke before they were accepted are passed over.
    ///
    /// An operation takes one connection, and completes once in a turn of the ring, which is long when there is much to
    /// do: what waits behind it is taken with it, and the next calls return at once.
    ///
    /// One task at a time: a second would take the place of the first.
    ///
    /// # Errors
    /// As [`AcceptError`] says.
    ///
    /// # Panics
    /// Outside [`start`](super::start).
    pub async fn accept(&self) -> Result<(Socket, SocketAddr), AcceptError> {
        loop {
            let waiting = self.waiting.borrow_mut().pop_front();
            if let Some((descriptor, address)) = waiting {
                return Ok((Socket::new(descriptor), address));
            }
            match poll_fn(|cx| self.poll_accept(cx)).await {
                Ok((descriptor, address)) => {
                    self.take_waiting();
                    return Ok((Socket::new(descriptor), address));
                }
                Err(error) => self.judge(error)?,
            }
        }
    }

    /// Empties the backlog, as far as its connections are taken at once. An error is left to the next operation, which
    /// meets it again.
    fn take_waiting(&self) {
        // Only for these calls: an operation would end at once instead of waiting. None is in flight here.
        if sys::set_nonblocking(self.as_fd(), true).is_err() {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        while waiting.len() < ACCEPTS_AT_ONCE_MAX
            && let Ok((socket, address)) = SockRef::from(&self.descriptor).accept()
        {
            // An address of another family cannot come from this socket.
            waiting.extend(address.as_socket().map(|address| (socket.into(), address)));
        }
        if let Err(error) = sys::set_nonblocking(self.as_fd(), false) {
            tracing::error!("a listener cannot be made to wait again: {error}");
        }
    }

    /// Stops listening. The accept in flight, or else the next one, ends with [`AcceptError::Closed`] after the
    /// connection that it may have got.
    pub fn close(&self) {
        self.closed.set(true);
        sys::shutdown(self.descriptor.as_fd(), Shutdown::Both);
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(OwnedFd, SocketAddr)>> {
        let mut pending = self.pending.borrow_mut();
        let accept = pending.get_or_insert_with(|| Accept::submit(Rc::clone(&self.descriptor)));
        let accepted = Pin::new(&mut accept.0).poll(cx);
        if accepted.is_ready() {
            *pending = None;
        }
        accepted
    }

    /// Whether to go on after `error`; see "Error handling" in accept(2) for those that concern one connection only.
    fn judge(&self, error: io::Error) -> Result<(), AcceptError> {
        match error.raw_os_error() {
            Some(libc::EINVAL) if self.closed.get() => Err(AcceptError::Closed),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                Err(AcceptError::Exhausted(error))
            }
            Some(
                libc::EINTR
                | libc::EAGAIN
                | libc::ECONNABORTED
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH,
            ) => Ok(()),
            _ => Err(AcceptError::Broken(error)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
        // Takes out, and closes, a connection whose completion has been seen.
        if op::is_running() && self.pending.get_mut().is_some() {
            drop(self.poll_accept(&mut Context::from_waker(Waker::noop())));
        }
    }
}

/// The accept in flight.
struct Pending(InFlight<Accept>);

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

struct Accept {
    peer: Rc<UnsafeCell<Peer>>,
    _listener: Rc<OwnedFd>,
}

/// Where the kernel writes the peer's address.
struct Peer {
    storage: SockAddrStorage,
    len: libc::socklen_t,
}

impl Accept {
    fn submit(listener: Rc<OwnedFd>) -> Pending {
        let storage = SockAddrStorage::zeroed();
        let len = storage.size_of();
        let peer = Rc::new(UnsafeCell::new(Peer { storage, len }));
        // SAFETY: nothing else has a pointer to it yet.
        let inside = unsafe { &mut *peer.get() };
        let (storage, len) = (&raw mut inside.storage, &raw mut inside.len);
        let entry = opcode::Accept::new(types::Fd(listener.as_raw_fd()), storage.cast(), len)
            .flags(libc::SOCK_CLOEXEC)
            .build();
        let operation = Self { peer, _listener: listener };
        // SAFETY: descriptor and address belong to the operation; the latter is an `Rc<UnsafeCell<_>>` that is not
        // touched before completion, with a storage that is larger than any address. ACCEPT without `multi` completes
        // once.
        Pending(unsafe { op::submit(operation, entry) })
    }
}

impl Operation for Accept {
    type Output = io::Result<(OwnedFd, SocketAddr)>;

    fn complete(self, result: io::Result<u32>) -> Self::Output {
        let descriptor = i32::try_from(result?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for this operation, which completes once: nobody else owns
        // it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let peer = Rc::into_inner(self.peer).ok_or(io::ErrorKind::InvalidData)?.into_inner();
        // SAFETY: the kernel has filled the storage in, for as many bytes as it says, none of them beyond it.
        let address = unsafe { SockAddr::new(peer.storage, peer.len) };
        let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok((descriptor, address))
    }
}
