//! The seam between what a connection decides and what the kernel does.
//!
//! A stage talks to a socket through [`Transport`] only. The gateway gives it a socket on a ring
//! (`uring::Socket`); a test gives it a double that returns short counts, `EAGAIN`, `EINTR` and errors at
//! every call.
//!
//! Receiving is an operation that owns its buffer until the kernel is done with it, and whose future may be kept
//! across turns of a caller: dropping it while in flight loses the bytes it may already have taken. A caller
//! therefore stores it, and ends it by [`Transport::shutdown`].

#[cfg(any(test, feature = "test-double"))]
pub mod double;

use std::future::Future;
use std::io;

use crate::pipes::Pipe;

/// A heap buffer with one filled region; what operations own while they are in flight.
///
/// Invariant: `start <= end <= capacity`. Bytes in `start..end` are filled, `end..capacity` is free for a receive.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Never grows. Not a `Box`: that would claim, whenever the buffer is moved, that nothing else points into it,
    /// while an operation in flight does.
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// A buffer of `capacity` bytes, zeroed once.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { storage: vec![0; capacity], start: 0, end: 0 }
    }

    /// Bytes filled and not yet consumed.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// The filled bytes, to be changed in place (decryption, dechunking).
    #[must_use]
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.end]
    }

    /// Room behind the filled bytes.
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.end..]
    }

    /// Count of filled bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is filled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Count of bytes behind the filled region.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.storage.len() - self.end
    }

    /// Size of the whole storage in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.storage.len()
    }

    /// Marks `count` bytes of the spare room as filled.
    ///
    /// # Panics
    /// When `count` is more than [`Buffer::spare`]: a defect of the caller, never caused by a peer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.spare(), "filled beyond the buffer");
        self.end += count;
    }

    /// Drops `count` bytes from the front; an emptied buffer starts over at zero.
    ///
    /// # Panics
    /// When `count` is more than [`Buffer::len`]: a defect of the caller, never caused by a peer.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "consumed more than was filled");
        self.start += count;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Drops all bytes.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Drops all bytes, and leaves `count` unused at the front of what comes.
    ///
    /// # Panics
    /// When `count` is more than [`Buffer::capacity`]: a defect of the caller.
    pub fn clear_indented(&mut self, count: usize) {
        assert!(count <= self.capacity(), "indented beyond the buffer");
        self.start = count;
        self.end = count;
    }

    /// Keeps the first `count` filled bytes.
    pub fn truncate(&mut self, count: usize) {
        self.end = self.end.min(self.start + count);
    }

    /// Moves the filled bytes to the front, so that all room is behind them.
    pub fn compact(&mut self) {
        self.storage.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    /// Appends as much of `bytes` as fits and returns the count taken.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.spare());
        self.storage[self.end..self.end + count].copy_from_slice(&bytes[..count]);
        self.end += count;
        count
    }
}

/// Result of an operation together with the buffer it owned.
pub type Owned = (io::Result<usize>, Buffer);

/// One connected stream socket.
///
/// Both halves may be used at once; at most one receive and one send are in flight.
pub trait Transport: Clone + 'static {
    /// A receive in flight. `Unpin`, so that it can be stored in a state and polled from there.
    type Recv: Future<Output = Owned> + Unpin;
    /// A send in flight.
    type Send: Future<Output = Owned> + Unpin;

    /// Receives into the spare room of `buffer`, which the operation advances by the count it returns. Completes with 0
    /// at the end of the stream. The buffer must have spare room. One that is empty may come back as another one, of the same
    /// size or larger.
    fn recv(&self, buffer: Buffer) -> Self::Recv;

    /// Sends the filled bytes of `buffer`, perhaps not all of them; the operation consumes what it sent.
    fn send(&self, buffer: Buffer) -> Self::Send;

    /// Receives at most `count` bytes without waiting; `WouldBlock` when there is nothing. Advances the buffer.
    ///
    /// # Errors
    /// The error of `recv(2)`; `EINTR` has been retried.
    fn try_recv(&self, buffer: &mut Buffer, count: usize) -> io::Result<usize>;

    /// Whether a receive would find so many bytes at least, or how many it would find cannot be told.
    fn holds(&self, count: usize) -> bool;

    /// Sends without waiting; `WouldBlock` when the socket is full.
    ///
    /// # Errors
    /// The error of `send(2)`; `EINTR` has been retried.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Waits until a receive would not block (or the stream ended or failed).
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// Waits until a send would not block (or the stream failed).
    fn writable(&self) -> impl Future<Output = io::Result<()>>;

    /// Lets everybody else on this thread go on with what is ready, once, from when it is first polled.
    fn turn(&self) -> impl Future<Output = ()>;

    /// Shuts one or both directions; operations in flight on them then complete. Never waits.
    fn shutdown(&self, how: std::net::Shutdown);

    /// How bytes move between this socket and a pipe; None where they cannot.
    fn splicer(&self) -> Option<&dyn Splicer>;

    /// The number by which the kernel, and programs inside it, know this socket; None where it has none.
    fn cookie(&self) -> Option<u64>;

    /// Whether the connection still stands: not after a reset.
    fn is_connected(&self) -> bool;

    /// Has what was received acknowledged when the thread has nothing else to do, and what comes next not by receiving it.
    ///
    /// Of a stream that goes one way the kernel acknowledges each small part as soon as it is received, in the call that
    /// receives it (`tcp_cleanup_rbuf`): before it can be passed on, and in three times the time (9 us instead of 3).
    fn acknowledge(&self);

    /// Has its end reset the connection, so that the peer does not wait with bytes that nobody takes any more.
    ///
    /// Without it a peer whose window was shut waits for a minute: a socket that was shut down tells of no room when its last
    /// bytes are taken (`tcp_cleanup_rbuf`), and once it is closed in `FIN_WAIT2` it answers no question for it
    /// (`tcp_timewait_state_process`).
    fn reset_on_close(&self);

    /// The record layer that the kernel has for this socket; None where there can be none.
    fn kernel_tls(&self) -> Option<&dyn KernelTls>;
}

/// A socket whose bytes can move inside the kernel.
pub trait Splicer {
    /// Moves at most `count` bytes from this socket, which carries no TLS, into an empty pipe. Never waits.
    ///
    /// # Errors
    /// The error of `splice(2)`, of which `WouldBlock` says that nothing is there.
    fn fill(&self, pipe: &Pipe, count: usize) -> io::Result<usize>;

    /// The same for a socket whose records the kernel opens: moves data of one record at most.
    ///
    /// # Errors
    /// As [`Splicer::fill`]; `EINVAL` says that a record which is no data stands first, or what is no record at all.
    fn fill_opened(&self, pipe: &Pipe, count: usize) -> io::Result<usize>;

    /// Moves at most `count` bytes from a pipe to this socket. Never waits.
    ///
    /// # Errors
    /// The error of `splice(2)`, of which `WouldBlock` says that there is no room.
    fn drain(&self, pipe: &Pipe, count: usize) -> io::Result<usize>;
}

/// One direction of a record layer in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsDirection {
    /// What we send is sealed.
    Send,
    /// What we receive is opened.
    Receive,
}

/// A TCP socket whose record layer the kernel can take over (`Documentation/networking/tls.rst`). None of the calls
/// waits.
pub trait KernelTls {
    /// Attaches the layer, still without keys. There is no way back.
    ///
    /// # Errors
    /// `ENOENT` without the module, `EEXIST` the second time.
    fn attach(&self) -> io::Result<()>;

    /// Sets the key of one direction, or changes it.
    ///
    /// # Errors
    /// `ENOENT` without the cipher, `EBUSY` where keys cannot be changed.
    fn set_key(&self, direction: TlsDirection, key: &ktls::CryptoInfo) -> io::Result<()>;

    /// Receives from one record, or from several that carry data; returns the content type and the count.
    ///
    /// # Errors
    /// The error of `recvmsg(2)`; `EINTR` has been retried.
    fn recv_record(&self, into: &mut [u8]) -> io::Result<(u8, usize)>;

    /// Records protected so far by the key of one direction.
    ///
    /// # Errors
    /// The error of `getsockopt(2)`.
    fn sequence(&self, direction: TlsDirection) -> io::Result<u64>;

    /// Sends `message` as one record of this content type.
    ///
    /// # Errors
    /// The error of `sendmsg(2)`; `EINTR` has been retried.
    fn send_record(&self, content_type: u8, message: &[u8]) -> io::Result<()>;
}
