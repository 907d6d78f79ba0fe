use std::future::Future;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{Bench, WRITE_TIMEOUT, noise, read_all, run, settle, write_all};
use super::super::{End, Fill, StreamError};
use crate::buffers::Class;
use crate::handshake::testing::{received_by, sealed_by, sent_by, suites};
use crate::ktls::RecordError;
use crate::limits::{BULK_FRAMING_BYTES, RECORD_PLAINTEXT_MAX};
use crate::transport::Transport;
use crate::transport::double::{Direction, Mood, pair};

/// Polls once and gives the future up.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn plain_halves_keep_every_byte(
        seeds: (u64, u64),
        capacity in 1_usize..6000,
        pieces in prop::collection::vec(0_usize..9000, 1..8),
        keep in 0_usize..3000,
    ) {
        let data = noise(pieces.iter().sum());
        let received = run(async {
            let bench = Bench::new();
            let (near, far) = pair(capacity);
            near.set_mood(Mood::Rough(seeds.0));
            far.set_mood(Mood::Rough(seeds.1));
            let (mut reader, _w) = bench.plain(near);
            let (_r, mut writer) = bench.plain(far);
            let send = async {
                let mut rest = data.as_slice();
                for &piece in &pieces {
                    let (now, later) = rest.split_at(piece);
                    write_all(&mut writer, now).await;
                    rest = later;
                }
                writer.finish().await.expect("it is open");
            };
            let receive = async {
                let mut all = Vec::new();
                loop {
                    let fill = reader.fill().await.expect("input");
                    // What is kept has to survive growth and compaction.
                    let kept = if matches!(fill, Fill::End(_)) { 0 } else { keep };
                    let count = reader.filled().len().saturating_sub(kept);
                    all.extend_from_slice(&reader.filled()[..count]);
                    reader.consume(count);
                    if let Fill::End(end) = fill {
                        assert_eq!(end, End::Clean);
                        return all;
                    }
                }
            };
            tokio::join!(send, receive).1
        });
        prop_assert_eq!(received, data);
    }

    #[test]
    fn tls_halves_keep_every_byte(
        seeds: (u64, u64),
        suite in 0_usize..6,
        capacity in 1_usize..40_000,
        pieces in prop::collection::vec(0_usize..40_000, 1..5),
        keep in 0_usize..3000,
    ) {
        let suites = suites();
        let suite = suites[suite % suites.len()].suite();
        let data = noise(pieces.iter().sum());
        run(async {
            let bench = Bench::new();
            let (near, far) = pair(capacity);
            near.set_mood(Mood::Rough(seeds.0));
            far.set_mood(Mood::Rough(seeds.1));
            let (mut reader, mut writer, mut client) = bench.tls(near, Some(suite), b"early");
            let (mut raw_reader, mut raw_writer) = bench.plain(far);
            let mut wire = Vec::new();
            let mut rest = data.as_slice();
            for &piece in &pieces {
                let (now, later) = rest.split_at(piece);
                wire.extend(sealed_by(&mut client, now));
                rest = later;
            }
            client.send_close_notify();
            wire.extend(sent_by(&mut client));
            let send = async {
                write_all(&mut raw_writer, &wire).await;
                raw_writer.finish().await.expect("it is open");
            };
            let echo = async {
                loop {
                    let fill = reader.fill().await.expect("input");
                    let kept = if matches!(fill, Fill::End(_)) { 0 } else { keep };
                    let count = reader.filled().len().saturating_sub(kept);
                    let some = reader.filled()[..count].to_vec();
                    reader.consume(count);
                    write_all(&mut writer, &some).await;
                    if let Fill::End(end) = fill {
                        assert_eq!(end, End::Clean);
                        return writer.finish().await.expect("it is open");
                    }
                }
            };
            let receive = read_all(&mut raw_reader);
            let (_, _, answer) = tokio::join!(send, echo, receive);
            let mut expected = b"early".to_vec();
            expected.extend_from_slice(&data);
            let plain = received_by(&mut client, &answer).expect("authentic");
            assert_eq!(plain.len(), expected.len());
            assert!(plain == expected, "the bytes differ");
        });
    }
}

#[test]
fn buffers_grow_while_they_are_filled_and_shrink_afterwards() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 20);
        let (mut reader, _w) = bench.plain(near);
        let (_r, mut writer) = bench.plain(far);
        write_all(&mut writer, &noise(1 << 20)).await;
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < 1 << 20 {
            assert!(matches!(reader.fill().await, Ok(Fill::Data)));
            sizes.push(reader.filled().len());
            reader.consume(reader.filled().len());
        }
        assert!(sizes[0] > Class::Small.bytes(), "a full buffer is not the end: {sizes:?}");
        let largest = Class::Bulk.bytes() - BULK_FRAMING_BYTES;
        assert_eq!(sizes.iter().max(), Some(&largest), "{sizes:?}");
        for _ in 0..12 {
            write_all(&mut writer, b"nop").await;
            assert!(matches!(reader.fill().await, Ok(Fill::Data)));
            reader.consume(3);
        }
        // A receive in flight pins the smallest buffer only: the large ones are on their shelf.
        assert!(poll_once(reader.fill()).is_pending());
        write_all(&mut writer, &noise(Class::Bulk.bytes())).await;
        assert!(matches!(reader.fill().await, Ok(Fill::Data)));
        assert!(reader.filled().len() <= Class::Record.bytes());
    });
}

#[test]
fn much_of_what_comes_in_bulk_is_left_until_it_is_taken_and_little_is_not() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 20);
        let (mut reader, _w) = bench.plain(near);
        let (_r, mut writer) = bench.plain(far.clone());
        write_all(&mut writer, &noise(1 << 20)).await;
        while !reader.is_bulk() {
            assert!(matches!(reader.fill_or_rest().await, Ok(Fill::Data)));
            reader.take_rest().unwrap();
            reader.consume(reader.filled().len());
        }
        let mut left = (1 << 20) - usize::try_from(reader.count()).unwrap();
        while left > 0 {
            assert!(matches!(reader.fill_or_rest().await, Ok(Fill::Data)));
            assert!(reader.has_rest() || left < RECORD_PLAINTEXT_MAX, "{left} were received");
            reader.take_rest().unwrap();
            left -= reader.filled().len();
            reader.consume(reader.filled().len());
        }
        assert!(poll_once(reader.fill_or_rest()).is_pending());
        write_all(&mut writer, b"nop").await;
        assert!(matches!(reader.fill_or_rest().await, Ok(Fill::Data)));
        assert_eq!((reader.has_rest(), reader.filled()), (false, &b"nop"[..]));
        reader.consume(3);
        far.shutdown(Shutdown::Write);
        assert!(matches!(reader.fill_or_rest().await, Ok(Fill::End(End::Clean))));
    });
}

#[test]
fn a_record_that_was_cut_is_a_truncation_and_shows_no_plaintext() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 16);
        let (mut reader, _w, mut client) = bench.tls(near, None, b"");
        let (_r, mut raw) = bench.plain(far);
        let wire = sealed_by(&mut client, b"half a record");
        write_all(&mut raw, &wire[..wire.len() - 1]).await;
        raw.finish().await.unwrap();
        assert!(matches!(reader.fill().await, Ok(Fill::End(End::Truncated))));
        assert!(reader.filled().is_empty());
    });
}

#[test]
fn an_overdue_receive_expires_and_sending_stays_possible() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 16);
        let (mut reader, mut writer) = bench.plain(near);
        reader.watch().receive_within(Duration::from_secs(5));
        assert!(poll_once(reader.fill()).is_pending());
        bench.advance(Duration::from_secs(4));
        assert!(poll_once(reader.fill()).is_pending());
        bench.advance(Duration::from_secs(1));
        assert!(matches!(reader.fill().await, Err(StreamError::Expired)));
        write_all(&mut writer, b"408").await;
        writer.finish().await.unwrap();
        assert_eq!(read_all(&mut bench.plain(far).0).await, b"408");
    });
}

#[test]
fn a_peer_that_takes_nothing_is_a_stall_for_both_halves() {
    run(async {
        let bench = Bench::new();
        let (near, _far) = pair(4);
        let (mut reader, mut writer) = bench.plain(near);
        let sending = tokio::task::spawn_local(async move {
            writer.push_all(b"does not fit").await.unwrap();
            (writer.flush().await, writer.flush().await)
        });
        settle().await;
        bench.advance(WRITE_TIMEOUT);
        let (first, second) = sending.await.unwrap();
        assert!(matches!(first, Err(StreamError::Stalled)), "{first:?}");
        assert!(matches!(second, Err(StreamError::Broken)), "{second:?}");
        assert!(matches!(reader.fill().await, Err(StreamError::Stalled)));
    });
}

#[test]
fn progress_however_slow_is_no_stall() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1);
        let (_r, mut writer) = bench.plain(near);
        let (mut reader, _w) = bench.plain(far);
        let sending = tokio::task::spawn_local(async move {
            write_all(&mut writer, b"slowly").await;
            writer.finish().await
        });
        let mut received = Vec::new();
        while received.len() < 6 {
            settle().await;
            bench.advance(WRITE_TIMEOUT / 2);
            assert!(matches!(reader.fill().await, Ok(Fill::Data)));
            received.extend_from_slice(reader.filled());
            reader.consume(reader.filled().len());
        }
        sending.await.unwrap().unwrap();
        assert_eq!(received, b"slowly");
    });
}

#[test]
fn a_drain_is_told_from_an_end() {
    run(async {
        let bench = Bench::new();
        let (near, _far) = pair(16);
        let (mut reader, _w) = bench.plain(near);
        bench.timers.close(&[crate::timers::Activity::Idle]);
        assert!(poll_once(reader.fill()).is_pending());
        bench.timers.close(&[crate::timers::Activity::Exchange]);
        assert!(matches!(reader.fill().await, Err(StreamError::Drained)));
    });
}

#[test]
fn nothing_follows_a_send_that_was_cut_off() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(20);
        let (_r, mut writer, _client) = bench.tls(near.clone(), None, b"");
        assert_eq!(writer.push(b"first"), 5);
        assert!(poll_once(writer.flush()).is_pending());
        assert!(!writer.is_open());
        let (mut reader, _w) = bench.plain(far);
        assert!(matches!(reader.fill().await, Ok(Fill::Data)));
        writer.push(b"second");
        assert!(matches!(writer.flush().await, Err(StreamError::Broken)));
        assert!(matches!(writer.finish().await, Err(StreamError::Broken)));
        assert!(matches!(writer.fail(80).await, Err(StreamError::Broken)));
        assert_eq!(near.sent().len(), 20);
        assert_eq!(writer.wire_count(), 20);
    });
}

#[test]
fn a_flush_is_one_send_and_an_empty_one_is_none() {
    run(async {
        let bench = Bench::new();
        let (near, _far) = pair(1 << 20);
        let (_r, mut writer, mut client) = bench.tls(near.clone(), None, b"");
        writer.flush().await.unwrap();
        assert_eq!(near.calls(Direction::Send), 0);
        let data = noise(100_000);
        for piece in data.chunks(999) {
            assert_eq!(writer.push(piece), piece.len());
        }
        writer.flush().await.unwrap();
        assert_eq!(near.calls(Direction::Send), 1);
        assert!(received_by(&mut client, &near.sent()).unwrap() == data);
        assert_eq!(writer.count(), 100_000);
    });
}

#[test]
fn finishing_says_goodbye_and_closes_one_direction_only() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 16);
        let (mut reader, mut writer, mut client) = bench.tls(near.clone(), None, b"");
        writer.push(b"bye");
        writer.finish().await.unwrap();
        assert!(near.is_shut(Direction::Send) && !near.is_shut(Direction::Receive));
        assert_eq!(received_by(&mut client, &near.sent()).unwrap(), b"bye");
        let state = client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        assert!(matches!(writer.flush().await, Err(StreamError::Broken)));
        let (_r, mut raw) = bench.plain(far);
        write_all(&mut raw, &sealed_by(&mut client, b"still here")).await;
        assert!(matches!(reader.fill().await, Ok(Fill::Data)));
        assert_eq!(reader.filled(), b"still here");
    });
}

#[test]
fn quiet_means_alive_and_silent() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 16);
        let (mut reader, _w) = bench.plain(near);
        assert!(reader.is_quiet());
        assert!(reader.is_quiet());
        let (_r, mut writer) = bench.plain(far.clone());
        write_all(&mut writer, b"?").await;
        assert!(!reader.is_quiet(), "bytes nobody asked for");
        reader.consume(1);
        assert!(reader.is_quiet());
        far.shutdown(Shutdown::Write);
        assert!(!reader.is_quiet(), "closed");
    });
}

#[test]
fn dropping_the_halves_ends_the_socket_and_its_deadlines() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(16);
        let (mut reader, writer) = bench.plain(near);
        assert!(poll_once(reader.fill()).is_pending());
        assert_eq!(bench.timers.len(), 1);
        drop((reader, writer));
        assert!(bench.timers.is_empty());
        assert!(matches!(bench.plain(far).0.fill().await, Ok(Fill::End(End::Clean))));
    });
}

/// Bytes that a full buffer's larger successor took once went uncounted: small records wore a key past its limit.
#[test]
fn bytes_that_a_larger_buffer_takes_count_for_the_key() {
    const RECORDS_TOO_MANY: u64 = 1 << 24;
    run(async {
        let bench = Bench::new();
        let (peer, near) = pair(1 << 16);
        let (mut reader, _writer) = bench.kernel(near, RECORDS_TOO_MANY);
        let mut received = 0;
        // The kernel is asked for its count after a mebibyte.
        let error = loop {
            assert!(received < 1 << 20, "the key is used up, and nobody knows");
            let piece = 2 * Class::Tiny.bytes();
            assert_eq!(peer.try_send(&noise(piece)).expect("there is room"), piece);
            reader.expect_little();
            match reader.fill().await {
                Ok(_) => assert_eq!(reader.filled().len(), piece, "the rest came with it"),
                Err(error) => break error,
            }
            reader.consume(piece);
            received += piece;
        };
        assert!(matches!(error, StreamError::Record(RecordError::KeyExhausted)), "{error}");
    });
}

/// Whole records are sealed when they are pushed, before it is known that the key is to change.
#[test]
fn a_key_that_is_asked_for_changes_behind_what_was_sealed_before() {
    run(async {
        let bench = Bench::new();
        let (near, far) = pair(1 << 20);
        let suite = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
        let (mut reader, mut writer, mut client) = bench.tls(near.clone(), Some(suite), b"");
        let data = noise(5 * RECORD_PLAINTEXT_MAX + 1000);
        let (before, after) = data.split_at(2 * RECORD_PLAINTEXT_MAX + 500);
        assert_eq!(writer.push(before), before.len());
        client.refresh_traffic_keys().expect("TLS 1.3");
        let asks = [sent_by(&mut client), sealed_by(&mut client, b"x")].concat();
        assert_eq!(far.try_send(&asks).expect("there is room"), asks.len());
        assert!(matches!(reader.fill().await, Ok(Fill::Data)));
        // Staged behind it, one record of it whole.
        assert_eq!(writer.push(&after[..RECORD_PLAINTEXT_MAX]), RECORD_PLAINTEXT_MAX);
        writer.flush().await.expect("it is sent");
        assert_eq!(near.calls(Direction::Send), 1, "no announcement between records of one key");
        write_all(&mut writer, &after[RECORD_PLAINTEXT_MAX..]).await;
        assert_eq!(near.calls(Direction::Send), 3, "the announcement, and what it announces");
        write_all(&mut writer, &data).await;
        assert_eq!(near.calls(Direction::Send), 4);
        let received = received_by(&mut client, &near.sent()).expect("authentic");
        assert!(received == [&data[..], &data[..]].concat(), "other bytes");
    });
}

#[test]
fn an_alert_stands_behind_records_that_were_sealed_and_replaces_what_was_not() {
    run(async {
        let bench = Bench::new();
        for suite in suites() {
            let (near, _far) = pair(1 << 20);
            let (_reader, mut writer, mut client) =
                bench.tls(near.clone(), Some(suite.suite()), b"");
            let data = noise(2 * RECORD_PLAINTEXT_MAX + 500);
            assert_eq!(writer.push(&data), data.len());
            writer.fail(20).await.expect("it is sent");
            let wire = near.sent();
            let record = usize::from(u16::from_be_bytes([wire[3], wire[4]])) + 5;
            let (records, alert) = wire.split_at(2 * record);
            let whole = &data[..2 * RECORD_PLAINTEXT_MAX];
            assert!(received_by(&mut client, records).expect("authentic") == whole, "other bytes");
            let alert = received_by(&mut client, alert).expect_err("it is fatal");
            let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
            assert_eq!(alert, told, "{suite:?}");
        }
    });
}
