use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{ClientConnection, StreamOwned};

use crate::PATIENCE;

/// Takes a seed instead of a new one, to repeat a run.
pub const SEED_VARIABLE: &str = "TLSPLICE_TEST_SEED";

/// Numbers that look random and can be had again: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From [`SEED_VARIABLE`], or from a new seed. The seed is printed, which a failing test shows.
    ///
    /// # Panics
    /// When the variable holds no number.
    #[must_use]
    pub fn seeded() -> Self {
        let seed = match std::env::var(SEED_VARIABLE) {
            Ok(text) => text.parse().expect("the seed is a number"),
            Err(_) => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        };
        println!("{SEED_VARIABLE}={seed}");
        Self(seed)
    }

    /// From this seed.
    #[must_use]
    pub const fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number from 1 to `bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn up_to(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("64 bits hold it");
        usize::try_from(self.next() % bound).expect("it is below the bound") + 1
    }

    /// A generator of its own for another thread.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// In which pieces a client sends.
#[derive(Clone, Copy, Debug)]
pub enum Rhythm {
    /// Random sizes up to this one, and a stall of some milliseconds now and then.
    Random(usize),
    /// Pieces of this size, each followed by a change of the key.
    KeyUpdates(usize),
}

/// How an exchange ended.
#[derive(Debug)]
pub enum End {
    /// What was expected has come.
    Whole,
    /// The gateway ended the connection in good order.
    Clean,
    /// Anything else.
    Cut(io::Error),
}

/// Sends `outgoing` while receiving, so that neither side waits for the other however small the buffers between them
/// are, until `is_whole` is true of everything that has come. Returns what has come.
///
/// # Panics
/// When the socket cannot be set up, or nothing moves for [`PATIENCE`].
pub fn exchange(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    mut outgoing: &[u8],
    rhythm: Rhythm,
    random: &mut Random,
    is_whole: impl Fn(&[u8]) -> bool,
) -> (Vec<u8>, End) {
    stream.sock.set_nonblocking(true).expect("a socket option");
    let mut received = Vec::new();
    let end = loop {
        if !outgoing.is_empty() && !stream.conn.wants_write() {
            match stage(&mut stream.conn, outgoing, rhythm, random) {
                Ok(count) => outgoing = &outgoing[count..],
                Err(error) => break End::Cut(error),
            }
        }
        let turn = turn(stream, &mut received);
        if outgoing.is_empty() && !stream.conn.wants_write() && is_whole(&received) {
            break End::Whole;
        }
        match turn {
            Err(error) => break End::Cut(error),
            Ok(Turn::Ended) => break End::Clean,
            Ok(Turn::Open) => {}
        }
        if stream.conn.wants_write() || outgoing.is_empty() {
            await_readiness(stream);
        }
    };
    stream.sock.set_nonblocking(false).expect("a socket option");
    (received, end)
}

/// Hands the next piece to TLS and returns its size.
fn stage(
    conn: &mut ClientConnection,
    outgoing: &[u8],
    rhythm: Rhythm,
    random: &mut Random,
) -> io::Result<usize> {
    let size = match rhythm {
        Rhythm::Random(most) => {
            if random.up_to(64) == 1 {
                thread::sleep(Duration::from_millis(3));
            }
            random.up_to(most)
        }
        Rhythm::KeyUpdates(size) => size,
    };
    let count = conn.writer().write(&outgoing[..size.min(outgoing.len())])?;
    if let Rhythm::KeyUpdates(_) = rhythm {
        conn.refresh_traffic_keys().map_err(io::Error::other)?;
    }
    Ok(count)
}

enum Turn {
    Open,
    Ended,
}

/// Moves what can be moved without waiting.
fn turn(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    received: &mut Vec<u8>,
) -> io::Result<Turn> {
    while stream.conn.wants_write() {
        match stream.conn.write_tls(&mut stream.sock) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // What the gateway said before it closed is still worth reading.
            Err(error) => return drain(stream, received).and(Err(error)),
        }
    }
    drain(stream, received)
}

fn drain(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    received: &mut Vec<u8>,
) -> io::Result<Turn> {
    let mut piece = [0; 64 * 1024];
    match stream.conn.read_tls(&mut stream.sock) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Open),
        Err(error) => return Err(error),
    }
    stream.conn.process_new_packets().map_err(io::Error::other)?;
    loop {
        match stream.conn.reader().read(&mut piece) {
            Ok(0) => return Ok(Turn::Ended),
            Ok(count) => received.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Open),
            Err(error) => return Err(error),
        }
    }
}

fn await_readiness(stream: &StreamOwned<ClientConnection, TcpStream>) {
    let mut flags = PollFlags::IN;
    if stream.conn.wants_write() {
        flags |= PollFlags::OUT;
    }
    let begun = Instant::now();
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut sockets = [PollFd::new(&stream.sock, flags)];
    let ready = poll(&mut sockets, Some(&patience)).expect("it can be waited for");
    assert!(ready > 0, "nothing moved for {:?}", begun.elapsed());
}
