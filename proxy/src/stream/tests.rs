mod halves;

use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use rustls::CipherSuite;

use super::*;
use crate::buffers::Buffers;
use crate::ktls::testing::against_any_client;
use crate::limits::{
    BUFFER_BULK_BYTES, BUFFER_SMALL_BYTES, RECORD_PLAINTEXT_MAX, STANDSTILL, TIMER_TICK,
};
use crate::timers::{Activity, Cause, Timers};
use crate::transport::Transport as _;
use crate::transport::double::{self, Direction, Double, Mood, Step};

const TIMEOUT: Duration = Duration::from_secs(1);

const SUITES: [Option<CipherSuite>; 3] = [
    None,
    Some(CipherSuite::TLS13_AES_128_GCM_SHA256),
    Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// A writer joined to a reader.
struct Joined {
    writer: Writer<Double>,
    reader: Reader<Double>,
    near: Double,
    far: Double,
    timers: Rc<Timers<Double>>,
}

fn joined(suite: Option<CipherSuite>, capacity: usize) -> Joined {
    let (near, far) = double::pair(capacity);
    let (timers, buffers) = (Timers::new(), Rc::new(Buffers::default()));
    let watch = |io: &Double| Rc::new(timers.watch(io.clone(), Activity::Exchange));
    let (near_watch, far_watch) = (watch(&near), watch(&far));
    let share = || Rc::clone(&buffers);
    let (writer, reader) = match suite {
        None => (
            Writer::plain(near_watch, near.clone(), share(), TIMEOUT),
            Reader::plain(far_watch, far.clone(), share()),
        ),
        Some(suite) => {
            let (opener, sealer) = against_any_client(suite);
            let leftover = crate::transport::Buffer::default();
            (
                Writer::tls(near_watch, near.clone(), share(), TIMEOUT, sealer),
                Reader::tls(far_watch, far.clone(), share(), opener, leftover),
            )
        }
    };
    Joined { writer, reader, near, far, timers }
}

/// Runs to the end on this thread, which only the doubles wake.
fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// One poll.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Everything until the end; at most `appetite` bytes are consumed at once.
async fn read_all(reader: &mut Reader<Double>, appetite: usize) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    loop {
        let count = reader.filled().len().min(appetite);
        if count > 0 {
            all.extend_from_slice(&reader.filled()[..count]);
            reader.consume(count);
            continue;
        }
        match reader.fill().await.expect("no error") {
            Fill::Data => {}
            Fill::End(end) => return (all, end),
        }
    }
}

async fn write_all(writer: &mut Writer<Double>, pieces: &[Vec<u8>]) {
    for piece in pieces {
        writer.push_all(piece).await.expect("it is taken");
        writer.flush().await.expect("it is sent");
    }
    writer.finish().await.expect("the end is sent");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_by_short_counts_and_retries(
        sizes in proptest::collection::vec(0_usize..50_000, 1..6),
        capacity in prop_oneof![1_usize..100, 1000_usize..100_000],
        seed in any::<u64>(),
        appetite in prop_oneof![1_usize..10, Just(usize::MAX)],
        suite in 0_usize..3,
    ) {
        // A byte at a time through one byte of room would only take long.
        let sizes: Vec<usize> = sizes.iter().map(|size| if capacity < 1000 { size % 3000 } else { *size }).collect();
        let pieces: Vec<Vec<u8>> = sizes.iter().map(|&size| pattern(size)).collect();
        let Joined { mut writer, mut reader, near, far, timers: _ } = joined(SUITES[suite], capacity);
        near.set_mood(Mood::Rough(seed));
        far.set_mood(Mood::Rough(!seed));
        let (received, ()) = run(async {
            tokio::join!(read_all(&mut reader, appetite), write_all(&mut writer, &pieces))
        });
        prop_assert_eq!(received, (pieces.concat(), End::Clean));
        prop_assert_eq!(reader.count(), writer.count());
    }
}

#[test]
fn a_wait_that_is_given_up_loses_nothing() {
    for suite in SUITES {
        let mut ends = joined(suite, 100_000);
        for _ in 0..3 {
            assert!(poll_once(ends.reader.fill()).is_pending());
        }
        run(write_all(&mut ends.writer, &[b"hello".to_vec()]));
        assert_eq!(run(read_all(&mut ends.reader, usize::MAX)), (b"hello".to_vec(), End::Clean));
    }
}

#[test]
fn an_end_without_goodbye_is_a_truncation_under_tls() {
    for suite in SUITES {
        let mut ends = joined(suite, 100_000);
        run(async {
            ends.writer.push_all(b"half").await.expect("it is taken");
            ends.writer.flush().await.expect("it is sent");
        });
        ends.near.shutdown(std::net::Shutdown::Write);
        let end = if suite.is_some() { End::Truncated } else { End::Clean };
        assert_eq!(run(read_all(&mut ends.reader, usize::MAX)), (b"half".to_vec(), end));
        assert_eq!(ends.reader.end(), Some(end));
    }
}

#[test]
fn a_goodbye_in_the_last_byte_of_a_buffer_is_seen_before_the_end() {
    for suite in SUITES {
        // Up to 100 bytes of framing, whichever suite it is.
        for len in BUFFER_SMALL_BYTES - 100..=BUFFER_SMALL_BYTES {
            let mut ends = joined(suite, 100_000);
            run(write_all(&mut ends.writer, &[pattern(len)]));
            assert_eq!(run(read_all(&mut ends.reader, usize::MAX)), (pattern(len), End::Clean));
        }
    }
}

#[test]
fn a_failure_behind_a_full_buffer_is_told_after_what_came_before_it() {
    let mut ends = joined(None, 100_000);
    run(write_all(&mut ends.writer, &[pattern(BUFFER_SMALL_BYTES)]));
    let steps = [Step::AtMost(BUFFER_SMALL_BYTES), Step::Fail(io::ErrorKind::ConnectionReset)];
    ends.far.script(Direction::Receive, steps);
    ends.far.allow_splicing();
    assert_eq!(run(ends.reader.fill()).unwrap(), Fill::Data);
    assert_eq!(ends.reader.filled(), pattern(BUFFER_SMALL_BYTES));
    ends.reader.consume(BUFFER_SMALL_BYTES);
    assert!(ends.reader.splice_source().is_none(), "the socket would tell of an end");
    let failed = run(ends.reader.fill());
    assert!(matches!(failed, Err(StreamError::Io(_))), "a cut stream looks whole: {failed:?}");
}

#[test]
fn what_is_pushed_leaves_at_the_flush_in_one_send() {
    for suite in SUITES {
        let mut ends = joined(suite, 10_000_000);
        for part in [&b"head"[..], b"chunk head", b"data", b"\r\n"] {
            assert_eq!(ends.writer.push(part), part.len());
        }
        assert_eq!(ends.near.calls(Direction::Send), 0);
        run(ends.writer.flush()).expect("it is sent");
        assert_eq!(ends.near.calls(Direction::Send), 1);
        // Bulk leaves in as few sends as its largest buffer allows.
        let bulk = pattern(4 * RECORD_PLAINTEXT_MAX);
        assert_eq!(ends.writer.push(&bulk), bulk.len());
        run(ends.writer.flush()).expect("it is sent");
        assert_eq!(ends.near.calls(Direction::Send), 2);
    }
}

#[test]
fn more_than_the_largest_buffer_holds_is_an_error_and_not_a_hang() {
    let mut ends = joined(None, 10 * BUFFER_BULK_BYTES);
    let bulk = pattern(2 * BUFFER_BULK_BYTES);
    let mut sent = 0;
    while sent < bulk.len() {
        sent += ends.near.try_send(&bulk[sent..]).expect("there is room");
    }
    let outcome = run(async {
        loop {
            // Nothing is consumed: a head without end.
            match ends.reader.fill().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    assert!(matches!(outcome, StreamError::Overflow), "{outcome}");
}

#[test]
fn deadlines_end_waits_and_are_told_from_the_peers_end() {
    let mut ends = joined(None, 100);
    ends.reader.watch().receive_within(Duration::ZERO);
    assert!(poll_once(ends.reader.fill()).is_pending());
    ends.timers.sweep_at(ends.timers.now().after(TIMEOUT));
    assert!(matches!(run(ends.reader.fill()), Err(StreamError::Expired)));

    let mut ends = joined(None, 100);
    ends.timers.close(&[Activity::Exchange]);
    assert!(matches!(run(ends.reader.fill()), Err(StreamError::Drained)));
}

#[test]
fn what_came_while_the_worker_stood_still_is_seen_before_deadlines() {
    for talkative in [true, false] {
        let mut ends = joined(None, 100);
        ends.reader.watch().receive_within(TIMEOUT);
        assert!(poll_once(ends.reader.fill()).is_pending());
        if talkative {
            ends.writer.push(b"in time");
            run(ends.writer.flush()).unwrap();
        }
        ends.timers.tick(ends.timers.now().after(STANDSTILL + 2 * TIMEOUT));
        if talkative {
            assert!(run(ends.reader.fill()).is_ok());
            ends.reader.watch().receive_within(TIMEOUT);
        }
        ends.timers.tick(ends.timers.now().after(TIMER_TICK));
        assert_eq!(ends.reader.watch().shut(), (!talkative).then_some(Cause::Deadline));
    }
}

#[test]
fn a_worker_that_is_always_slow_still_gives_up() {
    let mut ends = joined(None, 100);
    ends.reader.watch().receive_within(TIMEOUT);
    assert!(poll_once(ends.reader.fill()).is_pending());
    for shut in [None, Some(Cause::Deadline)] {
        ends.timers.tick(ends.timers.now().after(STANDSTILL + 2 * TIMEOUT));
        assert_eq!(ends.reader.watch().shut(), shut);
    }
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    let mut ends = joined(None, 10);
    let mut flush = std::pin::pin!(async {
        ends.writer.push_all(&[0; 100]).await?;
        ends.writer.flush().await
    });
    assert!(flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    ends.timers.sweep_at(ends.timers.now().after(2 * TIMEOUT));
    assert!(matches!(run(flush), Err(StreamError::Stalled)));
    assert!(ends.near.is_shut(Direction::Send));
}

#[test]
fn after_a_failed_send_nothing_follows() {
    let mut ends = joined(SUITES[1], 100_000);
    ends.near
        .script(Direction::Send, [Step::AtMost(3), Step::Fail(io::ErrorKind::ConnectionReset)]);
    ends.writer.push(b"data");
    assert!(matches!(run(ends.writer.flush()), Err(StreamError::Io(_))));
    ends.writer.push(b"more");
    assert!(matches!(run(ends.writer.flush()), Err(StreamError::Broken)));
    assert!(matches!(run(ends.writer.finish()), Err(StreamError::Broken)));
    assert_eq!(ends.near.sent().len(), 3);
}
