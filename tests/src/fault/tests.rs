use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::{Admission, Ending, FaultProxy, Toxic, Way};
use crate::origin::Origin;
use crate::{PATIENCE, wait_for};

const SEED: u64 = 7;

/// An upstream that sends everything back, and its end, too.
fn echo() -> Origin {
    Origin::start(|connection| {
        let mut piece = [0; 4096];
        loop {
            match connection.stream.read(&mut piece)? {
                0 => return connection.stream.shutdown(Shutdown::Write),
                count => connection.send(&piece[..count])?,
            }
        }
    })
}

fn connect(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).expect("it accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect()
}

/// Sends, says that this is all, and receives to the end.
fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut sender = stream.try_clone()?;
    let outgoing = bytes.to_vec();
    let sending = std::thread::spawn(move || {
        sender.write_all(&outgoing).and_then(|()| sender.shutdown(Shutdown::Write))
    });
    let mut back = Vec::new();
    let end = stream.read_to_end(&mut back);
    sending.join().expect("it does not panic").and(end)?;
    Ok(back)
}

#[test]
fn without_faults_and_in_any_pieces_bytes_are_what_they_were() {
    let origin = echo();
    let proxy = FaultProxy::start(origin.address(), SEED);
    let sent = pattern(300_000);
    assert_eq!(round_trip(&mut connect(&proxy), &sent).expect("it ends well"), sent);
    let toxic = Toxic {
        jitter: Duration::from_millis(2),
        ..Toxic::pieces(7000, Duration::from_micros(50))
    };
    proxy.set_both(&toxic);
    assert_eq!(round_trip(&mut connect(&proxy), &sent).expect("it ends well"), sent);
    proxy.set_both(&Toxic::pieces(1, Duration::ZERO));
    assert_eq!(
        round_trip(&mut connect(&proxy), &sent[..5000]).expect("it ends well"),
        sent[..5000]
    );
    wait_for("the end of the connections", || (proxy.open() == 0).then_some(()));
    assert_eq!(proxy.accepted(), 3);
}

#[test]
fn lateness_rate_and_slow_close_take_their_time() {
    let origin = echo();
    let proxy = FaultProxy::start(origin.address(), SEED);
    let took = |way, toxic, len| {
        proxy.clear();
        proxy.set(way, toxic);
        let begun = Instant::now();
        let sent = pattern(len);
        assert_eq!(round_trip(&mut connect(&proxy), &sent).expect("it ends well"), sent);
        begun.elapsed()
    };
    let fifth = Duration::from_millis(200);
    assert!(took(Way::Up, Toxic::late(fifth), 10) >= fifth);
    assert!(took(Way::Down, Toxic::slow_close(fifth), 10) >= fifth);
    // The last piece costs nobody anything.
    assert!(took(Way::Up, Toxic::rate(1 << 20), 400_000) >= fifth);
    assert!(took(Way::Down, Toxic::pieces(1, Duration::from_millis(20)), 11) >= fifth);
}

#[test]
fn a_stall_is_felt_by_the_sender_and_passes() {
    let origin = Origin::start(|connection| {
        while connection.take(1 << 20).is_ok() {}
        Ok(())
    });
    let proxy = FaultProxy::start(origin.address(), SEED);
    let mut stream = connect(&proxy);
    proxy.set(Way::Up, Toxic::stalled());
    stream.set_nonblocking(true).expect("a socket option");
    let piece = pattern(64 * 1024);
    wait_for("the end of the window", || {
        let is_full =
            stream.write(&piece).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        std::thread::sleep(Duration::from_millis(5));
        (is_full && stream.write(&piece).is_err()).then_some(())
    });
    assert_eq!(proxy.passed(Way::Up), 0);
    proxy.clear();
    wait_for("room", || stream.write(&piece).ok());
}

#[test]
fn endings_come_at_their_byte() {
    let origin = echo();
    let proxy = FaultProxy::start(origin.address(), SEED);
    let sent = pattern(100_000);
    let received = |way, ending| {
        proxy.clear();
        proxy.set(way, Toxic::ending(ending));
        let mut stream = connect(&proxy);
        stream.write_all(&sent).expect("it is sent");
        let (mut back, mut piece) = (Vec::new(), [0; 4096]);
        let end = loop {
            match stream.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(count) => back.extend_from_slice(&piece[..count]),
                Err(error) => break Err(error.kind()),
            }
        };
        assert_eq!(back, sent[..back.len()]);
        (back.len(), end)
    };
    assert_eq!(received(Way::Down, Ending::Close(1001)), (1001, Ok(())));
    assert_eq!(received(Way::Down, Ending::Finish(1002)), (1002, Ok(())));
    // The origin ends with what it gets.
    assert_eq!(received(Way::Up, Ending::Finish(1003)), (1003, Ok(())));
    // A reset overtakes what waits to be read.
    let (count, end) = received(Way::Down, Ending::Reset(1004));
    assert!(count <= 1004);
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    proxy.set(Way::Down, Toxic::ending(Ending::Stall(10)));
    let mut stream = connect(&proxy);
    stream.write_all(&sent).expect("it is sent");
    stream.read_exact(&mut [0; 10]).expect("this much comes");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    let end = stream.read(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(end, Err(io::ErrorKind::WouldBlock));
}

#[test]
fn it_refuses_resets_and_keeps_silent_at_the_same_port() {
    let origin = echo();
    let proxy = FaultProxy::start(origin.address(), SEED);
    let ask = || {
        let mut stream = TcpStream::connect(proxy.address())?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    for _ in 0..3 {
        ask().expect("it is open");
        proxy.admit(Admission::Refused);
        let refused = ask().map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::ConnectionRefused));
        proxy.admit(Admission::Open);
    }
    proxy.admit(Admission::Reset);
    ask().expect_err("reset");
    proxy.admit(Admission::Silent);
    let silent = ask().map_err(|error| error.kind());
    assert_eq!(silent, Err(io::ErrorKind::WouldBlock));
    proxy.clear();
    let mut stream = connect(&proxy);
    stream.write_all(b"x").expect("it is open");
    stream.read_exact(&mut [0]).expect("it is open");
    proxy.reset();
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
}
