//! Payload of every size and shape, with every version and cipher of TLS and in every mode of the gateway: what arrives is
//! what was sent, or the end shows that it is not.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS, every_cipher, tls_config, tls_stream};
use tlsplice_tests::echo::{echoing, number_in};
use tlsplice_tests::gateway::{Config, Gateway, SPLICE_VARIABLE};
use tlsplice_tests::origin::{Connection, Origin};
use tlsplice_tests::pump::{End, Random, Rhythm, exchange};
use tlsplice_tests::websocket;
use tungstenite::Message;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Sizes around those of records, of the piece from which splicing begins, and of buffers.
const SIZES: [usize; 9] = [0, 1, 100, 16_383, 16_384, 16_385, 65_535, 65_536, 300_001];

/// The largest size of a body here, in bytes.
const LARGEST: usize = 32 << 20;

/// Names another size of bulk, in bytes: software emulation takes less.
const BULK_VARIABLE: &str = "TLSPLICE_TEST_BULK";

/// A body of this size is bulk for certain, in bytes.
static BULK: LazyLock<usize> = LazyLock::new(|| match std::env::var(BULK_VARIABLE) {
    Ok(size) => size.parse().expect("a size in bytes"),
    Err(_) => 2_000_000,
});

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn before(origin: &Origin) -> Gateway {
    Gateway::start(&Config::to(origin.address()))
}

fn connect(gateway: &Gateway, config: &Arc<ClientConfig>) -> Stream {
    let mut stream = tls_stream(gateway.https, config, "localhost");
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    stream
}

fn any() -> Arc<ClientConfig> {
    Arc::new(tls_config(rustls::DEFAULT_VERSIONS))
}

fn body_of(response: &[u8]) -> Option<(String, &[u8])> {
    let end = response.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    Some((String::from_utf8_lossy(&response[..end]).into_owned(), &response[end..]))
}

fn is_whole(response: &[u8]) -> bool {
    // Heads are short: a search of everything would be made again for each piece.
    let Some((head, _)) = body_of(&response[..response.len().min(2_000)]) else { return false };
    match number_in(&head, "content-length") {
        Some(len) => response.len() == head.len() + len,
        None => response.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// Sends a body and expects it back, both at once. The gateway closes after a response that begins before its request ends.
fn expect_echo(gateway: &Gateway, config: &Arc<ClientConfig>, body: &[u8], random: &mut Random) {
    let head =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let request = [head.as_bytes(), body].concat();
    let mut stream = connect(gateway, config);
    let (response, end) = exchange(&mut stream, &request, Rhythm::Random(60_000), random, is_whole);
    assert!(matches!(end, End::Whole), "{} bytes: {end:?}", body.len());
    let (_, echo) = body_of(&response).expect("a head");
    assert_eq!(pattern::sha256(echo), pattern::sha256(body), "{} bytes", body.len());
}

/// The line of a bulk transfer names the mode that this run is about.
fn expect_mode(gateway: &Gateway, line: &Value) {
    let in_kernel = gateway.diagnostics().contains("in the kernel: ");
    let may_splice = std::env::var(SPLICE_VARIABLE).as_deref() != Ok("never");
    let expected = match (in_kernel, may_splice) {
        (true, true) => ("kernel", "splice"),
        (true, false) => ("kernel", "copy"),
        (false, _) => ("user", "copy"),
    };
    assert_eq!((&line["tls"], &line["path"]), (&expected.0.into(), &expected.1.into()), "{line}");
}

#[test]
fn bodies_of_all_sizes_come_back_with_every_cipher() {
    let mut random = Random::seeded();
    let origin = echoing(&mut random);
    let gateway = before(&origin);
    let most = pattern::bytes(*BULK);
    for (name, config) in every_cipher() {
        println!("{name}");
        let random_sizes: Vec<usize> = (0..2).map(|_| random.up_to(500_000)).collect();
        for len in SIZES.into_iter().chain(random_sizes).chain([*BULK]) {
            expect_echo(&gateway, &config, &most[..len], &mut random);
        }
    }
    let bulk = |line: &Value| line["bytes_out"] == *BULK;
    gateway.wait_for_access(bulk);
    for line in gateway.access_log().into_iter().filter(bulk) {
        expect_mode(&gateway, &line);
    }
}

#[test]
fn the_largest_body_comes_back_while_it_goes() {
    let mut random = Random::seeded();
    let origin = echoing(&mut random);
    let gateway = before(&origin);
    expect_echo(&gateway, &any(), &pattern::bytes(LARGEST), &mut random);
    expect_mode(&gateway, &gateway.wait_for_access(|line| line["bytes_in"] == LARGEST));
}

#[test]
fn chunks_of_all_sizes_come_back() {
    let mut random = Random::seeded();
    let origin = echoing(&mut random);
    let gateway = before(&origin);
    let body = pattern::bytes(*BULK);
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        for most in [50, 20_000, 400_000] {
            let body = &body[..(most * 200).min(*BULK)];
            let mut request =
                b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                    .to_vec();
            let mut rest = body;
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(random.up_to(most).min(rest.len()));
                request.extend(format!("{:x}\r\n", piece.len()).bytes());
                request.extend_from_slice(piece);
                request.extend(b"\r\n");
                rest = more;
            }
            request.extend(b"0\r\n\r\n");
            let rhythm = Rhythm::Random(60_000);
            let mut stream = connect(&gateway, &config);
            let (response, end) = exchange(&mut stream, &request, rhythm, &mut random, is_whole);
            assert!(matches!(end, End::Whole), "{version:?}: {end:?}");
            let (_, chunks) = body_of(&response).expect("a head");
            assert!(without_framing(chunks) == body, "{version:?}, chunks up to {most}");
        }
    }
}

fn without_framing(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|two| two == b"\r\n") {
        let digits = String::from_utf8_lossy(&chunks[..end]).into_owned();
        let size = usize::from_str_radix(&digits, 16).expect("a size");
        body.extend_from_slice(&chunks[end + 2..end + 2 + size]);
        chunks = &chunks[end + 2 + size + 2..];
    }
    body
}

#[test]
fn frames_from_one_byte_to_four_megabytes_come_back() {
    let demo = Demo::start().expect("it starts");
    let gateway = Gateway::start(&Config::to(demo.address()));
    let mut random = Random::seeded();
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        let mut socket = websocket::open(gateway.https, &config, "/echo").expect("it opens");
        let sizes = [1, 125, 126, 65_535, 65_536, random.up_to(*BULK), 2 * *BULK];
        let sent: Vec<Message> =
            sizes.iter().map(|&len| Message::binary(pattern::bytes(len))).collect();
        // One for one, then all at once.
        for message in &sent {
            let back = websocket::exchange(&mut socket, vec![message.clone()], 1);
            assert!(back[0] == *message, "{version:?}: {} bytes", message.len());
        }
        let back = websocket::exchange(&mut socket, sent.clone(), sent.len());
        assert!(back == sent, "{version:?}: all at once");
    }
}

/// An upstream that accepts a tunnel and does what it is told there; whether that worked comes through the channel.
fn tunnelling(
    serve: impl Fn(&mut Connection) -> io::Result<bool> + Send + Sync + 'static,
) -> (Origin, Receiver<bool>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        let result = serve(connection).unwrap_or(false);
        let tell = tell.lock().map_err(|_| io::ErrorKind::Other)?;
        tell.send(result).map_err(io::Error::other)
    });
    (origin, told)
}

fn next(told: &Receiver<bool>) -> bool {
    told.recv_timeout(tlsplice_tests::PATIENCE).expect("the upstream comes to an end")
}

#[test]
fn each_direction_of_a_tunnel_ends_for_itself() {
    let (origin, told) = tunnelling(|connection| {
        let first = connection.take(1)?;
        let body = pattern::bytes(*BULK);
        if first == b"u" {
            // The upstream is done first, and goes on reading.
            connection.send(&body)?;
            connection.stream.shutdown(Shutdown::Write)?;
        }
        let is_equal = connection.take(*BULK)? == body;
        let is_end = connection.stream.read(&mut [0])? == 0;
        if first == b"c" {
            connection.send(&body)?;
        }
        Ok(is_equal && is_end)
    });
    let gateway = before(&origin);
    let body = pattern::bytes(*BULK);
    for (name, config) in every_cipher() {
        for first in ["c", "u"] {
            let mut client = Client::with(gateway.https, &config, "localhost");
            client.send(UPGRADE);
            assert_eq!(client.head().status, 101);
            client.send(first);
            if first == "u" {
                assert!(client.take(*BULK) == body, "{name}");
                client.expect_close();
            }
            client.send(&body);
            client.finish();
            if first == "c" {
                assert!(client.take(*BULK) == body, "{name}");
                client.expect_close();
            }
            assert!(
                next(&told),
                "{name}, {first} first: the upstream got everything and a clean end"
            );
        }
    }
}

/// How a client gives up in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// A reset.
    Reset,
    /// FIN between two records, without close_notify.
    Fin,
    /// FIN within a record.
    FinWithin,
    /// close_notify: the end of what TLS carries, but not of the body.
    CloseNotify,
    /// A fatal alert.
    FatalAlert,
}

const STOPS: [Stop; 5] =
    [Stop::Reset, Stop::Fin, Stop::FinWithin, Stop::CloseNotify, Stop::FatalAlert];

impl Stop {
    fn apply(self, mut stream: Stream) {
        match self {
            Self::Reset => {
                set_socket_linger(&stream.sock, Some(Duration::ZERO)).expect("an option")
            }
            Self::Fin => stream.sock.shutdown(Shutdown::Write).expect("it is open"),
            Self::FinWithin => {
                stream.conn.writer().write_all(&[b'x'; 5_000]).expect("memory takes it");
                let mut wire = Vec::new();
                stream.conn.write_tls(&mut wire).expect("memory takes it");
                stream.sock.write_all(&wire[..3_000]).expect("it reads");
                stream.sock.shutdown(Shutdown::Write).expect("it is open");
            }
            Self::CloseNotify => {
                stream.conn.send_close_notify();
                stream.flush().expect("it reads");
            }
            Self::FatalAlert => {
                // A record that does not verify makes the client send its alert.
                let forged = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
                stream.conn.read_tls(&mut &forged[..]).expect("memory gives it");
                stream.conn.process_new_packets().expect_err("it is forged");
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut stream.sock).expect("it reads");
                }
            }
        }
        if self != Self::Reset {
            // Until the gateway has had enough too; whatever it says is no success.
            let mut answer = Vec::new();
            let _ = stream.sock.read_to_end(&mut answer);
        }
    }
}

/// What an upstream saw of a client that gives up.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A good part has come.
    Begun,
    /// The end, with every byte or without.
    Ended { is_whole: bool },
}

#[test]
fn what_a_client_gives_up_never_looks_whole() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let origin = Origin::start(move |connection| {
        if connection.request()?.contains("/ws") {
            connection.send(ACCEPT)?;
        }
        let tell = tell.lock().map_err(|_| io::ErrorKind::Other)?.clone();
        connection.take(*BULK / 4)?;
        tell.send(Seen::Begun).map_err(io::Error::other)?;
        let is_whole = connection.take(*BULK - *BULK / 4).is_ok();
        tell.send(Seen::Ended { is_whole }).map_err(io::Error::other)
    });
    let gateway = before(&origin);
    let len = *BULK;
    let upload = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n");
    let next = || told.recv_timeout(tlsplice_tests::PATIENCE).expect("the upstream says so");
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        for (stop, request) in STOPS.into_iter().flat_map(|stop| [(stop, UPGRADE), (stop, &upload)])
        {
            let mut stream = connect(&gateway, &config);
            stream.write_all(request.as_bytes()).expect("it reads");
            stream.write_all(&vec![b'x'; *BULK / 2]).expect("it reads");
            stream.flush().expect("it reads");
            assert_eq!(next(), Seen::Begun);
            stop.apply(stream);
            assert_eq!(next(), Seen::Ended { is_whole: false }, "{version:?}, {stop:?}: {request}");
        }
    }
    let lines = tlsplice_tests::wait_for("all lines", || {
        let lines = gateway.access_log();
        (lines.len() == 2 * VERSIONS.len() * STOPS.len()).then_some(lines)
    });
    // In a tunnel, close_notify is a good end of that direction.
    let complete = lines.iter().filter(|line| line["outcome"] == "complete");
    assert!(complete.clone().count() <= VERSIONS.len(), "{lines:?}");
    for line in lines.iter().filter(|line| line["outcome"] != "complete") {
        assert_eq!(line["fault"], "downstream", "{line}");
    }
}

#[test]
fn a_response_that_the_upstream_cuts_never_looks_whole() {
    const HEADS: [&str; 2] = ["Content-Length: 10000000", "Transfer-Encoding: chunked"];
    let origin = Origin::start(|connection| {
        let is_reset = connection.request()?.contains("/reset");
        let framing = HEADS[connection.index % HEADS.len()];
        connection.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"))?;
        // In chunks, this is one that was to be larger.
        connection.send("f4240\r\n")?;
        connection.send(vec![b'x'; 700_000])?;
        if is_reset {
            set_socket_linger(&connection.stream, Some(Duration::ZERO))?;
        }
        Ok(())
    });
    let gateway = before(&origin);
    for version in VERSIONS {
        for target in ["/end", "/end", "/reset", "/reset"] {
            let mut client = Client::tls_version(gateway.https, version);
            client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            client.expect_cut();
        }
    }
    for line in gateway.access_log() {
        assert_eq!((&line["outcome"], &line["fault"]), (&"aborted".into(), &"upstream".into()));
    }
}

#[test]
fn a_request_in_the_segment_of_the_finished_message_is_not_lost() {
    let mut random = Random::seeded();
    let origin = echoing(&mut random);
    let gateway = before(&origin);
    for (name, config) in every_cipher() {
        // The second handshake resumes the session of the first; with TLS 1.2 only then is there such a segment.
        for round in 0..2 {
            for (len, cut) in [(0, 0), (200, 0), (20_000, 0), (20_000, 700), (40_000, 20_000)] {
                let body = pattern::bytes(len);
                let head =
                    format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n");
                let mut stream = tls_stream(gateway.https, &config, "localhost");
                ask_at_once(&mut stream, &[head.as_bytes(), &body].concat(), cut);
                let response = Client::over(stream).response();
                assert!(response.body == body, "{name}, round {round}: {len} bytes, cut {cut}");
            }
        }
    }
}

/// Sends the last of the handshake and a request with one call, and the last `cut` bytes of both later.
fn ask_at_once(stream: &mut Stream, request: &[u8], cut: usize) {
    stream.conn.writer().write_all(request).expect("memory takes it");
    loop {
        let mut wire = Vec::new();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut wire).expect("memory takes it");
        }
        if !stream.conn.is_handshaking() {
            assert!(wire.len() > request.len(), "the request is in it");
            let (now, later) = wire.split_at(wire.len() - cut);
            stream.sock.write_all(now).expect("it reads");
            thread::sleep(Duration::from_millis(if cut == 0 { 0 } else { 20 }));
            return stream.sock.write_all(later).expect("it reads");
        }
        stream.sock.write_all(&wire).expect("it reads");
        stream.conn.read_tls(&mut stream.sock).expect("it answers");
        stream.conn.process_new_packets().expect("a handshake");
    }
}

#[test]
fn ten_thousand_key_updates_between_data_lose_nothing_or_end_it_visibly() {
    const UPDATES: usize = 10_000;
    const PIECE: usize = 100;
    let mut random = Random::seeded();
    let origin = echoing(&mut random);
    let gateway = before(&origin);
    let body = pattern::bytes(UPDATES * PIECE);
    let mut stream = connect(&gateway, &Arc::new(tls_config(&[&rustls::version::TLS13])));
    let head =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).expect("it reads");
    let (response, end) =
        exchange(&mut stream, &body, Rhythm::KeyUpdates(PIECE), &mut random, is_whole);
    if gateway.diagnostics().contains("no key updates in this kernel") {
        assert!(!matches!(end, End::Whole), "the kernel cannot follow");
        let echo = body_of(&response).map_or(&[][..], |(_, echo)| echo);
        assert!(echo.len() < body.len() && body.starts_with(echo), "{} bytes came", echo.len());
    } else {
        assert!(matches!(end, End::Whole), "{} bytes came: {end:?}", response.len());
        assert!(body_of(&response).is_some_and(|(_, echo)| echo == body));
    }
    expect_echo(&gateway, &any(), b"others go on", &mut random);
}

#[test]
fn a_thousand_connections_through_one_worker_get_their_own_answers() {
    const CONNECTIONS: usize = 1_000;
    let origin = Origin::mirror();
    // In emulation it takes long until the last has shaken hands, and until a thousand connections to the upstream, begun at
    // once, have been accepted there: this is about whose answer is whose, not about how soon it comes.
    let config = Config::default()
        .with(&format!(
            "[[upstream]]\nname = \"origin\"\nendpoints = [\"http://{}\"]\nconnect_timeout = \"5m\"\n\
             response_timeout = \"5m\"\n[[route]]\nupstream = \"origin\"",
            origin.address()
        ))
        .with_limits("keep_alive_timeout = \"10m\"");
    let gateway = Gateway::start(&config.with_workers(1));
    let config = any();
    let mut clients: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::over(connect(&gateway, &config))).collect();
    for round in 0..2 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(format!("GET /{round}/{index} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let text = client.response().text();
            assert!(text.starts_with(&format!("GET /{round}/{index} ")), "{text}");
        }
    }
}
