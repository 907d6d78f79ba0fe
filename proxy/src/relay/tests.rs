use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::handshake::testing::received_by;
use crate::limits::BODY_RATE_GRACE;
use crate::message::chunked::ChunkError;
use crate::message::framing::Framing;
use crate::stream::testing::{Bench, WRITE_TIMEOUT, noise, read_all, run, settle, write_all};
use crate::stream::{Reader, Writer};
use crate::timers::Tick;
use crate::transport::double::{Direction, Double, Mood, Step, pair};

const IDLE: Duration = Duration::from_secs(60);
const PACE: Pace = Pace::Idle(IDLE);

/// A relay from `source` to `sink`, with the far ends in the hands of the test.
struct Line {
    bench: Bench,
    source: Double,
    sink: Double,
    from: Reader<Double>,
    to: Writer<Double>,
    _unused: (Writer<Double>, Reader<Double>),
}

fn line(capacity: usize) -> Line {
    let bench = Bench::new();
    let ((source, near), (far, sink)) = (pair(capacity), pair(capacity));
    let (from, unused_writer) = bench.plain(near);
    let (unused_reader, to) = bench.plain(far);
    Line { bench, source, sink, from, to, _unused: (unused_writer, unused_reader) }
}

/// Sends without waiting: the capacity is large enough.
fn put(end: &Double, bytes: &[u8]) {
    assert_eq!(end.try_send(bytes).expect("there is room"), bytes.len());
}

/// What has come so far.
fn got(end: &Double) -> Vec<u8> {
    let mut buffer = crate::transport::Buffer::with_capacity(1 << 20);
    match end.try_recv(&mut buffer, usize::MAX) {
        Ok(_) => buffer.filled().to_vec(),
        Err(_) => Vec::new(),
    }
}

/// What a client makes of the wire.
fn opened_by(client: &mut rustls::ClientConnection, wire: &[u8]) -> Vec<u8> {
    received_by(client, wire).expect("authentic")
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// `(source framing, wire, data)`; the wire is followed by bytes of the next message where it can be.
fn bodies() -> Vec<(Framing, &'static [u8], &'static [u8])> {
    vec![
        (Framing::None, b"", b""),
        (Framing::Length(10), b"0123456789", b"0123456789"),
        (Framing::Chunked, b"4;x=y\r\n0123\r\n6\r\n456789\r\n0\r\nT: t\r\n\r\n", b"0123456789"),
        (Framing::UntilClose, b"0123456789", b"0123456789"),
    ]
}

/// The data behind a sink's framing.
pub(super) fn unframed(sink: Sink, mut wire: Vec<u8>) -> Vec<u8> {
    if sink == Sink::Raw {
        return wire;
    }
    let mut source = Source::new(Framing::Chunked);
    let step = source.take(&mut wire).expect("well-formed chunks");
    assert!(step.ended && step.consumed == wire.len());
    wire[..step.data_len].to_vec()
}

#[test]
fn every_framing_goes_into_every_other_split_at_every_byte() {
    for (framing, wire, data) in bodies() {
        for sink in [Sink::Raw, Sink::Chunked] {
            for at in 0..=wire.len() {
                run(async {
                    let Line { source, sink: out, mut from, mut to, bench: _b, _unused } =
                        line(4096);
                    put_some(&source, &wire[..at]);
                    let body = Source::new(framing);
                    let relay = tokio::task::spawn_local(async move {
                        let moved = pump(&mut from, &mut to, body, sink, PACE, None).await;
                        (moved, from, to)
                    });
                    settle().await;
                    put_some(&source, &wire[at..]);
                    if framing == Framing::UntilClose {
                        source.shutdown(std::net::Shutdown::Write);
                    } else {
                        put(&source, b"NEXT");
                    }
                    let (moved, mut from, _to) = relay.await.expect("no panic");
                    assert_eq!(moved.expect("it ends well"), data.len() as u64);
                    assert_eq!(unframed(sink, got(&out)), data, "{framing:?} {sink:?} at {at}");
                    if framing != Framing::UntilClose {
                        while from.filled().len() < 4 {
                            from.fill().await.expect("the next message is there");
                        }
                        assert_eq!(from.filled(), b"NEXT", "{framing:?} {sink:?} at {at}");
                    }
                });
            }
        }
    }
}

fn put_some(end: &Double, bytes: &[u8]) {
    if !bytes.is_empty() {
        put(end, bytes);
    }
}

#[test]
fn a_chunk_of_one_byte_leaves_before_the_next_is_waited_for() {
    for suite in crate::handshake::testing::suites() {
        run(async {
            let bench = Bench::new();
            let ((source, near), (far, sink)) = (pair(4096), pair(4096));
            let (mut from, _w) = bench.plain(near);
            let (_r, mut to, mut client) = bench.tls(far, Some(suite.suite()), b"");
            let relay = tokio::task::spawn_local(async move {
                let body = Source::new(Framing::Chunked);
                pump(&mut from, &mut to, body, Sink::Chunked, PACE, None).await
            });
            for byte in b"keys" {
                put(&source, &[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
                settle().await;
                let plain = opened_by(&mut client, &got(&sink));
                assert_eq!(plain, [b'1', b'\r', b'\n', *byte, b'\r', b'\n'], "{suite:?}");
            }
            put(&source, b"0\r\n\r\n");
            assert_eq!(relay.await.expect("no panic").expect("it ends well"), 4);
            assert_eq!(opened_by(&mut client, &got(&sink)), b"0\r\n\r\n");
        });
    }
}

#[test]
fn a_small_part_is_acknowledged_when_it_has_been_passed_on() {
    run(async {
        let bench = Bench::new();
        let ((source, near), (far, sink)) = (pair(1 << 16), pair(1 << 16));
        let (mut from, _w) = bench.plain(near.clone());
        let (_r, mut to) = bench.plain(far.clone());
        let relay = tokio::task::spawn_local(async move {
            let body = Source::new(Framing::Chunked);
            pump(&mut from, &mut to, body, Sink::Chunked, PACE, None).await
        });
        settle().await;
        let before = near.acknowledgements();
        far.script(Direction::Send, [Step::Hold]);
        put(&source, b"2\r\nab\r\n");
        settle().await;
        assert_eq!(near.acknowledgements(), before, "it has not left");
        far.release(Direction::Send);
        settle().await;
        assert_eq!(got(&sink), b"2\r\nab\r\n");
        assert_eq!(near.acknowledgements(), before + 1);
        let large = [&b"2000\r\n"[..], &[b'x'; 0x2000], b"\r\n"].concat();
        put(&source, &large);
        settle().await;
        assert_eq!(got(&sink).len(), large.len());
        assert_eq!(near.acknowledgements(), before + 1, "the kernel's business");
        put(&source, b"0\r\n\r\n");
        assert_eq!(relay.await.expect("no panic").expect("it ends well"), 2 + 0x2000);
        assert_eq!(far.acknowledgements(), 0, "nothing came from there");
    });
}

#[test]
fn a_staged_head_leaves_in_one_send_with_data_that_is_there_and_alone_without() {
    run(async {
        let mut line = line(4096);
        put(&line.source, b"abc");
        line.from.fill().await.expect("data");
        line.to.push(b"head ");
        let mut relay =
            pin!(pump(&mut line.from, &mut line.to, Source::Length(4), Sink::Raw, PACE, None));
        assert!(poll(&mut relay).is_pending());
        assert_eq!(got(&line.sink), b"head abc");
        put(&line.source, b"d");
        assert_eq!(relay.await.expect("it ends well"), 4);
    });
    run(async {
        let mut line = line(4096);
        line.to.push(b"head ");
        let body = Source::Length(1);
        let mut relay = pin!(pump(&mut line.from, &mut line.to, body, Sink::Raw, PACE, None));
        assert!(poll(&mut relay).is_pending());
        assert_eq!(got(&line.sink), b"head ");
    });
}

#[test]
fn a_body_that_ends_too_early_or_is_malformed_is_the_senders_fault() {
    let cases: [(Framing, &[u8], BodyError); 4] = [
        (Framing::Length(5), b"1234", BodyError::Truncated),
        (Framing::Chunked, b"4\r\n12", BodyError::Truncated),
        (Framing::Chunked, b"4\r\n1234\r\n", BodyError::Truncated),
        (Framing::Chunked, b"zz\r\n", BodyError::Chunk(ChunkError::Size)),
    ];
    for (framing, wire, expected) in cases {
        run(async {
            let mut line = line(4096);
            put(&line.source, wire);
            line.source.shutdown(std::net::Shutdown::Write);
            let body = Source::new(framing);
            let error = pump(&mut line.from, &mut line.to, body, Sink::Chunked, PACE, None).await;
            let error = error.expect_err("it is cut off");
            assert!(matches!(&error, RelayError::Body(found) if *found == expected), "{error:?}");
            assert_eq!(error.fault(Fault::Upstream, Fault::Downstream), Fault::Upstream);
            assert!(!got(&line.sink).ends_with(b"0\r\n\r\n"), "no end is made up");
        });
    }
}

#[test]
fn until_close_under_tls_needs_a_goodbye() {
    run(async {
        let bench = Bench::new();
        let ((source, near), (far, sink)) = (pair(4096), pair(4096));
        let (mut from, _w, mut client) = bench.tls(near, None, b"");
        let (_r, mut to) = bench.plain(far);
        put(&source, &crate::handshake::testing::sealed_by(&mut client, b"part"));
        source.shutdown(std::net::Shutdown::Write);
        let moved = pump(&mut from, &mut to, Source::UntilClose, Sink::Chunked, PACE, None).await;
        assert!(matches!(moved, Err(RelayError::Body(BodyError::Truncated))), "{moved:?}");
        assert_eq!(got(&sink), b"4\r\npart\r\n");
    });
}

#[test]
fn the_bound_of_a_body_is_inclusive_and_nothing_beyond_it_is_sent() {
    for (max, fits) in [(10, true), (9, false)] {
        run(async {
            let mut line = line(4096);
            put(&line.source, b"5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
            let body = Source::new(Framing::Chunked);
            let moved = pump(&mut line.from, &mut line.to, body, Sink::Raw, PACE, Some(max)).await;
            match moved {
                Ok(count) => assert!(fits && count == 10),
                Err(RelayError::Body(BodyError::TooLarge(bound))) => {
                    assert!(!fits && bound == max);
                    assert!(got(&line.sink).len() <= 9);
                }
                Err(error) => panic!("{error}"),
            }
        });
    }
}

#[test]
fn a_silent_source_expires_and_a_slow_one_does_not() {
    run(async {
        let mut line = line(4096);
        let bench = line.bench.clone();
        let body = Source::Length(100);
        let mut relay = pin!(pump(&mut line.from, &mut line.to, body, Sink::Raw, PACE, None));
        for _ in 0..5 {
            assert!(poll(&mut relay).is_pending());
            bench.advance(IDLE / 2);
            put(&line.source, b"x");
        }
        assert!(poll(&mut relay).is_pending());
        bench.advance(IDLE);
        let error = relay.await.expect_err("it is overdue");
        assert!(matches!(error, RelayError::Stream(Side::From, StreamError::Expired)));
    });
}

#[test]
fn a_receiver_that_takes_nothing_is_the_one_at_fault() {
    run(async {
        let mut line = line(8);
        let bench = line.bench.clone();
        put(&line.source, b"12345678");
        let body = Source::new(Framing::Length(100));
        let mut relay = pin!(pump(&mut line.from, &mut line.to, body, Sink::Chunked, PACE, None));
        assert!(poll(&mut relay).is_pending());
        bench.advance(WRITE_TIMEOUT);
        let error = relay.await.expect_err("it is overdue");
        assert!(matches!(error, RelayError::Stream(Side::To, StreamError::Stalled)), "{error:?}");
        assert_eq!(error.fault(Fault::Upstream, Fault::Downstream), Fault::Downstream);
    });
}

#[test]
fn a_slow_receiver_is_not_held_against_the_source() {
    const LEN: usize = 200_000;
    for is_spliced in [false, true] {
        run(async move {
            let bench = Bench::new();
            let ((source, near), (far, sink)) = (pair(1 << 20), pair(2_000));
            if is_spliced {
                near.allow_splicing();
                far.allow_splicing();
            }
            let (mut from, _unused_writer) = bench.plain(near);
            let (_unused_reader, mut to) = bench.plain(far);
            let data = noise(LEN);
            let mut taken = Vec::new();
            // As behind a head, which had to come in time, too.
            put(&source, &data[..LEN / 2]);
            from.watch().receive_within(IDLE);
            from.fill().await.expect("it is there");
            let body = Source::Length(LEN as u64);
            let mut relay = pin!(pump(&mut from, &mut to, body, Sink::Raw, PACE, None));
            let mut result = None;
            for due in [LEN / 2, LEN] {
                while taken.len() < due {
                    if result.is_none()
                        && let Poll::Ready(ready) = poll(&mut relay)
                    {
                        result = Some(ready.expect("nobody is overdue"));
                    }
                    bench.advance(WRITE_TIMEOUT / 2);
                    taken.extend(got(&sink));
                }
                if due < LEN {
                    put(&source, &data[due..]);
                }
            }
            let result = match result {
                Some(moved) => moved,
                None => relay.await.expect("nobody is overdue"),
            };
            assert_eq!(result, LEN as u64);
            assert!(taken == data, "other bytes");
        });
    }
}

#[test]
fn bytes_of_earlier_requests_earn_a_slow_body_no_time() {
    run(async {
        let mut line = line(1 << 20);
        let bench = line.bench.clone();
        let pace = Pace::Rate { bytes_per_second: 100 };
        // An honest upload comes first on this connection: at this rate it took hours.
        put(&line.source, &noise(1 << 19));
        let first = Source::Length(1 << 19);
        pump(&mut line.from, &mut line.to, first, Sink::Raw, pace, None)
            .await
            .expect("it is there");
        let body = Source::Length(1000);
        let mut relay = pin!(pump(&mut line.from, &mut line.to, body, Sink::Raw, pace, None));
        put(&line.source, b"x");
        assert!(poll(&mut relay).is_pending());
        bench.advance(BODY_RATE_GRACE);
        let Poll::Ready(result) = poll(&mut relay) else { panic!("the grace is over") };
        assert!(matches!(result, Err(RelayError::Stream(Side::From, StreamError::Expired))));
    });
}

/// A tunnel between two far ends.
struct Tunnel {
    bench: Bench,
    client: Double,
    upstream: Double,
    /// The gateway's ends: the client's, the upstream's.
    near: [Double; 2],
    task: tokio::task::JoinHandle<(Result<Ending, RelayError>, Halves, Halves)>,
}

type Halves = (Reader<Double>, Writer<Double>);

fn start(capacity: usize, early: (&[u8], &[u8])) -> Tunnel {
    let bench = Bench::new();
    let ((client, down), (up, upstream)) = (pair(capacity), pair(capacity));
    put_some(&client, early.0);
    put_some(&upstream, early.1);
    let near = [down.clone(), up.clone()];
    let (mut down, mut up) = (bench.plain(down), bench.plain(up));
    // What is there already was read together with the heads.
    assert_eq!(down.0.is_quiet(), early.0.is_empty());
    assert_eq!(up.0.is_quiet(), early.1.is_empty());
    let task = tokio::task::spawn_local(async move {
        let result = tunnel(
            (&mut down.0, &mut down.1),
            (&mut up.0, &mut up.1),
            IDLE,
            &Gaps::new(Tick::START),
        )
        .await;
        (result, down, up)
    });
    Tunnel { bench, client, upstream, near, task }
}

#[test]
fn early_bytes_go_first_in_both_directions() {
    run(async {
        let tunnel = start(4096, (b"first frame", b"greeting"));
        settle().await;
        put(&tunnel.client, b", second");
        put(&tunnel.upstream, b", answer");
        settle().await;
        assert_eq!(got(&tunnel.upstream), b"first frame, second");
        assert_eq!(got(&tunnel.client), b"greeting, answer");
    });
}

#[test]
fn a_tunnel_acknowledges_what_goes_one_way_only() {
    run(async {
        let Tunnel { bench: _b, client, upstream, near, task: _t } = start(1 << 16, (b"", b""));
        let say = async |end: &Double| {
            put(end, b"message");
            settle().await;
        };
        for _ in 0..3 {
            say(&client).await;
            say(&upstream).await;
        }
        let acknowledgements = || near.each_ref().map(Double::acknowledgements);
        assert_eq!(acknowledgements(), [0, 0], "answers carry them");
        for count in 1..4 {
            say(&upstream).await;
            assert_eq!(acknowledgements(), [0, count]);
        }
        say(&client).await;
        assert_eq!(acknowledgements(), [0, 3]);
        say(&client).await;
        assert_eq!(acknowledgements(), [1, 3]);
    });
}

#[test]
fn each_direction_ends_for_itself() {
    for client_first in [true, false] {
        run(async {
            let tunnel = start(4096, (b"", b""));
            let (first, second) = if client_first {
                (&tunnel.client, &tunnel.upstream)
            } else {
                (&tunnel.upstream, &tunnel.client)
            };
            put(first, b"last words");
            first.shutdown(std::net::Shutdown::Write);
            settle().await;
            assert_eq!(got(second), b"last words");
            assert!(!tunnel.task.is_finished());
            put(second, b"an answer to them");
            settle().await;
            assert_eq!(got(first), b"an answer to them");
            second.shutdown(std::net::Shutdown::Write);
            let (result, _down, _up) = tunnel.task.await.expect("no panic");
            assert_eq!(result.expect("it ends well"), Ending::Closed);
        });
    }
}

#[test]
fn a_byte_in_either_direction_keeps_a_tunnel_alive() {
    run(async {
        let tunnel = start(4096, (b"", b""));
        for end in [&tunnel.client, &tunnel.upstream, &tunnel.upstream, &tunnel.client] {
            settle().await;
            tunnel.bench.advance(IDLE * 2 / 3);
            assert!(!tunnel.task.is_finished());
            put(end, b"nop");
        }
        settle().await;
        tunnel.bench.advance(IDLE);
        let (result, down, _up) = tunnel.task.await.expect("no panic");
        assert_eq!(result.expect("it ends well"), Ending::Idle);
        assert!(down.1.is_open(), "the client can be told");
    });
}

#[test]
fn a_drain_ends_a_tunnel_in_good_order() {
    run(async {
        let tunnel = start(4096, (b"", b""));
        settle().await;
        tunnel.bench.timers.close(&[crate::timers::Activity::Exchange]);
        let (result, down, _up) = tunnel.task.await.expect("no panic");
        assert_eq!(result.expect("it ends well"), Ending::Drained);
        assert!(down.1.is_open());
    });
}

#[test]
fn a_side_that_stops_reading_is_at_fault_and_does_not_pin_the_tunnel() {
    for client_stops in [true, false] {
        run(async {
            let tunnel = start(64, (b"", b""));
            let (talker, deaf) = if client_stops {
                (tunnel.upstream.clone(), tunnel.client.clone())
            } else {
                (tunnel.client.clone(), tunnel.upstream.clone())
            };
            for _ in 0..10 {
                let _ = talker.try_send(&[0; 64]);
                settle().await;
            }
            // It goes on talking, which alone would keep the tunnel from being idle.
            let mut waited = Duration::ZERO;
            while !tunnel.task.is_finished() {
                put(&deaf, b"nop");
                settle().await;
                tunnel.bench.advance(WRITE_TIMEOUT / 4);
                settle().await;
                got(&talker);
                waited += WRITE_TIMEOUT / 4;
                assert!(waited <= WRITE_TIMEOUT * 2, "pinned");
            }
            let (result, _down, _up) = tunnel.task.await.expect("no panic");
            let error = result.expect_err("one side is stuck");
            let expected = if client_stops { Fault::Downstream } else { Fault::Upstream };
            assert_eq!(error.fault(Fault::Downstream, Fault::Upstream), expected, "{error:?}");
            assert!(error.to_string().contains("takes nothing"), "{error}");
        });
    }
}

#[test]
fn a_reset_names_the_side_it_came_from() {
    for client_resets in [true, false] {
        run(async {
            let bench = Bench::new();
            let ((_client, down), (up, _upstream)) = (pair(64), pair(64));
            let broken = if client_resets { &down } else { &up };
            let reset = crate::transport::double::Step::Fail(std::io::ErrorKind::ConnectionReset);
            broken.script(Direction::Receive, [reset]);
            let (mut down, mut up) = (bench.plain(down), bench.plain(up));
            let result = tunnel(
                (&mut down.0, &mut down.1),
                (&mut up.0, &mut up.1),
                IDLE,
                &Gaps::new(Tick::START),
            )
            .await;
            let error = result.expect_err("a reset");
            let expected = if client_resets { Fault::Downstream } else { Fault::Upstream };
            assert_eq!(error.fault(Fault::Downstream, Fault::Upstream), expected);
        });
    }
}

#[test]
fn a_client_that_vanishes_without_goodbye_is_no_clean_end() {
    run(async {
        let bench = Bench::new();
        let ((client, down), (up, upstream)) = (pair(4096), pair(4096));
        let (mut down_reader, mut down_writer, _tls) = bench.tls(down, None, b"frame");
        let mut up = bench.plain(up);
        client.shutdown(std::net::Shutdown::Write);
        let halves = (&mut down_reader, &mut down_writer);
        let error = tunnel(halves, (&mut up.0, &mut up.1), IDLE, &Gaps::new(Tick::START))
            .await
            .expect_err("it was cut");
        assert_eq!(error.fault(Fault::Downstream, Fault::Upstream), Fault::Downstream);
        assert_eq!(got(&upstream), b"frame");
        assert!(!upstream_saw_end(&upstream), "no half-close is made up");
    });
}

fn upstream_saw_end(end: &Double) -> bool {
    matches!(end.try_recv(&mut crate::transport::Buffer::with_capacity(1), usize::MAX), Ok(0))
}

#[test]
fn a_rough_tunnel_keeps_every_byte_both_ways() {
    for seed in 0..40 {
        run(async {
            let bench = Bench::new();
            let ((client, down), (up, upstream)) = (pair(700), pair(9000));
            for (end, salt) in [(&client, 1), (&down, 2), (&up, 3), (&upstream, 4)] {
                end.set_mood(Mood::Rough(seed * 10 + salt));
            }
            let (mut down, mut up) = (bench.plain(down), bench.plain(up));
            let (mut client, mut upstream) = (bench.plain(client), bench.plain(upstream));
            let (there, back) = (noise(30_000), noise(50_000));
            let seen = Rc::new(Cell::new(0));
            let gaps = Gaps::new(Tick::START);
            let (ending, heard, answered, (), ()) = tokio::join!(
                tunnel((&mut down.0, &mut down.1), (&mut up.0, &mut up.1), IDLE, &gaps),
                read_all(&mut upstream.0),
                read_all(&mut client.0),
                async {
                    write_all(&mut client.1, &there).await;
                    client.1.finish().await.expect("open");
                    seen.set(seen.get() + 1);
                },
                async {
                    write_all(&mut upstream.1, &back).await;
                    upstream.1.finish().await.expect("open");
                    seen.set(seen.get() + 1);
                },
            );
            assert_eq!(ending.expect("it ends well"), Ending::Closed);
            assert!(heard == there && answered == back && seen.get() == 2);
        });
    }
}
