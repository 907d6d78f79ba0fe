//! Which system calls can still be made: a list that the kernel keeps to (seccomp). It holds what this code and the C
//! library do to serve, to look names up, for threads, memory and aborts; the end-to-end tests run under it, and what they
//! lacked was told by the kernel's log.
//!
//! Operations on a ring are no system calls: each ring has a list of its own, see [`crate::uring`].

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::ConfineError;
use crate::config::CallFilter;

/// Allowed with any arguments. Beyond those of this list nothing executes programs, mounts, traces, loads, signals
/// other processes, changes identities, listens on a new address, or makes a ring.
const FREE: &[c_long] = &[
    // Descriptors and files; what can be opened is below.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    libc::SYS_pipe2,
    libc::SYS_splice,
    // Memory; what may become executable is below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Signals of this process.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time, where the kernel's page for it cannot be used.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_io_uring_enter,
    // Sockets; which kinds is below. There is no listen(2): addresses are bound before. bind(2) is what name
    // resolution does with its netlink socket.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // Questions.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

/// No call at all: what the kernel sees when a tracer, which has more rights than this process, makes a call fail before
/// it is made (strace's `inject=...:error=`), the number -1. Nothing comes of it but that error.
const NONE: c_long = 0xffff_ffff;

/// Older spellings of the above that the C library still uses on this architecture.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_getrlimit,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Commands of bpf(2) on maps that are open: look up, update, delete, next key (`linux/bpf.h`).
const MAP_COMMANDS: [u64; 4] = [1, 2, 3, 4];

/// `PR_SET_VMA` of `linux/prctl.h`: the C library names its arenas.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Argument number, and what it must be.
type Condition = (u8, Is, u64);

fn masked(number: u8, mask: libc::c_int, value: libc::c_int) -> Condition {
    (number, Is::MaskedEq(bits(mask)), bits(value))
}

fn equal(number: u8, value: libc::c_int) -> Condition {
    (number, Is::Eq, bits(value))
}

/// A flag or constant of the C library as the kernel sees it: 32 bits.
fn bits(value: libc::c_int) -> u64 {
    value.cast_unsigned().into()
}

/// Allowed with these arguments; for each call, one of the lists of conditions must hold.
fn conditional() -> Vec<(c_long, Vec<Vec<Condition>>)> {
    let one_of = |number: u8, values: &[libc::c_int]| -> Vec<Vec<Condition>> {
        values.iter().map(|&value| vec![equal(number, value)]).collect()
    };
    // Files are read, or appended to; nothing is made but a log, nothing is cut.
    let writing = libc::O_ACCMODE | libc::O_TRUNC;
    let making = libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    let open = vec![
        vec![masked(2, writing | making, libc::O_RDONLY)],
        vec![masked(2, writing | libc::O_APPEND, libc::O_WRONLY | libc::O_APPEND)],
    ];
    let mut sockets = vec![vec![
        equal(0, libc::AF_NETLINK),
        // Of this machine's addresses, by which name resolution sorts what it found.
        equal(2, libc::NETLINK_ROUTE),
    ]];
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            // The flags of socket(2) stand above its kinds.
            sockets.push(vec![equal(0, family), masked(1, 0xf, kind)]);
        }
    }
    let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME];
    let mut process = one_of(0, &names);
    process.push(vec![(0, Is::Eq, PR_SET_VMA)]);
    let own = libc::c_int::try_from(std::process::id()).unwrap_or(0);
    vec![
        (libc::SYS_openat, open),
        // Memory is never writable and executable; libraries for name resolution may still be loaded.
        (
            libc::SYS_mmap,
            vec![vec![masked(2, libc::PROT_EXEC, 0)], vec![masked(2, libc::PROT_WRITE, 0)]],
        ),
        (libc::SYS_mprotect, vec![vec![masked(2, libc::PROT_EXEC, 0)]]),
        // Threads, but no processes.
        (libc::SYS_clone, vec![vec![masked(0, thread, thread)]]),
        // Only to itself, as abort(3) does.
        (libc::SYS_tgkill, vec![vec![equal(0, own)]]),
        (libc::SYS_socket, sockets),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[
                    libc::F_DUPFD_CLOEXEC,
                    libc::F_GETFD,
                    libc::F_SETFD,
                    libc::F_GETFL,
                    libc::F_SETFL,
                    libc::F_SETPIPE_SZ,
                    libc::F_GETPIPE_SZ,
                ],
            ),
        ),
        // FIONBIO and FIONREAD are below 2^31 on all architectures.
        (
            libc::SYS_ioctl,
            [libc::FIONBIO, libc::FIONREAD]
                .into_iter()
                .map(|request| vec![(1, Is::Eq, request)])
                .collect(),
        ),
        (libc::SYS_prctl, process),
        // Limits are read.
        (libc::SYS_prlimit64, vec![vec![(2, Is::Eq, 0)]]),
        (
            libc::SYS_bpf,
            MAP_COMMANDS.into_iter().map(|command| vec![(0, Is::Eq, command)]).collect(),
        ),
    ]
}

/// How many system calls are left.
pub(super) fn count() -> usize {
    FREE.len() + OLDER.len() + conditional().len()
}

/// Restricts all threads of this process, those to come included, for good.
pub(super) fn restrict(filter: CallFilter) -> Result<(), ConfineError> {
    let refused = |error: String| ConfineError::Refused("system calls", error);
    let programs = programs(filter).map_err(|error| refused(error.to_string()))?;
    for program in &programs {
        seccompiler::apply_filter_all_threads(program)
            .map_err(|error| refused(error.to_string()))?;
    }
    Ok(())
}

/// Two lists, of which the kernel obeys the stricter one.
fn programs(filter: CallFilter) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    // Its flags lie in memory, where no list can see them. Told that there is no such call, the C library takes the
    // older one, whose flags are looked at.
    let newer = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        architecture,
    )?;
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for &call in FREE.iter().chain(OLDER).chain(&[libc::SYS_clone3, NONE]) {
        rules.insert(call, Vec::new());
    }
    for (call, alternatives) in conditional() {
        let alternatives = alternatives.into_iter().map(|conditions| {
            let conditions = conditions.into_iter().map(|(number, operator, value)| {
                // What is 64 bits wide is a pointer.
                let length =
                    if call == libc::SYS_prlimit64 { Length::Qword } else { Length::Dword };
                SeccompCondition::new(number, length, operator, value)
            });
            SeccompRule::new(conditions.collect::<Result<_, _>>()?)
        });
        rules.insert(call, alternatives.collect::<Result<_, _>>()?);
    }
    let otherwise = match filter {
        CallFilter::Kill => SeccompAction::KillProcess,
        CallFilter::Log => SeccompAction::Log,
    };
    let list = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, architecture)?;
    Ok([newer.try_into()?, list.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_compiles_and_names_no_call_twice() {
        assert!(programs(CallFilter::Kill).is_ok() && programs(CallFilter::Log).is_ok());
        let with_arguments = conditional().into_iter().map(|(call, _)| call);
        let mut all: Vec<c_long> =
            FREE.iter().chain(OLDER).copied().chain(with_arguments).collect();
        all.sort_unstable();
        let named = all.len();
        all.dedup();
        assert_eq!((all.len(), named), (count(), count()));
    }

    #[test]
    fn what_must_never_be_called_is_not_on_it() {
        let with_arguments: Vec<c_long> = conditional().into_iter().map(|(call, _)| call).collect();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_keyctl,
            libc::SYS_init_module,
            libc::SYS_kill,
            libc::SYS_listen,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_unshare,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_memfd_create,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
        ] {
            let listed = FREE.iter().chain(OLDER).chain(&with_arguments);
            assert!(!listed.copied().any(|one| one == call), "{call}");
        }
    }
}
