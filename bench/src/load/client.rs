use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::Front;
use super::message::{is_end, request, stamps, stream};
use super::socket::{Socket, Tls};
use super::{Fronts, Group, SETUP, Tally, Work, failed};
use crate::origin::{TICK, field, head_end};
use crate::{clock, echo};

/// Connections that are not ready yet, at most: more would overflow the queues of the listeners.
const OPENING_MAX: usize = 64;
/// Turns of one connection before the others get theirs.
const TURNS: usize = 16;
/// Messages that the schedule releases before answers are read.
const RELEASED_MAX: usize = 64;
/// Chunks of a stream that come before those whose delay counts. Those that matter have flowed for a while; at the beginning
/// all are asked for at once, gateways compare otherwise, and presumably the kernel acknowledges otherwise.
const LEAD: u32 = 15;
/// How long they take.
pub(crate) const STREAM_LEAD: Duration = TICK.saturating_mul(LEAD);
/// How long streams may take beyond the window that they were asked for.
const STREAMS_LATE: Duration = Duration::from_secs(5);
/// How far a body that is taken at a rate may lag behind it and catch up, nanoseconds.
const CATCH_UP: u64 = 10_000_000;
const BUFFER: usize = 128 * 1024;
/// Full TLS, resumed TLS and RSA are told apart by configuration.
const HOST: &str = "localhost";
const RSA_HOST: &str = "rsa.test";

/// All connections of all groups.
pub struct Client {
    poll: Poll,
    groups: Vec<State>,
    fronts: Fronts,
    slots: Vec<Slot>,
    again: Vec<usize>,
    /// Connections that have taken what their rate allows so far.
    sated: Vec<usize>,
    buffer: Vec<u8>,
    filler: Vec<u8>,
    ready: usize,
    opening: usize,
    /// Whether all connections are there. Before, those that are wait: else the last would have to get past the load of
    /// all others, which takes minutes when there are a thousand.
    has_begun: bool,
    resumed: u64,
    /// CPU of looking for something to do when there was nothing, nanoseconds.
    looked_in_vain: u64,
}

struct State {
    group: Group,
    tls: Option<Tls>,
    request: Vec<u8>,
    frame: Vec<u8>,
    tally: Tally,
    first: usize,
    host: &'static str,
    /// Chunks that each stream was asked for last.
    chunks: u64,
    /// Messages that the schedule has released so far.
    released: u64,
}

struct Slot {
    group: usize,
    socket: Option<Socket>,
    is_connected: bool,
    is_ready: bool,
    /// Its next turn comes when all connections are there.
    is_held: bool,
    output: Vec<u8>,
    written: usize,
    /// Bytes of a request body still to go.
    upload: u64,
    /// When a body that is taken at a rate may be read again.
    hungry_at: u64,
    input: Vec<u8>,
    stage: Stage,
    /// When what is awaited began, or was due.
    since: VecDeque<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body(u64),
    Tunnel(usize),
    /// Chunks of it that have come.
    Stream(u64),
    /// A stream has ended.
    Over,
}

impl Client {
    /// Connects all groups, brings them to where they can work, and lets them begin.
    ///
    /// # Errors
    /// When that does not happen in time, or a connection ends.
    pub fn open(groups: &[Group], fronts: Fronts) -> io::Result<Self> {
        let mut states = Vec::new();
        let mut slots = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let resumed = matches!(group.work, Work::Connect { resumed: true });
            let host = if group.front == Front::Rsa { RSA_HOST } else { HOST };
            let tls = match group.front {
                Front::Plain => None,
                Front::Tls | Front::Rsa => Some(Tls::new(host, resumed)?),
            };
            let frame = match group.work {
                Work::Echo { bytes } | Work::Paced { bytes, .. } => echo::masked(bytes),
                _ => echo::masked(128),
            };
            states.push(State {
                group: group.clone(),
                tls,
                request: request(&group.work, host),
                frame,
                tally: Tally::new(),
                first: slots.len(),
                host,
                chunks: 1,
                released: 0,
            });
            slots.extend((0..group.connections).map(|_| Slot::new(index)));
        }
        let mut client = Self {
            poll: Poll::new()?,
            groups: states,
            fronts,
            slots,
            again: Vec::new(),
            sated: Vec::new(),
            buffer: vec![0; BUFFER],
            filler: vec![b'u'; BUFFER],
            ready: 0,
            opening: 0,
            has_begun: false,
            resumed: 0,
            looked_in_vain: 0,
        };
        let deadline = Instant::now() + SETUP;
        let mut next = 0;
        while client.ready < client.slots.len() {
            while next < client.slots.len() && client.opening < OPENING_MAX {
                client.connect(next)?;
                next += 1;
            }
            client.step(Duration::from_millis(100))?;
            if Instant::now() > deadline {
                let (ready, all) = (client.ready, client.slots.len());
                return Err(failed(format!(
                    "only {ready} of {all} connections were ready in time"
                )));
            }
        }
        client.begin()?;
        Ok(client)
    }

    /// Lets go what was held.
    fn begin(&mut self) -> io::Result<()> {
        self.has_begun = true;
        for slot in 0..self.slots.len() {
            if std::mem::take(&mut self.slots[slot].is_held) {
                self.next(slot)?;
            }
        }
        Ok(())
    }

    /// The next request or message of a connection whose last one is answered.
    fn next(&mut self, slot: usize) -> io::Result<()> {
        let entry = &mut self.slots[slot];
        if !self.has_begun {
            entry.is_held = true;
            return Ok(());
        }
        let state = &self.groups[entry.group];
        if matches!(state.group.work, Work::Echo { .. }) {
            entry.since.push_back(clock::now());
            entry.output.extend_from_slice(&state.frame);
        } else {
            entry.ask(state);
        }
        self.write(slot)
    }

    /// Works for `window` and returns what each group did in it.
    ///
    /// # Errors
    /// When a connection ends that should not.
    pub fn run(&mut self, window: Duration) -> io::Result<Vec<Tally>> {
        for state in &mut self.groups {
            state.tally = Tally::new();
            state.released = 0;
        }
        self.begin_streams(window)?;
        let begun = clock::now();
        let end = begun + nanoseconds(window);
        let late = end + nanoseconds(STREAMS_LATE);
        while clock::now() < end || self.is_streaming() {
            if clock::now() > late {
                return Err(failed("streams did not end in time"));
            }
            let stop = if clock::now() < end { end } else { late };
            let next = self.release(begun)?.min(self.feed()?).min(stop);
            // Timers of the kernel's poll are whole milliseconds: the rest is waited out by looking again.
            let left = next.saturating_sub(clock::now());
            let pause = if left < 1_000_000 { 0 } else { left };
            self.step(Duration::from_nanos(pause))?;
        }
        Ok(self.groups.iter().map(|state| state.tally.clone()).collect())
    }

    /// Bodies are counted in bytes and told in GB; everything else is counted as what it is.
    #[must_use]
    pub fn bytes_per_unit(&self) -> f64 {
        match self.groups.first().map(|state| &state.group.work) {
            Some(Work::Download { .. } | Work::Upload { .. }) => 1e9,
            _ => 1.0,
        }
    }

    /// Whether the first group resumes sessions.
    #[must_use]
    pub fn is_resuming(&self) -> bool {
        let first = self.groups.first().map(|state| &state.group.work);
        matches!(first, Some(Work::Connect { resumed: true }))
    }

    /// Handshakes so far that resumed a session.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Nanoseconds of CPU so far in which the thread looked whether there was something to do, and there was nothing: it could
    /// have done more.
    #[must_use]
    pub fn looked_in_vain(&self) -> u64 {
        self.looked_in_vain
    }

    /// Asks for streams of which what counts lasts as long as `window`.
    fn begin_streams(&mut self, window: Duration) -> io::Result<()> {
        let chunks = u64::from(LEAD) + (nanoseconds(window) / nanoseconds(TICK)).max(1);
        for slot in 0..self.slots.len() {
            let entry = &mut self.slots[slot];
            let state = &mut self.groups[entry.group];
            if state.group.work == Work::Stream {
                state.chunks = chunks;
                entry.output.extend(stream(chunks, state.host));
                entry.stage = Stage::Head;
                self.write(slot)?;
            }
        }
        Ok(())
    }

    fn is_streaming(&self) -> bool {
        let is_open = |slot: &Slot| {
            slot.stage != Stage::Over && self.groups[slot.group].group.work == Work::Stream
        };
        self.slots.iter().any(is_open)
    }

    /// Sends what is due; returns when the next message is.
    fn release(&mut self, begun: u64) -> io::Result<u64> {
        let mut next = u64::MAX;
        for index in 0..self.groups.len() {
            let state = &self.groups[index];
            let Work::Paced { per_second, .. } = state.group.work else { continue };
            let connections = state.group.connections as u64;
            let gap = (1_000_000_000 / (per_second * connections).max(1)).max(1);
            // Whoever falls behind must still read, and must still end.
            for _ in 0..RELEASED_MAX {
                let state = &mut self.groups[index];
                let due = begun + state.released * gap;
                if due > clock::now() {
                    break;
                }
                let which =
                    state.first + usize::try_from(state.released % connections).unwrap_or_default();
                state.released += 1;
                let slot = &mut self.slots[which];
                slot.since.push_back(due);
                slot.output.extend_from_slice(&state.frame);
                if slot.socket.is_some() {
                    self.write(which)?;
                }
            }
            next = next.min(begun + self.groups[index].released * gap);
        }
        Ok(next)
    }

    /// Reads what may be read again; returns when the next may.
    fn feed(&mut self) -> io::Result<u64> {
        for slot in std::mem::take(&mut self.sated) {
            self.turn(slot)?;
        }
        let next = self.sated.iter().map(|slot| self.slots[*slot].hungry_at).min();
        Ok(next.unwrap_or(u64::MAX))
    }

    fn step(&mut self, pause: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let is_waiting = self.again.is_empty() && pause.is_zero();
        let pause = if self.again.is_empty() { pause } else { Duration::ZERO };
        // A call of the kernel, so only where it is used.
        let asked = is_waiting.then(clock::of_this_thread);
        match self.poll.poll(&mut events, Some(pause)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if let Some(asked) = asked
            && events.is_empty()
        {
            self.looked_in_vain += clock::of_this_thread().saturating_sub(asked);
            // The origin may be on this core.
            thread::yield_now();
        }
        for slot in std::mem::take(&mut self.again) {
            self.turn(slot)?;
        }
        for event in &events {
            let Token(slot) = event.token();
            if !self.slots[slot].is_connected {
                if !event.is_writable() {
                    continue;
                }
                if let Some(socket) = &self.slots[slot].socket {
                    socket.on_connected()?;
                }
                self.slots[slot].is_connected = true;
            }
            self.turn(slot)?;
        }
        Ok(())
    }

    fn connect(&mut self, slot: usize) -> io::Result<()> {
        let state = &self.groups[self.slots[slot].group];
        let address = self.fronts.address(state.group.front);
        let mut socket = Socket::connect(address, state.tls.as_ref())?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket.tcp, Token(slot), both)?;
        let entry = &mut self.slots[slot];
        entry.socket = Some(socket);
        entry.is_connected = false;
        entry.ask(state);
        if !entry.is_ready {
            self.opening += 1;
        }
        Ok(())
    }

    fn turn(&mut self, slot: usize) -> io::Result<()> {
        let group = &self.groups[self.slots[slot].group].group;
        // A body that is taken at a rate is there to disturb others in the gateway. Here it must not: what has piled up of
        // it may be megabytes, which take a while to be opened.
        let is_metered = matches!(group.work, Work::Download { bytes_per_second: Some(_), .. });
        let turns = if is_metered && self.has_begun { 1 } else { TURNS };
        for _ in 0..turns {
            self.write(slot)?;
            if self.is_uploading(slot) {
                self.on_ready(slot);
            }
            let entry = &mut self.slots[slot];
            let Some(socket) = &mut entry.socket else { return Ok(()) };
            if self.has_begun && entry.hungry_at > clock::now() {
                if !self.sated.contains(&slot) {
                    self.sated.push(slot);
                }
                return Ok(());
            }
            let read = match socket.read(&mut self.buffer) {
                Ok(0) => {
                    return Err(failed("a gateway closed a connection that was in use"));
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.on_bytes(slot, read)?;
        }
        self.again.push(slot);
        Ok(())
    }

    fn write(&mut self, slot: usize) -> io::Result<()> {
        let entry = &mut self.slots[slot];
        let state = &mut self.groups[entry.group];
        let Some(socket) = &mut entry.socket else { return Ok(()) };
        if !entry.is_connected {
            return Ok(());
        }
        // A body that is uploaded shares the thread with everybody else.
        for _ in 0..TURNS {
            let (bytes, is_body) = if entry.written < entry.output.len() {
                (&entry.output[entry.written..], false)
            } else if entry.upload > 0 {
                let length = usize::try_from(entry.upload).unwrap_or(usize::MAX);
                (&self.filler[..length.min(self.filler.len())], true)
            } else {
                break;
            };
            match socket.write(bytes) {
                Ok(written) if is_body => {
                    entry.upload -= written as u64;
                    state.tally.units += written as u64;
                }
                Ok(written) => entry.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if entry.upload > 0 {
            self.again.push(slot);
        }
        if entry.written == entry.output.len() {
            entry.output.clear();
            entry.written = 0;
        }
        socket.flush()
    }

    fn on_bytes(&mut self, slot: usize, read: usize) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.buffer);
        let result = self.consume(slot, &bytes[..read]);
        std::mem::swap(&mut self.buffer, &mut bytes);
        result
    }

    fn consume(&mut self, slot: usize, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let entry = &mut self.slots[slot];
            let state = &mut self.groups[entry.group];
            match entry.stage {
                Stage::Head => {
                    let before = entry.input.len();
                    entry.input.extend_from_slice(bytes);
                    let Some(end) = head_end(&entry.input) else { return Ok(()) };
                    bytes = &bytes[end - before..];
                    let head = String::from_utf8_lossy(&entry.input[..end]).into_owned();
                    entry.input.clear();
                    self.on_head(slot, &head)?;
                }
                Stage::Body(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[taken..];
                    if let Work::Download { bytes_per_second, .. } = state.group.work {
                        state.tally.units += taken as u64;
                        if let Some(rate) = bytes_per_second {
                            // What was missed is not made up for.
                            let since = entry.hungry_at.max(clock::now().saturating_sub(CATCH_UP));
                            entry.hungry_at = since + taken as u64 * 1_000_000_000 / rate.max(1);
                        }
                    }
                    entry.stage = Stage::Body(left - taken as u64);
                    if left == taken as u64 {
                        self.on_response(slot)?;
                    }
                }
                Stage::Tunnel(left) => {
                    let taken = left.min(bytes.len());
                    bytes = &bytes[taken..];
                    entry.stage = Stage::Tunnel(left - taken);
                    if left == taken {
                        self.on_message(slot)?;
                    }
                }
                Stage::Stream(before) => {
                    entry.input.extend_from_slice(bytes);
                    bytes = &[];
                    let mut count = before;
                    for late in stamps(&mut entry.input, clock::now()) {
                        state.tally.units += 1;
                        if count >= u64::from(LEAD) {
                            state.tally.latency.saturating_record(late);
                        }
                        count += 1;
                    }
                    entry.stage = Stage::Stream(count);
                    if is_end(&entry.input) {
                        if count != state.chunks {
                            let asked = state.chunks;
                            return Err(failed(format!("{count} of {asked} chunks have come")));
                        }
                        entry.input.clear();
                        entry.stage = Stage::Over;
                        self.on_ready(slot);
                    }
                }
                Stage::Over => return Err(failed("something came behind the end of a stream")),
            }
        }
        Ok(())
    }

    fn on_head(&mut self, slot: usize, head: &str) -> io::Result<()> {
        let entry = &mut self.slots[slot];
        let state = &self.groups[entry.group];
        let status = head.split(' ').nth(1).unwrap_or_default();
        match state.group.work {
            Work::Echo { .. } | Work::Paced { .. } | Work::Idle => {
                if status != "101" {
                    return Err(failed(format!("a WebSocket was answered with {status}")));
                }
                entry.stage = Stage::Tunnel(state.answer());
                // The first message proves the tunnel; the schedule takes over from there.
                entry.output.extend_from_slice(&state.frame);
                entry.since.clear();
                entry.since.push_back(clock::now());
                return Ok(());
            }
            _ if status != "200" => {
                return Err(failed(format!("a request was answered with {status}")));
            }
            Work::Stream => {
                entry.stage = Stage::Stream(0);
                return Ok(());
            }
            _ => {}
        }
        let length = field(head, "content-length").and_then(|text| text.parse().ok());
        let length: u64 = length.ok_or_else(|| failed("a response has no Content-Length"))?;
        entry.stage = Stage::Body(length);
        if matches!(state.group.work, Work::Download { .. } | Work::Upload { .. }) {
            self.on_ready(slot);
        }
        if length == 0 { self.on_response(slot) } else { Ok(()) }
    }

    fn on_response(&mut self, slot: usize) -> io::Result<()> {
        self.on_ready(slot);
        let entry = &mut self.slots[slot];
        let state = &mut self.groups[entry.group];
        let begun = entry.since.pop_front().unwrap_or_default();
        let took = clock::now().saturating_sub(begun);
        match state.group.work {
            Work::Download { .. } | Work::Upload { .. } => {
                state.tally.latency.saturating_record(took)
            }
            Work::Connect { .. } => {
                state.tally.on_unit(took);
                if let Some(socket) = entry.socket.take() {
                    self.resumed += u64::from(socket.is_resumed());
                    socket.close();
                }
                return self.connect(slot);
            }
            _ => state.tally.on_unit(took),
        }
        self.next(slot)
    }

    fn on_message(&mut self, slot: usize) -> io::Result<()> {
        let was_ready = self.slots[slot].is_ready;
        self.on_ready(slot);
        let entry = &mut self.slots[slot];
        let state = &mut self.groups[entry.group];
        let begun = entry.since.pop_front().unwrap_or_default();
        if was_ready {
            state.tally.on_unit(clock::now().saturating_sub(begun));
        }
        entry.stage = Stage::Tunnel(state.answer());
        if matches!(state.group.work, Work::Echo { .. }) { self.next(slot) } else { Ok(()) }
    }

    /// An upload is at work as soon as some of it is sent; its answer may be a minute away.
    fn is_uploading(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        matches!(self.groups[entry.group].group.work, Work::Upload { bytes } if entry.upload < bytes)
    }

    fn on_ready(&mut self, slot: usize) {
        if !self.slots[slot].is_ready {
            self.slots[slot].is_ready = true;
            self.ready += 1;
            self.opening -= 1;
        }
    }
}

impl State {
    /// Length of the echo of a message.
    fn answer(&self) -> usize {
        match self.group.work {
            Work::Echo { bytes } | Work::Paced { bytes, .. } => echo::unmasked_length(bytes),
            _ => echo::unmasked_length(128),
        }
    }
}

impl Slot {
    fn new(group: usize) -> Self {
        Self {
            group,
            socket: None,
            is_connected: false,
            is_ready: false,
            is_held: false,
            output: Vec::new(),
            written: 0,
            upload: 0,
            hungry_at: 0,
            input: Vec::new(),
            stage: Stage::Head,
            since: VecDeque::new(),
        }
    }

    /// The next request.
    fn ask(&mut self, state: &State) {
        self.output.extend_from_slice(&state.request);
        if let Work::Upload { bytes } = state.group.work {
            self.upload = bytes;
        }
        self.stage = Stage::Head;
        self.since.clear();
        self.since.push_back(clock::now());
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
