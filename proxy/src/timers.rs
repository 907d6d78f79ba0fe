//! Deadlines of one worker.
//!
//! Setting a deadline is one store, so it can be done per message. A sweep every [`limits::TIMER_TICK`] looks at all
//! of them and ends what is overdue by shutting the socket down: the operation in flight then completes and its
//! owner finds [`Watch::shut`] set. No future is ever dropped because of time (a dropped receive loses bytes).

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::limits;
use crate::transport::Transport;

/// A point in time in milliseconds since the worker started; coarse to one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    const NEVER: Self = Self(u64::MAX);

    /// When the worker started.
    pub const START: Self = Self(0);

    /// This point and `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` until this point; zero when it lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What a connection does at the moment; decides what a drain does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Between two requests: may be closed at any time.
    Idle,
    /// A request is being read or answered.
    Exchange,
    /// A WebSocket: lives until the drain deadline.
    Tunnel,
    /// A connection to an upstream; it follows its downstream.
    Upstream,
}

/// Why we shut a socket ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A deadline for receiving passed.
    Deadline,
    /// A deadline for sending passed: the peer takes nothing.
    Stall,
    /// The gateway is being stopped.
    Drain,
}

/// The deadlines of one socket.
#[derive(Debug)]
pub struct Watch<T> {
    io: T,
    receive_by: Cell<Tick>,
    send_by: Cell<Tick>,
    shut: Cell<Option<Cause>>,
    activity: Cell<Activity>,
}

impl<T: Transport> Watch<T> {
    /// A receive must complete by then, or the receiving direction is shut.
    pub fn receive_by(&self, tick: Tick) {
        self.receive_by.set(tick);
    }

    /// A send must complete by then, or the socket is shut.
    pub fn send_by(&self, tick: Tick) {
        self.send_by.set(tick);
    }

    /// No deadline for receiving.
    pub fn receive_at_leisure(&self) {
        self.receive_by.set(Tick::NEVER);
    }

    /// No deadline for sending.
    pub fn send_at_leisure(&self) {
        self.send_by.set(Tick::NEVER);
    }

    /// Why we shut it, if we did: an end of input or an error found on it then is not the peer's.
    pub fn shut(&self) -> Option<Cause> {
        self.shut.get()
    }

    /// What the connection does from now on.
    pub fn set_activity(&self, activity: Activity) {
        self.activity.set(activity);
    }

    fn sweep(&self, now: Tick) {
        if self.send_by.get() <= now {
            self.send_by.set(Tick::NEVER);
            self.shut.set(Some(Cause::Stall));
            self.io.shutdown(Shutdown::Both);
        } else if self.receive_by.get() <= now {
            self.receive_by.set(Tick::NEVER);
            self.shut.set(Some(Cause::Deadline));
            // The sending direction stays open: a client that was too slow still gets its 408.
            self.io.shutdown(Shutdown::Read);
        }
    }
}

/// Keeps a [`Watch`] known to its worker; dropping it ends that.
#[derive(Debug)]
pub struct Watched<T: Transport> {
    watch: Rc<Watch<T>>,
    timers: Rc<Timers<T>>,
    key: usize,
}

impl<T: Transport> std::ops::Deref for Watched<T> {
    type Target = Watch<T>;

    fn deref(&self) -> &Watch<T> {
        &self.watch
    }
}

impl<T: Transport> Watched<T> {
    /// The time of the last tick.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.timers.now()
    }

    /// A receive must complete within `duration` from now.
    pub fn receive_within(&self, duration: Duration) {
        self.watch.receive_by(self.deadline(duration));
    }

    /// A send must complete within `duration` from now.
    pub fn send_within(&self, duration: Duration) {
        self.watch.send_by(self.deadline(duration));
    }

    /// The last tick may lie one tick back: a deadline without that would come early.
    fn deadline(&self, duration: Duration) -> Tick {
        self.now().after(duration).after(limits::TIMER_TICK)
    }
}

impl<T: Transport> Drop for Watched<T> {
    fn drop(&mut self) {
        self.timers.watches.borrow_mut().remove(self.key);
        // Operations in flight complete and give their buffers and the socket back.
        self.watch.io.shutdown(Shutdown::Both);
    }
}

/// All deadlines of one worker, and its coarse clock.
#[derive(Debug)]
pub struct Timers<T> {
    start: Instant,
    now: Cell<Tick>,
    /// Whether the last call looked at no deadlines.
    waived: Cell<bool>,
    watches: RefCell<Slab<Rc<Watch<T>>>>,
}

impl<T: Transport> Timers<T> {
    /// A clock that starts now, without deadlines.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            now: Cell::new(Tick(0)),
            waived: Cell::new(false),
            watches: RefCell::new(Slab::new()),
        })
    }

    /// The time of the last tick.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.now.get()
    }

    /// Watches the socket `io`, without a deadline at first.
    #[must_use]
    pub fn watch(self: &Rc<Self>, io: T, activity: Activity) -> Watched<T> {
        let watch = Rc::new(Watch {
            io,
            receive_by: Cell::new(Tick::NEVER),
            send_by: Cell::new(Tick::NEVER),
            shut: Cell::new(None),
            activity: Cell::new(activity),
        });
        let key = self.watches.borrow_mut().insert(Rc::clone(&watch));
        Watched { watch, timers: Rc::clone(self), key }
    }

    /// Number of sockets watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.watches.borrow().len()
    }

    /// Whether no socket is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Advances the clock and ends what is overdue. To be called every [`limits::TIMER_TICK`].
    ///
    /// A worker that stood still for longer than [`limits::STANDSTILL`] (stopped, or without a processor) first does what has
    /// come meanwhile, and ends what is overdue at the next call, however late that is: nobody is given up for what lies in
    /// the kernel, and a worker that is always slow still gives up.
    pub fn sweep(&self) {
        self.tick(Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)));
    }

    /// As [`Timers::sweep`], at a time of the caller's choice.
    pub(crate) fn tick(&self, now: Tick) {
        let stood_still = now.since(self.now()) > limits::STANDSTILL;
        if stood_still && !self.waived.replace(true) {
            self.now.set(now);
        } else {
            self.waived.set(false);
            self.sweep_at(now);
        }
    }

    /// Advances the clock and ends what is overdue, however much time has passed.
    pub(crate) fn sweep_at(&self, now: Tick) {
        self.now.set(now);
        for (_, watch) in self.watches.borrow().iter() {
            watch.sweep(now);
        }
    }

    /// Ends the receiving direction of every connection that does one of `activities`: it finds the end of its input and
    /// closes in good order.
    pub fn close(&self, activities: &[Activity]) {
        for (_, watch) in self.watches.borrow().iter() {
            if activities.contains(&watch.activity.get()) {
                watch.shut.set(Some(Cause::Drain));
                watch.io.shutdown(Shutdown::Read);
            }
        }
    }
}

const _: () =
    assert!(2 * limits::TIMER_TICK.as_millis() <= 100, "a 1 s timeout must be kept within 10 %");
