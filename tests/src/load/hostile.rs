//! Clients that cost a gateway more than they cost themselves.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use serde::Serialize;

use crate::client::{Client, tls_config};

/// What is slow about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Slowness {
    /// A byte of a request head at each turn, without end.
    Head,
    /// A byte of a request body at each turn.
    Body,
    /// It reads a little of a response at each turn.
    Reading,
    /// It asks for a response and reads nothing of it.
    Never,
}

impl Slowness {
    /// All kinds.
    pub(super) const ALL: [Self; 4] = [Self::Head, Self::Body, Self::Reading, Self::Never];
}

/// Between two turns of a slow client.
const TURN: Duration = Duration::from_millis(500);

/// What a slow reader asks for, in bytes: far more than sockets hold.
const SLOW_BYTES: u64 = 64 << 20;

/// What the kernel receives for a slow reader beforehand, in bytes; the gateway's side holds more.
const SLOW_BUFFER: usize = 16 * 1024;

/// Handshakes of a flood that are open at once.
const FLOOD_OPEN: usize = 16;

/// What all hostile clients share.
pub(super) struct Hostility {
    /// The listener with TLS.
    pub(super) https: SocketAddr,
    tls: Arc<ClientConfig>,
    /// They work while this is true,
    pub(super) is_on: AtomicBool,
    /// and end when this is.
    pub(super) is_over: AtomicBool,
    /// Handshakes that the gateway has answered.
    pub(super) handshakes: AtomicU64,
    /// Clients that the gateway has ended, by the order of [`Slowness::ALL`].
    pub(super) ended: [AtomicU64; 4],
    /// Connections that the gateway did not take.
    pub(super) refused: AtomicU64,
}

impl Hostility {
    /// Towards this listener.
    #[must_use]
    pub(super) fn new(https: SocketAddr) -> Self {
        Self {
            https,
            tls: Arc::new(tls_config(&[&rustls::version::TLS13])),
            is_on: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            handshakes: AtomicU64::new(0),
            ended: Default::default(),
            refused: AtomicU64::new(0),
        }
    }

    fn is(&self, flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }

    /// Waits until it is time to work; false when it is over.
    fn wait(&self) -> bool {
        while !self.is(&self.is_on) {
            if self.is(&self.is_over) {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        !self.is(&self.is_over)
    }

    /// Handshakes that make the gateway compute and then end, at most so many per second.
    pub(super) fn flood(&self, per_second: u32) {
        let hello = hello(&self.tls);
        while self.wait() {
            let begun = Instant::now();
            let mut done = 0;
            while self.is(&self.is_on) && !self.is(&self.is_over) {
                let due = begun + Duration::from_secs(1) / per_second * done;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // The first are answered while the last are still being sent.
                let open: Vec<TcpStream> =
                    (0..FLOOD_OPEN).filter_map(|_| self.begin(&hello).ok()).collect();
                for stream in open {
                    self.handshakes.fetch_add(u64::from(answered(stream)), Ordering::Relaxed);
                    done += 1;
                }
                done = done.max(1);
            }
        }
    }

    fn begin(&self, hello: &[u8]) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.https)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(hello)?;
        Ok(stream)
    }

    /// So many slow clients of a kind, replaced as the gateway ends them.
    pub(super) fn crawl(&self, kind: Slowness, count: usize) {
        while self.wait() {
            let mut clients: Vec<Option<Client>> = (0..count).map(|_| None).collect();
            while self.is(&self.is_on) && !self.is(&self.is_over) {
                let turn = Instant::now();
                for slot in &mut clients {
                    let is_alive = match slot {
                        Some(client) => proceed(client, kind),
                        None => {
                            *slot = self.start(kind);
                            true
                        }
                    };
                    if !is_alive {
                        *slot = None;
                        self.ended[kind as usize].fetch_add(1, Ordering::Relaxed);
                    }
                    if !self.is(&self.is_on) {
                        break;
                    }
                }
                thread::sleep(TURN.saturating_sub(turn.elapsed()));
            }
        }
    }

    fn start(&self, kind: Slowness) -> Option<Client> {
        let begin = || {
            let buffer = matches!(kind, Slowness::Reading | Slowness::Never).then_some(SLOW_BUFFER);
            let mut client = Client::try_connect_with(self.https, Some(&self.tls), buffer)?;
            client.try_send(match kind {
                Slowness::Head => "GET /small HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".to_owned(),
                Slowness::Body => {
                    "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
                        .to_owned()
                }
                Slowness::Reading | Slowness::Never => {
                    format!("GET /bytes/{SLOW_BYTES} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                }
            })?;
            Ok::<_, io::Error>(client)
        };
        let client = begin().ok();
        self.refused.fetch_add(u64::from(client.is_none()), Ordering::Relaxed);
        client
    }
}

/// One turn of a slow client; false when the gateway has ended it.
fn proceed(client: &mut Client, kind: Slowness) -> bool {
    match kind {
        // That the gateway has ended it is found by a byte that cannot be sent.
        Slowness::Head | Slowness::Body => client.try_send("x").is_ok(),
        Slowness::Reading => {
            let is_alive = client.receive().unwrap_or(false);
            client.drop_received();
            is_alive
        }
        // Whoever never reads does not see the end either; the access log tells.
        Slowness::Never => true,
    }
}

/// A ClientHello that any gateway of these tests takes.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory takes it");
    }
    bytes
}

/// Whether the gateway answers with its part of the handshake, which is what costs it.
fn answered(mut stream: TcpStream) -> bool {
    let mut first = [0];
    // 22 is a record of the handshake.
    matches!(stream.read(&mut first), Ok(1)) && first[0] == 22
}
