use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::PATIENCE;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// An upstream that treats each connection as a test tells it.
pub struct Origin {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

/// One connection of the gateway to an [`Origin`].
pub struct Connection {
    /// The socket, for what has no method here.
    pub stream: TcpStream,
    /// Counts connections, from 0.
    pub index: usize,
    received: Vec<u8>,
}

impl Origin {
    /// Starts one; `serve` gets each connection, on a thread of its own. An error ends that connection only.
    ///
    /// # Panics
    /// When no port can be bound.
    #[must_use]
    pub fn start(
        serve: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        // The standard library's backlog is too short for a thousand connections at once: those beyond it are taken for
        // established by the other side alone, and stall.
        rustix::net::listen(&listener, BACKLOG).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (count, stop, serve) =
            (Arc::clone(&accepted), Arc::clone(&is_stopped), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let index = count.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                thread::spawn(move || {
                    let set_up = stream
                        .set_nodelay(true)
                        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
                    let mut connection = Connection { stream, index, received: Vec::new() };
                    // The test sees at the other end what went wrong.
                    drop(set_up.and_then(|()| serve(&mut connection)));
                });
            }
        });
        Self { address, accepted, is_stopped }
    }

    /// One that answers every request with this response.
    #[must_use]
    pub fn answering(response: &'static str) -> Self {
        Self::start(move |connection| {
            loop {
                connection.request()?;
                connection.send(response)?;
            }
        })
    }

    /// One that answers every request with the head it got.
    #[must_use]
    pub fn mirror() -> Self {
        Self::start(|connection| {
            loop {
                let head = connection.request()?;
                connection.respond(&head)?;
            }
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

impl Connection {
    /// Receives the head of a request.
    ///
    /// # Errors
    /// When the gateway closes before.
    pub fn request(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.received[..end + 2]).into_owned();
                self.received.drain(..end + 4);
                return Ok(head);
            }
            self.receive()?;
        }
    }

    /// Receives exactly so many bytes.
    ///
    /// # Errors
    /// When the gateway closes before.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < count {
            self.receive()?;
        }
        Ok(self.received.drain(..count).collect())
    }

    /// Receives up to and with `end`, and takes that.
    ///
    /// # Errors
    /// When the gateway closes before.
    pub fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|window| window == end) {
                return Ok(self.received.drain(..at + end.len()).collect());
            }
            self.receive()?;
        }
    }

    /// Takes what has come, at least one byte.
    ///
    /// # Errors
    /// When the gateway closes before.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.received.is_empty() {
            self.receive()?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.received.extend_from_slice(&piece[..count]);
                Ok(())
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the gateway has closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a response of known length.
    ///
    /// # Errors
    /// When the gateway has closed.
    pub fn respond(&mut self, body: &str) -> io::Result<()> {
        let length = body.len();
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    /// Ends both directions at once.
    pub fn close(&self) {
        // It may have ended already.
        drop(self.stream.shutdown(Shutdown::Both));
    }

    /// Waits until the gateway closes; what it sends meanwhile is dropped.
    pub fn wait_for_close(&mut self) {
        while self.receive().is_ok() {}
    }
}
