//! The record layer of the kernel (`linux/tls.h`): keys, and records that are not data.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::retried;
use crate::transport::TlsDirection;

/// A control message of one byte, laid out as `CMSG_DATA` and `CMSG_SPACE` say: the data stands right behind the header,
/// and the whole is padded to the alignment of a header.
#[repr(C)]
struct RecordType {
    header: libc::cmsghdr,
    content_type: u8,
}

impl RecordType {
    const LEN: usize = size_of::<libc::cmsghdr>() + 1;

    fn new(kind: libc::c_int, content_type: u8) -> Self {
        let header =
            libc::cmsghdr { cmsg_len: Self::LEN, cmsg_level: libc::SOL_TLS, cmsg_type: kind };
        Self { header, content_type }
    }
}

/// Content type of data (RFC 8446 §5.1).
const APPLICATION_DATA: u8 = 23;

/// Attaches the layer to a connected TCP socket.
///
/// # Errors
/// The error of `setsockopt(2)`.
pub fn attach(socket: BorrowedFd<'_>) -> io::Result<()> {
    const NAME: [u8; 3] = *b"tls";
    const LEN: libc::socklen_t = 3;
    // SAFETY: the pointer and the length are those of one constant, which the kernel only reads. The descriptor is
    // borrowed, hence open.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_ULP,
            NAME.as_ptr().cast(),
            LEN,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets or changes the key of one direction.
///
/// # Errors
/// The error of `setsockopt(2)`.
pub fn set_key(
    socket: BorrowedFd<'_>,
    direction: TlsDirection,
    key: &ktls::CryptoInfo,
) -> io::Result<()> {
    let name = match direction {
        TlsDirection::Send => libc::TLS_TX,
        TlsDirection::Receive => libc::TLS_RX,
    };
    let size = libc::socklen_t::try_from(key.size()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length are those of one structure inside `key`, which is borrowed for the call and
    // which the kernel only reads. The descriptor is borrowed, hence open.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_TLS, name, key.as_ptr(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Records protected so far by the key of one direction: the sequence number of the next one.
///
/// # Errors
/// The error of `getsockopt(2)`.
pub fn sequence(socket: BorrowedFd<'_>, direction: TlsDirection) -> io::Result<u64> {
    // Sizes of `struct tls12_crypto_info_*`, all of which end in the sequence number: AES-256-GCM and
    // ChaCha20-Poly1305, then AES-128-GCM. The kernel takes the one that fits only, and copies the key too.
    const SIZES: [usize; 2] = [56, 40];
    let name = match direction {
        TlsDirection::Send => libc::TLS_TX,
        TlsDirection::Receive => libc::TLS_RX,
    };
    let mut info = zeroize::Zeroizing::new([0_u8; SIZES[0]]);
    let mut error = io::Error::from_raw_os_error(libc::EINVAL);
    for size in SIZES {
        let mut len = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        let into = info.as_mut_ptr().cast();
        // SAFETY: the pointer is to an array that is borrowed exclusively and at least as long as `len` says; `len` is
        // a live, writable integer. The descriptor is borrowed, hence open.
        let outcome = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_TLS, name, into, &raw mut len)
        };
        if outcome == 0
            && let Some(bytes) = info[..size].last_chunk()
        {
            return Ok(u64::from_be_bytes(*bytes));
        }
        error = io::Error::last_os_error();
    }
    Err(error)
}

/// Receives what the next record holds, or part of it, with its content type. Data comes as type 23.
///
/// # Errors
/// The error of `recvmsg(2)`, of which `WouldBlock` says that no record is there; `EINTR` is retried.
pub fn recv_record(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(u8, usize)> {
    let mut control = RecordType::new(0, APPLICATION_DATA);
    let mut slice = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut header = message(&mut slice, &mut control);
    let count = retried(|| {
        header.msg_controllen = size_of::<RecordType>();
        // SAFETY: the header names one slice and one control message, all borrowed exclusively and alive for the call,
        // with their own lengths; any bytes are valid values of both. The descriptor is borrowed, hence open.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) }
    })?;
    let is_told = header.msg_controllen >= RecordType::LEN
        && control.header.cmsg_level == libc::SOL_TLS
        && control.header.cmsg_type == libc::TLS_GET_RECORD_TYPE;
    Ok((if is_told { control.content_type } else { APPLICATION_DATA }, count))
}

/// Sends one record that is not data.
///
/// # Errors
/// The error of `sendmsg(2)`, of which `WouldBlock` says that the socket is full; `EINTR` is retried.
pub fn send_record(socket: BorrowedFd<'_>, content_type: u8, message: &[u8]) -> io::Result<()> {
    let mut control = RecordType::new(libc::TLS_SET_RECORD_TYPE, content_type);
    // The kernel only reads it, whatever the pointer's type says.
    let base = message.as_ptr().cast_mut().cast();
    let mut slice = libc::iovec { iov_base: base, iov_len: message.len() };
    let header = self::message(&mut slice, &mut control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let count = retried(|| {
        // SAFETY: the header names one slice and one control message, both alive for the call, with their own lengths;
        // the kernel only reads them. The descriptor is borrowed, hence open.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) }
    })?;
    // A record is sent as a whole or not at all.
    if count == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A header that names `slice` and `control`.
fn message(slice: &mut libc::iovec, control: &mut RecordType) -> libc::msghdr {
    // SAFETY: all bits zero are a valid `msghdr`: integers, and pointers that may be null.
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = slice;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut *control).cast();
    header.msg_controllen = size_of::<RecordType>();
    header
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_without_the_layer_refuses_in_words_of_the_kernel() {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(attach(here.as_fd()).is_err());
        assert!(sequence(here.as_fd(), TlsDirection::Receive).is_err());
        // Without the layer a record is what was sent, and has no type of its own.
        super::super::send(there.as_fd(), b"hello").unwrap();
        assert_eq!(recv_record(here.as_fd(), &mut [0; 16]).unwrap(), (23, 5));
        let empty = recv_record(here.as_fd(), &mut [0; 16]).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }
}
