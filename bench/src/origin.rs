//! The server behind the gateways: as little work as HTTP allows, so that what is measured is the gateway.
//!
//! `/small` is 1 KiB, `/bytes/N` that many, `/ws` a WebSocket echo, `/stream/N` so many chunks, one each 20 ms with a
//! stamp; a request body is read and dropped. It trusts its peers: it is never reached but over loopback by this benchmark.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use tlsplice_fixtures::{Error, Result};

use crate::{clock, echo, measure};

const LISTENER: Token = Token(usize::MAX);
const SMALL: usize = 1024;
const PIECE: usize = 256 * 1024;
/// Between two chunks of a stream.
pub const TICK: Duration = Duration::from_millis(20);
/// Turns of one connection before the others get theirs.
const TURNS: usize = 16;

/// A running origin. It ends with the process.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its thread, for [`measure::thread_ns`].
    pub thread: String,
}

impl Origin {
    /// Starts it on a thread, pinned to `core` where there is one.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(core: Option<usize>) -> Result<Self> {
        let failed = || Error::io("cannot start the origin");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listener = TcpListener::bind(any).map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let poll = Poll::new().map_err(failed())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(failed())?;
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("origin".to_owned())
            .spawn(move || {
                if let Some(id) = core {
                    core_affinity::set_for_current(core_affinity::CoreId { id });
                }
                // The starter waits for it.
                let _ = sender.send(measure::this_thread());
                let mut server = Server {
                    poll,
                    listener,
                    peers: HashMap::new(),
                    next: 0,
                    timers: BinaryHeap::new(),
                    again: Vec::new(),
                    streams: 0,
                    zeros: vec![b'x'; PIECE],
                    scratch: vec![0; PIECE],
                };
                if let Err(error) = server.serve() {
                    eprintln!("the origin ended: {error}");
                }
            })
            .map_err(failed())?;
        let thread = receiver.recv().map_err(|_| Error::failed("the origin did not start"))?;
        Ok(Self { address, thread })
    }
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    peers: HashMap<usize, Peer>,
    next: usize,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    /// Connections that had more to do when their turn was over.
    again: Vec<usize>,
    /// Streams begun so far.
    streams: u64,
    zeros: Vec<u8>,
    scratch: Vec<u8>,
}

struct Peer {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    mode: Mode,
}

enum Mode {
    /// Heads of requests.
    Heads,
    /// So many bytes of a request body are still to come.
    Sink(u64),
    /// So many bytes of a response body are still to go.
    Source(u64),
    Echo(echo::Echo),
    /// So many chunks are still to come.
    Ticks(u64),
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = if self.again.is_empty() {
                self.timers
                    .peek()
                    .map(|Reverse((at, _))| Duration::from_nanos(at.saturating_sub(clock::now())))
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for token in std::mem::take(&mut self.again) {
                self.turn(token);
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(token) => self.turn(token),
                }
            }
            self.tick();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((mut socket, _)) => {
                    socket.set_nodelay(true)?;
                    let token = self.next;
                    self.next += 1;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut socket, Token(token), both)?;
                    let (input, output) = (Vec::new(), Vec::new());
                    let peer = Peer { socket, input, output, written: 0, mode: Mode::Heads };
                    self.peers.insert(token, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // A client that went away before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Without a descriptor it waits in the backlog; the other connections go on.
                Err(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                    eprintln!("the origin is out of descriptors: raise `ulimit -n`");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn turn(&mut self, token: usize) {
        let Some(peer) = self.peers.get_mut(&token) else { return };
        match peer.run(&mut self.scratch, &self.zeros) {
            Ok(Turn::Waits) => {}
            Ok(Turn::HasMore) => self.again.push(token),
            Ok(Turn::Ticks) => {
                // Streams are spread evenly over the tick, however quickly they were opened: neither chance nor a
                // slow gateway decides how many chunks come at once.
                let tick = nanoseconds(TICK);
                self.streams += 1;
                let phase = (self.streams * (tick * 618 / 1000)) % tick;
                let start = (clock::now() / tick + 1) * tick + phase;
                self.timers.push(Reverse((start, token)));
            }
            // The peer is gone, or does not speak as expected: the load side notices.
            Err(_) => drop(self.peers.remove(&token)),
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        while let Some(&Reverse((at, token))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            let Some(peer) = self.peers.get_mut(&token) else { continue };
            match peer.tick() {
                Ok(true) => self.timers.push(Reverse((at + nanoseconds(TICK), token))),
                Ok(false) => {}
                Err(_) => drop(self.peers.remove(&token)),
            }
        }
    }
}

enum Turn {
    Waits,
    HasMore,
    /// A stream has begun.
    Ticks,
}

impl Peer {
    /// Sends the next chunk of a stream. Whether others follow.
    fn tick(&mut self) -> io::Result<bool> {
        let Mode::Ticks(left) = self.mode else { return Ok(false) };
        let left = left.saturating_sub(1);
        let mut chunk = format!("{:x}\r\n", clock::CHUNK).into_bytes();
        chunk.extend(clock::stamped());
        chunk.extend(b"\r\n");
        self.output.extend(chunk);
        self.mode = Mode::Ticks(left);
        if left == 0 {
            self.output.extend(clock::STREAM_END);
            self.mode = Mode::Heads;
        }
        self.flush()?;
        Ok(left > 0)
    }

    fn run(&mut self, scratch: &mut [u8], filler: &[u8]) -> io::Result<Turn> {
        for _ in 0..TURNS {
            if !self.flush()? {
                return Ok(Turn::Waits);
            }
            if let Mode::Source(left) = &mut self.mode {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(filler.len());
                match self.socket.write(&filler[..length]) {
                    Ok(written) => *left -= written as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Turn::Waits);
                    }
                    Err(error) => return Err(error),
                }
                if *left == 0 {
                    self.mode = Mode::Heads;
                }
                continue;
            }
            let read = match self.socket.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(error) => return Err(error),
            };
            if self.on_bytes(&mut scratch[..read])? {
                return Ok(Turn::Ticks);
            }
        }
        Ok(Turn::HasMore)
    }

    /// Whether all output is gone.
    fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.socket.write(&self.output[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(true)
    }

    /// Whether a stream has begun.
    fn on_bytes(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        let mut rest = &*bytes;
        match &mut self.mode {
            Mode::Echo(echo) => {
                echo.on_bytes(bytes, &mut self.output);
                return Ok(false);
            }
            Mode::Sink(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= taken as u64;
                rest = &rest[taken..];
                if *left > 0 {
                    return Ok(false);
                }
                self.mode = Mode::Heads;
                self.output.extend(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
            Mode::Heads | Mode::Source(_) | Mode::Ticks(_) => {}
        }
        self.input.extend(rest);
        self.on_input()
    }

    fn on_input(&mut self) -> io::Result<bool> {
        while let Some(end) = head_end(&self.input) {
            let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
            self.input.drain(..end);
            let path = head.split(' ').nth(1).unwrap_or_default();
            if path == "/ws" {
                let key = field(&head, "sec-websocket-key").unwrap_or_default();
                let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                self.output.extend(answer.bytes());
                let mut echo = echo::Echo::default();
                let mut early = std::mem::take(&mut self.input);
                echo.on_bytes(&mut early, &mut self.output);
                self.mode = Mode::Echo(echo);
                break;
            } else if let Some(count) = path.strip_prefix("/stream/") {
                let count = count.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
                self.output.extend(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
                );
                self.mode = Mode::Ticks(count);
                self.flush()?;
                return Ok(true);
            } else if let Some(length) =
                field(&head, "content-length").and_then(|text| text.parse().ok())
            {
                let early = std::mem::take(&mut self.input);
                self.mode = Mode::Sink(length);
                return self.on_bytes(&mut early.clone());
            } else {
                let length: u64 = path
                    .strip_prefix("/bytes/")
                    .map_or(Some(SMALL as u64), |text| text.parse().ok())
                    .ok_or(io::ErrorKind::InvalidInput)?;
                let head = format!(
                    "HTTP/1.1 200 OK\r\nServer: origin\r\nContent-Type: application/octet-stream\r\n\
                     Content-Length: {length}\r\n\r\n"
                );
                self.output.extend(head.bytes());
                if length <= SMALL as u64 {
                    self.output
                        .extend([b'x'; SMALL].iter().take(usize::try_from(length).unwrap_or(0)));
                } else {
                    self.mode = Mode::Source(length);
                    break;
                }
            }
        }
        self.flush()?;
        Ok(false)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Length of the head at the start of `bytes`, if it is whole.
#[must_use]
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|start| start + 4)
}

/// The value of a field, named in lower case.
#[must_use]
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.trim()))
}
