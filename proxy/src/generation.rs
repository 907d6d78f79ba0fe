//! One configuration in use, with everything that belongs to it. A reload builds another one; what was begun under the
//! old one ends under it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::buffers::Buffers;
use crate::config::Config;
use crate::message::via::Pseudonym;
use crate::pool::{Endpoint, Network, Pool};
use crate::telemetry::{AccessLog, RouteCounters, WorkerCounters};
use crate::timers::Timers;

/// The part that all workers share. Immutable but for resolved names.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// Endpoints of each upstream, in the order of the configuration.
    pub endpoints: Vec<Vec<Arc<Endpoint>>>,
    /// Per upstream: authorities that only the gateway can reach, to be replaced in redirects.
    pub authorities: Vec<Vec<String>>,
    /// What the gateway calls itself towards applications.
    pub pseudonym: Pseudonym,
    /// The open access log.
    pub log: Option<AccessLog>,
}

impl Shared {
    /// Opens the log, draws a pseudonym and resolves names once. A name that does not resolve yet is reported and tried again later.
    ///
    /// # Errors
    /// When the access log cannot be opened, or there are no random numbers.
    pub fn new(config: Config) -> io::Result<Arc<Self>> {
        let log = config.access_log.as_ref().map(AccessLog::open).transpose()?;
        let mut number = [0; 8];
        aws_lc_rs::rand::fill(&mut number)
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let pseudonym = Pseudonym::new(u64::from_ne_bytes(number));
        let endpoints: Vec<Vec<Arc<Endpoint>>> = config
            .upstreams
            .iter()
            .map(|upstream| {
                let endpoint = |addr: &_| Arc::new(Endpoint::new(Clone::clone(addr)));
                upstream.endpoints.iter().map(endpoint).collect()
            })
            .collect();
        let authorities = endpoints
            .iter()
            .map(|group| group.iter().filter_map(|endpoint| endpoint.authority()).collect())
            .collect();
        let shared = Arc::new(Self { config, endpoints, authorities, pseudonym, log });
        shared.resolve();
        Ok(shared)
    }

    /// Resolves all names. May block for seconds.
    pub fn resolve(&self) {
        for endpoint in self.endpoints.iter().flatten().filter(|endpoint| endpoint.is_name()) {
            if let Err(error) = endpoint.resolve() {
                tracing::warn!("upstream {endpoint} does not resolve: {error}");
            }
        }
    }
}

/// The part that belongs to one worker.
#[derive(Debug)]
pub struct Generation<N: Network> {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's upstream connections.
    pub pool: Pool<N>,
    /// What this worker counts of each route, in the order of the configuration.
    pub routes: Vec<Arc<RouteCounters>>,
}

impl<N: Network> Generation<N> {
    /// A pool without connections for the shared configuration.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        network: Rc<N>,
        timers: Rc<Timers<N::Io>>,
        buffers: Rc<Buffers>,
        counters: &WorkerCounters,
    ) -> Rc<Self> {
        let upstreams = &shared.config.upstreams;
        let pool = Pool::new(
            network,
            timers,
            buffers,
            upstreams,
            &shared.endpoints,
            |upstream, endpoint| counters.endpoint(upstream, endpoint),
        );
        let routes = shared.config.routes.iter().map(|route| counters.route(&route.name)).collect();
        Rc::new(Self { shared, pool, routes })
    }
}
