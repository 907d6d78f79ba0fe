//! Connections to upstreams: one pool per worker and configuration, no sharing, no locks.
//!
//! Input: which upstream a request goes to. Output: a [`Lease`]. An idle connection keeps a receive in flight, so one
//! that the upstream closed is known to be dead before a request is sent on it, not after.

mod endpoint;
pub mod health;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use endpoint::{Endpoint, Target};
use health::{Candidate, Health, Policy};

use crate::buffers::Buffers;
use crate::config;
use crate::limits::CONNECT_ATTEMPTS_MAX;
use crate::stream::{Reader, Writer};
use crate::telemetry::{EndpointCounters, Gauge, Hitch};
use crate::timers::{Activity, Tick, Timers};
use crate::transport::Transport;

/// How a worker reaches the world.
pub trait Network: 'static {
    /// Its sockets.
    type Io: Transport;
    /// A connection being made; shutting its socket down ends it.
    type Connecting: Future<Output = io::Result<Self::Io>>;

    /// Begins to connect to `target`. Returns a handle of the socket beside the wait.
    ///
    /// # Errors
    /// What is known at once: no descriptor is left, no route, no such path.
    fn connect(&self, target: &Target) -> io::Result<(Self::Io, Self::Connecting)>;
}

/// No endpoint could be connected to.
#[derive(Debug, Error)]
#[error("{endpoint}: {reason}")]
pub struct ConnectError {
    /// The last one tried.
    pub endpoint: String,
    /// What happened there.
    pub reason: String,
    /// What kept us from it.
    pub cause: ConnectCause,
}

/// What keeps from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectCause {
    /// The endpoint, or the way there.
    Endpoint,
    /// The endpoint did not answer in time.
    Timeout,
    /// This machine lacks what it takes.
    Local,
}

impl ConnectCause {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL,
            ) => Self::Local,
            _ if error.kind() == io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Endpoint,
        }
    }
}

/// Upstream connections of one worker under one configuration.
pub struct Pool<N: Network> {
    network: Rc<N>,
    timers: Rc<Timers<N::Io>>,
    buffers: Rc<Buffers>,
    groups: Vec<Group<N::Io>>,
}

struct Group<T: Transport> {
    places: Vec<Rc<Place<T>>>,
    policy: Policy,
    connect_timeout: Duration,
    write_timeout: Duration,
    turn: Cell<usize>,
}

/// One endpoint, as this worker knows it.
struct Place<T: Transport> {
    endpoint: Arc<Endpoint>,
    /// The endpoint, for logs.
    name: String,
    /// The one that was used last is at the end.
    idle: RefCell<Vec<Idle<T>>>,
    idle_max: usize,
    idle_timeout: Duration,
    busy: Cell<usize>,
    health: Cell<Health>,
    counters: Arc<EndpointCounters>,
}

/// A connection to an upstream. It stays where it is on the heap while it goes from hand to hand: each request would move its
/// halves, which are large, a dozen times.
pub struct Connection<T: Transport> {
    /// From the upstream.
    pub reader: Reader<T>,
    /// To the upstream.
    pub writer: Writer<T>,
    hitch: Hitch,
}

/// An idle connection where it is found: there may be a thousand, and one is taken out of their middle.
struct Idle<T: Transport> {
    /// Whose bytes it carried last, if they are measured.
    client: Option<u64>,
    since: Tick,
    connection: Box<Connection<T>>,
    _kept: Kept,
}

/// Counts a connection as idle while it lives.
struct Kept(Arc<EndpointCounters>);

impl Kept {
    fn new(counters: &Arc<EndpointCounters>) -> Self {
        counters.idle.add(1);
        Self(Arc::clone(counters))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.idle.sub(1);
    }
}

/// A connection to an upstream, for one exchange or tunnel. Dropped without [`Lease::check_in`] it is closed.
pub struct Lease<T: Transport> {
    /// Both directions.
    pub connection: Box<Connection<T>>,
    /// It has carried an exchange before, so the upstream may have closed it in the meantime.
    pub is_reused: bool,
    seat: Seat<T>,
}

/// Counts a connection as busy while it lives.
struct Seat<T: Transport>(Rc<Place<T>>);

impl<T: Transport> Seat<T> {
    fn take(place: &Rc<Place<T>>) -> Self {
        place.busy.set(place.busy.get() + 1);
        place.counters.in_use.add(1);
        Self(Rc::clone(place))
    }
}

impl<T: Transport> Drop for Seat<T> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.counters.in_use.sub(1);
        // Without an answer or a failure, as when the client left, nothing is known: the next request finds out.
        self.0.change_health(Health::on_released);
    }
}

impl<T: Transport> Lease<T> {
    /// The endpoint, for logs.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.seat.0.name
    }

    /// What this worker counts of the endpoint.
    #[must_use]
    pub fn counters(&self) -> &EndpointCounters {
        &self.seat.0.counters
    }

    /// Says that more may come from the upstream and will not be taken.
    pub fn abandon(&self) {
        self.connection.reader.reset_on_close();
    }

    /// The connection is now for the client that `gauge` measures, if any does.
    fn serve(&mut self, gauge: Option<&Gauge>) {
        let Connection { reader, hitch, .. } = &mut *self.connection;
        match gauge {
            Some(gauge) => hitch.to(gauge, || reader.cookie()),
            None => hitch.release(),
        }
    }

    /// An answer came: the endpoint is well.
    pub fn on_answer(&self) {
        self.seat.0.change_health(Health::on_success);
    }

    /// Gives the connection back after an exchange that both sides want to follow by another.
    pub fn check_in(mut self, now: Tick) {
        let reader = &mut self.connection.reader;
        reader.watch().receive_at_leisure();
        let Seat(place) = &self.seat;
        // Bytes behind the response would be taken for the answer to the next request.
        if reader.is_quiet() && place.idle.borrow().len() < place.idle_max {
            let client = self.connection.hitch.client();
            let _kept = Kept::new(&place.counters);
            let idle = Idle { client, since: now, connection: self.connection, _kept };
            place.idle.borrow_mut().push(idle);
        }
    }
}

impl<N: Network> Pool<N> {
    /// A pool for `upstreams`, whose shared endpoints are `endpoints` in the same order. `counters` finds what is counted
    /// of an endpoint by the names of upstream and endpoint.
    #[must_use]
    pub fn new(
        network: Rc<N>,
        timers: Rc<Timers<N::Io>>,
        buffers: Rc<Buffers>,
        upstreams: &[config::Upstream],
        endpoints: &[Vec<Arc<Endpoint>>],
        counters: impl Fn(&str, &str) -> Arc<EndpointCounters>,
    ) -> Self {
        let groups = upstreams
            .iter()
            .zip(endpoints)
            .map(|(upstream, endpoints)| Group::new(upstream, endpoints, &counters))
            .collect();
        Self { network, timers, buffers, groups }
    }

    /// A connection to the upstream of that index for the client that `gauge` measures, if any does: an idle one unless
    /// `fresh`, else a new one.
    ///
    /// # Errors
    /// When the endpoints tried, at most [`CONNECT_ATTEMPTS_MAX`], all failed.
    pub async fn acquire(
        &self,
        upstream: usize,
        fresh: bool,
        gauge: Option<&Gauge>,
    ) -> Result<Lease<N::Io>, ConnectError> {
        let group = &self.groups[upstream];
        let mut tried = Vec::new();
        let mut last = None;
        for _ in 0..CONNECT_ATTEMPTS_MAX {
            let Some(index) = group.choose(&tried, self.timers.now()) else { break };
            let place = &group.places[index];
            if !fresh && let Some(mut lease) = place.reuse(self.timers.now(), gauge) {
                lease.serve(gauge);
                return Ok(lease);
            }
            match self.connect(group, place).await {
                Ok(mut lease) => {
                    lease.serve(gauge);
                    return Ok(lease);
                }
                Err(error) => {
                    place.counters.failures.add(1);
                    let cause = ConnectCause::of(&error);
                    // What this machine lacks says nothing about the endpoint.
                    if cause != ConnectCause::Local {
                        group.on_failure(place, self.timers.now());
                    }
                    last = Some(ConnectError {
                        endpoint: place.name.clone(),
                        reason: explain(&error),
                        cause,
                    });
                }
            }
            tried.push(index);
        }
        Err(last.unwrap_or_else(|| ConnectError {
            endpoint: "upstream".into(),
            reason: "it has no endpoint".into(),
            cause: ConnectCause::Local,
        }))
    }

    /// The endpoint of `lease` broke before it answered.
    pub fn on_failure(&self, upstream: usize, lease: &Lease<N::Io>) {
        self.groups[upstream].on_failure(&lease.seat.0, self.timers.now());
    }

    /// Closes idle connections that are dead or have waited for too long. To be called about every second.
    pub fn reap(&self) {
        let now = self.timers.now();
        for place in self.groups.iter().flat_map(|group| &group.places) {
            let is_fresh = |idle: &mut Idle<N::Io>| {
                now.since(idle.since) < place.idle_timeout && idle.connection.reader.is_quiet()
            };
            place.idle.borrow_mut().retain_mut(is_fresh);
        }
    }

    async fn connect(
        &self,
        group: &Group<N::Io>,
        place: &Rc<Place<N::Io>>,
    ) -> io::Result<Lease<N::Io>> {
        let seat = Seat::take(place);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name is not resolved");
        for target in place.endpoint.targets().iter().take(CONNECT_ATTEMPTS_MAX) {
            let (io, connecting) = match self.network.connect(target) {
                Ok(begun) => begun,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let watch = Rc::new(self.timers.watch(io, Activity::Upstream));
            watch.send_within(group.connect_timeout);
            match connecting.await {
                Ok(io) => {
                    watch.send_at_leisure();
                    place.counters.connects.add(1);
                    let buffers = || Rc::clone(&self.buffers);
                    let timeout = group.write_timeout;
                    let reader = Reader::plain(Rc::clone(&watch), io.clone(), buffers());
                    let writer = Writer::plain(watch, io, buffers(), timeout);
                    let hitch = Hitch::default();
                    let connection = Box::new(Connection { reader, writer, hitch });
                    return Ok(Lease { connection, is_reused: false, seat });
                }
                Err(_) if watch.shut().is_some() => {
                    last = io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl<T: Transport> Group<T> {
    fn new(
        upstream: &config::Upstream,
        endpoints: &[Arc<Endpoint>],
        counters: &impl Fn(&str, &str) -> Arc<EndpointCounters>,
    ) -> Self {
        let places = endpoints.iter().map(|endpoint| {
            let name = endpoint.to_string();
            Rc::new(Place {
                endpoint: Arc::clone(endpoint),
                idle: RefCell::default(),
                idle_max: upstream.keep_alive_max,
                idle_timeout: upstream.keep_alive_timeout,
                busy: Cell::new(0),
                health: Cell::default(),
                counters: counters(&upstream.name, &name),
                name,
            })
        });
        Self {
            places: places.collect(),
            policy: Policy { eject_after: upstream.eject_after, eject_time: upstream.eject_time },
            connect_timeout: upstream.connect_timeout,
            write_timeout: upstream.idle_timeout,
            turn: Cell::new(0),
        }
    }

    fn choose(&self, tried: &[usize], now: Tick) -> Option<usize> {
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        let candidate = |index: usize| Candidate {
            busy: self.places[index].busy.get(),
            health: self.places[index].health.get(),
            tried: tried.contains(&index),
        };
        let index = health::choose(self.places.len(), candidate, turn, now)?;
        let place = &self.places[index];
        place.change_health(Health::on_chosen);
        Some(index)
    }

    fn on_failure(&self, place: &Place<T>, now: Tick) {
        // A lone endpoint is never ejected: a try costs less than a certain refusal.
        if self.places.len() > 1 {
            place.change_health(|health| health.on_failure(now, self.policy));
        }
    }
}

impl<T: Transport> Place<T> {
    fn change_health(&self, change: impl FnOnce(&mut Health)) {
        let mut health = self.health.get();
        change(&mut health);
        self.health.set(health);
        self.counters.ejected.set(u64::from(!matches!(health, Health::Healthy { .. })));
    }

    /// The connection that carried this client's bytes last: the kernel knows already that it does. Else the one used last,
    /// which is the one that the upstream will close last.
    fn reuse(self: &Rc<Self>, now: Tick, gauge: Option<&Gauge>) -> Option<Lease<T>> {
        while let Some(mut idle) = self.take_idle(gauge) {
            if now.since(idle.since) < self.idle_timeout && idle.connection.reader.is_quiet() {
                let seat = Seat::take(self);
                self.counters.reused.add(1);
                return Some(Lease { connection: idle.connection, is_reused: true, seat });
            }
        }
        None
    }

    fn take_idle(&self, gauge: Option<&Gauge>) -> Option<Idle<T>> {
        let mut all = self.idle.borrow_mut();
        let client = gauge.map(Gauge::client);
        let own = client.and_then(|_| all.iter().rposition(|idle| idle.client == client));
        match own {
            Some(own) => Some(all.remove(own)),
            None => all.pop(),
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES) => format!(
            "{error}; under SELinux the gateway needs the right to connect \
             (setsebool -P httpd_can_network_connect 1, or a policy for its own domain)"
        ),
        Some(libc::EADDRNOTAVAIL) => {
            format!(
                "{error}; no local port is left for this endpoint (net.ipv4.ip_local_port_range)"
            )
        }
        _ => error.to_string(),
    }
}

impl<N: Network> std::fmt::Debug for Pool<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("groups", &self.groups.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
