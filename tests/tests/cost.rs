//! What a byte and a small message cost the gateway, in nanoseconds of its threads. `cargo xtask vm --cost` runs this where a
//! nanosecond is an instruction.

use std::thread;
use std::time::Duration;

use tlsplice_fixtures::pattern;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

const BODY_BYTES: u32 = 32 << 20;

/// The size of an instruction of Guacamole's, and how many are sent each way.
const MESSAGE_BYTES: usize = 300;
const MESSAGES: u32 = 2_000;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Time of the gateway's threads for `work`, in nanoseconds, over `count`.
fn cost(gateway: &Gateway, count: u32, work: impl FnOnce()) -> f64 {
    let before = gateway.processor_time();
    work();
    // What it does behind the last byte belongs to it.
    thread::sleep(Duration::from_millis(50));
    (gateway.processor_time() - before).as_secs_f64() * 1e9 / f64::from(count)
}

#[test]
#[ignore = "counts instructions where time is made of them: cargo xtask vm --cost runs it"]
fn what_bytes_and_messages_cost() {
    let body = pattern::bytes(usize::try_from(BODY_BYTES).expect("it fits"));
    let origin = Origin::start(move |connection| {
        loop {
            let head = connection.request()?;
            if head.contains("/ws") {
                connection.send(ACCEPT)?;
                loop {
                    let message = connection.take(MESSAGE_BYTES)?;
                    connection.send(message)?;
                }
            }
            let sent = if head.contains("/large") { &body[..] } else { b"small" };
            connection
                .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()))?;
            connection.send(sent)?;
        }
    });
    let gateway = Gateway::start(&Config::to(origin.address()).with_workers(1));
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/warm").text(), "small");
    let per_byte = cost(&gateway, BODY_BYTES, || {
        client.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head().status, 200);
        let mut left = usize::try_from(BODY_BYTES).expect("it fits");
        while left > 0 {
            left -= client.take(left.min(16_384)).len();
        }
    });
    let mut client = Client::tls(gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    let message = pattern::bytes(MESSAGE_BYTES);
    let mut exchange = |count| {
        for _ in 0..count {
            client.send(&message);
            assert!(client.take(MESSAGE_BYTES) == message);
        }
    };
    exchange(10);
    let per_message = cost(&gateway, 2 * MESSAGES, || exchange(MESSAGES));
    println!("\nCOST instructions_per_byte_of_a_download {per_byte:.2}");
    println!("COST instructions_per_message_of_300_bytes {per_message:.0}");
}
