//! Whole connections over scripted sockets: a client and an upstream in memory, and calls that fall short or fail.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::buffers::Class;
use crate::config;
use crate::generation::Shared;
use crate::message::framing::Framing;
use crate::pool::Target;
use crate::relay::Source;
use crate::transport::double::{self, Direction, Double, Mood, Step};

const CONFIG: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n\
    [[route]]\nupstream = \"http://127.0.0.1:1\"\n";

/// Where every connection to an upstream is answered by [`origin`].
struct Memory {
    capacity: usize,
    mood: Cell<Mood>,
    /// Steps for the gateway's end of the first connection.
    script: RefCell<Vec<(Direction, Vec<Step>)>>,
    connections: Cell<usize>,
}

impl Network for Memory {
    type Io = Double;
    type Connecting = Ready<io::Result<Double>>;

    fn connect(&self, _: &Target) -> io::Result<(Double, Self::Connecting)> {
        let (near, far) = double::pair(self.capacity);
        near.set_mood(self.mood.get());
        far.set_mood(self.mood.get());
        for (direction, steps) in self.script.take() {
            near.script(direction, steps);
        }
        self.connections.set(self.connections.get() + 1);
        tokio::task::spawn_local(origin(Peer::new(far)));
        Ok((near.clone(), ready(Ok(near))))
    }
}

/// One end that reads and writes messages.
struct Peer {
    io: Double,
    received: Vec<u8>,
}

impl Peer {
    fn new(io: Double) -> Self {
        Self { io, received: Vec::new() }
    }

    async fn receive(&mut self) -> io::Result<()> {
        loop {
            let (result, buffer) = self.io.recv(Buffers::default().take(Class::Record)).await;
            match result {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    self.received.extend_from_slice(buffer.filled());
                    return Ok(());
                }
                Err(error) if crate::stream::is_retry(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(1000) {
            let mut buffer = Buffers::default().take(Class::Small);
            buffer.append(piece);
            while !buffer.is_empty() {
                let (result, rest) = self.io.send(buffer).await;
                buffer = rest;
                match result {
                    Ok(_) => {}
                    Err(error) if crate::stream::is_retry(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// The head of a message, in lower case.
    async fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.received.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head).to_ascii_lowercase());
            }
            self.receive().await?;
        }
    }

    /// The body that `head` announces.
    async fn body(&mut self, head: &str) -> io::Result<Vec<u8>> {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let framing = match length {
            Some(length) => Framing::Length(length.parse().map_err(io::Error::other)?),
            None if head.contains("transfer-encoding: chunked") => Framing::Chunked,
            None => Framing::None,
        };
        let mut source = Source::new(framing);
        let mut body = Vec::new();
        loop {
            let step = source.take(&mut self.received).map_err(io::Error::other)?;
            body.extend_from_slice(&self.received[..step.data_len]);
            self.received.drain(..step.consumed);
            if step.ended {
                return Ok(body);
            }
            self.receive().await?;
        }
    }
}

/// Answers each request with its own body, by length and in chunks in turn.
async fn origin(mut peer: Peer) -> io::Result<()> {
    for turn in 0.. {
        let head = peer.head().await?;
        let body = peer.body(&head).await?;
        let mut response = b"HTTP/1.1 200 OK\r\n".to_vec();
        if turn % 2 == 0 {
            response.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
            response.extend(&body);
        } else {
            response.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(700) {
                response.extend(format!("{:x}\r\n", piece.len()).bytes());
                response.extend(piece);
                response.extend(b"\r\n");
            }
            response.extend(b"0\r\n\r\n");
        }
        peer.send(&response).await?;
    }
    Ok(())
}

/// A gateway's worker without its thread.
struct World {
    core: Rc<Core<Memory>>,
    network: Rc<Memory>,
}

fn world(capacity: usize, mood: Mood) -> World {
    let network = Rc::new(Memory {
        capacity,
        mood: Cell::new(mood),
        script: RefCell::default(),
        connections: Cell::new(0),
    });
    let shared = Shared::new(config::tests::alone(CONFIG)).expect("no log is opened");
    let (timers, buffers) = (Timers::new(), Rc::new(Buffers::default()));
    let counters = WorkerCounters::new(0);
    let generation = Generation::new(
        shared,
        Rc::clone(&network),
        Rc::clone(&timers),
        Rc::clone(&buffers),
        &counters,
    );
    let core = Rc::new(Core {
        timers,
        buffers,
        kernel_tls: Arc::new(Support::none("there is no kernel")),
        meter: Meter::disabled("there is no kernel"),
        counters,
        generation: RefCell::new(generation),
        is_draining: Cell::new(false),
        spare: Spare::default(),
    });
    World { core, network }
}

impl World {
    /// Lets a second pass every millisecond, until dropped.
    fn fast_clock(&self) -> tokio::task::JoinSet<()> {
        let timers = Rc::clone(&self.core.timers);
        let mut clock = tokio::task::JoinSet::new();
        clock.spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                timers.sweep_at(timers.now().after(Duration::from_secs(1)));
            }
        });
        clock
    }

    /// A client whose connection is served; the gateway's end follows `script`.
    fn client(&self, script: &[(Direction, Vec<Step>)]) -> Peer {
        let (near, far) = double::pair(self.network.capacity);
        near.set_mood(self.network.mood.get());
        far.set_mood(self.network.mood.get());
        for (direction, steps) in script {
            near.script(*direction, steps.iter().copied());
        }
        let address = ClientAddr::new(SocketAddr::from(([192, 0, 2, 1], 5000)));
        let (offload, splice) = (Offload::Never, Splice::Auto);
        let door = Door { service: Service::Http, port: 80, offload, splice };
        tokio::task::spawn_local(serve(Rc::clone(&self.core), near, address, door));
        Peer::new(far)
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, future).await.expect("it comes to an end")
    })
}

fn request(body: &[u8], is_chunked: bool) -> Vec<u8> {
    let mut request = b"POST /echo HTTP/1.1\r\nHost: h\r\n".to_vec();
    if is_chunked {
        request.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        for piece in body.chunks(900) {
            request.extend(format!("{:x}\r\n", piece.len()).bytes());
            request.extend(piece);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
    } else {
        request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        request.extend(body);
    }
    request
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn exchanges_survive_short_counts_and_retries_at_every_call(
        sizes in proptest::collection::vec(0_usize..4000, 1..8),
        capacity in prop_oneof![8_usize..64, 1000_usize..50_000],
        seed in any::<u64>(),
        is_pipelined in any::<bool>(),
    ) {
        run(async {
            let world = world(capacity, Mood::Rough(seed));
            let mut client = world.client(&[]);
            let bodies: Vec<Vec<u8>> = sizes.iter().map(|&size| pattern(size)).collect();
            let requests: Vec<Vec<u8>> =
                bodies.iter().enumerate().map(|(n, body)| request(body, n % 3 == 1)).collect();
            if is_pipelined {
                let sender = Peer::new(client.io.clone());
                let all = requests.concat();
                tokio::task::spawn_local(async move { sender.send(&all).await });
            }
            for (request, body) in requests.iter().zip(&bodies) {
                if !is_pipelined {
                    client.send(request).await.expect("the gateway reads");
                }
                let head = client.head().await.expect("an answer");
                assert!(head.starts_with("http/1.1 200"), "{head}");
                assert_eq!(&client.body(&head).await.expect("a body"), body);
            }
            assert_eq!(world.network.connections.get(), 1);
        });
    }
}

/// What a client may see of two requests when a call fails: answers that are right, refusals, or a cut.
async fn survives(client: &mut Peer, body: &[u8]) -> usize {
    let mut answers = 0;
    for _ in 0..2 {
        if client.send(&request(body, false)).await.is_err() {
            break;
        }
        let Ok(head) = client.head().await else { break };
        if head.starts_with("http/1.1 502") {
            break;
        }
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let Ok(answer) = client.body(&head).await else { break };
        assert_eq!(answer, body, "a complete answer is a right one");
        answers += 1;
    }
    answers
}

#[test]
fn a_failure_at_any_call_is_a_refusal_or_a_cut_and_never_a_wrong_answer() {
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    let body = pattern(20_000);
    for direction in [Direction::Receive, Direction::Send] {
        for calls in 0..12 {
            for kind in kinds {
                // Short counts first, so that the failure comes within heads and bodies.
                let mut steps = vec![Step::AtMost(700); calls];
                steps.push(Step::Fail(kind));
                run(async {
                    let world = world(1 << 20, Mood::Smooth);
                    let script = [(direction, steps.clone())];
                    let answers = survives(&mut world.client(&script), &body).await;
                    assert!(answers <= 1, "the client's connection did fail");
                });
                run(async {
                    let world = world(1 << 20, Mood::Smooth);
                    world.network.script.borrow_mut().push((direction, steps.clone()));
                    // An answer that came before the failure is waited for a moment.
                    let _clock = world.fast_clock();
                    survives(&mut world.client(&[]), &body).await;
                    // Whatever became of that connection, the next client is served.
                    assert_eq!(survives(&mut world.client(&[]), &body).await, 2);
                });
            }
        }
    }
}

#[test]
fn a_connection_that_died_idle_costs_no_request() {
    run(async {
        let world = world(1 << 16, Mood::Smooth);
        let mut client = world.client(&[]);
        let get = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for expected in 1..4 {
            client.send(get).await.expect("the gateway reads");
            let head = client.head().await.expect("an answer");
            assert!(head.starts_with("http/1.1 200"), "{head}");
            client.body(&head).await.expect("a body");
            assert_eq!(world.network.connections.get(), expected);
            // As if the upstream had closed what is idle.
            world.core.timers.close(&[crate::timers::Activity::Upstream]);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn requests_are_counted_by_route_without_an_access_log() {
    run(async {
        let world = world(4096, Mood::Smooth);
        let mut client = world.client(&[]);
        for _ in 0..2 {
            client.send(&request(b"x", false)).await.expect("the gateway reads");
            let head = client.head().await.expect("an answer");
            client.body(&head).await.expect("a body");
        }
        // That one is over is certain once the next is answered.
        let counters = &world.core.counters;
        assert!(counters.route("*/").requests[2].get() >= 1);
        assert_eq!(counters.unrouted.requests[2].get(), 0);
    });
}

#[test]
fn draining_makes_each_response_the_last_one() {
    run(async {
        let world = world(1 << 16, Mood::Smooth);
        let mut client = world.client(&[]);
        client.send(b"GET / HTTP/1.1\r\n").await.expect("the gateway reads");
        // The request has begun, so it is answered.
        while !client.io.is_drained() {
            tokio::task::yield_now().await;
        }
        world.core.is_draining.set(true);
        client.send(b"Host: h\r\n\r\n").await.expect("the gateway reads");
        let head = client.head().await.expect("an answer");
        assert!(head.contains("connection: close"), "{head}");
        client.body(&head).await.expect("a body");
        assert!(client.receive().await.is_err(), "the gateway closes");
    });
}
