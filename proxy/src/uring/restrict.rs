//! What a ring can be made to do, whoever fills it. A filter of system calls does not see operations on a ring, so the
//! kernel is given a list of them before it takes the first one.
//!
//! The list can only be given to a ring that was made to start disabled. tokio-uring tells nobody which descriptor its
//! ring has: it is found by asking: of all rings of this process, only one that has just been made takes a list.

use std::fs;
use std::io;
use std::mem::size_of_val;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use io_uring::opcode;

/// All operations that are ever submitted: those of this module's sockets, and what the driver cancels.
/// None opens, reads or writes a file, or sends a message to another ring.
const ALLOWED: [u8; 9] = [
    opcode::Nop::CODE,
    opcode::Timeout::CODE,
    opcode::PollAdd::CODE,
    opcode::SendMsg::CODE,
    opcode::RecvMsg::CODE,
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Send::CODE,
    opcode::Recv::CODE,
];

/// `struct io_uring_restriction` of `linux/io_uring.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Restriction {
    kind: u16,
    operation: u8,
    reserved: [u8; 13],
}

const RESTRICTION_SQE_OP: u16 = 1;
const RESTRICTION_SQE_FLAGS_ALLOWED: u16 = 2;
const REGISTER_RESTRICTIONS: libc::c_uint = 11;
const REGISTER_ENABLE_RINGS: libc::c_uint = 12;

/// Flags of operations that a ring accepts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flags {
    /// None at all.
    Plain = 0,
    /// That by which an operation asks for a provided buffer (`IOSQE_BUFFER_SELECT`), for a ring that has some.
    BufferSelect = 1 << 5,
}

/// What the kernel shows in the place of a ring's path.
const RING: &str = "anon_inode:[io_uring]";

/// Gives a disabled ring the list, and enables it. Nothing can be registered with it from then on, and no other flag of an
/// operation (links, drains, fixed files, worker threads) is accepted.
///
/// # Errors
/// Those of `io_uring_register(2)`.
pub(super) fn restrict(ring: RawFd, flags: Flags) -> io::Result<()> {
    let entry = |kind, operation| Restriction { kind, operation, reserved: [0; 13] };
    let mut list = Vec::from(ALLOWED.map(|operation| entry(RESTRICTION_SQE_OP, operation)));
    list.push(entry(RESTRICTION_SQE_FLAGS_ALLOWED, flags as u8));
    register(ring, REGISTER_RESTRICTIONS, &list)?;
    register(ring, REGISTER_ENABLE_RINGS, &[])
}

/// Lets one thread at a time make a ring and give it its list: one that searches for its own must not find that of another.
pub(super) fn exclusively<T>(make: impl FnOnce() -> T) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    make()
}

/// Makes a disabled ring by `make`, which does not tell its descriptor, and does as [`restrict`]. To be called
/// [`exclusively`].
///
/// # Errors
/// Those of `make`, of `/proc`, and of `io_uring_register(2)`.
pub(super) fn restricted<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let made = make()?;
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // What is closed meanwhile has no path.
        if fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(RING))
            && let Some(Ok(ring)) = entry.file_name().to_str().map(str::parse::<RawFd>)
            && restrict(ring, Flags::Plain).is_ok()
        {
            return Ok(made);
        }
    }
    Err(io::Error::other("the new ring takes no list of operations, or /proc does not show it"))
}

fn register(ring: RawFd, command: libc::c_uint, list: &[Restriction]) -> io::Result<()> {
    debug_assert_eq!(size_of_val(list), list.len() * 16);
    let (pointer, length) = match list {
        [] => (std::ptr::null(), 0),
        list => (list.as_ptr(), list.len()),
    };
    // SAFETY: the kernel reads as many entries as the slice has, which is borrowed for the call, and keeps no pointer
    // to them. A descriptor that is closed by now, or is no ring, is an error of the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, command, pointer, length) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
