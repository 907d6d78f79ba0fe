//! The origin behind the gateway: it counts effects, hashes what it gets, and makes what it serves from a number.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};
use tlsplice_fixtures::pattern::Hash;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Error, WebSocket};

use crate::PATIENCE;
use crate::echo::number_in;
use crate::origin::{Connection, Origin};

/// Bytes that are made, sent and hashed at once.
const PIECE: usize = 16 * 1024;

/// The bytes that belong to a number: each side can make them for itself.
pub(super) struct Content {
    random: Pcg64Mcg,
    left: u64,
}

impl Content {
    /// So many bytes for this number.
    #[must_use]
    pub(super) fn of(number: u64, size: u64) -> Self {
        Self { random: Pcg64Mcg::seed_from_u64(number), left: size }
    }

    /// All of it at once.
    #[must_use]
    pub(super) fn whole(self) -> Vec<u8> {
        self.flatten().collect()
    }

    /// Its SHA-256.
    #[must_use]
    pub(super) fn hash(self) -> String {
        let mut hash = Hash::new();
        self.for_each(|piece| hash.update(&piece));
        hash.finish()
    }
}

impl Iterator for Content {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let size = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; size];
        self.random.fill_bytes(&mut piece);
        self.left -= size as u64;
        (size > 0).then_some(piece)
    }
}

/// How often a request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// Heads.
    pub(super) begun: u32,
    /// Whole requests: the effect itself.
    pub(super) done: u32,
}

/// Effects by the numbers of their requests.
#[derive(Clone, Default)]
pub(super) struct Effects(Arc<Mutex<HashMap<u64, Effect>>>);

impl Effects {
    fn note(&self, id: u64, change: impl Fn(&mut Effect)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
    }

    /// All so far; from here on they are counted anew.
    #[must_use]
    pub(super) fn take(&self) -> HashMap<u64, Effect> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts one.
///
/// # Panics
/// As [`Origin::start`].
#[must_use]
pub(super) fn start(effects: &Effects) -> Origin {
    let effects = effects.clone();
    Origin::start(move |connection| {
        loop {
            let head = connection.request()?;
            let target = head.split(' ').nth(1).unwrap_or_default();
            let id = parameter(target, "id").ok_or(io::ErrorKind::InvalidData)?;
            let size = parameter(target, "size").unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default();
            match path.rsplit('/').next().unwrap_or_default() {
                "get" => connection.respond(&id.to_string())?,
                "effect" => {
                    effects.note(id, |effect| effect.begun += 1);
                    let hash = receive(connection, &head)?;
                    effects.note(id, |effect| effect.done += 1);
                    connection.respond(&hash)?;
                }
                "length" => {
                    connection
                        .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"))?;
                    for piece in Content::of(id, size) {
                        connection.send(piece)?;
                    }
                }
                "chunked" => {
                    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                    for piece in Content::of(id, size) {
                        connection.send(chunk(&piece))?;
                    }
                    connection.send("0\r\n\r\n")?;
                }
                "tunnel" => return echo(connection, &head),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    })
}

/// A chunk with its framing.
#[must_use]
pub(super) fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

fn parameter(target: &str, name: &str) -> Option<u64> {
    let (_, query) = target.split_once('?')?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// The number of the request in a target.
#[must_use]
pub(super) fn id_in(target: &str) -> Option<u64> {
    parameter(target, "id")
}

/// The hash of a request body.
fn receive(connection: &mut Connection, head: &str) -> io::Result<String> {
    let mut hash = Hash::new();
    if let Some(mut left) = number_in(head, "content-length") {
        while left > 0 {
            let piece = connection.take(left.min(PIECE))?;
            hash.update(&piece);
            left -= piece.len();
        }
        return Ok(hash.finish());
    }
    loop {
        let line = connection.until(b"\r\n")?;
        let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        let data = connection.take(size + 2)?;
        if size == 0 {
            return Ok(hash.finish());
        }
        hash.update(&data[..size]);
    }
}

/// Sends each message back, until the client closes.
fn echo(connection: &mut Connection, head: &str) -> io::Result<()> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let key = fields.find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    let accept = derive_accept_key(key.map_or("", |(_, value)| value).as_bytes());
    connection.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ))?;
    let stream = connection.stream.try_clone()?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    loop {
        match socket.read() {
            Ok(message) if message.is_binary() => socket.send(message).map_err(io::Error::other)?,
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_in_pieces_and_as_a_whole() {
        let whole = Content::of(7, 100_000).whole();
        assert_eq!(whole.len(), 100_000);
        assert_eq!(Content::of(7, 100_000).hash(), tlsplice_fixtures::pattern::sha256(&whole));
        assert_eq!(Content::of(7, 33_000).whole(), whole[..33_000]);
        assert_ne!(Content::of(8, 100_000).whole(), whole);
    }

    #[test]
    fn numbers_are_found_in_targets() {
        assert_eq!(id_in("/steady/length?id=17&size=5"), Some(17));
        assert_eq!(parameter("/steady/length?id=17&size=5", "size"), Some(5));
        assert_eq!(id_in("/steady/length"), None);
    }
}
