//! The admin endpoint: what it counts is what happened, and nobody who asks disturbs anybody.

use std::io::ErrorKind::WouldBlock;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tlsplice_tests::admin::{ask_tcp, ask_unix, connections, metrics, value};
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway, tlsplice};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::{PATIENCE, certificate, wait_for};

const UPGRADE: &str = "GET /app/ws?token=secret HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
     Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A gateway with an admin socket, and the directory that this is in.
struct Admin {
    gateway: Gateway,
    directory: TempDir,
}

impl Admin {
    fn start(config: Config) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let gateway = Gateway::start(&with_socket(config, &socket));
        Self { gateway, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }
}

fn with_socket(config: Config, socket: &Path) -> Config {
    config.with(&format!("[admin]\nsocket = {socket:?}\naddress = \"127.0.0.1:0\""))
}

/// An upstream that echoes what comes through its tunnel.
fn tunnels() -> Origin {
    Origin::start(|connection| {
        connection.request()?;
        connection.send(ACCEPT)?;
        let mut stream = connection.stream.try_clone()?;
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                count => stream.write_all(&bytes[..count])?,
            }
        }
    })
}

fn tcp_address(gateway: &Gateway) -> SocketAddr {
    let text = gateway.diagnostics();
    let place = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("admin ")?.trim().strip_prefix("http://"));
    place.expect("the report names it").parse().expect("an address")
}

#[test]
fn metrics_count_what_happened() {
    let origin = Origin::mirror();
    let route = format!("[[route]]\npath = \"/app\"\nupstream = \"http://{}\"", origin.address());
    let admin = Admin::start(Config::default().with(&route));
    let before = metrics(&admin.socket());
    assert_eq!(value(&before, "tlsplice_requests_total", &[]), 0.0);
    let mut client = Client::tls(admin.gateway.https);
    for _ in 0..3 {
        assert_eq!(client.get("/app/x?token=secret").status, 200);
    }
    assert_eq!(client.get("/nowhere").status, 404);
    let mut plain = Client::plain(admin.gateway.https);
    assert_eq!(plain.ask("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 400);
    let socket = admin.socket();
    let after = wait_for("all to be counted", || {
        let after = metrics(&socket);
        let all = value(&after, "tlsplice_requests_total", &[]) >= 4.0
            && value(&after, "tlsplice_handshake_failures_total", &[]) >= 1.0
            // The one that was no TLS goes last.
            && value(&after, "tlsplice_connections", &[]) <= 1.0;
        all.then_some(after)
    });
    let count = |name: &str, labels: &[(&str, &str)]| value(&after, name, labels);
    let (app, endpoint) = (("route", "*/app/"), origin.address().to_string());
    assert_eq!(count("tlsplice_requests_total", &[app, ("status", "2xx")]), 3.0);
    assert_eq!(count("tlsplice_requests_total", &[("route", "none"), ("status", "4xx")]), 1.0);
    assert_eq!(count("tlsplice_request_duration_seconds", &[app]), 3.0);
    assert_eq!(count("tlsplice_connections_accepted_total", &[]), 2.0);
    assert_eq!(count("tlsplice_connections_established_total", &[]), 1.0);
    assert_eq!(count("tlsplice_handshake_failures_total", &[("cause", "plain_http")]), 1.0);
    assert_eq!(count("tlsplice_connections", &[]), 1.0, "the client that keeps its connection");
    assert_eq!(count("tlsplice_upstream_connects_total", &[("endpoint", &endpoint)]), 1.0);
    assert_eq!(count("tlsplice_upstream_reused_total", &[("endpoint", &endpoint)]), 2.0);
    assert_eq!(count("tlsplice_upstream_connections_idle", &[("endpoint", &endpoint)]), 1.0);
    assert_eq!(count("tlsplice_upstream_connections_in_use", &[("endpoint", &endpoint)]), 0.0);
    assert_eq!(count("tlsplice_upstream_healthy", &[("endpoint", &endpoint)]), 1.0);
    assert_eq!(count("tlsplice_workers", &[]), 2.0);
    assert_eq!(count("tlsplice_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    let moved = count("tlsplice_bytes_total", &[]);
    assert!(moved > 300.0, "{moved} bytes");
    assert_eq!(count("tlsplice_moved_bytes_total", &[]), moved);
    assert_eq!(count("tlsplice_tls_bytes_total", &[]), moved);
    let text = ask_unix(&socket, "/metrics").expect("it answers").body;
    assert!(!text.contains("secret") && !text.contains("nowhere"), "clients make no labels");
}

#[test]
fn bytes_stay_counted_when_their_connection_ends() {
    let origin = Origin::mirror();
    let admin = Admin::start(Config::to(origin.address()));
    let mut client = Client::tls(admin.gateway.https);
    assert_eq!(client.get("/").status, 200);
    let during = value(&metrics(&admin.socket()), "tlsplice_bytes_total", &[]);
    drop(client);
    let socket = admin.socket();
    let after = wait_for("the end of the connection", || {
        let scrape = metrics(&socket);
        (value(&scrape, "tlsplice_connections", &[]) == 0.0).then_some(scrape)
    });
    assert!(during > 100.0, "{during}");
    assert_eq!(value(&after, "tlsplice_bytes_total", &[]), during);
}

#[test]
fn connections_shows_a_tunnel_and_forgets_it() {
    let origin = tunnels();
    let route = format!("[[route]]\npath = \"/app\"\nupstream = \"http://{}\"", origin.address());
    let admin = Admin::start(Config::default().with(&route));
    let socket = admin.socket();
    assert_eq!(connections(&socket)["connections"], Value::Array(Vec::new()));
    let mut client = Client::tls(admin.gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    let before = connections(&socket);
    client.send("0123456789");
    assert_eq!(client.take(10), b"0123456789");
    let text = ask_unix(&socket, "/connections").expect("it answers").body;
    assert!(!text.contains("secret") && !text.contains("/ws"), "{text}");
    let seen: Value = serde_json::from_str(&text).expect("JSON");
    let (was, is) = (&before["connections"][0], &seen["connections"][0]);
    assert_eq!(is["kind"], "tunnel");
    assert_eq!((&is["route"], &is["client"]), (&"/app/".into(), &"127.0.0.1".into()));
    assert_eq!(is["upstream"], origin.address().to_string());
    assert_eq!(is["requests"], 1);
    assert!(is["first_byte_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{is}");
    assert!(is["tls"] == "user" || is["tls"] == "kernel", "{is}");
    let more = |key: &str| is[key].as_u64().unwrap() - was[key].as_u64().unwrap();
    assert_eq!((more("bytes_in"), more("bytes_out")), (10, 10), "told while the tunnel is open");
    assert_eq!((&seen["totals"]["tunnels"], &seen["draining"]), (&1.into(), &false.into()));
    assert_eq!(seen["upstreams"][0]["in_use"], 1);
    drop(client);
    let after = wait_for("the end of the tunnel", || {
        let seen = connections(&socket);
        (seen["connections"] == Value::Array(Vec::new())).then_some(seen)
    });
    assert_eq!(after["totals"]["bytes_in"], is["bytes_in"]);
    assert_eq!(
        (&after["totals"]["tunnels"], &after["upstreams"][0]["in_use"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn what_the_kernel_measures_is_told_and_stays_counted() {
    let origin = Origin::mirror();
    let admin = Admin::start(Config::to(origin.address()));
    let socket = admin.socket();
    let mut client = Client::tls(admin.gateway.https);
    assert_eq!(client.get("/").status, 200);
    let seen = connections(&socket);
    let (is, scrape) = (&seen["connections"][0], metrics(&socket));
    let count = |scrape: &_| value(scrape, "tlsplice_flush_latency_seconds", &[]);
    if seen["ebpf"]["active"] == false {
        assert!(seen["ebpf"]["reason"].is_string() && is["flush_p50_us"].is_null(), "{seen}");
        assert_eq!((value(&scrape, "tlsplice_bpf_active", &[]), count(&scrape)), (0.0, 0.0));
        return;
    }
    assert!(is["flush_max_us"].as_u64().is_some() && is["retransmits"].is_u64(), "{is}");
    assert_eq!(value(&scrape, "tlsplice_bpf_active", &[]), 1.0);
    assert_eq!(value(&scrape, "tlsplice_bpf_map_entries", &[]), 1.0);
    let during = count(&scrape);
    assert!(during >= 1.0, "{during}");
    drop(client);
    let after = wait_for("the end of the connection", || {
        let scrape = metrics(&socket);
        (value(&scrape, "tlsplice_connections", &[]) == 0.0).then_some(scrape)
    });
    assert_eq!(value(&after, "tlsplice_bpf_map_entries", &[]), 0.0);
    assert!(count(&after) >= during, "{} after {during}", count(&after));
}

#[test]
fn connections_over_a_limit_and_failed_connects_are_counted_by_cause() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr());
    let config = Config::to(nobody.expect("a port")).with_limits("connections_per_address = 1");
    let admin = Admin::start(config);
    let mut client = Client::tls(admin.gateway.https);
    assert_eq!(client.get("/").status, 502);
    Client::plain(admin.gateway.https).expect_close();
    let socket = admin.socket();
    let scrape = wait_for("the second to be shed", || {
        let scrape = metrics(&socket);
        let reason = [("reason", "connections_per_address")];
        (value(&scrape, "tlsplice_connections_shed_total", &reason) == 1.0).then_some(scrape)
    });
    assert_eq!(value(&scrape, "tlsplice_connections_accepted_total", &[]), 1.0);
    assert_eq!(value(&scrape, "tlsplice_requests_total", &[("status", "5xx")]), 1.0);
    assert_eq!(value(&scrape, "tlsplice_upstream_connect_failures_total", &[]), 1.0);
    assert_eq!(value(&scrape, "tlsplice_upstream_connects_total", &[]), 0.0);
}

#[test]
fn a_silence_in_a_tunnel_is_told_while_the_tunnel_is_open() {
    let origin = tunnels();
    let admin = Admin::start(Config::to(origin.address()));
    let mut client = Client::tls(admin.gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    thread::sleep(Duration::from_millis(1800));
    client.send("x");
    assert_eq!(client.take(1), b"x");
    let seen = connections(&admin.socket());
    let gaps = (&seen["connections"][0]["gaps_1_5s"], &seen["connections"][0]["gaps_15s"]);
    assert_eq!(gaps, (&1.into(), &0.into()));
}

#[test]
fn a_reload_keeps_what_was_counted_and_changes_the_labels() {
    let origin = Origin::mirror();
    let route = |path: &str| {
        let upstream = origin.address();
        Config::default()
            .with(&format!("[[route]]\npath = {path:?}\nupstream = \"http://{upstream}\""))
    };
    let mut admin =
        Admin::start(route("/old").with(&format!(
            "[[route]]\npath = \"/both\"\nupstream = \"http://{}\"",
            origin.address()
        )));
    let socket = admin.socket();
    assert_eq!(Client::tls(admin.gateway.https).get("/both/").status, 200);
    assert_eq!(Client::tls(admin.gateway.https).get("/old/").status, 200);
    admin.gateway.reload(&with_socket(route("/both"), &socket));
    admin.gateway.wait_for_diagnostic("reloaded");
    let scrape = metrics(&socket);
    assert_eq!(value(&scrape, "tlsplice_requests_total", &[("route", "*/both/")]), 1.0);
    let is_old = |sample: &prometheus_parse::Sample| sample.labels.get("route") == Some("*/old/");
    assert!(!scrape.samples.iter().any(is_old));
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_gateway() {
    let origin = Origin::mirror();
    let mut admin = Admin::start(Config::to(origin.address()));
    let socket = admin.socket();
    let found = fs::metadata(&socket).expect("the socket is there");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    admin.gateway.signal(Signal::TERM);
    assert!(admin.gateway.wait().success());
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_nobody_serves_is_replaced_and_any_other_is_not() {
    let origin = Origin::mirror();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    drop(UnixListener::bind(&socket).expect("it is bound"));
    assert!(socket.exists(), "a stale file");
    let gateway = Gateway::start(&with_socket(Config::to(origin.address()), &socket));
    assert_eq!(ask_unix(&socket, "/healthz").expect("it answers").status, 200);
    // A second gateway with the same socket, and one that finds a file there.
    let refused = |socket: &Path| {
        let file = directory.path().join("other.toml");
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n[[route]]\n\
             upstream = \"http://127.0.0.1:1\"\n[telemetry]\nflush_latency = \"off\"\n[admin]\nsocket = {socket:?}\n"
        );
        fs::write(&file, text).expect("it is written");
        let output = tlsplice(&["run", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&socket);
    assert!(said.contains("another process serves"), "{said}");
    let file = certificate().chain.clone();
    let said = refused(&file);
    assert!(said.contains("is no socket") && file.exists(), "{said}");
    assert_eq!(ask_unix(&socket, "/healthz").expect("it still answers").status, 200);
    drop(gateway);
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tlsplice.toml");
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n[[route]]\n\
         upstream = \"http://127.0.0.1:1\"\n[admin]\naddress = \"0.0.0.0:9180\"\n";
    fs::write(&file, text).expect("it is written");
    let output = tlsplice(&["run", "--config", file.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("admin.address") && said.contains("loopback"), "{said}");
}

#[test]
fn over_tcp_only_names_of_this_machine_are_answered() {
    let origin = Origin::mirror();
    let admin = Admin::start(Config::to(origin.address()));
    let address = tcp_address(&admin.gateway);
    let status =
        |target: &str, host: &str| ask_tcp(address, target, host).expect("it answers").status;
    assert_eq!(status("/connections", &address.to_string()), 200);
    assert_eq!(status("/healthz", "localhost"), 200);
    assert_eq!(status("/connections", "rebound.example"), 403);
    assert_eq!(status("/", "localhost"), 200);
    assert_eq!(status("/nothing", "localhost"), 404);
}

#[test]
fn it_is_ready_until_it_drains() {
    let origin = tunnels();
    let mut admin = Admin::start(Config::to(origin.address()));
    let socket = admin.socket();
    let ready = || ask_unix(&socket, "/readyz").expect("it answers").status;
    assert_eq!(ready(), 200);
    let mut client = Client::tls(admin.gateway.https);
    client.send(UPGRADE);
    assert_eq!(client.head().status, 101);
    admin.gateway.signal(Signal::TERM);
    wait_for("it to drain", || (ready() == 503).then_some(()));
    assert_eq!(ask_unix(&socket, "/healthz").expect("it answers").status, 200);
    assert_eq!(connections(&socket)["draining"], true);
    assert_eq!(value(&metrics(&socket), "tlsplice_draining", &[]), 1.0);
    client.send("still here");
    assert_eq!(client.take(10), b"still here");
    drop(client);
    assert!(admin.gateway.wait().success());
}

#[test]
fn clients_that_say_nothing_disturb_nobody() {
    let origin = Origin::mirror();
    let admin = Admin::start(Config::to(origin.address()));
    let (socket, address) = (admin.socket(), tcp_address(&admin.gateway));
    let threads = admin.gateway.threads().len();
    let idle = || UnixStream::connect(&socket).expect("it connects");
    // Whoever speaks is answered before the silent are sent away, which takes seconds: an attempt on a slow machine may
    // take longer than that.
    let is_answered_beside = || {
        let few: Vec<UnixStream> = (0..8).map(|_| idle()).collect();
        let slow: Vec<TcpStream> =
            (0..8).map(|_| TcpStream::connect(address).expect("it connects")).collect();
        assert_eq!(ask_unix(&socket, "/metrics").expect("it answers").status, 200);
        few[0].set_nonblocking(true).expect("a socket option");
        let is_open = (&few[0]).read(&mut [0]).is_err_and(|error| error.kind() == WouldBlock);
        is_open.then_some((few, slow))
    };
    let (mut few, slow) =
        (0..5).find_map(|_| is_answered_beside()).expect("nobody waits for the silent");
    assert_eq!(Client::tls(admin.gateway.https).get("/").status, 200);
    assert_eq!(admin.gateway.threads().len(), threads, "none of them has a thread");
    // More than there are places: they are sent away, and whoever speaks is heard.
    few.extend((0..40).map(|_| idle()));
    assert_eq!(ask_unix(&socket, "/healthz").expect("it answers").status, 200);
    few[0].set_nonblocking(false).expect("a socket option");
    few[0].set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut rest = Vec::new();
    few[0].read_to_end(&mut rest).expect("the silent are sent away");
    drop(slow);
}
