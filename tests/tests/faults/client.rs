//! Clients that go, stall, or are slow.

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use tlsplice_tests::client::Client;
use tlsplice_tests::fault::{FaultProxy, Toxic, Way};
use tlsplice_tests::ledger::{UPGRADE, content};
use tlsplice_tests::wait_for;

use crate::stage::{SEED, Stage, post};

/// What a stalled connection may hold: a bulk buffer for each direction, and what is staged.
const CONNECTION_BYTES_MAX: usize = 1 << 20;

#[test]
fn clients_that_reset_anywhere_take_their_upstreams_with_them() {
    const ROUNDS: usize = 4;
    const BYTES: usize = 20_000_000;
    let stage = Stage::start();
    let bystander = stage.bystander();
    for round in 0..ROUNDS {
        for (index, mut client) in stage.clients().into_iter().enumerate() {
            // In the midst of an upload, as a whole or nearly so.
            let key = format!("reset-{round}-{index}");
            client.send(post(&key, BYTES));
            client.send(content(1000 + round * 100_000));
            wait_for("the upload", || (stage.proxy.passed(Way::Up) > 1000).then_some(()));
            client.reset();
            wait_for("the end of the upload", || (stage.proxy.open() == 0).then_some(()));
            assert_eq!(stage.origin.effects(&key), 0);
        }
        for mut client in stage.clients() {
            client.send(format!("GET /bytes/{BYTES} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.take(1 + round * 100_000);
            client.reset();
            wait_for("the end of the download", || (stage.proxy.open() == 0).then_some(()));
        }
        for mut client in stage.clients() {
            client.send(UPGRADE);
            if round % 2 == 0 {
                assert_eq!(client.head().status, 101);
                client.send(content(100_000));
                client.take(round);
            }
            client.reset();
            wait_for("the end of the tunnel", || (stage.proxy.open() == 0).then_some(()));
        }
        // A handshake that has begun.
        let mut stream = TcpStream::connect(stage.gateway.https).expect("it accepts");
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc]).expect("it reads");
        rustix::net::connect_unspec(&stream).expect("it can be reset");
    }
    bystander.finish();
    // What was left in a pipe would come out here.
    stage.recovered("reset");
}

/// Clients behind a network of their own, each in the midst of a download.
fn downloading(stage: &Stage, between: &FaultProxy, count: usize, bytes: usize) -> Vec<Client> {
    (0..count)
        .map(|_| {
            let mut client = Client::plain(between.address());
            client.send(format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client
        })
        .inspect(|_| assert!(stage.proxy.accepted() > 0))
        .collect()
}

fn stalls(time: Duration) {
    const CLIENTS: usize = 6;
    const BYTES: usize = 30_000_000;
    let stage = Stage::start();
    let (plain, tls) = (
        FaultProxy::start(stage.gateway.plain(), SEED),
        FaultProxy::start(stage.gateway.https, SEED),
    );
    let before = stage.gateway.resident_bytes();
    let bystander = stage.bystander();
    let mut clients = downloading(&stage, &plain, CLIENTS / 2, BYTES);
    for _ in 0..CLIENTS / 2 {
        let mut client = Client::tls(tls.address());
        client.send(format!("GET /bytes/{BYTES} HTTP/1.1\r\nHost: a\r\n\r\n"));
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.head().status, 200);
    }
    plain.set(Way::Down, Toxic::stalled());
    tls.set(Way::Down, Toxic::stalled());
    let passed = wait_for("an upstream that waits", || {
        let passed = stage.proxy.passed(Way::Down);
        thread::sleep(Duration::from_millis(500));
        (stage.proxy.passed(Way::Down) == passed).then_some(passed)
    });
    thread::sleep(time);
    assert_eq!(stage.proxy.passed(Way::Down), passed, "the upstream waits");
    let whole = u64::try_from(CLIENTS * BYTES).expect("64 bits");
    assert!(passed < whole, "most of it is where it came from");
    let grown = stage.gateway.resident_bytes().saturating_sub(before);
    assert!(grown <= CLIENTS * CONNECTION_BYTES_MAX, "{grown} bytes for {CLIENTS} connections");
    bystander.finish();
    plain.clear();
    tls.clear();
    let expected = content(BYTES);
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| thread::spawn(move || client.try_take(BYTES)))
        .collect();
    for reader in readers {
        let body = reader.join().expect("it does not panic").expect("it goes on");
        assert!(body == expected, "other bytes");
    }
    drop((plain, tls));
    stage.recovered("stall");
}

#[test]
fn clients_that_stall_hold_their_upstream_and_little_memory_and_then_get_all() {
    stalls(Duration::from_secs(2));
}

#[test]
#[ignore = "long: a minute"]
fn clients_that_stall_for_nearly_as_long_as_they_may_get_all_then() {
    stalls(Duration::from_secs(50));
}

#[test]
fn an_upstream_ten_times_as_fast_as_its_client_waits_for_it() {
    const CLIENTS: usize = 4;
    const BYTES: usize = 8_000_000;
    let stage = Stage::start();
    // Slow enough that most waits, fast enough to see the end.
    let slow = FaultProxy::start(stage.gateway.plain(), SEED);
    slow.set(Way::Down, Toxic::rate(4_000_000));
    let before = stage.gateway.resident_bytes();
    let clients = downloading(&stage, &slow, CLIENTS, BYTES);
    let expected = content(BYTES);
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                client.try_head()?;
                client.try_take(BYTES)
            })
        })
        .collect();
    let mut most = 0;
    while readers.iter().any(|reader| !reader.is_finished()) {
        most = most.max(stage.gateway.resident_bytes());
        thread::sleep(Duration::from_millis(50));
    }
    for reader in readers {
        let body = reader.join().expect("it does not panic").expect("it comes");
        assert!(body == expected, "other bytes");
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= CLIENTS * CONNECTION_BYTES_MAX, "{grown} bytes for {CLIENTS} connections");
    drop(slow);
    stage.recovered("tenfold");
}
