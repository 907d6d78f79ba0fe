//! Every operation, on a real ring.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::*;
use crate::buffers::{Buffers, Class};
use crate::transport::{Buffer, Transport};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Runs a test on a ring of its own by each driver, and where receives stand; one that hangs fails after ten seconds.
fn ring<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for delivery in [Delivery::Standing, Delivery::Deferred, Delivery::SingleIssuer] {
        on(delivery, |_, _| test());
    }
}

/// Runs a test on a ring like this, or like what the kernel has instead, with the buffers that are lent to it.
fn on<F: Future<Output = ()>>(delivery: Delivery, test: impl Fn(Ring, Rc<Buffers>) -> F) {
    let test = &test;
    let bounded = |given| async move {
        let buffers = Rc::<Buffers>::default();
        lend(Rc::clone(&buffers));
        tokio::select! {
            () = test(given, buffers) => {}
            () = sleep(Duration::from_secs(10)) => panic!("the test hangs"),
        }
    };
    start(Setup { submissions: 64, completions: 256, delivery }, bounded).unwrap();
}

async fn tcp_pair() -> (Socket, Socket) {
    let listener = Listener::bind(LOCALHOST, &ListenOptions::default()).unwrap();
    let address = listener.local_addr().unwrap();
    let here = Socket::connect(&address.into()).unwrap().await.unwrap();
    let (there, _) = listener.accept().await.unwrap();
    listener.close();
    assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
    (here, there)
}

fn filled(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::with_capacity(bytes.len());
    buffer.append(bytes);
    buffer
}

#[test]
fn bytes_go_both_ways() {
    ring(|| async {
        let (here, there) = tcp_pair().await;
        let (sent, rest) = here.send(filled(b"hello")).await;
        assert_eq!((sent.unwrap(), rest.len()), (5, 0));
        let (received, buffer) = there.recv(Buffer::with_capacity(16)).await;
        assert_eq!((received.unwrap(), buffer.filled()), (5, &b"hello"[..]));
    });
}

#[test]
fn connections_that_wait_are_accepted_in_one_turn() {
    ring(|| async {
        const COUNT: usize = 20;
        let listener = Listener::bind(LOCALHOST, &ListenOptions::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = |_| std::net::TcpStream::connect(address).unwrap();
        let clients: Vec<_> = (0..COUNT).map(connect).collect();
        let mut peers = vec![listener.accept().await.unwrap().1];
        for _ in 1..COUNT {
            // No turn of the ring in between: under load, one turn takes as long as everybody's work together.
            let accept = std::pin::pin!(listener.accept());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready(accepted) = accept.poll(&mut cx) else {
                panic!("{} of {COUNT} were accepted, the others have to wait", peers.len());
            };
            peers.push(accepted.unwrap().1);
        }
        let here: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        assert_eq!(peers, here, "in the order in which they came");
        listener.close();
        assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
    });
}

#[test]
fn more_operations_than_the_queue_holds_complete() {
    ring(|| async {
        const COUNT: usize = 300;
        let done = Rc::new(std::cell::Cell::new(0));
        for _ in 0..COUNT {
            let done = Rc::clone(&done);
            spawn(async move {
                no_op().await;
                done.set(done.get() + 1);
            });
        }
        while done.get() < COUNT {
            no_op().await;
        }
    });
}

#[test]
fn where_little_goes_on_a_send_does_not_wait_for_the_end_of_the_turn() {
    let test = |given: Ring| async move {
        if given.delivery < Delivery::Deferred {
            eprintln!("skipped: this kernel has no DEFER_TASKRUN");
            return;
        }
        let (here, there) = tcp_pair().await;
        for _ in 0..3 {
            let send = here.send(filled(b"now"));
            let mut buffer = Buffer::with_capacity(16);
            // No turn in between.
            assert_eq!(there.try_recv(&mut buffer, 16).unwrap(), 3);
            assert_eq!(send.await.0.unwrap(), 3);
        }
    };
    let delivery = Delivery::Deferred;
    start(Setup { submissions: 64, completions: 256, delivery }, test).unwrap();
}

#[test]
fn where_little_goes_on_a_send_that_completes_at_once_wakes_nobody() {
    let test = |given: Ring| async move {
        if given.delivery < Delivery::Deferred {
            eprintln!("skipped: this kernel has no DEFER_TASKRUN");
            return;
        }
        let (here, _there) = tcp_pair().await;
        let mut send = std::pin::pin!(here.send(filled(b"now")));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        // No turn in between.
        let std::task::Poll::Ready((sent, _)) = send.as_mut().poll(&mut cx) else {
            panic!("it waits for a turn");
        };
        assert_eq!(sent.unwrap(), 3);
    };
    let delivery = Delivery::Deferred;
    start(Setup { submissions: 64, completions: 256, delivery }, test).unwrap();
}

/// What completes at once, again and again, must not keep the thread from looking at the others.
#[test]
fn a_task_that_never_waits_long_leaves_others_their_turn() {
    ring(|| async {
        let ((here, there), (busy, _idle)) = (tcp_pair().await, tcp_pair().await);
        let done = Rc::new(std::cell::Cell::new(false));
        let receive = there.recv(Buffer::with_capacity(16));
        spawn({
            let done = Rc::clone(&done);
            async move {
                assert_eq!(receive.await.0.unwrap(), 3);
                done.set(true);
            }
        });
        no_op().await;
        assert_eq!(here.try_send(b"now").unwrap(), 3);
        for _ in 0..1000 {
            assert_eq!(busy.send(filled(b"x")).await.0.unwrap(), 1);
        }
        assert!(done.get(), "a thousand sends, and nobody has looked");
    });
}

/// Runs a test where receives stand, if this kernel can do that; one that hangs fails after ten seconds.
fn where_receives_stand<F: Future<Output = ()>>(test: impl Fn(Rc<Buffers>) -> F) {
    on(Delivery::Standing, |given, buffers| {
        let stands = given.delivery == Delivery::Standing;
        let test = stands.then(|| test(buffers));
        async move {
            match test {
                Some(test) => test.await,
                None => eprintln!("skipped: receives do not stand here, Linux 6.15 is needed"),
            }
        }
    });
}

#[test]
fn who_waits_for_a_standing_receive_pins_no_buffer() {
    where_receives_stand(|buffers| async move {
        let (here, there) = tcp_pair().await;
        for round in 0_u8..3 {
            let buffer = buffers.take(Class::Tiny);
            let storage = buffer.filled().as_ptr();
            let receive = there.recv(buffer);
            let other = buffers.take(Class::Tiny);
            assert_eq!(other.filled().as_ptr(), storage, "it waits with the buffer");
            buffers.give(other);
            here.send(filled(&[round; 100])).await.0.unwrap();
            let (count, buffer) = receive.await;
            assert_eq!((count.unwrap(), buffer.filled()), (100, &[round; 100][..]));
            buffers.give(buffer);
        }
    });
}

#[test]
fn a_standing_receive_gives_way_to_large_buffers_and_to_pipes() {
    where_receives_stand(|buffers| async move {
        let (here, there) = tcp_pair().await;
        let pipe = buffers.pipes().take().expect("a pipe");
        let mut expected = 0_u8;
        for class in [Class::Tiny, Class::Bulk, Class::Small, Class::Bulk, Class::Record] {
            // In the socket, or brought already, when it is asked for.
            for is_early in [false, true] {
                let receive = (!is_early).then(|| there.recv(buffers.take(class)));
                no_op().await;
                expected += 1;
                here.send(filled(&[expected; 300])).await.0.unwrap();
                no_op().await;
                let receive = receive.unwrap_or_else(|| there.recv(buffers.take(class)));
                let (count, buffer) = receive.await;
                assert_eq!((count.unwrap(), buffer.filled()), (300, &[expected; 300][..]));
                buffers.give(buffer);
            }
            expected += 1;
            here.send(filled(&[expected; 500])).await.0.unwrap();
            let splicer = there.splicer().expect("a socket has one");
            let count = loop {
                match splicer.fill(&pipe, 1 << 16) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        there.readable().await.unwrap();
                    }
                    filled => break filled.unwrap(),
                }
            };
            let mut bytes = [0; 1000];
            assert_eq!(rustix::io::read(&pipe.read, &mut bytes).unwrap(), count);
            assert_eq!(bytes[..count], [expected; 500]);
        }
        here.shutdown(std::net::Shutdown::Write);
        for _ in 0..2 {
            assert_eq!(there.recv(buffers.take(Class::Tiny)).await.0.unwrap(), 0);
        }
    });
}

#[test]
fn who_sends_more_than_is_asked_for_has_to_wait() {
    where_receives_stand(|buffers| async move {
        let (here, there) = tcp_pair().await;
        here.send(filled(b"x")).await.0.unwrap();
        assert_eq!(there.recv(buffers.take(Class::Tiny)).await.0.unwrap(), 1);
        // Nobody asks any more.
        let piece = vec![0; 1 << 16];
        let mut sent = 0;
        for _ in 0..1000 {
            sent += here.try_send(&piece).unwrap_or(0);
            no_op().await;
        }
        assert!(sent < 32 << 20, "{sent} bytes were taken for nobody");
        let mut received = 0;
        while received < sent {
            let (count, buffer) = there.recv(buffers.take(Class::Record)).await;
            received += count.unwrap();
            buffers.give(buffer);
        }
    });
}

#[test]
fn the_kernel_takes_no_records_over_while_a_receive_stands() {
    where_receives_stand(|buffers| async move {
        let (_here, there) = tcp_pair().await;
        let _receive = there.recv(buffers.take(Class::Tiny));
        let refused = there.kernel_tls().expect("a socket has it").attach().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    });
}

#[test]
fn a_socket_that_goes_ends_its_standing_receive_and_closes() {
    where_receives_stand(|buffers| async move {
        let (here, there) = tcp_pair().await;
        let receive = there.recv(buffers.take(Class::Tiny));
        no_op().await;
        drop(receive);
        drop(there);
        assert_eq!(here.recv(buffers.take(Class::Tiny)).await.0.unwrap(), 0);
    });
}

#[test]
fn more_messages_than_there_are_provided_buffers_arrive() {
    where_receives_stand(|buffers| async move {
        const COUNT: usize = 10 * crate::limits::PROVIDED_BUFFERS as usize;
        let mut pairs = Vec::new();
        for _ in 0..COUNT {
            pairs.push(tcp_pair().await);
        }
        for round in 0_u8..3 {
            let ask = || {
                let ask = |(_, there): &(Socket, Socket)| there.recv(buffers.take(Class::Tiny));
                pairs.iter().map(ask).collect::<Vec<_>>()
            };
            // In the first round all is there when it is asked for: many at once find something as they are submitted.
            let early = (round > 0).then(ask);
            no_op().await;
            for (here, _) in &pairs {
                assert_eq!(here.try_send(&[round; 200]).unwrap(), 200);
            }
            let receives = early.unwrap_or_else(ask);
            for receive in receives {
                let (count, buffer) = receive.await;
                assert_eq!((count.unwrap(), buffer.filled()), (200, &[round; 200][..]));
                buffers.give(buffer);
            }
        }
    });
}

#[test]
fn a_ring_ends_while_operations_wait_for_a_peer() {
    ring(|| async {
        let (here, there) = tcp_pair().await;
        let receive = here.recv(Buffer::with_capacity(16));
        spawn(async move { drop(receive.await) });
        no_op().await;
        // Without its future, and with a handle that keeps the socket from being shut down.
        drop(there.recv(Buffer::with_capacity(16)));
        std::mem::forget(there);
    });
}

#[test]
fn a_socket_is_probed_after_its_own_time() {
    ring(|| async {
        let (here, _there) = tcp_pair().await;
        here.probe_after(Duration::from_secs(47)).unwrap();
        assert_eq!(rustix::net::sockopt::tcp_keepidle(&here).unwrap(), Duration::from_secs(47));
    });
}

/// Does nothing with its result.
struct Raw;

impl op::Operation for Raw {
    type Output = Option<i32>;

    fn complete(self, result: std::io::Result<u32>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }
}

#[test]
fn a_ring_refuses_every_operation_that_is_not_the_gateways() {
    let path = c"/etc/hostname";
    let open = || opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
    let flagged = || opcode::Nop::new().build().flags(squeue::Flags::ASYNC);
    let fixed =
        || opcode::Accept::new(types::Fixed(0), std::ptr::null_mut(), std::ptr::null_mut()).build();
    ring(|| async {
        // SAFETY: it names a constant, and completes once.
        let opened = unsafe { op::submit(Raw, open()) }.await;
        assert_eq!(opened, Some(libc::EACCES), "a file can be opened");
        // SAFETY: it names no memory, and completes once.
        let flagged = unsafe { op::submit(Raw, flagged()) }.await;
        assert_eq!(flagged, Some(libc::EACCES), "a flag is accepted");
        // SAFETY: as above.
        let fixed = unsafe { op::submit(Raw, fixed()) }.await;
        assert_eq!(fixed, Some(libc::EACCES), "a registered file is accepted");
        no_op().await;
        let (here, there) = tcp_pair().await;
        assert_eq!(here.send(filled(b"still")).await.0.unwrap(), 5);
        drop(there);
    });
}

#[test]
fn rings_of_threads_that_start_together_are_all_usable() {
    let threads: Vec<_> =
        (0..8).map(|_| std::thread::spawn(|| ring(|| async { drop(tcp_pair().await) }))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Bytes that the peer of `socket` has not acknowledged.
fn unacknowledged(socket: &Socket) -> libc::c_int {
    let mut count = 0;
    // SAFETY: the pointer is to a live integer, which this request writes. The descriptor is borrowed, hence open.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    assert_eq!(done, 0);
    count
}

#[test]
fn what_is_received_is_acknowledged_when_nothing_else_is_to_be_done() {
    // Of the kernel's patience, 40 ms, a machine may take more between two steps.
    const ATTEMPTS: usize = 20;
    ring(|| async {
        let (here, there) = tcp_pair().await;
        there.acknowledge();
        sleep(Duration::from_millis(1)).await;
        for attempt in 1.. {
            let start = std::time::Instant::now();
            here.send(filled(b"a part")).await.0.unwrap();
            there.recv(Buffer::with_capacity(16)).await.0.unwrap();
            let received = unacknowledged(&here);
            there.acknowledge();
            sleep(Duration::from_millis(1)).await;
            let rested = unacknowledged(&here);
            if start.elapsed() < Duration::from_millis(30) {
                assert_eq!((received, rested), (6, 0), "it waits, and not for long");
                break;
            }
            assert!(attempt < ATTEMPTS, "too slow a machine");
        }
    });
}
