//! Bulk through records that we open or seal ourselves: where whole buffers are passed on, and whole records sealed without
//! a copy of what is in them.

use std::cell::Cell;

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::splice_tests::{PACE, put_all};
use super::tests::unframed;
use super::*;
use crate::handshake::testing::{received_by, sealed_by, suites};
use crate::limits::{BUFFER_BULK_BYTES, BULK_FRAMING_BYTES};
use crate::message::framing::Framing;
use crate::stream::testing::{Bench, noise, read_all, run};
use crate::transport::double::{Double, Mood, pair};

/// How the body is framed on its way in, and out.
fn framings() -> impl Strategy<Value = (bool, Sink)> {
    (any::<bool>(), prop_oneof![Just(Sink::Raw), Just(Sink::Chunked)])
}

/// `data` as a source of that framing brings it.
fn framed(is_chunked: bool, data: &[u8], piece: usize) -> (Source, Vec<u8>) {
    if !is_chunked {
        return (Source::Length(data.len() as u64), data.to_vec());
    }
    let mut wire = Vec::new();
    for piece in data.chunks(piece) {
        wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        wire.extend_from_slice(piece);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    (Source::new(Framing::Chunked), wire)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn bulk_goes_into_records_and_out_of_them_without_a_loss(
        len in 1_usize..1_500_000,
        capacity in 20_000_usize..800_000,
        piece in prop_oneof![100_usize..20_000, 100_000_usize..600_000],
        seed in any::<u64>(),
        (is_chunked, sink) in framings(),
        is_upload in any::<bool>(),
        suite in 0..suites().len(),
    ) {
        let data = noise(len);
        let received = run(async {
            let bench = Bench::new();
            let ((source, near), (far, out)) = (pair(capacity), pair(capacity));
            near.set_mood(Mood::Rough(seed));
            far.set_mood(Mood::Rough(!seed));
            let (body, wire) = framed(is_chunked, &data, piece);
            let wire_len = wire.len() as u64;
            let suite = Some(suites()[suite].suite());
            let wire_out = Cell::new(Vec::new());
            let mut client = None;
            let (mut from, _w, mut to, _r, wire) = if is_upload {
                let (from, w, mut client) = bench.tls(near, suite, b"");
                let (r, to) = bench.plain(far);
                let sealed = sealed_by(&mut client, &wire);
                (from, w, to, r, sealed)
            } else {
                let (from, w) = bench.plain(near);
                let (r, to, peer) = bench.tls(far, suite, b"");
                client = Some(peer);
                (from, w, to, r, wire)
            };
            let relay = async {
                let moved = pump(&mut from, &mut to, body, sink, PACE, None).await;
                to.finish().await.expect("the end is sent");
                moved.expect("it ends well")
            };
            let take = async {
                let (mut taken, _writer) = bench.plain(out.clone());
                wire_out.set(read_all(&mut taken).await);
            };
            let (moved, (), ()) = tokio::join!(relay, put_all(&source, &wire), take);
            assert_eq!(moved, len as u64);
            assert_eq!(from.count(), wire_len, "no byte behind the body is taken");
            let wire = wire_out.take();
            match &mut client {
                Some(client) => received_by(client, &wire).expect("authentic"),
                None => wire,
            }
        });
        prop_assert!(unframed(sink, received) == data, "other bytes");
    }
}

/// A tunnel between a client and an upstream, beside the caller.
fn relayed(
    bench: &Bench,
    (mut down_reader, mut down_writer): (Reader<Double>, Writer<Double>),
    (mut up_reader, mut up_writer): (Reader<Double>, Writer<Double>),
) -> JoinHandle<Result<Ending, RelayError>> {
    let gaps = Gaps::new(bench.timers.now());
    tokio::task::spawn_local(async move {
        let idle = std::time::Duration::from_secs(60);
        let down = (&mut down_reader, &mut down_writer);
        tunnel(down, (&mut up_reader, &mut up_writer), idle, &gaps).await
    })
}

/// Takes all that arrives at `end` until nothing moves any more, and returns how much that is.
async fn arrived(end: &Double) -> usize {
    let mut count = 0;
    for _ in 0..1000 {
        let mut buffer = crate::transport::Buffer::with_capacity(1 << 20);
        count += end.try_recv(&mut buffer, usize::MAX).unwrap_or(0);
        tokio::task::yield_now().await;
    }
    count
}

#[test]
fn a_tunnel_passes_bulk_on_in_both_directions() {
    run(async {
        let bench = Bench::new();
        let ((client_end, down), (up, upstream)) = (pair(300_000), pair(300_000));
        let (down_reader, down_writer, mut client) = bench.tls(down, None, b"");
        let (up_reader, up_writer) = bench.plain(up);
        let (there, back) = (noise(1_000_000), noise(1_100_000));
        let sealed = sealed_by(&mut client, &there);
        let relay = relayed(&bench, (down_reader, down_writer), (up_reader, up_writer));
        let (mut at_client, _w) = bench.plain(client_end.clone());
        let (mut at_upstream, _x) = bench.plain(upstream.clone());
        let send = async {
            put_all(&client_end, &sealed).await;
            client.send_close_notify();
            put_all(&client_end, &crate::handshake::testing::sent_by(&mut client)).await;
        };
        let answer = async {
            put_all(&upstream, &back).await;
            upstream.shutdown(std::net::Shutdown::Write);
        };
        let (wire, got, (), ()) =
            tokio::join!(read_all(&mut at_client), read_all(&mut at_upstream), send, answer);
        assert!(got == there, "other bytes upstream");
        assert!(received_by(&mut client, &wire).expect("authentic") == back, "other bytes down");
        assert_eq!(relay.await.expect("no panic").expect("it ends well"), Ending::Closed);
    });
}

#[test]
fn bulk_waits_for_its_turn_in_the_socket_and_little_waits_for_none() {
    run(async {
        let bench = Bench::new();
        let ((client_end, down), (up, upstream)) = (pair(1 << 20), pair(1 << 20));
        let (mut down_reader, down_writer) = bench.plain(down);
        let socket = up.clone();
        let (mut up_reader, up_writer) = bench.plain(up);
        up_reader.forbid_splicing();
        down_reader.forbid_splicing();
        let _relay = relayed(&bench, (down_reader, down_writer), (up_reader, up_writer));
        let (mut sent, mut arrived_so_far) = (0, 0);
        // The first is what makes it bulk.
        for (count, others_work, comes) in
            [(1 << 20, false, true), (100, true, true), (100_000, true, false), (0, false, true)]
        {
            let turnstile = bench.buffers.turnstile();
            let leave = if others_work { Some(turnstile.enter().await) } else { None };
            put_all(&upstream, &noise(count)).await;
            sent += count;
            arrived_so_far += arrived(&client_end).await;
            let left = if comes { 0 } else { count };
            assert_eq!(sent - arrived_so_far, left, "of {count}");
            assert_eq!(socket.holds(1), !comes, "what waits is in the socket");
            drop(leave);
        }
    });
}

#[test]
fn a_transfer_makes_some_steps_before_the_next_one_makes_its_first() {
    run(async {
        const LEN: usize = 4 << 20;
        let bench = Bench::new();
        let ends = [0, 0].map(|_| (pair(LEN), pair(LEN)));
        let data = noise(LEN);
        let (mut pumps, mut sinks) = (Vec::new(), Vec::new());
        let leave = bench.buffers.turnstile().enter().await;
        for ((source, near), (far, sink)) in ends {
            let ((mut from, _w), (_r, mut to)) = (bench.plain(near), bench.plain(far));
            from.forbid_splicing();
            put_all(&source, &data).await;
            sinks.push(sink);
            pumps.push(tokio::task::spawn_local(async move {
                let all = Source::Length(LEN as u64);
                pump(&mut from, &mut to, all, Sink::Raw, PACE, None).await
            }));
        }
        // Who comes in bulk is known, and both wait.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(leave);
        // Who made each step, in their order.
        let mut steps = Vec::new();
        let mut arrived = [0, 0];
        for _ in 0..1000 {
            for (who, sink) in sinks.iter().enumerate() {
                let mut buffer = crate::transport::Buffer::with_capacity(LEN);
                let count = sink.try_recv(&mut buffer, usize::MAX).unwrap_or(0);
                arrived[who] += count;
                if count > LONG_STEP_BYTES_MIN {
                    steps.push(who);
                }
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(arrived, [LEN, LEN]);
        let turns: Vec<usize> = steps.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
        assert!(turns.len() >= 8, "they alternate: {turns:?}");
        // What made it bulk comes first, and the last have less left.
        let whole = &turns[2..turns.len() - 2];
        assert!(whole.iter().all(|&steps| steps == LONG_STEPS_MAX), "{turns:?}");
        for pump in pumps {
            assert_eq!(pump.await.expect("no panic").expect("it ends well"), LEN as u64);
        }
    });
}

#[test]
fn a_tunnel_lives_on_from_bytes_behind_which_there_was_nothing() {
    run(async {
        let bench = Bench::new();
        let ((client_end, down), (up, upstream)) = (pair(1 << 20), pair(1 << 20));
        let (mut up_reader, up_writer) = bench.plain(up);
        up_reader.forbid_splicing();
        let relay = relayed(&bench, bench.plain(down), (up_reader, up_writer));
        // The first is what makes it bulk; the second is all that one receive takes, so that another one is tried.
        for count in [1 << 20, BUFFER_BULK_BYTES - BULK_FRAMING_BYTES] {
            put_all(&upstream, &noise(count)).await;
            assert_eq!(arrived(&client_end).await, count);
            bench.advance(std::time::Duration::from_secs(40));
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!relay.is_finished(), "it was idle for 40 s of 60");
    });
}
