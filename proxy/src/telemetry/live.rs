//! What is known of a connection while it lives: written by its worker, read by whoever asks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::counters::Counter;
use super::{Reading, TlsPath};
use crate::relay::RiskCounters;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// It waits, or its handshake is not complete.
    Idle,
    /// A request is in progress.
    Request,
    /// It carries a tunnel.
    Tunnel,
}

/// Bytes of plaintext, heads of messages included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From clients.
    pub bytes_in: u64,
    /// To clients.
    pub bytes_out: u64,
    /// Of both, those that stayed in the kernel.
    pub spliced: u64,
    /// Of both, those whose record layer runs in the kernel.
    pub kernel_tls: u64,
    /// Of both, those whose record layer runs in this process.
    pub user_tls: u64,
    /// Of both, those without TLS.
    pub no_tls: u64,
    /// TLS keys changed, either side's.
    pub key_updates: u64,
}

impl Moved {
    /// Adds what another connection has moved.
    pub fn add(&mut self, other: &Self) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.spliced += other.spliced;
        self.kernel_tls += other.kernel_tls;
        self.user_tls += other.user_tls;
        self.no_tls += other.no_tls;
        self.key_updates += other.key_updates;
    }

    /// Bytes that went through buffers of this process.
    #[must_use]
    pub fn copied(&self) -> u64 {
        (self.bytes_in + self.bytes_out).saturating_sub(self.spliced)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Live {
    /// Distinct among all connections of the process.
    pub number: u64,
    /// The client.
    pub client: SocketAddr,
    /// The number by which the kernel knows it, when it is measured.
    pub cookie: Option<u64>,
    /// When it was accepted.
    pub began: Instant,
    /// Requests begun.
    pub requests: Counter,
    /// Silences of the present or last tunnel towards the client.
    pub risk: Arc<RiskCounters>,
    /// What the kernel had measured at the end.
    pub last: OnceLock<Box<Reading>>,
    doing: AtomicU8,
    tls: AtomicU8,
    /// Index of the route in the worker's list, plus 1; 0 is none.
    route: Counter,
    /// The same of the endpoint.
    endpoint: Counter,
    /// Microseconds plus 1; 0 is none.
    first_byte: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    spliced: Counter,
    key_updates: Counter,
}

impl Live {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(number: u64, client: SocketAddr, cookie: Option<u64>) -> Self {
        Self {
            number,
            client,
            cookie,
            began: Instant::now(),
            requests: Counter::default(),
            risk: Arc::default(),
            last: OnceLock::new(),
            doing: AtomicU8::new(Doing::Idle as u8),
            tls: AtomicU8::new(2),
            route: Counter::default(),
            endpoint: Counter::default(),
            first_byte: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            spliced: Counter::default(),
            key_updates: Counter::default(),
        }
    }

    /// Says what the connection does from now on.
    pub fn set_doing(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    /// What it does.
    #[must_use]
    pub fn doing(&self) -> Doing {
        match self.doing.load(Ordering::Relaxed) {
            0 => Doing::Idle,
            1 => Doing::Request,
            _ => Doing::Tunnel,
        }
    }

    /// Says where the record layer runs.
    pub fn set_tls(&self, tls: TlsPath) {
        let code = match tls {
            TlsPath::Kernel => 0,
            TlsPath::User => 1,
            TlsPath::None => 2,
        };
        self.tls.store(code, Ordering::Relaxed);
    }

    /// Where the record layer runs; none before the handshake is complete.
    #[must_use]
    pub fn tls(&self) -> TlsPath {
        match self.tls.load(Ordering::Relaxed) {
            0 => TlsPath::Kernel,
            1 => TlsPath::User,
            _ => TlsPath::None,
        }
    }

    /// Says which route, by its index, serves the request.
    pub fn set_route(&self, index: usize) {
        self.route.set(index as u64 + 1);
    }

    /// Index of the route of the last request.
    #[must_use]
    pub fn route(&self) -> Option<usize> {
        index(&self.route)
    }

    /// Says which endpoint, by its index, serves the request.
    pub fn set_endpoint(&self, index: usize) {
        self.endpoint.set(index as u64 + 1);
    }

    /// Index of the endpoint of the last request.
    #[must_use]
    pub fn endpoint(&self) -> Option<usize> {
        index(&self.endpoint)
    }

    /// Says how long the upstream took to its first byte.
    pub fn set_first_byte(&self, time: Duration) {
        self.first_byte.set(u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1) + 1);
    }

    /// How long the upstream took to the first byte of its last answer.
    #[must_use]
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte.get().checked_sub(1).map(Duration::from_micros)
    }

    /// Bytes came from the client.
    pub fn on_in(&self, count: usize, is_spliced: bool) {
        self.bytes_in.add(count as u64);
        if is_spliced {
            self.spliced.add(count as u64);
        }
    }

    /// Bytes go to the client.
    pub fn on_out(&self, count: usize, is_spliced: bool) {
        self.bytes_out.add(count as u64);
        if is_spliced {
            self.spliced.add(count as u64);
        }
    }

    /// A TLS key was changed.
    pub fn on_key_update(&self) {
        self.key_updates.add(1);
    }

    /// What it has moved so far.
    #[must_use]
    pub fn moved(&self) -> Moved {
        let (bytes_in, bytes_out) = (self.bytes_in.get(), self.bytes_out.get());
        let mut moved = Moved {
            bytes_in,
            bytes_out,
            spliced: self.spliced.get(),
            key_updates: self.key_updates.get(),
            ..Moved::default()
        };
        *match self.tls() {
            TlsPath::Kernel => &mut moved.kernel_tls,
            TlsPath::User => &mut moved.user_tls,
            TlsPath::None => &mut moved.no_tls,
        } = bytes_in + bytes_out;
        moved
    }
}

fn index(counter: &Counter) -> Option<usize> {
    counter.get().checked_sub(1).and_then(|index| usize::try_from(index).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read() {
        let live = Live::new(1, "192.0.2.1:5".parse().unwrap(), None);
        assert_eq!((live.doing(), live.tls(), live.route()), (Doing::Idle, TlsPath::None, None));
        assert_eq!(live.first_byte(), None);
        live.set_doing(Doing::Tunnel);
        live.set_tls(TlsPath::Kernel);
        live.set_route(0);
        live.set_endpoint(4);
        live.set_first_byte(Duration::ZERO);
        live.on_in(7, false);
        live.on_out(8, true);
        assert_eq!((live.doing(), live.tls()), (Doing::Tunnel, TlsPath::Kernel));
        assert_eq!((live.route(), live.endpoint()), (Some(0), Some(4)));
        assert_eq!(live.first_byte(), Some(Duration::ZERO));
        let moved = live.moved();
        assert_eq!((moved.kernel_tls, moved.spliced, moved.copied()), (15, 8, 7));
    }
}
