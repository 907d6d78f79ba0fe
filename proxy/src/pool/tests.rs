use std::net::SocketAddr;
use std::time::Duration;

use super::testing::{Attempt, Scripted};
use super::*;
use crate::stream::testing::{Bench, run, settle};
use crate::transport::double::Double;

const EJECT_AFTER: u32 = 2;
const EJECT_TIME: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);

struct World {
    bench: Bench,
    network: Rc<Scripted>,
    pool: Pool<Scripted>,
}

fn world(endpoints: u16) -> World {
    let (bench, network) = (Bench::new(), Scripted::new());
    let endpoints: Vec<_> = (1..=endpoints)
        .map(|port| config::EndpointAddr::Socket(SocketAddr::from(([127, 0, 0, 1], port))))
        .collect();
    let upstream = config::Upstream {
        name: "u".into(),
        endpoints: endpoints.clone(),
        connect_timeout: CONNECT,
        response_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        keep_alive_timeout: KEEP_ALIVE,
        keep_alive_max: 2,
        eject_after: EJECT_AFTER,
        eject_time: EJECT_TIME,
        resolve_interval: Duration::from_secs(30),
    };
    let endpoints = endpoints.into_iter().map(|addr| Arc::new(Endpoint::new(addr))).collect();
    let pool = Pool::new(
        Rc::clone(&network),
        Rc::clone(&bench.timers),
        Rc::clone(&bench.buffers),
        &[upstream],
        &[endpoints],
        |_, _| Arc::default(),
    );
    World { bench, network, pool }
}

impl World {
    async fn lease(&self) -> Lease<Double> {
        self.pool.acquire(0, false, None).await.expect("a connection")
    }

    fn check_in(&self, lease: Lease<Double>) {
        lease.check_in(self.bench.timers.now());
    }

    fn tried(&self) -> usize {
        self.network.tried.borrow().len()
    }

    /// Makes the endpoint at `port` fail until it is ejected.
    async fn eject(&self, port: u16) {
        for _ in 0..20 {
            let lease = self.lease().await;
            if lease.endpoint().to_string().ends_with(&format!(":{port}")) {
                self.pool.on_failure(0, &lease);
            } else {
                lease.on_answer();
            }
        }
    }

    /// Ports of the next `count` leases, all held at the same time.
    async fn ports(&self, count: usize) -> Vec<u16> {
        let mut leases = Vec::new();
        for _ in 0..count {
            leases.push(self.lease().await);
        }
        let port = |lease: &Lease<Double>| {
            let endpoint = lease.endpoint().to_string();
            endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
        };
        leases.iter().map(port).collect()
    }
}

#[test]
fn a_connection_is_used_again_and_the_last_one_first() {
    run(async {
        let world = world(1);
        let (first, second) = (world.lease().await, world.lease().await);
        assert!(!first.is_reused && world.tried() == 2);
        let last = second.connection.reader.share_watch();
        world.check_in(first);
        world.check_in(second);
        let again = world.lease().await;
        assert!(again.is_reused && world.tried() == 2);
        assert!(Rc::ptr_eq(&again.connection.reader.share_watch(), &last));
        // A replay must not meet another stale one.
        let fresh = world.pool.acquire(0, true, None).await.expect("a connection");
        assert!(!fresh.is_reused && world.tried() == 3);
    });
}

#[test]
fn a_client_comes_back_to_its_own_connection() {
    run(async {
        let world = world(1);
        let gauges = [Gauge::idle(7), Gauge::idle(8), Gauge::idle(9)];
        let acquire = |client: usize| world.pool.acquire(0, false, Some(&gauges[client]));
        let (first, second) = (acquire(0).await.expect("one"), acquire(1).await.expect("one"));
        let [own, newest] = [&first, &second].map(|lease| lease.connection.reader.share_watch());
        world.check_in(first);
        world.check_in(second);
        let again = acquire(0).await.expect("one");
        assert!(again.is_reused && Rc::ptr_eq(&again.connection.reader.share_watch(), &own));
        world.check_in(again);
        // Who has none gets the one that was used last, and whose it was another one.
        let stranger = acquire(2).await.expect("one");
        assert!(Rc::ptr_eq(&stranger.connection.reader.share_watch(), &own));
        let left = acquire(0).await.expect("one");
        assert!(left.is_reused && Rc::ptr_eq(&left.connection.reader.share_watch(), &newest));
    });
}

#[test]
fn no_more_than_the_bound_is_kept_idle() {
    run(async {
        let world = world(1);
        let leases = [world.lease().await, world.lease().await, world.lease().await];
        for lease in leases {
            world.check_in(lease);
        }
        assert_eq!(world.bench.timers.len(), 2);
    });
}

#[test]
fn a_connection_that_died_idle_or_spoke_unasked_is_not_used_again() {
    for speaks in [true, false] {
        run(async {
            let world = world(1);
            let lease = world.lease().await;
            let (_near, far) = world.network.take();
            world.check_in(lease);
            if speaks {
                far.try_send(b"HTTP/1.1 408 \r\n\r\n").expect("there is room");
            } else {
                far.shutdown(std::net::Shutdown::Both);
            }
            assert!(!world.lease().await.is_reused);
        });
    }
}

#[test]
fn bytes_behind_a_response_spoil_a_connection() {
    run(async {
        let world = world(1);
        let lease = world.lease().await;
        let (_near, far) = world.network.take();
        far.try_send(b"HTTP/1.1 200 OK\r\n\r\n").expect("there is room");
        world.check_in(lease);
        assert!(world.bench.timers.is_empty(), "it was closed");
    });
}

#[test]
fn idle_connections_end_with_their_time() {
    run(async {
        let world = world(1);
        let lease = world.lease().await;
        world.check_in(lease);
        world.bench.advance(KEEP_ALIVE / 2);
        world.pool.reap();
        assert_eq!(world.bench.timers.len(), 1);
        world.bench.advance(KEEP_ALIVE / 2);
        // Before the next reaping it is already too old to be used.
        assert!(!world.lease().await.is_reused);
        let lease = world.lease().await;
        world.check_in(lease);
        world.bench.advance(KEEP_ALIVE);
        world.pool.reap();
        assert!(world.bench.timers.is_empty());
    });
}

#[test]
fn requests_go_to_the_least_busy_endpoint() {
    run(async {
        let world = world(3);
        let mut ports = world.ports(6).await;
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2, 3, 3]);
    });
}

#[test]
fn a_failing_endpoint_is_left_out_and_probed_by_one_request() {
    run(async {
        let world = world(2);
        world.eject(1).await;
        assert_eq!(world.ports(4).await, [2; 4]);
        world.bench.advance(EJECT_TIME);
        let mut ports = world.ports(4).await;
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 2, 2], "one probe");
    });
}

#[test]
fn a_probe_that_answers_brings_the_endpoint_back() {
    run(async {
        let world = world(2);
        world.eject(1).await;
        world.bench.advance(EJECT_TIME);
        let leases = [world.lease().await, world.lease().await];
        for lease in leases {
            lease.on_answer();
        }
        let mut ports = world.ports(4).await;
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2]);
    });
}

#[test]
fn a_probe_whose_client_left_leaves_the_endpoint_to_the_next_one() {
    run(async {
        let world = world(2);
        world.eject(1).await;
        world.bench.advance(EJECT_TIME);
        for _ in 0..3 {
            // Neither answered nor failed: dropped.
            assert!(world.ports(2).await.contains(&1), "the endpoint is never asked again");
        }
    });
}

#[test]
fn a_refused_connection_is_tried_elsewhere() {
    run(async {
        let world = world(2);
        world.network.fail(libc::ECONNREFUSED);
        let lease = world.lease().await;
        assert_eq!(world.tried(), 2);
        let tried = world.network.tried.borrow();
        assert_ne!(tried[0], tried[1]);
        assert_eq!(lease.endpoint().to_string(), tried[1].to_string());
    });
}

#[test]
fn attempts_are_bounded_and_the_last_failure_is_named() {
    run(async {
        let world = world(5);
        for _ in 0..5 {
            world.network.fail(libc::ECONNREFUSED);
        }
        let error = world.pool.acquire(0, false, None).await.err().expect("nobody listens");
        assert_eq!(world.tried(), CONNECT_ATTEMPTS_MAX);
        assert_eq!(error.cause, ConnectCause::Endpoint);
        assert_eq!(error.endpoint, world.network.tried.borrow()[2].to_string());
        assert!(world.bench.timers.is_empty(), "nothing is left of the attempts");
    });
}

#[test]
fn what_this_machine_lacks_is_not_held_against_an_endpoint() {
    run(async {
        let world = world(2);
        for _ in 0..2 * EJECT_AFTER {
            world.network.fail(libc::EMFILE);
            world.network.fail(libc::EADDRNOTAVAIL);
            let error = world.pool.acquire(0, false, None).await.err().expect("no descriptor");
            assert_eq!(error.cause, ConnectCause::Local, "{error}");
        }
        let healths = world.pool.groups[0].places.iter().map(|place| place.health.get());
        assert!(healths.into_iter().all(|health| health == Health::default()));
    });
}

#[test]
fn connecting_has_its_time() {
    run(async {
        let world = Rc::new(world(1));
        world.network.attempts.borrow_mut().push_back(Attempt::Hang);
        let connecting = Rc::clone(&world);
        let task =
            tokio::task::spawn_local(
                async move { connecting.pool.acquire(0, false, None).await.err() },
            );
        settle().await;
        world.bench.advance(CONNECT / 2);
        settle().await;
        assert!(!task.is_finished());
        world.bench.advance(CONNECT / 2);
        let error = task.await.expect("no panic").expect("it took too long");
        assert_eq!(error.cause, ConnectCause::Timeout, "{error}");
        assert!(world.bench.timers.is_empty());
    });
}
