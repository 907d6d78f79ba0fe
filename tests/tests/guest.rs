//! What needs a machine of its own: settings of the whole kernel, and a Tomcat beyond a network device. `cargo xtask vm` runs
//! these in its guests.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tlsplice_fixtures::pattern;
use tlsplice_tests::client::{Client, VERSIONS};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

/// The address of a Tomcat with the test application.
const TOMCAT_VARIABLE: &str = "TLSPLICE_TEST_TOMCAT";

/// How much TCP takes from a sender before it has sent the rest, in bytes.
const LOWAT: &str = "/proc/sys/net/ipv4/tcp_notsent_lowat";

const BODY_BYTES: usize = 8_000_000;

/// A wait of this length is one that a timer ended: TCP probes a closed window after 200 ms at the earliest.
const STEP: Duration = Duration::from_millis(190);

/// A setting of the kernel, put back when dropped.
struct Setting {
    place: &'static str,
    before: String,
}

impl Setting {
    fn set(place: &'static str, value: &str) -> Self {
        let before = fs::read_to_string(place).expect("the setting exists");
        fs::write(place, value).expect("root may change it");
        Self { place, before }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(self.place, &self.before).expect("root may change it");
    }
}

/// Downloads once; returns how long that took, and in how many steps nothing came for as long as [`STEP`].
fn download(gateway: &Gateway) -> (Duration, usize) {
    let mut client = Client::tls(gateway.https);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.head().status, 200);
    let (begun, mut received, mut steps) = (Instant::now(), client.drop_received(), 0);
    while received < BODY_BYTES {
        let waiting = Instant::now();
        assert!(client.receive().expect("more comes"), "ended after {received} bytes");
        steps += usize::from(waiting.elapsed() >= STEP);
        received += client.drop_received();
    }
    assert_eq!(received, BODY_BYTES);
    (begun.elapsed(), steps)
}

#[test]
#[ignore = "changes a setting of the whole kernel: cargo xtask vm runs it"]
fn little_unsent_data_allowed_makes_no_download_stall() {
    const ROUNDS: usize = 6;
    let body = pattern::bytes(BODY_BYTES);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n"))?;
        connection.send(&body)
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    download(&gateway);
    // In turns, so that what else goes on on the machine disturbs both alike.
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let usual = download(&gateway);
            let setting = Setting::set(LOWAT, "16384");
            let lowered = download(&gateway);
            drop(setting);
            (usual, lowered)
        })
        .collect();
    println!("time, and steps of {STEP:?}, usually and then: {rounds:?}");
    let fastest = |times: &mut dyn Iterator<Item = Duration>| times.min().expect("some rounds");
    let usual = fastest(&mut rounds.iter().map(|(usual, _)| usual.0));
    let lowered = fastest(&mut rounds.iter().map(|(_, lowered)| lowered.0));
    assert!(lowered <= 2 * usual, "{lowered:?} instead of {usual:?}: {rounds:?}");
    // A download that waits for timers does so every few records: hundreds of times.
    let usual: usize = rounds.iter().map(|(usual, _)| usual.1).sum();
    let lowered: usize = rounds.iter().map(|(_, lowered)| lowered.1).sum();
    assert!(lowered <= 2 * usual + ROUNDS, "{lowered} steps instead of {usual}: {rounds:?}");
}

#[test]
#[ignore = "needs the Tomcat that cargo xtask vm starts outside of its guests"]
fn a_real_tomcat_beyond_a_network_device_is_served() {
    let text = std::env::var(TOMCAT_VARIABLE).expect("the lane names it");
    let tomcat: SocketAddr = text.parse().expect("it is an address");
    let gateway = Gateway::start(&Config::to(tomcat));
    let body = pattern::bytes(300_000);
    for version in VERSIONS {
        let mut client = Client::tls_version(gateway.https, version);
        let page = client.get("/test/");
        assert!(matches!(page.status, 200 | 404), "{}", page.text());
        let upload = [
            format!(
                "POST /test/echo.jsp HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
                 application/octet-stream\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )
            .as_bytes(),
            &body,
        ]
        .concat();
        let response = client.ask(upload);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.text().contains(&pattern::sha256(&body)), "{}", response.text());
        let file = client.get("/test/guest.bin");
        assert!(file.body == pattern::bytes(3_000_000), "{} bytes", file.body.len());
    }
}
