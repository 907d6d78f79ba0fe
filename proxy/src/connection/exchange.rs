//! One request and its response, both bodies moving at once.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::moved::Moved;
use super::request::{Forward, answer_timeout};
use super::response::{failure, respond};
use super::session::Session;
use super::{After, Core, KEY_WORN, refuse};
use crate::config::Route;
use crate::error::Fault;
use crate::generation::{Generation, Shared};
use crate::message::framing::Framing;
use crate::message::reply::Refusal;
use crate::pool::{ConnectCause, Lease, Network};
use crate::relay::{self, BodyError, Pace, RelayError, Side, Sink, Source};
use crate::stream::{End, Fill, Reader, StreamError};
use crate::telemetry::{Outcome, Record};
use crate::transport::Transport;

/// How long an early response may take after the upstream stopped reading the request.
const EARLY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What became of a request.
pub(super) enum Forwarded<T: Transport> {
    /// It was answered, or cannot be any more.
    Over(After),
    /// The answer was the upgrade to a tunnel, on this connection.
    Upgraded(Box<Lease<T>>),
}

/// Why an exchange did not complete.
pub(super) enum Failure {
    /// Nothing was sent to the client yet: it can be told.
    Refuse(Refusal, String),
    /// The response has begun, or the client is gone.
    Abort(Fault, String),
}

/// How the response side ended well.
pub(super) enum Answer {
    /// The response was sent.
    Complete { bytes: u64, upstream_keeps: bool },
    /// 101 was sent.
    Upgraded,
}

/// What both sides of an exchange tell each other.
pub(super) struct Progress {
    /// The request was sent to its last byte.
    pub request_done: Cell<bool>,
    /// The response, or an interim one, has begun to be sent.
    pub response_started: Cell<bool>,
    /// A byte of a response came from the upstream.
    pub upstream_spoke: Cell<Option<Instant>>,
    /// Status sent.
    pub status: Cell<u16>,
    /// The response told the client that the connection ends.
    pub close: Cell<bool>,
    /// How the end of the response's body is found.
    pub framing: Cell<Framing>,
}

/// Forwards one request and relays its answer.
pub(super) async fn forward<N: Network>(
    core: &Core<N>,
    generation: &Generation<N>,
    session: &mut Session<N::Io>,
    forward: &Forward,
    record: &mut Record,
    start: Instant,
) -> Forwarded<N::Io> {
    let shared = &*generation.shared;
    let route = &shared.config.routes[forward.route];
    let unread_body = forward.framing != Framing::None;
    let mut is_replay = false;
    loop {
        let gauge = session.gauge.as_deref();
        let lease = match generation.pool.acquire(route.upstream, is_replay, gauge).await {
            Ok(lease) => lease,
            Err(error) => {
                let refusal = match error.cause {
                    ConnectCause::Endpoint => Refusal::Unreachable,
                    ConnectCause::Timeout => Refusal::ConnectTimeout,
                    ConnectCause::Local => Refusal::Exhausted,
                };
                record.fault = Some(refusal.fault());
                record.reason = Some(error.to_string());
                record.upstream = Some(error.endpoint);
                let close = unread_body || !forward.keep_alive;
                let how = (forward.version, close, forward.to_head);
                return Forwarded::Over(refuse(session, refusal, how, record).await);
            }
        };
        record.connect = Some(start.elapsed());
        // Without a log it is only told of what went wrong.
        record.upstream = shared.log.is_some().then(|| lease.endpoint().to_owned());
        session.live.set_route(generation.routes[forward.route].index);
        session.live.set_endpoint(lease.counters().index);
        match attempt(core, shared, route, session, forward, lease, record, start).await {
            Attempt::Done(forwarded) => return forwarded,
            Attempt::Replay => is_replay = true,
            Attempt::Failed(lease, Failure::Refuse(refusal, reason)) => {
                if refusal.fault() == Fault::Upstream {
                    generation.pool.on_failure(route.upstream, &lease);
                }
                record.upstream = Some(lease.endpoint().to_owned());
                drop(lease);
                record.fault = Some(refusal.fault());
                record.reason = Some(reason);
                let close = unread_body || !forward.keep_alive;
                let how = (forward.version, close, forward.to_head);
                return Forwarded::Over(refuse(session, refusal, how, record).await);
            }
            Attempt::Failed(lease, Failure::Abort(fault, reason)) => {
                record.upstream = Some(lease.endpoint().to_owned());
                record.fault = Some(fault);
                record.reason = Some(reason);
                record.outcome = Outcome::Aborted;
                return Forwarded::Over(After::Abort);
            }
        }
    }
}

enum Attempt<T: Transport> {
    Done(Forwarded<T>),
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
    let (wire_before, read_before) = (lease.connection.writer.wire_count(), session.reader.count());
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
            Attempt::Done(Forwarded::Over(if progress.close.get() || !is_request_done {
                After::Close
            } else {
                After::KeepAlive
            }))
        }
        Ok(Answer::Upgraded) => Attempt::Done(Forwarded::Upgraded(Box::new(lease))),
        Err(failure) => {
            if progress.upstream_spoke.get().is_some() {
                lease.abandon();
            }
            let nothing_came =
                progress.upstream_spoke.get().is_none() && !progress.response_started.get();
            let nothing_left = lease.connection.writer.wire_count() == wire_before;
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
    let up_watch = lease.connection.reader.share_watch();
    let answer_timeout = answer_timeout(forward, route, &shared.config);
    // Staged only: the head leaves together with the first bytes of the body, if those are there.
    let is_staged = lease.connection.writer.push_all(&forward.head).await;
    is_staged.map_err(|error| upstream_closed(&error))?;
    let mut response = pin!(respond(
        shared,
        route,
        forward,
        &mut lease.connection.reader,
        &mut session.writer,
        progress,
    ));
    {
        let pace = match limits.body_rate_min {
            0 => Pace::Idle(limits.write_timeout),
            bytes_per_second => Pace::Rate { bytes_per_second },
        };
        let mut request = pin!(relay::pump(
            &mut session.reader,
            &mut lease.connection.writer,
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
