//! What the kernel measures and tells: sources, delays, whose they are, and what is left when it is over. What becomes of a
//! gateway that cannot have it is in `degraded.rs`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tlsplice_ebpf_common::{Conn, Direction, Waits, bucket};
use tlsplice_tests::admin::{metrics, value};
use tlsplice_tests::bpf::Kernel;
use tlsplice_tests::brake::{Brake, standing};
use tlsplice_tests::capture::Repeater;
use tlsplice_tests::client::{Client, VERSIONS, tls_config, tls_stream};
use tlsplice_tests::gateway::{Config, Gateway, tlsplice};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::plain::{GET, ask, connect, listener, port};
use tlsplice_tests::{PATIENCE, is_guest, wait_for};

const DELAY: Duration = Duration::from_millis(5);

/// Rounds that other work on a busy machine leaves alone at least.
const UNDISTURBED: usize = 5;

/// An upstream that answers with the head it got, and says where that ends.
fn mirror() -> Origin {
    Origin::start(|connection| {
        loop {
            let head = connection.request()?;
            connection.respond(&format!("{head}END\r\n"))?;
        }
    })
}

fn address(conn: &Conn) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&conn.address[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&conn.address[1].to_ne_bytes());
    IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
}

/// How many delays were shorter than `bound`, to a quarter of it.
fn below(waits: &Waits, bound: Duration) -> usize {
    let us = u64::try_from(bound.as_micros()).expect("a short time");
    let counted: u32 = waits.buckets[..bucket(us) as usize].iter().sum();
    counted as usize
}

#[test]
fn the_kernel_and_accept_agree_on_every_source() {
    let origin = mirror();
    let config = Config::to(origin.address()).with(&listener("[::1]:0"));
    let gateway = Gateway::start(&config);
    let kernel = Kernel::of_running(&gateway);
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

#[test]
fn a_record_with_another_address_is_told_and_opens_no_door() {
    let forged = "192.0.2.1".parse::<std::net::Ipv4Addr>().expect("an address");
    let origin = mirror();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let route = |path: &str, rule: &str| {
        let upstream = origin.address();
        format!("[[route]]\npath = {path:?}\nupstream = \"http://{upstream}\"\n{rule}\n")
    };
    let config = Config::default()
        .with(&route("/", &format!("deny = [\"{forged}\"]")))
        .with(&route("/theirs", &format!("allow = [\"{forged}\"]")))
        .with(&listener("127.0.0.1:0"))
        .with(&format!("[admin]\nsocket = {socket:?}"));
    let gateway = Gateway::start(&config);
    let mut kernel = Kernel::of_running(&gateway);
    // The record is made when the connection is, and read when the gateway accepts it.
    let mut stream = standing(&gateway, || {
        let stream = connect(gateway.plain());
        let [a, b, c, d] = forged.octets();
        let last = u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]);
        kernel.change(port(&stream), |conn| conn.address = [0, last]);
        stream
    });
    let told = ask(&mut stream, b"END\r\n");
    let told = String::from_utf8_lossy(&told).to_ascii_lowercase();
    assert!(told.starts_with("http/1.1 200"), "access rules keep to the accepted address: {told}");
    assert!(told.contains("x-forwarded-for: 192.0.2.1\r\n"), "{told}");
    stream.write_all(GET.replace("/ ", "/theirs/ ").as_bytes()).expect("it is sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 403");
    gateway.wait_for_diagnostic("comes from 192.0.2.1:");
    let cause = [("cause", "address_mismatch")];
    assert_eq!(value(&metrics(&socket), "tlsplice_bpf_errors_total", &cause), 1.0);
}

#[test]
fn the_access_log_tells_all_that_was_measured() {
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let mut stream = connect(gateway.plain());
    for _ in 0..3 {
        ask(&mut stream, b"END\r\n");
    }
    let line = gateway.wait_for_access(|line| line["flush_count"] == 3);
    for field in ["flush_p50_ms", "flush_p99_ms", "flush_max_ms", "input_p50_ms", "rtt_ms"] {
        assert!(line[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {line}");
    }
    assert!(line["retransmits"].is_u64(), "{line}");
}

#[test]
fn what_is_sent_to_a_client_again_is_counted() {
    // `BPF_RET | BPF_K` of linux/filter.h.
    let take_nothing = SockFilter::new(6, 0, 0, 0);
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let mut stream = connect(gateway.plain());
    ask(&mut stream, b"END\r\n");
    let line = gateway.wait_for_access(|line| line["flush_count"] == 1);
    assert_eq!(line["retransmits"], 0, "{line}");
    SockRef::from(&stream).attach_filter(&[take_nothing]).expect("anybody may");
    stream.write_all(GET.as_bytes()).expect("it is sent");
    let kernel = Kernel::of_running(&gateway);
    let resent = || kernel.retransmits(port(&stream));
    wait_for("the response to be sent again", || (resent()? > 0).then_some(()));
    SockRef::from(&stream).detach_filter().expect("anybody may");
    let mut response = [0; 12];
    stream.read_exact(&mut response).expect("it arrives after all");
    assert_eq!(&response, b"HTTP/1.1 200");
    ask(&mut stream, b"END\r\n");
    let line = gateway.wait_for_access(|line| line["flush_count"] == 3);
    assert!(line["retransmits"].as_u64().is_some_and(|count| count > 0), "{line}");
}

/// What the kernel has counted of some rounds.
struct Rounds {
    down: u64,
    up: u64,
    /// All of the other direction.
    input: Waits,
    /// What was measured in each round towards the client, the shortest first.
    each: Vec<Duration>,
}

/// Rounds with a delay in one direction.
fn delayed(rounds: usize, delay: Option<Duration>) -> Rounds {
    let brake = Brake::default();
    let held = brake.clone();
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.respond("delayed")?;
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
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    brake.set(&gateway);
    let kernel = Kernel::of_running(&gateway);
    let mut stream = connect(gateway.plain());
    let port = port(&stream);
    // This request may arrive before measuring begins.
    ask(&mut stream, b"delayed");
    let read = |direction| kernel.delays(port, direction).expect("it is measured");
    let before = (read(Direction::Down), read(Direction::Up));
    let (mut each, mut sum_ns) = (Vec::new(), before.0.sum_ns);
    for _ in 0..rounds {
        ask(&mut stream, b"delayed");
        let all_ns = read(Direction::Down).sum_ns;
        each.push(Duration::from_nanos(all_ns - sum_ns));
        sum_ns = all_ns;
    }
    each.sort_unstable();
    let (down, up) = (read(Direction::Down), read(Direction::Up));
    Rounds { down: down.count - before.0.count, up: up.count - before.1.count, input: up, each }
}

#[test]
fn a_delay_inside_the_gateway_is_measured_and_the_other_direction_is_not_blamed() {
    const COUNT: usize = 60;
    let Rounds { down, up, input, each } = delayed(COUNT, Some(DELAY));
    println!("{DELAY:?} are measured as {each:?}");
    assert_eq!((down, up), (COUNT as u64, COUNT as u64));
    assert!(each[0] >= DELAY, "{each:?}");
    // Emulation stretches everything that comes on top.
    if !is_guest() {
        // Other work on the machine prolongs rounds: the gateway, once let go, has to wait for a processor. A few are
        // left alone, while a fault of the measurement would be in all of them.
        assert!(each[UNDISTURBED] < Duration::from_millis(6), "{each:?}");
        assert!(below(&input, Duration::from_millis(2)) > UNDISTURBED, "{input:?}");
    }
}

#[test]
fn without_a_delay_next_to_nothing_is_measured() {
    let Rounds { down, up, input, each } = delayed(500, None);
    assert_eq!((down, up), (500, 500));
    if !is_guest() {
        let quick = each[each.len() / 10];
        assert!(quick < Duration::from_micros(500), "{quick:?}");
        assert!(below(&input, Duration::from_millis(1)) > each.len() / 10, "{input:?}");
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
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    brake.set(&gateway);
    let kernel = Kernel::of_running(&gateway);
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
    if !is_guest() {
        // Some may suffer from other work on the machine. Of the other client's, one was not held.
        let quick = below(&quick, Duration::from_millis(4));
        assert!(quick >= 6, "{quick} of 11 were quick");
    }
}

#[test]
fn what_comes_on_the_connection_of_who_has_left_is_no_delay_of_who_took_the_place() {
    let (speak, spoken) = mpsc::channel();
    let spoken = Mutex::new(spoken);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.respond("ok")?;
        if connection.index > 0 {
            return connection.request().map(drop);
        }
        let spoken = spoken.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.recv_timeout(PATIENCE).map_err(std::io::Error::other)?;
        connection.send("unasked")
    });
    let config = Config::to(origin.address()).with(&listener("127.0.0.1:0"));
    let gateway = Gateway::start(&config);
    let kernel = Kernel::of_running(&gateway);
    ask(&mut connect(gateway.plain()), b"ok");
    wait_for("a free place", || (kernel.measured() == 0).then_some(()));
    let mut stream = connect(gateway.plain());
    wait_for("the same place", || (kernel.measured() == 1).then_some(()));
    speak.send(()).expect("the origin listens");
    thread::sleep(PAUSE);
    ask(&mut stream, b"ok");
    let down = kernel.delays(port(&stream), Direction::Down).expect("it is measured");
    // The response would have come while what nobody asked for waits.
    assert_eq!((down.count, down.coalesced), (1, 0), "{down:?}");
}

/// A connection whose socket in the gateway falls on the same entry as the one with this cookie. The kernel numbers the sockets of
/// a processor one after the other, so this thread stays on one.
fn connect_beside(cookie: u64, kernel: &Kernel, gateway: &Gateway) -> TcpStream {
    let mut processor = CpuSet::new();
    processor.set(sched_getcpu());
    sched_setaffinity(None, &processor).expect("a thread may stay where it is");
    for _ in 0..50 {
        let next_is_there = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            kernel.shares(socket.cookie().expect("a cookie") + 1, cookie)
        };
        assert!((0..1_000_000).any(|_| next_is_there()), "no cookie comes round");
        let stream = connect(gateway.plain());
        let found = wait_for("the record", || kernel.conn(port(&stream)));
        if kernel.shares(found.0, cookie) {
            return stream;
        }
    }
    panic!("another socket came between each time")
}

#[test]
fn sockets_that_fall_on_the_same_entry_are_measured_each() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address())
        .with(&listener("127.0.0.1:0"))
        .with("[telemetry]\nconnections = 100");
    let gateway = Gateway::start(&config);
    let kernel = Kernel::of_running(&gateway);
    let mut first = connect(gateway.plain());
    ask(&mut first, b"ok");
    let (cookie, _) = wait_for("the record", || kernel.conn(port(&first)));
    let mut second = connect_beside(cookie, &kernel, &gateway);
    ask(&mut second, b"ok");
    assert!(kernel.is_kept_apart(port(&second)));
    let delays = |stream: &TcpStream| {
        let down = kernel.delays(port(stream), Direction::Down);
        down.map(|delays| delays.count)
    };
    for _ in 0..3 {
        ask(&mut first, b"ok");
    }
    assert_eq!(delays(&first), Some(4));
    assert_eq!(delays(&second), Some(1));
    let second_port = port(&second);
    drop(second);
    wait_for("its end", || kernel.conn(second_port).is_none().then_some(()));
    // The entry of who has left may be anyone's, but not what the other one has.
    let mut third = connect_beside(cookie, &kernel, &gateway);
    ask(&mut third, b"ok");
    ask(&mut first, b"ok");
    assert_eq!((delays(&first), delays(&third)), (Some(5), Some(1)));
    assert_eq!(kernel.retransmits(port(&first)), Some(0));
    let first_port = port(&first);
    drop(first);
    let line = gateway.wait_for_access(|line| line["flush_count"] == 5);
    assert!(line["rtt_ms"].as_f64().is_some_and(|figure| figure > 0.0), "{line}");
    wait_for("its end", || kernel.conn(first_port).is_none().then_some(()));
    // Nor what who was kept apart has, when another one takes the entry.
    let mut fourth = connect_beside(cookie, &kernel, &gateway);
    ask(&mut third, b"ok");
    ask(&mut fourth, b"ok");
    ask(&mut third, b"ok");
    assert_eq!((delays(&third), delays(&fourth)), (Some(3), Some(1)));
    assert!(kernel.is_kept_apart(port(&third)) && !kernel.is_kept_apart(port(&fourth)));
    drop((third, fourth));
    wait_for("the end of all", || (kernel.measured() == 0).then_some(()));
}

/// A pause that must not be taken for a delay, and how many there are.
const PAUSE: Duration = Duration::from_millis(300);
const ROUNDS: u64 = 6;

/// Asserts what was measured of [`ROUNDS`] requests with pauses before them, and of `more` beside the first.
#[track_caller]
fn assert_pauses_are_no_delays(up: &Waits, more: u64) {
    // The first may have arrived before measuring began.
    assert!((ROUNDS + more..=ROUNDS + more + 1).contains(&up.count), "{}", up.count);
    // A stamp left behind would be in all rounds; on a busy machine the gateway may be as slow in some.
    assert!(below(up, PAUSE / 2) > 2, "{up:?}");
}

#[test]
fn what_is_answered_here_is_no_delay() {
    let origin = Origin::mirror();
    let config = Config::default()
        .with(&format!(
            "[[route]]\npath = \"/app/\"\nupstream = \"http://{}/\"\n",
            origin.address()
        ))
        .with(&listener("127.0.0.1:0"));
    let gateway = Gateway::start(&config);
    let kernel = Kernel::of_running(&gateway);
    let mut client = Client::plain(gateway.plain());
    assert_eq!(client.get("/app/").status, 200);
    for _ in 0..ROUNDS {
        assert_eq!(client.get("/nowhere").status, 404);
        thread::sleep(PAUSE);
        assert_eq!(client.get("/app/").status, 200);
    }
    let line = gateway.wait_for_access(|line| line["kind"] == "request");
    let port = line["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let up = kernel.delays(port, Direction::Up).expect("it is measured");
    assert_pauses_are_no_delays(&up, 0);
}

#[test]
fn what_the_network_delivers_twice_is_no_delay() {
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let kernel = Kernel::of_running(&gateway);
    let mut stream = connect(gateway.plain());
    ask(&mut stream, b"END\r\n");
    for _ in 0..ROUNDS {
        let network = Repeater::start().expect("root may");
        ask(&mut stream, b"END\r\n");
        network.repeat(port(&stream)).expect("the request was seen");
        thread::sleep(PAUSE);
    }
    ask(&mut stream, b"END\r\n");
    let up = kernel.delays(port(&stream), Direction::Up).expect("it is measured");
    assert_pauses_are_no_delays(&up, 1);
}

#[test]
fn a_key_update_is_no_delay() {
    let origin = mirror();
    let config = Config::to(origin.address());
    let mut gateway = Gateway::start(&config);
    if gateway.diagnostics().contains("no key updates in this kernel") {
        // User space can follow one anywhere.
        gateway = Gateway::start(&config.with_offload("never"));
    }
    let kernel = Kernel::of_running(&gateway);
    let config = Arc::new(tls_config(&[VERSIONS[1]]));
    let mut stream = tls_stream(gateway.https, &config, "localhost");
    let mut get = |updates_key: bool| {
        if updates_key {
            stream.conn.refresh_traffic_keys().expect("TLS 1.3 can");
            stream.flush().expect("it is sent");
            thread::sleep(PAUSE);
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
    for _ in 0..ROUNDS {
        get(true);
    }
    let port = get(false);
    let up = kernel.delays(port, Direction::Up).expect("it is measured");
    assert_pauses_are_no_delays(&up, 1);
}

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let connections = if is_guest() { 2_000 } else { 10_000 };
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let kernel = Kernel::of_running(&gateway);
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
        (kernel.connections() == 0 && kernel.measured() == 0).then_some(())
    });
    // Connections to the upstream are kept for a while, and so are their entries.
    let linked = kernel.linked();
    assert!(linked <= 64, "{linked} sockets are still linked");
    drop((origin, gateway));
    wait_for("the end of the programs", || (!kernel.is_loaded()).then_some(()));
}

#[test]
fn a_gateway_that_is_killed_leaves_nothing_attached_and_another_goes_on() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address()).with(&listener("127.0.0.1:0"));
    let (mut first, second) = (Gateway::start(&config), Gateway::start(&config));
    let (kernels, mut streams): (Vec<_>, Vec<_>) = [&first, &second]
        .map(|gateway| (Kernel::of_running(gateway), connect(gateway.plain())))
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
        assert_eq!(kernel.connections(), 1, "its own connection only");
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

/// Nanoseconds since the first call.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).expect("centuries")
}

/// One chunk: from the origin's call to send until the client has it, and how long the kernel says it waited in between.
#[derive(Debug)]
struct Chunk {
    stamped: Duration,
    measured: Duration,
}

/// Streams chunks with a time stamp in each, which the gateway is made to hold for 1 to 5 ms, and checks that the access
/// log tells their median.
fn stamped_and_measured() -> Vec<Chunk> {
    const CHUNKS: usize = 100;
    clock();
    let brake = Brake::default();
    let held = brake.clone();
    let (next, wanted) = mpsc::channel();
    let wanted = Mutex::new(wanted);
    let origin = Origin::start(move |connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        // When the client has looked at what came before.
        let wait = || {
            let wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.recv_timeout(PATIENCE).map_err(std::io::Error::other)
        };
        for index in 0..CHUNKS {
            wait()?;
            let delay = Duration::from_millis(1 + index as u64 % 5);
            held.hold(delay, || connection.send(format!("14\r\n{:020}\r\n", clock())))?;
        }
        wait()?;
        connection.send("0\r\n\r\n")
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    brake.set(&gateway);
    let kernel = Kernel::of_running(&gateway);
    let config = Arc::new(tls_config(&[VERSIONS[1]]));
    let stream = tls_stream(gateway.https, &config, "localhost");
    let port = port(&stream.sock);
    let mut client = Client::over(stream);
    client.send(GET);
    assert_eq!(client.head().status, 200);
    let read = || kernel.delays(port, Direction::Down).expect("it is measured");
    let mut before = read();
    let mut chunks = Vec::new();
    while chunks.len() < CHUNKS {
        next.send(()).expect("the origin listens");
        let chunk = client.try_chunk().expect("a chunk");
        let now = clock();
        let sent: u64 = String::from_utf8_lossy(&chunk).parse().expect("one time stamp");
        let after = read();
        assert_eq!(after.count, before.count + 1, "one delay for one chunk");
        let measured = Duration::from_nanos(after.sum_ns - before.sum_ns);
        chunks.push(Chunk { stamped: Duration::from_nanos(now - sent), measured });
        before = after;
    }
    next.send(()).expect("the origin listens");
    client.finish();
    let line = gateway.wait_for_access(|line| line["status"] == 200);
    let told = line["flush_p50_ms"].as_f64().expect("it is measured");
    let median = median(chunks.iter().map(|chunk| chunk.measured)).as_secs_f64() * 1e3;
    // Head and end of the response count, too, and quantiles are known to an eighth.
    assert!(
        (told / median - 1.0).abs() < 0.25,
        "{told} ms are told, and the median is {median} ms"
    );
    chunks
}

fn median(durations: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<Duration> = durations.collect();
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
fn no_chunk_waits_longer_than_time_stamps_inside_the_stream_allow() {
    // What the kernel measures lies between the two stamps, however slow the machine is.
    for Chunk { stamped, measured } in stamped_and_measured() {
        assert!(measured <= stamped, "{measured:?} were measured within {stamped:?}");
        assert!(measured >= Duration::from_millis(1), "{measured:?}");
    }
}

#[test]
fn the_kernel_agrees_with_time_stamps_inside_the_stream() {
    let chunks = stamped_and_measured();
    let mut apart: Vec<Duration> =
        chunks.iter().map(|chunk| chunk.stamped.abs_diff(chunk.measured)).collect();
    apart.sort_unstable();
    let stamped = median(chunks.iter().map(|chunk| chunk.stamped));
    let measured = median(chunks.iter().map(|chunk| chunk.measured));
    println!("p50 {stamped:?} by time stamps, {measured:?} in the kernel; apart: {apart:?}");
    // Chunk by chunk, and as a part of what it took: on a busy or slow machine the client, too, has to wait for a
    // processor, and stamps show more. Some chunks are left alone by others.
    let mut parts: Vec<f64> = chunks
        .iter()
        .map(|chunk| chunk.stamped.abs_diff(chunk.measured).div_duration_f64(chunk.stamped))
        .collect();
    parts.sort_unstable_by(f64::total_cmp);
    assert!(parts[parts.len() / 10] < 0.15, "{chunks:?}");
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

#[test]
fn the_doctor_loads_them_and_sees_them_run() {
    let output = tlsplice(&["doctor", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = told["findings"].as_array().expect("a list");
    let is_it = |finding: &&serde_json::Value| finding["topic"] == "eBPF";
    let finding = findings.iter().find(is_it).expect("it looks");
    assert_eq!(finding["verdict"], "ok", "{finding}");
    let fact = finding["fact"].as_str().expect("text");
    assert!(fact.starts_with("programs load and run: "), "{fact}");
    let group = fact.rsplit(" in ").next().expect("its group");
    let is_gone = !group.contains("/tlsplice-") || !std::path::Path::new(group).exists();
    assert!(is_gone, "{group} is left behind");
}

/// The access log of a Tomcat is checked in `tomcat.rs`; this is the head that it gets.
#[test]
fn the_application_is_told_the_recorded_source() {
    let origin = mirror();
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source: SocketAddr = "127.0.0.9:0".parse().expect("an address");
    socket.bind(&source.into()).expect("loopback has the address");
    socket.connect(&gateway.plain().into()).expect("the gateway accepts");
    let mut stream = TcpStream::from(socket);
    let told = String::from_utf8_lossy(&ask(&mut stream, b"END\r\n")).to_ascii_lowercase();
    assert!(told.contains("x-forwarded-for: 127.0.0.9\r\n"), "{told}");
    let (_, conn) = Kernel::of_running(&gateway).conn(port(&stream)).expect("a record");
    assert_eq!(address(&conn).to_string(), "127.0.0.9");
}
