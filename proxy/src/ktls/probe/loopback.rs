//! The trials: each cipher over loopback in both directions with more than 64 KiB in odd pieces, byte for byte, copied and
//! spliced.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use ktls::CryptoInfo;

use super::{Combination, Readiness};
use crate::limits::PIPE_NARROW_BYTES;
use crate::sys::{self, tls};
use crate::transport::TlsDirection;

/// Time that one loopback transfer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sizes of the pieces of a transfer: 69,141 bytes in all.
const PIECES: [usize; 9] = [1, 17, 300, 4096, 16_383, 16_384, 16_385, 15_574, 1];

/// How a socket gets its record layer.
pub(super) trait RecordLayer {
    /// Attaches the layer, still without keys.
    fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Sets the key of one direction, or changes it.
    fn set_key(
        &self,
        socket: BorrowedFd<'_>,
        direction: TlsDirection,
        key: &CryptoInfo,
    ) -> io::Result<()>;
}

/// From this kernel.
pub(super) struct Kernel;

impl RecordLayer for Kernel {
    fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        tls::attach(socket)
    }

    fn set_key(
        &self,
        socket: BorrowedFd<'_>,
        direction: TlsDirection,
        key: &CryptoInfo,
    ) -> io::Result<()> {
        tls::set_key(socket, direction, key)
    }
}

/// A connection to ourselves, with the layer attached at both ends.
fn attached_pair(layer: &dyn RecordLayer) -> Result<(TcpStream, TcpStream), String> {
    let explain = |error: io::Error| format!("the probe has no loopback connection: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(explain)?;
    let near = TcpStream::connect(listener.local_addr().map_err(explain)?).map_err(explain)?;
    let (far, _) = listener.accept().map_err(explain)?;
    for end in [&near, &far] {
        end.set_read_timeout(Some(TIMEOUT)).map_err(explain)?;
        end.set_write_timeout(Some(TIMEOUT)).map_err(explain)?;
        end.set_nodelay(true).map_err(explain)?;
        layer.attach(end.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => {
                "the kernel has no module `tls`, or it is not loaded (modprobe tls)".to_owned()
            }
            _ => format!("TCP_ULP tls: {error}"),
        })?;
    }
    Ok((near, far))
}

/// Sends pieces both ways through the kernel.
pub(super) fn try_out(layer: &dyn RecordLayer, combination: Combination) -> Result<(), String> {
    let (near, far) = attached_pair(layer)?;
    for (sender, receiver, seed) in [(&near, &far, 1), (&far, &near, 2)] {
        set(layer, sender, TlsDirection::Send, combination, seed)?;
        set(layer, receiver, TlsDirection::Receive, combination, seed)?;
    }
    for (sender, receiver) in [(&near, &far), (&far, &near)] {
        splice_through(sender, receiver)?;
    }
    for (sender, receiver) in [(&near, &far), (&far, &near)] {
        copy_through(sender, receiver)?;
    }
    Ok(())
}

/// Pieces that are written to one socket and read from the other.
fn copy_through(mut sender: &TcpStream, mut receiver: &TcpStream) -> Result<(), String> {
    let failed = |error: io::Error| format!("a loopback transfer failed: {error}");
    for (index, len) in PIECES.into_iter().enumerate() {
        let step = u8::try_from(index).unwrap_or_default().wrapping_mul(31);
        let piece: Vec<u8> = (0..=250).cycle().skip(step.into()).take(len).collect();
        sender.write_all(&piece).map_err(failed)?;
        let mut received = vec![0; len];
        receiver.read_exact(&mut received).map_err(failed)?;
        if received != piece {
            return Err("a loopback transfer changed its bytes: do not trust this kernel".into());
        }
    }
    Ok(())
}

/// Pieces that go into one socket and come out of the other through pipes, in what the kernel seals and opens.
fn splice_through(sender: &TcpStream, receiver: &TcpStream) -> Result<(), String> {
    /// Sizes: 81,952 bytes in all, with a part of a record at the end of each.
    const PIECES: [usize; 4] = [300, 16_385, 65_000, 267];
    let failed = |error: io::Error| format!("a loopback transfer by splice failed: {error}");
    let (read, write, _) = sys::pipe(PIPE_NARROW_BYTES).map_err(failed)?;
    let (mut source, mut sink) = (File::from(write), File::from(read));
    let deadline = Instant::now() + TIMEOUT;
    for (index, len) in PIECES.into_iter().enumerate() {
        let step = u8::try_from(index).unwrap_or_default().wrapping_mul(59);
        let piece: Vec<u8> = (0..=250).cycle().skip(step.into()).take(len).collect();
        source.write_all(&piece).map_err(failed)?;
        let mut held = len;
        while held > 0 {
            held -= sys::splice(sink.as_fd(), sender.as_fd(), held).map_err(failed)?;
        }
        let mut received = Vec::with_capacity(len);
        while received.len() < len {
            match sys::splice(receiver.as_fd(), source.as_fd(), len - received.len()) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    let start = received.len();
                    received.resize(start + count, 0);
                    sink.read_exact(&mut received[start..]).map_err(failed)?;
                }
                // The record is on its way.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(failed(error));
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if received != piece {
            return Err(
                "a loopback transfer by splice changed its bytes: do not trust this kernel".into(),
            );
        }
    }
    Ok(())
}

/// Sends a part of a record to a socket whose records the kernel opens, and asks whether it is readable.
pub(super) fn try_readiness(
    layer: &dyn RecordLayer,
    combination: Combination,
) -> Result<Readiness, String> {
    /// Time in which the part has certainly arrived, and within which a poll that is exact waits.
    const MOMENT: Duration = Duration::from_millis(20);
    let (mut near, far) = attached_pair(layer)?;
    set(layer, &far, TlsDirection::Receive, combination, 1)?;
    // Without a key this end sends as it is: a header that promises 4 KiB, and some of them.
    let mut part = vec![23, 3, 3, 16, 0];
    part.resize(100, 0);
    near.write_all(&part).map_err(|error| error.to_string())?;
    let is_readable =
        sys::readable_within(far.as_fd(), MOMENT).map_err(|error| error.to_string())?;
    Ok(if is_readable { Readiness::Premature } else { Readiness::Exact })
}

fn set(
    layer: &dyn RecordLayer,
    socket: &TcpStream,
    direction: TlsDirection,
    combination: Combination,
    seed: u8,
) -> Result<(), String> {
    layer.set_key(socket.as_fd(), direction, &combination.test_key(seed)).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOENT) => format!("the kernel has no cipher module for {combination}"),
            _ => format!("the kernel refuses a key for {combination}: {error}"),
        }
    })
}

/// Changes a key.
pub(super) fn try_rekey(layer: &dyn RecordLayer, combination: Combination) -> Result<(), String> {
    let (near, _far) = attached_pair(layer)?;
    set(layer, &near, TlsDirection::Send, combination, 1)?;
    set(layer, &near, TlsDirection::Send, combination, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktls::probe::testing::Transparent;
    use crate::ktls::probe::{Aead, COMBINATIONS};

    fn pair() -> (TcpStream, TcpStream) {
        attached_pair(&Transparent::default()).expect("loopback works")
    }

    #[test]
    fn the_pieces_are_more_than_64_kib_in_all() {
        assert!(PIECES.iter().sum::<usize>() > 65_536);
    }

    #[test]
    fn every_combination_passes_where_nothing_refuses_and_changes_key() {
        let layer = Transparent::default();
        for combination in COMBINATIONS {
            assert_eq!(try_out(&layer, combination), Ok(()), "{combination}");
            assert_eq!(try_rekey(&layer, combination), Ok(()), "{combination}");
        }
    }

    #[test]
    fn each_refusal_has_its_words() {
        let chacha = Combination { is_tls13: true, aead: Aead::Chacha20Poly1305 };
        let cases = [
            (Transparent::without_layer(libc::ENOENT), "no module `tls`"),
            (Transparent::without_layer(libc::EPERM), "TCP_ULP tls: "),
            (Transparent::without_key(chacha, libc::ENOENT), "no cipher module for TLS 1.3 ChaCha"),
            (Transparent::without_key(chacha, libc::EINVAL), "refuses a key for TLS 1.3 ChaCha"),
        ];
        for (layer, words) in cases {
            let outcomes = [
                try_out(&layer, chacha),
                try_rekey(&layer, chacha),
                try_readiness(&layer, chacha).map(drop),
            ];
            for outcome in outcomes {
                let error = outcome.expect_err("it is refused");
                assert!(error.contains(words), "{error}");
            }
        }
    }

    #[test]
    fn a_key_that_cannot_be_changed_is_found_out() {
        let layer = Transparent::default().without_rekey();
        let error = try_rekey(&layer, COMBINATIONS[0]).expect_err("it is refused");
        assert!(error.contains("refuses a key for TLS 1.3 AES-128-GCM"), "{error}");
        assert_eq!(try_out(&layer, COMBINATIONS[0]), Ok(()), "each direction gets one key only");
    }

    #[test]
    fn changed_bytes_are_no_success() {
        for through in [copy_through, splice_through] {
            let (near, far) = pair();
            assert_eq!(through(&near, &far), Ok(()));
            (&near).write_all(b"x").expect("there is room");
            let error = through(&near, &far).expect_err("a byte too many");
            assert!(error.contains("do not trust this kernel"), "{error}");
        }
    }

    #[test]
    fn a_transfer_that_ends_or_breaks_is_no_success() {
        type Through = fn(&TcpStream, &TcpStream) -> Result<(), String>;
        let cases: [(Through, &str); 2] = [
            (copy_through, "a loopback transfer failed: "),
            (splice_through, "a loopback transfer by splice failed: "),
        ];
        for (through, words) in cases {
            // Nothing can be sent any more.
            let (near, far) = pair();
            near.shutdown(std::net::Shutdown::Write).expect("it is connected");
            let unsent = through(&near, &far);
            // What is received ends.
            let ((near, _near_peer), (far_peer, far)) = (pair(), pair());
            far_peer.shutdown(std::net::Shutdown::Write).expect("it is connected");
            let ended = through(&near, &far);
            // It breaks: a socket that is closed with bytes unread resets its connection.
            let ((near, _near_peer), (far_peer, mut far)) = (pair(), pair());
            far.write_all(b"x").expect("there is room");
            drop(far_peer);
            let broken = through(&near, &far);
            for outcome in [unsent, ended, broken] {
                let error = outcome.expect_err("the transfer is not complete");
                assert!(error.starts_with(words), "{error}");
            }
        }
    }
}
