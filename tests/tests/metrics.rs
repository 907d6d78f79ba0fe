//! Every metric: that it is there, that it counts what it says, and that clients cannot make more of them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_parse::Scrape;
use tempfile::TempDir;
use tlsplice_tests::admin::{metrics, value};
use tlsplice_tests::bpf::Kernel;
use tlsplice_tests::client::{Client, VERSIONS, tls_config, tls_stream};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::plain::{GET, ask, connect, listener};
use tlsplice_tests::wait_for;

/// What the documentation says.
const README: &str = include_str!("../../README.md");

/// A gateway whose metrics can be had.
struct Watched {
    gateway: Gateway,
    directory: TempDir,
}

impl Watched {
    fn start(config: Config) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let gateway = Gateway::start(&config.with(&format!("[admin]\nsocket = {socket:?}")));
        Self { gateway, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    fn scrape(&self) -> Scrape {
        metrics(&self.socket())
    }

    /// The sum of a family where labels are these.
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        value(&self.scrape(), &format!("tlsplice_{name}"), labels)
    }

    /// Waits until a counter has this value.
    #[track_caller]
    fn wait_for_count(&self, name: &str, labels: &[(&str, &str)], count: f64) {
        wait_for(&format!("{name} {labels:?} {count}"), || {
            (self.count(name, labels) == count).then_some(())
        });
    }
}

/// Every series of a scrape: its name with its labels.
fn series(scrape: &Scrape) -> BTreeSet<String> {
    let written = |sample: &prometheus_parse::Sample| {
        let mut labels: Vec<String> =
            sample.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort_unstable();
        format!("{}{{{}}}", sample.metric, labels.join(","))
    };
    scrape.samples.iter().map(written).collect()
}

/// Every series that there may be, with one upstream and one route.
fn known(upstream: SocketAddr) -> (Vec<&'static str>, BTreeSet<String>) {
    let endpoint = upstream.to_string();
    let (upstream, version) = (format!("http://{endpoint}"), env!("CARGO_PKG_VERSION"));
    let build = format!("arch={},version={version}", std::env::consts::ARCH);
    let place = format!("endpoint={endpoint},upstream={upstream}");
    let one = |key: &str, values: &[&str]| -> Vec<String> {
        values.iter().map(|value| format!("{key}={value}")).collect()
    };
    let none = || vec![String::new()];
    let (workers, routes) = (one("worker", &["0", "1"]), one("route", &["*/app/", "none"]));
    let tls = one("tls", &["kernel", "user", "none"]);
    let statuses = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let by_status = routes
        .iter()
        .flat_map(|route| statuses.iter().map(move |status| format!("{route},status={status}")));
    let causes = ["plain_http", "not_tls", "tls", "closed", "timeout", "handover", "io"];
    let families = [
        ("build_info", vec![build]),
        ("uptime_seconds", none()),
        ("workers", none()),
        ("draining", none()),
        ("access_log_dropped_lines_total", none()),
        ("connections", workers.clone()),
        ("connections_accepted_total", workers),
        ("connections_shed_total", one("reason", &["connections", "connections_per_address"])),
        ("connections_established_total", tls.clone()),
        ("handshake_failures_total", one("cause", &causes)),
        (
            "tls_fallbacks_total",
            one("reason", &["configured", "no_kernel_tls", "cipher", "refused"]),
        ),
        ("tls_key_updates_total", none()),
        ("requests_total", by_status.collect()),
        ("tunnels_total", routes.clone()),
        ("request_duration_seconds", routes),
        (
            "copied_exchanges_total",
            one("reason", &["configured", "user_tls", "no_pipe", "unknown_length", "not_bulk"]),
        ),
        ("upstream_healthy", vec![place.clone()]),
        ("upstream_connections_idle", vec![place.clone()]),
        ("upstream_connections_in_use", vec![place.clone()]),
        ("upstream_connects_total", vec![place.clone()]),
        ("upstream_connect_failures_total", vec![place.clone()]),
        ("upstream_reused_total", vec![place]),
        ("bytes_total", one("direction", &["in", "out"])),
        ("moved_bytes_total", one("path", &["splice", "copy"])),
        ("tls_bytes_total", tls),
        ("flush_latency_seconds", none()),
        ("input_latency_seconds", none()),
        ("bpf_active", none()),
        ("bpf_map_entries", none()),
        ("bpf_map_capacity", none()),
        (
            "bpf_errors_total",
            one("cause", &["map_full", "unmeasured", "unseen", "address_mismatch"]),
        ),
    ];
    let names = families.iter().map(|(name, _)| *name).collect();
    let all = families.into_iter().flat_map(|(name, labels)| {
        // The parser tells sum and count of a histogram apart from its buckets.
        let parts = if name.ends_with("_seconds") && name != "uptime_seconds" {
            &["", "_sum", "_count"][..]
        } else {
            &[""]
        };
        labels.into_iter().flat_map(move |labels| {
            parts.iter().map(move |part| format!("tlsplice_{name}{part}{{{labels}}}"))
        })
    });
    (names, all.collect())
}

#[test]
fn every_metric_is_there_and_documented_and_clients_make_no_more() {
    let origin = Origin::mirror();
    let (names, known) = known(origin.address());
    for name in names {
        assert!(README.contains(&format!("`{name}`")), "the README does not tell of {name}");
    }
    let route = format!("[[route]]\npath = \"/app\"\nupstream = \"http://{}\"", origin.address());
    let watched = Watched::start(Config::default().with(&route));
    let differ = || -> Vec<String> {
        series(&watched.scrape()).symmetric_difference(&known).cloned().collect()
    };
    assert_eq!(differ(), [""; 0]);
    // Names, paths, methods and addresses that nobody has seen before.
    let config = Arc::new(tls_config(&[VERSIONS[1]]));
    for number in 0..20 {
        let name = format!("n{number}.example.org");
        let mut client = Client::over(tls_stream(watched.gateway.https, &config, "localhost"));
        let (method, path) = (format!("METHOD{number}"), format!("/app/{number}"));
        let head = format!("{method} {path}?q={number} HTTP/1.1\r\nHost: {name}\r\n");
        client.send(format!(
            "{head}User-Agent: a{number}\r\nX-Forwarded-For: 192.0.2.{number}\r\n\r\n"
        ));
        client.head();
        let mut client = Client::tls(watched.gateway.https);
        client.get(&format!("/elsewhere/{number}"));
    }
    wait_for("all to be counted", || (watched.count("requests_total", &[]) >= 40.0).then_some(()));
    assert_eq!(differ(), [""; 0]);
}

#[test]
fn each_way_for_a_handshake_to_fail_has_its_cause() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_limits("handshake_timeout = \"300ms\"");
    let watched = Watched::start(config);
    let https = watched.gateway.https;
    let failures = |cause| watched.count("handshake_failures_total", &[("cause", cause)]);
    let say = |bytes: &[u8]| {
        let mut stream = connect(https);
        stream.write_all(bytes).expect("it is sent");
        // The other side may reset what it has no use for.
        drop(stream.read_to_end(&mut Vec::new()));
    };
    let wait = |cause| watched.wait_for_count("handshake_failures_total", &[("cause", cause)], 1.0);
    say(GET.as_bytes());
    wait("plain_http");
    say(b"SSH-2.0-OpenSSH_10.0\r\n");
    wait("not_tls");
    // A ClientHello of no bytes.
    say(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00");
    wait("tls");
    drop(connect(https));
    wait("closed");
    let silent = connect(https);
    wait("timeout");
    drop(silent);
    let stream = connect(https);
    wait_for("it to be accepted", || {
        (watched.count("connections_accepted_total", &[]) == 6.0).then_some(())
    });
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    drop(stream);
    wait("io");
    assert_eq!(failures("handover"), 0.0);
    assert_eq!(watched.count("handshake_failures_total", &[]), 6.0);
    assert_eq!(watched.count("connections_established_total", &[]), 0.0);
}

#[test]
fn keys_that_change_are_counted() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    // Everywhere alike: not every kernel can follow.
    let watched = Watched::start(Config::to(origin.address()).with_offload("never"));
    let config = Arc::new(tls_config(&[VERSIONS[1]]));
    let mut stream = tls_stream(watched.gateway.https, &config, "localhost");
    for _ in 0..3 {
        stream.write_all(GET.as_bytes()).expect("it is sent");
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        while !received.ends_with(b"ok") {
            let count = stream.read(&mut piece).expect("a response");
            received.extend_from_slice(&piece[..count]);
        }
        stream.conn.refresh_traffic_keys().expect("TLS 1.3 can");
    }
    stream.flush().expect("it is sent");
    // Each update asks for one in return.
    wait_for("all of them", || (watched.count("tls_key_updates_total", &[]) >= 3.0).then_some(()));
}

#[test]
fn where_tls_ran_and_why_not_in_the_kernel_is_counted() {
    let origin = Origin::mirror();
    let watched = Watched::start(Config::to(origin.address()).with_offload("never"));
    for _ in 0..3 {
        assert_eq!(Client::tls(watched.gateway.https).get("/").status, 200);
    }
    watched.wait_for_count("connections_established_total", &[("tls", "user")], 3.0);
    watched.wait_for_count("tls_fallbacks_total", &[("reason", "configured")], 3.0);
    watched.wait_for_count("copied_exchanges_total", &[("reason", "user_tls")], 3.0);
    assert_eq!(watched.count("tls_fallbacks_total", &[]), 3.0);
    assert!(watched.count("tls_bytes_total", &[("tls", "user")]) > 300.0);

    let watched = Watched::start(Config::to(origin.address()).with_offload("auto"));
    assert_eq!(Client::tls(watched.gateway.https).get("/").status, 200);
    let line = watched.gateway.wait_for_access(|line| line["status"] == 200);
    let tls = line["tls"].as_str().expect("a path");
    watched.wait_for_count("connections_established_total", &[("tls", tls)], 1.0);
    match line["tls_reason"].as_str() {
        Some(reason) => watched.wait_for_count("tls_fallbacks_total", &[("reason", reason)], 1.0),
        None => assert_eq!(watched.count("tls_fallbacks_total", &[]), 0.0),
    }
    assert!(watched.count("tls_bytes_total", &[("tls", tls)]) > 100.0);
}

#[test]
fn how_bytes_moved_and_why_they_were_copied_is_counted() {
    const BODY_BYTES: usize = 8 << 20;
    let body = vec![b'x'; BODY_BYTES];
    let origin = Origin::start(move |connection| {
        loop {
            let is_bulk = connection.request()?.contains("/bulk");
            let body = if is_bulk { &body[..] } else { b"ok" };
            connection
                .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))?;
            connection.send(body)?;
        }
    });
    for splice in ["auto", "never"] {
        let door = format!("{}splice = {splice:?}\n", listener("127.0.0.1:0"));
        let watched = Watched::start(Config::to(origin.address()).with(&door));
        ask(&mut connect(watched.gateway.plain()), b"ok");
        let reason = if splice == "auto" { "not_bulk" } else { "configured" };
        watched.wait_for_count("copied_exchanges_total", &[("reason", reason)], 1.0);
        let mut client = Client::plain(watched.gateway.plain());
        assert_eq!(client.get("/bulk").body.len(), BODY_BYTES);
        wait_for("both", || (watched.count("requests_total", &[]) == 2.0).then_some(()));
        let moved = |path| watched.count("moved_bytes_total", &[("path", path)]);
        let bulk = BODY_BYTES as f64;
        match splice {
            "auto" => assert!(moved("splice") > bulk / 2.0, "{}", moved("splice")),
            _ => assert!(moved("splice") == 0.0 && moved("copy") > bulk, "{}", moved("copy")),
        }
        assert!(watched.count("bytes_total", &[("direction", "out")]) > bulk);
        assert!(watched.count("tls_bytes_total", &[("tls", "none")]) > bulk);
        assert_eq!(watched.count("connections_established_total", &[("tls", "none")]), 2.0);
    }
}

#[test]
fn an_upstream_that_is_down_is_seen_beside_one_that_is_not() {
    let origin = Origin::mirror();
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr());
    let (up, down) = (origin.address().to_string(), nobody.expect("a port").to_string());
    let config = Config::default().with_workers(1).with(&format!(
        "[[upstream]]\nname = \"both\"\nendpoints = [\"http://{up}\", \"http://{down}\"]\neject_after = 1\n\
         [[route]]\nupstream = \"both\"\nupstream_path = \"/\"\n"
    ));
    let watched = Watched::start(config);
    for _ in 0..4 {
        assert_eq!(Client::tls(watched.gateway.https).get("/").status, 200);
    }
    let of = |name, endpoint: &String| {
        watched.count(name, &[("upstream", "both"), ("endpoint", endpoint.as_str())])
    };
    assert_eq!((of("upstream_healthy", &up), of("upstream_healthy", &down)), (1.0, 0.0));
    assert!(of("upstream_connect_failures_total", &down) >= 1.0);
    assert_eq!(of("upstream_connect_failures_total", &up), 0.0);
    assert!(of("upstream_connects_total", &up) >= 1.0);
}

#[test]
fn requests_are_counted_by_route_class_and_duration() {
    let origin = Origin::start(|connection| {
        loop {
            let head = connection.request()?;
            let status = head.split("/status/").nth(1).and_then(|rest| rest.get(..3));
            let status = status.unwrap_or("200").to_owned();
            if status == "503" {
                std::thread::sleep(Duration::from_millis(300));
            }
            connection.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))?;
        }
    });
    let watched = Watched::start(Config::to(origin.address()));
    let mut client = Client::tls(watched.gateway.https);
    for status in [200, 204, 302, 404, 503] {
        assert_eq!(client.get(&format!("/status/{status}")).status, status);
    }
    wait_for("all", || (watched.count("requests_total", &[]) == 5.0).then_some(()));
    let route = ("route", "*/");
    for (class, count) in [("2xx", 2.0), ("3xx", 1.0), ("4xx", 1.0), ("5xx", 1.0), ("1xx", 0.0)] {
        assert_eq!(watched.count("requests_total", &[route, ("status", class)]), count, "{class}");
    }
    let scrape = watched.scrape();
    let is_it = |sample: &&prometheus_parse::Sample| {
        sample.metric == "tlsplice_request_duration_seconds"
            && sample.labels.get("route") == Some("*/")
    };
    let sample = scrape.samples.iter().find(is_it).expect("a histogram");
    let prometheus_parse::Value::Histogram(buckets) = &sample.value else { panic!("{sample:?}") };
    let below = |bound: f64| {
        buckets
            .iter()
            .filter(|bucket| bucket.less_than <= bound)
            .map(|bucket| bucket.count)
            .fold(0.0, f64::max)
    };
    assert!(below(0.25) <= 4.0 && below(f64::INFINITY) == 5.0, "{buckets:?}");
}

#[test]
fn the_kernel_s_maps_and_histograms_are_told() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address())
        .with(&listener("127.0.0.1:0"))
        .with("[telemetry]\nconnections = 7");
    let watched = Watched::start(config);
    drop(Kernel::of_running(&watched.gateway));
    let mut streams: Vec<TcpStream> = (0..3).map(|_| connect(watched.gateway.plain())).collect();
    for stream in &mut streams {
        for _ in 0..5 {
            ask(stream, b"ok");
        }
    }
    assert_eq!(watched.count("bpf_active", &[]), 1.0);
    assert_eq!(watched.count("bpf_map_capacity", &[]), 7.0);
    watched.wait_for_count("bpf_map_entries", &[], 3.0);
    // The first request of a connection may come before measuring begins.
    assert_eq!(watched.count("flush_latency_seconds", &[]), 15.0);
    assert!((12.0..=15.0).contains(&watched.count("input_latency_seconds", &[])));
    drop(streams);
    watched.wait_for_count("bpf_map_entries", &[], 0.0);
    watched.wait_for_count("flush_latency_seconds", &[], 15.0);
    assert_eq!(watched.count("bpf_errors_total", &[]), 0.0);
}
