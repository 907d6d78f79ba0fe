//! One request and its response, both bodies moving at once; or the tunnel that they open.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::moved::Moved;
use super::request::{Forward, answer_timeout, head_limits};
use super::session::Session;
use super::{After, Core, refuse};
use crate::config::Route;
use crate::error::Fault;
use crate::generation::{Generation, Shared};
use crate::limits::INTERIM_RESPONSES_MAX;
use crate::message::framing::Framing;
use crate::message::reply::Refusal;
use crate::message::response::ResponseHead;
use crate::message::rewrite::{self, Mapping, ResponseContext};
use crate::message::{Parsed, Version, fields};
use crate::pool::{Lease, Network};
use crate::relay::{self, BodyError, Ending, Gaps, Pace, RelayError, Side, Sink, Source};
use crate::stream::{End, Fill, Reader, StreamError, Writer};
use crate::telemetry::{Doing, Kind, Outcome, Record};
use crate::timers::Activity;
use crate::transport::Transport;

/// How long an early response may take after the upstream stopped reading the request.
const EARLY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Said when a connection ends for the sake of its key.
const KEY_WORN: &str =
    "a TLS key has protected as many records as it may and cannot be changed: the connection ends";

/// Why an exchange did not complete.
enum Failure {
    /// Nothing was sent to the client yet: it can be told.
    Refuse(Refusal, String),
    /// The response has begun, or the client is gone.
    Abort(Fault, String),
}

/// How the response side ended well.
enum Answer {
    /// The response was sent.
    Complete { bytes: u64, upstream_keeps: bool },
    /// 101 was sent.
    Upgraded,
}

/// What both sides of an exchange tell each other.
struct Progress {
    /// The request was sent to its last byte.
    request_done: Cell<bool>,
    /// The response, or an interim one, has begun to be sent.
    response_started: Cell<bool>,
    /// A byte of a response came from the upstream.
    upstream_spoke: Cell<Option<Instant>>,
    /// Status sent.
    status: Cell<u16>,
    /// The response told the client that the connection ends.
    close: Cell<bool>,
    /// How the end of the response's body is found.
    framing: Cell<Framing>,
}

/// Forwards one request and relays its answer.
pub(super) async fn forward<N: Network>(
    core: &Core<N>,
    generation: &Generation<N>,
    session: &mut Session<N::Io>,
    forward: &Forward,
    record: &mut Record,
    start: Instant,
) -> After {
    let shared = &*generation.shared;
    let route = &shared.config.routes[forward.route];
    let unread_body = forward.framing != Framing::None;
    let mut is_replay = false;
    loop {
        let mut lease = match generation.pool.acquire(route.upstream, is_replay).await {
            Ok(lease) => lease,
            Err(error) => {
                record.fault = Some(if error.is_local { Fault::Local } else { Fault::Upstream });
                record.reason = Some(error.to_string());
                record.upstream = Some(error.endpoint);
                let close = unread_body || !forward.keep_alive;
                let how = (forward.version, close, forward.to_head);
                return refuse(session, Refusal::Unreachable, how, record).await;
            }
        };
        lease.serve(session.gauge.as_deref());
        record.connect = Some(start.elapsed());
        record.upstream = Some(lease.endpoint().to_string());
        session.live.set_route(generation.routes[forward.route].index);
        session.live.set_endpoint(lease.counters().index);
        match attempt(core, shared, route, session, forward, lease, record, start).await {
            Attempt::Done(after) => return after,
            Attempt::Replay => is_replay = true,
            Attempt::Failed(lease, Failure::Refuse(refusal, reason)) => {
                if refusal.fault() == Fault::Upstream {
                    generation.pool.on_failure(route.upstream, &lease);
                }
                drop(lease);
                record.fault = Some(refusal.fault());
                record.reason = Some(reason);
                let close = unread_body || !forward.keep_alive;
                let how = (forward.version, close, forward.to_head);
                return refuse(session, refusal, how, record).await;
            }
            Attempt::Failed(_, Failure::Abort(fault, reason)) => {
                record.fault = Some(fault);
                record.reason = Some(reason);
                record.outcome = Outcome::Aborted;
                return After::Abort;
            }
        }
    }
}

enum Attempt<T: Transport> {
    Done(After),
    /// The connection was dead, and nothing is lost by asking again on another.
    Replay,
    Failed(Box<Lease<T>>, Failure),
}

#[expect(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
async fn attempt<N: Network>(
    core: &Core<N>,
    shared: &Shared,
    route: &Route,
    session: &mut Session<N::Io>,
    forward: &Forward,
    mut lease: Lease<N::Io>,
    record: &mut Record,
    start: Instant,
) -> Attempt<N::Io> {
    let progress = Progress {
        request_done: Cell::new(false),
        response_started: Cell::new(false),
        upstream_spoke: Cell::new(None),
        status: Cell::new(0),
        close: Cell::new(!forward.keep_alive || session.is_key_worn()),
        framing: Cell::new(Framing::None),
    };
    if forward.keep_alive && session.is_key_worn() {
        tracing::info!(client = %record.client, "{KEY_WORN}");
    }
    let (wire_before, read_before) = (lease.writer.wire_count(), session.reader.count());
    let before = Moved::until_now(session, &lease);
    let result = exchange(shared, route, session, forward, &mut lease, &progress).await;
    record.status = progress.status.get();
    record.bytes_in = session.reader.count() - read_before;
    before.tell(session, &lease, progress.framing.get(), record);
    record.first_byte = progress.upstream_spoke.get().map(|at| at.duration_since(start));
    if let Some(time) = record.first_byte {
        session.live.set_first_byte(time);
        lease.on_answer();
    }
    match result {
        Ok(Answer::Complete { bytes, upstream_keeps }) => {
            record.bytes_out = bytes;
            let is_request_done = progress.request_done.get();
            if is_request_done && upstream_keeps {
                lease.check_in(core.timers.now());
            }
            Attempt::Done(if progress.close.get() || !is_request_done {
                After::Close
            } else {
                After::KeepAlive
            })
        }
        Ok(Answer::Upgraded) => {
            Attempt::Done(tunnel(session, &mut lease, route.tunnel_idle_timeout, record).await)
        }
        Err(failure) => {
            let nothing_came =
                progress.upstream_spoke.get().is_none() && !progress.response_started.get();
            let nothing_left = lease.writer.wire_count() == wire_before;
            let repeatable =
                nothing_left || forward.is_idempotent && forward.framing == Framing::None;
            let is_dead = matches!(&failure, Failure::Refuse(Refusal::UpstreamClosed, _));
            let body_is_whole = session.reader.count() == read_before;
            if lease.is_reused && is_dead && nothing_came && repeatable && body_is_whole {
                Attempt::Replay
            } else {
                Attempt::Failed(Box::new(lease), failure)
            }
        }
    }
}

/// Drives the request and the response until the response is complete.
async fn exchange<T: Transport>(
    shared: &Shared,
    route: &Route,
    session: &mut Session<T>,
    forward: &Forward,
    lease: &mut Lease<T>,
    progress: &Progress,
) -> Result<Answer, Failure> {
    let limits = &shared.config.limits;
    let up_watch = lease.reader.share_watch();
    let answer_timeout = answer_timeout(forward, route, &shared.config);
    // Staged only: the head leaves together with the first bytes of the body, if those are there.
    let is_staged = lease.writer.push_all(&forward.head).await;
    is_staged.map_err(|error| upstream_closed(&error))?;
    let mut response =
        pin!(respond(shared, route, forward, &mut lease.reader, &mut session.writer, progress,));
    {
        let pace = match limits.body_rate_min {
            0 => Pace::Idle(limits.write_timeout),
            bytes_per_second => Pace::Rate { bytes_per_second },
        };
        let mut request = pin!(relay::pump(
            &mut session.reader,
            &mut lease.writer,
            Source::new(forward.framing),
            Sink::new(forward.framing),
            pace,
            route.body_bytes_max,
        ));
        let mut upstream_is_deaf = false;
        let early = poll_fn(|cx| {
            if !upstream_is_deaf && let Poll::Ready(result) = request.as_mut().poll(cx) {
                match result {
                    Ok(_) => {
                        progress.request_done.set(true);
                        return Poll::Ready(Ok(None));
                    }
                    // The upstream may have answered before it stopped reading.
                    Err(RelayError::Stream(Side::To, _)) => {
                        upstream_is_deaf = true;
                        if !progress.response_started.get() {
                            up_watch.receive_within(EARLY_RESPONSE_TIMEOUT);
                        }
                    }
                    Err(error) => return Poll::Ready(Err(request_failure(&error, progress))),
                }
            }
            response.as_mut().poll(cx).map(|answer| answer.map(Some))
        });
        match early.await {
            Ok(None) => {}
            Ok(Some(answer)) => return Ok(answer),
            Err(Failure::Refuse(Refusal::ResponseTimeout, reason)) if upstream_is_deaf => {
                return Err(Failure::Refuse(Refusal::UpstreamClosed, reason));
            }
            Err(failure) => return Err(failure),
        }
    }
    if !progress.response_started.get() {
        up_watch.receive_within(answer_timeout);
    }
    await_answer(response, &mut session.reader).await
}

/// Waits for the response while watching whether the client goes away, unless it has sent the next request already.
async fn await_answer<T: Transport>(
    mut response: Pin<&mut impl Future<Output = Result<Answer, Failure>>>,
    reader: &mut Reader<T>,
) -> Result<Answer, Failure> {
    let mut is_watching = reader.filled().is_empty() && reader.end().is_none();
    poll_fn(|cx| {
        if let Poll::Ready(answer) = response.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        if is_watching && let Poll::Ready(fill) = reader.poll_fill(cx) {
            is_watching = false;
            match fill {
                // The next request, or a client that has said all it wants to say: it still reads.
                Ok(Fill::Data | Fill::End(End::Clean)) => {}
                Ok(Fill::End(End::Truncated)) => {
                    let reason = "the client closed before the response was complete";
                    return Poll::Ready(Err(Failure::Abort(Fault::Downstream, reason.into())));
                }
                Err(error) => {
                    let reason = format!("the client: {error}");
                    return Poll::Ready(Err(Failure::Abort(Fault::Downstream, reason)));
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Reads the response and sends it to the client.
async fn respond<T: Transport>(
    shared: &Shared,
    route: &Route,
    forward: &Forward,
    up: &mut Reader<T>,
    down: &mut Writer<T>,
    progress: &Progress,
) -> Result<Answer, Failure> {
    let idle_timeout = shared.config.upstreams[route.upstream].idle_timeout;
    let mut head = Vec::with_capacity(1024);
    for _ in 0..=INTERIM_RESPONSES_MAX {
        let read = read_response(shared, route, forward, up, progress, &mut head).await?;
        let client_error =
            |error| Failure::Abort(Fault::Downstream, format!("the client: {error}"));
        match read {
            Read::Interim => {
                if forward.version == Version::Http11 {
                    progress.response_started.set(true);
                    down.push_all(&head).await.map_err(client_error)?;
                    down.flush().await.map_err(client_error)?;
                }
            }
            Read::Upgrade => {
                progress.response_started.set(true);
                down.push_all(&head).await.map_err(client_error)?;
                down.flush().await.map_err(client_error)?;
                return Ok(Answer::Upgraded);
            }
            Read::Final { source, sink, keep_alive } => {
                progress.response_started.set(true);
                progress.framing.set(source);
                down.push_all(&head).await.map_err(client_error)?;
                let source = Source::new(source);
                let pace = Pace::Idle(idle_timeout);
                return match relay::pump(up, down, source, sink, pace, None).await {
                    Ok(bytes) => Ok(Answer::Complete { bytes, upstream_keeps: keep_alive }),
                    Err(error) => Err(Failure::Abort(
                        error.fault(Fault::Upstream, Fault::Downstream),
                        format!("the response body: {error}"),
                    )),
                };
            }
        }
    }
    let refusal = Refusal::TooManyInterim;
    Err(failure(progress, refusal, refusal.to_string()))
}

/// What came from the upstream.
enum Read {
    Interim,
    Upgrade,
    Final { source: Framing, sink: Sink, keep_alive: bool },
}

/// Reads one response head and leaves the one for the client in `head`.
async fn read_response<T: Transport>(
    shared: &Shared,
    route: &Route,
    forward: &Forward,
    up: &mut Reader<T>,
    progress: &Progress,
    head: &mut Vec<u8>,
) -> Result<Read, Failure> {
    loop {
        if !up.filled().is_empty() && progress.upstream_spoke.get().is_none() {
            progress.upstream_spoke.set(Some(Instant::now()));
        }
        match translate(shared, route, forward, up.filled(), progress, head) {
            Ok(Some((read, len))) => {
                up.consume(len);
                return Ok(read);
            }
            Ok(None) => {}
            Err(refusal) => return Err(failure(progress, refusal, refusal.to_string())),
        }
        match up.fill().await {
            Ok(Fill::Data) => {}
            Ok(Fill::End(_)) => {
                let reason = "the upstream closed before its response was complete".to_owned();
                return Err(failure(progress, Refusal::UpstreamClosed, reason));
            }
            Err(StreamError::Expired) => {
                let refusal = Refusal::ResponseTimeout;
                return Err(failure(progress, refusal, refusal.to_string()));
            }
            Err(error) => {
                return Err(failure(progress, Refusal::UpstreamClosed, error.to_string()));
            }
        }
    }
}

/// Parses one response head and builds the one for the client. No I/O.
fn translate(
    shared: &Shared,
    route: &Route,
    forward: &Forward,
    bytes: &[u8],
    progress: &Progress,
    out: &mut Vec<u8>,
) -> Result<Option<(Read, usize)>, Refusal> {
    let mut slots = fields::slots();
    let limits = head_limits(&shared.config);
    let key = forward.websocket_key.as_deref();
    let parsed = ResponseHead::parse(bytes, &mut slots, limits, forward.to_head, key)?;
    let Parsed::Complete(head, len) = parsed else { return Ok(None) };
    // HTTP/1.0 knows no chunks: there the end of the connection is the end of the body.
    let framing = match (head.framing, forward.version) {
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        (Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (framing, _) => framing,
    };
    let is_final = !head.is_interim() && head.status != 101;
    if is_final && (!progress.request_done.get() || framing == Framing::UntilClose) {
        // What the client has not sent yet will not be read: the next request could not be found behind it.
        progress.close.set(true);
    }
    if !head.is_interim() {
        progress.status.set(head.status);
    }
    let context = ResponseContext {
        version: forward.version,
        framing,
        close: progress.close.get(),
        mapping: Mapping { public: &route.path, upstream: &route.upstream_path },
        upstream_authorities: &shared.authorities[route.upstream],
        public: (forward.identity.scheme(), &forward.authority),
        hsts: route.hsts.as_deref().filter(|_| forward.identity.https),
        edits: &route.response_headers,
    };
    out.clear();
    rewrite::write_response(&head, &context, out);
    let read = match head.status {
        101 => Read::Upgrade,
        _ if head.is_interim() => Read::Interim,
        _ => Read::Final {
            source: head.framing,
            sink: Sink::new(framing),
            keep_alive: head.keep_alive,
        },
    };
    Ok(Some((read, len)))
}

/// Tells the client if that is still possible.
fn failure(progress: &Progress, refusal: Refusal, reason: String) -> Failure {
    if progress.status.get() == 0 {
        Failure::Refuse(refusal, reason)
    } else {
        Failure::Abort(refusal.fault(), reason)
    }
}

fn upstream_closed(error: &StreamError) -> Failure {
    Failure::Refuse(Refusal::UpstreamClosed, error.to_string())
}

/// The client's side of the request failed.
fn request_failure(error: &RelayError, progress: &Progress) -> Failure {
    let refusal = match error {
        RelayError::Body(BodyError::Chunk(error)) => Some(Refusal::Chunk(*error)),
        RelayError::Body(BodyError::TooLarge(max)) => Some(Refusal::BodyTooLarge(*max)),
        RelayError::Stream(Side::From, StreamError::Expired) => Some(Refusal::BodyTimeout),
        RelayError::Body(BodyError::Truncated) | RelayError::Stream(_, _) => None,
    };
    let reason = format!("the request body: {error}");
    match refusal {
        Some(refusal) => failure(progress, refusal, reason),
        None => Failure::Abort(Fault::Downstream, reason),
    }
}

/// Both directions without looking, until both have ended.
async fn tunnel<T: Transport>(
    session: &mut Session<T>,
    lease: &mut Lease<T>,
    idle_timeout: Duration,
    record: &mut Record,
) -> After {
    record.kind = Kind::Tunnel;
    session.watch.set_activity(Activity::Tunnel);
    session.live.set_doing(Doing::Tunnel);
    let (read_before, sent_before) = (session.reader.count(), session.writer.count());
    let before = Moved::until_now(session, lease);
    let watch = Rc::clone(&session.watch);
    let gaps = Gaps::counting(watch.now(), Arc::clone(&session.live.risk));
    let result = relay::tunnel(
        (&mut session.reader, &mut session.writer),
        (&mut lease.reader, &mut lease.writer),
        idle_timeout,
        &gaps,
    )
    .await;
    gaps.on_bytes(watch.now());
    record.unstable_risk = Some(gaps.risk());
    watch.receive_at_leisure();
    record.bytes_in = session.reader.count() - read_before;
    record.bytes_out = session.writer.count() - sent_before;
    before.tell(session, lease, Framing::None, record);
    match result {
        Ok(ending) => {
            record.outcome = match ending {
                Ending::Closed => Outcome::Complete,
                Ending::Idle => Outcome::Idle,
                Ending::Drained => Outcome::Drained,
                Ending::KeyWorn => {
                    tracing::info!(client = %record.client, "{KEY_WORN}");
                    Outcome::KeyWorn
                }
            };
            After::Close
        }
        Err(error) => {
            record.outcome = Outcome::Aborted;
            record.fault = Some(error.fault(Fault::Downstream, Fault::Upstream));
            record.reason = Some(format!("the tunnel: {error}"));
            After::Abort
        }
    }
}
