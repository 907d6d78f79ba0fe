//! The gateway as a process: killed, reloaded, out of a worker, and started where something is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_tests::client::{Client, tls_config_trusting};
use tlsplice_tests::gateway::{Config, Gateway, binary};
use tlsplice_tests::inject::{self, Injection, TRACED};
use tlsplice_tests::ledger::{Ledger, UPGRADE};
use tlsplice_tests::{admin, wait_for};

use crate::stage::{Stage, expect_whole, upload};

/// Size of a pipe that takes pages away from others; `/proc/sys/fs/pipe-max-size` allows it everywhere.
const HOARD_BYTES: usize = 1 << 20;

/// How much more memory a gateway may hold after a hundred configurations.
const GROWTH_BYTES_MAX: usize = 16 << 20;

#[test]
fn a_worker_that_panics_ends_the_gateway_and_the_next_one_serves() {
    let stage = Stage::of(Config::default().with(TRACED), "", Gateway::start);
    let Stage { mut gateway, origin, proxy, .. } = stage;
    let mut client = Client::tls(gateway.https);
    assert_eq!(client.get("/").status, 200);
    // The driver takes an error of its ring for a defect, and panics.
    let worker = gateway.thread("worker-0");
    let log = Path::new("/dev/null");
    let Some(failing) = Injection::begin(&worker, "io_uring_enter", "EBADF", "1", log) else {
        return;
    };
    let status = gateway.wait();
    drop(failing);
    assert_eq!(status.code(), Some(1), "a supervisor sees that it failed");
    let said = gateway.diagnostics();
    assert_eq!(said.matches("panicked at").count(), 1, "{said}");
    assert!(said.contains("worker-0") && said.contains("a worker ended unexpectedly"), "{said}");
    let next = Gateway::start(&Config::to(proxy.address()));
    expect_whole(&mut Client::tls(next.https), "/bytes/100000");
    drop(origin);
}

/// A gateway at a port of its own choice, with an admin socket.
fn fixed(upstream: &Ledger, port: u16, socket: &Path) -> Config {
    Config::to(upstream.address()).with(&format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\nservice = \"http\"\n[admin]\nsocket = {socket:?}\n"
    ))
}

#[test]
fn a_gateway_that_is_killed_while_it_serves_starts_again_at_once() {
    let origin = Ledger::start();
    let port = tlsplice_fixtures::free_port().expect("a port");
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let config = fixed(&origin, port, &socket);
    let mut keys = Vec::new();
    for round in 0..3 {
        let mut gateway = Gateway::start(&config);
        assert_eq!(gateway.plain().port(), port, "at the same port as before");
        assert_eq!(admin::ask_unix(&socket, "/readyz").expect("it answers").status, 200);
        let mut client = Client::plain(gateway.plain());
        expect_whole(&mut client, "/bytes/100000");
        let mut tunnel = Client::tls(gateway.https);
        tunnel.send(UPGRADE);
        assert_eq!(tunnel.head().status, 101);
        let mut download = Client::plain(gateway.plain());
        download.send("GET /bytes/50000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        download.take(100_000);
        let key = format!("killed-{round}");
        upload(&mut client, &key, 1000);
        keys.push(key);
        gateway.signal(Signal::KILL);
        gateway.wait();
        tunnel.expect_cut();
        let answer = download.try_take(60_000_000);
        assert!(answer.is_err(), "what was cut off does not look whole");
    }
    assert!(keys.iter().all(|key| origin.effects(key) == 1));
}

#[test]
fn a_hundred_reloads_under_load_cost_no_request_no_tunnel_and_no_memory() {
    const RELOADS: usize = 100;
    let (first, second) = (Ledger::start(), Ledger::start());
    let config = |upstream: &Ledger| Config::to(upstream.address()).with_workers(1);
    let mut gateway = Gateway::start(&config(&first));
    let address = gateway.https;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|index| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut client = Client::tls(address);
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let status =
                        upload(&mut client, &format!("reload-{index}-{count}"), 100).status;
                    assert_eq!(status, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut tunnel = Client::tls(address);
    tunnel.send(UPGRADE);
    assert_eq!(tunnel.head().status, 101);
    let reloaded = |gateway: &Gateway| gateway.diagnostics().matches("INFO reloaded").count();
    let mut kept = 0;
    for round in 1..=RELOADS {
        gateway.reload(&config(if round % 2 == 0 { &first } else { &second }));
        wait_for("the reload", || (reloaded(&gateway) == round).then_some(()));
        tunnel.send("still here");
        assert_eq!(tunnel.take(10), b"still here");
        if round == RELOADS / 4 {
            kept = gateway.resident_bytes();
        }
    }
    let grown = gateway.resident_bytes().saturating_sub(kept);
    assert!(grown <= GROWTH_BYTES_MAX, "{grown} bytes by {} reloads", RELOADS * 3 / 4);
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("no request failed") > 0);
    }
    assert!(first.doubled().is_empty() && second.doubled().is_empty());
}

/// What is wrong with files, and how they come to it.
type Spoil<'a> = (&'static str, Box<dyn Fn() + 'a>);

#[test]
fn files_that_are_broken_in_any_way_change_nothing_and_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let make = |name: &str| {
        Certificate::ensure(&directory.path().join(name), &["site.example.net"])
            .expect("it is made")
    };
    let (good, other) = (make("good"), make("other"));
    let (chain, key) = (directory.path().join("site.pem"), directory.path().join("site.key"));
    let install = |certificate: &Certificate| {
        fs::copy(&certificate.chain, &chain).expect("it is copied");
        fs::copy(&certificate.key, &key).expect("it is copied");
    };
    install(&good);
    let origin = Ledger::start();
    let config = Config::to(origin.address()).with(&format!(
        "[[tls.site]]\ncertificate = {chain:?}\nkey = {key:?}\nnames = \"site.example.net\"\n"
    ));
    let mut gateway = Gateway::start(&config);
    let address = gateway.https;
    let trusting = Arc::new(tls_config_trusting(&good.authority));
    let is_served = || {
        Client::with(address, &trusting, "site.example.net").get("/").status == 421
            || Client::with(address, &trusting, "site.example.net")
                .ask("GET / HTTP/1.1\r\nHost: site.example.net\r\n\r\n")
                .status
                == 200
    };
    let whole = fs::read(&good.chain).expect("it is there");
    let whole_key = fs::read(&good.key).expect("it is there");
    let expired = expired(&directory.path().join("expired.pem"), &good);
    let spoils: [Spoil<'_>; 7] = [
        (
            "no certificate in it",
            Box::new(|| fs::write(&chain, "nonsense\n").expect("it is written")),
        ),
        (
            "half of the certificate",
            Box::new(|| fs::write(&chain, &whole[..whole.len() / 3]).expect("it is written")),
        ),
        (
            "half of the key",
            Box::new(|| fs::write(&key, &whole_key[..whole_key.len() / 2]).expect("it is written")),
        ),
        ("nothing in the key", Box::new(|| fs::write(&key, "").expect("it is written"))),
        (
            "the key of another certificate",
            Box::new(|| {
                fs::copy(&other.key, &key).expect("it is copied");
            }),
        ),
        (
            "a key that everybody may read",
            Box::new(|| {
                fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("it is ours");
            }),
        ),
        (
            "an expired certificate",
            Box::new(|| fs::write(&chain, &expired).expect("it is written")),
        ),
    ];
    let refused = |gateway: &Gateway| gateway.diagnostics().matches("reload refused").count();
    for (count, (what, spoil)) in spoils.iter().enumerate() {
        install(&good);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        spoil();
        gateway.reload(&config);
        wait_for(what, || (refused(&gateway) == count + 1).then_some(()));
        assert!(is_served(), "{what}");
    }
    let said = gateway.diagnostics();
    assert!(said.contains("site.pem") && said.contains("site.key"), "{said}");
    fs::remove_file(&chain).expect("it is there");
    gateway.reload(&config);
    wait_for("the refusal", || (refused(&gateway) == spoils.len() + 1).then_some(()));
    assert!(is_served());
    install(&good);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    gateway.reload(&config);
    gateway.wait_for_diagnostic("INFO reloaded");
    assert!(is_served());
}

/// A certificate for the key of `good` whose time is over.
fn expired(path: &Path, good: &Certificate) -> Vec<u8> {
    let key = fs::read_to_string(&good.key).expect("it is there");
    let key = rcgen::KeyPair::from_pem(&key).expect("a key");
    let mut parameters =
        rcgen::CertificateParams::new(vec!["site.example.net".to_owned()]).expect("a name");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = parameters.self_signed(&key).expect("it can be signed");
    fs::write(path, certificate.pem()).expect("it is written");
    fs::read(path).expect("it is there")
}

#[test]
fn certificates_behind_a_link_that_is_swapped_are_taken_whole() {
    // As volumes of Kubernetes are: files are links into a folder behind a link, which changes in one step.
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let pairs: Vec<Certificate> = ["a", "b"]
        .iter()
        .map(|name| Certificate::ensure(&path.join(name), &["site.example.net"]).expect("made"))
        .collect();
    let link = path.join("current");
    let swap = |to: &Certificate| {
        let fresh = path.join("fresh");
        std::os::unix::fs::symlink(to.chain.parent().expect("a folder"), &fresh).expect("a link");
        fs::rename(&fresh, &link).expect("it takes the place");
    };
    swap(&pairs[0]);
    let through = |file: &Path| {
        let name = file.file_name().expect("a name");
        std::os::unix::fs::symlink(link.join(name), path.join(name)).expect("a link");
        path.join(name)
    };
    let (chain, key) = (through(&pairs[0].chain), through(&pairs[0].key));
    let origin = Ledger::start();
    let config = Config::to(origin.address()).with(&format!(
        "[[tls.site]]\ncertificate = {chain:?}\nkey = {key:?}\nnames = \"site.example.net\"\n"
    ));
    let mut gateway = Gateway::start(&config);
    let answers = |gateway: &Gateway, certificate: &Certificate| {
        let trusting = Arc::new(tls_config_trusting(&certificate.authority));
        let mut client = Client::with(gateway.https, &trusting, "site.example.net");
        let request = "GET / HTTP/1.1\r\nHost: site.example.net\r\n\r\n";
        client.try_send(request).and_then(|()| client.try_response()).is_ok()
    };
    for round in 0..30 {
        swap(&pairs[(round + 1) % 2]);
        gateway.reload(&config);
        // The next swap may come in the midst of the reading; then the reload is refused or takes the newer pair.
        if round % 3 != 0 {
            continue;
        }
        // Of two questions one may come before a reload and one behind it.
        wait_for("one of both pairs", || {
            pairs.iter().any(|pair| answers(&gateway, pair)).then_some(())
        });
    }
    swap(&pairs[1]);
    gateway.reload(&config);
    wait_for("the last pair", || answers(&gateway, &pairs[1]).then_some(()));
}

#[test]
fn files_in_a_folder_that_cannot_be_written_are_enough() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root may mount");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let certificate = Certificate::ensure(directory.path(), &["site.example.net"]).expect("made");
    let origin = Ledger::start();
    let config = Config::to(origin.address()).with(&format!(
        "[[tls.site]]\ncertificate = {:?}\nkey = {:?}\nnames = \"site.example.net\"\n",
        certificate.chain, certificate.key
    ));
    // The folder is bound over itself, read-only, where only the gateway sees it.
    let folder = directory.path().display();
    let script = format!(
        "mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec \"$0\" \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(binary());
    let mut gateway = Gateway::start_as(&config, &mut command);
    gateway.reload(&config);
    gateway.wait_for_diagnostic("INFO reloaded");
    let trusting = Arc::new(tls_config_trusting(&certificate.authority));
    let mut client = Client::with(gateway.https, &trusting, "site.example.net");
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: site.example.net\r\n\r\n").status, 200);
}

/// Starts where calls fail, and expects that it says why it does not.
fn refuses_to_start(injections: &[&str], why: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tlsplice.toml");
    fs::write(&file, "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n[[route]]\nupstream = \"http://127.0.0.1:1\"\n")
        .expect("it is written");
    let mut command = inject::gateway_with(injections);
    command.args(["run", "--config"]).arg(&file).stdout(Stdio::null());
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{injections:?}: {said}");
    assert_eq!(said.matches(why).count(), 1, "{injections:?}: {said}");
}

#[test]
fn without_a_ring_it_does_not_start_and_says_why() {
    refuses_to_start(&["io_uring_setup:error=EPERM"], "seccomp filter");
    refuses_to_start(&["io_uring_setup:error=ENOSYS"], "has no io_uring");
    refuses_to_start(&["io_uring_setup:error=ENOMEM"], "locked memory");
    refuses_to_start(&["io_uring_setup:error=EMFILE"], "LimitNOFILE");
    refuses_to_start(&["io_uring_register:error=EPERM"], "may not use io_uring");
}

/// A gateway whose first calls for a ring fail in each worker, and what it says of its ring.
fn with_ring(injection: &str) -> (Ledger, Gateway, String) {
    let origin = Ledger::start();
    let traced = Config::default().with(TRACED);
    let config = Stage::config(traced, "", origin.address(), origin.address());
    let gateway = Gateway::start_as(&config, &mut inject::gateway_with(&[injection]));
    let said = gateway.diagnostics();
    let line = said.lines().find(|line| line.contains("workers")).unwrap_or_default().to_owned();
    (origin, gateway, line)
}

#[test]
fn a_ring_that_cannot_be_had_as_wanted_is_taken_smaller_or_plainer() {
    for (injection, ring) in [
        ("io_uring_setup:error=ENOMEM:when=1..2", "256 submissions, 2048 completions"),
        (
            "io_uring_setup:error=EINVAL:when=1",
            "DEFER_TASKRUN, 1024 submissions, 8192 completions)",
        ),
        ("io_uring_setup:error=EINVAL:when=1..2", "COOP_TASKRUN|SINGLE_ISSUER, 1024 submissions"),
        ("io_uring_setup:error=EINVAL:when=1..3", "COOP_TASKRUN, 1024 submissions"),
        ("io_uring_setup:error=EINVAL:when=1..4", "no flags, 1024 submissions"),
    ] {
        let (origin, gateway, line) = with_ring(injection);
        assert!(line.contains(ring), "{injection}: {line}");
        if injection.contains("EINVAL") {
            let said = gateway.diagnostics();
            assert!(said.contains("missing      io_uring "), "what is missing is told: {said}");
        }
        for mut client in [Client::tls(gateway.https), Client::plain(gateway.plain())] {
            expect_whole(&mut client, "/bytes/300000");
            assert_eq!(upload(&mut client, "ring", 1000).status, 200);
        }
        assert_eq!(origin.effects("ring"), 2);
    }
}

#[test]
fn completions_beyond_the_queue_are_not_lost() {
    // The smallest ring has 512 of them.
    const CLIENTS: usize = 900;
    let (origin, mut gateway, line) = with_ring("io_uring_setup:error=ENOMEM:when=1..4");
    assert!(line.contains("64 submissions, 512 completions"), "{line}");
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::plain(gateway.plain())).collect();
    for client in &mut clients {
        client.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    for round in 0..2 {
        // All of them have something to say to a gateway that stands still.
        gateway.signal(Signal::STOP);
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(format!(
                "POST /effect/overflow-{round}-{index} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
            ));
        }
        thread::sleep(Duration::from_secs(1));
        gateway.signal(Signal::CONT);
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.response().status, 200);
            assert_eq!(origin.effects(&format!("overflow-{round}-{index}")), 1);
        }
    }
}

#[test]
fn pipes_may_be_as_small_as_they_come() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root may give up a capability of its own choice");
        return;
    }
    let text = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").expect("it is there");
    let pages: usize = text.trim().parse().expect("a number");
    // Whoever has had its share of pages gets pipes of two of them from then on, unless it is privileged.
    let page = rustix::param::page_size();
    let hoard: Vec<_> = (0..=pages * page / HOARD_BYTES)
        .map(|_| {
            let pipe = rustix::pipe::pipe().expect("a pipe");
            rustix::pipe::fcntl_setpipe_size(&pipe.1, HOARD_BYTES).expect("root may");
            pipe
        })
        .collect();
    let origin = Ledger::start();
    let config = Stage::config(Config::default(), "", origin.address(), origin.address());
    let gateway = thread::spawn(move || {
        for capability in [CapabilitySet::SYS_RESOURCE, CapabilitySet::SYS_ADMIN] {
            remove_capability_from_bounding_set(capability).expect("root may");
        }
        Gateway::start(&config)
    });
    let gateway = gateway.join().expect("it starts");
    let mut client = Client::plain(gateway.plain());
    expect_whole(&mut client, "/bytes/3000000");
    assert_eq!(upload(&mut client, "piped", 3_000_000).status, 200);
    let line = gateway.wait_for_access(|line| line["target"] == "/bytes/3000000");
    assert_eq!(line["path"], "splice", "{line}");
    assert_eq!(origin.effects("piped"), 1);
    drop(hoard);
    expect_whole(&mut Client::plain(gateway.plain()), "/bytes/3000000");
}

#[test]
fn splices_that_are_refused_now_and_then_lose_nothing() {
    for error in ["EAGAIN", "EINTR", "EINVAL", "ENOMEM"] {
        let origin = Ledger::start();
        let traced = Config::default().with(TRACED);
        let config = Stage::config(traced, "", origin.address(), origin.address());
        let gateway = Gateway::start(&config);
        let (worker, log) = (gateway.thread("worker-0"), Path::new("/dev/null"));
        let Some(failing) = Injection::begin(&worker, "splice", error, "3+5", log) else { return };
        let mut whole = 0;
        for round in 0..6 {
            let mut client = Client::plain(gateway.plain());
            // A call that may be refused for good ends the connection; then the rest must be missing visibly.
            client.send("GET /bytes/2000000 HTTP/1.1\r\nHost: a\r\n\r\n");
            let body = client.try_head().and_then(|_| client.try_take(2_000_000));
            if let Ok(body) = body {
                assert!(body == tlsplice_tests::ledger::content(2_000_000), "{error}: other bytes");
                whole += 1;
            }
            let mut client = Client::plain(gateway.plain());
            let key = format!("spliced-{error}-{round}");
            client.send(crate::stage::post(&key, 2_000_000));
            let sent = client.try_send(tlsplice_tests::ledger::content(2_000_000));
            let answer = sent.and_then(|()| client.try_response());
            if answer.is_ok_and(|answer| answer.status == 200) {
                assert_eq!(origin.effects(&key), 1, "{error}");
                whole += 1;
            }
        }
        if matches!(error, "EAGAIN" | "EINTR") {
            assert_eq!(whole, 12, "{error} is no reason to give up");
        }
        failing.end();
        // Nothing was left in a pipe for the next one.
        let mut client = Client::plain(gateway.plain());
        expect_whole(&mut client, "/bytes/2000000");
        assert_eq!(origin.doubled(), Vec::<String>::new());
    }
}

#[test]
fn an_interrupted_getrandom_is_asked_again() {
    let origin = Ledger::start();
    let config = Config::to(origin.address()).with(TRACED);
    let mut command = inject::gateway_with(&["getrandom:error=EINTR:when=1+2"]);
    let gateway = Gateway::start_as(&config, &mut command);
    for _ in 0..5 {
        expect_whole(&mut Client::tls(gateway.https), "/bytes/1000");
    }
}
