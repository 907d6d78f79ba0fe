//! Upstreams that are away, silent, cut off, slow or wrong.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use tlsplice_tests::client::Client;
use tlsplice_tests::fault::{Admission, Ending, FaultProxy, Toxic, Way};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::ledger::{Ledger, UPGRADE, content};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::{admin, wait_for};

use crate::stage::{SEED, Stage, expect_whole, post, upload};

#[test]
fn a_closed_port_is_told_at_once_and_tried_once() {
    const REQUESTS: u32 = 20;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let config = Config::default().with(&format!("[admin]\nsocket = {socket:?}\n"));
    let stage = Stage::of(config, "connect_timeout = \"20s\"\n", Gateway::start);
    let failures = || {
        let labels = [("upstream", "faulty")];
        admin::value(&admin::metrics(&socket), "tlsplice_upstream_connect_failures_total", &labels)
    };
    let before = failures();
    let bystander = stage.bystander();
    stage.proxy.admit(Admission::Refused);
    // What is idle was connected before.
    stage.proxy.reset();
    let begun = Instant::now();
    for (index, client) in stage.clients().iter_mut().enumerate() {
        for number in 0..REQUESTS / 2 {
            let key = format!("refused-{index}-{number}");
            client.send(post(&key, 5));
            client.send("hello");
            assert_eq!(client.response().status, 502);
            assert_eq!(stage.origin.effects(&key), 0);
            // Its body was not read, so this connection has ended.
            *client = if index == 0 {
                Client::tls(stage.gateway.https)
            } else {
                Client::plain(stage.gateway.plain())
            };
        }
    }
    let each = begun.elapsed() / REQUESTS;
    assert!(each < Duration::from_secs(5), "{each:?} to tell what is known at once");
    let tries = failures() - before;
    assert!((tries - f64::from(REQUESTS)).abs() < 0.5, "{tries} tries for {REQUESTS} requests");
    stage.told_as("/effect/refused-0-3", "upstream", "refused");
    stage.proxy.clear();
    bystander.finish();
    stage.recovered("refused");
}

#[test]
fn a_silent_upstream_is_given_up_in_time_and_not_used_again() {
    let stage = Stage::with("response_timeout = \"1s\"\n", "");
    let bystander = stage.bystander();
    stage.proxy.admit(Admission::Silent);
    stage.proxy.reset();
    for mut client in stage.clients() {
        let begun = Instant::now();
        assert_eq!(client.get("/silent?a").status, 504);
        assert!(begun.elapsed() >= Duration::from_secs(1), "{:?} is early", begun.elapsed());
        assert_eq!(client.get("/silent?b").status, 504, "the client's connection goes on");
    }
    let line = stage.gateway.wait_for_access(|line| line["status"] == 504);
    assert_eq!(line["fault"], "upstream", "{line}");
    stage.proxy.clear();
    bystander.finish();
    stage.recovered("silent");
}

#[test]
fn resets_and_ends_before_within_and_behind_a_head_are_told_or_cut() {
    let stage = Stage::start();
    let bystander = stage.bystander();
    // The head of the answer has 42 bytes or more, the body 300,000.
    let ends: [fn(u64) -> Ending; 3] = [Ending::Reset, Ending::Close, Ending::Finish];
    let mut number = 0;
    for end in ends {
        for after in [0, 20, 1000, 100_000] {
            for target in ["/bytes/300000", "/chunks/300000"] {
                for mut client in stage.clients() {
                    stage.proxy.set(Way::Down, Toxic::ending(end(after)));
                    number += 1;
                    let target = format!("{target}?{number}");
                    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
                    let what = format!("{:?} {target}", end(after));
                    let answer = client.try_response();
                    match answer {
                        // A reset may destroy what came before it, so that nothing is left to be passed on.
                        Ok(answer) => {
                            let is_lost = after < 42 || matches!(end(after), Ending::Reset(_));
                            assert!(answer.status == 502 && is_lost, "{what}: {answer:?}");
                        }
                        Err(_) => assert!(after >= 42, "{what}"),
                    }
                    let line = stage.told_once(&target);
                    assert_eq!(line["fault"], "upstream", "{what}: {line}");
                    stage.proxy.clear();
                    stage.proxy.reset();
                }
            }
        }
    }
    bystander.finish();
    stage.recovered("cut");
}

#[test]
fn an_effect_whose_answer_is_cut_off_is_not_repeated() {
    let stage = Stage::start();
    for (number, after) in [0, 5, 60].into_iter().enumerate() {
        for (index, client) in stage.clients().iter_mut().enumerate() {
            // The connection is one that was used before, where a repetition would be tempting.
            assert_eq!(client.get("/").status, 200);
            let key = format!("once-{number}-{index}");
            stage.proxy.set(Way::Down, Toxic::ending(Ending::Reset(after)));
            client.send(post(&key, 1000));
            client.send(content(1000));
            let answer = client.try_response();
            assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 502));
            stage.proxy.clear();
            assert!(stage.origin.effects(&key) <= 1, "{key}");
        }
    }
    stage.recovered("once");
}

#[test]
fn an_upstream_that_ends_behind_its_response_costs_nobody_anything() {
    // It says keep-alive and closes all the same, in good order or not.
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.respond("whole")?;
        if connection.index % 2 == 0 {
            connection.stream.shutdown(std::net::Shutdown::Write)?;
        } else {
            connection.close();
        }
        connection.wait_for_close();
        Ok(())
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    for _ in 0..50 {
        let response = client.get("/");
        assert_eq!((response.status, response.text()), (200, "whole".to_owned()));
    }
    assert_eq!(origin.accepted(), 50);
}

#[test]
fn what_drips_is_passed_on_drop_by_drop() {
    const PAUSE: Duration = Duration::from_millis(40);
    let stage = Stage::start();
    let bystander = stage.bystander();
    for mut client in stage.clients() {
        // Whoever waits for more waits for all of it: each drop is due before the next one is sent.
        stage.proxy.set(Way::Down, Toxic::pieces(1, PAUSE));
        let begun = Instant::now();
        client.send("GET /chunks/9 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head().status, 200);
        let head = begun.elapsed();
        let mut chunks = Vec::new();
        loop {
            let chunk = client.try_chunk().expect("it goes on");
            if chunk.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        let rest = begun.elapsed() - head;
        assert_eq!(chunks.concat(), content(9));
        assert!(chunks.len() > 4, "bytes that came alone were passed on in {}", chunks.len());
        assert!(rest >= PAUSE * 3, "the head came {rest:?} before the end");
        stage.proxy.clear();
    }
    bystander.finish();
    stage.recovered("drip");
}

#[test]
fn a_connection_that_died_in_the_pool_costs_no_get_and_doubles_no_post() {
    let stage = Stage::with("keep_alive_timeout = \"20s\"\n", "");
    // The end of each connection is on its way for so long that the next request meets it.
    stage.proxy.set(Way::Down, Toxic::slow_close(Duration::from_millis(200)));
    let mut lost = 0;
    for round in 0..5 {
        for (index, mut client) in stage.clients().into_iter().enumerate() {
            assert_eq!(client.get("/last").status, 200);
            assert_eq!(client.get("/").status, 200, "a GET is repeated");
            assert_eq!(client.get("/last").status, 200);
            let key = format!("stale-{round}-{index}");
            let status = upload(&mut client, &key, 10).status;
            // Nobody can know whether it has had its effect, so it is not repeated.
            assert!(matches!(status, 200 | 502), "{status}");
            let effects = stage.origin.effects(&key);
            assert!(effects <= 1 && (status != 200 || effects == 1), "{key}: {effects}");
            lost += u32::from(status == 502);
        }
    }
    assert!(lost > 0, "no request met the end of its connection");
    stage.proxy.clear();
    assert_eq!(Client::tls(stage.gateway.https).get("/").status, 200);
    assert_eq!(stage.origin.doubled(), Vec::<String>::new());
}

/// An upstream that answers the head of a request with `first` after some time, and its body with 200.
fn reluctant(first: &'static str, time: Duration) -> Origin {
    Origin::start(move |connection| {
        loop {
            let head = connection.request()?;
            if head.starts_with("POST") {
                thread::sleep(time);
                connection.send(first)?;
                if first.starts_with("HTTP/1.1 417") {
                    connection.wait_for_close();
                    return Ok(());
                }
                connection.take(5)?;
            }
            connection.respond("done")?;
        }
    })
}

#[test]
fn a_reluctant_100_continue_holds_nobody_up() {
    const REQUEST: &str =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    for (first, interim) in [
        ("", 0),
        ("HTTP/1.1 100 Continue\r\n\r\n", 1),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", 2),
    ] {
        let origin = reluctant(first, Duration::from_millis(700));
        let gateway = Gateway::start(&Config::to(origin.address()));
        // One waits for permission, one does not (RFC 9110 §10.1.1 allows it).
        for is_patient in [true, false] {
            let mut client = Client::tls(gateway.https);
            client.send(REQUEST);
            let mut seen = 0;
            if is_patient && interim > 0 {
                assert_eq!(client.head().status, 100);
                seen += 1;
            }
            client.send("hello");
            let answer = loop {
                let answer = client.response();
                if answer.status != 100 {
                    break answer;
                }
                seen += 1;
            };
            assert_eq!((answer.status, answer.text()), (200, "done".to_owned()), "{first:?}");
            assert_eq!(seen, interim, "{first:?}");
        }
    }
    let origin = reluctant(
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
        Duration::from_millis(100),
    );
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    client.send(REQUEST);
    assert_eq!(client.response().status, 417);
    client.expect_close();
}

#[test]
fn an_early_refusal_reaches_a_client_in_the_midst_of_its_upload() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.take(100_000)?;
        connection.send(
            "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!",
        )?;
        connection.close();
        Ok(())
    });
    let plain = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n";
    let gateway = Gateway::start(&Config::to(origin.address()).with(plain));
    for round in 0..10 {
        let mut client = if round % 2 == 0 {
            Client::tls(gateway.https)
        } else {
            Client::plain(gateway.plain())
        };
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n");
        // It sends on until it cannot, as many clients do, and reads only then.
        for piece in content(3_000_000).chunks(50_000) {
            if client.try_send(piece).is_err() {
                break;
            }
        }
        let answer = client.response();
        assert_eq!((answer.status, answer.text()), (413, "no!".to_owned()), "round {round}");
    }
}

#[test]
fn a_head_without_end_is_refused_and_costs_no_memory() {
    let origin = Origin::start(|connection| {
        let head = connection.request()?;
        if !head.starts_with("GET /endless") {
            return connection.respond("fine");
        }
        connection.send("HTTP/1.1 200 OK\r\n")?;
        loop {
            connection.send(format!("X-More: {}\r\n", "x".repeat(1000)))?;
        }
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/endless").status, 502);
    let before = gateway.resident_bytes();
    for _ in 0..30 {
        assert_eq!(client.get("/endless").status, 502);
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for heads of at most 32 KiB");
    assert_eq!(client.get("/").text(), "fine");
    let line = gateway.wait_for_access(|line| line["target"] == "/endless");
    assert_eq!((&line["fault"], &line["status"]), (&"upstream".into(), &502.into()), "{line}");
}

#[test]
fn tunnels_end_with_their_upstream_and_new_ones_come_with_the_next() {
    let stage = Stage::start();
    let bystander = stage.bystander();
    let open = || {
        let mut client = Client::tls(stage.gateway.https);
        client.send(UPGRADE);
        assert_eq!(client.head().status, 101);
        client
    };
    let mut tunnels: Vec<Client> = (0..50).map(|_| open()).collect();
    for tunnel in &mut tunnels {
        tunnel.send("hello");
        assert_eq!(tunnel.take(5), b"hello");
    }
    stage.proxy.admit(Admission::Refused);
    stage.proxy.close();
    for tunnel in &mut tunnels {
        tunnel.expect_close();
    }
    let mut early = Client::tls(stage.gateway.https);
    early.send(UPGRADE);
    assert_eq!(early.response().status, 502);
    drop((tunnels, early));
    stage.proxy.clear();
    drop((0..50).map(|_| open()).collect::<Vec<_>>());
    bystander.finish();
    stage.recovered("restart");
}

#[test]
fn a_name_follows_its_address_and_a_dead_one_is_passed_over() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root may have an /etc/hosts of its own");
        return;
    }
    // Both at the same port, each at an address of its own.
    let (first, second) = (Ledger::start(), Ledger::start());
    let port = tlsplice_fixtures::free_port().expect("a port");
    let relay = |address: [u8; 4], target: &Ledger| {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::from(address), port));
        let (listener, target) = (listener.expect("the port is free"), target.address());
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut there = std::net::TcpStream::connect(target)?;
                    let (mut back, mut from) = (stream.try_clone()?, there.try_clone()?);
                    thread::spawn(move || drop(io::copy(&mut from, &mut back)));
                    io::copy(&mut stream, &mut there)
                });
            }
        });
    };
    relay([127, 9, 9, 1], &first);
    relay([127, 9, 9, 2], &second);
    let directory = tempfile::tempdir().expect("a directory");
    let hosts = directory.path().join("hosts");
    let say = |address: &str| {
        std::fs::write(&hosts, format!("{address} app.internal\n")).expect("it is written");
    };
    say("127.9.9.1");
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"app\"\nendpoints = \"http://app.internal:{port}\"\nresolve_interval = \"1s\"\n\
         keep_alive_max = 0\nconnect_timeout = \"500ms\"\n[[route]]\nupstream = \"app\"\n"
    ));
    let mut command = std::process::Command::new("unshare");
    let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    command.args(["-m", "sh", "-c", &script]).arg(tlsplice_tests::gateway::binary());
    let gateway = Gateway::start_as(&config, &mut command);
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/").status, 200);
    assert_eq!((first.accepted(), second.accepted()), (1, 0));
    say("127.9.9.2");
    wait_for("the new address", || {
        assert_eq!(client.get("/").status, 200, "nothing fails meanwhile");
        (second.accepted() > 0).then_some(())
    });
    // Nobody is at the first of these (RFC 3849), and the second one answers.
    say("2001:db8::1 app.internal\n127.9.9.1");
    let before = first.accepted();
    wait_for("the address behind the dead one", || {
        assert_eq!(client.get("/").status, 200, "nothing fails meanwhile");
        (first.accepted() > before).then_some(())
    });
}

#[test]
fn of_endpoints_that_are_all_away_the_first_one_back_is_found() {
    let origin = Ledger::start();
    let proxies: Vec<FaultProxy> =
        (0..2).map(|number| FaultProxy::start(origin.address(), SEED + number)).collect();
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"pair\"\nendpoints = [\"http://{}\", \"http://{}\"]\neject_after = 1\n\
         eject_time = \"2s\"\n[[route]]\nupstream = \"pair\"\n",
        proxies[0].address(),
        proxies[1].address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/").status, 200);
    for proxy in &proxies {
        proxy.admit(Admission::Refused);
        proxy.reset();
    }
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 502);
    }
    proxies[1].admit(Admission::Open);
    // To try one that was left out is better than to give up: the very next request is served.
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    expect_whole(&mut client, "/bytes/100000");
    proxies[0].admit(Admission::Open);
    proxies[1].admit(Admission::Refused);
    proxies[1].reset();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
}
