//! A connected stream socket, and connecting one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use io_uring::{opcode, types};
use socket2::{SockAddr, SockRef};

use super::driver;
use super::message::{Control, RecvMessage, SendMessage};
use super::op::{self, InFlight, Operation};
use super::standing::{Answer, Standing, Verdict};
use crate::limits::BUFFER_RECORD_BYTES;
use crate::pipes::Pipe;
use crate::sys;
use crate::transport::{Buffer, KernelTls, Owned, Splicer, TlsDirection, Transport};

/// A stream socket, TCP or Unix, on the ring of this thread. Clones are handles of the same socket.
///
/// When the last handle goes, the socket closes. Should an operation be in flight then, because its future was dropped
/// before or because a receive stands, the socket is shut down, so that the operation ends and closes it. A future counts as a
/// handle.
///
/// The descriptor is *not* `O_NONBLOCK`. On one that is, every operation completes at once with `EAGAIN`; on one that is
/// not, it waits inside the kernel (poll-armed, without a thread), and the calls that must not wait say so themselves.
/// `splice(2)`, though, asks the descriptor and nothing else, and would stop the whole thread on this one.
#[derive(Clone, Debug)]
pub struct Socket(Rc<Handle>);

/// What handles share. Operations hold the descriptor only.
#[derive(Debug)]
struct Handle {
    descriptor: Rc<OwnedFd>,
    /// The receive that stands, with the key by which the driver knows it.
    standing: RefCell<Option<(Rc<Standing>, usize)>>,
    /// Whether the kernel has a record layer here. What stands would meet records that are no data.
    has_records: Cell<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if Rc::strong_count(&self.descriptor) > 1 {
            sys::shutdown(self.descriptor.as_fd(), Shutdown::Both);
        }
    }
}

impl Socket {
    /// Takes over a connected stream socket that is not `O_NONBLOCK`.
    #[must_use]
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(Rc::new(Handle {
            descriptor: Rc::new(descriptor),
            standing: RefCell::default(),
            has_records: Cell::new(false),
        }))
    }

    /// Begins to connect, with `TCP_NODELAY` where there is TCP. It goes on until the kernel gives up, which may take
    /// minutes: bound it by dropping what is returned, or by shutting [`Connecting::socket`] down.
    ///
    /// # Errors
    /// What is known at once: no descriptors, no route, a path that does not exist. A Unix socket whose listener is
    /// full gives `WouldBlock`, and there is nothing to wait for.
    ///
    /// # Panics
    /// Outside [`start`](super::start).
    pub fn connect(address: &SockAddr) -> io::Result<Connecting> {
        let socket = socket2::Socket::new(address.domain(), socket2::Type::STREAM, None)?;
        if address.is_unix() {
            socket.connect(address)?;
            return Ok(Connecting { socket: Some(Self::new(socket.into())), waiting: None });
        }
        socket.set_tcp_nodelay(true)?;
        // Not the CONNECT operation: before Linux 6.4 its retry connects anew when it finds that the socket was shut
        // down meanwhile, so that it cannot be ended.
        socket.set_nonblocking(true)?;
        let waits = match socket.connect(address) {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EINTR) => true,
                _ => return Err(error),
            },
        };
        socket.set_nonblocking(false)?;
        let socket = Self::new(socket.into());
        let waiting = waits.then(|| socket.poll(libc::POLLOUT));
        Ok(Connecting { socket: Some(socket), waiting })
    }

    /// Receives into the spare room of `buffer` together with control messages, as `recvmsg(2)` does, for which there is
    /// room of `control_bytes`. The buffer must have spare room.
    pub fn recv_message(&self, buffer: Buffer, control_bytes: usize) -> RecvMessage {
        RecvMessage::submit(self, buffer, control_bytes)
    }

    /// Sends the filled bytes of `buffer` with control messages, as `sendmsg(2)` does: perhaps not all of the bytes. The
    /// messages go with the first byte.
    pub fn send_message(&self, buffer: Buffer, control: &[Control<'_>]) -> SendMessage {
        SendMessage::submit(self, buffer, control)
    }

    /// Has the kernel look after a peer that has gone silently: probes after `idle` without a byte, then every
    /// `interval`. `None` for `unacknowledged` leaves it to the kernel how long sent bytes may lack an acknowledgement
    /// before the connection is given up.
    ///
    /// # Errors
    /// The error of `setsockopt(2)`, `EOPNOTSUPP` on a Unix socket among them.
    pub fn keep_alive(
        &self,
        idle: Duration,
        interval: Duration,
        unacknowledged: Option<Duration>,
    ) -> io::Result<()> {
        let socket = SockRef::from(self);
        let probes = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(unacknowledged)
    }

    /// Probes a silent peer after `idle`, in whole seconds, instead of after what its listener says.
    ///
    /// # Errors
    /// The error of `setsockopt(2)`.
    pub fn probe_after(&self, idle: Duration) -> io::Result<()> {
        // Not by `socket2`, which would turn the probes on once more, with a call of its own.
        Ok(rustix::net::sockopt::set_tcp_keepidle(self, idle)?)
    }

    /// The number by which the kernel, and programs inside it, know the socket for as long as it lives (`SO_COOKIE`).
    ///
    /// # Errors
    /// The error of `getsockopt(2)`.
    pub fn cookie(&self) -> io::Result<u64> {
        SockRef::from(self).cookie()
    }

    /// The descriptor, for an operation to own.
    pub(super) fn descriptor(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.0.descriptor)
    }

    /// Receives into `buffer` once.
    fn receive_once(&self, mut buffer: Buffer) -> InFlight<Receive> {
        let spare = buffer.spare_mut();
        let (pointer, len) = (spare.as_mut_ptr(), bounded(spare.len()));
        let entry = opcode::Recv::new(types::Fd(self.as_fd().as_raw_fd()), pointer, len).build();
        let operation = Receive { buffer, _descriptor: self.descriptor() };
        // SAFETY: descriptor and buffer belong to the operation, whose buffer is a `Vec` behind a private field and is
        // not touched before completion. RECV into a buffer that is named completes once.
        unsafe { op::submit(operation, entry) }
    }

    /// The receive that stands for a buffer of this size: one that has begun before, even if it is to stop, or a new one where
    /// that is worth it.
    fn standing_for(&self, capacity: usize) -> Option<Rc<Standing>> {
        let mut kept = self.0.standing.borrow_mut();
        let is_bulk = capacity > BUFFER_RECORD_BYTES;
        if let Some((standing, key)) = &*kept {
            if is_bulk
                && standing.stop() == Verdict::Stop
                && let Some(driver) = driver::current()
            {
                driver.stop(*key);
            }
            return Some(Rc::clone(standing));
        }
        if is_bulk || self.0.has_records.get() {
            return None;
        }
        let (standing, key) = driver::current()?.stand(self.descriptor())?;
        *kept = Some((Rc::clone(&standing), key));
        Some(standing)
    }

    /// Stops the receive that stands, and hands what it has brought to `take`. None when nothing of it is left, and the socket
    /// is to be asked.
    fn settle(&self, take: impl FnOnce(&[u8]) -> io::Result<usize>) -> Option<io::Result<usize>> {
        if let Some((standing, key)) = &*self.0.standing.borrow()
            && standing.stop() == Verdict::Stop
            && let Some(driver) = driver::current()
        {
            driver.stop_now(*key);
        }
        self.take_ahead(take)
    }

    /// Hands what the receive that stands has brought unasked to `take`; `WouldBlock` when that is nothing. None when there is
    /// no such receive any more.
    fn take_ahead(
        &self,
        take: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut kept = self.0.standing.borrow_mut();
        let (standing, _) = kept.as_ref()?;
        if let Some(taken) = standing.take_ahead(take) {
            return Some(taken);
        }
        match standing.spend() {
            Ok(false) => Some(Err(io::ErrorKind::WouldBlock.into())),
            Ok(true) => {
                *kept = None;
                None
            }
            Err(error) => {
                *kept = None;
                Some(Err(error))
            }
        }
    }

    fn poll(&self, events: libc::c_short) -> Readiness {
        let operation = Ready { _descriptor: self.descriptor() };
        let flags = u32::from(events.cast_unsigned());
        let entry = opcode::PollAdd::new(types::Fd(self.as_fd().as_raw_fd()), flags).build();
        // SAFETY: the descriptor belongs to the operation, no memory is named, and POLL_ADD without `multi` completes
        // once.
        let in_flight = unsafe { op::submit(operation, entry) };
        Readiness { in_flight, _socket: self.clone() }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

impl Transport for Socket {
    type Recv = Recv;
    type Send = Send;

    fn recv(&self, buffer: Buffer) -> Recv {
        // A receive of nothing completes with zero, and the caller would take that for the end of the stream.
        assert!(buffer.spare() > 0, "a receive needs room");
        let how = match self.standing_for(buffer.capacity()) {
            Some(standing) => {
                standing.want(buffer);
                How::Standing(standing)
            }
            None => How::Once(self.receive_once(buffer)),
        };
        Recv { how, socket: self.clone() }
    }

    fn send(&self, mut buffer: Buffer) -> Send {
        if buffer.len() <= BUFFER_RECORD_BYTES
            && driver::current().is_some_and(|driver| driver.hurries())
        {
            let sent = self.try_send(buffer.filled());
            if !sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                buffer.consume(*sent.as_ref().unwrap_or(&0));
                return Send { how: Sending::Done(Some((sent, buffer))), _socket: self.clone() };
            }
        }
        let filled = buffer.filled();
        let (pointer, len) = (filled.as_ptr(), bounded(filled.len()));
        let entry = opcode::Send::new(types::Fd(self.as_fd().as_raw_fd()), pointer, len)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        let operation = Transmit { buffer, _descriptor: self.descriptor() };
        // SAFETY: descriptor and buffer belong to the operation, whose buffer is a `Vec` behind a private field and is
        // not touched before completion. SEND completes once.
        let in_flight = unsafe { op::submit(operation, entry) };
        Send { how: Sending::InFlight(in_flight), _socket: self.clone() }
    }

    fn try_recv(&self, buffer: &mut Buffer, count: usize) -> io::Result<usize> {
        let is_bulk = buffer.capacity() > BUFFER_RECORD_BYTES;
        let take = |bytes: &[u8]| Ok(buffer.append(&bytes[..bytes.len().min(count)]));
        if let Some(taken) = if is_bulk { self.settle(take) } else { self.take_ahead(take) } {
            return taken;
        }
        let spare = buffer.spare_mut();
        let count = count.min(spare.len());
        let count = sys::recv(self.as_fd(), &mut spare[..count])?;
        buffer.advance(count);
        Ok(count)
    }

    fn holds(&self, count: usize) -> bool {
        let stands = self.0.standing.borrow().is_some();
        stands || rustix::io::ioctl_fionread(self).map_or(true, |held| held >= count as u64)
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        sys::send(self.as_fd(), bytes)
    }

    async fn readable(&self) -> io::Result<()> {
        let standing = self.0.standing.borrow().as_ref().map(|(standing, _)| Rc::clone(standing));
        match standing {
            Some(standing) => {
                std::future::poll_fn(|cx| standing.poll_readable(cx)).await;
                Ok(())
            }
            None => self.poll(libc::POLLIN | libc::POLLRDHUP).await,
        }
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.poll(libc::POLLOUT)
    }

    fn turn(&self) -> impl Future<Output = ()> {
        super::no_op()
    }

    fn shutdown(&self, how: Shutdown) {
        sys::shutdown(self.as_fd(), how);
    }

    fn splicer(&self) -> Option<&dyn Splicer> {
        Some(self)
    }

    fn cookie(&self) -> Option<u64> {
        Self::cookie(self).ok()
    }

    fn is_connected(&self) -> bool {
        SockRef::from(self).peer_addr().is_ok()
    }

    fn acknowledge(&self) {
        match driver::current() {
            Some(driver) => driver.acknowledge_later(Rc::downgrade(&self.0.descriptor)),
            None => sys::acknowledge(self.as_fd()),
        }
    }

    fn reset_on_close(&self) {
        // A socket that takes no such option is one without windows.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn kernel_tls(&self) -> Option<&dyn KernelTls> {
        Some(self)
    }
}

impl Splicer for Socket {
    fn fill(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        if let Some(taken) = self.settle(|bytes| {
            Ok(rustix::io::write(pipe.write.as_fd(), &bytes[..bytes.len().min(count)])?)
        }) {
            return taken;
        }
        // The socket may be one that waits, and `splice(2)` then would: it is asked only when it has something.
        if !sys::peek(self.as_fd())? {
            return Ok(0);
        }
        sys::splice(self.as_fd(), pipe.write.as_fd(), count)
    }

    fn fill_opened(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        // Kernel TLS asks the call whether to wait, not the descriptor (`tls_sw_splice_read`).
        sys::splice(self.as_fd(), pipe.write.as_fd(), count)
    }

    fn drain(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        // Towards a socket `splice(2)` asks the descriptor whether to wait. It must not stay like this: operations that
        // begin on it would not wait either.
        sys::set_nonblocking(self.as_fd(), true)?;
        let result = sys::splice(pipe.read.as_fd(), self.as_fd(), count);
        sys::set_nonblocking(self.as_fd(), false)?;
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // Kernel TLS of Linux 6.1 queues a record without sending it when more is to come from the pipe. If the socket
            // takes nothing more then, because little unsent data is allowed (`tcp_notsent_lowat`), nobody ever sends it, and
            // the socket never becomes writable. Setting this option once more sends what is queued. A Unix socket has no
            // such option, and no such need.
            let _ = SockRef::from(self).set_tcp_nodelay(true);
        }
        result
    }
}

impl KernelTls for Socket {
    fn attach(&self) -> io::Result<()> {
        // What has been received is ciphertext that the layer would never see.
        if self.0.standing.borrow().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        sys::tls::attach(self.as_fd())?;
        self.0.has_records.set(true);
        Ok(())
    }

    fn set_key(&self, direction: TlsDirection, key: &ktls::CryptoInfo) -> io::Result<()> {
        sys::tls::set_key(self.as_fd(), direction, key)
    }

    fn recv_record(&self, into: &mut [u8]) -> io::Result<(u8, usize)> {
        sys::tls::recv_record(self.as_fd(), into)
    }

    fn sequence(&self, direction: TlsDirection) -> io::Result<u64> {
        sys::tls::sequence(self.as_fd(), direction)
    }

    fn send_record(&self, content_type: u8, message: &[u8]) -> io::Result<()> {
        sys::tls::send_record(self.as_fd(), content_type, message)
    }
}

/// A connection being made. Dropped before it is ready, it ends at once.
#[must_use = "futures do nothing unless awaited"]
pub struct Connecting {
    socket: Option<Socket>,
    waiting: Option<Readiness>,
}

impl Connecting {
    /// A handle of the socket, by which a deadline can end the wait: shut down, it completes with an error.
    ///
    /// # Panics
    /// After completion.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        self.socket.as_ref().expect("not yet completed")
    }
}

impl Future for Connecting {
    type Output = io::Result<Socket>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(waiting) = &mut self.waiting {
            let waited = ready!(Pin::new(waiting).poll(cx));
            self.waiting = None;
            let socket = self.socket();
            let outcome = waited.and_then(|()| connected(socket));
            if let Err(error) = outcome {
                self.socket = None;
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(self.socket.take().expect("not polled after completion")))
    }
}

/// Whether the wait has ended because of a connection.
fn connected(socket: &Socket) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match socket.take_error()? {
        Some(error) => Err(error),
        // Ended by a shutdown, it may have no error, but has no peer either.
        None => socket.peer_addr().map(drop),
    }
}

/// A receive in flight.
#[must_use = "a dropped receive loses bytes"]
pub struct Recv {
    // Before the socket, so that an unfinished operation is known to be abandoned when the handle goes.
    how: How,
    socket: Socket,
}

enum How {
    /// An operation of its own.
    Once(InFlight<Receive>),
    /// From the one that stands.
    Standing(Rc<Standing>),
    /// It has been told.
    Done,
}

impl Future for Recv {
    type Output = Owned;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Owned> {
        loop {
            let buffer = match &mut self.how {
                How::Once(in_flight) => return Pin::new(in_flight).poll(cx),
                How::Standing(standing) => match ready!(standing.poll(cx)) {
                    Answer::Done(owned) => {
                        self.how = How::Done;
                        return Poll::Ready(owned);
                    }
                    Answer::Over(buffer) => buffer,
                },
                How::Done => panic!("polled after completion"),
            };
            *self.socket.0.standing.borrow_mut() = None;
            self.how = How::Once(self.socket.receive_once(buffer));
        }
    }
}

impl Drop for Recv {
    fn drop(&mut self) {
        if let How::Standing(standing) = &self.how {
            standing.forget();
        }
    }
}

struct Receive {
    buffer: Buffer,
    _descriptor: Rc<OwnedFd>,
}

impl Operation for Receive {
    type Output = Owned;

    fn complete(mut self, result: io::Result<u32>) -> Owned {
        let result = result.and_then(count);
        if let Ok(count) = result {
            self.buffer.advance(count);
        }
        (result, self.buffer)
    }
}

/// A send in flight.
#[must_use = "a dropped send may or may not have happened"]
pub struct Send {
    // Before the socket, as for a receive.
    how: Sending,
    _socket: Socket,
}

enum Sending {
    /// It was made at once. None after it has been told.
    Done(Option<Owned>),
    InFlight(InFlight<Transmit>),
}

impl Future for Send {
    type Output = Owned;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Owned> {
        match &mut self.how {
            Sending::Done(owned) => Poll::Ready(owned.take().expect("not polled after completion")),
            Sending::InFlight(in_flight) => Pin::new(in_flight).poll(cx),
        }
    }
}

struct Transmit {
    buffer: Buffer,
    _descriptor: Rc<OwnedFd>,
}

impl Operation for Transmit {
    type Output = Owned;

    fn complete(mut self, result: io::Result<u32>) -> Owned {
        let result = result.and_then(count);
        if let Ok(count) = result {
            self.buffer.consume(count);
        }
        (result, self.buffer)
    }
}

/// A wait for readiness. It may end for nothing: Linux 6.1 reports a socket with kernel TLS as readable while it holds
/// a part of a record, again and again.
#[must_use = "futures do nothing unless awaited"]
pub struct Readiness {
    in_flight: InFlight<Ready>,
    _socket: Socket,
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.in_flight).poll(cx)
    }
}

struct Ready {
    _descriptor: Rc<OwnedFd>,
}

impl Operation for Ready {
    type Output = io::Result<()>;

    fn complete(self, result: io::Result<u32>) -> io::Result<()> {
        // Which events it were is of no interest: errors and hang-ups show at the call that was waited for.
        result.map(drop)
    }
}

/// A length as the ring takes it; the rest is left for the next operation.
pub(super) fn bounded(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A count as the kernel reported it.
pub(super) fn count(reported: u32) -> io::Result<usize> {
    usize::try_from(reported).map_err(io::Error::other)
}
