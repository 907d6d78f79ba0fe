//! A record layer below an end that does nothing but count: every record is data, and there is always room for another key.

use std::io;
use std::task::Poll;

use super::Double;
use crate::transport::{Buffer, KernelTls, TlsDirection};

/// Content type of data (RFC 8446 §5.1).
const APPLICATION_DATA: u8 = 23;

impl KernelTls for Double {
    fn attach(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_key(&self, _: TlsDirection, _: &ktls::CryptoInfo) -> io::Result<()> {
        self.attach_records(0);
        Ok(())
    }

    fn recv_record(&self, into: &mut [u8]) -> io::Result<(u8, usize)> {
        let mut buffer = Buffer::with_capacity(into.len());
        match self.poll_recv(&mut buffer, into.len()) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(result) => {
                let count = result?;
                into[..count].copy_from_slice(buffer.filled());
                Ok((APPLICATION_DATA, count))
            }
        }
    }

    fn sequence(&self, _: TlsDirection) -> io::Result<u64> {
        self.own().opened.get().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn send_record(&self, _: u8, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
