//! One core: a thread with its own listeners, ring, pool, buffers and timers. It shares nothing with the others but the
//! configuration and the counting of connections.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockAddr;
use thiserror::Error;
use tokio::sync::watch;

use crate::accept::{Admission, Ticket};
use crate::addr::ClientAddr;
use crate::buffers::Buffers;
use crate::config;
use crate::connection::{self, Core, Door, Spare};
use crate::generation::{Generation, Shared};
use crate::ktls::probe::Support;
use crate::limits::{ABORT_GRACE, ACCEPT_PAUSE, PROBE_AFTER, PROBES_SPREAD, TIMER_TICK};
use crate::pool::{Network, Target};
use crate::telemetry::{Meter, WorkerCounters};
use crate::timers::{Activity, Timers};
use crate::uring::{self, AcceptError, ListenOptions, Listener, Ring, Socket, StartError};

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serve.
    Serving,
    /// Accept no more, finish what was begun, then end.
    Draining,
    /// The time for that is over: end.
    Aborting,
}

/// Orders from the control thread.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The configuration for new requests.
    pub shared: Arc<Shared>,
    /// What to do.
    pub phase: Phase,
}

/// What a worker reports when it could accept connections.
#[derive(Clone, Debug)]
pub struct Started {
    /// Where it is bound, in the order of the configured listeners.
    pub addresses: Vec<SocketAddr>,
    /// The ring it got.
    pub ring: Ring,
}

/// Why a worker could not start.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// An address cannot be bound.
    #[error("cannot listen on {0}: {1}{hint}", hint = bind_hint(.1))]
    Bind(SocketAddr, io::Error),
    /// No ring.
    #[error("{0}")]
    Ring(#[from] StartError),
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrInUse => "; another program listens there (`ss -ltnp` shows which)",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
}

/// The network as seen through a ring.
#[derive(Debug)]
pub struct RingNetwork;

impl Network for RingNetwork {
    type Io = Socket;
    type Connecting = Connecting;

    fn connect(&self, target: &Target) -> io::Result<(Socket, Connecting)> {
        let address = match target {
            Target::Tcp(address) => SockAddr::from(*address),
            Target::Unix(path) => SockAddr::unix(path)?,
        };
        let connecting = Socket::connect(&address)?;
        Ok((connecting.socket().clone(), Connecting(connecting)))
    }
}

/// A connection being made on the ring.
pub struct Connecting(uring::Connecting);

impl Future for Connecting {
    type Output = io::Result<Socket>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

type WorkerCore = Core<RingNetwork>;

/// Runs a worker on this thread until it has drained. `addresses` are those of the configured listeners, with the ports
/// taken where the configuration leaves them open. `started` is called once, when they are bound and the ring is made; it
/// may wait, and returns the orders to serve by, or None to end. No connection is accepted before.
///
/// # Errors
/// When it cannot start.
pub fn run(
    addresses: &[SocketAddr],
    admission: &Arc<Admission>,
    kernel_tls: &Arc<Support>,
    meter: &Arc<Meter>,
    counters: &Arc<WorkerCounters>,
    started: impl FnOnce(Started) -> Option<watch::Receiver<Orders>>,
) -> Result<(), WorkerError> {
    uring::start(uring::Setup::default(), |ring| async move {
        let listeners = bind(addresses)?;
        let bound = listeners.iter().map(|(_, address)| *address).collect();
        let Some(orders) = started(Started { addresses: bound, ring }) else { return Ok(()) };
        let worker = Worker::new(
            orders,
            Arc::clone(admission),
            Arc::clone(kernel_tls),
            Arc::clone(meter),
            Arc::clone(counters),
        );
        let shared = Arc::clone(&worker.orders.borrow().borrow().shared);
        for ((listener, address), configured) in listeners.iter().zip(&shared.config.listeners) {
            let config::Listener { service, offload, splice, .. } = *configured;
            let door = Door { service, port: address.port(), offload, splice };
            uring::spawn(accept(Rc::clone(&worker), Rc::clone(listener), door));
        }
        worker.serve(&listeners).await;
        Ok(())
    })?
}

type Listeners = Vec<(Rc<Listener>, SocketAddr)>;

fn bind(addresses: &[SocketAddr]) -> Result<Listeners, WorkerError> {
    let options = ListenOptions {
        keep_alive: Some((PROBE_AFTER, Duration::from_secs(10))),
        unacknowledged: Some(Duration::from_secs(90)),
        ..ListenOptions::default()
    };
    let bind = |address: &SocketAddr| {
        let error = |error| WorkerError::Bind(*address, error);
        let listener = Listener::bind(*address, &options).map_err(error)?;
        let bound = listener.local_addr().map_err(error)?;
        Ok((Rc::new(listener), bound))
    };
    addresses.iter().map(bind).collect()
}

struct Worker {
    core: Rc<WorkerCore>,
    network: Rc<RingNetwork>,
    /// Configurations that were in use before, as long as something that began under them goes on.
    former: RefCell<Vec<Weak<Generation<RingNetwork>>>>,
    orders: RefCell<watch::Receiver<Orders>>,
    admission: Arc<Admission>,
    connections: Cell<usize>,
    /// By how many seconds the next connection is probed earlier.
    probes: Cell<u64>,
}

impl Worker {
    fn new(
        orders: watch::Receiver<Orders>,
        admission: Arc<Admission>,
        kernel_tls: Arc<Support>,
        meter: Arc<Meter>,
        counters: Arc<WorkerCounters>,
    ) -> Rc<Self> {
        let (timers, buffers) = (Timers::new(), Rc::new(Buffers::default()));
        uring::lend(Rc::clone(&buffers));
        let network = Rc::new(RingNetwork);
        let shared = Arc::clone(&orders.borrow().shared);
        let generation = Generation::new(
            shared,
            Rc::clone(&network),
            Rc::clone(&timers),
            Rc::clone(&buffers),
            &counters,
        );
        let core = Rc::new(Core {
            timers,
            buffers,
            kernel_tls,
            meter,
            counters,
            generation: RefCell::new(generation),
            is_draining: Cell::new(false),
            spare: Spare::default(),
        });
        let orders = RefCell::new(orders);
        let former = RefCell::default();
        Rc::new(Self {
            core,
            network,
            former,
            orders,
            admission,
            connections: Cell::new(0),
            probes: Cell::new(0),
        })
    }

    /// Keeps the clock and follows orders until there is nothing left to do.
    async fn serve(self: &Rc<Self>, listeners: &Listeners) {
        let mut phase = Phase::Serving;
        let mut ticks: u32 = 0;
        let mut aborted_for = Duration::ZERO;
        loop {
            uring::sleep(TIMER_TICK).await;
            self.core.timers.sweep();
            self.core.counters.ticks.add(1);
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(20) {
                self.reap();
            }
            self.follow(&mut phase, listeners);
            match phase {
                Phase::Serving => {}
                Phase::Draining if self.connections.get() == 0 => return,
                // A connection may have become idle since the order came.
                Phase::Draining => self.core.timers.close(&[Activity::Idle]),
                Phase::Aborting => {
                    aborted_for += TIMER_TICK;
                    if self.connections.get() == 0 || aborted_for >= ABORT_GRACE {
                        return;
                    }
                }
            }
        }
    }

    /// Closes idle upstream connections whose time is over. A tunnel keeps the pool of its configuration for hours.
    fn reap(&self) {
        self.core.generation.borrow().pool.reap();
        self.former.borrow_mut().retain(|generation| {
            let generation = generation.upgrade();
            generation.inspect(|generation| generation.pool.reap()).is_some()
        });
    }

    fn follow(&self, phase: &mut Phase, listeners: &Listeners) {
        let mut orders = self.orders.borrow_mut();
        if !orders.has_changed().unwrap_or(false) {
            return;
        }
        let new = orders.borrow_and_update().clone();
        let current = Rc::clone(&self.core.generation.borrow());
        if !Arc::ptr_eq(&current.shared, &new.shared) {
            let generation = Generation::new(
                new.shared,
                Rc::clone(&self.network),
                Rc::clone(&self.core.timers),
                Rc::clone(&self.core.buffers),
                &self.core.counters,
            );
            *self.core.generation.borrow_mut() = generation;
            self.former.borrow_mut().push(Rc::downgrade(&current));
        }
        if new.phase >= Phase::Draining && *phase == Phase::Serving {
            self.core.is_draining.set(true);
            for (listener, _) in listeners {
                listener.close();
            }
            self.core.timers.close(&[Activity::Idle]);
        }
        if new.phase == Phase::Aborting && *phase != Phase::Aborting {
            self.core.timers.close(&[Activity::Idle, Activity::Tunnel, Activity::Exchange]);
        }
        *phase = new.phase;
    }
}

/// Whether there is what it takes to accept connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Supply {
    Enough,
    Exhausted,
}

/// Accepts until the listener is closed.
async fn accept(worker: Rc<Worker>, listener: Rc<Listener>, door: Door) {
    let mut supply = Supply::Enough;
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                if supply == Supply::Exhausted {
                    tracing::info!("connections are accepted again");
                    supply = Supply::Enough;
                }
                let client = ClientAddr::new(address);
                match worker.admission.admit(client) {
                    Ok(ticket) => spawn(&worker, socket, client, door, ticket),
                    Err(shed) => {
                        worker.core.counters.on_shed(shed);
                        tracing::debug!(client = %client, "not admitted: {shed}");
                    }
                }
            }
            Err(AcceptError::Closed) => return,
            Err(error @ AcceptError::Exhausted(_)) => {
                // It is tried again ten times a second, and told once.
                if supply == Supply::Enough {
                    tracing::warn!("{error}; connections wait meanwhile");
                    supply = Supply::Exhausted;
                }
                uring::sleep(ACCEPT_PAUSE).await;
            }
            Err(error @ AcceptError::Broken(_)) => {
                tracing::error!("{error}");
                return;
            }
        }
    }
}

fn spawn(worker: &Rc<Worker>, socket: Socket, client: ClientAddr, door: Door, ticket: Ticket) {
    let presence = Presence::new(worker);
    worker.core.counters.accepted.add(1);
    let spread = worker.probes.get();
    worker.probes.set((spread + 1) % PROBES_SPREAD);
    // Without it the probes are those of the listener.
    let _ = socket.probe_after(PROBE_AFTER - Duration::from_secs(spread));
    let core = Rc::clone(&worker.core);
    uring::spawn(async move {
        connection::serve(core, socket, client, door).await;
        drop((presence, ticket));
    });
}

/// Counts a connection while it lives, also when a panic ends it: a drain waits for all that are counted.
struct Presence(Rc<Worker>);

impl Presence {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::Delivery;

    #[test]
    fn a_connection_that_panics_ends_alone_and_is_not_waited_for() {
        for delivery in [Delivery::Deferred, Delivery::SingleIssuer] {
            a_connection_that_panics_ends_alone(delivery);
        }
    }

    fn a_connection_that_panics_ends_alone(delivery: Delivery) {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n\
                    [[route]]\nupstream = \"http://127.0.0.1:1\"\n";
        let shared = Shared::new(config::tests::alone(text)).expect("no log is opened");
        let admission = Admission::new(&shared.config.limits, 10_000);
        let (_sender, orders) = watch::channel(Orders { shared, phase: Phase::Draining });
        let setup = uring::Setup { delivery, ..uring::Setup::default() };
        let left = uring::start(setup, |_| async move {
            let kernel_tls = Arc::new(Support::none("there is no kernel"));
            let meter = Meter::disabled("there is no kernel");
            let worker = Worker::new(orders, admission, kernel_tls, meter, WorkerCounters::new(0));
            let (first, second) = (Presence::new(&worker), Presence::new(&worker));
            uring::spawn(async move {
                let _first = first;
                std::panic::panic_any("a defect");
            });
            uring::no_op().await;
            let left = worker.connections.get();
            drop(second);
            left
        });
        assert_eq!(left.expect("a ring"), 1);
    }
}
