//! Networks that drop, duplicate, reorder, are narrow, and run out of ports. Each test has a network of its own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tlsplice_tests::client::{Client, tls_config};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::ledger::{Ledger, UPGRADE, content};
use tlsplice_tests::network::{Network, enter, filter, met, run, set};
use tlsplice_tests::{need, wait_for};

use crate::stage::{Stage, expect_whole, hash, upload};

/// A network, with the programs that change it; None where this user may not have one.
fn network() -> Option<Network> {
    need(&["nftables", "iproute2"]);
    let network = enter()?;
    filter("add table inet faults");
    filter("add chain inet faults arriving { type filter hook input priority 0; }");
    Some(network)
}

/// How long the quickest of some tries to connect was waited for; no more are made when one was as quick as `bound`.
fn quickest_refusal(stage: &Stage, bound: Duration) -> Duration {
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        for mut client in stage.clients() {
            let begun = Instant::now();
            assert_eq!(client.get("/").status, 504);
            quickest = quickest.min(begun.elapsed());
        }
        if quickest <= bound {
            break;
        }
    }
    quickest
}

#[test]
fn connecting_to_nowhere_takes_its_time_and_no_longer() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let Some(_network) = network() else { return };
    let stage = Stage::with("connect_timeout = \"1s\"\n", "");
    let bystander = stage.bystander();
    let port = stage.proxy.address().port();
    filter(&format!("add rule inet faults arriving tcp dport {port} drop"));
    stage.proxy.reset();
    // Deadlines are looked at 20 times a second.
    let most = TIMEOUT + TIMEOUT / 10 + Duration::from_millis(100);
    let quickest = quickest_refusal(&stage, most);
    assert!(quickest >= TIMEOUT && quickest <= most, "{quickest:?} instead of {TIMEOUT:?}");
    let line = stage.gateway.wait_for_access(|line| line["status"] == 504);
    assert!(line["reason"].as_str().is_some_and(|why| why.contains("too long")), "{line}");
    assert_eq!(line["fault"], "upstream", "{line}");
    filter("flush chain inet faults arriving");
    bystander.finish();
    stage.recovered("dropped");
}

#[test]
fn an_upstream_that_does_not_accept_is_given_up_in_time() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    rustix::net::listen(&listener, 0).expect("it is bound");
    let address = listener.local_addr().expect("it is bound");
    // They fill the queue of the kernel; the handshakes of others are dropped from then on.
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queue.push(stream);
    }
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"full\"\nendpoints = \"http://{address}\"\nconnect_timeout = \"500ms\"\n\
         [[route]]\nupstream = \"full\"\n"
    ));
    let gateway = Gateway::start(&config);
    let begun = Instant::now();
    assert_eq!(Client::tls(gateway.https).get("/").status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

/// Whether connections from here are gone for the gateway, although nobody has said so.
fn vanish(clients: &[Client]) {
    for client in clients {
        let port = client.address().port();
        filter(&format!("add rule inet faults arriving tcp dport {port} drop"));
        filter(&format!("add rule inet faults arriving tcp sport {port} drop"));
    }
}

#[test]
fn clients_that_vanish_are_given_up_in_their_time() {
    let Some(_network) = network() else { return };
    let stage = Stage::with(
        "idle_timeout = \"1h\"\n",
        "write_timeout = \"2s\"\nkeep_alive_timeout = \"10s\"\nhead_timeout = \"5s\"\n",
    );
    let bystander = stage.bystander();
    let mut clients: Vec<Client> = Vec::new();
    for mut client in stage.clients() {
        client.send("GET /bytes/50000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head().status, 200);
        clients.push(client);
    }
    for mut client in stage.clients() {
        assert_eq!(client.get("/").status, 200);
        clients.push(client);
    }
    for mut client in stage.clients() {
        client.send("GET / HTTP/1.1\r\nHos");
        clients.push(client);
    }
    vanish(&clients);
    bystander.finish();
    stage.gives_back();
    let line = stage.gateway.wait_for_access(|line| line["target"] == "/bytes/50000000");
    assert_eq!(
        (&line["fault"], &line["outcome"]),
        (&"downstream".into(), &"aborted".into()),
        "{line}"
    );
    filter("flush chain inet faults arriving");
    drop(clients);
    stage.recovered("vanished");
}

#[test]
#[ignore = "long: two minutes, the kernel's bound on what lacks an acknowledgement"]
fn a_tunnel_whose_client_vanished_is_given_up_by_the_kernel() {
    let Some(_network) = network() else { return };
    let stage = Stage::start();
    let clients: Vec<Client> = stage
        .clients()
        .into_iter()
        .map(|mut client| {
            client.send(UPGRADE);
            assert_eq!(client.head().status, 101);
            client.send("echo");
            assert_eq!(client.take(4), b"echo");
            client
        })
        .collect();
    vanish(&clients);
    let begun = Instant::now();
    while stage.proxy.open() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(300), "the tunnels are still there");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?} is early", begun.elapsed());
    filter("flush chain inet faults arriving");
    stage.recovered("tunnel-vanished");
}

/// Bodies both ways over a network like this.
fn survives(mtu: &str, bytes: usize, spoil: impl FnOnce()) {
    let Some(_network) = network() else { return };
    let stage = Stage::start();
    run("ip", &["link", "set", "lo", "mtu", mtu]);
    spoil();
    for (index, client) in stage.clients().iter_mut().enumerate() {
        expect_whole(client, &format!("/bytes/{bytes}"));
        expect_whole(client, &format!("/chunks/{bytes}"));
        let key = format!("spoilt-{index}");
        assert_eq!(upload(client, &key, bytes).text(), hash(bytes));
        assert_eq!(stage.origin.effects(&key), 1);
        client.send(UPGRADE);
        assert_eq!(client.head().status, 101);
        client.send(content(bytes / 4));
        assert!(client.take(bytes / 4) == content(bytes / 4), "other bytes");
    }
    if let Some(count) = met() {
        assert!(count > 0, "not one packet was spoilt");
    }
    stage.gives_back();
    assert_eq!(stage.origin.doubled(), Vec::<String>::new());
}

#[test]
fn one_packet_of_a_hundred_may_be_lost() {
    survives("1500", 400_000, || {
        filter("add rule inet faults arriving numgen random mod 100 < 1 counter drop");
    });
}

#[test]
fn packets_may_be_small() {
    survives("576", 400_000, || {});
}

#[test]
fn packets_may_come_twice() {
    survives("1500", 200_000, || {
        filter("add table ip twice");
        filter("add chain ip twice leaving { type filter hook output priority 0; }");
        filter(
            "add rule ip twice leaving numgen random mod 20 < 1 counter dup to 127.0.0.1 device \"lo\"",
        );
    });
}

#[test]
fn packets_may_overtake_each_other() {
    survives("1500", 200_000, || {
        // One of ten goes a slow way.
        run("tc", &["qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1"]);
        let class = |id: &str, rate: &str| {
            let arguments =
                ["class", "add", "dev", "lo", "parent", "1:", "classid", id, "htb", "rate", rate];
            run("tc", &arguments);
        };
        class("1:1", "10gbit");
        class("1:2", "20mbit");
        run("tc", &["qdisc", "add", "dev", "lo", "parent", "1:2", "pfifo", "limit", "1000"]);
        filter("add chain inet faults leaving { type filter hook output priority 0; }");
        filter(
            "add rule inet faults leaving numgen random mod 10 < 1 counter meta priority set 1:2",
        );
    });
}

#[test]
fn a_line_may_be_narrow() {
    survives("1500", 12_000, || {
        run(
            "tc",
            &[
                "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "256kbit", "burst", "8k",
                "latency", "400ms",
            ],
        );
    });
}

#[test]
fn without_a_local_port_there_is_503_until_there_is_one() {
    const PORTS: usize = 10;
    let Some(_network) = network() else { return };
    // The stage's own relay takes ports to its origin, too.
    let other = Ledger::start();
    let config = Config::default().with(&format!(
        "[[route]]\npath = \"/other\"\nupstream = \"http://{}\"\n",
        other.address()
    ));
    let stage = Stage::of(config, "", Gateway::start);
    let (first, last) = (40_000, 40_000 + PORTS - 1);
    set("net/ipv4/ip_local_port_range", &format!("{first}\t{last}"));
    let mut tunnels: Vec<Client> = (0..PORTS)
        .map(|_| {
            let mut client = Client::tls(stage.gateway.https);
            client.send(UPGRADE);
            assert_eq!(client.head().status, 101);
            client
        })
        .collect();
    let mut client = Client::plain(stage.gateway.plain());
    for _ in 0..3 {
        assert_eq!(client.get("/no-port").status, 503);
    }
    assert_eq!(client.get("/other").status, 200, "other upstreams have ports of their own");
    let line = stage.gateway.wait_for_access(|line| line["status"] == 503);
    assert_eq!(line["fault"], "local", "{line}");
    assert!(line["reason"].as_str().is_some_and(|why| why.contains("local port")), "{line}");
    // Ports that wait for late packets are used again where that is safe.
    for _ in 0..3 {
        tunnels.pop();
        wait_for("a port", || (client.get("/").status == 200).then_some(()));
    }
    drop((tunnels, client));
    set("net/ipv4/ip_local_port_range", "32768\t60999");
    stage.recovered("ports");
}

#[test]
fn a_full_accept_queue_only_delays() {
    const CLIENTS: usize = 120;
    let Some(_network) = network() else { return };
    set("net/core/somaxconn", "16");
    for cookies in ["1", "2"] {
        set("net/ipv4/tcp_syncookies", cookies);
        let mut stage = Stage::start();
        let address = stage.gateway.https;
        // It stands still while all of them come.
        stage.gateway.signal(Signal::STOP);
        let config = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let config = Arc::clone(&config);
                    scope.spawn(move || Client::with(address, &config, "localhost").get("/").status)
                })
                .collect();
            thread::sleep(Duration::from_millis(500));
            stage.gateway.signal(Signal::CONT);
            for client in clients {
                assert_eq!(client.join().expect("nobody fails"), 200);
            }
        });
        stage.recovered(&format!("queue-{cookies}"));
    }
}

#[test]
fn a_little_unsent_data_at_a_time_still_flows() {
    // An application that wants its data young sets this; the whole machine may have it.
    const BYTES: usize = 60_000_000;
    let Some(_network) = network() else { return };
    let origin = Ledger::start();
    let config = Stage::config(Config::default(), "", origin.address(), origin.address());
    let gateway = Gateway::start(&config);
    let quickest = |gateway: &Gateway| {
        let times = (0..5).map(|_| {
            let mut client = Client::plain(gateway.plain());
            let begun = Instant::now();
            client.send(format!("GET /bytes/{BYTES} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.head();
            let mut left = BYTES;
            while left > 0 {
                left -= client.take(left.min(100_000)).len();
            }
            begun.elapsed()
        });
        times.min().expect("five")
    };
    let usual = quickest(&gateway);
    set("net/ipv4/tcp_notsent_lowat", "16384");
    let young = quickest(&gateway);
    assert!(young <= usual * 3, "{young:?} instead of {usual:?} for {BYTES} bytes");
    let line = gateway.wait_for_access(|line| line["path"] == "splice");
    assert_eq!(line["status"], 200);
}
