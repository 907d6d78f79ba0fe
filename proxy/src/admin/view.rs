//! The whole gateway at one moment, read from the counters of all workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::telemetry::snapshot::{
    Activity, Connection, Ebpf, Path, Snapshot, Tls, Totals, Upstream, Worker,
};
use crate::telemetry::{
    Counter, Doing, EndpointCounters, Latency, Live, Meter, Moved, Reading, RouteCounters, Seen,
    TlsPath, WorkerCounters,
};
use crate::worker::{Orders, Phase};

/// What there is to be looked at.
#[derive(Debug)]
pub struct View {
    /// Of each worker.
    pub workers: Vec<Arc<WorkerCounters>>,
    /// Measures connections.
    pub meter: Arc<Meter>,
    /// The configuration in use, and what workers are to do.
    pub orders: watch::Receiver<Orders>,
    /// When the gateway started.
    pub began: Instant,
    /// Lines that the access log has dropped.
    pub dropped_lines: Arc<Counter>,
}

/// One look.
pub(super) struct Look {
    /// In the order of the workers.
    pub seen: Vec<Seen>,
    /// Bytes of all connections, those that have ended included.
    pub moved: Moved,
    /// Flush latency of all connections, likewise.
    pub down: Latency,
    /// Input latency of all connections, likewise.
    pub up: Latency,
    /// Connections that are measured now.
    pub measured: u64,
    readings: HashMap<u64, Reading>,
}

impl View {
    /// Whether new connections are accepted.
    pub(super) fn is_serving(&self) -> bool {
        self.orders.borrow().phase == Phase::Serving
    }

    /// Looks at everything.
    pub(super) fn look(&self) -> Look {
        let seen: Vec<Seen> = self.workers.iter().map(|worker| worker.look()).collect();
        let mut look = Look {
            seen: Vec::new(),
            moved: Moved::default(),
            down: Latency::default(),
            up: Latency::default(),
            measured: 0,
            readings: HashMap::new(),
        };
        for seen in &seen {
            look.moved.add(&seen.ended.moved);
            look.down.add(&seen.ended.down);
            look.up.add(&seen.ended.up);
            for live in &seen.live {
                look.moved.add(&live.moved());
                if let Some(reading) = self.reading(live) {
                    look.down.add(&reading.down);
                    look.up.add(&reading.up);
                    look.readings.insert(live.number, reading);
                }
            }
        }
        look.measured = look.readings.len() as u64;
        look.seen = seen;
        look
    }

    /// What the kernel has measured of a connection, or had at its end: that is what will be added to those that have
    /// ended, and a sum must never fall.
    fn reading(&self, live: &Live) -> Option<Reading> {
        let last = || live.last.get().map(|reading| (**reading).clone());
        let now = || live.cookie.and_then(|cookie| self.meter.reading(cookie));
        // It may end between the two.
        last().or_else(now).or_else(last)
    }

    /// The endpoints of the configuration in use: name of the upstream, endpoint, and each worker's counters.
    pub(super) fn endpoints(
        &self,
        look: &Look,
    ) -> Vec<(String, String, Vec<Arc<EndpointCounters>>)> {
        let shared = Arc::clone(&self.orders.borrow().shared);
        let mut all = Vec::new();
        for (upstream, endpoints) in shared.config.upstreams.iter().zip(&shared.endpoints) {
            for endpoint in endpoints {
                let endpoint = endpoint.to_string();
                let is_it = |known: &&Arc<EndpointCounters>| {
                    known.upstream == upstream.name && known.endpoint == endpoint
                };
                let found = look.seen.iter().filter_map(|seen| seen.endpoints.iter().find(is_it));
                let found = found.cloned().collect();
                all.push((upstream.name.clone(), endpoint, found));
            }
        }
        all
    }

    /// The routes of the configuration in use, and the place for requests that no route took: each worker's counters.
    pub(super) fn routes<'l>(&'l self, look: &'l Look) -> Vec<(String, Vec<&'l RouteCounters>)> {
        let shared = Arc::clone(&self.orders.borrow().shared);
        let unrouted: Vec<_> = self.workers.iter().map(|worker| &worker.unrouted).collect();
        let mut all = vec![(crate::telemetry::NO_ROUTE.to_owned(), unrouted)];
        for route in &shared.config.routes {
            let of_worker = |seen: &'l Seen| {
                seen.routes.iter().map(Arc::as_ref).find(|known| known.name == route.name)
            };
            all.push((route.name.clone(), look.seen.iter().filter_map(of_worker).collect()));
        }
        all
    }

    /// What `/connections` tells.
    pub(super) fn snapshot(&self) -> Snapshot {
        let look = self.look();
        let count = |route: &RouteCounters| route.requests.iter().map(Counter::get).sum::<u64>();
        let mut totals = Totals {
            bytes_in: look.moved.bytes_in,
            bytes_out: look.moved.bytes_out,
            spliced: look.moved.spliced,
            copied: look.moved.copied(),
            ..Totals::default()
        };
        let mut workers = Vec::new();
        let mut connections = Vec::new();
        for (worker, seen) in self.workers.iter().zip(&look.seen) {
            let requests = seen.routes.iter().map(|route| count(route)).sum::<u64>();
            let requests = requests + count(&worker.unrouted);
            workers.push(Worker {
                index: worker.index,
                connections: seen.live.len() as u64,
                accepted: worker.accepted.get(),
                requests,
            });
            totals.connections += seen.live.len() as u64;
            totals.requests += requests;
            totals.kernel_tls += worker.established[0].get();
            totals.user_tls += worker.established[1].get();
            totals.no_tls += worker.established[2].get();
            let is_tunnel = |live: &&Arc<Live>| live.doing() == Doing::Tunnel;
            totals.tunnels += seen.live.iter().filter(is_tunnel).count() as u64;
            let tell = |live: &Arc<Live>| {
                connection(worker.index, seen, live, look.readings.get(&live.number))
            };
            connections.extend(seen.live.iter().map(tell));
        }
        let upstreams = self.endpoints(&look).into_iter().map(|(upstream, endpoint, counters)| {
            let sum = |of: fn(&EndpointCounters) -> &Counter| {
                counters.iter().map(|counters| of(counters).get()).sum()
            };
            Upstream {
                route_upstream: upstream,
                endpoint,
                healthy: counters.iter().all(|counters| counters.ejected.get() == 0),
                idle: sum(|counters| &counters.idle),
                in_use: sum(|counters| &counters.in_use),
            }
        });
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: seconds(self.began.elapsed()),
            draining: !self.is_serving(),
            workers,
            upstreams: upstreams.collect(),
            totals,
            ebpf: Ebpf {
                active: self.meter.is_on(),
                reason: self.meter.reason().map(ToOwned::to_owned),
            },
            connections,
        }
    }
}

fn connection(worker: usize, seen: &Seen, live: &Live, reading: Option<&Reading>) -> Connection {
    let moved = live.moved();
    let risk = live.risk.risk();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let route = live.route().and_then(|index| seen.routes.get(index));
    let endpoint = live.endpoint().and_then(|index| seen.endpoints.get(index));
    Connection {
        id: live.number,
        worker,
        client: live.client.ip(),
        port: live.client.port(),
        // A route for any host goes by its path.
        route: route.map(|route| route.name.trim_start_matches('*').to_owned()),
        upstream: endpoint.map(|endpoint| endpoint.endpoint.clone()),
        kind: match live.doing() {
            Doing::Idle => Activity::Idle,
            Doing::Request => Activity::Request,
            Doing::Tunnel => Activity::Tunnel,
        },
        age_s: seconds(live.began.elapsed()),
        tls: match live.tls() {
            TlsPath::Kernel => Tls::Kernel,
            TlsPath::User => Tls::User,
            TlsPath::None => Tls::None,
        },
        path: if moved.spliced > 0 { Path::Splice } else { Path::Copy },
        requests: live.requests.get(),
        bytes_in: moved.bytes_in,
        bytes_out: moved.bytes_out,
        first_byte_ms: live.first_byte().map(|time| seconds(time) * 1000.0),
        flush_p50_us: reading.and_then(|reading| reading.down.p50()).map(micros),
        flush_p99_us: reading.and_then(|reading| reading.down.p99()).map(micros),
        flush_max_us: reading
            .filter(|reading| reading.down.count > 0)
            .map(|reading| micros(reading.down.max)),
        input_p50_us: reading.and_then(|reading| reading.up.p50()).map(micros),
        rtt_us: reading.and_then(|reading| reading.srtt).map(micros),
        retransmits: reading.map(|reading| reading.retransmits),
        gaps_1_5s: risk.over_1500_ms.into(),
        gaps_15s: risk.over_15_s.into(),
    }
}

/// Seconds to the microsecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}
