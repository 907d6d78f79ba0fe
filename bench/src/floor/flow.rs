//! One direction of a pair without TLS.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use mio::net::TcpStream;
use tlsplice::limits::PIPE_BYTES;
use tlsplice::sys;

use super::read;

/// What is between the two sockets.
#[derive(Default)]
pub(super) struct Flow {
    /// What the sink did not take.
    rest: Vec<u8>,
    /// Once a read has filled the buffer, everything goes through here.
    pipe: Option<Pipe>,
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl Flow {
    /// Whether something waits for the sink.
    pub(super) fn waits(&self) -> bool {
        !self.rest.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.held > 0)
    }

    /// What has come goes on.
    pub(super) fn pass(
        &mut self,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        loop {
            if !self.rest.is_empty() {
                let Some(written) = unless_blocked(sink.write(&self.rest))? else { return Ok(()) };
                self.rest.drain(..written);
                continue;
            }
            if let Some(pipe) = &mut self.pipe {
                if !pipe.step(source, sink)? {
                    return Ok(());
                }
                continue;
            }
            let Some(count) = read(source, buffer)? else { return Ok(()) };
            let written = unless_blocked(sink.write(&buffer[..count]))?.unwrap_or(0);
            self.rest.extend_from_slice(&buffer[written..count]);
            // A read that does not fill the buffer has taken all of it.
            if count < buffer.len() {
                return Ok(());
            }
            let (read, write, capacity) = sys::pipe(PIPE_BYTES)?;
            self.pipe = Some(Pipe { read, write, capacity, held: 0 });
        }
    }
}

impl Pipe {
    /// Moves something into the pipe or out of it. False when that would have to wait.
    fn step(&mut self, source: &TcpStream, sink: &TcpStream) -> io::Result<bool> {
        if self.held > 0 {
            let moved = unless_blocked(sys::splice(self.read.as_fd(), sink.as_fd(), self.held))?;
            self.held -= moved.unwrap_or(0);
            return Ok(moved.is_some());
        }
        let moved = sys::splice(source.as_fd(), self.write.as_fd(), self.capacity);
        let Some(moved) = unless_blocked(moved)? else { return Ok(false) };
        self.held = moved;
        if moved == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(true) }
    }
}

/// None where the call would have had to wait.
pub(super) fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
