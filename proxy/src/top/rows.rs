//! Connections in order, as rows of text. Pure.

use std::cmp::Reverse;
use std::time::Duration;

use clap::ValueEnum;

use super::format;
use super::why::Why;
use crate::telemetry::snapshot::{Activity, Connection, Path, Tls};

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The longest flush latency (p99).
    #[default]
    Flush,
    /// The latest first byte.
    FirstByte,
    /// The longest round trip to the client.
    Rtt,
    /// The most segments sent again.
    Retransmits,
    /// The most bytes, both directions together.
    Bytes,
    /// The oldest.
    Age,
}

impl Sort {
    /// All, in the order of their keys on the screen.
    pub(super) const ALL: [Self; 6] =
        [Self::Flush, Self::FirstByte, Self::Rtt, Self::Retransmits, Self::Bytes, Self::Age];

    /// The key that chooses it.
    pub(super) fn key(self) -> char {
        match self {
            Self::Flush => 'f',
            Self::FirstByte => 't',
            Self::Rtt => 'n',
            Self::Retransmits => 'r',
            Self::Bytes => 'b',
            Self::Age => 'a',
        }
    }

    /// Its name on the screen.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flush => "flush p99",
            Self::FirstByte => "time to first byte",
            Self::Rtt => "network rtt",
            Self::Retransmits => "resent",
            Self::Bytes => "bytes",
            Self::Age => "age",
        }
    }

    /// The column that it puts in order.
    pub(super) fn column(self) -> Column {
        match self {
            Self::Flush => Column::FlushP99,
            Self::FirstByte => Column::FirstByte,
            Self::Rtt => Column::Rtt,
            Self::Retransmits => Column::Resent,
            Self::Bytes => Column::Out,
            Self::Age => Column::Age,
        }
    }

    /// Puts them in order: the greatest first, what is not measured last, equals by number.
    pub(super) fn order(self, connections: &mut [Connection]) {
        let rank = |it: &Connection| match self {
            Self::Flush => it.flush_p99_us,
            Self::FirstByte => it.first_byte_ms.and_then(micros),
            Self::Rtt => it.rtt_us,
            Self::Retransmits => it.retransmits,
            Self::Bytes => Some(it.bytes_in.saturating_add(it.bytes_out)),
            Self::Age => micros(it.age_s * 1e3),
        };
        connections.sort_by_key(|it| (Reverse(rank(it)), it.id));
    }
}

fn micros(ms: f64) -> Option<u64> {
    let time = Duration::try_from_secs_f64(ms / 1e3).ok()?;
    u64::try_from(time.as_micros()).ok()
}

/// Least width of a column of numbers, in characters: a delay fits, so that columns seldom move.
const NUMBER_WIDTH: usize = 6;

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Client,
    Route,
    Upstream,
    Kind,
    Tls,
    Path,
    Age,
    Requests,
    In,
    Out,
    FirstByte,
    FlushP50,
    FlushP99,
    FlushMax,
    Input,
    Rtt,
    Resent,
    Gaps,
    Why,
}

impl Column {
    const ALL: [Self; 19] = [
        Self::Client,
        Self::Route,
        Self::Upstream,
        Self::Kind,
        Self::Tls,
        Self::Path,
        Self::Age,
        Self::Requests,
        Self::In,
        Self::Out,
        Self::FirstByte,
        Self::FlushP50,
        Self::FlushP99,
        Self::FlushMax,
        Self::Input,
        Self::Rtt,
        Self::Resent,
        Self::Gaps,
        Self::Why,
    ];

    /// What a narrow terminal does without, the least needed first. The others always stay.
    const DISPENSABLE: [Self; 15] = [
        Self::Upstream,
        Self::FlushMax,
        Self::Requests,
        Self::In,
        Self::Input,
        Self::FlushP50,
        Self::Gaps,
        Self::Path,
        Self::Tls,
        Self::Resent,
        Self::Route,
        Self::Out,
        Self::Age,
        Self::Kind,
        Self::Rtt,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Client => "CLIENT",
            Self::Route => "ROUTE",
            Self::Upstream => "UPSTREAM",
            Self::Kind => "KIND",
            Self::Tls => "TLS",
            Self::Path => "PATH",
            Self::Age => "AGE",
            Self::Requests => "REQS",
            Self::In => "IN",
            Self::Out => "OUT",
            Self::FirstByte => "BYTE 1",
            Self::FlushP50 => "FLUSH 50",
            Self::FlushP99 => "FLUSH 99",
            Self::FlushMax => "FLUSH MAX",
            Self::Input => "INPUT 50",
            Self::Rtt => "RTT",
            Self::Resent => "RESENT",
            Self::Gaps => "GAPS",
            Self::Why => "WHY SLOW",
        }
    }

    /// Words begin at the left, numbers end at the right.
    fn is_number(self) -> bool {
        !matches!(
            self,
            Self::Client
                | Self::Route
                | Self::Upstream
                | Self::Kind
                | Self::Tls
                | Self::Path
                | Self::Why
        )
    }

    fn cell(self, it: &Connection) -> String {
        let none = || "-".to_owned();
        let text = |text: &Option<String>| text.as_deref().map_or_else(none, format::harmless);
        let micros =
            |us: Option<u64>| us.map_or_else(none, |us| format::delay(Duration::from_micros(us)));
        match self {
            Self::Client => match it.client {
                std::net::IpAddr::V4(client) => format!("{client}:{}", it.port),
                std::net::IpAddr::V6(client) => format!("[{client}]:{}", it.port),
            },
            Self::Route => text(&it.route),
            Self::Upstream => text(&it.upstream),
            Self::Kind => match it.kind {
                Activity::Idle => "idle",
                Activity::Request => "request",
                Activity::Tunnel => "tunnel",
            }
            .to_owned(),
            Self::Tls => match it.tls {
                Tls::Kernel => "kernel",
                Tls::User => "user",
                Tls::None => "none",
            }
            .to_owned(),
            Self::Path => match it.path {
                Path::Splice => "splice",
                Path::Copy => "copy",
            }
            .to_owned(),
            Self::Age => format::age(it.age_s),
            Self::Requests => format::count(it.requests),
            Self::In => format::count(it.bytes_in),
            Self::Out => format::count(it.bytes_out),
            Self::FirstByte => it
                .first_byte_ms
                .and_then(self::micros)
                .map_or_else(none, |us| format::delay(Duration::from_micros(us))),
            Self::FlushP50 => micros(it.flush_p50_us),
            Self::FlushP99 => micros(it.flush_p99_us),
            Self::FlushMax => micros(it.flush_max_us),
            Self::Input => micros(it.input_p50_us),
            Self::Rtt => micros(it.rtt_us),
            Self::Resent => it.retransmits.map_or_else(none, format::count),
            Self::Gaps => match (it.gaps_1_5s, it.gaps_15s) {
                (0, 0) => none(),
                (short, long) => format!("{short}/{long}"),
            },
            Self::Why => Why::of(it).map_or_else(none, |why| why.to_string()),
        }
    }
}

/// Rows of text with the columns that fit.
#[derive(Debug)]
pub(super) struct Rows {
    /// The columns, each with its width in characters.
    pub(super) columns: Vec<(Column, usize)>,
    /// Cells, padded to the width of their column.
    pub(super) cells: Vec<Vec<String>>,
}

impl Rows {
    /// All connections in at most `width` characters, with one between columns, as far as the indispensable ones allow.
    pub(super) fn lay_out(connections: &[Connection], width: usize) -> Self {
        let mut columns = Vec::new();
        for column in Column::ALL {
            let cells: Vec<_> = connections.iter().map(|it| column.cell(it)).collect();
            let longest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            let least = if column.is_number() { NUMBER_WIDTH } else { 0 };
            columns.push((column, longest.max(column.title().len()).max(least), cells));
        }
        for dispensable in Column::DISPENSABLE {
            let needed: usize = columns.iter().map(|(_, width, _)| width + 1).sum();
            if needed <= width + 1 {
                break;
            }
            columns.retain(|(column, ..)| *column != dispensable);
        }
        let mut rows = vec![Vec::with_capacity(columns.len()); connections.len()];
        for (column, width, cells) in &columns {
            for (row, cell) in rows.iter_mut().zip(cells) {
                row.push(pad(*column, *width, cell));
            }
        }
        let columns = columns.into_iter().map(|(column, width, _)| (column, width)).collect();
        Self { columns, cells: rows }
    }

    /// The titles, padded as the cells are.
    pub(super) fn titles(&self) -> Vec<String> {
        self.columns.iter().map(|(column, width)| pad(*column, *width, column.title())).collect()
    }

    /// Titles and cells as lines.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for row in std::iter::once(&self.titles()).chain(&self.cells) {
            text.push_str(row.join(" ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn pad(column: Column, width: usize, text: &str) -> String {
    if column.is_number() { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::connection;
    use super::*;

    fn order(sort: Sort, mut connections: Vec<Connection>) -> Vec<u64> {
        sort.order(&mut connections);
        connections.iter().map(|it| it.id).collect()
    }

    #[test]
    fn the_greatest_comes_first_and_the_unmeasured_last() {
        let mut them: Vec<_> = (1..=4).map(connection).collect();
        them[0].flush_p99_us = None;
        them[2].flush_p99_us = Some(900);
        assert_eq!(order(Sort::Flush, them.clone()), [3, 2, 4, 1]);
        them[3].first_byte_ms = Some(f64::NAN);
        them[1].first_byte_ms = Some(80.0);
        assert_eq!(order(Sort::FirstByte, them.clone()), [2, 1, 3, 4]);
        (them[1].bytes_in, them[1].bytes_out) = (u64::MAX, u64::MAX);
        assert_eq!(order(Sort::Bytes, them.clone()), [2, 1, 3, 4]);
        them[3].age_s = 1e6;
        assert_eq!(order(Sort::Age, them.clone()), [4, 1, 2, 3]);
        them[2].rtt_us = Some(1);
        assert_eq!(order(Sort::Rtt, them.clone()), [1, 2, 4, 3]);
        them[2].retransmits = Some(1);
        assert_eq!(order(Sort::Retransmits, them), [3, 1, 2, 4]);
    }

    #[test]
    fn each_sort_has_a_key_of_its_own() {
        let mut keys: Vec<_> = Sort::ALL.iter().map(|sort| sort.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), Sort::ALL.len());
        assert!(!keys.contains(&'q'));
    }

    #[test]
    fn rows_fit_and_keep_what_matters() {
        let them = [connection(1)];
        for width in [60, 100, 140, 200, 300] {
            let rows = Rows::lay_out(&them, width);
            let text = rows.to_text();
            assert!(text.lines().all(|line| line.len() <= width), "{width}: {text}");
            assert!(text.contains("FLUSH 99") && text.contains("WHY SLOW"), "{width}: {text}");
        }
        assert_eq!(Rows::lay_out(&them, 300).columns.len(), Column::ALL.len());
        assert_eq!(Rows::lay_out(&them, 0).columns.len(), 4);
    }

    #[test]
    fn a_table_is_a_table() {
        let mut slow = connection(2);
        (slow.client, slow.route) = ("2001:db8::1".parse().unwrap(), None);
        (slow.flush_p99_us, slow.gaps_1_5s, slow.kind) = (Some(12_300), 1, Activity::Tunnel);
        assert_eq!(
            Rows::lay_out(&[slow, connection(1)], 100).to_text(),
            "CLIENT             ROUTE       KIND       AGE    OUT BYTE 1 FLUSH 99    RTT WHY SLOW\n\
             [2001:db8::1]:5000 -           tunnel   1m15s   3.4M 1.5 ms    12 ms 900 us gateway: flush 12 ms\n\
             192.0.2.1:5000     /guacamole/ request  1m15s   3.4M 1.5 ms    80 us 900 us -\n"
        );
    }
}
