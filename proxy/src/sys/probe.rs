//! What the kernel permits this process, asked by doing it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The beginning of `union bpf_attr` for `BPF_MAP_CREATE` (`linux/bpf.h`).
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Makes the smallest BPF map and closes it again.
///
/// # Errors
/// The error of `bpf(2)`: `EPERM` without the right, `ENOSYS` without the call.
pub fn bpf_map() -> io::Result<()> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_HASH: u32 = 1;
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_HASH,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    };
    // SAFETY: the pointer is to a live structure that the kernel only reads, of the size that is named; what lies beyond
    // it in the kernel's union counts as zero.
    let made = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size_of::<MapCreate>())
    };
    let descriptor = i32::try_from(made).ok().filter(|&descriptor| descriptor >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}
