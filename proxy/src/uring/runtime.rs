//! The ring of one thread, from start to end.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use super::restrict::restricted;

/// Operations without which there is no gateway, with the kernel that brought the youngest: 5.6.
const REQUIRED: [(u8, &str); 6] = [
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
];

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
}

impl Default for Setup {
    fn default() -> Self {
        Self { submissions: 1024, completions: 8192 }
    }
}

/// The ring that a thread got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Whether completions wait until the thread enters the kernel by itself (`COOP_TASKRUN`, Linux 5.19) instead of
    /// interrupting it: worth a quarter of the CPU of small messages.
    pub cooperative: bool,
    /// Whether the kernel knows that one thread only submits (`SINGLE_ISSUER`, Linux 6.0).
    pub single_issuer: bool,
    /// Entries of the submission queue.
    pub submissions: u32,
    /// Entries of the completion queue.
    pub completions: u32,
}

impl Ring {
    fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(self.completions);
        if self.cooperative {
            builder.setup_coop_taskrun();
        }
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        builder
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = match (self.cooperative, self.single_issuer) {
            (true, true) => "COOP_TASKRUN|SINGLE_ISSUER",
            (true, false) => "COOP_TASKRUN",
            (false, true) => "SINGLE_ISSUER",
            (false, false) => "no flags",
        };
        write!(f, "{flags}, {} submissions, {} completions", self.submissions, self.completions)
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
    let runtime = match build(ring) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            std::thread::sleep(MEMORY_RETURN);
            build(ring)
        }
        built => built,
    };
    let runtime = Ended(Some(runtime.map_err(StartError::of)?));
    super::op::begin();
    Ok(runtime.block_on(main(ring)))
}

/// Runs `future` on the ring of this thread, beside the caller.
///
/// A task whose handle is dropped goes on.
///
/// # Panics
/// Outside [`start`].
pub fn spawn<F: Future + 'static>(future: F) -> tokio::task::JoinHandle<F::Output> {
    tokio_uring::spawn(future)
}

/// One trip through the kernel without effect: lets all other tasks run and operations be submitted.
///
/// # Panics
/// Outside [`start`].
pub async fn no_op() {
    // A kernel that cannot even do nothing will say so at the next operation that matters.
    drop(tokio_uring::no_op().await);
}

/// A runtime that ends by [`super::op::end`], also when a panic unwinds through it.
struct Ended(Option<tokio_uring::Runtime>);

impl Ended {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.as_ref().expect("present until dropped").block_on(future)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            super::op::end(runtime);
        }
    }
}

fn build(ring: Ring) -> io::Result<tokio_uring::Runtime> {
    let mut builder = tokio_uring::builder();
    builder.entries(ring.submissions).uring_builder(ring.builder().setup_r_disabled());
    restricted(|| tokio_uring::Runtime::new(&builder))
}

/// Finds the best ring that `attempt` can make. A ring is tried before the runtime is built, because a runtime that
/// fails to get its ring leaks its epoll descriptor.
fn negotiate(
    setup: Setup,
    attempt: impl Fn(Ring) -> Result<Ring, Refusal>,
) -> Result<Ring, StartError> {
    let mut ring = Ring {
        cooperative: true,
        single_issuer: true,
        submissions: setup.submissions,
        completions: setup.completions,
    };
    loop {
        match attempt(ring) {
            Ok(ring) => return Ok(ring),
            Err(Refusal::Lacks(what)) => return Err(StartError::TooOld(what)),
            Err(Refusal::Error(error)) => match error.raw_os_error() {
                Some(libc::EINVAL) if ring.single_issuer => ring.single_issuer = false,
                Some(libc::EINVAL) if ring.cooperative => ring.cooperative = false,
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
    Ok(Ring { submissions: params.sq_entries(), completions: params.cq_entries(), ..ring })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> Refusal {
        Refusal::Error(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn an_older_kernel_gets_fewer_flags() {
        for (cooperative, single_issuer) in [(true, true), (true, false), (false, false)] {
            let known = |ring: Ring| {
                let unknown =
                    ring.cooperative && !cooperative || ring.single_issuer && !single_issuer;
                if unknown { Err(errno(libc::EINVAL)) } else { Ok(ring) }
            };
            let ring = negotiate(Setup::default(), known).unwrap();
            assert_eq!((ring.cooperative, ring.single_issuer), (cooperative, single_issuer));
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
