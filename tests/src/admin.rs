//! A client of the admin endpoint.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::PATIENCE;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Asks over a unix socket.
///
/// # Errors
/// When nobody answers.
pub fn ask_unix(socket: &Path, target: &str) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, target, "localhost")
}

/// Asks over TCP, with this Host.
///
/// # Errors
/// When nobody answers.
pub fn ask_tcp(address: SocketAddr, target: &str, host: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, target, host)
}

fn ask(mut stream: impl Read + Write, target: &str, host: &str) -> io::Result<Answer> {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// `/connections`.
///
/// # Panics
/// When it cannot be had.
#[must_use]
pub fn connections(socket: &Path) -> Value {
    let answer = ask_unix(socket, "/connections").expect("the endpoint answers");
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).expect("it is JSON")
}

/// `/metrics`, as a parser of Prometheus's text understands it.
///
/// # Panics
/// When it cannot be had or understood.
#[must_use]
pub fn metrics(socket: &Path) -> prometheus_parse::Scrape {
    let answer = ask_unix(socket, "/metrics").expect("the endpoint answers");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let lines = answer.body.lines().map(|line| Ok(line.to_owned()));
    prometheus_parse::Scrape::parse(lines).expect("it is Prometheus's text")
}

/// The sum of all samples of a family whose labels include `labels`; of a histogram the count.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn value(scrape: &prometheus_parse::Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has_labels = |sample: &&prometheus_parse::Sample| {
        sample.metric == name
            && labels.iter().all(|&(key, value)| sample.labels.get(key) == Some(value))
    };
    let found: Vec<_> = scrape.samples.iter().filter(has_labels).collect();
    assert!(!found.is_empty(), "no {name} with {labels:?}");
    let number = |sample: &&prometheus_parse::Sample| match &sample.value {
        prometheus_parse::Value::Counter(value)
        | prometheus_parse::Value::Gauge(value)
        | prometheus_parse::Value::Untyped(value) => *value,
        prometheus_parse::Value::Histogram(counts) => {
            counts.last().map_or(0.0, |bucket| bucket.count)
        }
        prometheus_parse::Value::Summary(_) => f64::NAN,
    };
    found.iter().map(number).sum()
}
