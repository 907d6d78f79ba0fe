//! The response: from the upstream's head to the last byte that the client is sent.

use std::time::Instant;

use super::exchange::{Answer, Failure, Progress};
use super::request::{Forward, HEAD_BYTES, head_limits};
use crate::config::Route;
use crate::error::Fault;
use crate::generation::Shared;
use crate::limits::INTERIM_RESPONSES_MAX;
use crate::message::framing::Framing;
use crate::message::reply::Refusal;
use crate::message::response::ResponseHead;
use crate::message::rewrite::{self, Mapping, ResponseContext};
use crate::message::{Parsed, Version, fields};
use crate::relay::{self, Pace, Sink, Source};
use crate::stream::{Fill, Reader, StreamError, Writer};
use crate::transport::Transport;

/// Reads the response and sends it to the client.
pub(super) async fn respond<T: Transport>(
    shared: &Shared,
    route: &Route,
    forward: &Forward,
    up: &mut Reader<T>,
    down: &mut Writer<T>,
    progress: &Progress,
) -> Result<Answer, Failure> {
    let idle_timeout = shared.config.upstreams[route.upstream].idle_timeout;
    // Nothing is allocated before there is something to be written.
    let mut head = Vec::new();
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
                drop(head);
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
        if !up.filled().is_empty() {
            if progress.upstream_spoke.get().is_none() {
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
    out.reserve(HEAD_BYTES);
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
pub(super) fn failure(progress: &Progress, refusal: Refusal, reason: String) -> Failure {
    if progress.status.get() == 0 {
        Failure::Refuse(refusal, reason)
    } else {
        Failure::Abort(refusal.fault(), reason)
    }
}
