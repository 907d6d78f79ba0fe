//! How transfers that are spliced end: in time, by a fault of either side, for want of pipes, and because a key is worn.

use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::splice_tests::{IDLE, PACE, ends, put_all, take_all};
use super::*;
use crate::limits::SPLICE_BYTES_MIN;
use crate::stream::testing::{Bench, WRITE_TIMEOUT, noise, run, settle};
use crate::timers::Activity;
use crate::transport::double::{Direction, Double, Step};

/// What is certainly in bulk.
const BULK_BYTES: usize = 1 << 20;

/// Records after which a key is to be changed, and this one cannot be.
const RECORDS_MANY: u64 = 1 << 23;

/// How a tunnel ended, the bytes spliced towards the upstream, and how often there was no pipe for them.
type Outcome = (Result<Ending, RelayError>, u64, u64);

/// A tunnel in which the client has sent bulk, and the upstream has received it.
struct Tunnel {
    bench: Bench,
    /// The ends of the gateway, towards the client and the upstream.
    down: Double,
    up: Double,
    client: Double,
    upstream: Double,
    task: tokio::task::JoinHandle<Outcome>,
}

/// Starts it; `records` says how many the kernel has opened with the key of the client, None that there is no TLS.
async fn in_bulk(records: Option<u64>) -> Tunnel {
    let bench = Bench::new();
    tunnel_on(bench, records).await
}

async fn tunnel_on(bench: Bench, records: Option<u64>) -> Tunnel {
    let (client, down, up, upstream) = ends(4 * BULK_BYTES, None);
    let (mut down_reader, mut down_writer) = match records {
        Some(records) => bench.kernel(down.clone(), records),
        None => bench.plain(down.clone()),
    };
    let (mut up_reader, mut up_writer) = bench.plain(up.clone());
    let task = tokio::task::spawn_local({
        let bench = bench.clone();
        async move {
            let gaps = Gaps::new(bench.timers.now());
            let down = (&mut down_reader, &mut down_writer);
            let ending = tunnel(down, (&mut up_reader, &mut up_writer), IDLE, &gaps).await;
            (ending, up_writer.spliced(), up_writer.without_pipe())
        }
    });
    put_all(&client, &noise(BULK_BYTES)).await;
    settle().await;
    Tunnel { bench, down, up, client, upstream, task }
}

impl Tunnel {
    async fn outcome(self) -> Outcome {
        self.task.await.expect("no panic")
    }
}

#[test]
fn a_tunnel_in_bulk_ends_when_it_is_idle_or_drained() {
    for is_drained in [false, true] {
        run(async move {
            let tunnel = in_bulk(None).await;
            assert!(!tunnel.task.is_finished());
            assert_eq!(tunnel.up.sent().len(), BULK_BYTES, "nothing is held back");
            if is_drained {
                tunnel.bench.timers.close(&[Activity::Exchange]);
            } else {
                tunnel.bench.advance(IDLE);
            }
            let (ending, spliced, _) = tunnel.outcome().await;
            let expected = if is_drained { Ending::Drained } else { Ending::Idle };
            assert_eq!(ending.expect("it ends well"), expected);
            assert!(spliced > 0);
        });
    }
}

#[test]
fn a_reset_in_bulk_names_the_side_it_came_from() {
    for (is_down, expected) in [(true, Fault::Downstream), (false, Fault::Upstream)] {
        run(async move {
            let tunnel = in_bulk(None).await;
            let reset = Step::Fail(io::ErrorKind::ConnectionReset);
            if is_down {
                tunnel.down.script(Direction::Receive, [reset]);
            } else {
                tunnel.up.script(Direction::Send, [reset]);
            }
            put_all(&tunnel.client, &noise(BULK_BYTES)).await;
            let (ending, spliced, _) = tunnel.outcome().await;
            let error = ending.expect_err("a reset");
            assert_eq!(error.fault(Fault::Downstream, Fault::Upstream), expected, "{error}");
            assert!(spliced > 0);
        });
    }
}

#[test]
fn an_upstream_that_takes_nothing_more_of_the_bulk_is_at_fault() {
    run(async {
        let tunnel = in_bulk(None).await;
        // Four times of it is what the ends hold.
        for _ in 0..5 {
            let _ = tunnel.client.try_send(&noise(BULK_BYTES));
            settle().await;
        }
        let mut waited = Duration::ZERO;
        while !tunnel.task.is_finished() {
            assert!(waited <= WRITE_TIMEOUT * 2, "pinned");
            tunnel.bench.advance(WRITE_TIMEOUT / 4);
            waited += WRITE_TIMEOUT / 4;
            settle().await;
        }
        let (ending, _, _) = tunnel.outcome().await;
        let error = ending.expect_err("it is stuck");
        assert!(matches!(error, RelayError::Stream(Side::To, StreamError::Stalled)), "{error:?}");
    });
}

#[test]
fn the_end_of_the_bulk_is_passed_on_and_answers_still_come() {
    for records in [None, Some(1)] {
        run(async move {
            let tunnel = in_bulk(records).await;
            assert_eq!(tunnel.up.sent().len(), BULK_BYTES);
            tunnel.client.shutdown(std::net::Shutdown::Write);
            settle().await;
            if records.is_some() {
                // Without close_notify it is no clean end.
                let (ending, _, _) = tunnel.outcome().await;
                let error = ending.expect_err("it was cut");
                let fault = error.fault(Fault::Downstream, Fault::Upstream);
                assert_eq!(fault, Fault::Downstream, "{error}");
                return;
            }
            assert!(tunnel.up.is_shut(Direction::Send) && !tunnel.task.is_finished());
            put_all(&tunnel.upstream, b"thanks").await;
            tunnel.upstream.shutdown(std::net::Shutdown::Write);
            let client = tunnel.client.clone();
            let (ending, spliced, _) = tunnel.outcome().await;
            assert_eq!(ending.expect("it ends well"), Ending::Closed);
            assert!(spliced > 0);
            assert_eq!(take_all(&client).await, b"thanks");
        });
    }
}

#[test]
fn a_tunnel_without_a_pipe_copies_its_bulk() {
    run(async {
        let bench = Bench::new();
        let taken: Vec<_> = std::iter::from_fn(|| bench.buffers.pipes().take()).collect();
        let tunnel = tunnel_on(bench, None).await;
        assert!(tunnel.up.sent() == noise(BULK_BYTES), "other bytes");
        // It does not ask for one again and again.
        put_all(&tunnel.client, &noise(BULK_BYTES)).await;
        settle().await;
        tunnel.bench.advance(IDLE);
        let up = tunnel.up.clone();
        let (ending, spliced, without_pipe) = tunnel.outcome().await;
        assert_eq!(ending.expect("it ends well"), Ending::Idle);
        assert_eq!((up.sent().len(), spliced, without_pipe), (2 * BULK_BYTES, 0, 1));
        drop(taken);
    });
}

#[test]
fn a_tunnel_whose_key_is_worn_ends_in_good_order() {
    run(async {
        let tunnel = in_bulk(Some(RECORDS_MANY)).await;
        // The kernel is asked how many records there were once in a mebibyte, and who waits for bytes wears no key.
        for piece in [&noise(BULK_BYTES)[..], b"x"] {
            let _ = tunnel.client.try_send(piece);
            settle().await;
        }
        let up = tunnel.up.clone();
        let (ending, _, _) = tunnel.outcome().await;
        assert_eq!(ending.expect("it ends well"), Ending::KeyWorn);
        let sent = up.sent();
        assert!(sent.starts_with(&noise(BULK_BYTES)), "what came before is passed on");
    });
}

/// Polls once.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_spliced_body_whose_source_falls_silent_expires() {
    run(async {
        let bench = Bench::new();
        let (source, near, far, _sink) = ends(BULK_BYTES, None);
        let (mut from, _unused_writer) = bench.plain(near);
        let (_unused_reader, mut to) = bench.plain(far.clone());
        let body = Source::Length(2 * SPLICE_BYTES_MIN);
        let mut relay = Box::pin(pump(&mut from, &mut to, body, Sink::Raw, PACE, None));
        put_all(&source, &noise(1000)).await;
        assert!(poll(&mut relay).is_pending());
        put_all(&source, &noise(1000)).await;
        bench.advance(IDLE - Duration::from_secs(1));
        assert!(poll(&mut relay).is_pending());
        bench.advance(IDLE);
        let error = relay.await.expect_err("it is overdue");
        assert!(matches!(error, RelayError::Stream(Side::From, StreamError::Expired)), "{error:?}");
        assert_eq!((to.spliced(), far.sent().len()), (2000, 2000), "what came is sent");
    });
}

#[test]
fn a_spliced_body_is_cut_by_its_source_or_by_a_drain_and_the_two_are_told_apart() {
    for is_drained in [false, true] {
        run(async move {
            let bench = Bench::new();
            // The sink takes a little at a time, so that the end finds the relay on its other foot.
            let (source, near, _, _) = ends(BULK_BYTES, None);
            let (_, _, far, sink) = ends(10_000, None);
            let (mut from, _unused_writer) = bench.plain(near);
            let (_unused_reader, mut to) = bench.plain(far);
            let len = 2 * SPLICE_BYTES_MIN;
            from.watch().set_activity(Activity::Idle);
            let body = Source::Length(len);
            let mut relay = Box::pin(pump(&mut from, &mut to, body, Sink::Raw, PACE, None));
            put_all(&source, &noise(100_000)).await;
            assert!(poll(&mut relay).is_pending());
            if is_drained {
                bench.timers.close(&[Activity::Idle]);
            } else {
                source.shutdown(std::net::Shutdown::Write);
            }
            let receiver = tokio::task::spawn_local(async move { take_all(&sink).await });
            let error = relay.await.expect_err("it is cut");
            match error {
                RelayError::Stream(Side::From, StreamError::Drained) => assert!(is_drained),
                RelayError::Body(BodyError::Truncated) => assert!(!is_drained),
                error => panic!("{error:?}"),
            }
            assert!(to.spliced() > 0);
            drop((to, _unused_reader));
            assert!(receiver.await.expect("no panic") == noise(100_000), "other bytes");
        });
    }
}

#[test]
fn a_body_whose_sink_fails_or_stalls_while_it_is_spliced_names_the_sink() {
    for is_reset in [false, true] {
        run(async move {
            let bench = Bench::new();
            let (source, near, far, _sink) = ends(50_000, None);
            let (mut from, _unused_writer) = bench.plain(near);
            let (_unused_reader, mut to) = bench.plain(far.clone());
            let body = Source::Length(2 * SPLICE_BYTES_MIN);
            let mut relay = Box::pin(pump(&mut from, &mut to, body, Sink::Raw, PACE, None));
            put_all(&source, &noise(50_000)).await;
            assert!(poll(&mut relay).is_pending());
            put_all(&source, &noise(50_000)).await;
            if is_reset {
                far.script(Direction::Send, [Step::Fail(io::ErrorKind::ConnectionReset)]);
            } else {
                assert!(poll(&mut relay).is_pending());
                bench.advance(WRITE_TIMEOUT);
            }
            match relay.await.expect_err("it broke off") {
                RelayError::Stream(Side::To, StreamError::Stalled) => assert!(!is_reset),
                RelayError::Stream(Side::To, StreamError::Io(_)) => assert!(is_reset),
                error => panic!("{error:?}"),
            }
        });
    }
}

#[test]
fn a_source_that_resets_while_it_is_spliced_is_named() {
    run(async {
        let bench = Bench::new();
        let (source, near, far, _sink) = ends(BULK_BYTES, None);
        let (mut from, _unused_writer) = bench.plain(near.clone());
        let (_unused_reader, mut to) = bench.plain(far);
        let body = Source::Length(2 * SPLICE_BYTES_MIN);
        let mut relay = Box::pin(pump(&mut from, &mut to, body, Sink::Raw, PACE, None));
        put_all(&source, &noise(1000)).await;
        assert!(poll(&mut relay).is_pending());
        near.script(Direction::Receive, [Step::Fail(io::ErrorKind::ConnectionReset)]);
        let error = relay.await.expect_err("a reset");
        assert!(matches!(error, RelayError::Stream(Side::From, StreamError::Io(_))), "{error:?}");
    });
}
