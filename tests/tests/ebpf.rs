//! What the kernel measures and tells: sources, delays, whose they are, and what is left when it is over.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use socket2::{Domain, Socket, Type};
use tlsplice_ebpf_common::{Conn, Direction, Histogram, bucket};
use tlsplice_tests::bpf::Kernel;
use tlsplice_tests::client::{Client, VERSIONS, tls_config, tls_stream};
use tlsplice_tests::gateway::{BINARY_VARIABLE, Config, Gateway, binary};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::wait_for;

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const DELAY: Duration = Duration::from_millis(5);
const WARNING: &str = "WARN eBPF cannot be had: ";

/// An emulated machine proves counts and bounds from below, not precision.
fn is_emulated() -> bool {
    std::env::var_os(BINARY_VARIABLE).is_some()
}

/// An upstream that answers with the head it got, and says where that ends.
fn mirror() -> Origin {
    Origin::start(|connection| {
        loop {
            let head = connection.request()?;
            connection.respond(&format!("{head}END\r\n"))?;
        }
    })
}

/// A further listener without TLS.
fn plain(address: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\nservice = \"http\"\n")
}

fn kernel(gateway: &Gateway) -> Kernel {
    Kernel::of(gateway.id())
        .expect("the gateway has programs: these tests need root, cgroup2 and BPF")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway accepts");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket option");
    stream
}

fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().expect("it is connected").port()
}

/// Sends a request and reads until the response ends with `end`.
fn ask(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    stream.write_all(GET.as_bytes()).expect("it is sent");
    let (mut received, mut piece) = (Vec::new(), [0; 4096]);
    while !received.ends_with(end) {
        let count = stream.read(&mut piece).expect("a response");
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&piece[..count]);
    }
    received
}

fn address(conn: &Conn) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&conn.address[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&conn.address[1].to_ne_bytes());
    IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
}

fn mean(histogram: &Histogram) -> Duration {
    Duration::from_nanos(histogram.sum_ns / histogram.count.max(1))
}

/// Stops a gateway as a whole, so that what arrives meanwhile waits inside of it.
#[derive(Clone, Default)]
struct Brake(Arc<AtomicU32>);

impl Brake {
    fn set(&self, gateway: &Gateway) {
        self.0.store(gateway.id(), Ordering::Relaxed);
    }

    /// Does `act` while the gateway stands, and lets it go on `delay` later.
    fn hold(
        &self,
        delay: Duration,
        act: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let id = self.0.load(Ordering::Relaxed);
        let process = Pid::from_raw(id.cast_signed()).expect("it was set");
        kill_process(process, Signal::STOP)?;
        wait_for("the gateway's standstill", || {
            let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?;
            let stands = |task: fs::DirEntry| {
                fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
            };
            tasks.flatten().all(stands).then_some(())
        });
        let start = Instant::now();
        act()?;
        while start.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill_process(process, Signal::CONT)?;
        Ok(())
    }
}

#[test]
fn the_kernel_and_accept_agree_on_every_source() {
    let origin = mirror();
    let config = Config::to(origin.address()).with(&plain("[::1]:0"));
    let gateway = Gateway::start(&config);
    let kernel = kernel(&gateway);
    let v6 = gateway.plain();
    let mapped = |port| SocketAddr::new("::ffff:127.0.0.1".parse().expect("an address"), port);
    for (target, seen) in
        [(v6, "::1"), (gateway.http, "127.0.0.1"), (mapped(gateway.http.port()), "127.0.0.1")]
    {
        let mut stream = connect(target);
        ask(&mut stream, b"\r\n");
        let (_, conn) = wait_for("the record", || kernel.conn(port(&stream)));
        assert_eq!(address(&conn).to_string(), seen, "{target}");
    }
    let mut stream = connect(v6);
    let told = ask(&mut stream, b"END\r\n");
    let told = String::from_utf8_lossy(&told).to_ascii_lowercase();
    assert!(told.contains("x-forwarded-for: ::1\r\n"), "{told}");
    let line = gateway.wait_for_access(|line| line["port"] == port(&stream));
    assert_eq!(line["client"], "::1");
    let said = gateway.diagnostics();
    assert!(!said.contains("no record of"), "{said}");
}

/// Rounds with a delay in one direction; returns what was measured, and each round, the shortest first.
fn delayed(rounds: u64, delay: Option<Duration>) -> (Histogram, Histogram, Vec<Duration>) {
    let brake = Brake::default();
    let held = brake.clone();
    let origin = Origin::start(move |connection| {
        loop {
            connection.request()?;
            match delay {
                // Long enough for the gateway to wait for the response and for nothing else.
                Some(delay) => {
                    thread::sleep(Duration::from_millis(10));
                    held.hold(delay, || connection.respond("delayed"))?;
                }
                None => connection.respond("delayed")?,
            }
        }
    });
    let gateway = Gateway::start(&Config::to(origin.address()).with(&plain("127.0.0.1:0")));
    brake.set(&gateway);
    let kernel = kernel(&gateway);
    let mut stream = connect(gateway.plain());
    let port = port(&stream);
    let read = |direction| kernel.delays(port, direction).expect("it is measured");
    let (mut sums, mut sum_ns) = (Vec::new(), 0);
    for _ in 0..rounds {
        ask(&mut stream, b"delayed");
        let all_ns = read(Direction::Down).sum_ns;
        sums.push(Duration::from_nanos(all_ns - sum_ns));
        sum_ns = all_ns;
    }
    sums.sort_unstable();
    (read(Direction::Down), read(Direction::Up), sums)
}

#[test]
fn a_delay_inside_the_gateway_is_measured_and_the_other_direction_is_not_blamed() {
    let rounds = 20;
    let (down, up, each) = delayed(rounds, Some(DELAY));
    assert_eq!(down.count, rounds);
    println!("{DELAY:?} are measured as {each:?}");
    assert!(each[0] >= DELAY, "{each:?}");
    if !is_emulated() {
        // Other work on the machine prolongs rounds: the gateway, once let go, has to wait for a processor.
        assert!(each[each.len() / 4] < Duration::from_millis(6), "{each:?}");
        assert!(mean(&up) < Duration::from_millis(2), "{:?}", mean(&up));
    }
    // The first request may have arrived before measuring began.
    assert!((rounds - 1..=rounds).contains(&up.count), "{}", up.count);
}

#[test]
fn without_a_delay_next_to_nothing_is_measured() {
    let (down, up, each) = delayed(500, None);
    assert_eq!(down.count, 500);
    assert!((499..=500).contains(&up.count), "{}", up.count);
    if !is_emulated() {
        let quick = each[each.len() / 4];
        assert!(quick < Duration::from_micros(500), "{quick:?}");
        assert!(mean(&up) < Duration::from_millis(1), "{:?}", mean(&up));
    }
}

#[test]
fn a_pooled_connection_is_measured_for_the_client_it_serves() {
    let brake = Brake::default();
    let held = brake.clone();
    // Tells the connection that it came on; holds the gateway for the client that asks for it.
    let origin = Origin::start(move |connection| {
        loop {
            let head = connection.request()?;
            let body = format!("{:04}", connection.index);
            if head.contains("/slow") {
                thread::sleep(Duration::from_millis(10));
                held.hold(DELAY, || connection.respond(&body))?;
            } else {
                connection.respond(&body)?;
            }
        }
    });
    let gateway = Gateway::start(&Config::to(origin.address()).with(&plain("127.0.0.1:0")));
    brake.set(&gateway);
    let kernel = kernel(&gateway);
    let mut clients: Vec<TcpStream> = Vec::new();
    let get = |stream: &mut TcpStream, target: &str| {
        stream
            .write_all(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .expect("it is sent");
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let count = stream.read(&mut piece).expect("a response");
            received.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&received).into_owned();
            if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| body.len() == 4)
            {
                return body.to_owned();
            }
        }
    };
    // Of three clients on two workers, two share a worker and hence a connection to the upstream.
    let mut shared: std::collections::HashMap<String, Vec<usize>> =
        std::collections::HashMap::new();
    for index in 0..3 {
        clients.push(connect(gateway.plain()));
        let connection = get(&mut clients[index], "/");
        shared.entry(connection).or_default().push(index);
    }
    let pair = shared.into_values().find(|clients| clients.len() > 1).expect("two share");
    let (slow, quick) = (pair[0], pair[1]);
    for _ in 0..10 {
        get(&mut clients[slow], "/slow");
        get(&mut clients[quick], "/");
    }
    let delays = |client: usize| {
        kernel.delays(port(&clients[client]), Direction::Down).expect("it is measured")
    };
    let (slow, quick) = (delays(slow), delays(quick));
    assert_eq!((slow.count, quick.count), (11, 11));
    assert!(slow.sum_ns >= 50_000_000, "{slow:?}");
    assert!(Duration::from_nanos(slow.max_ns) >= DELAY);
    if !is_emulated() {
        // Some may suffer from other work on the machine.
        let below: u32 = quick.buckets[..bucket(4000) as usize].iter().sum();
        assert!(below >= 8, "{below} of 11 were quick");
    }
}

#[test]
fn what_is_answered_here_is_no_delay() {
    let origin = Origin::mirror();
    let config = Config::default()
        .with(&format!(
            "[[route]]\npath = \"/app/\"\nupstream = \"http://{}/\"\n",
            origin.address()
        ))
        .with(&plain("127.0.0.1:0"));
    let gateway = Gateway::start(&config);
    let kernel = kernel(&gateway);
    let mut client = Client::plain(gateway.plain());
    assert_eq!(client.get("/app/").status, 200);
    for _ in 0..3 {
        assert_eq!(client.get("/nowhere").status, 404);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(client.get("/app/").status, 200);
    }
    let line = gateway.wait_for_access(|line| line["kind"] == "request");
    let port = line["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let up = kernel.delays(port, Direction::Up).expect("it is measured");
    assert!((3..=4).contains(&up.count), "{}", up.count);
    assert!(Duration::from_nanos(up.max_ns) < Duration::from_millis(200), "{}", up.max_ns);
}

#[test]
fn a_key_update_is_no_delay() {
    // Some kernels cannot follow one; the tests of records tell of that.
    if is_emulated() {
        return;
    }
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let kernel = kernel(&gateway);
    let config = Arc::new(tls_config(&[VERSIONS[1]]));
    let mut stream = tls_stream(gateway.https, &config, "localhost");
    let mut get = |updates_key: bool| {
        if updates_key {
            stream.conn.refresh_traffic_keys().expect("TLS 1.3 can");
            stream.flush().expect("it is sent");
            thread::sleep(Duration::from_millis(300));
        }
        stream.write_all(GET.as_bytes()).expect("it is sent");
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        while !received.ends_with(b"END\r\n") {
            let count = stream.read(&mut piece).expect("a response");
            received.extend_from_slice(&piece[..count]);
        }
        port(&stream.sock)
    };
    get(false);
    for _ in 0..3 {
        get(true);
    }
    let port = get(false);
    let up = kernel.delays(port, Direction::Up).expect("it is measured");
    assert!((4..=5).contains(&up.count), "{}", up.count);
    assert!(Duration::from_nanos(up.max_ns) < Duration::from_millis(300), "{}", up.max_ns);
}

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let connections = if is_emulated() { 500 } else { 10_000 };
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&Config::to(origin.address()).with(&plain("127.0.0.1:0")));
    let kernel = kernel(&gateway);
    let (plain, https) = (gateway.plain(), gateway.https);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                for index in 0..connections / 4 {
                    match index % 10 {
                        // No handshake; half a request; nothing at all.
                        0 => drop(connect(https)),
                        1 => connect(plain).write_all(b"GET / HT").expect("it is sent"),
                        2 => drop(connect(plain)),
                        _ => drop(ask(&mut connect(plain), b"ok")),
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("every request was answered");
    }
    wait_for("the end of all connections", || {
        let (conns, _, histograms) = kernel.entries();
        (conns == 0 && histograms == 0).then_some(())
    });
    // Connections to the upstream are kept for a while, and so are their entries.
    let (_, socks, _) = kernel.entries();
    assert!(socks <= 64, "{socks} sockets are still linked");
    drop((origin, gateway));
    wait_for("the end of the programs", || (!kernel.is_loaded()).then_some(()));
}

#[test]
fn a_gateway_that_is_killed_leaves_nothing_attached_and_another_goes_on() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address()).with(&plain("127.0.0.1:0"));
    let (mut first, second) = (Gateway::start(&config), Gateway::start(&config));
    let (kernels, mut streams): (Vec<_>, Vec<_>) = [&first, &second]
        .map(|gateway| (kernel(gateway), connect(gateway.plain())))
        .into_iter()
        .unzip();
    for _ in 0..10 {
        for stream in &mut streams {
            ask(stream, b"ok");
        }
    }
    for (kernel, stream) in kernels.iter().zip(&streams) {
        let delays = kernel.delays(port(stream), Direction::Down).expect("it is measured");
        assert_eq!(delays.count, 10);
        assert_eq!(kernel.entries().0, 1, "its own connection only");
    }
    first.signal(Signal::KILL);
    first.wait();
    wait_for("the end of its programs", || (!kernels[0].is_loaded()).then_some(()));
    for _ in 0..10 {
        ask(&mut streams[1], b"ok");
    }
    let delays = kernels[1].delays(port(&streams[1]), Direction::Down).expect("it is measured");
    assert_eq!(delays.count, 20);
}

/// A gateway serves, has no programs, and has said once why.
fn serves_without(gateway: &Gateway, cause: &str) {
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains(WARNING)).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains(cause), "{warnings:?}");
    let line = gateway.wait_for_access(|line| line["status"] == 200);
    assert!(line.get("flush_p50_ms").is_none() && line["client"] == "127.0.0.1", "{line}");
}

#[test]
fn without_capabilities_it_serves_and_says_so() {
    let origin = Origin::mirror();
    for missing in [CapabilitySet::BPF, CapabilitySet::NET_ADMIN] {
        let config = Config::to(origin.address());
        // What a thread gives up is missing in the programs that it starts, and nowhere else.
        let gateway = thread::spawn(move || {
            for capability in [missing, CapabilitySet::SYS_ADMIN] {
                remove_capability_from_bounding_set(capability).expect("root may");
            }
            Gateway::start(&config)
        });
        serves_without(
            &gateway.join().expect("it starts"),
            "give the process CAP_BPF and CAP_NET_ADMIN",
        );
    }
}

#[test]
fn two_capabilities_are_enough() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address());
    let gateway = thread::spawn(move || {
        let kept = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        // Linux 5.10 charges maps to a limit that only this one may raise.
        let kept = kept | CapabilitySet::SYS_RESOURCE;
        for capability in CapabilitySet::all().difference(kept).iter() {
            // Older kernels do not know the newest ones.
            let _ = remove_capability_from_bounding_set(capability);
        }
        Gateway::start(&config)
    });
    let gateway = gateway.join().expect("it starts");
    drop(kernel(&gateway));
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    gateway.wait_for_access(|line| line["flush_count"] == 1);
}

#[test]
fn without_cgroup2_it_serves_and_says_so() {
    let origin = Origin::mirror();
    let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
    let points = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let points: Vec<&str> = points.filter_map(|line| line.split(' ').nth(1)).collect();
    let mut command = Command::new("unshare");
    let script = format!(
        "for point in {}; do umount $point || exit 1; done; exec \"$0\" \"$@\"",
        points.join(" ")
    );
    command.args(["-m", "sh", "-c", &script]).arg(binary());
    serves_without(
        &Gateway::start_as(&Config::to(origin.address()), &mut command),
        "no cgroup2 file system",
    );
}

#[test]
fn a_program_that_the_verifier_refuses_is_done_without() {
    // The last end of a program becomes a jump to nowhere, in a copy of the gateway.
    const OBJECT: &[u8] = include_bytes!("../../ebpf/tlsplice.bpf.o");
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let find =
        |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    let mut bytes = fs::read(binary()).expect("the gateway");
    let start = find(&bytes, &OBJECT[..4096]).expect("the gateway holds the object");
    let exit = OBJECT.windows(8).rposition(|window| window == EXIT).expect("a program ends");
    let exit = start + exit;
    bytes[exit..exit + 8].copy_from_slice(&[0x05, 0, 0xff, 0x7f, 0, 0, 0, 0]);
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("tlsplice");
    fs::write(&copy, bytes).expect("it is written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&copy, executable).expect("it is made executable");
    let origin = Origin::mirror();
    let gateway = Gateway::start_as(&Config::to(origin.address()), &mut Command::new(copy));
    serves_without(&gateway, "verifier refused");
}

#[test]
fn switched_off_it_says_nothing() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with("[telemetry]\nflush_latency = \"off\"\n");
    let gateway = Gateway::start(&config);
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    assert!(!said.contains(WARNING) && said.contains("off: it is switched off"), "{said}");
}

#[test]
fn connections_beyond_the_bound_are_served_and_not_measured() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address())
        .with(&plain("127.0.0.1:0"))
        .with("[telemetry]\nconnections = 2\n");
    let gateway = Gateway::start(&config);
    let mut streams: Vec<TcpStream> = (0..4).map(|_| connect(gateway.plain())).collect();
    for stream in &mut streams {
        ask(stream, b"ok");
    }
    let measured = |stream: &TcpStream| {
        let line = gateway.wait_for_access(|line| line["port"] == port(stream));
        line.get("flush_count").is_some()
    };
    assert_eq!(streams.iter().filter(|stream| measured(stream)).count(), 2);
    assert_eq!(gateway.diagnostics().matches("a connection is not measured").count(), 1);
    // Their places are free again afterwards.
    drop(streams);
    let kernel = kernel(&gateway);
    wait_for("the end of all connections", || (kernel.entries().2 == 0).then_some(()));
    let mut stream = connect(gateway.plain());
    ask(&mut stream, b"ok");
    assert!(measured(&stream));
}

/// Nanoseconds since the first call.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).expect("centuries")
}

#[test]
fn the_kernel_agrees_with_time_stamps_inside_the_stream() {
    // On a busy machine the client is kept waiting, too, which only its own time stamps show.
    let attempts: Vec<(Duration, Duration)> = (0..3).map(|_| stamped_and_measured()).collect();
    println!("p50 by time stamps and in the kernel: {attempts:?}");
    let agree = |&(stamped, measured): &(Duration, Duration)| {
        stamped.abs_diff(measured) < Duration::from_micros(200)
    };
    assert!(is_emulated() || attempts.iter().any(agree), "{attempts:?}");
}

/// The median of the time from upstream to client, and that of the flush latency.
fn stamped_and_measured() -> (Duration, Duration) {
    const CHUNKS: usize = 200;
    clock();
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..CHUNKS {
            thread::sleep(Duration::from_millis(5));
            connection.send(format!("14\r\n{:020}\r\n", clock()))?;
        }
        connection.send("0\r\n\r\n")
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    client.send(GET);
    assert_eq!(client.head().status, 200);
    let mut delays: Vec<u64> = Vec::new();
    while delays.len() < CHUNKS {
        let chunk = client.try_chunk().expect("a chunk");
        let now = clock();
        // What arrived together may leave together.
        for stamp in chunk.chunks(20) {
            let sent: u64 = String::from_utf8_lossy(stamp).parse().expect("a time stamp");
            delays.push(now - sent);
        }
    }
    delays.sort_unstable();
    let stamped = Duration::from_nanos(delays[CHUNKS / 2]);
    client.finish();
    let line = gateway.wait_for_access(|line| line["status"] == 200);
    let measured = line["flush_p50_ms"].as_f64().expect("it is measured");
    assert!(line["flush_count"].as_u64() >= Some(CHUNKS as u64 / 2), "{line}");
    (stamped, Duration::from_secs_f64(measured / 1000.0))
}

#[test]
fn a_tunnel_tells_of_its_silences() {
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )?;
        for pause in [100, 1800, 100] {
            thread::sleep(Duration::from_millis(pause));
            connection.send("x")?;
        }
        Ok(())
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    client.send(
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(client.head().status, 101);
    assert_eq!(client.take(3), b"xxx");
    drop(client);
    let line = gateway.wait_for_access(|line| line["kind"] == "tunnel");
    assert_eq!(line["unstable_risk"]["over_1500_ms"], 1, "{line}");
    assert_eq!(line["unstable_risk"]["over_15_s"], 0, "{line}");
}

/// The access log of a Tomcat is checked in `tomcat.rs`; this is the head that it gets.
#[test]
fn the_application_is_told_the_recorded_source() {
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()).with(&plain("127.0.0.1:0")));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source: SocketAddr = "127.0.0.9:0".parse().expect("an address");
    socket.bind(&source.into()).expect("loopback has the address");
    socket.connect(&gateway.plain().into()).expect("the gateway accepts");
    let mut stream = TcpStream::from(socket);
    let told = String::from_utf8_lossy(&ask(&mut stream, b"END\r\n")).to_ascii_lowercase();
    assert!(told.contains("x-forwarded-for: 127.0.0.9\r\n"), "{told}");
    let (_, conn) = kernel(&gateway).conn(port(&stream)).expect("a record");
    assert_eq!(address(&conn).to_string(), "127.0.0.9");
}
