//! Clients: they do what the schedule says and note what came of it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tlsplice_fixtures::pattern::{Hash, sha256};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

use super::ledger::{Operation, Outcome};
use super::schedule::{Call, Exit, Framing, Random, Side, Step, Transport, Visit, call};
use super::upstream::{Content, chunk};
use crate::client::{Client, Plaintext, Response, tls_config};

/// Where the gateway is, and what all clients have in common.
pub(super) struct Field {
    /// Its listener with TLS.
    pub(super) https: SocketAddr,
    /// Its listener without.
    pub(super) plain: SocketAddr,
    tls: [Arc<ClientConfig>; 2],
    /// Clients finish what they do and begin nothing more.
    pub(super) is_resting: AtomicBool,
    /// What they have done since this was taken last.
    operations: Mutex<Vec<Operation>>,
    /// Connections so far.
    pub(super) connections: AtomicU64,
    /// WebSocket messages that came back as they were sent.
    pub(super) messages: AtomicU64,
    /// Body bytes and messages that were compared, in both directions.
    pub(super) bytes: AtomicU64,
}

impl Field {
    /// For a gateway with these listeners.
    #[must_use]
    pub(super) fn new(https: SocketAddr, plain: SocketAddr) -> Self {
        let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
        Self {
            https,
            plain,
            tls: versions.map(|version| Arc::new(tls_config(&[version]))),
            is_resting: AtomicBool::new(true),
            operations: Mutex::default(),
            connections: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`Client::try_connect`].
    pub(super) fn connect(&self, transport: Transport) -> io::Result<Client> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        match transport {
            Transport::Plain => Client::try_connect(self.plain, None),
            Transport::Tls12 => Client::try_connect(self.https, Some(&self.tls[0])),
            Transport::Tls13 => Client::try_connect(self.https, Some(&self.tls[1])),
        }
    }

    /// Everything that was done since the last call.
    #[must_use]
    pub(super) fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.operations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    fn rests(&self) -> bool {
        self.is_resting.load(Ordering::Relaxed)
    }
}

/// One client in one round.
pub(super) struct Visitor<'a> {
    field: &'a Field,
    random: Random,
    next_id: u64,
}

impl<'a> Visitor<'a> {
    /// The client with this number.
    #[must_use]
    pub(super) fn new(field: &'a Field, seed: u64, round: u64, who: u64) -> Self {
        let next_id = (round << 40) | (who << 24);
        Self { field, random: Random::of(seed, round, who), next_id }
    }

    /// Visits the gateway until it is time to rest.
    pub(super) fn visit(&mut self) {
        while !self.field.rests() {
            let call = call(&mut self.random);
            self.answer(&call);
        }
    }

    fn answer(&mut self, call: &Call) {
        let mut client = None;
        // No fault of an upstream is an excuse here.
        self.operation("connection", Side::Steady, None, |visitor, _| {
            client = Some(visitor.field.connect(call.transport).map_err(broken)?);
            Ok(())
        });
        let Some(client) = client else { return };
        match &call.visit {
            Visit::Requests(steps) => self.requests(client, call.side, steps),
            Visit::Tunnel { bursts, exit } => {
                self.tunnel(client, call.side, bursts, *exit);
            }
        }
    }

    /// Does something, and notes it. `has_effect` is None for what has no request of its own.
    fn operation(
        &mut self,
        name: &'static str,
        side: Side,
        has_effect: Option<bool>,
        work: impl FnOnce(&mut Self, u64) -> Result<(), Outcome>,
    ) -> bool {
        let begun = Instant::now();
        let id = self.next_id;
        self.next_id += 1;
        let result = work(self, id);
        let is_good = result.is_ok();
        self.field.note(Operation {
            id: has_effect.map(|_| id),
            name,
            side,
            has_effect: has_effect.unwrap_or_default(),
            status: if name == TUNNEL { 101 } else { 200 },
            begun,
            ended: Instant::now(),
            outcome: result.err().unwrap_or(Outcome::Done),
        });
        is_good
    }

    fn requests(&mut self, mut client: Client, side: Side, steps: &[(Duration, Step)]) {
        for &(pause, step) in steps {
            thread::sleep(pause);
            if self.field.rests() {
                break;
            }
            let has_effect =
                !matches!(step, Step::Get | Step::Download { .. } | Step::AbandonedDownload { .. });
            let is_good = self.operation(step.name(), side, Some(has_effect), |visitor, id| {
                visitor.perform(&mut client, side, step, id)
            });
            if let Step::AbandonedUpload { exit, .. }
            | Step::AbandonedDownload { exit, .. }
            | Step::AbandonedEffect { exit } = step
            {
                return leave(client, exit);
            }
            if !is_good {
                return;
            }
        }
        // Nothing may follow the last response.
        self.operation("goodbye", Side::Steady, None, |_, _| {
            client.try_finish().map_err(broken)?;
            match client.receive() {
                Ok(false) => Ok(()),
                Ok(true) => Err(wrong("bytes after the last response", 0)),
                Err(error) => Err(broken(error)),
            }
        });
    }

    fn perform(
        &mut self,
        client: &mut Client,
        side: Side,
        step: Step,
        id: u64,
    ) -> Result<(), Outcome> {
        let path = side.path();
        let post = format!("POST {path}/effect?id={id} HTTP/1.1\r\nHost: localhost\r\n");
        match step {
            Step::Get => {
                let get = format!("GET {path}/get?id={id} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                client.try_send(get).map_err(broken)?;
                expect_body(client, id.to_string().as_bytes())
            }
            Step::Effect => {
                client.try_send(format!("{post}Content-Length: 4\r\n\r\nwork")).map_err(broken)?;
                expect_body(client, sha256(b"work").as_bytes())
            }
            Step::SlowEffect { pause } => {
                let text = format!("{post}Content-Length: 4\r\n\r\nwork");
                for piece in text.as_bytes().chunks(16) {
                    client.try_send(piece).map_err(broken)?;
                    thread::sleep(pause);
                }
                expect_body(client, sha256(b"work").as_bytes())
            }
            Step::Upload { size, framing } => {
                self.upload(client, &post, Content::of(id, size), size, framing)?;
                expect_body(client, Content::of(id, size).hash().as_bytes())?;
                self.count(size);
                Ok(())
            }
            Step::Download { size, framing, stall } => {
                self.download(client, path, id, size, framing, stall)
            }
            Step::AbandonedUpload { size, sent, .. } => {
                // Fewer bytes than the head promises.
                let head = format!("{post}Content-Length: {size}\r\n\r\n");
                client.try_send(head).map_err(|_| Outcome::Abandoned)?;
                for piece in Content::of(id, sent) {
                    client.try_send(piece).map_err(|_| Outcome::Abandoned)?;
                }
                Err(Outcome::Abandoned)
            }
            Step::AbandonedDownload { size, taken, .. } => {
                let get = format!(
                    "GET {path}/length?id={id}&size={size} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                );
                client.try_send(get).map_err(|_| Outcome::Abandoned)?;
                client.try_head().map_err(|_| Outcome::Abandoned)?;
                let taken = usize::try_from(taken).unwrap_or(usize::MAX);
                client.try_take(taken).map_err(|_| Outcome::Abandoned)?;
                Err(Outcome::Abandoned)
            }
            Step::AbandonedEffect { .. } => {
                let request = format!("{post}Content-Length: 4\r\n\r\nwork");
                client.try_send(request).map_err(|_| Outcome::Abandoned)?;
                Err(Outcome::Abandoned)
            }
        }
    }

    fn upload(
        &self,
        client: &mut Client,
        post: &str,
        content: Content,
        size: u64,
        framing: Framing,
    ) -> Result<(), Outcome> {
        let field = match framing {
            Framing::Length => format!("Content-Length: {size}"),
            Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
        };
        client.try_send(format!("{post}{field}\r\n\r\n")).map_err(broken)?;
        for piece in content {
            let piece = if framing == Framing::Chunked { chunk(&piece) } else { piece };
            client.try_send(piece).map_err(broken)?;
        }
        if framing == Framing::Chunked {
            client.try_send("0\r\n\r\n").map_err(broken)?;
        }
        Ok(())
    }

    fn download(
        &self,
        client: &mut Client,
        path: &str,
        id: u64,
        size: u64,
        framing: Framing,
        stall: Duration,
    ) -> Result<(), Outcome> {
        let kind = if framing == Framing::Chunked { "chunked" } else { "length" };
        let get =
            format!("GET {path}/{kind}?id={id}&size={size} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.try_send(get).map_err(broken)?;
        let response = expect_head(client)?;
        let length = response.field("content-length").and_then(|text| text.parse::<u64>().ok());
        let mut hash = Hash::new();
        let mut received = 0;
        let mut is_stalled = stall.is_zero();
        loop {
            let piece = match length {
                Some(length) if received >= length => break,
                Some(length) => {
                    let most = usize::try_from(length - received).unwrap_or(usize::MAX);
                    client.try_take(most.min(64 * 1024)).map_err(broken)?
                }
                None => client.try_chunk().map_err(broken)?,
            };
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
            received += piece.len() as u64;
            if !is_stalled && received >= size / 2 {
                thread::sleep(stall);
                is_stalled = true;
            }
        }
        if received != size {
            return Err(wrong(
                &format!("{received} of {size} bytes came"),
                size.abs_diff(received),
            ));
        }
        if hash.finish() != Content::of(id, size).hash() {
            return Err(wrong("other bytes came than were sent", size));
        }
        self.count(size);
        Ok(())
    }

    fn count(&self, bytes: u64) {
        self.field.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn tunnel(
        &mut self,
        client: Client,
        side: Side,
        bursts: &[(Duration, Vec<u64>)],
        exit: Option<Exit>,
    ) {
        self.operation(TUNNEL, side, Some(false), |visitor, id| {
            let mut tunnel = Tunnel::open(client, side, id)?;
            for (pause, sizes) in bursts {
                thread::sleep(*pause);
                if visitor.field.rests() {
                    break;
                }
                tunnel.burst(sizes, visitor.field)?;
            }
            match exit {
                None => tunnel.close(),
                Some(exit) => {
                    leave(tunnel.socket.into_inner().0, exit);
                    Err(Outcome::Abandoned)
                }
            }
        });
    }
}

const TUNNEL: &str = "tunnel";

/// Messages every half second until it is over: a tunnel that outlives all reloads and all faults of others.
pub(super) fn lasting_tunnel(field: &Field, transport: Transport, id: u64, is_over: &Receiver<()>) {
    let begun = Instant::now();
    let work = || {
        let client = field.connect(transport).map_err(broken)?;
        let mut tunnel = Tunnel::open(client, Side::Steady, id)?;
        while is_over.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout) {
            tunnel.burst(&[300, 20], field)?;
        }
        tunnel.close()
    };
    let result: Result<(), Outcome> = work();
    field.note(Operation {
        id: Some(id),
        name: "lasting tunnel",
        side: Side::Steady,
        has_effect: false,
        status: 101,
        begun,
        ended: Instant::now(),
        outcome: result.err().unwrap_or(Outcome::Done),
    });
}

/// A WebSocket whose upstream sends everything back.
struct Tunnel {
    socket: WebSocket<Plaintext>,
    id: u64,
    /// Of the next message.
    number: u64,
}

impl Tunnel {
    fn open(mut client: Client, side: Side, id: u64) -> Result<Self, Outcome> {
        let key = generate_key();
        let path = side.path();
        let head = format!(
            "GET {path}/tunnel?id={id} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        client.try_send(head).map_err(broken)?;
        let response = client.try_head().map_err(broken)?;
        if response.status != 101 {
            return Err(Outcome::Refused(response.status));
        }
        if response.field("sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
            return Err(wrong("the answer to another handshake came", 0));
        }
        let socket = WebSocket::from_raw_socket(Plaintext(client), Role::Client, None);
        Ok(Self { socket, id, number: 0 })
    }

    /// Sends messages, and expects each of them back, in order.
    fn burst(&mut self, sizes: &[u64], field: &Field) -> Result<(), Outcome> {
        let first = self.number;
        let id = self.id;
        let message = |number: u64, size: u64| {
            let content = Content::of(id ^ (number << 48), size).whole();
            [number.to_be_bytes().to_vec(), content].concat()
        };
        for (&size, number) in sizes.iter().zip(first..) {
            self.socket.send(Message::binary(message(number, size))).map_err(cut)?;
        }
        for (&size, number) in sizes.iter().zip(first..) {
            let received = self.socket.read().map_err(cut)?.into_data();
            if received != message(number, size) {
                let what = format!("message {number} came back as {} other bytes", received.len());
                return Err(wrong(&what, size + 8));
            }
            field.messages.fetch_add(1, Ordering::Relaxed);
            field.bytes.fetch_add(size + 8, Ordering::Relaxed);
            self.number = number + 1;
        }
        Ok(())
    }

    /// Ends it in good order on all layers.
    fn close(mut self) -> Result<(), Outcome> {
        self.socket.close(None).map_err(cut)?;
        loop {
            match self.socket.read() {
                Ok(Message::Close(_)) => {}
                Ok(_) => return Err(wrong("a message too many came", 0)),
                Err(Error::ConnectionClosed) => break,
                Err(error) => return Err(cut(error)),
            }
        }
        self.socket.into_inner().0.try_finish().map_err(broken)
    }
}

fn leave(client: Client, exit: Exit) {
    match exit {
        Exit::Vanish => drop(client),
        Exit::Reset => client.reset(),
    }
}

fn wrong(what: &str, lost: u64) -> Outcome {
    Outcome::Wrong { what: what.to_owned(), lost }
}

/// An end that can be seen; but silence is none.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
fn broken(error: io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Silent,
        ErrorKind::InvalidData => wrong(&format!("what came is no HTTP: {error}"), 0),
        _ => Outcome::Broken(error.to_string()),
    }
}

fn cut(error: Error) -> Outcome {
    match error {
        Error::Io(error) => broken(error),
        Error::ConnectionClosed | Error::AlreadyClosed => Outcome::Broken("closed".to_owned()),
        Error::Protocol(error @ ProtocolError::ResetWithoutClosingHandshake) => {
            Outcome::Broken(error.to_string())
        }
        error => wrong(&format!("what came is no WebSocket: {error}"), 0),
    }
}

fn expect_head(client: &mut Client) -> Result<Response, Outcome> {
    let response = client.try_head().map_err(broken)?;
    if response.status == 200 { Ok(response) } else { Err(Outcome::Refused(response.status)) }
}

fn expect_body(client: &mut Client, body: &[u8]) -> Result<(), Outcome> {
    let response = client.try_response().map_err(broken)?;
    if response.status != 200 {
        return Err(Outcome::Refused(response.status));
    }
    if response.body != body {
        let what = format!("the body is {:?}", String::from_utf8_lossy(&response.body));
        return Err(wrong(&what, body.len() as u64));
    }
    Ok(())
}
