//! The sections of the file, one file each. Every function here reads its part completely, notes
//! what is wrong, and goes on with the default in its place, so that one run finds every mistake.

mod admin;
mod headers;
mod listener;
mod process;
mod rest;
mod route;
mod tls;
mod upstream;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) use admin::admin;
pub(super) use listener::listeners;
pub(super) use process::process;
pub(super) use rest::{access_log, drain_timeout, limits, telemetry, trusted_proxies, workers};
pub(super) use route::routes;
pub(super) use tls::tls;
pub(super) use upstream::upstreams;

use super::report::Report;
use super::scalar;
use super::table::{Item, Table};
use crate::addr::CidrSet;

/// Keys of the top level; a test keeps the list complete.
pub(super) const TOP: &[&str] = &[
    "access_log",
    "admin",
    "drain_timeout",
    "limits",
    "listener",
    "process",
    "route",
    "telemetry",
    "tls",
    "trusted_proxies",
    "upstream",
    "workers",
];

/// A default and the bounds that it keeps itself.
struct Bound<T> {
    default: T,
    range: RangeInclusive<T>,
}

impl Bound<Duration> {
    const fn millis(default: u64, min: u64, max: u64) -> Self {
        let range = RangeInclusive::new(Duration::from_millis(min), Duration::from_millis(max));
        Self { default: Duration::from_millis(default), range }
    }

    fn read(&self, table: &mut Table<'_>, report: &mut Report, key: &'static str) -> Duration {
        table.read(report, key, |item| item.duration(&self.range)).unwrap_or(self.default)
    }
}

impl Bound<u64> {
    const fn number(default: u64, min: u64, max: u64) -> Self {
        assert!(min <= default && default <= max, "a default within its bounds");
        Self { default, range: RangeInclusive::new(min, max) }
    }

    fn read(&self, table: &mut Table<'_>, report: &mut Report, key: &'static str) -> u64 {
        table.read(report, key, |item| item.number(&self.range)).unwrap_or(self.default)
    }

    fn read_size(&self, table: &mut Table<'_>, report: &mut Report, key: &'static str) -> u64 {
        table.read(report, key, |item| item.size(&self.range)).unwrap_or(self.default)
    }
}

/// For counts whose bound is far below the address space.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A list of networks; absent is empty.
fn networks(table: &mut Table<'_>, report: &mut Report, key: &'static str) -> CidrSet {
    let Some(item) = table.get(key) else { return CidrSet::default() };
    let networks = item
        .list()
        .iter()
        .filter_map(|element| element.note(report, element.str().and_then(scalar::network)))
        .collect();
    CidrSet::new(networks)
}

/// A path in the file; a relative one is taken from the directory of the file.
fn path(item: &Item<'_>, report: &mut Report, base: &Path) -> Option<PathBuf> {
    let fault = |why: &str| super::report::Fault::that(why, "a path in quotes");
    let read = item.str().and_then(|text| {
        if text.is_empty() {
            Err(fault("is empty"))
        } else if text.contains("-----BEGIN") {
            Err(fault("holds PEM text").hint("put the text into a file and name the file here"))
        } else if text.contains(char::is_control) {
            Err(fault("has a control character"))
        } else {
            Ok(base.join(text))
        }
    });
    item.note(report, read)
}
