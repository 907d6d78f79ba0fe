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

const BODY_BYTES: usize = 24_000_000;

/// A stall of this length is one that a timer ended.
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

/// How long a download took, and the longest time without a byte in it.
fn download(gateway: &Gateway) -> (Duration, Duration) {
    let mut client = Client::tls(gateway.https);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.head().status, 200);
    let (begun, mut received, mut longest) =
        (Instant::now(), client.drop_received(), Duration::ZERO);
    while received < BODY_BYTES {
        let waiting = Instant::now();
        assert!(client.receive().expect("more comes"), "ended after {received} bytes");
        longest = longest.max(waiting.elapsed());
        received += client.drop_received();
    }
    assert_eq!(received, BODY_BYTES);
    (begun.elapsed(), longest)
}

#[test]
#[ignore = "changes a setting of the whole kernel: cargo xtask vm runs it"]
fn little_unsent_data_allowed_makes_no_download_stall() {
    const ROUNDS: usize = 4;
    let body = pattern::bytes(BODY_BYTES);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n"))?;
        connection.send(&body)
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    download(&gateway);
    let usual = (0..ROUNDS).map(|_| download(&gateway).0).min().expect("some rounds");
    let setting = Setting::set(LOWAT, "16384");
    // Other guests share the processors: one round that they leave alone is enough, while a stall is in every one.
    let rounds: Vec<_> = (0..ROUNDS).map(|_| download(&gateway)).collect();
    drop(setting);
    let is_good = |&(time, longest): &(Duration, Duration)| time <= 2 * usual && longest < STEP;
    println!("usually {usual:?}; time and longest stall then: {rounds:?}");
    assert!(rounds.iter().any(is_good), "usually {usual:?}, then {rounds:?}");
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
