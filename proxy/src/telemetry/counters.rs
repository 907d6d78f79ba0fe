//! What one worker has counted: written by that worker alone, read by whoever asks. Nothing here is shared between workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::live::{Live, Moved};
use super::{CopyReason, Latency, Reading, TlsPath, UserReason};
use crate::accept::Shed;

/// A number that one thread changes and any thread reads, so that a change needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Takes `count` away, for what rises and falls.
    pub fn sub(&self, count: u64) {
        self.set(self.get().wrapping_sub(count));
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a TLS connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// A request in plain HTTP came.
    PlainHttp,
    /// What came is no TLS.
    NotTls,
    /// Client and gateway have nothing in common, or one broke the protocol.
    Tls,
    /// The client left.
    Closed,
    /// It took too long.
    Timeout,
    /// The kernel took some keys and not the others.
    Handover,
    /// The socket failed.
    Io,
}

impl HandshakeFailure {
    /// All of them with their labels, in the order of their declaration.
    pub const LABELS: [&str; 7] =
        ["plain_http", "not_tls", "tls", "closed", "timeout", "handover", "io"];
}

/// Upper bounds of the buckets of request durations, in seconds; one more bucket holds what is above.
pub const DURATION_BOUNDS_S: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Status classes by their labels: the first is for requests to which no status was sent.
pub const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Name of the place for requests that no route takes.
pub const NO_ROUTE: &str = "none";

/// What one worker has counted for one route.
#[derive(Debug)]
pub struct RouteCounters {
    /// Name of the route.
    pub name: String,
    /// Place in the worker's list.
    pub index: usize,
    /// Requests by class of status, as [`STATUS_CLASSES`].
    pub requests: [Counter; STATUS_CLASSES.len()],
    /// Durations, as [`DURATION_BOUNDS_S`], of requests that opened no tunnel.
    pub durations: [Counter; DURATION_BOUNDS_S.len() + 1],
    /// Those durations together, in microseconds.
    pub duration_us: Counter,
    /// Tunnels that have ended.
    pub tunnels: Counter,
}

impl RouteCounters {
    fn new(name: &str, index: usize) -> Self {
        Self {
            name: name.to_owned(),
            index,
            requests: Default::default(),
            durations: Default::default(),
            duration_us: Counter::default(),
            tunnels: Counter::default(),
        }
    }

    /// A request is over; `duration` is None when it was a tunnel's.
    pub fn on_request(&self, status: u16, duration: Option<Duration>) {
        let class = usize::from(status / 100);
        self.requests[if class < STATUS_CLASSES.len() { class } else { 0 }].add(1);
        let Some(duration) = duration else {
            self.tunnels.add(1);
            return;
        };
        let seconds = duration.as_secs_f64();
        let bucket = DURATION_BOUNDS_S.iter().position(|&bound| seconds <= bound);
        self.durations[bucket.unwrap_or(DURATION_BOUNDS_S.len())].add(1);
        self.duration_us.add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }
}

/// What one worker knows of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Name of the upstream.
    pub upstream: String,
    /// The endpoint as the configuration writes it.
    pub endpoint: String,
    /// Place in the worker's list.
    pub index: usize,
    /// Connections made.
    pub connects: Counter,
    /// Connections that could not be made.
    pub failures: Counter,
    /// Requests that found an idle connection.
    pub reused: Counter,
    /// Connections that wait for a request now.
    pub idle: Counter,
    /// Connections in use, or being made, now.
    pub in_use: Counter,
    /// 1 while this worker leaves the endpoint out.
    pub ejected: Counter,
}

/// Connections that have ended, added up.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Their bytes.
    pub moved: Moved,
    /// Flush latency.
    pub down: Latency,
    /// Input latency.
    pub up: Latency,
}

#[derive(Debug, Default)]
struct Registry {
    live: HashMap<u64, Arc<Live>>,
    ended: Ended,
    routes: Vec<Arc<RouteCounters>>,
    endpoints: Vec<Arc<EndpointCounters>>,
}

/// A worker's registry at one moment.
#[derive(Debug)]
pub struct Seen {
    /// Connections, in no order.
    pub live: Vec<Arc<Live>>,
    /// What ended before.
    pub ended: Ended,
    /// All routes that the worker has known, by their index.
    pub routes: Vec<Arc<RouteCounters>>,
    /// All endpoints that the worker has known, by their index.
    pub endpoints: Vec<Arc<EndpointCounters>>,
}

/// What one worker has counted.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Number of the worker.
    pub index: usize,
    /// Turns of its clock, 20 per second.
    pub ticks: Counter,
    /// Connections admitted.
    pub accepted: Counter,
    /// Connections shed, as [`Shed`]: too many in all, or from one address.
    pub shed: [Counter; 2],
    /// Connections ready for requests: TLS in the kernel, TLS in this process, no TLS.
    pub established: [Counter; 3],
    /// As [`HandshakeFailure::LABELS`].
    pub handshake_failures: [Counter; HandshakeFailure::LABELS.len()],
    /// TLS connections that stayed in user space, as [`UserReason::LABELS`].
    pub tls_fallbacks: [Counter; UserReason::LABELS.len()],
    /// Requests and tunnels whose payload was copied, as [`CopyReason::LABELS`].
    pub copies: [Counter; CopyReason::LABELS.len()],
    /// Requests without a route.
    pub unrouted: RouteCounters,
    connections: Counter,
    registry: Mutex<Registry>,
}

impl WorkerCounters {
    /// Those of worker `index`, all zero.
    #[must_use]
    pub fn new(index: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            ticks: Counter::default(),
            accepted: Counter::default(),
            shed: Default::default(),
            established: Default::default(),
            handshake_failures: Default::default(),
            tls_fallbacks: Default::default(),
            copies: Default::default(),
            unrouted: RouteCounters::new(NO_ROUTE, usize::MAX),
            connections: Counter::default(),
            registry: Mutex::default(),
        })
    }

    /// Taken when a connection or a configuration comes or goes, and by those who ask; never for long.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was not admitted.
    pub fn on_shed(&self, shed: Shed) {
        self.shed[match shed {
            Shed::Full => 0,
            Shed::AddressFull => 1,
        }]
        .add(1);
    }

    /// A connection is ready for requests.
    pub fn on_established(&self, tls: TlsPath, reason: Option<UserReason>) {
        self.established[match tls {
            TlsPath::Kernel => 0,
            TlsPath::User => 1,
            TlsPath::None => 2,
        }]
        .add(1);
        if let Some(reason) = reason {
            self.tls_fallbacks[reason as usize].add(1);
        }
    }

    /// The counters of a route; those it had under an earlier configuration, if it was there.
    #[must_use]
    pub fn route(&self, name: &str) -> Arc<RouteCounters> {
        let routes = &mut self.registry().routes;
        if let Some(known) = routes.iter().find(|route| route.name == name) {
            return Arc::clone(known);
        }
        let route = Arc::new(RouteCounters::new(name, routes.len()));
        routes.push(Arc::clone(&route));
        route
    }

    /// The counters of an endpoint; those it had under an earlier configuration, if it was there.
    #[must_use]
    pub fn endpoint(&self, upstream: &str, endpoint: &str) -> Arc<EndpointCounters> {
        let endpoints = &mut self.registry().endpoints;
        let is_it = |known: &&Arc<EndpointCounters>| {
            known.upstream == upstream && known.endpoint == endpoint
        };
        if let Some(known) = endpoints.iter().find(is_it) {
            return Arc::clone(known);
        }
        let counters = Arc::new(EndpointCounters {
            upstream: upstream.to_owned(),
            endpoint: endpoint.to_owned(),
            index: endpoints.len(),
            ..EndpointCounters::default()
        });
        endpoints.push(Arc::clone(&counters));
        counters
    }

    /// Enters a connection, until what is returned is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>, client: std::net::SocketAddr, cookie: Option<u64>) -> Entered {
        self.connections.add(1);
        // Numbers of all workers are distinct.
        let number = self.connections.get() * crate::config::WORKERS_MAX as u64 + self.index as u64;
        let live = Arc::new(Live::new(number, client, cookie));
        self.registry().live.insert(number, Arc::clone(&live));
        Entered { counters: Arc::clone(self), live }
    }

    /// Everything at one moment.
    #[must_use]
    pub fn look(&self) -> Seen {
        let registry = self.registry();
        Seen {
            live: registry.live.values().cloned().collect(),
            ended: registry.ended.clone(),
            routes: registry.routes.clone(),
            endpoints: registry.endpoints.clone(),
        }
    }
}

/// A connection's place in its worker's table.
#[derive(Debug)]
pub struct Entered {
    counters: Arc<WorkerCounters>,
    live: Arc<Live>,
}

impl Entered {
    /// What is known of the connection.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// What the kernel has measured of the connection, which ends now.
    pub fn measured(&self, reading: Option<Reading>) {
        if let Some(reading) = reading {
            // Told once, at the end: the place is empty.
            let _ = self.live.last.set(Box::new(reading));
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut registry = self.counters.registry();
        registry.live.remove(&self.live.number);
        registry.ended.moved.add(&self.live.moved());
        if let Some(reading) = self.live.last.get() {
            registry.ended.down.add(&reading.down);
            registry.ended.up.add(&reading.up);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> std::net::SocketAddr {
        "192.0.2.1:5000".parse().unwrap()
    }

    #[test]
    fn requests_fall_into_their_classes_and_buckets() {
        let route = RouteCounters::new("*/", 0);
        for (status, millis) in [(200, 1), (204, 3), (302, 3), (502, 20_000), (0, 1), (999, 1)] {
            route.on_request(status, Some(Duration::from_millis(millis)));
        }
        route.on_request(101, None);
        let counts = |counters: &[Counter]| counters.iter().map(Counter::get).collect::<Vec<_>>();
        assert_eq!(counts(&route.requests), [2, 1, 2, 1, 0, 1]);
        assert_eq!(counts(&route.durations), [3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((route.duration_us.get(), route.tunnels.get()), (20_009_000, 1));
    }

    #[test]
    fn a_connection_is_seen_while_it_lives_and_its_bytes_stay() {
        let counters = WorkerCounters::new(3);
        let entered = counters.enter(client(), None);
        entered.live().on_in(10, false);
        entered.live().on_out(5, true);
        let before = counters.look();
        assert_eq!((before.live.len(), before.ended.moved), (1, Moved::default()));
        drop(entered);
        let after = counters.look();
        assert!(after.live.is_empty());
        assert_eq!(after.ended.moved, before.live[0].moved());
        assert_eq!((after.ended.moved.bytes_in, after.ended.moved.spliced), (10, 5));
    }

    #[test]
    fn numbers_of_connections_are_distinct_in_all_workers() {
        let (a, b) = (WorkerCounters::new(0), WorkerCounters::new(1));
        let all = [a.enter(client(), None), a.enter(client(), None), b.enter(client(), None)];
        let mut numbers: Vec<u64> = all.iter().map(|entered| entered.live().number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3);
    }

    #[test]
    fn a_reload_keeps_the_counters_of_what_stays() {
        let counters = WorkerCounters::new(0);
        counters.route("*/a/").on_request(200, None);
        assert_eq!(counters.route("*/b/").index, 1);
        assert_eq!(counters.route("*/a/").tunnels.get(), 1);
        counters.endpoint("u", "127.0.0.1:1").connects.add(2);
        assert_eq!(counters.endpoint("u", "127.0.0.1:1").connects.get(), 2);
        assert_eq!(counters.endpoint("v", "127.0.0.1:1").connects.get(), 0);
        assert_eq!(counters.look().endpoints.len(), 2);
    }
}
