//! The screen: what it shows, how it looks, and what keys do to it. Pure: no terminal, no clock.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::format;
use super::rows::{Rows, Sort};
use super::why::{Culprit, Why};
use crate::telemetry::snapshot::{Connection, Snapshot};

/// Lines above the rows: the summary, an empty one and the titles.
const LINES_ABOVE: usize = 7;

/// Lines below the rows: the keys.
const LINES_BELOW: usize = 1;

/// Whether the user has seen enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Stay,
    Quit,
}

/// How much there was per second between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    requests: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Rates {
    /// None when no time lies between them, or the gateway was started anew.
    fn between(before: &Snapshot, now: &Snapshot) -> Option<Self> {
        let seconds = now.uptime_s - before.uptime_s;
        let per_second = |before: u64, now: u64| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate to look at: three digits are shown"
            )]
            now.checked_sub(before).map(|count| (count as f64 / seconds) as u64)
        };
        (seconds > 0.0).then_some(())?;
        let (before, now) = (&before.totals, &now.totals);
        Some(Self {
            requests: per_second(before.requests, now.requests)?,
            bytes_in: per_second(before.bytes_in, now.bytes_in)?,
            bytes_out: per_second(before.bytes_out, now.bytes_out)?,
        })
    }
}

/// What the user looks at.
#[derive(Debug)]
pub(super) struct Screen {
    snapshot: Snapshot,
    rates: Option<Rates>,
    sort: Sort,
    /// Rows above the first that is shown.
    offset: usize,
    /// Why the snapshot is not the newest.
    trouble: Option<String>,
}

impl Screen {
    pub(super) fn new(snapshot: Snapshot, sort: Sort) -> Self {
        let mut screen = Self { snapshot, rates: None, sort, offset: 0, trouble: None };
        screen.sort.order(&mut screen.snapshot.connections);
        screen
    }

    /// A newer snapshot has come, or the reason why not.
    pub(super) fn on_snapshot(&mut self, result: Result<Snapshot, String>) {
        match result {
            Ok(mut snapshot) => {
                self.rates = Rates::between(&self.snapshot, &snapshot);
                self.sort.order(&mut snapshot.connections);
                self.snapshot = snapshot;
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// A key was pressed on a terminal with so many lines.
    pub(super) fn on_key(&mut self, key: KeyEvent, lines: u16) -> Wish {
        let page = rows_on(lines);
        let last = self.snapshot.connections.len().saturating_sub(page);
        let offset = self.offset.min(last);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Wish::Quit;
            }
            KeyCode::Up => self.offset = offset.saturating_sub(1),
            KeyCode::Down => self.offset = (offset + 1).min(last),
            KeyCode::PageUp => self.offset = offset.saturating_sub(page),
            KeyCode::PageDown => self.offset = (offset + page).min(last),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = last,
            KeyCode::Char(key) => {
                if let Some(sort) = Sort::ALL.into_iter().find(|sort| sort.key() == key) {
                    self.sort = sort;
                    self.offset = 0;
                    self.sort.order(&mut self.snapshot.connections);
                }
            }
            _ => {}
        }
        Wish::Stay
    }

    /// Draws all of it.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let page = rows_on(area.height);
        let connections = &self.snapshot.connections;
        let offset = self.offset.min(connections.len().saturating_sub(page));
        let shown = connections.iter().skip(offset).take(page).cloned().collect::<Vec<_>>();
        let rows = Rows::lay_out(&shown, area.width.into());
        let mut lines = self.above();
        lines.push(titles(&rows, self.sort));
        lines.extend(
            shown.iter().zip(&rows.cells).map(|(connection, cells)| row(connection, cells)),
        );
        frame.render_widget(Paragraph::new(lines), area);
        if let Some(y) = area.bottom().checked_sub(1) {
            let below = Line::styled(self.below(offset, shown.len()), Modifier::DIM);
            frame.render_widget(below, Rect { y, height: 1, ..area });
        }
    }

    fn above(&self) -> Vec<Line<'static>> {
        let mut lines: Vec<_> =
            summary(&self.snapshot, self.rates).into_iter().map(Line::raw).collect();
        if let Some(first) = lines.first_mut() {
            *first = first.clone().style(Modifier::BOLD);
        }
        lines.push(match &self.trouble {
            Some(trouble) => {
                Line::styled(format!("not the newest: {}", format::harmless(trouble)), Color::Red)
            }
            None => Line::default(),
        });
        lines
    }

    fn below(&self, offset: usize, shown: usize) -> String {
        let keys: Vec<_> =
            Sort::ALL.iter().map(|sort| format!("{} {}", sort.key(), sort.name())).collect();
        let all = self.snapshot.connections.len();
        let from = (offset + 1).min(all);
        format!(
            "{from}-{} of {all}  q quit  arrows scroll  sort: {}",
            offset + shown,
            keys.join(", ")
        )
    }
}

/// How many rows a terminal of so many lines has.
fn rows_on(lines: u16) -> usize {
    usize::from(lines).saturating_sub(LINES_ABOVE + LINES_BELOW).max(1)
}

fn titles(rows: &Rows, sort: Sort) -> Line<'static> {
    let mut spans = Vec::new();
    for ((column, _), title) in rows.columns.iter().zip(rows.titles()) {
        let chosen = *column == sort.column();
        let style = if chosen { Modifier::BOLD | Modifier::UNDERLINED } else { Modifier::BOLD };
        spans.push(Span::styled(title, style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans).style(Modifier::REVERSED)
}

fn row(connection: &Connection, cells: &[String]) -> Line<'static> {
    let style = match Why::of(connection).map(Why::culprit) {
        None => Style::new(),
        Some(Culprit::Network) => Style::new().fg(Color::Yellow),
        Some(Culprit::Gateway) => Style::new().fg(Color::Red),
        Some(Culprit::Tomcat) => Style::new().fg(Color::Magenta),
    };
    Line::styled(cells.join(" "), style)
}

/// The gateway as a whole, in five lines.
pub(super) fn summary(snapshot: &Snapshot, rates: Option<Rates>) -> [String; 5] {
    let count = format::count;
    let totals = &snapshot.totals;
    let draining = if snapshot.draining { ", draining" } else { "" };
    let (per_request, per_in, per_out) = match rates {
        Some(it) => (
            format!(" ({}/s)", count(it.requests)),
            format!(" ({}/s)", count(it.bytes_in)),
            format!(" ({}/s)", count(it.bytes_out)),
        ),
        None => Default::default(),
    };
    let workers = snapshot.workers.iter().map(|it| {
        let (open, accepted, requests) =
            (count(it.connections), count(it.accepted), count(it.requests));
        format!("{}: {open} open, {accepted} accepted, {requests} requests", it.index)
    });
    let mut upstreams: Vec<_> = snapshot.upstreams.iter().collect();
    upstreams.sort_by_key(|it| it.healthy);
    let upstreams = upstreams.into_iter().map(|it| {
        let health = if it.healthy { "up" } else { "DOWN" };
        let (name, endpoint) = (&it.route_upstream, &it.endpoint);
        format!("{name} {endpoint} {health}, {} in use, {} idle", count(it.in_use), count(it.idle))
    });
    let flush = match (&snapshot.ebpf.reason, snapshot.ebpf.active) {
        (_, true) => "measured by the kernel".to_owned(),
        (Some(reason), false) => format!("not measured: {reason}"),
        (None, false) => "not measured".to_owned(),
    };
    [
        format!(
            "tlsplice {}, up {}{draining}: connections {}, tunnels {}, requests {}{per_request}, in {}{per_in}, out {}{per_out}",
            snapshot.version,
            format::age(snapshot.uptime_s),
            count(totals.connections),
            count(totals.tunnels),
            count(totals.requests),
            count(totals.bytes_in),
            count(totals.bytes_out),
        ),
        format!(
            "paths      {} spliced, {} copied; TLS of {} in the kernel, {} here, {} without",
            count(totals.spliced),
            count(totals.copied),
            count(totals.kernel_tls),
            count(totals.user_tls),
            count(totals.no_tls),
        ),
        format!("workers    {}", workers.collect::<Vec<_>>().join(" | ")),
        format!("upstreams  {}", upstreams.collect::<Vec<_>>().join(" | ")),
        format!("flush      {flush}"),
    ]
    .map(|line| format::harmless(&line))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::testing::{connection, snapshot};
    use super::*;

    fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content.chunks(width.into());
        let text = lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
        text.map(|line| line.trim_end().to_owned()).collect()
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Wish {
        screen.on_key(KeyEvent::new(code, KeyModifiers::NONE), 12)
    }

    fn many(count: u64) -> Screen {
        Screen::new(snapshot((1..=count).map(connection).collect()), Sort::Flush)
    }

    #[test]
    fn the_screen_shows_the_gateway_and_the_slowest_first() {
        let mut slow = connection(2);
        (slow.flush_p99_us, slow.route) = (Some(12_300), None);
        let mut screen = Screen::new(snapshot(vec![connection(1), slow]), Sort::Flush);
        let mut later = screen.snapshot.clone();
        (later.uptime_s, later.totals.requests, later.totals.bytes_out) =
            (7_622.0, 1_850, 9_000_000);
        screen.on_snapshot(Ok(later));
        let expected = [
            "tlsplice 0.1.0, up 2h07m: connections 3, tunnels 1, requests 1.8k (25/s), in 10.0k (0/s), out 9.0M (2.0M/s)",
            "paths      4.0M spliced, 1.0M copied; TLS of 150 in the kernel, 50 here, 0 without",
            "workers    0: 2 open, 120 accepted, 999 requests | 1: 1 open, 80 accepted, 801 requests",
            "upstreams  tomcat 127.0.0.1:8080 up, 2 in use, 3 idle",
            "flush      measured by the kernel",
            "",
            "CLIENT         ROUTE       KIND    TLS    PATH      AGE    OUT BYTE 1 FLUSH 99    RTT RESENT   GAPS WHY SLOW",
            "192.0.2.1:5000 -           request kernel splice  1m15s   3.4M 1.5 ms    12 ms 900 us      0      - gateway: flush 12 ms",
            "192.0.2.1:5000 /guacamole/ request kernel splice  1m15s   3.4M 1.5 ms    80 us 900 us      0      - -",
            "",
            "1-2 of 2  q quit  arrows scroll  sort: f flush p99, t time to first byte, n network rtt, r resent, b bytes, a age",
        ];
        assert_eq!(drawn(&screen, 120, 11), expected);
    }

    #[test]
    fn a_failure_is_shown_until_the_next_snapshot() {
        let mut screen = many(1);
        screen.on_snapshot(Err("gone\u{1b}[2J".to_owned()));
        assert_eq!(drawn(&screen, 80, 10)[5], "not the newest: gone?[2J");
        screen.on_snapshot(Ok(snapshot(vec![])));
        assert_eq!(drawn(&screen, 80, 10)[5], "");
    }

    #[test]
    fn keys_scroll_within_the_rows() {
        let mut screen = many(20);
        let position = |screen: &Screen| drawn(screen, 80, 12)[11][..10].to_owned();
        for (code, shown) in [
            (KeyCode::Up, "1-4 of 20 "),
            (KeyCode::Down, "2-5 of 20 "),
            (KeyCode::PageDown, "6-9 of 20 "),
            (KeyCode::End, "17-20 of 2"),
            (KeyCode::Down, "17-20 of 2"),
            (KeyCode::PageUp, "13-16 of 2"),
            (KeyCode::Home, "1-4 of 20 "),
        ] {
            assert_eq!(press(&mut screen, code), Wish::Stay);
            assert_eq!(position(&screen), shown, "{code:?}");
        }
        press(&mut screen, KeyCode::End);
        screen.on_snapshot(Ok(snapshot(vec![connection(1)])));
        assert_eq!(position(&screen), "1-1 of 1  ");
    }

    #[test]
    fn a_key_sorts_and_goes_to_the_top() {
        let mut screen = many(20);
        screen.snapshot.connections[7].rtt_us = Some(5_000);
        press(&mut screen, KeyCode::End);
        press(&mut screen, KeyCode::Char('n'));
        assert_eq!((screen.offset, screen.snapshot.connections[0].id), (0, 8));
    }

    #[test]
    fn q_escape_and_control_c_quit_and_c_does_not() {
        let mut screen = many(1);
        for (code, modifiers, wish) in [
            (KeyCode::Char('q'), KeyModifiers::NONE, Wish::Quit),
            (KeyCode::Esc, KeyModifiers::NONE, Wish::Quit),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Wish::Quit),
            (KeyCode::Char('c'), KeyModifiers::NONE, Wish::Stay),
        ] {
            assert_eq!(screen.on_key(KeyEvent::new(code, modifiers), 24), wish, "{code:?}");
        }
    }

    #[test]
    fn a_tiny_terminal_is_no_trouble() {
        for (width, height) in [(1, 1), (3, 2), (20, 8), (500, 3)] {
            assert_eq!(drawn(&many(30), width, height).len(), usize::from(height));
        }
    }

    #[test]
    fn a_gateway_that_was_started_anew_has_no_rates_yet() {
        let before = snapshot(vec![]);
        let mut now = before.clone();
        now.uptime_s = 1.0;
        assert_eq!(Rates::between(&before, &now), None);
        assert_eq!(Rates::between(&before, &before), None);
        (now.uptime_s, now.totals.requests) = (before.uptime_s + 1.0, 0);
        assert_eq!(Rates::between(&before, &now), None);
    }
}
