//! A relay of TCP that breaks what passes through it, as a test tells it to while connections are open.

mod line;
#[cfg(test)]
mod tests;
mod toxic;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

pub use self::toxic::{Admission, Ending, Flow, Toxic, Way};
use crate::PATIENCE;
use crate::pump::Random;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Stack of each of the two threads of a connection, in bytes.
const STACK_BYTES: usize = 256 * 1024;

/// How often a port that refuses is looked at again.
const PAUSE: Duration = Duration::from_millis(2);

/// Passes connections on to a target, with faults. All connections, open and to come, follow what is set; nothing is set
/// at first. Ends with its connections when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    listener: TcpListener,
    accepted: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    admission: Admission,
    toxics: [Toxic; 2],
    random: Random,
    pairs: Vec<Weak<Pair>>,
    held: Vec<TcpStream>,
    is_over: bool,
    /// Everybody who waits hears when this is dropped.
    bell: Option<OwnedFd>,
    hearing: Arc<OwnedFd>,
}

/// The two sockets of a connection: the caller's and the target's.
struct Pair {
    sockets: [TcpStream; 2],
    passed: [AtomicU64; 2],
}

impl FaultProxy {
    /// Starts one on a free port of 127.0.0.1. What is random in it follows the seed.
    ///
    /// # Panics
    /// When no port can be bound.
    #[must_use]
    pub fn start(target: SocketAddr, seed: u64) -> Self {
        let listener = listener().expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (hearing, bell) = rustix::pipe::pipe().expect("a pipe");
        let state = State {
            admission: Admission::Open,
            toxics: [Toxic::default(), Toxic::default()],
            random: Random::of(seed),
            pairs: Vec::new(),
            held: Vec::new(),
            is_over: false,
            bell: Some(bell),
            hearing: Arc::new(hearing),
        };
        let accepted = AtomicUsize::new(0);
        let shared = Arc::new(Shared { target, listener, accepted, state: Mutex::new(state) });
        let acceptor = Arc::clone(&shared);
        thread::spawn(move || acceptor.accept());
        Self { address, shared }
    }

    /// Where it listens: the same port for its whole life, whether it refuses or not.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of new connections.
    ///
    /// # Panics
    /// When the port cannot be listened at again.
    pub fn admit(&self, admission: Admission) {
        let mut state = self.shared.lock();
        let was_refused = state.admission == Admission::Refused;
        state.admission = admission;
        if admission == Admission::Refused {
            // The socket keeps its port and stops to listen, and what waits to be accepted is reset.
            let _ = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Read);
        } else if was_refused {
            rustix::net::listen(&self.shared.listener, BACKLOG).expect("it has its port still");
        }
        if admission != Admission::Silent {
            state.held.clear();
        }
        state.ring();
    }

    /// What is done to the bytes of one direction, from now on, instead of what was done before.
    ///
    /// # Panics
    /// When there are no descriptors left.
    pub fn set(&self, way: Way, toxic: Toxic) {
        let mut state = self.shared.lock();
        state.toxics[way.index()] = toxic;
        state.ring();
    }

    /// The same for both directions.
    ///
    /// # Panics
    /// As [`FaultProxy::set`].
    pub fn set_both(&self, toxic: &Toxic) {
        self.set(Way::Up, toxic.clone());
        self.set(Way::Down, toxic.clone());
    }

    /// No more faults. What was broken off stays so.
    ///
    /// # Panics
    /// As [`FaultProxy::set`].
    pub fn clear(&self) {
        self.admit(Admission::Open);
        self.set_both(&Toxic::default());
    }

    /// Resets the open connections, on both sides.
    pub fn reset(&self) {
        let state = self.shared.lock();
        state.pairs.iter().filter_map(Weak::upgrade).for_each(|pair| pair.reset());
    }

    /// Ends the open connections in good order, on both sides, wherever they are.
    pub fn close(&self) {
        let state = self.shared.lock();
        state.pairs.iter().filter_map(Weak::upgrade).for_each(|pair| pair.close());
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open now, those in the hands of nobody among them.
    #[must_use]
    pub fn open(&self) -> usize {
        let state = self.shared.lock();
        state.pairs.iter().filter(|pair| pair.strong_count() > 0).count() + state.held.len()
    }

    /// Bytes that open connections have passed on in this direction.
    #[must_use]
    pub fn passed(&self, way: Way) -> u64 {
        let state = self.shared.lock();
        let pairs = state.pairs.iter().filter_map(Weak::upgrade);
        pairs.map(|pair| pair.passed[way.index()].load(Ordering::Relaxed)).sum()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        state.held.clear();
        state.bell = None;
        let _ = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Read);
    }
}

/// A listener whose port stays its own while it does not listen, which the kernel grants to ports that were asked for.
fn listener() -> io::Result<TcpListener> {
    let bound = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        Ok::<_, io::Error>(socket)
    };
    let free = bound(0)?;
    let port = free.local_addr()?.as_socket_ipv4().map_or(0, |address| address.port());
    let socket = bound(port)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl State {
    /// Wakes everybody who waits.
    fn ring(&mut self) {
        if self.bell.is_some() {
            let (hearing, bell) = rustix::pipe::pipe().expect("a pipe");
            (self.hearing, self.bell) = (Arc::new(hearing), Some(bell));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>) {
        loop {
            let (is_refusing, hearing) = {
                let state = self.lock();
                if state.is_over {
                    return;
                }
                (state.admission == Admission::Refused, Arc::clone(&state.hearing))
            };
            let mut waits = vec![PollFd::new(&*hearing, PollFlags::IN)];
            if !is_refusing {
                waits.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            let _ = poll(&mut waits, None);
            match self.listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It refuses, or there are no descriptors left for a while.
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        match state.admission {
            Admission::Open => {}
            Admission::Silent => return state.held.push(stream),
            // Accepted before it was told to refuse.
            Admission::Reset | Admission::Refused => {
                let _ = rustix::net::connect_unspec(&stream);
                return;
            }
        }
        let random = [state.random.fork(), state.random.fork()];
        drop(state);
        let shared = Arc::clone(self);
        let connect = move || {
            let Ok(target) = TcpStream::connect_timeout(&shared.target, PATIENCE) else {
                let _ = rustix::net::connect_unspec(&stream);
                return;
            };
            let pair = Arc::new(Pair { sockets: [stream, target], passed: Default::default() });
            if pair.sockets.iter().any(|one| prepare(one).is_err()) {
                return pair.reset();
            }
            {
                let mut state = shared.lock();
                state.pairs.retain(|pair| pair.strong_count() > 0);
                state.pairs.push(Arc::downgrade(&pair));
            }
            let [up, down] = random;
            let (other, common) = (Arc::clone(&pair), Arc::clone(&shared));
            let run_down = move || line::run(&other, &common, Way::Down, down);
            if thread::Builder::new().stack_size(STACK_BYTES).spawn(run_down).is_ok() {
                line::run(&pair, &shared, Way::Up, up);
            } else {
                pair.reset();
            }
        };
        // Without a thread the connection is dropped with what owns it.
        drop(thread::Builder::new().stack_size(STACK_BYTES).spawn(connect));
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)
}

impl Pair {
    fn reset(&self) {
        for socket in &self.sockets {
            // It may be over already.
            let _ = rustix::net::connect_unspec(socket);
        }
    }

    fn close(&self) {
        for socket in &self.sockets {
            drop(socket.shutdown(std::net::Shutdown::Both));
        }
    }
}
