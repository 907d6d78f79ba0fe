//! The least that a program between two sockets can cost: it reads from one and writes to the other, and looks at
//! nothing. No gateway that waits for sockets by epoll can be cheaper, so a bar below it cannot be met; the difference
//! between a gateway and this is what the gateway itself costs.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// The first argument of this program that makes it such a relay; the addresses of both sides follow.
pub const FLOOR: &str = "floor";

const LISTENER: Token = Token(usize::MAX);
const BUFFER: usize = 64 * 1024;

/// Relays between `listen` and `origin` until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run(listen: SocketAddr, origin: SocketAddr) -> io::Result<()> {
    let mut listener = TcpListener::bind(listen)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    // Sockets in pairs: the peer of 2n is 2n + 1.
    let mut sockets: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    for mut socket in [client, TcpStream::connect(origin)?] {
                        socket.set_nodelay(true)?;
                        let token = Token(sockets.len());
                        poll.registry().register(&mut socket, token, Interest::READABLE)?;
                        sockets.push(Some(socket));
                    }
                }
                continue;
            }
            let Token(from) = event.token();
            if pass(&mut sockets, from, &mut buffer).is_err() {
                (sockets[from], sockets[from ^ 1]) = (None, None);
            }
        }
    }
}

/// What has come goes on. A read that does not fill the buffer has taken all of it.
fn pass(sockets: &mut [Option<TcpStream>], from: usize, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        let Some(source) = &mut sockets[from] else { return Ok(()) };
        let read = match source.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        // It is used for small messages only, which a socket always has room for.
        if let Some(sink) = &mut sockets[from ^ 1] {
            sink.write_all(&buffer[..read])?;
        }
        if read < buffer.len() {
            return Ok(());
        }
    }
}
