use std::io::{Read as _, Write as _};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::origin::Origin;
use crate::strict::{self, Request};

/// Ends a scripted reply after which the origin closes.
pub const END: &[u8] = b"{END}";

/// An origin that records exactly what it received, and answers with the target, or with what it is told.
pub struct Recorder {
    origin: Origin,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    seen: Seen,
    reply: Option<Vec<u8>>,
}

/// What came since it was last asked for.
#[derive(Default)]
pub struct Seen {
    /// Requests that came to their end.
    pub complete: Vec<Request>,
    /// Requests that were answered as soon as their head had come.
    pub scripted: Vec<Request>,
    /// Requests that were cut off.
    pub cut: Vec<Request>,
    /// What no parser should ever see.
    pub wrong: Vec<String>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Starts one.
    ///
    /// # Panics
    /// When no port can be bound.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let common = Arc::clone(&shared);
        let origin = Origin::start(move |connection| {
            serve(&mut connection.stream, &common);
            Ok(())
        });
        Self { origin, shared }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    /// Answers requests for anything but `/next...` with these bytes, as soon as their head has come.
    pub fn reply(&self, bytes: Option<Vec<u8>>) {
        lock(&self.shared).reply = bytes;
    }

    /// Takes what came.
    #[must_use]
    pub fn take(&self) -> Seen {
        mem::take(&mut lock(&self.shared).seen)
    }
}

fn serve(stream: &mut TcpStream, shared: &Mutex<Shared>) {
    let mut bytes = Vec::new();
    while let Some(next) = one(stream, &mut bytes, shared) {
        if stream.write_all(&next).is_err() {
            return;
        }
    }
}

/// Receives a request and says what to answer; None when the connection is over.
fn one(stream: &mut TcpStream, bytes: &mut Vec<u8>, shared: &Mutex<Shared>) -> Option<Vec<u8>> {
    let wrong = |what: String| {
        lock(shared).seen.wrong.push(what);
        None
    };
    let head = loop {
        match strict::head(bytes) {
            Ok(Some(head)) => break head,
            Ok(None) if more(stream, bytes) => {}
            Ok(None) if bytes.is_empty() => return None,
            Ok(None) => return wrong(format!("half a head: {}", bytes.escape_ascii())),
            Err(what) => return wrong(what),
        }
    };
    bytes.drain(..head.len);
    let reply = lock(shared).reply.clone().filter(|_| !head.request.target.starts_with("/next"));
    if let Some(reply) = reply {
        let is_whole = head.is_whole();
        lock(shared).seen.scripted.push(head.request);
        let last = match reply.strip_suffix(END) {
            None if is_whole => return Some(reply),
            None => {
                drop(stream.write_all(&reply));
                while more(stream, bytes) {}
                return None;
            }
            Some(last) => last,
        };
        // It may be gone already, which is what happens next anyway.
        drop(stream.write_all(last));
        return None;
    }
    if head.request.head.contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let (body, len) = loop {
        match head.body(bytes) {
            Ok(Some(body)) => break body,
            Ok(None) if more(stream, bytes) => {}
            Ok(None) => {
                lock(shared).seen.cut.push(head.request);
                return None;
            }
            Err(what) => return wrong(what),
        }
    };
    bytes.drain(..len);
    let target = head.request.target.clone();
    let text = if head.request.method == "HEAD" { "" } else { &target };
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", target.len());
    lock(shared).seen.complete.push(Request { body, ..head.request });
    Some(reply.into_bytes())
}

/// Receives; false when the connection is over.
fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut piece = [0; 64 * 1024];
    let count = stream.read(&mut piece).unwrap_or(0);
    bytes.extend_from_slice(&piece[..count]);
    count > 0
}
