//! The least that a program between two sockets can cost: it reads from one and writes to the other, ends TLS where the
//! client speaks it, splices what comes in bulk, and looks at nothing. No gateway that waits for sockets by epoll and opens and
//! seals records as this project does can be cheaper, so a bar below it cannot be met; the difference between a gateway and
//! this is what the gateway itself costs. A second one waits by a ring instead, with this gateway's driver and sockets: what is
//! between it and the gateway is what the gateway adds to these. It is no bound for another way to drive a ring. The third one
//! is the second with this gateway's eBPF programs, which measure each connection: what is between it and the gateway is what
//! HTTP, deadlines and accounts cost. The fourth one is the third and reads heads, and writes them anew, as the gateway does: what is
//! between it and the gateway is what routes, pools, bodies, deadlines and accounts cost.

mod flow;
mod heads;
mod ring;
mod tls;

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tlsplice::telemetry::Meter;

use flow::Flow;
use tls::Tls;

use crate::load::failed;

/// How it waits for sockets, whether it is measured, and what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Floor {
    /// By epoll, as other gateways do.
    Epoll,
    /// By a ring, as this one does. It splices nothing.
    Ring,
    /// The same, and the kernel measures how long bytes take.
    Measured,
    /// The same, and heads are read and written anew.
    Heads,
}

/// All there are.
pub const FLOORS: [Floor; 4] = [Floor::Epoll, Floor::Ring, Floor::Measured, Floor::Heads];

impl Floor {
    /// How reports call it, and the first argument of this program that makes it such a relay; the addresses of its listeners
    /// without and with TLS and of the origin follow, and the files of a certificate and its key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Epoll => "floor",
            Self::Ring => "ring-floor",
            Self::Measured => "measured-floor",
            Self::Heads => "heads-floor",
        }
    }
}

/// Without TLS and with it.
const LISTENERS: [Token; 2] = [Token(usize::MAX - 1), Token(usize::MAX)];
const BUFFER: usize = 64 * 1024;
/// Connections that are measured at once; more than any point has.
const CONNECTIONS_MAX: usize = 10_000;

/// Where it listens and where it connects to.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For clients without TLS.
    pub plain: SocketAddr,
    /// For clients with TLS.
    pub tls: SocketAddr,
    /// The other side.
    pub origin: SocketAddr,
}

/// A client's connection and the origin's.
struct Pair {
    client: TcpStream,
    origin: TcpStream,
    between: Between,
}

/// What stands between the two.
enum Between {
    /// Nothing: both directions, from the client and to it.
    Plain([Flow; 2]),
    /// The client's TLS.
    Tls(Tls),
}

/// Relays until it is killed.
///
/// # Errors
/// When it cannot listen, cannot read certificate and key, or cannot measure where it should.
pub fn run(floor: Floor, addresses: Addresses, certificate: &Path, key: &Path) -> io::Result<()> {
    let config = tls::config(certificate, key)?;
    let is_measured = matches!(floor, Floor::Measured | Floor::Heads);
    let meter = is_measured.then(|| Meter::try_start(CONNECTIONS_MAX)).transpose();
    let relay = ring::Relay {
        origin: addresses.origin,
        config: Some(Arc::clone(&config)),
        meter: meter.map_err(|lack| failed(lack.to_string()))?,
        reads_heads: floor == Floor::Heads,
    };
    match floor {
        Floor::Epoll => wait_by_epoll(addresses, &config),
        Floor::Ring | Floor::Measured | Floor::Heads => ring::run(addresses, relay),
    }
}

fn wait_by_epoll(addresses: Addresses, config: &Arc<ServerConfig>) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listeners = [TcpListener::bind(addresses.plain)?, TcpListener::bind(addresses.tls)?];
    for (listener, token) in listeners.iter_mut().zip(LISTENERS) {
        poll.registry().register(listener, token, Interest::READABLE)?;
    }
    // Clients have the even tokens, and the origin's side of the same pair the next ones.
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            if let Some(index) = LISTENERS.iter().position(|token| *token == event.token()) {
                let config = (index == 1).then_some(config);
                while let Ok((client, _)) = listeners[index].accept() {
                    let origin = TcpStream::connect(addresses.origin)?;
                    let pair = Pair::new(client, origin, config)?;
                    pairs.push(Some(pair.register(&poll, pairs.len())?));
                }
                continue;
            }
            let Token(token) = event.token();
            let slot = &mut pairs[token / 2];
            let Some(pair) = slot else { continue };
            let is_client = token % 2 == 0;
            if pair.on_event(is_client, event, &mut buffer).is_err() {
                *slot = None;
            }
        }
    }
}

impl Pair {
    fn new(
        client: TcpStream,
        origin: TcpStream,
        config: Option<&Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        client.set_nodelay(true)?;
        origin.set_nodelay(true)?;
        let between = match config {
            Some(config) => Between::Tls(Tls::new(Arc::clone(config))?),
            None => Between::Plain(Default::default()),
        };
        Ok(Self { client, origin, between })
    }

    fn register(mut self, poll: &Poll, index: usize) -> io::Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut self.client, Token(2 * index), both)?;
        poll.registry().register(&mut self.origin, Token(2 * index + 1), both)?;
        Ok(self)
    }

    /// One of the sockets, that of the client or the other one, has something or takes something.
    fn on_event(&mut self, is_client: bool, event: &Event, buffer: &mut [u8]) -> io::Result<()> {
        let Self { client, origin, between } = self;
        match between {
            Between::Plain([up, down]) => {
                let (source, sink, flow, back) =
                    if is_client { (client, origin, up, down) } else { (origin, client, down, up) };
                if event.is_writable() && back.waits() {
                    back.pass(sink, source, buffer)?;
                }
                if event.is_readable() { flow.pass(source, sink, buffer) } else { Ok(()) }
            }
            Between::Tls(tls) if event.is_readable() && is_client => tls.up(client, origin, buffer),
            Between::Tls(tls) if event.is_readable() => tls.down(origin, client, buffer),
            Between::Tls(_) => Ok(()),
        }
    }
}

/// What is there; None when nothing is.
fn read(socket: &mut TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    match flow::unless_blocked(socket.read(into))? {
        Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}
