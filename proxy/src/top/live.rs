//! The terminal: drawn anew for every snapshot and key, and given back as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;
use std::{io, process, thread};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::client::{self, Source};
use super::rows::Sort;
use super::view::{Screen, Wish};
use crate::telemetry::snapshot::Snapshot;

/// How long a signal or a snapshot waits until it is noticed.
const GLANCE: Duration = Duration::from_millis(100);

/// How long the screen has to end by itself after a signal.
const GRACE: Duration = Duration::from_millis(500);

/// The terminal in its own screen, until this is dropped. A panic gives it back too, before it tells itself.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !thread::panicking() {
            ratatui::restore();
        }
    }
}

/// Shows snapshots, one per `interval`, until the user or a signal ends it.
pub(super) fn run(
    source: &Source,
    interval: Duration,
    sort: Sort,
    first: Snapshot,
) -> io::Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    end_on_signal(Arc::clone(&ended))?;
    let snapshots = ask(source.clone(), interval)?;
    let mut screen = Screen::new(first, sort);
    let mut terminal = Terminal::take()?;
    let Terminal(terminal) = &mut terminal;
    while !ended.load(Ordering::Relaxed) {
        terminal.draw(|frame| screen.draw(frame))?;
        // Waits for whatever comes first; then takes all that is there before it draws again.
        while !ended.load(Ordering::Relaxed) {
            match snapshots.try_recv() {
                Ok(result) => {
                    screen.on_snapshot(result);
                    break;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            if !event::poll(GLANCE)? {
                continue;
            }
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && screen.on_key(key, terminal.size()?.height) == Wish::Quit
            {
                return Ok(());
            }
            break;
        }
    }
    Ok(())
}

/// Tells of a signal, and ends the process when nobody listens.
fn end_on_signal(ended: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            ended.store(true, Ordering::Relaxed);
            // On a terminal that has hung up, crossterm reads the end of it again and again and does not return.
            thread::sleep(GRACE);
            ratatui::restore();
            process::exit(0);
        }
    })?;
    Ok(())
}

/// Asks on a thread of its own, so that a gateway that does not answer holds up no key.
fn ask(source: Source, interval: Duration) -> io::Result<Receiver<Result<Snapshot, String>>> {
    // A screen that is held up must not collect snapshots.
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name("ask".to_owned()).spawn(move || {
        loop {
            thread::sleep(interval);
            let result = client::fetch(&source).map_err(|error| error.to_string());
            if sender.send(result).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
