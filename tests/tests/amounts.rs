//! What is harmless once, in very large numbers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use tlsplice_tests::client::{Client, tls_config, tls_stream};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::pump::{self, End, Random, Rhythm};
use tlsplice_tests::recorder::Recorder;
use tlsplice_tests::{PATIENCE, wait_for};

/// Set where machines are slow.
const SHORT: &str = "TLSPLICE_TEST_SHORT";

/// `count`, or a part of it on slow machines.
fn full(count: usize) -> usize {
    if std::env::var_os(SHORT).is_some() { count / 50 } else { count }
}

fn gateway_to(upstream: std::net::SocketAddr) -> Gateway {
    Gateway::start(
        &Config::to(upstream).with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n"),
    )
}

#[test]
fn a_million_chunks_of_one_byte_arrive() {
    let count = full(1_000_000);
    let origin = Recorder::start();
    let gateway = gateway_to(origin.address());
    let head = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let wire = [&head[..], &b"1\r\nx\r\n".repeat(count), b"0\r\n\r\n"].concat();
    let before = gateway.processor_time();
    let mut client = Client::tls(gateway.https);
    client.send(&wire);
    assert_eq!(client.response().status, 200);
    let seen = origin.take();
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    assert_eq!(seen.complete.len(), 1);
    assert!(seen.complete[0].body == vec![b'x'; count], "every byte, in order");
    let spent = gateway.processor_time() - before;
    println!("{count} chunks took {spent:?}");
    // Some 10 times of what a build without optimization takes: what grows with the square would take minutes.
    assert!(spent.as_secs() < 30, "{spent:?}");
}

#[test]
fn extensions_of_a_hundred_thousand_chunks_are_refused() {
    let origin = Recorder::start();
    let gateway = gateway_to(origin.address());
    let head = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("1;a={}\r\nx\r\n", "b".repeat(96));
    let wire = [&head[..], &chunk.repeat(full(100_000)).into_bytes(), b"0\r\n\r\n"].concat();
    let mut client = Client::tls(gateway.https);
    // It does not wait for the rest, and what is said to somebody who goes on sending may be lost.
    drop(client.try_send(&wire));
    if let Ok(answer) = client.try_response() {
        assert_eq!(answer.status, 400);
    }
    gateway.wait_for_access(|line| line["target"] == "/chunks" && line["status"] == 400);
    // Where much was received at once, the error was found before anything went upstream.
    let seen = origin.take();
    assert!(seen.complete.is_empty() && seen.wrong.is_empty(), "{:?}", seen.wrong);
}

#[test]
fn ten_thousand_requests_at_once_are_answered_in_order() {
    let count = full(10_000);
    let origin = Recorder::start();
    let gateway = gateway_to(origin.address());
    let request = |index| format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n");
    let wire: String = (0..count).map(request).collect();
    let last = format!("\r\n\r\n/{}", count - 1);
    let check = |received: &[u8]| {
        let text = String::from_utf8_lossy(received);
        let mut answers = text.split("HTTP/1.1 200 OK\r\n");
        assert_eq!(answers.next(), Some(""), "nothing before the first answer");
        let bodies: Vec<_> = answers.map(|one| one.rsplit("\r\n\r\n").next()).collect();
        let expected: Vec<_> = (0..count).map(|index| format!("/{index}")).collect();
        assert!(bodies == expected.iter().map(|one| Some(one.as_str())).collect::<Vec<_>>());
        let targets: Vec<_> = origin.take().complete.into_iter().map(|one| one.target).collect();
        assert!(targets == expected, "each once, in order");
    };
    // Nobody reads before everything is sent, as far as the sockets hold it; then the gateway does not take more.
    let mut sender = TcpStream::connect(gateway.plain()).expect("it accepts");
    let mut receiver = sender.try_clone().expect("a descriptor");
    receiver.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let outgoing = wire.clone();
    let sending = thread::spawn(move || sender.write_all(outgoing.as_bytes()));
    thread::sleep(Duration::from_millis(500));
    let (mut received, mut piece) = (Vec::new(), [0; 64 * 1024]);
    while !received.ends_with(last.as_bytes()) {
        let got = receiver.read(&mut piece).expect("answers");
        assert!(got > 0, "closed after {} bytes", received.len());
        received.extend_from_slice(&piece[..got]);
    }
    sending.join().expect("no panic").expect("all was taken");
    check(&received);

    let config = std::sync::Arc::new(tls_config(&tlsplice_tests::client::VERSIONS));
    let mut stream = tls_stream(gateway.https, &config, "localhost");
    let (received, end) = pump::exchange(
        &mut stream,
        wire.as_bytes(),
        Rhythm::Random(16 * 1024),
        &mut Random::seeded(),
        |received| received.ends_with(last.as_bytes()),
    );
    assert!(matches!(end, End::Whole), "{end:?}");
    check(&received);
}

#[test]
fn announced_lengths_cost_no_memory() {
    const AT_ONCE: usize = 250;
    let origin = Origin::start(|connection| {
        connection.wait_for_close();
        Ok(())
    });
    let gateway = gateway_to(origin.address());
    let round = || {
        let all = origin.accepted() + AT_ONCE;
        let clients: Vec<TcpStream> = (0..AT_ONCE)
            .map(|_| {
                let mut stream = TcpStream::connect(gateway.plain()).expect("it accepts");
                let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n";
                stream.write_all(request).expect("it reads");
                stream
            })
            .collect();
        wait_for("the requests upstream", || (origin.accepted() >= all).then_some(()));
        clients
    };
    let before = gateway.resident_bytes();
    let clients = round();
    let each = gateway.resident_bytes().saturating_sub(before) / clients.len();
    assert!(each < 64 * 1024, "{each} bytes for each request");
    drop(clients);
    let first = gateway.resident_bytes();
    for _ in 1..full(10_000) / AT_ONCE {
        drop(round());
    }
    let more = gateway.resident_bytes().saturating_sub(first);
    // What one round needs, and not what all of them need.
    assert!(more < AT_ONCE * 64 * 1024, "{more} bytes more than after the first round");
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let origin = Origin::mirror();
    let gateway = gateway_to(origin.address());
    let still_serves = || assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let churn = |rounds: usize| {
        for round in 0..rounds {
            let mut stream = TcpStream::connect(gateway.https).expect("it accepts");
            // Nothing at all, a part of a record, plain HTTP.
            let sent: &[u8] = match round % 3 {
                0 => b"",
                1 => &[22, 3, 1],
                _ => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            };
            stream.write_all(sent).expect("it reads");
        }
    };
    still_serves();
    let before = gateway.descriptors();
    churn(full(10_000));
    wait_for("the release of descriptors", || (gateway.descriptors() <= before).then_some(()));
    let memory = gateway.resident_bytes();
    churn(full(90_000));
    wait_for("the release of descriptors", || (gateway.descriptors() <= before).then_some(()));
    let more = gateway.resident_bytes().saturating_sub(memory);
    assert!(more < 4 << 20, "{more} bytes more than after the first tenth");
    // Without being asked for details it says nothing of clients that say nothing.
    let diagnostics = gateway.diagnostics();
    let said = diagnostics.lines().filter(|line| !line.contains(" DEBUG ")).count();
    assert!(said < 100, "{said} lines of diagnostics");
    still_serves();
}
