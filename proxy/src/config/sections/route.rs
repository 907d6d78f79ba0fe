//! `[[route]]`: host and path to an upstream, and what happens on the way.

use std::time::Duration;

use super::upstream::Upstreams;
use super::{Bound, headers, networks};
use crate::config::model::{App, Host, Route};
use crate::config::report::{Fault, Report};
use crate::config::routing;
use crate::config::scalar;
use crate::config::sections::TOP;
use crate::config::table::{Item, Table};

const HSTS_DEFAULT: &str = "max-age=31536000";
const BODY_BYTES: std::ops::RangeInclusive<u64> = 0..=1 << 50;
const UPGRADE_TIMEOUT: Bound<Duration> = Bound::millis(30_000, 100, 3_600_000);
const TUNNEL_IDLE_TIMEOUT: Bound<Duration> = Bound::millis(3_600_000, 1_000, 604_800_000);

/// Guacamole's client does not fall back to its HTTP tunnel after an upgrade that hangs, so the
/// answer has to come while the user still waits.
const GUACAMOLE_UPGRADE_TIMEOUT: Bound<Duration> = Bound::millis(8_000, 100, 3_600_000);
/// Above this, see [`GUACAMOLE_UPGRADE_TIMEOUT`], a warning.
const GUACAMOLE_UPGRADE_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// The client pings twice a second and guacd says `nop` every 5 s: a minute of silence is a dead
/// tunnel.
const GUACAMOLE_TUNNEL_IDLE_TIMEOUT: Bound<Duration> = Bound::millis(60_000, 1_000, 604_800_000);

const APPS: &[(&str, App)] = &[("guacamole", App::Guacamole), ("generic", App::Generic)];

/// Reads all routes and puts them in matching order.
pub(in crate::config) fn routes(
    root: &mut Table<'_>,
    report: &mut Report,
    upstreams: &mut Upstreams,
) -> Vec<Route> {
    let hint = "begin with [[route]] and upstream = \"http://127.0.0.1:8080\"";
    let tables = root.tables(report, "route", Some(hint));
    let mut routes: Vec<(Route, usize)> = Vec::new();
    for mut table in tables {
        let (key, span) = table.place();
        let line = report.line_of(span.start);
        let route = route(&mut table, report, upstreams);
        table.finish(report, TOP);
        let Some(route) = route else { continue };
        if let Some((_, first)) = routes.iter().find(|(known, _)| known.name == route.name) {
            let fault = Fault::new(
                format!("{} is routed twice", route.name),
                format!("first on line {first}"),
            );
            report.push(crate::config::Severity::Error, &key, span, fault);
        }
        routes.push((route, line));
    }
    let mut routes: Vec<Route> = routes.into_iter().map(|(route, _)| route).collect();
    routing::sort(&mut routes);
    routes
}

/// None when host, path or upstream is wrong: such a route would only produce errors that are none.
fn route(table: &mut Table<'_>, report: &mut Report, upstreams: &mut Upstreams) -> Option<Route> {
    let host_item = table.get("host");
    let host = host_item.as_ref().map(|item| {
        let read = item.str().and_then(scalar::route_host);
        item.note(report, read)
    });
    let path_item = table.get("path");
    let path = match &path_item {
        Some(item) => item.note(report, item.str().and_then(scalar::path_prefix)),
        None => Some("/".to_owned()),
    };
    let target = target(table, report, upstreams);
    let app = table.read(report, "app", |item| item.choice(APPS)).unwrap_or(App::Generic);
    let (upgrade, idle) = match app {
        App::Generic => (UPGRADE_TIMEOUT, TUNNEL_IDLE_TIMEOUT),
        App::Guacamole => (GUACAMOLE_UPGRADE_TIMEOUT, GUACAMOLE_TUNNEL_IDLE_TIMEOUT),
    };
    let upgrade_timeout = upgrade.read(table, report, "upgrade_timeout");
    if app == App::Guacamole
        && upgrade_timeout > GUACAMOLE_UPGRADE_TIMEOUT_MAX
        && let Some(item) = table.get("upgrade_timeout")
    {
        let fault = Fault::that("is above 10s", "at most 10s for Guacamole");
        let hint = "its client does not fall back to HTTP after an upgrade that hangs";
        item.warning(report, fault.hint(hint));
    }
    let tunnel_idle_timeout = idle.read(table, report, "tunnel_idle_timeout");
    let allow = networks(table, report, "allow");
    let deny = networks(table, report, "deny");
    let request_headers = headers::edits(table, report, "request_headers");
    let response_headers = headers::edits(table, report, "response_headers");
    let hsts = hsts(table, report);
    let body_bytes_max = table.read(report, "body_bytes_max", |item| item.size(&BODY_BYTES));
    let allowed_origins = allowed_origins(table, report);

    let host = match host {
        None => None,
        Some(read) => Some(read?),
    };
    let path = path?;
    let (upstream, upstream_path) = target?;
    let host_shown = host.as_ref().map_or_else(|| "*".to_owned(), Host::to_string);
    Some(Route {
        name: format!("{host_shown}{path}"),
        upstream_path: upstream_path.unwrap_or_else(|| path.clone()),
        host,
        path,
        upstream,
        allow,
        deny,
        request_headers,
        response_headers,
        hsts,
        body_bytes_max,
        upgrade_timeout,
        tunnel_idle_timeout,
        allowed_origins,
        app,
    })
}

/// Index of the upstream, and the path there when one is given.
fn target(
    table: &mut Table<'_>,
    report: &mut Report,
    upstreams: &mut Upstreams,
) -> Option<(usize, Option<String>)> {
    let hint = "for example: upstream = \"http://127.0.0.1:8080\"";
    let item = table.need(report, "upstream", hint);
    let path_item = table.get("upstream_path");
    let path = match &path_item {
        Some(item) => {
            let read = item.str().and_then(scalar::path_prefix);
            Some(item.note(report, read)?)
        }
        None => None,
    };
    let item = item?;
    let read = item.str().and_then(|text| {
        if !scalar::is_url(text) {
            return Ok((upstreams.named(text)?, None));
        }
        let (endpoint, path) = scalar::upstream_url(text)?;
        Ok((upstreams.inline(endpoint), path))
    });
    let (upstream, url_path) = item.note(report, read)?;
    if let (Some(own), Some(_), Some(_)) = (&path_item, &path, &url_path) {
        let fault = Fault::that("stands beside a path in `upstream`", "one of the two");
        own.error(report, fault.hint("leave the path out of the URL"));
    }
    Some((upstream, path.or(url_path)))
}

fn hsts(table: &mut Table<'_>, report: &mut Report) -> Option<String> {
    let Some(item) = table.get("hsts") else { return Some(HSTS_DEFAULT.to_owned()) };
    let read = if item.is_bool() {
        item.bool().map(|on| on.then(|| HSTS_DEFAULT.to_owned()))
    } else {
        item.str()
            .map_err(|fault| fault.hint("true, false, or the value of the field in quotes"))
            .and_then(scalar::hsts)
            .map(Some)
    };
    item.note(report, read).flatten()
}

fn allowed_origins(table: &mut Table<'_>, report: &mut Report) -> Vec<String> {
    let list = table.get("allowed_origins").map(|item| Item::list(&item)).unwrap_or_default();
    list.iter()
        .filter_map(|element| element.note(report, element.str().and_then(scalar::origin)))
        .collect()
}
