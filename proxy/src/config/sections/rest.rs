//! What stands at the top level, `[limits]` and `[access_log]`.

use std::time::Duration;

use super::{Bound, networks, path, to_usize};
use crate::addr::CidrSet;
use crate::config::model::{AccessLog, FlushLatency, Limits, LogFormat, LogTarget, Telemetry};
use crate::config::report::{Fault, Report};
use crate::config::sections::TOP;
use crate::config::table::Table;
use crate::config::{Surroundings, WORKERS_MAX};

const DRAIN_TIMEOUT: Bound<Duration> = Bound::millis(30_000, 0, 86_400_000);

const HEAD_BYTES: Bound<u64> = Bound::number(32 << 10, 1 << 10, 64 << 10);
const HEAD_FIELDS: Bound<u64> = Bound::number(100, 1, 256);
const CONNECTIONS: Bound<u64> = Bound::number(20_000, 1, 1_000_000);
const CONNECTIONS_PER_ADDRESS: Bound<u64> = Bound::number(1_000, 1, 1_000_000);
const HANDSHAKE_TIMEOUT: Bound<Duration> = Bound::millis(10_000, 100, 300_000);
const HEAD_TIMEOUT: Bound<Duration> = Bound::millis(10_000, 100, 300_000);
const KEEP_ALIVE_TIMEOUT: Bound<Duration> = Bound::millis(75_000, 100, 3_600_000);
const BODY_RATE_MIN: Bound<u64> = Bound::number(128, 0, 1 << 30);
const WRITE_TIMEOUT: Bound<Duration> = Bound::millis(60_000, 100, 3_600_000);

/// Reads `workers`; by default one per core.
pub(in crate::config) fn workers(
    root: &mut Table<'_>,
    report: &mut Report,
    around: &Surroundings<'_>,
) -> usize {
    let max = u64::try_from(WORKERS_MAX).unwrap_or(u64::MAX);
    match root.read(report, "workers", |item| item.number(&(1..=max))) {
        Some(workers) => to_usize(workers),
        None => around.cores.clamp(1, WORKERS_MAX),
    }
}

/// Reads `drain_timeout`.
pub(in crate::config) fn drain_timeout(root: &mut Table<'_>, report: &mut Report) -> Duration {
    DRAIN_TIMEOUT.read(root, report, "drain_timeout")
}

/// Reads `trusted_proxies`.
pub(in crate::config) fn trusted_proxies(root: &mut Table<'_>, report: &mut Report) -> CidrSet {
    let set = networks(root, report, "trusted_proxies");
    let everyone = set.networks().iter().any(|network| network.prefix_len() == 0);
    if let (true, Some(item)) = (everyone, root.get("trusted_proxies")) {
        let fault = Fault::that("trusts every address", "");
        let hint = "anybody can then forge the client address that Tomcat sees";
        item.warning(report, fault.hint(hint));
    }
    set
}

/// Reads `[limits]`.
pub(in crate::config) fn limits(root: &mut Table<'_>, report: &mut Report) -> Limits {
    let item = root.get("limits");
    let table = item.as_ref().and_then(|item| item.note(report, item.table()));
    let Some(mut table) = table else { return defaults() };
    let connections = CONNECTIONS.read(&mut table, report, "connections");
    let per_address = CONNECTIONS_PER_ADDRESS.read(&mut table, report, "connections_per_address");
    if let (true, Some(item)) = (per_address > connections, table.get("connections_per_address")) {
        let fault = Fault::new(
            format!("{per_address} is above `limits.connections`, {connections}"),
            format!("at most {connections}"),
        );
        item.error(report, fault);
    }
    let limits = Limits {
        head_bytes: to_usize(HEAD_BYTES.read_size(&mut table, report, "head_bytes")),
        head_fields: to_usize(HEAD_FIELDS.read(&mut table, report, "head_fields")),
        connections: to_usize(connections),
        connections_per_address: to_usize(per_address.min(connections)),
        handshake_timeout: HANDSHAKE_TIMEOUT.read(&mut table, report, "handshake_timeout"),
        head_timeout: HEAD_TIMEOUT.read(&mut table, report, "head_timeout"),
        keep_alive_timeout: KEEP_ALIVE_TIMEOUT.read(&mut table, report, "keep_alive_timeout"),
        body_rate_min: BODY_RATE_MIN.read_size(&mut table, report, "body_rate_min"),
        write_timeout: WRITE_TIMEOUT.read(&mut table, report, "write_timeout"),
    };
    table.finish(report, TOP);
    limits
}

fn defaults() -> Limits {
    Limits {
        head_bytes: to_usize(HEAD_BYTES.default),
        head_fields: to_usize(HEAD_FIELDS.default),
        connections: to_usize(CONNECTIONS.default),
        connections_per_address: to_usize(CONNECTIONS_PER_ADDRESS.default),
        handshake_timeout: HANDSHAKE_TIMEOUT.default,
        head_timeout: HEAD_TIMEOUT.default,
        keep_alive_timeout: KEEP_ALIVE_TIMEOUT.default,
        body_rate_min: BODY_RATE_MIN.default,
        write_timeout: WRITE_TIMEOUT.default,
    }
}

/// Reads `[telemetry]`.
pub(in crate::config) fn telemetry(root: &mut Table<'_>, report: &mut Report) -> Telemetry {
    let item = root.get("telemetry");
    let table = item.as_ref().and_then(|item| item.note(report, item.table()));
    let Some(mut table) = table else { return Telemetry::default() };
    const CHOICES: &[(&str, FlushLatency)] =
        &[("auto", FlushLatency::Auto), ("off", FlushLatency::Off)];
    let flush_latency = table.read(report, "flush_latency", |item| item.choice(CHOICES));
    let connections = table.read(report, "connections", |item| item.number(&CONNECTIONS.range));
    table.finish(report, TOP);
    let connections = connections.map(to_usize);
    Telemetry { flush_latency: flush_latency.unwrap_or_default(), connections }
}

/// Reads `[access_log]`; without it, nothing is logged.
pub(in crate::config) fn access_log(
    root: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
) -> Option<AccessLog> {
    let item = root.get("access_log")?;
    let mut table = item.note(report, item.table())?;
    let mut target = LogTarget::Stdout;
    if let Some(item) = table.get("target").filter(|item| item.str() != Ok("stdout"))
        && let Some(file) = path(&item, report, around.directory)
    {
        let directory = file.parent().unwrap_or(around.directory);
        if around.files.is_directory(directory) {
            target = LogTarget::File(file);
        } else {
            let fault = Fault::new(
                format!("there is no directory {}", directory.display()),
                "\"stdout\", or a file in a directory that exists",
            );
            item.error(report, fault);
        }
    }
    const FORMATS: &[(&str, LogFormat)] =
        &[("json", LogFormat::Json), ("combined", LogFormat::Combined)];
    let format = table.read(report, "format", |item| item.choice(FORMATS));
    table.finish(report, TOP);
    Some(AccessLog { target, format: format.unwrap_or(LogFormat::Json) })
}
