use proptest::prelude::*;
use rustls::{CipherSuite, ClientConnection};
use std::io::Write as _;

use super::testing::against_any_client;
use super::*;
use crate::handshake::testing::{
    client, client_config, received_by, run, sealed_by, sent_by, server, suites,
};
use crate::limits::{RECORD_HEADER_BYTES, RECORD_PLAINTEXT_MAX};

/// A session with a real client at the other end.
struct Pair {
    client: ClientConnection,
    opener: Opener,
    sealer: Sealer,
}

fn pair(suite: CipherSuite) -> Pair {
    pair_with_limit(suite, RecordLimit::KEY)
}

fn pair_with_limit(suite: CipherSuite, limit: RecordLimit) -> Pair {
    let mut client = client(&client_config(Some(suite), &[]));
    let done = run(&mut client, server(&[]), |_| usize::MAX, b"x").expect("a handshake");
    let (mut opener, sealer) = halves(done.established, limit).expect("a known suite");
    let mut first = done.leftover.filled().to_vec();
    assert!(matches!(opener.open(&mut first), Ok(Opened::Data { .. })));
    Pair { client, opener, sealer }
}

fn all_suites() -> Vec<CipherSuite> {
    suites().iter().map(rustls::SupportedCipherSuite::suite).collect()
}

const TLS13: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

const TLS12: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;

/// Opens all records of `wire`, which arrives in pieces of `size` bytes.
fn open_all(opener: &mut Opener, wire: &[u8], size: usize) -> Result<Vec<u8>, RecordError> {
    let (mut buffer, mut plain) = (Vec::new(), Vec::new());
    for piece in wire.chunks(size.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let missing = opener.missing(&buffer);
            match opener.open(&mut buffer)? {
                Opened::Partial => {
                    assert!(missing > 0);
                    break;
                }
                Opened::Data { payload, record_len } => {
                    plain.extend_from_slice(&buffer[payload]);
                    buffer.drain(..record_len);
                }
                Opened::Handled { record_len } | Opened::KeyUpdated { record_len } => {
                    drop(buffer.drain(..record_len))
                }
                Opened::CloseNotify => return Ok(plain),
            }
        }
    }
    assert!(buffer.is_empty(), "a record was left over");
    Ok(plain)
}

/// One record with `plain`.
fn seal(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; sealer.headroom()];
    slot.extend_from_slice(plain);
    slot.resize(slot.len() + sealer.tailroom(), 0);
    sealer.seal_slot(&mut slot).expect("a well-formed slot");
    slot
}

#[test]
fn records_of_all_sizes_pass_both_ways_in_every_suite() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        for len in [1, 2, 15, 16, 17, 1000, RECORD_PLAINTEXT_MAX - 1, RECORD_PLAINTEXT_MAX] {
            let data: Vec<u8> = (0..=250).cycle().take(len).collect();
            let wire = seal(&mut pair.sealer, &data);
            assert_eq!(received_by(&mut pair.client, &wire).unwrap(), data, "{suite:?} {len} out");
            let wire = sealed_by(&mut pair.client, &data);
            assert_eq!(
                open_all(&mut pair.opener, &wire, 4096).unwrap(),
                data,
                "{suite:?} {len} in"
            );
        }
    }
}

#[test]
fn every_split_gives_the_same() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        for size in 1..60 {
            let wire = sealed_by(&mut pair.client, b"some bytes in one record");
            let plain = open_all(&mut pair.opener, &wire, size).unwrap();
            assert_eq!(plain, b"some bytes in one record", "{suite:?} in pieces of {size}");
        }
    }
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        let wire = sealed_by(&mut pair.client, b"hello");
        for at in 0..wire.len() {
            let mut changed = wire.clone();
            changed[at] ^= 1;
            match pair.opener.open(&mut changed) {
                // A shorter or longer record, or another header.
                Ok(Opened::Partial) => assert!((3..RECORD_HEADER_BYTES).contains(&at)),
                Ok(other) => panic!("{suite:?}, byte {at}: {other:?}"),
                Err(error) => assert!(error.alert().is_some()),
            }
        }
        // Nothing of that has moved the sequence number.
        assert_eq!(open_all(&mut pair.opener, &wire, wire.len()).unwrap(), b"hello");
        // The same record again is a replay.
        assert_eq!(open_all(&mut pair.opener, &wire, wire.len()), Err(RecordError::Authentication));
    }
}

#[test]
fn key_updates_of_the_client_are_followed_and_answered() {
    for suite in TLS13 {
        let mut pair = pair(suite);
        for round in 0..5 {
            pair.client.refresh_traffic_keys().expect("TLS 1.3");
            let mut wire = sent_by(&mut pair.client);
            wire.extend(sealed_by(&mut pair.client, b"under the new key"));
            assert_eq!(open_all(&mut pair.opener, &wire, 7).unwrap(), b"under the new key");
            let mut answer = Vec::new();
            pair.sealer.take_key_update(&mut answer).expect("it is due");
            assert!(!answer.is_empty(), "the client asked for our update, round {round}");
            answer.extend(seal(&mut pair.sealer, b"ours too"));
            assert_eq!(received_by(&mut pair.client, &answer).unwrap(), b"ours too");
            let mut nothing = Vec::new();
            pair.sealer.take_key_update(&mut nothing).expect("none is due");
            assert!(nothing.is_empty());
        }
    }
}

#[test]
fn a_storm_of_key_updates_is_ended() {
    let mut pair = pair(TLS13[0]);
    let mut wire = Vec::new();
    for _ in 0..1000 {
        pair.client.refresh_traffic_keys().expect("TLS 1.3");
        wire.extend(sent_by(&mut pair.client));
    }
    assert_eq!(open_all(&mut pair.opener, &wire, 4096), Err(RecordError::KeyUpdates));
}

#[test]
fn a_key_that_is_used_up_is_changed_or_ends_the_connection() {
    for suite in TLS13 {
        // The first records are tickets.
        let mut pair = pair_with_limit(suite, RecordLimit::of(3));
        let mut updates = 0;
        for _ in 0..10 {
            let mut wire = Vec::new();
            pair.sealer.take_key_update(&mut wire).expect("TLS 1.3 can");
            updates += usize::from(!wire.is_empty());
            wire.extend(seal(&mut pair.sealer, b"on and on"));
            assert_eq!(received_by(&mut pair.client, &wire).unwrap(), b"on and on");
        }
        assert!(updates >= 2, "{updates}");
    }
    let mut pair = pair_with_limit(TLS12, RecordLimit::of(30));
    let mut worn_at = None;
    for sealed in 0.. {
        if pair.sealer.is_key_worn() {
            worn_at.get_or_insert(sealed);
        }
        if pair.sealer.take_key_update(&mut Vec::new()).is_err() {
            assert!(worn_at.is_some_and(|at| at < sealed), "a clean end was possible before");
            break;
        }
        seal(&mut pair.sealer, b"x");
    }
    assert_eq!(pair.sealer.take_key_update(&mut Vec::new()), Err(RecordError::KeyExhausted));
}

#[test]
fn a_peer_whose_key_is_used_up_is_asked_for_another_or_is_cut_off() {
    for suite in TLS13 {
        let mut pair = pair_with_limit(suite, RecordLimit::of(20));
        for round in 0..100 {
            pair.client.writer().write_all(b"on and on").expect("memory takes it");
            let mut wire = sent_by(&mut pair.client);
            open_all(&mut pair.opener, &wire, 4096).expect("the peer follows");
            assert!(!pair.opener.is_key_worn(), "round {round}");
            wire.clear();
            pair.sealer.take_key_update(&mut wire).expect("TLS 1.3 can");
            received_by(&mut pair.client, &wire).expect("authentic");
        }
    }
    let mut pair = pair_with_limit(TLS12, RecordLimit::of(20));
    let mut outcomes = Vec::new();
    for _ in 0..40 {
        pair.client.writer().write_all(b"x").expect("memory takes it");
        let wire = sent_by(&mut pair.client);
        let outcome = open_all(&mut pair.opener, &wire, 4096);
        outcomes.push(outcome.map(|_| pair.opener.is_key_worn()));
    }
    assert!(outcomes.contains(&Ok(false)) && outcomes.contains(&Ok(true)));
    assert_eq!(outcomes.last(), Some(&Err(RecordError::KeyExhausted)));
}

#[test]
fn close_notify_is_said_and_heard() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        let mut wire = Vec::new();
        pair.sealer.close_notify(&mut wire).expect("it is sealed");
        pair.client.read_tls(&mut wire.as_slice()).expect("memory gives it");
        assert!(pair.client.process_new_packets().expect("it is an alert").peer_has_closed());
        pair.client.send_close_notify();
        let mut wire = sent_by(&mut pair.client);
        assert_eq!(pair.opener.open(&mut wire), Ok(Opened::CloseNotify));
    }
}

#[test]
fn fatal_alerts_are_said_and_heard() {
    const BAD_RECORD_MAC: u8 = 20;
    for suite in all_suites() {
        let mut pair = pair(suite);
        let mut wire = Vec::new();
        pair.sealer.alert(BAD_RECORD_MAC, &mut wire).expect("it is sealed");
        assert_eq!(
            received_by(&mut pair.client, &wire),
            Err(rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac))
        );
        // The client finds a bad record and says so.
        let mut pair = self::pair(suite);
        let mut wire = seal(&mut pair.sealer, b"x");
        let last = wire.len() - 1;
        wire[last] ^= 1;
        received_by(&mut pair.client, &wire).unwrap_err();
        let mut answer = sent_by(&mut pair.client);
        assert_eq!(
            pair.opener.open(&mut answer),
            Err(RecordError::PeerAlert(BAD_RECORD_MAC)),
            "{suite:?}"
        );
    }
}

/// One record of any type.
fn seal_as(sealer: &mut Sealer, kind: u8, message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    sealer.append(kind, message, &mut wire).expect("it is sealed");
    wire
}

#[test]
fn records_without_data_are_bounded() {
    for suite in all_suites() {
        let (mut opener, mut sealer) = against_any_client(suite);
        let wire: Vec<u8> = (0..30).flat_map(|_| seal(&mut sealer, b"")).collect();
        assert_eq!(open_all(&mut opener, &wire, 4096).unwrap(), b"");
        let data = seal(&mut sealer, b"data");
        assert_eq!(open_all(&mut opener, &data, 4096).unwrap(), b"data");
        let wire: Vec<u8> = (0..40).flat_map(|_| seal(&mut sealer, b"")).collect();
        assert_eq!(open_all(&mut opener, &wire, 4096), Err(RecordError::EmptyRecords));
    }
}

#[test]
fn padding_is_removed_and_padding_alone_is_no_record() {
    for suite in TLS13 {
        let (mut opener, mut sealer) = against_any_client(suite);
        // Padding stands behind the type: what is sealed as an "unknown type" 0 is padding of the bytes before it.
        let padded = [&b"data"[..], &[content::APPLICATION_DATA], &[0; 100]].concat();
        let wire = seal_as(&mut sealer, 0, &padded);
        assert_eq!(open_all(&mut opener, &wire, 4096).unwrap(), b"data");
        let wire = seal_as(&mut sealer, 0, &[0; 100]);
        assert_eq!(open_all(&mut opener, &wire, 4096), Err(RecordError::Unexpected));
    }
}

#[test]
fn messages_that_may_not_come_are_refused() {
    let cases: [(u8, &[u8], RecordError); 7] = [
        (content::HANDSHAKE, &[1, 0, 0, 0], RecordError::Unexpected),
        (content::HANDSHAKE, &[24, 0, 0, 1, 2], RecordError::Unexpected),
        (content::HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], RecordError::Unexpected),
        (20, &[1], RecordError::Unexpected),
        (99, b"x", RecordError::Unexpected),
        (content::ALERT, &[2, 40], RecordError::PeerAlert(40)),
        (content::ALERT, &[2], RecordError::Unexpected),
    ];
    for (kind, message, expected) in cases {
        let (mut opener, mut sealer) = against_any_client(TLS13[0]);
        let wire = seal_as(&mut sealer, kind, message);
        assert_eq!(open_all(&mut opener, &wire, 4096), Err(expected), "{kind} {message:?}");
    }
    let (mut opener, mut sealer) = against_any_client(TLS12);
    let hello = seal_as(&mut sealer, content::HANDSHAKE, &[1, 0, 0, 0]);
    assert_eq!(open_all(&mut opener, &hello, 4096), Err(RecordError::Renegotiation));
    // Warnings that mean nothing to us are passed over.
    let (mut opener, mut sealer) = against_any_client(TLS12);
    let warning = seal_as(&mut sealer, content::ALERT, &[1, 90]);
    assert_eq!(open_all(&mut opener, &warning, 4096), Ok(Vec::new()));
}

#[test]
fn headers_that_no_record_has_are_refused_before_the_body_comes() {
    for suite in [TLS13[0], TLS12] {
        let Pair { mut opener, .. } = pair(suite);
        for (header, expected) in [
            ([23, 3, 1, 0, 100], RecordError::Malformed),
            ([23, 2, 3, 0, 100], RecordError::Malformed),
            ([24, 3, 3, 0, 100], RecordError::Malformed),
            ([23, 3, 3, 0xff, 0xff], RecordError::TooLong(0xffff)),
            ([23, 3, 3, 0, 3], RecordError::Authentication),
        ] {
            assert_eq!(opener.open(&mut header.to_vec()), Err(expected), "{header:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_sizes_and_any_splits_keep_every_byte(
        sizes in proptest::collection::vec(1_usize..40_000, 1..6),
        split in 1_usize..30_000,
        which in 0_usize..6,
    ) {
        let suites = all_suites();
        let mut pair = pair(suites[which % suites.len()]);
        for len in sizes {
            let data: Vec<u8> = (0..=250).cycle().take(len).collect();
            let wire = sealed_by(&mut pair.client, &data);
            prop_assert_eq!(open_all(&mut pair.opener, &wire, split).unwrap(), data);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut pair = pair(TLS13[0]);
        let _ = pair.opener.open(&mut bytes.clone());
        let mut record = vec![23, 3, 3, 0, 200];
        record.extend_from_slice(&bytes);
        let _ = pair.opener.open(&mut record);
    }
}

#[test]
fn every_error_has_its_alert_or_none() {
    for (error, description) in [
        (RecordError::Malformed, Some(50)),
        (RecordError::TooLong(1), Some(22)),
        (RecordError::Authentication, Some(20)),
        (RecordError::Unexpected, Some(10)),
        (RecordError::EmptyRecords, Some(10)),
        (RecordError::KeyUpdates, Some(10)),
        (RecordError::Renegotiation, Some(40)),
        (RecordError::KeySchedule, Some(80)),
        (RecordError::KeyExhausted, Some(80)),
        (RecordError::PeerAlert(40), None),
        (RecordError::KeyUpdateUnsupported, None),
    ] {
        assert_eq!(error.alert(), description, "{error}");
    }
}

#[test]
fn more_than_a_record_may_hold_is_refused_though_it_fits_the_wire() {
    for suite in all_suites() {
        let (mut opener, mut sealer) = against_any_client(suite);
        let wire = seal_as(&mut sealer, content::APPLICATION_DATA, &[7; RECORD_PLAINTEXT_MAX + 1]);
        let outcome = open_all(&mut opener, &wire, wire.len());
        assert_eq!(outcome, Err(RecordError::TooLong(RECORD_PLAINTEXT_MAX + 1)), "{suite:?}");
    }
}

#[test]
fn a_record_sealed_without_a_copy_is_one_of_the_same_sequence() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        let overhead = pair.sealer.headroom() + pair.sealer.tailroom();
        for len in [RECORD_PLAINTEXT_MAX, 1, 1000] {
            let data: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut wire = seal(&mut pair.sealer, b"before ");
            let mut slot = vec![0; len + overhead];
            for wrong in [len + overhead - 1, len + overhead + 1, overhead - 1] {
                let outcome = pair.sealer.seal_from(&data, &mut vec![0; wrong]);
                assert_eq!(outcome, Err(RecordError::Malformed), "{wrong} for {len}");
            }
            pair.sealer.seal_from(&data, &mut slot).expect("a slot of its size");
            wire.extend(slot);
            wire.extend(seal(&mut pair.sealer, b" behind"));
            let whole = [b"before ", &data[..], b" behind"].concat();
            assert_eq!(received_by(&mut pair.client, &wire).unwrap(), whole, "{suite:?} {len}");
        }
    }
}

#[test]
fn a_slot_too_small_for_a_record_is_not_sealed_and_takes_no_number() {
    for suite in all_suites() {
        let mut pair = pair(suite);
        let least = pair.sealer.headroom() + pair.sealer.tailroom();
        assert_eq!(pair.sealer.seal_slot(&mut vec![0; least - 1]), Err(RecordError::Malformed));
        let wire = seal(&mut pair.sealer, b"next");
        assert_eq!(received_by(&mut pair.client, &wire).unwrap(), b"next", "{suite:?}");
    }
}

#[test]
fn a_key_that_no_cipher_of_ours_has_is_no_session() {
    use rustls::ConnectionTrafficSecrets::{Aes128Gcm, Chacha20Poly1305};
    let mut client = client(&client_config(Some(TLS13[0]), &[]));
    let done = run(&mut client, server(&[]), |_| usize::MAX, b"x").expect("a handshake");
    let mut established = done.established;
    let (sequence, Aes128Gcm { key, iv }) = established.secrets.rx else {
        panic!("the suite was asked for");
    };
    // 128 bits, where ChaCha20 has 256.
    established.secrets.rx = (sequence, Chacha20Poly1305 { key, iv });
    let Err(error) = session(established) else { panic!("it has no such key") };
    assert!(error.to_string().contains("unsupported cipher"), "{error}");
}

#[test]
fn a_key_of_tls_12_has_no_next_one() {
    let pair = pair(TLS12);
    let mut schedule = pair.opener.schedule.borrow_mut();
    assert_eq!(schedule.next_receive().err(), Some(RecordError::KeySchedule));
    assert_eq!(schedule.next_send().err(), Some(RecordError::KeySchedule));
}
