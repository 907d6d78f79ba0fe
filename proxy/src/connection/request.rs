//! From the bytes of a request head to what is done with it: no I/O, one pass, nothing borrowed afterwards.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use crate::addr::ClientAddr;
use crate::config::{Config, Route, Service};
use crate::connection::Door;
use crate::connection::spare::Spare;
use crate::message::framing::Framing;
use crate::message::name::Name;
use crate::message::reply::{self, Refusal};
use crate::message::request::{RequestError, RequestHead};
use crate::message::rewrite::{self, Identity, Mapping};
use crate::message::target::TargetError;
use crate::message::via::{self, Pseudonym};
use crate::message::{HeadLimits, Parsed, Version, fields, redact};
use crate::telemetry::Record;

/// What a decision depends on beside the bytes.
pub(super) struct Facts<'a> {
    /// As accept said: what access rules are about.
    pub client: ClientAddr,
    /// As the kernel recorded it, where it did: who the application is told of.
    pub source: ClientAddr,
    pub door: Door,
    pub config: &'a Config,
    pub pseudonym: Pseudonym,
    pub is_draining: &'a Cell<bool>,
    /// What the client asked for in its handshake, where there is a choice of certificates.
    pub server_name: Option<&'a str>,
    /// Memory of earlier requests.
    pub spare: &'a Spare,
}

/// What is done with a request.
pub(super) enum Plan {
    /// The gateway answers.
    Refuse { refusal: Refusal, version: Version, close: bool, to_head: bool },
    /// The gateway answers, and nothing is wrong: a redirect, or what it says of itself.
    Answer { status: u16, reply: Vec<u8>, close: bool },
    /// The application answers.
    Forward(Box<Forward>),
}

/// A request on its way to the application.
pub(super) struct Forward {
    /// Index of the route.
    pub route: usize,
    /// The head as it goes upstream; kept for a replay.
    pub head: Vec<u8>,
    /// Length of the body.
    pub framing: Framing,
    /// The client's version.
    pub version: Version,
    /// The client wants to go on with the connection, and so do we.
    pub keep_alive: bool,
    /// The method is HEAD.
    pub to_head: bool,
    /// Doing it twice is the same as doing it once.
    pub is_idempotent: bool,
    /// Key of a WebSocket upgrade.
    pub websocket_key: Option<String>,
    /// Host of the public URL, with its port.
    pub authority: String,
    /// Who asks.
    pub identity: Identity,
}

/// Most heads are shorter than this, in bytes, as the next hop gets them.
pub(super) const HEAD_BYTES: usize = 1024;

/// The bounds of heads.
pub(super) fn head_limits(config: &Config) -> HeadLimits {
    HeadLimits { bytes: config.limits.head_bytes, fields: config.limits.head_fields }
}

/// Decides about the head at the front of `bytes` and returns its length too; None while it is incomplete.
pub(super) fn plan(bytes: &[u8], facts: &Facts<'_>, record: &mut Record) -> Option<(Plan, usize)> {
    let mut slots = fields::slots();
    match RequestHead::parse(bytes, &mut slots, head_limits(facts.config)) {
        Ok(Parsed::Partial) => None,
        Ok(Parsed::Complete(head, len)) => {
            describe(&head, facts, record);
            Some((decide(&head, facts, record), len))
        }
        Err(error) => Some((refuse_unread(error), bytes.len())),
    }
}

fn refuse_unread(error: RequestError) -> Plan {
    let refusal = Refusal::Request(error);
    Plan::Refuse { refusal, version: Version::Http11, close: true, to_head: false }
}

/// Copies what the log tells, unless nothing is logged.
fn describe(head: &RequestHead<'_, '_>, facts: &Facts<'_>, record: &mut Record) {
    if facts.config.access_log.is_none() {
        return;
    }
    head.method.clone_into(&mut record.method);
    record.target = redact::target(head.target.path, head.target.query).into_owned();
    head.authority.clone_into(&mut record.host);
    record.agent = head.field("user-agent").map(ToOwned::to_owned);
    record.referer = head.field("referer").map(redact_referer);
}

/// A referrer shows the query of the page before, where a token may stand.
fn redact_referer(referer: &str) -> String {
    let (path, query) = referer.split_at(referer.find('?').unwrap_or(referer.len()));
    redact::target(path, query).into_owned()
}

fn decide(head: &RequestHead<'_, '_>, facts: &Facts<'_>, record: &mut Record) -> Plan {
    let has_body = head.framing != Framing::None;
    let to_head = head.method == "HEAD";
    let refuse = |refusal: Refusal| {
        // An unread body makes it uncertain where the next request begins.
        let close = has_body || !head.keep_alive || facts.is_draining.get();
        Plan::Refuse { refusal, version: head.version, close, to_head }
    };
    if let Service::RedirectToHttps { port } = facts.door.service {
        return redirect(head, port, facts.is_draining.get()).unwrap_or_else(refuse);
    }
    if via::names(head.fields.values(Name::Via), facts.pseudonym) {
        return refuse(Refusal::Loop);
    }
    let host = lowercase(head.host());
    if let Some(name) = facts.server_name
        && !facts.config.is_same_site(name, &host)
    {
        return refuse(Refusal::Misdirected);
    }
    if head.is_for_gateway() {
        let close = has_body || !head.keep_alive || facts.is_draining.get();
        let mut reply = Vec::new();
        reply::write_options(head.version, close, &mut reply);
        return Plan::Answer { status: 204, reply, close };
    }
    let Ok(seen) = std::str::from_utf8(&head.target.seen) else {
        return refuse(Refusal::Request(TargetError::EncodedByte.into()));
    };
    let Some(route) = facts.config.route(&host, seen) else {
        return refuse(Refusal::NoRoute);
    };
    let routes = &facts.config.routes;
    let index = routes.iter().position(|other| std::ptr::eq(other, route)).unwrap_or_default();
    record.route_index = Some(index);
    if facts.config.access_log.is_some() {
        record.route = Some(route.name.clone());
    }
    if !head.target.agrees_on(&route.path) {
        return refuse(Refusal::Request(TargetError::EncodedByte.into()));
    }
    if let Some(refusal) = forbid(head, route, facts) {
        return refuse(refusal);
    }
    let identity = Identity {
        peer: facts.source.ip(),
        peer_is_trusted: facts.config.trusted_proxies.contains(facts.client.ip()),
        https: facts.door.service == Service::Https,
        port: facts.door.port,
        pseudonym: facts.pseudonym,
    };
    let mut spare = facts.spare.take();
    let (mut upstream_head, mut authority) = match &mut spare {
        Some(spare) => (std::mem::take(&mut spare.head), std::mem::take(&mut spare.authority)),
        None => (Vec::with_capacity(HEAD_BYTES), String::new()),
    };
    authority.push_str(head.authority);
    let mapping = Mapping { public: &route.path, upstream: &route.upstream_path };
    rewrite::write_request(head, mapping, identity, &route.request_headers, &mut upstream_head);
    let forward = Forward {
        route: index,
        head: upstream_head,
        framing: head.framing,
        version: head.version,
        keep_alive: head.keep_alive && !facts.is_draining.get(),
        to_head,
        is_idempotent: head.is_idempotent(),
        websocket_key: head.websocket_key.map(ToOwned::to_owned),
        authority,
        identity,
    };
    Plan::Forward(match spare {
        Some(mut spare) => {
            *spare = forward;
            spare
        }
        None => Box::new(forward),
    })
}

/// Nearly every client writes it so.
fn lowercase(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// What the route does not allow.
fn forbid(head: &RequestHead<'_, '_>, route: &Route, facts: &Facts<'_>) -> Option<Refusal> {
    let address = facts.client.ip();
    let is_allowed = route.allow.is_empty() || route.allow.contains(address);
    if !is_allowed || route.deny.contains(address) {
        return Some(Refusal::AccessDenied);
    }
    if let (Some(max), Framing::Length(length)) = (route.body_bytes_max, head.framing)
        && length > max
    {
        return Some(Refusal::BodyTooLarge(max));
    }
    let is_guarded = head.websocket_key.is_some() && !route.allowed_origins.is_empty();
    if is_guarded {
        let origin = head.field("origin").unwrap_or("").to_ascii_lowercase();
        if !route.allowed_origins.contains(&origin) {
            return Some(Refusal::OriginDenied);
        }
    }
    None
}

fn redirect(head: &RequestHead<'_, '_>, port: u16, is_draining: bool) -> Result<Plan, Refusal> {
    if head.host().is_empty() || head.target.path == "*" {
        return Err(Refusal::NoRoute);
    }
    let close = !head.keep_alive || is_draining || head.framing != Framing::None;
    let target = format!("{}{}", head.target.path, head.target.query);
    let mut reply = Vec::new();
    reply::write_redirect((head.host(), port), &target, head.version, close, &mut reply);
    Ok(Plan::Answer { status: 308, reply, close })
}

/// How long the answer to a request on `route` may take.
pub(super) fn answer_timeout(forward: &Forward, route: &Route, config: &Config) -> Duration {
    match forward.websocket_key {
        Some(_) => route.upgrade_timeout,
        None => config.upstreams[route.upstream].response_timeout,
    }
}
