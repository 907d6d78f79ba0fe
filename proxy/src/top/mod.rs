//! `tlsplice top`: the connections of a running gateway, the slowest first, and why they are slow.
//!
//! It asks the admin endpoint for snapshots. [`why`] and the tables are pure; the terminal is touched only by `live`.

pub(crate) mod client;
mod format;
mod live;
mod rows;
#[cfg(test)]
pub(crate) mod testing;
mod view;
pub mod why;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

pub use client::{Error as FetchError, Source};
pub use rows::Sort;

use crate::telemetry::snapshot::Snapshot;
use why::Why;

/// Where the admin socket is unless somebody says otherwise.
pub const SOCKET: &str = "/run/tlsplice/admin.sock";

/// What is shown, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A screen that is drawn again after this time.
    Live(Duration),
    /// One table.
    Table,
    /// One snapshot as JSON, with `why_slow` in each connection.
    Json,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No snapshot.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is no screen to draw on.
    #[error("standard output is no terminal: `--once` prints a table, `--once --json` JSON")]
    NoTerminal,
    /// The terminal or the output is gone.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

/// Shows the gateway at `source` until the user has seen enough.
///
/// # Errors
///
/// When the first snapshot cannot be had, or the output cannot be written. Later failures are shown on the screen.
pub fn run(source: &Source, mode: Mode, sort: Sort, out: &mut impl io::Write) -> Result<(), Error> {
    if let (Mode::Live(_), false) = (mode, io::stdout().is_terminal()) {
        return Err(Error::NoTerminal);
    }
    let mut snapshot = client::fetch(source)?;
    sort.order(&mut snapshot.connections);
    match mode {
        Mode::Live(interval) => live::run(source, interval, sort, snapshot)?,
        Mode::Table => {
            for line in view::summary(&snapshot, None) {
                writeln!(out, "{line}")?;
            }
            write!(
                out,
                "\n{}",
                rows::Rows::lay_out(&snapshot.connections, usize::MAX - 1).to_text()
            )?;
        }
        Mode::Json => {
            let value = judged(&snapshot).map_err(io::Error::from)?;
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(())
}

/// The snapshot with a `why_slow` in each connection: a culprit, or null.
fn judged(snapshot: &Snapshot) -> serde_json::Result<serde_json::Value> {
    let mut value = serde_json::to_value(snapshot)?;
    let connections = value.get_mut("connections").and_then(serde_json::Value::as_array_mut);
    for (told, connection) in connections.into_iter().flatten().zip(&snapshot.connections) {
        let culprit = serde_json::to_value(Why::of(connection).map(Why::culprit))?;
        if let Some(told) = told.as_object_mut() {
            told.insert("why_slow".to_owned(), culprit);
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::testing::{connection, snapshot};
    use super::*;

    #[test]
    fn json_is_the_snapshot_with_a_verdict_on_each_connection() {
        let mut told = snapshot(vec![connection(1), connection(2)]);
        told.connections[1].flush_p99_us = Some(40_000);
        let value = judged(&told).unwrap();
        assert!(value["connections"][0].as_object().unwrap()["why_slow"].is_null());
        assert_eq!(value["connections"][1]["why_slow"], "gateway");
        assert_eq!(serde_json::from_value::<Snapshot>(value).unwrap(), told);
    }
}
