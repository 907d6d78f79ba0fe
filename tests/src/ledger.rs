use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tlsplice_fixtures::pattern::{self, Hash};

use crate::echo::number_in;
use crate::origin::{Connection, Origin};

/// A request for a WebSocket at `/tunnel`.
pub const UPGRADE: &str = "GET /tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Its answer.
pub const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream that keeps account of what clients made it do.
///
/// `POST /effect/KEY` has an effect once its body has come to the end, and is answered with the SHA-256 of it. `GET
/// /bytes/COUNT` and `/chunks/COUNT` are answered with so much of [`content`], framed by a length or in chunks. An upgrade
/// opens a tunnel that sends everything back. Anything else is answered with its own target, and `/last` is the last that is
/// answered on its connection, without a word about that.
pub struct Ledger {
    origin: Origin,
    effects: Arc<Mutex<BTreeMap<String, u32>>>,
}

fn lock(effects: &Mutex<BTreeMap<String, u32>>) -> MutexGuard<'_, BTreeMap<String, u32>> {
    effects.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Starts one.
    ///
    /// # Panics
    /// When no port can be bound.
    #[must_use]
    pub fn start() -> Self {
        let effects = Arc::<Mutex<BTreeMap<String, u32>>>::default();
        let account = Arc::clone(&effects);
        let origin = Origin::start(move |connection| {
            loop {
                let head = connection.request()?;
                let mut words = head.split(' ');
                let target = words.nth(1).unwrap_or("/").to_owned();
                let path = target.split('?').next().unwrap_or_default();
                let mut parts = path.trim_start_matches('/').split('/');
                match (parts.next(), parts.next()) {
                    (Some("effect"), Some(key)) => {
                        let body = body(connection, &head)?;
                        let mut hash = Hash::new();
                        hash.update(&body);
                        *lock(&account).entry(key.to_owned()).or_default() += 1;
                        connection.respond(&hash.finish())?;
                    }
                    (Some("bytes"), Some(count)) => bytes(connection, number(count)?)?,
                    (Some("chunks"), Some(count)) => chunks(connection, number(count)?)?,
                    (Some("tunnel"), _) => return tunnel(connection),
                    (Some("last"), _) => return connection.respond(&target),
                    _ => connection.respond(&target)?,
                }
            }
        });
        Self { origin, effects }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.origin.accepted()
    }

    /// How often a key has had its effect.
    #[must_use]
    pub fn effects(&self, key: &str) -> u32 {
        lock(&self.effects).get(key).copied().unwrap_or(0)
    }

    /// The keys that had their effect more than once.
    #[must_use]
    pub fn doubled(&self) -> Vec<String> {
        let effects = lock(&self.effects);
        effects.iter().filter(|&(_, &count)| count > 1).map(|(key, _)| key.clone()).collect()
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}

fn body(connection: &mut Connection, head: &str) -> io::Result<Vec<u8>> {
    if head.to_lowercase().contains("expect: 100-continue") {
        connection.send("HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Some(length) = number_in(head, "content-length") {
        return connection.take(length);
    }
    let mut body = Vec::new();
    loop {
        let line = connection.until(b"\r\n")?;
        let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        let data = connection.take(size + 2)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&data[..size]);
    }
}

/// After so many bytes, a prime, a body repeats itself: to make them takes time.
const PERIOD: usize = 1_000_003;

fn period() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| pattern::bytes(PERIOD))
}

/// A body of this length.
#[must_use]
pub fn content(len: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(len);
    while body.len() < len {
        body.extend_from_slice(&period()[..PERIOD.min(len - body.len())]);
    }
    body
}

/// As many bytes as are sent at once.
const PIECE_BYTES: usize = 64 * 1024;

fn pieces(mut count: usize, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    while count > 0 {
        for piece in period()[..PERIOD.min(count)].chunks(PIECE_BYTES) {
            send(piece)?;
            count -= piece.len();
        }
    }
    Ok(())
}

fn bytes(connection: &mut Connection, count: usize) -> io::Result<()> {
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n"))?;
    pieces(count, |piece| connection.send(piece))
}

fn chunks(connection: &mut Connection, count: usize) -> io::Result<()> {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    pieces(count, |piece| {
        connection.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
    })?;
    connection.send("0\r\n\r\n")
}

fn tunnel(connection: &mut Connection) -> io::Result<()> {
    connection.send(ACCEPT)?;
    loop {
        match connection.some() {
            Ok(piece) => connection.send(piece)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return connection.stream.shutdown(Shutdown::Write);
            }
            Err(error) => return Err(error),
        }
    }
}
