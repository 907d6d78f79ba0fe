//! The ring of one thread, from start to end.

use std::cell::UnsafeCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use super::driver::Made;
use super::provided::Provided;
use super::restrict::{Flags, exclusively, restrict, restricted};
use super::{compat, driver, op};
use crate::buffers::Buffers;

/// Operations without which there is no gateway, with the kernel that brought the youngest: 5.6.
const REQUIRED: [(u8, &str); 7] = [
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
];

/// `IORING_OP_EPOLL_WAIT`, of which nothing is wanted but to know that the kernel is no older.
const EPOLL_WAIT: u8 = 59;

/// Smallest submission queue that is tried before giving up on memory.
const SUBMISSIONS_MIN: u32 = 64;

/// How long a kernel before 5.12 may take to give back the locked memory of a ring that was closed.
const MEMORY_RETURN: Duration = Duration::from_millis(50);

/// Size of a ring. Both are rounded up to powers of two by the kernel, and are bounds of a batch, not of the number of
/// operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Entries of the submission queue, 1..=32768.
    pub submissions: u32,
    /// Entries of the completion queue, at least as many and at most 65536. Beyond it the kernel keeps completions in
    /// a slower list; none is lost.
    pub completions: u32,
    /// How completions come, at best: a kernel that cannot do it gets the next older way.
    pub delivery: Delivery,
}

impl Default for Setup {
    fn default() -> Self {
        Self { submissions: 1024, completions: 8192, delivery: Delivery::Standing }
    }
}

/// How completions come to the thread, from the oldest way to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// By interrupting it, in the middle of whatever it does.
    Interrupting,
    /// When it enters the kernel by itself (`COOP_TASKRUN`, Linux 5.19): worth a quarter of the CPU of small messages.
    Cooperative,
    /// The same, and the kernel relies on one thread only that submits (`SINGLE_ISSUER`, Linux 6.0).
    SingleIssuer,
    /// When it waits for them and not before (`DEFER_TASKRUN`, Linux 6.1). One call of the kernel makes a turn then, and
    /// the ring is driven without tokio-uring, which cannot do that.
    Deferred,
    /// The same, and receives stand (`RECV_MULTISHOT`): some 5 % of the CPU of small messages. Linux 6.0 can do it, but before
    /// 6.13 all that is due completes in one turn and would not find buffers. 6.15 is the first one after that can be told from
    /// others by asking: it has an operation for `epoll_wait(2)`.
    Standing,
}

impl Delivery {
    /// The flags of `io_uring_setup(2)`.
    #[must_use]
    pub const fn flags(self) -> &'static str {
        match self {
            Self::Interrupting => "no flags",
            Self::Cooperative => "COOP_TASKRUN",
            Self::SingleIssuer => "COOP_TASKRUN|SINGLE_ISSUER",
            Self::Deferred | Self::Standing => "COOP_TASKRUN|SINGLE_ISSUER|DEFER_TASKRUN",
        }
    }

    /// The next older way; of the oldest, itself.
    const fn older(self) -> Self {
        match self {
            Self::Interrupting | Self::Cooperative => Self::Interrupting,
            Self::SingleIssuer => Self::Cooperative,
            Self::Deferred => Self::SingleIssuer,
            Self::Standing => Self::Deferred,
        }
    }
}

/// The ring that a thread got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// How completions come.
    pub delivery: Delivery,
    /// Entries of the submission queue.
    pub submissions: u32,
    /// Entries of the completion queue.
    pub completions: u32,
}

impl Ring {
    fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(self.completions);
        if self.delivery >= Delivery::Cooperative {
            builder.setup_coop_taskrun();
        }
        if self.delivery >= Delivery::SingleIssuer {
            builder.setup_single_issuer();
        }
        if self.delivery >= Delivery::Deferred {
            builder.setup_defer_taskrun();
        }
        builder
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.delivery.flags();
        write!(f, "{flags}, {} submissions, {} completions", self.submissions, self.completions)?;
        if self.delivery == Delivery::Standing { f.write_str(", RECV_MULTISHOT") } else { Ok(()) }
    }
}

/// Why a thread got no ring, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The administrator has turned io_uring off.
    #[error(
        "io_uring is turned off on this host: kernel.io_uring_disabled is {0}. \
         Run `sysctl kernel.io_uring_disabled=0`, or with 1 add the group of this process to kernel.io_uring_group"
    )]
    Disabled(u8),
    /// A filter around this process refuses it.
    #[error(
        "this process may not use io_uring, most likely because of a seccomp filter (the usual one of containers \
         refuses it). Allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Forbidden,
    /// The kernel has no io_uring, or a filter pretends so.
    #[error(
        "this kernel has no io_uring, or a seccomp filter hides it. \
         Linux 5.10 or newer with CONFIG_IO_URING is needed"
    )]
    Absent,
    /// The kernel is older than the oldest that works.
    #[error("io_uring of this kernel lacks {0}. Linux 5.10 or newer is needed")]
    TooOld(&'static str),
    /// No memory for the smallest ring; before Linux 5.12 that is locked memory.
    #[error(
        "no memory for an io_uring. \
         Raise the bound on locked memory (`ulimit -l`, or LimitMEMLOCK=infinity in the unit)"
    )]
    Memory,
    /// Too many open files.
    #[error("no descriptor left for an io_uring ({0}). Raise LimitNOFILE in the unit")]
    Descriptors(#[source] io::Error),
    /// Anything else.
    #[error("io_uring cannot be set up: {0}")]
    Other(#[source] io::Error),
}

impl StartError {
    /// `disabled` is the text of the sysctl, where there is one (Linux 6.6).
    fn explain(error: io::Error, disabled: Option<&str>) -> Self {
        let disabled = disabled.and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0);
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if disabled != 0 => Self::Disabled(disabled),
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            Some(libc::ENOSYS) => Self::Absent,
            Some(libc::ENOMEM) => Self::Memory,
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors(error),
            _ => Self::Other(error),
        }
    }

    fn of(error: io::Error) -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        Self::explain(error, disabled.as_deref())
    }
}

/// Gives this thread a ring and runs the future that `main` makes, with all that it spawns, to its end.
///
/// Kernels that do not know a flag get fewer of them, and small amounts of locked memory get a smaller ring; `main` is
/// told which. When the future is done, other tasks are dropped where they are and their operations cancelled.
///
/// # Errors
/// [`StartError`] names the cause and the cure. Nothing has been run then.
pub fn start<F: Future>(
    setup: Setup,
    main: impl FnOnce(Ring) -> F,
) -> Result<F::Output, StartError> {
    let ring = negotiate(setup, try_ring)?;
    if ring.delivery >= Delivery::Deferred {
        let made = patiently(|| {
            let made = with_buffers(ring, disabled(ring).build(ring.submissions)?)?;
            let flags = if made.provided.is_some() { Flags::BufferSelect } else { Flags::Plain };
            restrict(made.ring.as_raw_fd(), flags)?;
            Ok(made)
        })?;
        Ok(driver::run(made, || main(ring)))
    } else {
        let mut builder = tokio_uring::builder();
        builder.entries(ring.submissions).uring_builder(&disabled(ring));
        let runtime = patiently(|| restricted(|| tokio_uring::Runtime::new(&builder)))?;
        Ok(compat::run(runtime, || main(ring)))
    }
}

/// Gives a ring the buffers without which receives do not stand.
fn with_buffers(ring: Ring, made: IoUring) -> io::Result<Made> {
    let mut made = Made { ring: made, provided: None };
    if ring.delivery == Delivery::Standing {
        made.provided = Some(Provided::register(&made.ring)?);
    }
    Ok(made)
}

/// Of a ring that takes nothing until it has been told what it may do.
fn disabled(ring: Ring) -> io_uring::Builder {
    let mut builder = ring.builder();
    builder.setup_r_disabled();
    builder
}

/// Builds, and again when the memory of the ring that was tried may not have come back.
fn patiently<T>(build: impl Fn() -> io::Result<T>) -> Result<T, StartError> {
    let built = match exclusively(&build) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            std::thread::sleep(MEMORY_RETURN);
            exclusively(build)
        }
        built => built,
    };
    built.map_err(StartError::of)
}

/// Runs `future` on the ring of this thread, beside the caller. Should it panic, it ends, and nothing else does.
///
/// # Panics
/// Outside [`start`].
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    match driver::current() {
        Some(driver) => driver.spawn(future),
        None => drop(tokio_uring::spawn(future)),
    }
}

/// Lets receives of this thread stand from now on where the kernel can do that. Who waits for one pins no buffer: what it
/// brings is given to `buffers`, and what it gets comes from there.
pub fn lend(buffers: Rc<Buffers>) {
    if let Some(driver) = driver::current() {
        driver.lend(buffers);
    }
}

/// One trip through the kernel without effect: lets all other tasks run and operations be submitted.
///
/// # Panics
/// Outside [`start`].
pub async fn no_op() {
    // SAFETY: NOP names neither memory nor a descriptor, and completes once.
    unsafe { op::submit(Nothing, opcode::Nop::new().build()) }.await;
}

struct Nothing;

impl op::Operation for Nothing {
    type Output = ();

    /// A kernel that cannot even do nothing will say so at the next operation that matters.
    fn complete(self, _: io::Result<u32>) {}
}

/// Waits for `duration`, without other work for as long as that and as exactly as the kernel's timers are.
///
/// # Panics
/// Outside [`start`].
pub async fn sleep(duration: Duration) {
    let span = Rc::new(UnsafeCell::new(types::Timespec::from(duration)));
    let entry = opcode::Timeout::new(span.get()).build();
    // SAFETY: the span belongs to the operation, is on the heap in an `Rc<UnsafeCell<_>>`, and nobody writes it. TIMEOUT
    // without `multishot` completes once.
    unsafe { op::submit(Pause { _span: span }, entry) }.await;
}

struct Pause {
    _span: Rc<UnsafeCell<types::Timespec>>,
}

impl op::Operation for Pause {
    type Output = ();

    /// The end of the time is an error (`ETIME`), and none that concerns the caller.
    fn complete(self, _: io::Result<u32>) {}
}

/// Finds the best ring that `attempt` can make. A ring is tried before the runtime is built, because a runtime that
/// fails to get its ring leaks its epoll descriptor.
fn negotiate(
    setup: Setup,
    attempt: impl Fn(Ring) -> Result<Ring, Refusal>,
) -> Result<Ring, StartError> {
    let mut ring = Ring {
        delivery: setup.delivery,
        submissions: setup.submissions,
        completions: setup.completions,
    };
    loop {
        match attempt(ring) {
            Ok(ring) => return Ok(ring),
            Err(Refusal::Lacks(what)) => return Err(StartError::TooOld(what)),
            Err(Refusal::Error(error)) => match error.raw_os_error() {
                Some(libc::EINVAL) if ring.delivery > Delivery::Interrupting => {
                    ring.delivery = ring.delivery.older();
                }
                Some(libc::ENOMEM) if ring.submissions / 2 >= SUBMISSIONS_MIN => {
                    ring.submissions /= 2;
                    ring.completions /= 2;
                }
                _ => return Err(StartError::of(error)),
            },
        }
    }
}

enum Refusal {
    Lacks(&'static str),
    Error(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

fn try_ring(ring: Ring) -> Result<Ring, Refusal> {
    let made = ring.builder().build(ring.submissions)?;
    let params = made.params();
    // Without it, an operation that waits occupies a kernel thread. Linux 5.7.
    if !params.is_feature_fast_poll() {
        return Err(Refusal::Lacks("FAST_POLL"));
    }
    // With less, completions beyond the queue are lost. Linux 5.5.
    if !params.is_feature_nodrop() {
        return Err(Refusal::Lacks("NODROP"));
    }
    let mut probe = Probe::new();
    made.submitter().register_probe(&mut probe)?;
    if let Some((_, name)) = REQUIRED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(Refusal::Lacks(name));
    }
    if ring.delivery == Delivery::Standing && !probe.is_supported(EPOLL_WAIT) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL).into());
    }
    let ring = Ring { submissions: params.sq_entries(), completions: params.cq_entries(), ..ring };
    drop(with_buffers(ring, made)?);
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> Refusal {
        Refusal::Error(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn an_older_kernel_gets_fewer_flags() {
        use Delivery::{Cooperative, Deferred, Interrupting, SingleIssuer, Standing};
        for newest in [Standing, Deferred, SingleIssuer, Cooperative, Interrupting] {
            let known = |ring: Ring| {
                if ring.delivery > newest { Err(errno(libc::EINVAL)) } else { Ok(ring) }
            };
            let ring = negotiate(Setup::default(), known).unwrap();
            assert_eq!(ring.delivery, newest);
            assert_eq!((ring.submissions, ring.completions), (1024, 8192));
        }
    }

    #[test]
    fn little_memory_gives_a_smaller_ring_and_too_little_an_error() {
        let small = |ring: Ring| {
            if ring.submissions > 200 { Err(errno(libc::ENOMEM)) } else { Ok(ring) }
        };
        let ring = negotiate(Setup::default(), small).unwrap();
        assert_eq!((ring.submissions, ring.completions), (128, 1024));

        let none = negotiate(Setup::default(), |_| Err(errno(libc::ENOMEM)));
        assert!(matches!(none, Err(StartError::Memory)));
    }

    #[test]
    fn invalid_sizes_end_the_search() {
        let never = negotiate(Setup::default(), |_| Err(errno(libc::EINVAL)));
        assert!(matches!(never, Err(StartError::Other(_))));
    }

    #[test]
    fn errors_name_the_cause() {
        let explain = |code, text| StartError::explain(io::Error::from_raw_os_error(code), text);
        assert!(matches!(explain(libc::EPERM, Some("2\n")), StartError::Disabled(2)));
        assert!(matches!(explain(libc::EPERM, Some("0\n")), StartError::Forbidden));
        assert!(matches!(explain(libc::EPERM, None), StartError::Forbidden));
        assert!(matches!(explain(libc::ENOSYS, None), StartError::Absent));
        assert!(matches!(explain(libc::EMFILE, None), StartError::Descriptors(_)));
        assert!(explain(libc::EPERM, Some("1")).to_string().contains("io_uring_disabled is 1."));
    }
}
