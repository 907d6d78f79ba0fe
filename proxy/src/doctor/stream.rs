//! A stream of the application itself, read past the gateway and through it: both must come in the same pieces.

use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::client::Client;
use super::{Finding, TIMEOUT};
use crate::config::Config;
use crate::pool::{Endpoint, Target};

/// As many pieces as are waited for.
const PIECES_MAX: usize = 25;

/// What a scheduler may add to a pause, on a machine that does other things too.
const TOLERANCE: Duration = Duration::from_millis(20);

/// A response without a longer pause came all at once.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// How a stream came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cadence {
    pieces: usize,
    longest_pause: Duration,
}

/// Reads `target` (a public path, perhaps with a query) both ways, one after the other.
pub(super) fn examine(config: &Config, gateway: SocketAddr, host: &str, target: &str) -> Finding {
    let past = past_the_gateway(config, host, target);
    let through = Client::connect(gateway, host).and_then(|mut client| {
        client.send(request(host, target).as_bytes())?;
        measure(client.stream())
    });
    judge(target, past, through)
}

fn request(host: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn past_the_gateway(config: &Config, host: &str, target: &str) -> io::Result<Cadence> {
    let path = target.split('?').next().unwrap_or_default();
    let no_route = || io::Error::other("no route has this path");
    let route = config.route(host, path).ok_or_else(no_route)?;
    let rest = target.strip_prefix(route.path.as_str()).ok_or_else(no_route)?;
    let upstream = config.upstreams.get(route.upstream).ok_or_else(no_route)?;
    let addr = upstream.endpoints.first().ok_or_else(no_route)?;
    let endpoint = Endpoint::new(addr.clone());
    endpoint.resolve()?;
    let targets = endpoint.targets();
    let authority = endpoint.authority();
    let request = request(
        authority.as_deref().unwrap_or("localhost"),
        &format!("{}{rest}", route.upstream_path),
    );
    match targets.first().ok_or(io::ErrorKind::NotFound)? {
        Target::Tcp(address) => {
            let mut stream = TcpStream::connect_timeout(address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            measure(&mut stream)
        }
        Target::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            measure(&mut stream)
        }
    }
}

/// Reads until there were enough pieces, the end, or [`TIMEOUT`].
fn measure(stream: &mut impl Read) -> io::Result<Cadence> {
    let mut cadence = Cadence { pieces: 0, longest_pause: Duration::ZERO };
    let mut into = vec![0; 64 * 1024];
    let begun = Instant::now();
    let mut last = None;
    while cadence.pieces < PIECES_MAX && begun.elapsed() < TIMEOUT {
        match stream.read(&mut into) {
            Ok(0) => break,
            Ok(_) => {}
            // Silence for so long is a pause, and the end of the measurement.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        let pause = last.replace(now).map_or(Duration::ZERO, |last| now - last);
        cadence.longest_pause = cadence.longest_pause.max(pause);
        cadence.pieces += 1;
    }
    Ok(cadence)
}

fn judge(target: &str, past: io::Result<Cadence>, through: io::Result<Cadence>) -> Finding {
    let topic = "stream";
    let cost = "users see late frames";
    let (past, through) = match (past, through) {
        (Ok(past), Ok(through)) => (past, through),
        (Err(error), _) => {
            let fact = format!("{target} cannot be read from the upstream: {error}");
            return Finding::fail(topic, fact, "nothing can be compared", "name another path");
        }
        (_, Err(error)) => {
            let fact = format!("{target} cannot be read through the gateway: {error}");
            return Finding::fail(topic, fact, cost, "see the gateway's log");
        }
    };
    let shown = |cadence: Cadence| {
        let pause = cadence.longest_pause.as_millis();
        format!("{} pieces, longest pause {pause} ms", cadence.pieces)
    };
    let fact = format!("{target}: through the gateway {}; past it {}", shown(through), shown(past));
    if past.pieces < 3 || past.longest_pause < PAUSE_MIN {
        let cure = "name a path that streams for some seconds";
        return Finding::warn(topic, fact, "what comes all at once has no cadence", cure);
    }
    // The end of chunked framing may come with the last chunk or behind it.
    let is_whole = through.pieces + 2 >= past.pieces;
    let is_timely = through.longest_pause <= past.longest_pause + TOLERANCE;
    match (is_whole, is_timely) {
        (true, true) => Finding::ok(topic, fact),
        (true, false) => Finding::warn(topic, fact, cost, "repeat it: a busy machine does this"),
        (false, _) => {
            Finding::fail(topic, fact, cost, "report it: something holds bytes back on the way")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn fewer_pieces_or_longer_pauses_are_found() {
        let of =
            |pieces, pause| Ok(Cadence { pieces, longest_pause: Duration::from_millis(pause) });
        let judge = |past, through| judge("/s", past, through).verdict;
        assert_eq!(judge(of(25, 21), of(25, 22)), Verdict::Ok);
        assert_eq!(judge(of(25, 21), of(25, 80)), Verdict::Warn);
        assert_eq!(judge(of(25, 21), of(5, 100)), Verdict::Fail);
        assert_eq!(judge(of(1, 0), of(1, 0)), Verdict::Warn);
        assert_eq!(judge(of(25, 1), of(25, 1)), Verdict::Warn);
        assert_eq!(judge(Err(io::ErrorKind::TimedOut.into()), of(25, 21)), Verdict::Fail);
        assert_eq!(judge(of(25, 21), Err(io::ErrorKind::TimedOut.into())), Verdict::Fail);
    }
}
