//! Descriptors, memory, processors, disks and clocks that do not do what they should.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustls::HandshakeKind;
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_tests::client::{Client, tls_config, tls_stream};
use tlsplice_tests::fault::{Admission, FaultProxy, Toxic, Way};
use tlsplice_tests::gateway::{Config, Gateway, binary};
use tlsplice_tests::ledger::{Ledger, UPGRADE, content};
use tlsplice_tests::{need, wait_for};

use crate::stage::{SEED, Stage, expect_whole, upload};

fn set_descriptors_max(gateway: &Gateway, most: Option<u64>) {
    let pid = Pid::from_raw(gateway.id().cast_signed());
    let new = Rlimit { current: most, maximum: Some(20_000) };
    prlimit(pid, Resource::Nofile, new).expect("root may, and the owner may lower it");
}

#[test]
fn without_descriptors_newcomers_wait_and_the_others_go_on() {
    let stage = Stage::start();
    let bystander = stage.bystander();
    let mut client = Client::tls(stage.gateway.https);
    assert_eq!(client.get("/calm").status, 200);
    // Below what is open: nothing can be opened, whatever is closed meanwhile.
    set_descriptors_max(&stage.gateway, Some(10));
    let address = stage.gateway.https;
    // The kernel has taken a descriptor for the next one already.
    let last = std::net::TcpStream::connect(address).expect("the kernel accepts");
    let waiting = thread::spawn(move || Client::tls(address).get("/").status);
    stage.gateway.wait_for_diagnostic("no descriptors or memory left to accept a connection");
    thread::sleep(Duration::from_secs(1));
    assert!(!waiting.is_finished(), "whoever comes now waits");
    stage.waits_idly();
    set_descriptors_max(&stage.gateway, Some(20_000));
    assert_eq!(waiting.join().expect("it is served in the end"), 200);
    bystander.finish();
    let said = stage.gateway.diagnostics();
    let told = said.matches("no descriptors or memory left").count();
    assert!(told <= 3, "once for each listener, not {told} times");
    stage.gateway.wait_for_diagnostic("connections are accepted again");
    drop((client, last));
    stage.recovered("descriptors");
}

#[test]
fn without_a_descriptor_for_the_upstream_there_is_503() {
    let stage = Stage::start();
    let mut client = Client::tls(stage.gateway.https);
    assert_eq!(client.get("/").status, 200);
    thread::sleep(Duration::from_secs(2));
    set_descriptors_max(&stage.gateway, Some(10));
    client.send("POST /effect/starved HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.response().status, 503);
    stage.told_as("/effect/starved", "local", "Too many open files");
    set_descriptors_max(&stage.gateway, Some(20_000));
    assert_eq!(stage.origin.effects("starved"), 0);
    drop(client);
    stage.recovered("starved");
}

#[test]
fn a_log_on_a_full_disk_or_without_a_reader_holds_nobody_up_and_is_told() {
    let origin = Ledger::start();
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("log");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(made.success());
    for (target, error) in [(Path::new("/dev/full"), "No space left"), (&*fifo, "Broken pipe")] {
        // Whoever reads the pipe leaves once the gateway writes there.
        let reader = fs::OpenOptions::new().read(true).write(true).open(target).ok();
        let gateway = Gateway::start(&Config::to(origin.address()).with_log(target));
        if target == fifo {
            drop(reader);
        }
        let mut client = Client::tls(gateway.https);
        for _ in 0..500 {
            assert_eq!(client.get("/").status, 200);
        }
        gateway.wait_for_diagnostic("the access log cannot be written");
        assert!(gateway.diagnostics().contains(error), "{}", gateway.diagnostics());
        expect_whole(&mut client, "/bytes/100000");
    }
}

/// A control group of version 1 or 2 with one setting; None where this user may not have one.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, controller: &str, v1: (&str, &str), v2: (&str, &str)) -> Option<Self> {
        let name = format!("tlsplice-faults-{name}-{}", std::process::id());
        let old = Path::new("/sys/fs/cgroup").join(controller);
        let (parent, (file, value)) =
            if old.is_dir() { (old, v1) } else { ("/sys/fs/cgroup".into(), v2) };
        let path = parent.join(name);
        if fs::create_dir(&path).and_then(|()| fs::write(path.join(file), value)).is_err() {
            drop(fs::remove_dir(&path));
            println!("not run: no control group for {controller} may be made here");
            return None;
        }
        Some(Self(path))
    }

    fn add(&self, gateway: &Gateway) {
        fs::write(self.0.join("cgroup.procs"), gateway.id().to_string()).expect("it can be moved");
    }

    fn command(&self) -> Command {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(binary());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Those that were killed leave a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_gateway_that_is_out_of_memory_dies_at_once_and_the_next_one_serves() {
    let bytes = (64 << 20).to_string();
    let (v1, v2) = (("memory.limit_in_bytes", &*bytes), ("memory.max", &*bytes));
    let Some(group) = Group::new("memory", "memory", v1, v2) else { return };
    let origin = Ledger::start();
    let config = Stage::config(Config::default(), "", origin.address(), origin.address());
    let mut gateway = Gateway::start_as(&config, &mut group.command());
    let mut client = Client::plain(gateway.plain());
    assert_eq!(upload(&mut client, "before", 100_000).status, 200);
    // Each of them holds a bulk buffer or two: there is no room for so many, and nobody gives way.
    let tls = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let mut held = Vec::new();
    while gateway.is_running() && held.len() < 900 {
        let Ok(tcp) = std::net::TcpStream::connect(gateway.https) else { break };
        let name = "localhost".try_into().expect("a name");
        let tls = rustls::ClientConnection::new(Arc::clone(&tls), name).expect("a client");
        let mut stream = rustls::StreamOwned::new(tls, tcp);
        let asked = stream.write_all(b"GET /bytes/90000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        if asked.and_then(|()| stream.read(&mut [0; 1])).is_err() {
            break;
        }
        held.push(stream);
    }
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&gateway.wait()), Some(9));
    let next = Gateway::start(&config);
    let mut client = Client::plain(next.plain());
    expect_whole(&mut client, "/bytes/300000");
    assert_eq!(upload(&mut client, "after", 100_000).status, 200);
    assert_eq!((origin.effects("before"), origin.effects("after")), (1, 1));
}

#[test]
fn a_tenth_of_a_processor_is_slow_and_nothing_worse() {
    let Some(group) =
        Group::new("cpu", "cpu", ("cpu.cfs_quota_us", "10000"), ("cpu.max", "10000 100000"))
    else {
        return;
    };
    let stage = Stage::with("response_timeout = \"3s\"\n", "");
    group.add(&stage.gateway);
    for (index, client) in stage.clients().iter_mut().enumerate() {
        for number in 0..20 {
            let key = format!("slow-{index}-{number}");
            assert_eq!(upload(client, &key, 20_000).status, 200, "no deadline is taken for missed");
            assert_eq!(stage.origin.effects(&key), 1);
        }
        expect_whole(client, "/bytes/1000000");
    }
    // A deadline that is missed is missed in real time, not in that of the process.
    stage.proxy.admit(Admission::Silent);
    stage.proxy.reset();
    let begun = Instant::now();
    assert_eq!(Client::tls(stage.gateway.https).get("/").status, 504);
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?} is early", begun.elapsed());
    stage.proxy.clear();
    expect_whole(&mut Client::tls(stage.gateway.https), "/bytes/100000");
}

#[test]
fn a_hot_tunnel_leaves_room_for_the_others_on_its_worker() {
    let stage = Stage::start();
    let bystander = stage.bystander();
    let mut tunnel = Client::tls(stage.gateway.https);
    tunnel.send(UPGRADE);
    assert_eq!(tunnel.head().status, 101);
    let begun = Instant::now();
    let piece = content(60_000);
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        tunnel.send(&piece);
        assert!(tunnel.take(piece.len()) == piece, "other bytes");
        rounds += 1;
    }
    assert!(rounds > 10, "only {rounds} rounds: nothing was hot");
    bystander.finish();
    drop(tunnel);
    stage.recovered("hot");
}

#[test]
fn two_thousand_handshakes_at_once_all_come_to_their_end() {
    const CLIENTS: usize = 2000;
    const THREADS: usize = 20;
    let origin = Ledger::start();
    let limits = "connections_per_address = 5000\nhandshake_timeout = \"5m\"\n";
    let gateway = Gateway::start(&Config::to(origin.address()).with_limits(limits));
    let address = gateway.https;
    let config = Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    // All of them stand at the door before the first one says a word.
    let mut doors: Vec<std::net::TcpStream> =
        (0..CLIENTS).map(|_| std::net::TcpStream::connect(address).expect("it accepts")).collect();
    let begun = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let mine = doors.split_off(doors.len() - CLIENTS / THREADS);
            let config = Arc::clone(&config);
            thread::spawn(move || {
                let finished = mine.into_iter().map(|stream| {
                    let name = "localhost".try_into().expect("a name");
                    let tls = rustls::ClientConnection::new(Arc::clone(&config), name);
                    let tls = tls.expect("a client");
                    let mut client = Client::over(rustls::StreamOwned::new(tls, stream));
                    assert_eq!(client.get("/").status, 200);
                    (begun.elapsed(), client)
                });
                finished.collect::<Vec<_>>()
            })
        })
        .collect();
    let mut clients: Vec<(Duration, Client)> =
        threads.into_iter().flat_map(|thread| thread.join().expect("nobody fails")).collect();
    assert_eq!(clients.len(), CLIENTS);
    clients.sort_by_key(|(when, _)| *when);
    // The second half may not be served much more slowly than the first: nobody's work was thrown away.
    let (half, whole) = (clients[CLIENTS / 2].0, clients[CLIENTS - 1].0);
    println!("{CLIENTS} handshakes in {whole:?}, the first half in {half:?}");
    assert!(whole <= half * 6, "{half:?} for the first half, {whole:?} for all");
    let resumed = (0..20).filter(|_| {
        let mut stream = tls_stream(address, &config, "localhost");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
        assert!(stream.read(&mut [0; 100]).expect("it answers") > 0);
        stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    });
    assert!(resumed.count() > 0, "sessions are resumed");
    drop(clients);
    wait_for("the end of the connections", || (gateway.descriptors() < 300).then_some(()));
    expect_whole(&mut Client::tls(address), "/bytes/300000");
}

/// Where Debian has the library that tells a process another time.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A gateway whose wall clock is beside the true one by what that file says, and may be changed while it runs.
fn with_clock(config: &Config, clock: &Path) -> Gateway {
    need(&["faketime"]);
    let mut command = Command::new(binary());
    command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", clock);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command.env("DONT_FAKE_MONOTONIC", "1").stdout(Stdio::null());
    Gateway::start_as(config, &mut command)
}

/// A site whose certificate lies beside a file: a gateway reads in directories of its configuration only.
fn site_beside(file: &Path) -> String {
    let directory = file.parent().expect("a directory");
    let made = Certificate::ensure(directory, &["site.example.net"]).expect("it is made");
    format!(
        "[[tls.site]]\ncertificate = {:?}\nkey = {:?}\nnames = \"site.example.net\"\n",
        made.chain, made.key
    )
}

fn handshake(gateway: &Gateway, config: &Arc<rustls::ClientConfig>) -> Option<HandshakeKind> {
    let mut stream = tls_stream(gateway.https, config, "localhost");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    // Tickets come before the answer.
    assert!(stream.read(&mut [0; 200]).expect("it answers") > 0);
    stream.conn.handshake_kind()
}

#[test]
fn a_wall_clock_that_jumps_moves_no_deadline_and_ends_certificates() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = directory.path().join("clock");
    let set = |offset: &str| fs::write(&clock, format!("{offset}\n")).expect("it is written");
    set("+0");
    let origin = Ledger::start();
    let proxy = FaultProxy::start(origin.address(), SEED);
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"app\"\nendpoints = \"http://{}\"\nresponse_timeout = \"2s\"\n\
         [[route]]\nupstream = \"app\"\n",
        proxy.address()
    ));
    let config = config.with(&site_beside(&clock));
    let mut gateway = with_clock(&config, &clock);
    let mut client = Client::tls(gateway.https);
    for offset in ["+3600", "-3600", "+0"] {
        set(offset);
        assert_eq!(client.get("/").status, 200, "connections are as old as they are");
        proxy.set(Way::Down, Toxic::stalled());
        let begun = Instant::now();
        client.send("GET /late HTTP/1.1\r\nHost: a\r\n\r\n");
        thread::sleep(Duration::from_millis(500));
        set(if offset == "+0" { "+7200" } else { "+0" });
        assert_eq!(client.response().status, 504);
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_secs(2), "{waited:?} is early");
        proxy.clear();
    }
    set("+3600");
    assert_eq!(client.get("/jumped").status, 200);
    let line = gateway.wait_for_access(|line| line["target"] == "/jumped");
    assert!(line["total_ms"].as_f64().is_some_and(|total| total < 600_000.0), "{line}");
    // Two years later the certificate has ended: an open gateway goes on, and says so when it is to take it again.
    set("+63072000");
    gateway.reload(&config);
    gateway.wait_for_diagnostic("reload refused");
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    set("+0");
    gateway.reload(&config);
    gateway.wait_for_diagnostic("INFO reloaded");
}

#[test]
fn tickets_outlive_one_change_of_their_key_and_cost_a_handshake_after_two() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = directory.path().join("clock");
    let set = |hours: u64| fs::write(&clock, format!("+{}\n", hours * 3600)).expect("written");
    set(0);
    let origin = Ledger::start();
    let config = Config::to(origin.address()).with(&site_beside(&clock));
    let gateway = with_clock(&config, &clock);
    let fresh = || Arc::new(tls_config(rustls::DEFAULT_VERSIONS));
    let (early, late) = (fresh(), fresh());
    assert_eq!(handshake(&gateway, &early), Some(HandshakeKind::Full));
    assert_eq!(handshake(&gateway, &late), Some(HandshakeKind::Full));
    set(7);
    assert_eq!(handshake(&gateway, &early), Some(HandshakeKind::Resumed), "one key ago");
    // Somebody else makes the keys change once more.
    set(14);
    assert_eq!(handshake(&gateway, &fresh()), Some(HandshakeKind::Full));
    assert_eq!(handshake(&gateway, &late), Some(HandshakeKind::Full), "two keys ago");
    assert_eq!(handshake(&gateway, &late), Some(HandshakeKind::Resumed), "by its new ticket");
}
