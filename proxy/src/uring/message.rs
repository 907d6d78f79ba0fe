//! Receiving and sending with control messages: how kernel TLS tells the type of a record.

use std::cell::UnsafeCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use io_uring::{opcode, types};

use super::op::{self, InFlight, Operation};
use super::socket::{Socket, count};
use crate::transport::{Buffer, Owned};

/// Size of `struct cmsghdr` of the kernel: `size_t` length, then two `int`s.
const HEADER_BYTES: usize = size_of::<usize>() + 2 * size_of::<i32>();

/// One control message, such as level `SOL_TLS`, kind `TLS_GET_RECORD_TYPE` with one byte of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control<'a> {
    /// `cmsg_level`.
    pub level: i32,
    /// `cmsg_type`.
    pub kind: i32,
    /// What follows the header.
    pub data: &'a [u8],
}

impl Control<'_> {
    /// Room that a message with `data_bytes` takes, in bytes (`CMSG_SPACE`).
    #[must_use]
    pub const fn space(data_bytes: usize) -> usize {
        HEADER_BYTES + data_bytes.next_multiple_of(size_of::<usize>())
    }

    fn append_to(&self, bytes: &mut Vec<u8>) {
        let end = bytes.len() + Self::space(self.data.len());
        bytes.extend_from_slice(&(HEADER_BYTES + self.data.len()).to_ne_bytes());
        bytes.extend_from_slice(&self.level.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(self.data);
        bytes.resize(end, 0);
    }
}

/// What came with the bytes of a receive.
#[derive(Debug)]
pub struct Received {
    /// Bytes received; the buffer has been advanced by them. Zero is the end of the stream.
    pub count: usize,
    /// Flags of the message: `MSG_EOR` for a complete record, `MSG_CTRUNC` when control messages did not fit.
    pub flags: i32,
    control: Vec<u8>,
}

impl Received {
    /// The control messages, in order. Ends early where the bytes make no sense.
    pub fn control(&self) -> impl Iterator<Item = Control<'_>> {
        let mut rest = self.control.as_slice();
        std::iter::from_fn(move || {
            let (length, fields) = rest.split_first_chunk()?;
            let (level, fields) = fields.split_first_chunk()?;
            let (kind, fields) = fields.split_first_chunk()?;
            let data_bytes = usize::from_ne_bytes(*length).checked_sub(HEADER_BYTES)?;
            let data = fields.get(..data_bytes)?;
            // The padding of the last message may be missing.
            rest = rest.get(Control::space(data_bytes)..).unwrap_or_default();
            Some(Control {
                level: i32::from_ne_bytes(*level),
                kind: i32::from_ne_bytes(*kind),
                data,
            })
        })
    }
}

/// `struct msghdr` and what it points to. The header comes first.
#[repr(C)]
struct Parts {
    header: libc::msghdr,
    slice: libc::iovec,
}

/// A header for one slice of bytes and one region of control bytes, on the heap.
fn parts(
    bytes: *mut u8,
    len: usize,
    control: *mut u8,
    control_len: usize,
) -> Rc<UnsafeCell<Parts>> {
    // SAFETY: all bits zero are a valid `msghdr`: integers, and pointers that may be null.
    let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
    let slice = libc::iovec { iov_base: bytes.cast(), iov_len: len };
    let parts = Rc::new(UnsafeCell::new(Parts { header, slice }));
    // SAFETY: nothing else has a pointer to the parts yet.
    let inside = unsafe { &mut *parts.get() };
    inside.header.msg_iov = &raw mut inside.slice;
    inside.header.msg_iovlen = 1;
    if control_len > 0 {
        inside.header.msg_control = control.cast();
        inside.header.msg_controllen = control_len;
    }
    parts
}

/// A receive with control messages in flight.
#[must_use = "a dropped receive loses bytes"]
pub struct RecvMessage {
    in_flight: InFlight<Receive>,
    _socket: Socket,
}

impl RecvMessage {
    pub(super) fn submit(socket: &Socket, mut buffer: Buffer, control_bytes: usize) -> Self {
        let spare = buffer.spare_mut();
        assert!(!spare.is_empty(), "a receive needs room");
        let mut control = vec![0; control_bytes];
        let parts = parts(spare.as_mut_ptr(), spare.len(), control.as_mut_ptr(), control_bytes);
        let header = parts.get().cast::<libc::msghdr>();
        let entry = opcode::RecvMsg::new(types::Fd(socket.as_fd().as_raw_fd()), header).build();
        let operation = Receive { buffer, control, parts, _descriptor: socket.descriptor() };
        // SAFETY: descriptor, buffer, control bytes and header belong to the operation; the first two are `Vec`s, the
        // last is an `Rc<UnsafeCell<_>>` of which the header is the first field (`repr(C)`), and none is touched before
        // completion. RECVMSG without a buffer group completes once.
        let in_flight = unsafe { op::submit(operation, entry) };
        Self { in_flight, _socket: socket.clone() }
    }
}

impl Future for RecvMessage {
    type Output = (io::Result<Received>, Buffer);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.in_flight).poll(cx)
    }
}

struct Receive {
    buffer: Buffer,
    control: Vec<u8>,
    parts: Rc<UnsafeCell<Parts>>,
    _descriptor: Rc<OwnedFd>,
}

impl Operation for Receive {
    type Output = (io::Result<Received>, Buffer);

    fn complete(self, result: io::Result<u32>) -> Self::Output {
        let Self { mut buffer, mut control, parts, .. } = self;
        let received = result.and_then(count).map(|count| {
            buffer.advance(count);
            // SAFETY: the operation has completed, so the kernel writes no more, and no reference is alive.
            let header = unsafe { &(*parts.get()).header };
            control.truncate(header.msg_controllen);
            Received { count, flags: header.msg_flags, control }
        });
        (received, buffer)
    }
}

/// A send with control messages in flight.
#[must_use = "a dropped send may or may not have happened"]
pub struct SendMessage {
    in_flight: InFlight<Transmit>,
    _socket: Socket,
}

impl SendMessage {
    pub(super) fn submit(socket: &Socket, buffer: Buffer, control: &[Control<'_>]) -> Self {
        let mut bytes = Vec::new();
        for message in control {
            message.append_to(&mut bytes);
        }
        let filled = buffer.filled();
        let parts =
            parts(filled.as_ptr().cast_mut(), filled.len(), bytes.as_mut_ptr(), bytes.len());
        let header = parts.get().cast::<libc::msghdr>().cast_const();
        let entry = opcode::SendMsg::new(types::Fd(socket.as_fd().as_raw_fd()), header)
            .flags(libc::MSG_NOSIGNAL.cast_unsigned())
            .build();
        let operation =
            Transmit { buffer, _control: bytes, _parts: parts, _descriptor: socket.descriptor() };
        // SAFETY: descriptor, buffer, control bytes and header belong to the operation; the first two are `Vec`s, the
        // last is an `Rc<UnsafeCell<_>>` of which the header is the first field (`repr(C)`), and none is touched before
        // completion. The kernel only reads them, whatever the pointers' types say. SENDMSG completes once.
        let in_flight = unsafe { op::submit(operation, entry) };
        Self { in_flight, _socket: socket.clone() }
    }
}

impl Future for SendMessage {
    type Output = Owned;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Owned> {
        Pin::new(&mut self.in_flight).poll(cx)
    }
}

struct Transmit {
    buffer: Buffer,
    _control: Vec<u8>,
    _parts: Rc<UnsafeCell<Parts>>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn received(control: Vec<u8>) -> Received {
        Received { count: 0, flags: 0, control }
    }

    #[test]
    fn control_messages_are_read_as_they_were_written() {
        let messages = [
            Control { level: 282, kind: 2, data: &[21] },
            Control { level: 1, kind: -1, data: &[] },
            Control { level: 1, kind: 1, data: &[1, 2, 3, 4, 5, 6, 7, 8] },
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            message.append_to(&mut bytes);
        }
        assert_eq!(bytes.len(), Control::space(1) + Control::space(0) + Control::space(8));
        assert_eq!(received(bytes).control().collect::<Vec<_>>(), messages);
    }

    #[test]
    fn the_last_message_may_lack_its_padding() {
        let message = Control { level: 282, kind: 2, data: &[23] };
        let mut bytes = Vec::new();
        message.append_to(&mut bytes);
        bytes.truncate(HEADER_BYTES + 1);
        assert_eq!(received(bytes).control().collect::<Vec<_>>(), [message]);
    }

    proptest::proptest! {
        #[test]
        fn nonsense_ends_the_list(bytes: Vec<u8>) {
            let count = received(bytes.clone()).control().count();
            proptest::prop_assert!(count <= bytes.len() / HEADER_BYTES);
        }
    }
}
