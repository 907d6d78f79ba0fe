//! The only place that knows the order of the stages: one connection from accept to its end.
//!
//! ```text
//! establish -> [ request -> exchange ]* -> close
//!                              \-> tunnel -> close
//! ```

mod exchange;
mod fold;
mod moved;
mod request;
mod response;
mod session;
mod spare;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::addr::ClientAddr;
use crate::buffers::Buffers;
use crate::config::{App, Offload, Service, Splice};
use crate::error::Fault;
use crate::generation::Generation;
use crate::ktls::RecordError;
use crate::ktls::probe::Support;
use crate::limits::{LINGER_BYTES_MAX, LINGER_TIMEOUT};
use crate::message::Version;
use crate::message::reply::{self, Refusal};
use crate::pool::Network;
use crate::stream::{Fill, StreamError};
use crate::telemetry::{
    DataPath, Doing, Gauge, Kind, Measured, Meter, Outcome, Record, WorkerCounters,
};
use crate::timers::{Activity, Timers};
use crate::transport::Transport as _;

use exchange::Forwarded;
use fold::Fold;
use request::{Facts, Plan};
use session::Session;
pub use spare::Spare;
use tunnel::Tunnel;

/// Said when a connection ends for the sake of its key.
const KEY_WORN: &str =
    "a TLS key has protected as many records as it may and cannot be changed: the connection ends";

/// What the connections of one worker share.
pub struct Core<N: Network> {
    /// Deadlines and the coarse clock.
    pub timers: Rc<Timers<N::Io>>,
    /// Free buffers.
    pub buffers: Rc<Buffers>,
    /// What the kernel can take over.
    pub kernel_tls: Arc<Support>,
    /// Measures connections.
    pub meter: Arc<Meter>,
    /// What this worker counts.
    pub counters: Arc<WorkerCounters>,
    /// The configuration for new requests.
    pub generation: RefCell<Rc<Generation<N>>>,
    /// The gateway is being stopped: each response is the last on its connection.
    pub is_draining: Cell<bool>,
    /// Memory of requests that are over.
    pub spare: Spare,
}

/// The listener that a connection came through.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// What is spoken there.
    pub service: Service,
    /// Its TCP port.
    pub port: u16,
    /// Whether the kernel may take TLS over there.
    pub offload: Offload,
    /// Whether bulk data may move inside the kernel.
    pub splice: Splice,
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The next request may come.
    KeepAlive,
    /// Everything was said; close in good order.
    Close,
    /// Something was cut off; the peer must see that.
    Abort,
}

/// What the requests of a connection came to.
enum Served<N: Network> {
    /// There will be no more of them.
    Over(After),
    /// The last one opened a tunnel.
    Upgraded(Box<Tunnel<N>>),
}

/// Serves one connection until its end.
///
/// Handshake and requests are stages of their own on the heap: what a tunnel does not need is given back before it
/// begins, and there are many tunnels, most of them silent.
pub async fn serve<N: Network>(core: Rc<Core<N>>, io: N::Io, client: ClientAddr, door: Door) {
    let cookie = if core.meter.is_on() { io.cookie() } else { None };
    let accepted = SocketAddr::new(client.ip(), client.port());
    let source = |cookie| core.meter.source(cookie, accepted, || io.is_connected());
    let recorded = cookie.and_then(source);
    let peer = Peer { client, source: recorded.map_or(client, ClientAddr::new) };
    let entered = core.counters.enter(accepted, cookie);
    let established = Box::pin(session::establish(&core, io, door, entered.live())).await;
    let mut session = match established {
        Ok(session) => session,
        Err(error) => {
            if let Some(failure) = error.failure() {
                core.counters.handshake_failures[failure as usize].add(1);
            }
            tracing::debug!(client = %client, "no session: {error}");
            return;
        }
    };
    core.counters.on_established(session.tls, session.tls_reason);
    if let Some(gauge) = cookie.and_then(|cookie| Gauge::begin(&core.meter, cookie)) {
        session.measure(gauge);
    }
    let after = match Box::pin(requests(&core, &mut session, peer, door)).await {
        Served::Over(after) => after,
        Served::Upgraded(tunnel) => tunnel.run(&core, &mut session).await,
    };
    entered.measured(session.gauge.as_deref().and_then(Gauge::reading));
    match after {
        After::KeepAlive | After::Close => close(&mut session).await,
        After::Abort => abort(&mut session).await,
    }
}

/// The other end of a connection.
#[derive(Clone, Copy)]
struct Peer {
    /// As accept said.
    client: ClientAddr,
    /// As the kernel recorded it, where it did: the same but for a defect that is logged.
    source: ClientAddr,
}

type OpenFold<N> = Option<(Rc<Generation<N>>, Fold)>;

/// Serves requests one after the other.
async fn requests<N: Network>(
    core: &Core<N>,
    session: &mut Session<N::Io>,
    peer: Peer,
    door: Door,
) -> Served<N> {
    let mut fold = None;
    let served = serve_all(core, session, peer, door, &mut fold).await;
    if let Some((generation, fold)) = fold {
        write_record(&generation, &mut fold.into_record(), session.gauge.as_deref());
    }
    served
}

/// The same, with what is told of several requests at once left open at the end.
async fn serve_all<N: Network>(
    core: &Core<N>,
    session: &mut Session<N::Io>,
    peer: Peer,
    door: Door,
    fold: &mut OpenFold<N>,
) -> Served<N> {
    loop {
        let generation = Rc::clone(&core.generation.borrow());
        let limits = &generation.shared.config.limits;
        if let Some(after) = wait(core, session, limits.keep_alive_timeout).await {
            return Served::Over(after);
        }
        let start = Instant::now();
        session.watch.set_activity(Activity::Exchange);
        session.watch.receive_within(limits.head_timeout);
        session.live.requests.add(1);
        session.live.set_doing(Doing::Request);
        // Names are those of the configuration at the time when the request is complete.
        let generation = Rc::clone(&core.generation.borrow());
        let server_name = session.server_name.clone();
        let facts = Facts {
            client: peer.client,
            source: peer.source,
            door,
            config: &generation.shared.config,
            pseudonym: generation.shared.pseudonym,
            is_draining: &core.is_draining,
            server_name: server_name.as_deref(),
            spare: &core.spare,
        };
        let mut record = new_record(peer.source, session);
        let plan = match read_head(session, &facts, &mut record).await {
            Ok(plan) => plan,
            Err(after) => return Served::Over(after),
        };
        session.watch.receive_at_leisure();
        let after = match plan {
            Plan::Refuse { refusal, version, close, to_head } => {
                record.fault = Some(refusal.fault());
                record.reason = Some(refusal.to_string());
                refuse(session, refusal, (version, close, to_head), &mut record).await
            }
            Plan::Answer { status, reply, close } => {
                record.status = status;
                let after = send(session, &reply, close).await;
                session.on_answered_here();
                after
            }
            Plan::Forward(forward) => {
                let app = generation.shared.config.routes[forward.route].app;
                let is_folded = app == App::Guacamole && fold::is_tunnel_request(&record.target);
                let forwarded =
                    exchange::forward(core, &generation, session, &forward, &mut record, start);
                let after = match forwarded.await {
                    Forwarded::Over(after) => after,
                    Forwarded::Upgraded(lease) => {
                        let tunnel = Tunnel { generation, lease: *lease, record, start };
                        return Served::Upgraded(Box::new(tunnel));
                    }
                };
                core.spare.give(forward);
                if is_folded && record.status == 200 && record.fault.is_none() {
                    record.total = start.elapsed();
                    count(core, &generation, &record);
                    Fold::add(fold, &generation, record, session.gauge.as_deref());
                    if after == After::KeepAlive {
                        continue;
                    }
                    return Served::Over(after);
                }
                after
            }
        };
        record.total = start.elapsed();
        count(core, &generation, &record);
        if let Some((generation, fold)) = fold.take() {
            write_record(&generation, &mut fold.into_record(), session.gauge.as_deref());
        }
        write_record(&generation, &mut record, session.gauge.as_deref());
        if after != After::KeepAlive {
            return Served::Over(after);
        }
    }
}

/// Counts a request that is over.
fn count<N: Network>(core: &Core<N>, generation: &Generation<N>, record: &Record) {
    let route = record.route_index.map(|index| &*generation.routes[index]);
    let duration = (record.kind != Kind::Tunnel).then_some(record.total);
    route.unwrap_or(&core.counters.unrouted).on_request(record.status, duration);
    if let Some(reason) = record.path_reason {
        core.counters.copies[reason as usize].add(1);
    }
}

/// Waits for the first byte of a request; Some when none will come.
async fn wait<N: Network>(
    core: &Core<N>,
    session: &mut Session<N::Io>,
    keep_alive_timeout: Duration,
) -> Option<After> {
    if !session.reader.filled().is_empty() {
        return None;
    }
    if core.is_draining.get() {
        return Some(After::Close);
    }
    session.watch.set_activity(Activity::Idle);
    session.live.set_doing(Doing::Idle);
    session.watch.receive_within(keep_alive_timeout);
    match session.reader.fill().await {
        Ok(Fill::Data) => None,
        Ok(Fill::End(_)) | Err(StreamError::Expired | StreamError::Drained) => Some(After::Close),
        Err(error) => {
            tracing::debug!("between requests: {error}");
            Some(After::Abort)
        }
    }
}

/// Reads until the head is complete and decides what to do with the request.
async fn read_head<T: crate::transport::Transport>(
    session: &mut Session<T>,
    facts: &Facts<'_>,
    record: &mut Record,
) -> Result<Plan, After> {
    loop {
        if let Some((plan, len)) = request::plan(session.reader.filled(), facts, record) {
            session.reader.consume(len);
            return Ok(plan);
        }
        match session.reader.fill().await {
            Ok(Fill::Data) => {}
            Err(StreamError::Expired) => {
                let refusal = Refusal::HeadTimeout;
                return Ok(Plan::Refuse {
                    refusal,
                    version: Version::Http11,
                    close: true,
                    to_head: false,
                });
            }
            Ok(Fill::End(_)) | Err(_) => return Err(After::Abort),
        }
    }
}

/// Answers for the application.
async fn refuse<T: crate::transport::Transport>(
    session: &mut Session<T>,
    refusal: Refusal,
    (version, close, to_head): (Version, bool, bool),
    record: &mut Record,
) -> After {
    let close = close || refusal.closes();
    let mut reply = Vec::new();
    reply::write_refusal(refusal, version, close, to_head, &mut reply);
    record.status = refusal.status().0;
    record.outcome = Outcome::Refused;
    let after = send(session, &reply, close).await;
    session.on_answered_here();
    after
}

async fn send<T: crate::transport::Transport>(
    session: &mut Session<T>,
    reply: &[u8],
    close: bool,
) -> After {
    let sent = async {
        session.writer.push_all(reply).await?;
        session.writer.flush().await
    };
    match sent.await {
        Ok(()) if close => After::Close,
        Ok(()) => After::KeepAlive,
        Err(_) => After::Abort,
    }
}

/// Says goodbye, and reads on for a moment: closing with unread input would make the kernel send a reset, which
/// destroys the last response on its way (RFC 9112 §9.6).
async fn close<T: crate::transport::Transport>(session: &mut Session<T>) {
    if session.writer.finish().await.is_err() {
        return;
    }
    session.watch.set_activity(Activity::Idle);
    session.watch.receive_within(LINGER_TIMEOUT);
    let mut dropped = 0;
    while dropped < LINGER_BYTES_MAX {
        let count = session.reader.filled().len();
        session.reader.consume(count);
        dropped += count as u64;
        if !matches!(session.reader.fill().await, Ok(Fill::Data)) {
            return;
        }
    }
}

/// Ends without a goodbye, so that what was cut off looks so; a peer that broke the record protocol is told (RFC 8446 §6.2).
async fn abort<T: crate::transport::Transport>(session: &mut Session<T>) {
    let said = match session.reader.record_error() {
        // What we sent is whole, and can be said to be so.
        Some(RecordError::KeyUpdateUnsupported) => session.writer.finish().await,
        Some(error) => match error.alert() {
            Some(alert) => session.writer.fail(alert).await,
            None => return,
        },
        None => return,
    };
    if let Err(error) = said {
        tracing::debug!("the alert was not sent: {error}");
    }
}

fn new_record<T: crate::transport::Transport>(client: ClientAddr, session: &Session<T>) -> Record {
    Record {
        time: Timestamp::now(),
        kind: Kind::Request,
        client: client.ip(),
        port: client.port(),
        method: String::new(),
        target: String::new(),
        host: String::new(),
        route: None,
        route_index: None,
        upstream: None,
        status: 0,
        bytes_in: 0,
        bytes_out: 0,
        requests: 1,
        total: Duration::ZERO,
        connect: None,
        first_byte: None,
        outcome: Outcome::Complete,
        fault: None,
        reason: None,
        tls: session.tls,
        tls_reason: session.tls_reason,
        path: DataPath::Copy,
        path_reason: None,
        agent: None,
        referer: None,
        unstable_risk: None,
        measured: None,
    }
}

/// Writes the access line, and a diagnostic one when something went wrong that an administrator can do something about.
fn write_record<N: Network>(
    generation: &Generation<N>,
    record: &mut Record,
    gauge: Option<&Gauge>,
) {
    if let (Some(fault @ (Fault::Upstream | Fault::Local)), Some(reason)) =
        (record.fault, &record.reason)
    {
        tracing::warn!(
            client = %record.client,
            route = record.route.as_deref().unwrap_or("-"),
            upstream = record.upstream.as_deref().unwrap_or("-"),
            status = record.status,
            "{}: {reason}",
            fault.label()
        );
    }
    if let Some(log) = &generation.shared.log {
        record.measured = gauge.and_then(Gauge::reading).map(Measured::from);
        log.write(record);
    }
}

#[cfg(test)]
mod tests;
