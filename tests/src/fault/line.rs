use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::toxic::{Ending, Flow, Toxic, Way};
use super::{Pair, Shared};
use crate::pump::Random;

/// Bytes on their way at most: what is late fills this, then the sender waits.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Bytes on their way at most where nothing is late, so that a slow receiver is felt by the sender.
const PROMPT_BYTES_MAX: usize = 64 * 1024;

/// Moves the bytes of one direction until it ends.
pub(super) fn run(pair: &Pair, shared: &Shared, way: Way, random: Random) {
    let now = Instant::now();
    let source = Source::Open;
    let mut line = Line {
        pair,
        way,
        random,
        queue: VecDeque::new(),
        queued: 0,
        last_due: now,
        free: now,
        source,
    };
    loop {
        let (toxic, hearing) = {
            let state = shared.lock();
            if state.is_over {
                return;
            }
            (state.toxics[way.index()].clone(), state.hearing.clone())
        };
        match line.turn(&toxic) {
            Ok(Turn::Wait(wait)) => line.wait(&wait, &hearing),
            Ok(Turn::Over) => return,
            // Whatever one side got from its peer, the other one gets as a reset.
            Err(_) => return pair.reset(),
        }
    }
}

struct Line<'a> {
    pair: &'a Pair,
    way: Way,
    random: Random,
    /// When each piece is due, and what is left of it.
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    last_due: Instant,
    /// When the next byte may be sent.
    free: Instant,
    source: Source,
}

/// What is known of the sender.
#[derive(Clone, Copy)]
enum Source {
    Open,
    /// It has ended; when that was.
    Ended(Instant),
    /// Its bytes are dropped.
    Dropped,
}

enum Turn {
    Wait(Wait),
    Over,
}

#[derive(Default)]
struct Wait {
    for_bytes: bool,
    for_room: bool,
    until: Option<Instant>,
}

impl Line<'_> {
    fn passed(&self) -> u64 {
        self.pair.passed[self.way.index()].load(Ordering::Relaxed)
    }

    fn turn(&mut self, toxic: &Toxic) -> io::Result<Turn> {
        if let Source::Dropped = self.source {
            return self.drop_bytes();
        }
        if let Some(ending) = toxic.ending.filter(|ending| self.passed() >= ending.after()) {
            match ending {
                Ending::Reset(_) => self.pair.reset(),
                Ending::Close(_) => self.pair.close(),
                Ending::Finish(_) => {
                    self.source = Source::Dropped;
                    self.target().shutdown(Shutdown::Write)?;
                    return self.drop_bytes();
                }
                Ending::Stall(_) => return Ok(Turn::Wait(Wait::default())),
            }
            return Ok(Turn::Over);
        }
        if toxic.flow == Flow::Stalled {
            return Ok(Turn::Wait(Wait::default()));
        }
        let mut wait = Wait::default();
        self.receive(toxic, &mut wait)?;
        self.send(toxic, &mut wait)?;
        if let (Source::Ended(when), true) = (self.source, self.queue.is_empty()) {
            let due = when + toxic.close_delay;
            if due <= Instant::now() {
                // It may have closed before.
                drop(self.target().shutdown(Shutdown::Write));
                return Ok(Turn::Over);
            }
            wait.until = Some(due);
        }
        Ok(Turn::Wait(wait))
    }

    fn receive(&mut self, toxic: &Toxic, wait: &mut Wait) -> io::Result<()> {
        let is_late = !toxic.latency.is_zero() || !toxic.jitter.is_zero();
        let room = if is_late { QUEUE_BYTES_MAX } else { PROMPT_BYTES_MAX };
        if !matches!(self.source, Source::Open) || self.queued >= room {
            return Ok(());
        }
        let mut piece = vec![0; 16 * 1024];
        match self.source_socket().read(&mut piece) {
            Ok(0) => self.source = Source::Ended(Instant::now()),
            Ok(count) => {
                piece.truncate(count);
                let jitter = usize::try_from(toxic.jitter.as_micros()).unwrap_or(usize::MAX);
                let jitter = self.random.up_to(jitter.saturating_add(1)) - 1;
                let jitter = Duration::from_micros(u64::try_from(jitter).unwrap_or(0));
                let due = Instant::now() + toxic.latency + jitter;
                self.last_due = self.last_due.max(due);
                self.queue.push_back((self.last_due, piece));
                self.queued += count;
                wait.for_bytes = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait.for_bytes = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends one piece, if it is due.
    fn send(&mut self, toxic: &Toxic, wait: &mut Wait) -> io::Result<()> {
        let Some((due, _)) = self.queue.front() else { return Ok(()) };
        let due = (*due).max(self.free);
        if due > Instant::now() {
            wait.until = Some(due);
            return Ok(());
        }
        let most = match toxic.piece {
            Some(piece) => self.random.up_to(piece.get()),
            None => usize::MAX,
        };
        let left = toxic.ending.map_or(u64::MAX, |ending| ending.after() - self.passed());
        let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        let (_, bytes) = &self.queue[0];
        match self.target().write(&bytes[..most.min(bytes.len())]) {
            Ok(count) => {
                let now = Instant::now();
                self.took(count);
                let sent = u32::try_from(count).unwrap_or(u32::MAX);
                let cost = toxic
                    .rate
                    .map_or(Duration::ZERO, |rate| Duration::from_secs(1) * sent / rate.get());
                self.free = self.free.max(now) + cost + toxic.pause;
                // There may be more, or an end that is reached.
                wait.until = Some(self.free);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait.for_room = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn took(&mut self, count: usize) {
        let (_, bytes) = &mut self.queue[0];
        bytes.drain(..count);
        if bytes.is_empty() {
            self.queue.pop_front();
        }
        self.queued -= count;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.pair.passed[self.way.index()].fetch_add(count, Ordering::Relaxed);
    }

    fn drop_bytes(&mut self) -> io::Result<Turn> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.source_socket().read(&mut piece) {
                Ok(0) => return Ok(Turn::Over),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Turn::Wait(Wait { for_bytes: true, ..Wait::default() }));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn source_socket(&self) -> &std::net::TcpStream {
        &self.pair.sockets[self.way.index()]
    }

    fn target(&self) -> &std::net::TcpStream {
        &self.pair.sockets[1 - self.way.index()]
    }

    fn wait(&self, wait: &Wait, hearing: &OwnedFd) {
        let mut waits = vec![PollFd::new(hearing, PollFlags::IN)];
        if wait.for_bytes {
            waits.push(PollFd::new(self.source_socket(), PollFlags::IN));
        }
        if wait.for_room {
            waits.push(PollFd::new(self.target(), PollFlags::OUT));
        }
        let left = wait.until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        // Whatever it was, the next turn finds out.
        let _ = poll(&mut waits, left.as_ref());
    }
}
