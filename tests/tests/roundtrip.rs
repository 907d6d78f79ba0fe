//! What the gateway emits is read by a parser of other people as exactly the requests that were sent and logged.

use std::fmt::Write as _;

use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::hyper_origin::{HyperOrigin, Seen};
use tlsplice_tests::pump::Random;
use tlsplice_tests::wait_for;

/// Requests in one run.
const REQUESTS: usize = 600;

const METHODS: [&str; 8] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"];

/// Pieces of targets. Some make one that is refused, which is as good.
const PIECES: [&str; 16] = [
    "a",
    "Bc-_.~",
    "%20",
    "%C3%A9",
    "/",
    "/x",
    ";p=1",
    "!$&'()*+,=:@",
    "..",
    "%2e",
    "//",
    "?",
    "?q=/../%2F",
    "&r=%",
    "%7E",
    "/é",
];

/// Lines that a client may add; some are dropped on the way, some change what is dropped.
const LINES: [&str; 16] = [
    "Accept: */*",
    "Cookie: a=b; c=\"d\"",
    "X-A: b\r\nX-A: c",
    "X-Empty:",
    "X-Latin: \u{fc}",
    "X-Tab:\t a\tb \t",
    "X_Forwarded_For: 1.2.3.4",
    "X-Forwarded-For: 1.2.3.4",
    "Connection: keep-alive, X-A",
    "Connection: close",
    "Expect: 100-continue",
    "Upgrade: h2c\r\nConnection: Upgrade",
    "TE: trailers\r\nTrailer: X-T",
    "Authorization: Basic Zm9v",
    "Max-Forwards: 7",
    "Via: 1.0 fred (x, y)",
];

/// What was sent: the whole request, and what should come of it.
struct Sent {
    wire: Vec<u8>,
    method: &'static str,
    target: String,
    body: Vec<u8>,
}

impl Sent {
    /// Bytes of the body as they were sent, chunk framing included: what the log counts.
    fn body_on_the_wire(&self) -> u64 {
        let head = self.wire.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        (self.wire.len() - head - 4) as u64
    }
}

fn one_of<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[random.up_to(all.len()) - 1]
}

fn request(random: &mut Random) -> Sent {
    let method = one_of(random, &METHODS);
    let mut target = "/".to_owned();
    for _ in 1..random.up_to(5) {
        target += one_of(random, &PIECES);
    }
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for _ in 1..random.up_to(5) {
        head += one_of(random, &LINES);
        head += "\r\n";
    }
    let length = [0, 0, 1, 37, 5_000, 70_000][random.up_to(6) - 1];
    let body: Vec<u8> = (0..length).map(|_| b"\r\n0123456789GET /"[random.up_to(16) - 1]).collect();
    let mut wire = Vec::new();
    if random.up_to(2) == 1 && length > 0 {
        head += "Transfer-Encoding: chunked\r\n\r\n";
        wire.extend_from_slice(head.as_bytes());
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at(random.up_to(rest.len().min(9_000)));
            rest = behind;
            let extension = one_of(random, &["", ";a", ";a=b;c=\"d;\\\"\""]);
            wire.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(one_of(random, &["0\r\n\r\n", "000\r\nX-T: y\r\n\r\n"]).as_bytes());
    } else {
        if length > 0 || random.up_to(2) == 1 {
            write!(head, "Content-Length: {length}\r\n").expect("memory takes it");
        }
        wire.extend_from_slice(head.as_bytes());
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&body);
    }
    Sent { wire, method, target, body }
}

/// Statuses until the final one; None when the connection was over before.
fn final_status(client: &mut Client, to_head: bool) -> Option<u16> {
    loop {
        let answer = if to_head { client.try_head() } else { client.try_response() }.ok()?;
        if answer.status >= 200 {
            return Some(answer.status);
        }
    }
}

#[test]
fn another_parser_gets_exactly_the_requests_that_the_log_tells() {
    let mut random = Random::seeded();
    let origin = HyperOrigin::start();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let (mut client, mut expected) = (Client::tls(gateway.https), Vec::new());
    for _ in 0..REQUESTS {
        let sent = request(&mut random);
        // A refusal ends the connection, perhaps before everything was sent.
        let was_sent = client.try_send(&sent.wire).is_ok();
        let status = final_status(&mut client, sent.method == "HEAD");
        let text = sent.wire[..sent.wire.len().min(400)].escape_ascii().to_string();
        assert!(matches!(status, Some(200 | 400)) || !was_sent, "{status:?}: {text}");
        let ends = text.contains("Connection: close");
        if status == Some(200) {
            expected.push(sent);
        }
        if status != Some(200) || ends {
            client = Client::tls(gateway.https);
        }
    }
    drop(client);
    assert!(expected.len() > REQUESTS / 4, "only {} were taken", expected.len());

    let seen = origin.take();
    assert_eq!(seen.len(), expected.len(), "each once");
    for (one, sent) in seen.iter().zip(&expected) {
        assert_eq!((one.method.as_str(), &one.target), (sent.method, &sent.target));
        assert!(one.body == sent.body, "{} of {}: the body", one.method, one.target);
        let values = |name: &str| one.fields.iter().filter(|(own, _)| own == name).count();
        for name in ["x-forwarded-for", "x-forwarded-proto", "host"] {
            assert_eq!(values(name), 1, "{name} in {one:?}");
        }
        let is_foreign = |(name, value): &(String, Vec<u8>)| {
            name.contains('_') || name == "te" || name == "trailer" || value == b"1.2.3.4"
        };
        assert!(!one.fields.iter().any(is_foreign), "{one:?}");
    }
    let told = || {
        let log = gateway.access_log();
        let is_answered = |line: &&serde_json::Value| line["status"] == 200;
        log.iter()
            .filter(is_answered)
            .map(|line| {
                let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                (text("method"), text("target"), line["bytes_in"].as_u64().unwrap_or(u64::MAX))
            })
            .collect::<Vec<_>>()
    };
    // Two workers write it, so it need not be in order.
    let sorted = |mut all: Vec<(String, String, u64)>| {
        all.sort();
        all
    };
    let line = |(one, sent): (&Seen, &Sent)| {
        (one.method.clone(), one.target.clone(), sent.body_on_the_wire())
    };
    let wanted = sorted(seen.iter().zip(&expected).map(line).collect());
    wait_for("the log", || (told().len() >= wanted.len()).then_some(()));
    let told = sorted(told());
    let differs = told.iter().zip(&wanted).find(|(told, wanted)| told != wanted);
    assert!(told.len() == wanted.len() && differs.is_none(), "{differs:?}");
}
