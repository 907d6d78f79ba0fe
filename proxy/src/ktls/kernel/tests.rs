use std::collections::VecDeque;

use rustls::CipherSuite;

use super::*;
use crate::handshake::testing::{client, client_config, run, server, suites};

const TLS13: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;
const TLS12: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;

/// A kernel that does as it is told.
#[derive(Default)]
struct Fake {
    /// Results of the calls that give keys, `attach` first.
    refusals: RefCell<VecDeque<Option<i32>>>,
    keys: RefCell<Vec<TlsDirection>>,
    records: RefCell<VecDeque<(u8, Vec<u8>)>>,
    /// What a receive without a record says.
    empty: i32,
    sequence: std::cell::Cell<u64>,
}

impl Fake {
    fn refusing(refusals: impl IntoIterator<Item = Option<i32>>) -> Self {
        Self { refusals: RefCell::new(refusals.into_iter().collect()), ..Self::default() }
    }

    fn with_records(records: &[(u8, &[u8])]) -> Self {
        let records = records.iter().map(|(kind, message)| (*kind, message.to_vec())).collect();
        Self { records: RefCell::new(records), empty: libc::EAGAIN, ..Self::default() }
    }

    fn verdict(&self) -> io::Result<()> {
        match self.refusals.borrow_mut().pop_front().flatten() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl KernelTls for Fake {
    fn attach(&self) -> io::Result<()> {
        self.verdict()
    }

    fn set_key(&self, direction: TlsDirection, _: &CryptoInfo) -> io::Result<()> {
        self.verdict()?;
        self.keys.borrow_mut().push(direction);
        Ok(())
    }

    fn recv_record(&self, into: &mut [u8]) -> io::Result<(u8, usize)> {
        let record = self.records.borrow_mut().pop_front();
        let (kind, message) = record.ok_or_else(|| io::Error::from_raw_os_error(self.empty))?;
        let count = message.len().min(into.len());
        into[..count].copy_from_slice(&message[..count]);
        Ok((kind, count))
    }

    fn sequence(&self, _: TlsDirection) -> io::Result<u64> {
        self.verdict().map(|()| self.sequence.get())
    }

    fn send_record(&self, _: u8, _: &[u8]) -> io::Result<()> {
        self.verdict()
    }
}

fn established(suite: CipherSuite) -> Established {
    let mut client = client(&client_config(Some(suite), &[]));
    run(&mut client, server(&[]), |asked| asked, b"x").expect("a handshake").established
}

fn halves(suite: CipherSuite, can_rekey: bool) -> (KernelOpener, KernelSealer) {
    let support = Support::everything(can_rekey);
    handover(established(suite), &Fake::default(), &support).expect("nothing refuses")
}

/// What becomes of one record.
fn taken(
    suite: CipherSuite,
    can_rekey: bool,
    record: (u8, &[u8]),
) -> Result<(Taken, Vec<TlsDirection>), RecordError> {
    let (mut opener, _sealer) = halves(suite, can_rekey);
    let fake = Fake::with_records(&[record]);
    match opener.take(&fake, &mut [0; 64]) {
        Ok(taken) => Ok((taken, fake.keys.take())),
        Err(KernelRecordError::Record(error)) => Err(error),
        Err(KernelRecordError::Io(error)) => panic!("{error}"),
    }
}

#[test]
fn every_suite_is_handed_over_sending_first() {
    for suite in suites() {
        let fake = Fake::default();
        let support = Support::everything(true);
        let established = established(suite.suite());
        assert!(is_possible(&established, &support));
        assert!(!is_possible(&established, &Support::none("none")));
        handover(established, &fake, &support).expect("nothing refuses");
        assert_eq!(fake.keys.take(), [TlsDirection::Send, TlsDirection::Receive], "{suite:?}");
    }
}

#[test]
fn a_refusal_loses_nothing_before_the_first_key_and_everything_after_it() {
    let support = Support::everything(true);
    let fake = Fake::refusing([Some(libc::ENOENT)]);
    let Err(HandoverError::Refused(established, _)) = handover(established(TLS13), &fake, &support)
    else {
        panic!("the layer was attached");
    };
    assert!(super::super::session(*established).is_ok(), "user space takes it from here");
    for refusals in [vec![None, Some(libc::ENOENT)], vec![None, None, Some(libc::ENOMEM)]] {
        let fake = Fake::refusing(refusals);
        let outcome = handover(self::established(TLS13), &fake, &support);
        assert!(matches!(outcome, Err(HandoverError::Lost(_))));
    }
}

#[test]
fn records_that_are_not_data_are_understood() {
    let update = [24, 0, 0, 1, 0];
    assert_eq!(taken(TLS13, true, (21, &[1, 0])), Ok((Taken::CloseNotify, vec![])));
    assert_eq!(taken(TLS13, true, (21, &[2, 40])), Err(RecordError::PeerAlert(40)));
    let followed = (Taken::KeyUpdated, vec![TlsDirection::Receive]);
    assert_eq!(taken(TLS13, true, (22, &update)), Ok(followed));
    assert_eq!(taken(TLS13, false, (22, &update)), Err(RecordError::KeyUpdateUnsupported));
    assert_eq!(taken(TLS13, true, (22, &[1, 0, 0, 0])), Err(RecordError::Unexpected));
    assert_eq!(taken(TLS12, true, (22, &[1, 0, 0, 0])), Err(RecordError::Renegotiation));
    assert_eq!(taken(TLS13, true, (20, &[1])), Err(RecordError::Unexpected));
    // It was data after all.
    assert_eq!(taken(TLS13, true, (23, b"data")), Ok((Taken::Data(4), vec![])));
}

#[test]
fn nothing_to_take_is_no_error_and_a_broken_stream_is_one() {
    let (mut opener, _sealer) = halves(TLS13, true);
    let empty = Fake::with_records(&[]);
    assert_eq!(opener.take(&empty, &mut [0; 64]).ok(), Some(Taken::Nothing));
    let broken = Fake { empty: libc::EBADMSG, ..Fake::default() };
    let outcome = opener.take(&broken, &mut [0; 64]);
    assert!(matches!(outcome, Err(KernelRecordError::Record(RecordError::Authentication))));
    let reset = Fake { empty: libc::ECONNRESET, ..Fake::default() };
    assert!(matches!(opener.take(&reset, &mut [0; 64]), Err(KernelRecordError::Io(_))));
}

#[test]
fn a_storm_of_key_updates_is_ended() {
    let (mut opener, _sealer) = halves(TLS13, true);
    let update: (u8, &[u8]) = (22, &[24, 0, 0, 1, 0]);
    let fake = Fake::with_records(&[update; 100]);
    let outcome = (0..100).find_map(|_| opener.take(&fake, &mut [0; 64]).err());
    assert!(matches!(outcome, Some(KernelRecordError::Record(RecordError::KeyUpdates))));
}

#[test]
fn our_key_changes_when_asked_and_when_used_up() {
    let (mut opener, mut sealer) = halves(TLS13, true);
    assert_eq!(sealer.due_key_update(), Ok(None));
    let asking = Fake::with_records(&[(22, &[24, 0, 0, 1, 1])]);
    opener.take(&asking, &mut [0; 64]).expect("it is followed");
    assert_eq!(sealer.due_key_update(), Ok(Some((22, [24, 0, 0, 1, 0]))));
    let fake = Fake::default();
    sealer.change_key(&fake).expect("nothing refuses");
    assert_eq!(fake.keys.take(), [TlsDirection::Send]);
    assert_eq!(sealer.due_key_update(), Ok(None));
    sealer.records = (1 << 23) - 2;
    sealer.on_sent(2 * RECORD_PLAINTEXT_MAX);
    assert!(matches!(sealer.due_key_update(), Ok(Some(_))));

    for (suite, can_rekey) in [(TLS12, true), (TLS13, false)] {
        let (_opener, mut sealer) = halves(suite, can_rekey);
        sealer.records = 1 << 23;
        assert!(sealer.is_key_worn());
        assert_eq!(sealer.due_key_update(), Ok(None), "there is time for a clean end");
        sealer.records = 3 << 22;
        assert_eq!(sealer.due_key_update(), Err(RecordError::KeyExhausted), "{suite:?}");
    }
}

#[test]
fn the_peer_is_asked_for_another_key_in_time_or_the_connection_ends() {
    const MIB: usize = 1 << 20;
    let (mut opener, mut sealer) = halves(TLS13, true);
    let fake = Fake::default();
    fake.sequence.set(1 << 23);
    assert_eq!(opener.on_data(&fake, MIB - 1), Ok(()));
    assert_eq!(sealer.due_key_update(), Ok(None), "not counted yet");
    assert_eq!(opener.on_data(&fake, 1), Ok(()));
    assert_eq!(sealer.due_key_update(), Ok(Some((22, [24, 0, 0, 1, 1]))));
    assert_eq!(sealer.due_key_update(), Ok(None), "once is enough");
    assert!(!opener.is_key_worn());
    fake.sequence.set(5 << 21);
    assert_eq!(opener.on_data(&fake, MIB), Ok(()));
    assert!(opener.is_key_worn(), "the peer does not answer");
    fake.sequence.set(3 << 22);
    assert_eq!(opener.on_data(&fake, MIB), Err(RecordError::KeyExhausted));

    let (mut opener, mut sealer) = halves(TLS12, false);
    fake.sequence.set(1 << 23);
    assert_eq!(opener.on_data(&fake, MIB), Ok(()));
    assert!(opener.is_key_worn());
    assert_eq!(sealer.due_key_update(), Ok(None), "there is nothing to ask for");
}

#[test]
fn a_record_that_asks_for_nothing_is_passed_over_but_not_for_ever() {
    let (mut opener, _sealer) = halves(TLS12, true);
    let warning: (u8, &[u8]) = (21, &[1, 90]);
    let fake = Fake::with_records(&[warning; 100]);
    assert_eq!(opener.take(&fake, &mut [0; 64]).ok(), Some(Taken::Handled));
    let outcome = (0..100).find_map(|_| opener.take(&fake, &mut [0; 64]).err());
    assert!(matches!(outcome, Some(KernelRecordError::Record(RecordError::EmptyRecords))));
    // Data between them shows that the peer means it well.
    let (mut opener, _sealer) = halves(TLS12, true);
    for _ in 0..100 {
        let fake = Fake::with_records(&[warning, (23, b"data")]);
        assert_eq!(opener.take(&fake, &mut [0; 64]).ok(), Some(Taken::Handled));
        assert_eq!(opener.take(&fake, &mut [0; 64]).ok(), Some(Taken::Data(4)));
    }
}

#[test]
fn a_key_that_the_kernel_does_not_take_any_more_ends_the_connection() {
    let (mut opener, mut sealer) = halves(TLS13, true);
    let fake = Fake {
        refusals: RefCell::new([Some(libc::EBUSY)].into()),
        ..Fake::with_records(&[(22, &[24, 0, 0, 1, 1])])
    };
    let error = opener.take(&fake, &mut [0; 64]).unwrap_err();
    assert!(
        matches!(&error, KernelRecordError::Io(error) if error.raw_os_error() == Some(libc::EBUSY))
    );
    assert!(!error.to_string().is_empty());
    assert_eq!(sealer.due_key_update(), Ok(None), "there is nobody to answer");

    let fake = Fake::refusing([Some(libc::EBUSY)]);
    sealer.records = 7;
    assert!(matches!(sealer.change_key(&fake), Err(KernelRecordError::Io(_))));
    assert_eq!(sealer.records, 7, "it is still the old key");

    // TLS 1.2 has no other key at all.
    let (_opener, mut sealer) = halves(TLS12, true);
    let outcome = sealer.change_key(&Fake::default());
    assert!(matches!(outcome, Err(KernelRecordError::Record(RecordError::KeySchedule))));
}

#[test]
fn a_kernel_that_does_not_count_is_taken_for_one_record_a_byte() {
    let (mut opener, _sealer) = halves(TLS12, true);
    for round in 1..=12 {
        let fake = Fake::refusing([Some(libc::EOPNOTSUPP)]);
        let outcome = opener.on_data(&fake, 1 << 20);
        match round {
            12 => assert_eq!(outcome, Err(RecordError::KeyExhausted)),
            _ => assert_eq!((outcome, opener.is_key_worn()), (Ok(()), round >= 8), "{round} MiB"),
        }
    }
    // Also when it comes out while a record is taken.
    let (mut opener, _sealer) = halves(TLS13, true);
    opener.uncounted = (1 << 20) - 1;
    let fake = Fake::with_records(&[(23, b"x")]);
    fake.sequence.set(3 << 22);
    let outcome = opener.take(&fake, &mut [0; 64]);
    assert!(matches!(outcome, Err(KernelRecordError::Record(RecordError::KeyExhausted))));
}

#[test]
fn errors_of_a_receive_are_told_apart() {
    let of = io::Error::from_raw_os_error;
    for errno in [libc::EIO, libc::EINVAL] {
        assert!(KernelOpener::is_control(&of(errno)));
        assert_eq!(KernelOpener::record_error(&of(errno)), None);
    }
    for (errno, expected) in [
        (libc::EBADMSG, Some(RecordError::Authentication)),
        (libc::EMSGSIZE, Some(RecordError::TooLong(RECORD_PLAINTEXT_MAX))),
        (libc::ECONNRESET, None),
    ] {
        assert!(!KernelOpener::is_control(&of(errno)));
        assert_eq!(KernelOpener::record_error(&of(errno)), expected);
    }
}
