//! Bodies and tunnels whose bytes change between the two engines, over sockets that fall short and fail at every call.

use std::io;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::buffers::Buffers;
use crate::ktls::RecordError;
use crate::limits::{PIPE_NARROW_BYTES, PIPES_MAX, SPLICE_BYTES_MIN};
use crate::message::chunked;
use crate::message::framing::Framing;
use crate::stream::testing::{Bench, noise, run};
use crate::transport::Buffer;
use crate::transport::double::{Direction, Double, Mood, Step, pair};

pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) const PACE: Pace = Pace::Idle(IDLE);

/// More records than any key may protect.
const RECORDS_TOO_MANY: u64 = 1 << 24;

/// Two joined ends for each side of a relay, all of which can be spliced.
pub(super) fn ends(capacity: usize, seed: Option<u64>) -> (Double, Double, Double, Double) {
    let ((source, near), (far, sink)) = (pair(capacity), pair(capacity));
    for (index, end) in [&near, &far].into_iter().enumerate() {
        end.allow_splicing();
        if let Some(seed) = seed {
            end.set_mood(Mood::Rough(seed.wrapping_add(index as u64)));
        }
    }
    (source, near, far, sink)
}

/// Sends everything, as far as the other side takes it.
pub(super) async fn put_all(end: &Double, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let piece = bytes.len().min(64 * 1024);
        let mut buffer = Buffer::with_capacity(piece);
        buffer.append(&bytes[..piece]);
        let (result, _) = end.send(buffer).await;
        match result {
            Ok(count) => bytes = &bytes[count..],
            Err(_) => return,
        }
    }
}

/// Receives until the end.
pub(super) async fn take_all(end: &Double) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let (result, buffer) = end.recv(Buffer::with_capacity(64 * 1024)).await;
        match result {
            Ok(1..) => all.extend_from_slice(buffer.filled()),
            Ok(0) | Err(_) => return all,
        }
    }
}

/// `body` as chunks of these sizes, in turn.
fn in_chunks(body: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut wire, mut rest) = (Vec::new(), body);
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, more) = rest.split_at(size.clamp(1, rest.len()));
        wire.extend_from_slice(chunked::chunk_head(chunk.len() as u64).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(chunked::CHUNK_TAIL);
        rest = more;
    }
    wire.extend_from_slice(chunked::LAST_CHUNK);
    wire
}

/// The data behind a sink's framing; None when it is not complete.
fn unframed(sink: Sink, mut wire: Vec<u8>) -> Option<Vec<u8>> {
    if sink == Sink::Raw {
        return Some(wire);
    }
    let step = Source::new(Framing::Chunked).take(&mut wire).expect("well-formed chunks");
    (step.ended && step.consumed == wire.len()).then(|| wire[..step.data_len].to_vec())
}

/// No pipe is in use, and what the next transfer gets is its own.
fn expect_empty_pipe(buffers: &Buffers) {
    assert_eq!(buffers.pipes().in_use(), 0, "a pipe was lost");
    let pipe = buffers.pipes().take().expect("there is one");
    let mut file = std::fs::File::from(pipe.read.try_clone().expect("a descriptor"));
    let read = io::Read::read(&mut file, &mut [0]);
    assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_body_arrives_whole_whatever_moves_it(
        len in 0_usize..700_000,
        sizes in proptest::collection::vec(prop_oneof![1_usize..5_000, 60_000_usize..300_000], 1..6),
        is_chunked: bool,
        seed: u64,
        capacity in 2_000_usize..300_000,
    ) {
        let data = noise(len);
        let (framing, wire, sink) = match is_chunked {
            true => (Framing::Chunked, in_chunks(&data, &sizes), Sink::Chunked),
            false => (Framing::Length(len as u64), data.clone(), Sink::Raw),
        };
        run(async move {
            let bench = Bench::new();
            let (source, near, far, sink_end) = ends(capacity, Some(seed));
            let (mut from, _w) = bench.plain(near);
            let (_r, mut to) = bench.plain(far);
            let sender = tokio::task::spawn_local(async move {
                put_all(&source, &wire).await;
                source
            });
            let buffers = from.buffers();
            let relay = tokio::task::spawn_local(async move {
                let moved = pump(&mut from, &mut to, Source::new(framing), sink, PACE, None).await;
                to.finish().await.expect("it can be finished");
                (moved, to.spliced())
            });
            let received = take_all(&sink_end).await;
            let (moved, spliced) = relay.await.expect("no panic");
            let _source = sender.await.expect("no panic");
            assert_eq!(moved.expect("it ends well"), len as u64);
            assert!(unframed(sink, received).as_deref() == Some(&data[..]), "other bytes");
            assert!(framing == Framing::Chunked || spliced > 0 || (len as u64) < 2 * SPLICE_BYTES_MIN);
            assert_eq!(buffers.pipes().in_use(), 0, "a pipe was lost");
        });
    }

    #[test]
    fn a_body_that_breaks_off_never_looks_whole(
        at in 0_usize..400_000,
        is_chunked: bool,
        is_sink: bool,
        seed: u64,
    ) {
        const LEN: usize = 400_000;
        let data = noise(LEN);
        let (framing, wire, sink) = match is_chunked {
            true => (Framing::Chunked, in_chunks(&data, &[150_000, 10]), Sink::Chunked),
            false => (Framing::Length(LEN as u64), data.clone(), Sink::Raw),
        };
        run(async move {
            let bench = Bench::new();
            let (source, near, far, sink_end) = ends(100_000, Some(seed));
            if is_sink {
                let calls = std::iter::repeat_n(Step::AtMost(9_000), at / 9_000);
                far.script(Direction::Send, calls.chain([Step::Fail(io::ErrorKind::ConnectionReset)]));
            }
            let (mut from, unused_writer) = bench.plain(near);
            let (unused_reader, mut to) = bench.plain(far);
            let buffers = from.buffers();
            let sender = tokio::task::spawn_local(async move {
                let end = if is_sink { wire.len() } else { at.min(wire.len() - 1) };
                put_all(&source, &wire[..end]).await;
                source.shutdown(std::net::Shutdown::Write);
                source
            });
            let relay = tokio::task::spawn_local(async move {
                pump(&mut from, &mut to, Source::new(framing), sink, PACE, None).await
            });
            let receiver = tokio::task::spawn_local(async move { take_all(&sink_end).await });
            relay.await.expect("no panic").expect_err("it broke off");
            drop((unused_writer, unused_reader));
            let received = receiver.await.expect("no panic");
            sender.abort();
            let whole = unframed(sink, received);
            assert!(whole.is_none_or(|bytes| bytes.len() < LEN && data.starts_with(&bytes)));
            expect_empty_pipe(&buffers);
        });
    }

    #[test]
    fn a_key_used_up_within_an_upload_ends_it_and_its_pipe_is_not_used_again(
        seed in proptest::option::of(any::<u64>()),
        capacity in 100_000_usize..600_000,
        is_chunked: bool,
    ) {
        const LEN: usize = 1_500_000;
        let data = noise(LEN);
        let (framing, wire, sink) = match is_chunked {
            true => (Framing::Chunked, in_chunks(&data, &[400_000]), Sink::Chunked),
            false => (Framing::Length(LEN as u64), data.clone(), Sink::Raw),
        };
        run(async move {
            let bench = Bench::new();
            let (source, near, far, sink_end) = ends(capacity, seed);
            let (mut from, unused_writer) = bench.kernel(near, RECORDS_TOO_MANY);
            let (unused_reader, mut to) = bench.plain(far);
            let buffers = from.buffers();
            let sender = tokio::task::spawn_local(async move { put_all(&source, &wire).await });
            let relay = tokio::task::spawn_local(async move {
                let body = Source::new(framing);
                let result = pump(&mut from, &mut to, body, sink, PACE, None).await;
                (result, to.spliced())
            });
            let receiver = tokio::task::spawn_local(async move { take_all(&sink_end).await });
            let (result, spliced) = relay.await.expect("no panic");
            let error = result.expect_err("the key is used up");
            assert!(
                matches!(error, RelayError::Stream(Side::From, StreamError::Record(RecordError::KeyExhausted))),
                "{error}"
            );
            // Without stalls and errors of the sockets everything is spliced, up to the call that is one too many: what
            // it moved lies in the pipe.
            assert!(seed.is_some() || spliced > 0);
            drop((unused_writer, unused_reader));
            let whole = unframed(sink, receiver.await.expect("no panic"));
            assert!(whole.is_none_or(|bytes| bytes.len() < LEN && data.starts_with(&bytes)));
            sender.abort();
            expect_empty_pipe(&buffers);
        });
    }

    #[test]
    fn a_tunnel_keeps_its_bytes_while_engines_change(
        pieces in proptest::collection::vec(prop_oneof![1_usize..400, 50_000_usize..200_000], 1..12),
        seed: u64,
        capacity in 2_000_usize..300_000,
    ) {
        run(async move {
            let bench = Bench::new();
            let (client, near, far, server) = ends(capacity, Some(seed));
            let (mut down_reader, mut down_writer) = bench.plain(near);
            let (mut up_reader, mut up_writer) = bench.plain(far);
            let data = noise(pieces.iter().sum());
            let relay = tokio::task::spawn_local(async move {
                let down = (&mut down_reader, &mut down_writer);
                let gaps = Gaps::new(bench.timers.now());
                tunnel(down, (&mut up_reader, &mut up_writer), IDLE, &gaps).await
            });
            let talk = |end: Double| {
                let (data, pieces) = (data.clone(), pieces.clone());
                tokio::task::spawn_local(async move {
                    let mut rest = &data[..];
                    for len in pieces {
                        let (piece, more) = rest.split_at(len);
                        put_all(&end, piece).await;
                        rest = more;
                        tokio::task::yield_now().await;
                    }
                    end.shutdown(std::net::Shutdown::Write);
                })
            };
            let talkers = [talk(client.clone()), talk(server.clone())];
            let listen = |end: Double| tokio::task::spawn_local(async move { take_all(&end).await });
            let listeners = [listen(client.clone()), listen(server.clone())];
            for talker in talkers {
                talker.await.expect("no panic");
            }
            for listener in listeners {
                assert!(listener.await.expect("no panic") == data, "other bytes");
            }
            assert_eq!(relay.await.expect("no panic").expect("it ends well"), Ending::Closed);
        });
    }
}

#[test]
fn without_a_pipe_everything_is_copied_and_that_is_known() {
    run(async {
        let bench = Bench::new();
        let taken: Vec<_> = std::iter::from_fn(|| bench.buffers.pipes().take()).collect();
        assert_eq!(taken.len(), PIPES_MAX);
        let (source, near, far, sink_end) = ends(1 << 20, None);
        let (mut from, _w) = bench.plain(near);
        let (_r, mut to) = bench.plain(far);
        let data = noise(500_000);
        let sender = tokio::task::spawn_local({
            let data = data.clone();
            async move {
                put_all(&source, &data).await;
                source
            }
        });
        let body = Source::new(Framing::Length(500_000));
        let moved = pump(&mut from, &mut to, body, Sink::Raw, PACE, None).await;
        assert_eq!(moved.expect("it ends well"), 500_000);
        assert_eq!(to.spliced(), 0);
        assert!(to.without_pipe() > 0);
        to.finish().await.expect("it can be finished");
        assert!(take_all(&sink_end).await == data);
        drop(sender.await);
    });
}

#[test]
fn bulk_in_a_tunnel_is_spliced_and_what_follows_is_copied_again() {
    run(async {
        let bench = Bench::new();
        let (client, near, far, server) = ends(1 << 20, None);
        let (mut down_reader, mut down_writer) = bench.plain(near);
        let (mut up_reader, mut up_writer) = bench.plain(far);
        let data = noise(4_000_000);
        let relay = tokio::task::spawn_local(async move {
            let down = (&mut down_reader, &mut down_writer);
            let gaps = Gaps::new(bench.timers.now());
            let ending = tunnel(down, (&mut up_reader, &mut up_writer), IDLE, &gaps).await;
            (ending, up_writer.spliced(), up_writer.count(), down_writer.spliced())
        });
        let listener = tokio::task::spawn_local({
            let server = server.clone();
            async move { take_all(&server).await }
        });
        put_all(&client, &data).await;
        // A few bytes at a time are no bulk.
        for byte in data.chunks(1).take(100) {
            put_all(&client, byte).await;
            crate::stream::testing::settle().await;
        }
        client.shutdown(std::net::Shutdown::Write);
        let received = listener.await.expect("no panic");
        assert!(received == [&data[..], &data[..100]].concat(), "other bytes");
        server.shutdown(std::net::Shutdown::Write);
        let (ending, spliced, count, other) = relay.await.expect("no panic");
        assert_eq!(ending.expect("it ends well"), Ending::Closed);
        assert!(spliced > 0 && spliced < count, "{spliced} of {count}");
        assert_eq!(other, 0);
    });
}

#[test]
fn a_tunnel_towards_a_slow_client_holds_no_more_than_a_narrow_pipe() {
    const SOURCE: usize = 4 << 20;
    const SINK: usize = 512 << 10;
    run(async {
        let bench = Bench::new();
        let ((client, near), (far, server)) = (pair(SOURCE), pair(SINK));
        near.allow_splicing();
        far.allow_splicing();
        let (mut down_reader, mut down_writer) = bench.plain(near);
        let (mut up_reader, mut up_writer) = bench.plain(far);
        // All of it is there at once, and then some.
        let sender = tokio::task::spawn_local({
            let client = client.clone();
            async move { put_all(&client, &noise(2 * SOURCE)).await }
        });
        crate::stream::testing::settle().await;
        assert_eq!(client.sent().len(), SOURCE);
        let relay = tokio::task::spawn_local(async move {
            let down = (&mut down_reader, &mut down_writer);
            let gaps = Gaps::new(bench.timers.now());
            tunnel(down, (&mut up_reader, &mut up_writer), IDLE, &gaps).await
        });
        for _ in 0..100 {
            crate::stream::testing::settle().await;
        }
        // What left the source, and did not go into the sink, which nobody reads from.
        let held = client.sent().len() - SOURCE - SINK;
        assert!((1..=PIPE_NARROW_BYTES).contains(&held), "{held}");
        sender.abort();
        relay.abort();
        drop(server);
    });
}
