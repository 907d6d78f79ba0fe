//! Input that is not seen here: it moves from the socket into a pipe.

use std::io;

use super::Reader;
use super::records::Layer;
use crate::pipes::Pipe;
use crate::stream::StreamError;
use crate::transport::Transport;

/// A socket whose next input can be spliced.
#[derive(Debug)]
pub enum SpliceSource<T> {
    /// It carries no TLS.
    Plain(T),
    /// The kernel opens its records, of which one call moves one at most.
    Records(T),
}

impl<T: Transport> SpliceSource<T> {
    /// Moves at most `count` bytes into the empty `pipe`, without waiting.
    ///
    /// # Errors
    /// The error of `splice(2)`: `WouldBlock` when there is nothing, `EINVAL` where it cannot be done, which a record
    /// that is no data is a case of.
    pub fn fill(&self, pipe: &Pipe, count: usize) -> io::Result<usize> {
        let unsuitable = || io::Error::from(io::ErrorKind::InvalidInput);
        match self {
            Self::Plain(socket) => socket.splicer().ok_or_else(unsuitable)?.fill(pipe, count),
            Self::Records(socket) => {
                socket.splicer().ok_or_else(unsuitable)?.fill_opened(pipe, count)
            }
        }
    }

    /// Whether waiting for the socket to become readable says that it has something. Linux 6.1 reports one whose kernel
    /// holds a part of a record as readable, again and again.
    #[must_use]
    pub fn tells_readiness(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl<T: Transport> Reader<T> {
    /// Says that all input is to come through here.
    pub fn forbid_splicing(&mut self) {
        self.is_spliceable = false;
    }

    /// Whether input can be spliced, when nothing received is here.
    #[must_use]
    pub fn may_splice(&self) -> bool {
        let is_opened_here = matches!(self.layer, Layer::User(_));
        self.is_spliceable && !is_opened_here && self.io.splicer().is_some()
    }

    /// The socket, when what it receives next can be spliced: no record layer of ours has to see it, and nothing received
    /// is still here.
    #[must_use]
    pub fn splice_source(&self) -> Option<SpliceSource<T>> {
        let is_over = self.end.is_some() || self.failure.is_some();
        let is_free = self.in_flight.is_none() && self.buffer.is_empty() && !is_over;
        match self.layer {
            _ if !is_free || !self.may_splice() => None,
            Layer::None => Some(SpliceSource::Plain(self.io.clone())),
            Layer::Kernel(_) => Some(SpliceSource::Records(self.io.clone())),
            Layer::User(_) => None,
        }
    }

    /// Says that bytes left the socket without being seen here.
    ///
    /// # Errors
    /// [`StreamError::Record`] when the key of the peer has protected more than it may.
    pub fn on_spliced(&mut self, count: usize) -> Result<(), StreamError> {
        self.count += count as u64;
        if let Some(live) = &self.live {
            live.on_in(count, true);
        }
        self.on_data(count)
    }

    /// Waits until a receive would find something.
    ///
    /// # Errors
    /// When the deadline passes first, or the socket fails.
    pub async fn readable(&self) -> Result<(), StreamError> {
        self.io.readable().await?;
        self.watch.shut().map_or(Ok(()), |cause| Err(cause.into()))
    }
}
