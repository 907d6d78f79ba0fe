use std::task::Waker;

use proptest::prelude::*;

use super::*;

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn filled(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::with_capacity(bytes.len());
    buffer.append(bytes);
    buffer
}

/// Sends all of `bytes` by operations, as a user of the trait has to.
async fn send_all(end: &Double, bytes: &[u8]) {
    let mut buffer = filled(bytes);
    while !buffer.is_empty() {
        let (result, rest) = end.send(buffer).await;
        buffer = rest;
        match result {
            Ok(count) => assert!(count > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                end.writable().await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
    end.shutdown(Shutdown::Write);
}

/// Receives to the end, by direct calls where `direct` says so.
async fn receive_all(end: &Double, room: usize, direct: bool) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut buffer = Buffer::with_capacity(room);
        let result = if direct {
            end.readable().await.unwrap();
            end.try_recv(&mut buffer, usize::MAX)
        } else {
            let (result, owned) = end.recv(buffer).await;
            buffer = owned;
            result
        };
        match result {
            Ok(0) => return all,
            Ok(count) => {
                assert_eq!(count, buffer.len());
                all.extend_from_slice(buffer.filled());
            }
            Err(error) => assert!(matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            )),
        }
    }
}

proptest! {
    #[test]
    fn rough_ends_lose_nothing(
        seeds: (u64, u64),
        capacity in 1_usize..300,
        room in 1_usize..300,
        direct: (bool, bool),
        up in prop::collection::vec(any::<u8>(), 1..2000),
        down in prop::collection::vec(any::<u8>(), 1..2000),
    ) {
        let (left, right) = pair(capacity);
        left.set_mood(Mood::Rough(seeds.0));
        right.set_mood(Mood::Rough(seeds.1));
        let ((), (), at_right, at_left) = run(async {
            tokio::join!(
                send_all(&left, &up),
                send_all(&right, &down),
                receive_all(&right, room, direct.0),
                receive_all(&left, room, direct.1),
            )
        });
        prop_assert_eq!(&at_right, &up);
        prop_assert_eq!(&at_left, &down);
        prop_assert_eq!(left.sent(), up);
        prop_assert_eq!(right.sent(), down);
    }

    #[test]
    fn the_same_seed_does_the_same(seed: u64, bytes in prop::collection::vec(any::<u8>(), 1..500)) {
        let calls = || {
            let (left, right) = pair(64);
            left.set_mood(Mood::Rough(seed));
            run(async { tokio::join!(send_all(&left, &bytes), receive_all(&right, 7, false)) });
            left.calls(Direction::Send)
        };
        prop_assert_eq!(calls(), calls());
    }
}

#[test]
fn steps_are_followed_in_order() {
    let (left, right) = pair(64);
    left.script(
        Direction::Send,
        [
            Step::AtMost(2),
            Step::Fail(io::ErrorKind::Interrupted),
            Step::Fail(io::ErrorKind::ConnectionReset),
        ],
    );
    run(async {
        let (result, rest) = left.send(filled(b"hello")).await;
        assert_eq!((result.unwrap(), rest.filled()), (2, &b"llo"[..]));
        let (result, rest) = left.send(rest).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Interrupted);
        let (result, rest) = left.send(rest).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(rest.filled(), b"llo");
    });
    assert_eq!(left.sent(), b"he");
    assert_eq!(left.steps_left(Direction::Send), 0);

    let mut buffer = Buffer::with_capacity(8);
    right.script(Direction::Receive, [Step::AtMost(1)]);
    assert_eq!(right.try_recv(&mut buffer, usize::MAX).unwrap(), 1);
    assert_eq!(right.try_recv(&mut buffer, usize::MAX).unwrap(), 1);
    assert_eq!(
        right.try_recv(&mut buffer, usize::MAX).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(buffer.filled(), b"he");
}

#[test]
fn an_error_comes_also_where_there_is_nothing_to_receive() {
    let (left, _right) = pair(64);
    left.script(Direction::Receive, [Step::Fail(io::ErrorKind::ConnectionReset)]);
    let (result, _) = run(left.recv(Buffer::with_capacity(1)));
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_held_call_waits_for_its_release() {
    let (left, right) = pair(64);
    right.script(Direction::Receive, [Step::Hold, Step::AtMost(1)]);
    left.try_send(b"abc").unwrap();
    let mut receive = right.recv(Buffer::with_capacity(8));
    assert!(poll(&mut receive).is_pending());
    assert!(right.is_in_flight(Direction::Receive));
    right.release(Direction::Receive);
    let (result, buffer) = run(&mut receive);
    assert_eq!((result.unwrap(), buffer.filled()), (1, &b"a"[..]));
    assert!(!right.is_in_flight(Direction::Receive));
}

#[test]
fn a_shutdown_completes_what_is_in_flight() {
    let (left, right) = pair(1);
    left.try_send(b"x").unwrap();
    left.script(Direction::Receive, [Step::Hold]);
    let mut receive = left.recv(Buffer::with_capacity(8));
    let mut send = left.send(filled(b"y"));
    assert!(poll(&mut receive).is_pending());
    assert!(poll(&mut send).is_pending());
    left.shutdown(Shutdown::Both);
    assert_eq!(run(receive).0.unwrap(), 0);
    assert_eq!(run(send).0.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(left.is_shut(Direction::Receive) && left.is_shut(Direction::Send));

    let received = run(receive_all(&right, 8, false));
    assert_eq!(received, b"x");
}

#[test]
fn an_end_whose_handles_are_gone_is_closed() {
    let (left, right) = pair(8);
    drop(right.clone());
    assert!(left.try_send(b"a").is_ok());
    drop(right);
    assert_eq!(left.try_send(b"b").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(left.try_recv(&mut Buffer::with_capacity(1), usize::MAX).unwrap(), 0);
}

#[test]
#[should_panic(expected = "still in flight")]
fn a_receive_beside_one_that_was_dropped_is_refused() {
    let (left, _right) = pair(8);
    drop(left.recv(Buffer::with_capacity(1)));
    drop(left.recv(Buffer::with_capacity(1)));
}

#[test]
#[should_panic(expected = "still in flight")]
fn a_direct_send_beside_one_in_flight_is_refused() {
    let (left, _right) = pair(8);
    let _send = left.send(filled(b"a"));
    drop(left.try_send(b"b"));
}

#[test]
#[should_panic(expected = "needs room")]
fn a_receive_without_room_is_refused() {
    let (left, _right) = pair(8);
    drop(left.recv(Buffer::default()));
}
