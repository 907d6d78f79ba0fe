//! `[[upstream]]`: groups of equivalent endpoints.

use std::time::Duration;

use super::{Bound, to_usize};
use crate::config::model::{EndpointAddr, Upstream};
use crate::config::report::{Fault, Report, Severity};
use crate::config::scalar;
use crate::config::sections::TOP;
use crate::config::table::{Table, nearest};

const CONNECT_TIMEOUT: Bound<Duration> = Bound::millis(3_000, 10, 300_000);
/// Guacamole's event stream answers its head at once and says `nop` every 5 s at the latest, so a
/// minute of silence is never a healthy tunnel.
const RESPONSE_TIMEOUT: Bound<Duration> = Bound::millis(60_000, 100, 86_400_000);
const IDLE_TIMEOUT: Bound<Duration> = Bound::millis(60_000, 100, 86_400_000);
/// Tomcat closes an idle connection after 20 s; the side that may send a request must close first.
const KEEP_ALIVE_TIMEOUT: Bound<Duration> = Bound::millis(15_000, 100, 3_600_000);
const KEEP_ALIVE_MAX: Bound<u64> = Bound::number(64, 0, 65_536);
const EJECT_AFTER: Bound<u64> = Bound::number(3, 1, 1_000);
const EJECT_TIME: Bound<Duration> = Bound::millis(10_000, 100, 3_600_000);
const RESOLVE_INTERVAL: Bound<Duration> = Bound::millis(30_000, 1_000, 86_400_000);

/// The upstreams known so far. Those that routes write as URLs join on the way.
#[derive(Debug, Default)]
pub(in crate::config) struct Upstreams {
    list: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    upstream: Upstream,
    used: bool,
    /// Key and place of its table; None for one that stands in a route.
    place: Option<(String, std::ops::Range<usize>)>,
}

/// Reads all named upstreams.
pub(in crate::config) fn upstreams(root: &mut Table<'_>, report: &mut Report) -> Upstreams {
    let mut known = Upstreams::default();
    for mut table in root.tables(report, "upstream", None) {
        let name = table.need(report, "name", "routes refer to it by its name");
        let name = name.and_then(|item| {
            let read = item.str().and_then(scalar::upstream_name).and_then(|name| {
                if known.position(&name).is_some() {
                    return Err(Fault::new(format!("\"{name}\" is taken"), "a name of its own"));
                }
                Ok(name)
            });
            item.note(report, read)
        });
        let endpoints = endpoints(&mut table, report);
        let upstream = Upstream {
            // An upstream whose name is wrong stays nameless: the file is refused anyway.
            name: name.unwrap_or_default(),
            endpoints,
            connect_timeout: CONNECT_TIMEOUT.read(&mut table, report, "connect_timeout"),
            response_timeout: RESPONSE_TIMEOUT.read(&mut table, report, "response_timeout"),
            idle_timeout: IDLE_TIMEOUT.read(&mut table, report, "idle_timeout"),
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT.read(&mut table, report, "keep_alive_timeout"),
            keep_alive_max: to_usize(KEEP_ALIVE_MAX.read(&mut table, report, "keep_alive_max")),
            eject_after: u32::try_from(EJECT_AFTER.read(&mut table, report, "eject_after"))
                .unwrap_or(u32::MAX),
            eject_time: EJECT_TIME.read(&mut table, report, "eject_time"),
            resolve_interval: RESOLVE_INTERVAL.read(&mut table, report, "resolve_interval"),
        };
        let place = Some(table.place());
        known.list.push(Known { upstream, used: false, place });
        table.finish(report, TOP);
    }
    known
}

fn endpoints(table: &mut Table<'_>, report: &mut Report) -> Vec<EndpointAddr> {
    let hint = "for example: endpoints = [\"http://127.0.0.1:8080\"]";
    let Some(item) = table.need(report, "endpoints", hint) else { return Vec::new() };
    let list = item.list();
    if list.is_empty() {
        item.error(report, Fault::that("is an empty list", "at least one endpoint"));
    }
    let mut endpoints = Vec::new();
    for element in list {
        let read = element.str().and_then(scalar::upstream_url).and_then(|(endpoint, path)| {
            if path.is_some_and(|path| path != "/") {
                let fault = Fault::that("has a path", "http://host:port");
                return Err(fault.hint("paths are mapped by `upstream_path` in the route"));
            }
            if endpoints.contains(&endpoint) {
                let shown = scalar::show_endpoint(&endpoint);
                return Err(Fault::new(format!("{shown} is listed twice"), ""));
            }
            Ok(endpoint)
        });
        endpoints.extend(element.note(report, read));
    }
    endpoints
}

impl Upstreams {
    fn position(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|known| known.upstream.name == name)
    }

    /// The index of a named upstream.
    pub(super) fn named(&mut self, name: &str) -> Result<usize, Fault> {
        if let Some(at) = self.position(name).filter(|_| !name.is_empty()) {
            if let Some(known) = self.list.get_mut(at) {
                known.used = true;
            }
            return Ok(at);
        }
        let names: Vec<&str> = self
            .list
            .iter()
            .filter(|known| known.place.is_some())
            .map(|known| known.upstream.name.as_str())
            .collect();
        let fault = Fault::new(
            format!("there is no upstream named {}", crate::config::report::quoted(name)),
            "a URL, or the name of an [[upstream]]",
        );
        Err(match nearest(name, &names) {
            Some(near) => fault.hint(format!("did you mean \"{near}\"?")),
            None if name.contains(':') => {
                fault.hint(format!("for an address write \"http://{name}\""))
            }
            None if names.is_empty() => fault.hint("this file has no [[upstream]]"),
            None => fault.hint(format!("named in this file: {}", names.join(", "))),
        })
    }

    /// The index of the upstream that has this one endpoint and all defaults; routes share it.
    pub(super) fn inline(&mut self, endpoint: EndpointAddr) -> usize {
        let name = scalar::show_endpoint(&endpoint);
        if let Some(at) = self.position(&name) {
            return at;
        }
        let upstream = Upstream {
            name,
            endpoints: vec![endpoint],
            connect_timeout: CONNECT_TIMEOUT.default,
            response_timeout: RESPONSE_TIMEOUT.default,
            idle_timeout: IDLE_TIMEOUT.default,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT.default,
            keep_alive_max: to_usize(KEEP_ALIVE_MAX.default),
            eject_after: u32::try_from(EJECT_AFTER.default).unwrap_or(u32::MAX),
            eject_time: EJECT_TIME.default,
            resolve_interval: RESOLVE_INTERVAL.default,
        };
        self.list.push(Known { upstream, used: true, place: None });
        self.list.len() - 1
    }

    /// All of them, in the order of their indices; a named one that no route uses is noted.
    pub(in crate::config) fn finish(self, report: &mut Report) -> Vec<Upstream> {
        let mut upstreams = Vec::with_capacity(self.list.len());
        for known in self.list {
            // A route that is wrong might have meant it.
            let unused = !known.used && !report.has_errors();
            if let (true, Some((key, span))) = (unused, known.place) {
                let fault = Fault::new("no route uses this upstream", "");
                report.push(Severity::Warning, &key, span, fault);
            }
            upstreams.push(known.upstream);
        }
        upstreams
    }
}
