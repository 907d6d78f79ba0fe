//! Asks the admin endpoint: one GET of HTTP/1.1, bounded in bytes and in time.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Admin;
use crate::telemetry::snapshot::Snapshot;

/// Longest answer that is read, in bytes: half a million connections.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// Longest head that is read, in bytes.
const HEAD_MAX: usize = 16 * 1024;

/// Most fields of a head.
const FIELDS_MAX: usize = 64;

/// The whole answer must be here after this time.
const TIMEOUT: Duration = Duration::from_secs(5);

const REQUEST: &[u8] =
    b"GET /connections HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n";

/// Where the admin endpoint of a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A socket in the file system.
    Socket(PathBuf),
    /// A loopback address.
    Address(SocketAddr),
}

impl Source {
    /// The endpoint that a configuration names, the socket of two. None when it names neither.
    #[must_use]
    pub fn of(admin: Admin) -> Option<Self> {
        admin.socket.map(Self::Socket).or(admin.address.map(Self::Address))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket does not exist.
    #[error(
        "no admin socket {0}: `[admin]` must be configured, and the gateway must run (`--config FILE` finds its socket)"
    )]
    Missing(Source),
    /// Nobody listens.
    #[error("nothing listens at {0}: `[admin]` must be configured, and the gateway must run")]
    Refused(Source),
    /// The socket belongs to somebody else.
    #[error("no permission to open {0}: run this as the user of the gateway")]
    Forbidden(Source),
    /// Too slow.
    #[error("{0} did not answer within {seconds} s", seconds = TIMEOUT.as_secs())]
    Slow(Source),
    /// Too much.
    #[error("the answer of {0} is longer than {1} bytes")]
    Long(Source, usize),
    /// It ended too early.
    #[error("{0} ended in the middle of its answer")]
    Short(Source),
    /// It speaks something else.
    #[error("what answers at {0} is no admin endpoint of tlsplice: {1}")]
    Foreign(Source, String),
    /// The system refused.
    #[error("cannot ask {0}: {1}")]
    Io(Source, io::Error),
}

/// The gateway at this moment.
///
/// # Errors
///
/// When the endpoint cannot be reached, does not answer in time, or answers anything else.
pub(crate) fn fetch(source: &Source) -> Result<Snapshot, Error> {
    fetch_within(source, TIMEOUT, ANSWER_MAX)
}

fn fetch_within(source: &Source, timeout: Duration, bound: usize) -> Result<Snapshot, Error> {
    let end = Instant::now() + timeout;
    let explain = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Error::Missing(source.clone()),
        ErrorKind::ConnectionRefused => Error::Refused(source.clone()),
        ErrorKind::PermissionDenied => Error::Forbidden(source.clone()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Slow(source.clone()),
        _ => Error::Io(source.clone(), error),
    };
    let mut socket = connect(source, timeout).map_err(explain)?;
    socket.write_all(REQUEST).map_err(explain)?;
    let foreign = |reason: String| Error::Foreign(source.clone(), reason);
    let mut received = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Slow(source.clone()));
        }
        socket.set_read_timeout(Some(left)).map_err(explain)?;
        let count = socket.read(&mut piece).map_err(explain)?;
        received.extend_from_slice(piece.get(..count).unwrap_or_default());
        let ending = if count == 0 { Ending::Closed } else { Ending::Open };
        if let Some(body) = body(&received, ending).map_err(foreign)? {
            return serde_json::from_slice(body).map_err(|error| foreign(error.to_string()));
        }
        match ending {
            Ending::Closed => return Err(Error::Short(source.clone())),
            Ending::Open if received.len() > bound => {
                return Err(Error::Long(source.clone(), bound));
            }
            Ending::Open => {}
        }
    }
}

/// Whether more can come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    Closed,
}

/// The body of a whole response; None while something is missing. The reason when it will never be one.
fn body(received: &[u8], ending: Ending) -> Result<Option<&[u8]>, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(received).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(length) = parsed else {
        let endless = received.len() > HEAD_MAX;
        return if endless { Err("its head has no end".to_owned()) } else { Ok(None) };
    };
    match head.code {
        Some(200) => {}
        code => return Err(format!("status {}", code.unwrap_or_default())),
    }
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| String::from_utf8_lossy(field.value).trim().to_owned())
    };
    // Hyper says the length of what it has whole; this is not the place for a second decoder of chunks.
    if let Some(coding) = field("transfer-encoding") {
        return Err(format!("transfer coding {coding:?}"));
    }
    let rest = received.get(length..).unwrap_or_default();
    match field("content-length") {
        Some(text) => {
            let length = text.parse::<usize>().map_err(|_| format!("content length {text:?}"))?;
            Ok(rest.get(..length))
        }
        None => Ok((ending == Ending::Closed).then_some(rest)),
    }
}

fn connect(source: &Source, timeout: Duration) -> io::Result<Socket> {
    let (domain, address) = match source {
        Source::Socket(path) => (Domain::UNIX, SockAddr::unix(path)?),
        Source::Address(address) => (Domain::for_address(*address), (*address).into()),
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    // Of a socket in the file system it bounds also the wait for a place in the backlog.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::super::testing::{connection, snapshot};
    use super::*;

    /// What becomes of an answer that is sent in these pieces, `pause` after each.
    fn answered(pieces: Vec<Vec<u8>>, pause: Duration) -> Result<Snapshot, Error> {
        let directory = tempfile();
        let path = directory.join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = vec![0; REQUEST.len()];
            socket.read_exact(&mut request).unwrap();
            assert_eq!(request, REQUEST);
            for piece in pieces {
                // The client may have had enough.
                let Ok(()) = socket.write_all(&piece) else { return };
                thread::sleep(pause);
            }
        });
        let result = fetch_within(&Source::Socket(path), Duration::from_millis(400), 100_000);
        server.join().unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        result
    }

    fn tempfile() -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("tlsplice-top-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    fn at_once(answer: impl Into<Vec<u8>>) -> Result<Snapshot, Error> {
        answered(vec![answer.into()], Duration::ZERO)
    }

    fn good(fields: &str) -> (Snapshot, String) {
        let told = snapshot(vec![connection(1), connection(2)]);
        let body = serde_json::to_string(&told).unwrap();
        let fields = fields.replace('#', &body.len().to_string());
        (told, format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}"))
    }

    #[test]
    fn an_answer_is_read_however_it_ends_and_in_whatever_pieces() {
        for fields in ["Content-Length: #\r\n", ""] {
            let (told, answer) = good(fields);
            assert_eq!(at_once(answer.clone()).unwrap(), told);
            let pieces = answer.as_bytes().chunks(97).map(<[u8]>::to_vec).collect();
            assert_eq!(answered(pieces, Duration::from_millis(1)).unwrap(), told);
        }
    }

    #[test]
    fn a_length_ends_it_although_the_connection_stays() {
        let (told, answer) = good("Content-Length: #\r\n");
        assert_eq!(answered(vec![answer.into()], Duration::from_secs(1)).unwrap(), told);
    }

    #[test]
    fn an_answer_over_loopback_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = Source::Address(listener.local_addr().unwrap());
        let (told, answer) = good("content-length: #\r\n");
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.read_exact(&mut vec![0; REQUEST.len()]).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
        });
        assert_eq!(fetch(&source).unwrap(), told);
        server.join().unwrap();
        assert!(matches!(fetch(&source), Err(Error::Refused(_))));
    }

    #[test]
    fn what_is_no_endpoint_is_said_to_be_none() {
        for (answer, reason) in [
            ("SSH-2.0-x\r\n\r\n", "invalid HTTP version"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content length \"-1\""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "transfer coding \"chunked\"",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "missing field"),
            ("HTTP/1.1 200 OK\r\n\r\nhello", "expected value"),
        ] {
            let error = at_once(answer).unwrap_err();
            assert!(matches!(error, Error::Foreign(..)), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn what_ends_too_early_is_no_snapshot() {
        let (_, answer) = good("Content-Length: #\r\n");
        for length in [0, 9, answer.len() - 1] {
            let error = at_once(&answer.as_bytes()[..length]).unwrap_err();
            assert!(matches!(error, Error::Short(_)), "{length}: {error}");
        }
    }

    #[test]
    fn neither_head_nor_body_may_be_endless() {
        let head = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(HEAD_MAX));
        let error = at_once(head).unwrap_err();
        assert!(error.to_string().contains("its head has no end"), "{error}");
        let mut body = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        body.resize(200_000, b' ');
        assert!(matches!(at_once(body), Err(Error::Long(_, 100_000))));
    }

    #[test]
    fn a_drip_does_not_prolong_the_time() {
        let (_, answer) = good("Content-Length: #\r\n");
        let pieces = answer.as_bytes()[..40].chunks(1).map(<[u8]>::to_vec).collect();
        let begun = Instant::now();
        let error = answered(pieces, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Slow(_)), "{error} after {:?}", begun.elapsed());
    }

    #[test]
    fn a_missing_socket_says_what_to_configure() {
        let error = fetch(&Source::Socket("/nonexistent/admin.sock".into())).unwrap_err();
        assert!(matches!(error, Error::Missing(_)));
        assert!(error.to_string().contains("`[admin]` must be configured"), "{error}");
    }
}
