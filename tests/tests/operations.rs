//! What an administrator does: check, start, reload, stop, and read the log.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_fixtures::demo::Demo;
use tlsplice_tests::admin::{metrics, value};
use tlsplice_tests::client::{Client, tls_config, tls_config_trusting};
use tlsplice_tests::gateway::{Config, Gateway, tlsplice};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::websocket::{exchange, open};
use tungstenite::Message;

/// The handshake of RFC 6455 §1.3, and its answer.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream that answers with a word.
fn saying(word: &'static str) -> Origin {
    Origin::start(move |connection| {
        loop {
            connection.request()?;
            connection.respond(word)?;
        }
    })
}

#[test]
fn check_tells_everything_at_once_and_its_status_tells_the_verdict() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad.toml");
    let path = file.to_str().expect("a plain path");
    fs::write(
        &file,
        "workers = 0\nwrokers = 2\n[[listener]]\naddress = \"127.0.0.1:99999\"\n\
         [tls]\ncertificate = \"missing.pem\"\nkey = \"missing.key\"\n[[route]]\nupstream = \"ftp://x\"\n",
    )
    .expect("it is written");
    let output = tlsplice(&["check", "--config", path]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["bad.toml:1", "wrokers", "99999", "missing.pem", "ftp://x"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let run = tlsplice(&["run", "--config", path]);
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&run.stderr), text, "run gives the same verdict");

    fs::write(&file, "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n[[route]]\nupstream = \"http://127.0.0.1:1\"\n")
        .expect("it is written");
    let output = tlsplice(&["check", "--config", path]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(tlsplice(&["chekc"]).status.code(), Some(2));
    let version = String::from_utf8_lossy(&tlsplice(&["--version"]).stdout).into_owned();
    assert!(version.starts_with("tlsplice ") && version.contains("io_uring"), "{version}");
}

#[test]
fn an_address_in_use_is_named() {
    let origin = saying("x");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tlsplice.toml");
    let taken = origin.address();
    let text = format!(
        "[[listener]]\naddress = \"{taken}\"\nservice = \"http\"\n[[route]]\nupstream = \"http://{taken}\"\n"
    );
    fs::write(&file, text).expect("it is written");
    let output = tlsplice(&["run", "--config", file.to_str().expect("a plain path")]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&taken.to_string()) && text.contains("another program"), "{text}");
}

#[test]
fn reloads_under_load_lose_nothing() {
    let (old, new) = (saying("old"), saying("new"));
    let mut gateway = Gateway::start(&Config::to(old.address()));
    let address = gateway.https;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|index| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut client = Client::tls(address);
                let mut answers = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    let text = client.get("/").text();
                    assert!(text == "old" || text == "new", "{text}");
                    answers += 1;
                    // Half of them come anew each time.
                    if index % 2 == 0 {
                        client = Client::tls(address);
                    }
                }
                answers
            })
        })
        .collect();
    for round in 0..10 {
        thread::sleep(Duration::from_millis(50));
        if round % 2 == 0 {
            gateway.reload_text("workers = \"many\"\n[[nonsense]]\n");
        } else {
            let upstream = if round % 4 == 1 { &new } else { &old };
            gateway.reload(&Config::to(upstream.address()));
        }
    }
    gateway.reload(&Config::to(new.address()));
    gateway.wait_for_diagnostic("reload refused");
    let mut fresh = Client::tls(address);
    tlsplice_tests::wait_for("the new configuration", || {
        (fresh.get("/").text() == "new").then_some(())
    });
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("no request failed") > 0);
    }
    let text = gateway.diagnostics();
    assert!(
        text.contains("workers") && text.contains("nonsense"),
        "as `check` prints them: {text}"
    );
}

#[test]
fn a_reload_leaves_tunnels_alone() {
    let demo = Demo::start().expect("it starts");
    let mut gateway = Gateway::start(&Config::to(demo.address()));
    let config = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let mut socket = open(gateway.https, &config, "/echo").expect("it opens");
    let elsewhere = saying("elsewhere");
    gateway.reload(&Config::to(elsewhere.address()));
    gateway.wait_for_diagnostic("reloaded");
    let message = Message::text("still here");
    assert_eq!(exchange(&mut socket, vec![message.clone()], 1), [message]);
}

#[test]
fn a_reload_brings_new_certificates_or_keeps_the_old() {
    let directory = tempfile::tempdir().expect("a directory");
    let make = |name: &str| {
        Certificate::ensure(&directory.path().join(name), &["site.example.net"])
            .expect("it is made")
    };
    let (old, new) = (make("old"), make("new"));
    let (chain, key) = (directory.path().join("site.pem"), directory.path().join("site.key"));
    let install = |certificate: &Certificate| {
        fs::copy(&certificate.chain, &chain).expect("it is copied");
        fs::copy(&certificate.key, &key).expect("it is copied");
    };
    install(&old);
    let origin = saying("x");
    let config = Config::to(origin.address()).with(&format!(
        "[[tls.site]]\ncertificate = {chain:?}\nkey = {key:?}\nnames = \"site.example.net\"\n"
    ));
    let mut gateway = Gateway::start(&config);
    let address = gateway.https;
    let shows = |certificate: &Certificate| {
        let config = Arc::new(tls_config_trusting(&certificate.authority));
        let mut client = Client::with(address, &config, "site.example.net");
        client
            .try_send("GET / HTTP/1.1\r\nHost: site.example.net\r\n\r\n")
            .and_then(|()| client.try_response())
            .is_ok()
    };
    assert!(shows(&old) && !shows(&new));
    let before = Client::tls(address);

    // The key of another certificate: nothing of it is taken.
    fs::copy(&new.key, &key).expect("it is copied");
    gateway.reload(&config);
    gateway.wait_for_diagnostic("reload refused");
    assert!(shows(&old) && !shows(&new));

    install(&new);
    gateway.reload(&config);
    gateway.wait_for_diagnostic("reloaded");
    // Each worker takes it at its own next tick.
    tlsplice_tests::wait_for("the new certificate", || {
        (0..5).all(|_| shows(&new) && !shows(&old)).then_some(())
    });
    let mut before = before;
    assert_eq!(before.get("/").text(), "x", "an open connection goes on");
}

#[test]
fn each_worker_has_a_core_of_its_own() {
    let origin = saying("x");
    let gateway = Gateway::start(&Config::to(origin.address()));
    let workers: Vec<_> =
        gateway.threads().into_iter().filter(|(name, _)| name.starts_with("worker-")).collect();
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert!(workers.iter().all(|(_, list)| list.parse::<u32>().is_ok()), "{workers:?}");
    let cores = thread::available_parallelism().expect("a number of cores").get();
    assert!(cores < 2 || workers[0].1 != workers[1].1, "{workers:?}");
}

#[test]
fn listeners_do_not_change_by_a_reload() {
    let origin = saying("x");
    let mut gateway = Gateway::start(&Config::to(origin.address()));
    gateway.reload(&Config::to(origin.address()).with("[[listener]]\naddress = \"127.0.0.2:0\"\n"));
    gateway.wait_for_diagnostic("change only by a restart");
    assert_eq!(Client::tls(gateway.https).get("/").text(), "x");
}

#[test]
fn draining_finishes_requests_and_gives_tunnels_their_time() {
    let demo = Demo::start().expect("it starts");
    let slow = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
        thread::sleep(Duration::from_millis(700));
        connection.send("done")
    });
    let config = Config::default().with_top("drain_timeout = \"2s\"").with(&format!(
        "[[route]]\nupstream = \"http://{}\"\n[[route]]\npath = \"/slow\"\nupstream = \"http://{}\"\n",
        demo.address(),
        slow.address()
    ));
    let mut gateway = Gateway::start(&config);
    let tls = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let mut sockets: Vec<_> =
        (0..5).map(|_| open(gateway.https, &tls, "/echo").expect("it opens")).collect();
    let mut idle = Client::tls(gateway.https);
    assert_eq!(idle.get("/whoami").status, 200);
    let mut busy = Client::tls(gateway.https);
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(busy.head().status, 200);
    let begun = Instant::now();
    gateway.signal(Signal::TERM);
    // An idle connection has nothing to finish.
    idle.expect_close();
    assert_eq!(busy.take(8), b"halfdone");
    busy.expect_close();
    for socket in &mut sockets {
        let message = Message::text("while draining");
        assert_eq!(exchange(socket, vec![message.clone()], 1), [message]);
    }
    let refused = std::net::TcpStream::connect(gateway.https);
    assert!(refused.is_err(), "nobody new is let in");
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(2), "the tunnels had their time");
    let drained = gateway.access_log().iter().filter(|line| line["outcome"] == "drained").count();
    assert_eq!(drained, sockets.len());
}

#[test]
fn a_second_signal_ends_at_once() {
    let demo = Demo::start().expect("it starts");
    let mut gateway = Gateway::start(&Config::to(demo.address()));
    let tls = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let _socket = open(gateway.https, &tls, "/echo").expect("it opens");
    gateway.signal(Signal::INT);
    gateway.wait_for_diagnostic("draining");
    assert!(gateway.is_running());
    gateway.signal(Signal::INT);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn idle_upstream_connections_end_in_time_although_a_tunnel_outlives_a_reload() {
    let open_now = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open_now);
    let origin = Origin::start(move |connection| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut serve = || {
            loop {
                if connection.request()?.starts_with("GET /ws ") {
                    connection.send(ACCEPT)?;
                    connection.wait_for_close();
                    return Ok(());
                }
                connection.respond("x")?;
            }
        };
        let end = serve();
        count.fetch_sub(1, Ordering::Relaxed);
        end
    });
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"a\"\nendpoints = [\"http://{}\"]\nkeep_alive_timeout = \"3s\"\n\
         [[route]]\nupstream = \"a\"\n",
        origin.address()
    ));
    let mut gateway = Gateway::start(&config.clone().with_workers(1));
    let mut tunnel = Client::tls(gateway.https);
    tunnel.send(UPGRADE);
    assert_eq!(tunnel.head().status, 101);
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    assert_eq!(open_now.load(Ordering::Relaxed), 2);
    gateway.reload(&config.with_workers(1));
    gateway.wait_for_diagnostic("reloaded ");
    tlsplice_tests::wait_for("the end of the idle connection", || {
        (open_now.load(Ordering::Relaxed) == 1).then_some(())
    });
    assert_eq!(tunnel.pending_after(Duration::from_millis(10)), b"", "the tunnel is still open");
}

#[test]
fn the_access_log_tells_everything_but_secrets() {
    let origin = Origin::mirror();
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\napp = \"guacamole\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    let target = "/api/session/data?token=5EC2E7&x=1";
    client.send(format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nGuacamole-Token: 5EC2E7\r\n\
         Cookie: a=5EC2E7\r\nAuthorization: Basic 5EC2E7\r\n\r\n"
    ));
    assert_eq!(client.response().status, 200);
    let line = gateway.wait_for_access(|line| line["kind"] == "request");
    assert_eq!((&line["method"], &line["status"]), (&"POST".into(), &200.into()));
    assert_eq!((&line["client"], &line["host"]), (&"127.0.0.1".into(), &"localhost".into()));
    for key in ["total_ms", "connect_ms", "first_byte_ms", "bytes_in", "bytes_out", "port"] {
        assert!(line[key].is_number(), "{key}: {line}");
    }
    for (key, value) in [("outcome", "complete"), ("path", "copy")] {
        assert_eq!(line[key], value, "{line}");
    }
    assert!(["user", "kernel"].contains(&line["tls"].as_str().unwrap_or_default()), "{line}");
    assert!(!line.to_string().contains("5EC2E7"), "{line}");
    assert!(!gateway.diagnostics().contains("5EC2E7"));
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    const REQUESTS: usize = 20_000;
    let origin = saying("x");
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("log");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(status.success());
    // Open at both ends, so that the gateway can open it, and never read.
    let _held = fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("it opens");
    let socket = directory.path().join("admin.sock");
    let config = Config::to(origin.address()).with_log(&fifo);
    let gateway = Gateway::start(&config.with(&format!("[admin]\nsocket = {socket:?}")));
    let mut client = Client::tls(gateway.https);
    let batch = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    for _ in 0..REQUESTS / 100 {
        client.send(&batch);
        for _ in 0..100 {
            assert_eq!(client.response().status, 200);
        }
    }
    gateway.wait_for_diagnostic("lines were dropped");
    let dropped = value(&metrics(&socket), "tlsplice_access_log_dropped_lines_total", &[]);
    assert!(dropped >= 1.0, "{dropped}");
}

#[test]
fn requests_of_the_http_tunnel_are_told_in_one_line() {
    let origin = Origin::mirror();
    let config = Config::default().with(&format!(
        "[[route]]\nupstream = \"http://{}\"\napp = \"guacamole\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    for n in 0..30 {
        assert_eq!(client.get(&format!("/tunnel?read:5EC2E7:{n}")).status, 200);
    }
    client.finish();
    client.expect_close();
    let line = gateway.wait_for_access(|line| line["kind"] == "folded");
    assert_eq!(line["requests"], 30, "{line}");
    assert!(!line.to_string().contains("5EC2E7"), "{line}");
    assert_eq!(gateway.access_log().len(), 1);
}

#[test]
fn endpoints_that_fail_are_left_out_and_taken_back() {
    let (good, port) = (saying("good"), tlsplice_fixtures::free_port().expect("a port"));
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"pair\"\nendpoints = [\"http://{}\", \"http://127.0.0.1:{port}\"]\n\
         eject_after = 1\neject_time = \"500ms\"\n[[route]]\nupstream = \"pair\"\n",
        good.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "good", "a connection refused costs no request");
    }
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback";
            drop(std::io::Read::read(&mut stream, &mut [0; 4096]));
            drop(std::io::Write::write_all(&mut stream, response));
        }
    });
    tlsplice_tests::wait_for("the return of the endpoint", || {
        (client.get("/").text() == "back").then_some(())
    });
}

#[test]
fn an_upstream_may_be_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("it binds");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            drop(std::io::Read::read(&mut stream, &mut [0; 4096]));
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix";
            drop(std::io::Write::write_all(&mut stream, response));
        }
    });
    let route = format!("[[route]]\nupstream = \"unix:{}\"\n", path.display());
    let gateway = Gateway::start(&Config::default().with(&route));
    assert_eq!(Client::tls(gateway.https).get("/").text(), "unix");
}
