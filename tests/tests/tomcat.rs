//! A real Tomcat behind the gateway: files, uploads, streams, WebSocket, identity, and Tomcat's own restart.
//!
//! One Tomcat serves all tests; the one that restarts it has another.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tlsplice_fixtures::pattern::{self, Hash, Pattern};
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_fixtures::{certificate, packages};
use tlsplice_tests::client::{Client, VERSIONS, tls_config};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::websocket::{close, exchange, open};
use tlsplice_tests::{target, wait_for};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

fn start(name: &str) -> Tomcat {
    packages::ensure(packages::TOMCAT).expect("the packages can be installed");
    Tomcat::start(&target().join("tests").join(name)).expect("Tomcat starts")
}

fn tomcat() -> &'static Tomcat {
    // Its guard ends it with this process.
    static TOMCAT: OnceLock<Tomcat> = OnceLock::new();
    TOMCAT.get_or_init(|| start("tomcat"))
}

fn gateway() -> Gateway {
    Gateway::start(&Config::to(tomcat().address()))
}

/// The lines `name=value` of a page of the test application.
fn values(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn static_files_arrive_whole() {
    let gateway = gateway();
    let sizes = [0, 1, 1000, 16_384, 100_000, 1 << 20, 64 << 20];
    let files: Vec<(u64, String)> = sizes
        .iter()
        .map(|&len| {
            let name = format!("{len}.bin");
            let mut file = fs::File::create(tomcat().webapp().join(&name)).expect("a file");
            std::io::copy(&mut Pattern::new(len), &mut file).expect("it is written");
            (len, name)
        })
        .collect();
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        for (len, name) in &files {
            client.send(format!("GET /test/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            let head = client.head();
            let text = len.to_string();
            assert_eq!(head.field("content-length"), Some(text.as_str()));
            let (mut hash, mut left) = (Hash::new(), usize::try_from(*len).expect("it fits"));
            while left > 0 {
                let piece = client.take(left.min(1 << 20));
                hash.update(&piece);
                left -= piece.len();
            }
            assert_eq!(hash.finish(), pattern::sha256_of_pattern(*len), "{len} bytes");
        }
        let part = client
            .ask("GET /test/1048576.bin HTTP/1.1\r\nHost: localhost\r\nRange: bytes=5-9\r\n\r\n");
        assert_eq!((part.status, part.body), (206, pattern::bytes(10)[5..].to_vec()));
    }
}

#[test]
fn uploads_arrive_whole_with_every_method() {
    let gateway = gateway();
    let mut client = Client::tls(gateway.https);
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for (len, is_chunked) in [(0, false), (1, true), (70_000, false), (70_000, true)] {
            let body = pattern::bytes(len);
            let framing = match is_chunked {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {len}"),
            };
            client.send(format!(
                "{method} /test/echo.jsp HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Type: application/octet-stream\r\n{framing}\r\n\r\n"
            ));
            if is_chunked {
                for piece in body.chunks(4001) {
                    client.send(format!("{:x}\r\n", piece.len()));
                    client.send(piece);
                    client.send("\r\n");
                }
                client.send("0\r\n\r\n");
            } else {
                client.send(&body);
            }
            let response = client.response();
            assert_eq!(response.status, 200, "{method} {len}: {}", response.text());
            let text = response.text();
            let seen = values(&text);
            assert_eq!(seen["method"], method);
            assert_eq!(seen["sha256"], pattern::sha256(&body), "{method} {len} {is_chunked}");
        }
    }
}

#[test]
fn a_large_upload_arrives_whole() {
    let gateway = gateway();
    let len: u64 = 64 << 20;
    let mut client = Client::tls(gateway.https);
    client.send(format!(
        "POST /test/echo.jsp HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {len}\r\n\r\n"
    ));
    let (mut source, mut piece) = (Pattern::new(len), vec![0; 100_000]);
    loop {
        let count = source.read(&mut piece).expect("it cannot fail");
        if count == 0 {
            break;
        }
        client.send(&piece[..count]);
    }
    let text = client.response().text();
    assert_eq!(values(&text)["sha256"], pattern::sha256_of_pattern(len));
}

#[test]
fn fifty_clients_keep_their_connections() {
    let gateway = gateway();
    let address = gateway.https;
    let clients: Vec<_> = (0..50)
        .map(|index| {
            thread::spawn(move || {
                let mut client = Client::tls(address);
                for n in 0..20 {
                    let body = format!("{index}-{n}");
                    let response = client.ask(format!(
                        "POST /test/echo.jsp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
                         Content-Type: application/octet-stream\r\n\r\n{body}",
                        body.len()
                    ));
                    let hash = pattern::sha256(body.as_bytes());
                    assert!(response.text().contains(&hash), "{index} {n}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("every request was answered");
    }
}

#[test]
fn the_valve_shows_the_true_client() {
    let gateway = gateway();
    let mut client = Client::tls(gateway.https);
    let host = format!("localhost:{}", gateway.https.port());
    let text = client
        .ask(format!(
            "GET /test/whoami.jsp HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 203.0.113.9\r\n\
             X-Forwarded-Proto: http\r\nX-Real-IP: 203.0.113.9\r\n\r\n"
        ))
        .text();
    let seen = values(&text);
    assert_eq!(seen["remoteAddr"], "127.0.0.1", "{text}");
    assert_eq!((seen["scheme"], seen["secure"]), ("https", "true"), "{text}");
    assert_eq!(seen["serverName"], "localhost", "{text}");
    assert_eq!(seen["serverPort"], gateway.https.port().to_string(), "{text}");
    assert!(!text.contains("203.0.113.9"), "{text}");

    // Behind a proxy that the administrator trusts, its client is the client.
    let trusting = Gateway::start(
        &Config::to(tomcat().address()).with_top("trusted_proxies = [\"127.0.0.1\"]"),
    );
    let text = Client::tls(trusting.https)
        .ask(
            "GET /test/whoami.jsp HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n",
        )
        .text();
    assert_eq!(values(&text)["remoteAddr"], "203.0.113.9", "{text}");
}

#[test]
fn each_chunk_of_a_stream_arrives_when_it_is_flushed() {
    let gateway = gateway();
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        let pause = Duration::from_millis(300);
        client.send(format!(
            "GET /test/stream.jsp?count=5&pause={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            pause.as_millis()
        ));
        assert_eq!(client.head().status, 200);
        let mut last: Option<Instant> = None;
        for n in 0..5 {
            let chunk = client.try_chunk().expect("a chunk");
            assert_eq!(String::from_utf8_lossy(&chunk), format!("chunk {n}\n"));
            // Chunks that were gathered would come together. Half the pause leaves room for a busy machine.
            if let Some(last) = last {
                assert!(last.elapsed() > pause / 2, "chunk {n} came with the one before");
            }
            last = Some(Instant::now());
        }
    }
}

#[test]
fn an_asynchronous_servlet_streams() {
    let gateway = gateway();
    let mut client = Client::tls(gateway.https);
    client.send("GET /examples/async/stockticker HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // It never ends, and flushes each piece of news; they come as they are made, seconds apart.
    let begun = Instant::now();
    let mut arrivals = Vec::new();
    while arrivals.len() < 6 && begun.elapsed() < Duration::from_secs(20) {
        let chunk = client.try_chunk().expect("a chunk");
        assert!(!chunk.is_empty(), "the stream ended");
        arrivals.push(begun.elapsed());
    }
    let spread = arrivals[arrivals.len() - 1] - arrivals[0];
    assert!(spread > Duration::from_millis(500), "all at once: {arrivals:?}");
}

#[test]
fn redirects_and_cookies_fit_a_mapped_prefix() {
    let config = Config::default().with(&format!(
        "[[route]]\npath = \"/desk\"\nupstream = \"http://{}/test/\"\n",
        tomcat().address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    let host = format!("localhost:{}", gateway.https.port());
    let mut get =
        |target: &str| client.ask(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let redirect = get("/desk/redirect.jsp");
    assert_eq!(redirect.status, 302);
    let location = redirect.field("location").expect("a location");
    assert!(
        location == "/desk/whoami.jsp" || location == format!("https://{host}/desk/whoami.jsp"),
        "{location}"
    );
    assert_eq!(get("/desk/whoami.jsp").status, 200);
    let cookies = get("/desk/cookie.jsp");
    let set: Vec<&str> = cookies
        .fields
        .iter()
        .filter(|(name, _)| name == "set-cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(set.len(), 2, "{set:?}");
    assert!(set.iter().all(|cookie| cookie.contains("Path=/desk")), "{set:?}");
    assert_eq!(get("/test/whoami.jsp").status, 404, "the prefix of Tomcat is not public");
}

const ECHO: &str = "/examples/websocket/echoAnnotation";

#[test]
fn the_echo_example_returns_texts_binaries_fragments_and_pings() {
    let gateway = gateway();
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        let mut socket = open(gateway.https, &config, ECHO).expect("it opens");
        let text = Message::text("gr\u{fc}\u{df}e \u{1f980}");
        assert_eq!(exchange(&mut socket, vec![text.clone()], 1), [text]);
        for len in [1, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20] {
            let sent = Message::binary(pattern::bytes(len));
            let received = exchange(&mut socket, vec![sent.clone()], 1);
            assert!(received[0] == sent, "{len} bytes");
        }
        let fragment = |data: &'static [u8], opcode, is_last| {
            Message::Frame(Frame::message(data, OpCode::Data(opcode), is_last))
        };
        let parts = vec![
            fragment(b"one ", Data::Text, false),
            Message::Ping(b"between".as_slice().into()),
            fragment(b"two ", Data::Continue, false),
            fragment(b"three", Data::Continue, true),
        ];
        assert_eq!(exchange(&mut socket, parts, 1), [Message::text("one two three")]);
        socket.send(Message::Ping(b"ping".as_slice().into())).expect("it is sent");
        let pong = socket.read().expect("a pong");
        assert!(pong == Message::Pong(b"ping".as_slice().into()), "{pong}");
        for code in [CloseCode::Normal, CloseCode::Away, CloseCode::Library(4321)] {
            let socket = open(gateway.https, &config, ECHO).expect("it opens");
            let frame = CloseFrame { code, reason: "done".into() };
            assert_eq!(close(socket, frame).map(|frame| frame.code), Some(code));
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
        assert_eq!(close(socket, frame).map(|frame| frame.code), Some(CloseCode::Normal));
    }
    let line = gateway.wait_for_access(|line| line["kind"] == "tunnel");
    assert_eq!((&line["outcome"], &line["status"]), (&"complete".into(), &101.into()), "{line}");
}

#[test]
fn a_restart_of_tomcat_under_load_is_survived() {
    let mut tomcat = start("tomcat-restarted");
    let gateway = Gateway::start(&Config::to(tomcat.address()));
    let address = gateway.https;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let (mut good, mut refused) = (0, 0);
                let mut client = Client::tls(address);
                while !is_over.load(Ordering::Relaxed) {
                    client.send("GET /test/whoami.jsp HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    match client.try_response() {
                        Ok(response) if response.status == 200 => good += 1,
                        // Tomcat says 404 or 503 while it deploys or stops, the gateway 502 while it is away.
                        Ok(response) => {
                            assert!(matches!(response.status, 404 | 502 | 503), "{response:?}");
                            refused += 1;
                            client = Client::tls(address);
                        }
                        // A response that was cut by the stop.
                        Err(_) => client = Client::tls(address),
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                (good, refused)
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    tomcat.stop().expect("it stops");
    let away = Client::tls(address).get("/test/whoami.jsp");
    assert_eq!(away.status, 502, "{away:?}");
    tomcat.restart().expect("it starts again");
    let back = Client::tls(address).get("/test/whoami.jsp");
    assert_eq!(back.status, 200, "{back:?}");
    thread::sleep(Duration::from_millis(300));
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        let (good, refused) = client.join().expect("every answer was one of those expected");
        assert!(good > 0 && refused > 0, "good {good}, refused {refused}");
    }
}

#[test]
fn the_websocket_example_works_in_a_browser() {
    packages::ensure(packages::BROWSER).expect("the packages can be installed");
    let gateway = gateway();
    let directory = tempfile::tempdir().expect("a directory");
    let certificate: &certificate::Certificate = tlsplice_tests::certificate();
    let profile: PathBuf = directory.path().join("profile");
    let mut browser =
        tlsplice_fixtures::browser::Browser::start(&profile, &certificate.spki_sha256)
            .expect("Chromium starts");
    let page = format!("https://localhost:{}/examples/websocket/echo.xhtml", gateway.https.port());
    browser.open(&page).expect("the page loads");
    browser
        .evaluate(&format!("updateTarget('{ECHO}'); connect(); true"))
        .expect("the page's own functions");
    let says =
        |text: &str| format!("document.getElementById('console').textContent.includes({text:?})");
    browser.wait_until(&says("Info: WebSocket connection opened")).expect("it connects");
    browser
        .evaluate("document.getElementById('message').value = 'through tlsplice'; echo(); true")
        .expect("the page's own functions");
    browser.wait_until(&says("Received: through tlsplice")).expect("it echoes");
    let shots = target().join("screenshots");
    fs::create_dir_all(&shots).expect("a directory");
    let shot = shots.join("tomcat-websocket-echo.png");
    browser.screenshot(&shot).expect("a screenshot");
    assert!(fs::metadata(&shot).expect("it exists").len() > 5_000);
    assert_eq!(browser.console_errors(), Vec::<String>::new(), "the page's console");
}

#[test]
fn the_access_log_of_tomcat_shows_the_browser() {
    let gateway = gateway();
    let source: SocketAddr = "127.0.0.9:0".parse().expect("an address");
    let mut client = Client::tls_from(source, gateway.https);
    let target = "/test/ready.txt?seen-by-tomcat";
    assert_eq!(client.get(target).status, 200);
    let log = tomcat().webapp().join("../../logs");
    let line = wait_for("the line in Tomcat's log", || {
        let files = fs::read_dir(&log).ok()?.flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        let find =
            |text: String| text.lines().find(|line| line.contains(target)).map(str::to_owned);
        texts.filter_map(find).next()
    });
    assert!(line.starts_with("127.0.0.9 "), "{line}");
    let line = gateway.wait_for_access(|line| line["target"] == target);
    assert_eq!(line["client"], "127.0.0.9");
}
