//! The load: many connections on one thread, closed loop or paced by a schedule.
//!
//! A paced message counts from the moment it was due, not from when it could be sent: what stalls is not left out.

/// A socket with or without TLS that never blocks.
pub mod socket;

mod client;
mod message;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Deserialize;

pub use client::Client;
pub(crate) use client::STREAM_LEAD;

/// Which listener of a gateway is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Front {
    /// TLS with the P-256 certificate.
    Tls,
    /// TLS with the RSA certificate.
    Rsa,
    /// No TLS.
    Plain,
}

/// What each connection of a group does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Work {
    /// A small request as soon as the last one is answered. Unit: request.
    Get {
        /// What is asked for.
        path: String,
    },
    /// Bodies of so many bytes, one after another. Unit: byte, told per GB.
    Download {
        /// Of each body.
        bytes: u64,
        /// How many of them each connection takes in a second, at most; a body that fills the processor of the load says
        /// nothing about the gateway that is beside it.
        bytes_per_second: Option<u64>,
    },
    /// The same in the other direction.
    Upload {
        /// Of each body.
        bytes: u64,
    },
    /// Connect, handshake, one small request, close. Unit: connection.
    Connect {
        /// Whether tickets are used.
        resumed: bool,
    },
    /// WebSocket messages, the next when the last has come back. Unit: message and its echo.
    Echo {
        /// Payload of a message.
        bytes: usize,
    },
    /// WebSocket messages by the clock. Unit: message and its echo.
    Paced {
        /// Payload of a message.
        bytes: usize,
        /// Messages per second and connection.
        per_second: u64,
    },
    /// A WebSocket that echoes one message and is silent. No unit.
    Idle,
    /// A response that lasts as long as the window, a stamped chunk each 20 ms. Unit: chunk; the latency is one-way.
    Stream,
}

/// Connections that do the same.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Group {
    /// What they do.
    #[serde(flatten)]
    pub work: Work,
    /// How many.
    pub connections: usize,
    /// Where to.
    #[serde(default = "tls")]
    pub front: Front,
}

fn tls() -> Front {
    Front::Tls
}

/// Addresses of a gateway's listeners.
#[derive(Clone, Copy, Debug)]
pub struct Fronts {
    /// TLS with the P-256 certificate.
    pub tls: SocketAddr,
    /// TLS with the RSA certificate.
    pub rsa: SocketAddr,
    /// No TLS.
    pub plain: SocketAddr,
}

impl Fronts {
    /// That of one listener.
    #[must_use]
    pub fn address(&self, front: Front) -> SocketAddr {
        match front {
            Front::Tls => self.tls,
            Front::Rsa => self.rsa,
            Front::Plain => self.plain,
        }
    }
}

/// What a group did within the window.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Units done.
    pub units: u64,
    /// Their latencies, nanoseconds.
    pub latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        // Up to one minute in three digits; larger values are taken for a minute.
        let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)
            .unwrap_or_else(|error| unreachable!("constant bounds: {error:?}"));
        latency.auto(false);
        Self { units: 0, latency }
    }

    fn on_unit(&mut self, nanoseconds: u64) {
        self.units += 1;
        self.latency.saturating_record(nanoseconds);
    }
}

/// How long a group may take to be connected.
const SETUP: Duration = Duration::from_secs(20);

pub(crate) fn failed(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}
