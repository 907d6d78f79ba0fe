//! One monotonic clock for origin and load, which live in one process: a stamp needs no synchronisation.

use std::sync::OnceLock;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the first call.
#[must_use]
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// CPU that this thread has used, nanoseconds.
#[must_use]
pub fn of_this_thread() -> u64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    let parts = (u64::try_from(used.tv_sec), u64::try_from(used.tv_nsec));
    let (Ok(seconds), Ok(nanoseconds)) = parts else { return 0 };
    seconds * 1_000_000_000 + nanoseconds
}

/// Length of a stamped chunk: the size of a small Guacamole instruction batch, bytes.
pub const CHUNK: usize = 300;

/// Marks the beginning of a chunk; in no other byte of one, nor in a chunk's size.
pub const MARK: u8 = b'@';

/// A chunk that tells when it was written.
#[must_use]
pub fn stamped() -> Vec<u8> {
    let mut chunk = vec![b'.'; CHUNK];
    let stamp = format!("{}{:020}", char::from(MARK), now());
    chunk[..stamp.len()].copy_from_slice(stamp.as_bytes());
    chunk
}

/// Digits behind the mark.
pub const DIGITS: usize = 20;

/// What ends a stream of chunks: in none of them, nor between them.
pub const STREAM_END: &[u8] = b"0\r\n\r\n";
