//! Every bound in one place. Memory per connection is the sum of these, so each has a reason.

use std::time::Duration;

/// Largest plaintext of one TLS record, in bytes (RFC 8446 §5.1).
pub const RECORD_PLAINTEXT_MAX: usize = 1 << 14;

/// Header of a TLS record: type, version, length (RFC 8446 §5.1).
pub const RECORD_HEADER_BYTES: usize = 5;

/// Largest record on the wire, in bytes: the TLS 1.2 bound, which covers TLS 1.3 (RFC 5246 §6.2.3).
pub const RECORD_WIRE_MAX: usize = RECORD_HEADER_BYTES + RECORD_PLAINTEXT_MAX + 2048;

/// Bytes that a client may send before its handshake is complete.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Buffer of a socket on which little comes, in bytes: holds what a user does and most of what Guacamole says about it,
/// and is all that an idle direction of a tunnel pins.
pub const BUFFER_TINY_BYTES: usize = 512;

/// Buffer of a socket that waits, in bytes: holds the usual request head.
pub const BUFFER_SMALL_BYTES: usize = 1536;

/// Buffer of an active socket, in bytes: one record of any size.
pub const BUFFER_RECORD_BYTES: usize = 20 * 1024;

/// Buffer of a bulk transfer, in bytes, and so what one step of it moves, for which messages of others wait. 64 KiB took 1.02 to 1.13
/// of the CPU that 256 KiB take for downloads over TLS and 1.14 to 1.26 for uploads; this takes 0.97 to 1.02 and 1.04 to 1.11. It holds
/// eight of the largest records that we seal ...
pub const BUFFER_BULK_BYTES: usize = 8 * RECORD_PLAINTEXT_MAX + BULK_FRAMING_BYTES;

/// ... of which so many bytes are framing: what is read to be sealed must leave as much free, or the last of it goes alone.
pub const BULK_FRAMING_BYTES: usize = 8 * 32;

/// Free buffers that a worker keeps: 0.5 MiB of tiny ones, ...
pub const BUFFERS_TINY_KEPT_MAX: usize = 1024;

/// ... 1.5 MiB of small ones, ...
pub const BUFFERS_SMALL_KEPT_MAX: usize = 1024;

/// ... 5 MiB for records ...
pub const BUFFERS_RECORD_KEPT_MAX: usize = 256;

/// ... and 2 MiB for bulk.
pub const BUFFERS_BULK_KEPT_MAX: usize = 16;

/// Buffers that a ring receives into where receives stand: more than the operations that complete in one turn, some twenty since
/// Linux 6.13. With half of them messages of 1,000 tunnels cost 5 % more. One socket on which more comes than is asked for takes
/// all of them at worst, ...
pub const PROVIDED_BUFFERS: u16 = 64;

/// ... of which each has room for two messages of 4 KiB with what frames them, in bytes: together some more than two for bulk.
pub const PROVIDED_BUFFER_BYTES: u32 = 8832;

/// How much may have come that nobody has asked for before a receive that stands is stopped, in bytes. What the turn in which it
/// becomes more brings comes on top, which is no more than all provided buffers hold.
pub const AHEAD_BYTES_MAX: usize = 16 * 1024;

/// Capacity of a pipe for splicing, in bytes: the most that a process without privileges may have (`fs.pipe-max-size`). With half
/// of it a byte took 1.2 to 1.3 times the CPU, with a quarter 1.4 (uploads) and 1.6 times (downloads).
pub const PIPE_BYTES: usize = 1024 * 1024;

/// Pipes of a worker that have [`PIPE_BYTES`]: together a quarter of the pages that a user's pipes may have
/// (`fs.pipe-user-pages-soft`). Where four workers and more use all of theirs at once, whoever comes later has smaller ones.
pub const PIPES_WIDE_MAX: usize = 16;

/// Capacity of the others, and what a tunnel has of any: what waits in a pipe for a slow client makes what follows late.
pub const PIPE_NARROW_BYTES: usize = 256 * 1024;

/// Pipes that a worker uses at a time; transfers beyond are copied. Each has two descriptors.
pub const PIPES_MAX: usize = 64;

/// Free pipes that a worker keeps.
pub const PIPES_KEPT_MAX: usize = 16;

/// What these hold together, in bytes: pages of a free pipe are missing in other workers' pipes.
pub const PIPES_KEPT_BYTES: usize = 4 * PIPE_BYTES;

/// What must be left of a body for splicing to be worth its set-up, in bytes.
pub const SPLICE_BYTES_MIN: u64 = 64 * 1024;

/// How often deadlines are looked at. A timeout is never early, and late by at most two of these, or by one more when the
/// worker stood still.
pub const TIMER_TICK: Duration = Duration::from_millis(50);

/// A client that says nothing for this long is asked whether it is there.
pub const PROBE_AFTER: Duration = Duration::from_secs(60);

/// Clients are asked up to so many seconds earlier, one after the other. The kernel's timers of a minute are two seconds
/// wide and more: thousands of tunnels that were opened together, as after a restart, would all be asked at once, again and again, and
/// what a queue of packets does not hold is lost. (Loopback and virtual pairs hold 1,000, `net.core.netdev_max_backlog`: of
/// 5,000 tunnels there, 635 were given up in one run, presumably after three lost probes.)
pub const PROBES_SPREAD: u64 = 30;

/// So many bytes to be received, sealed or opened, and sent, take as long as some dozens of messages: of these steps one is
/// done in a turn.
pub const LONG_STEP_BYTES_MIN: usize = 64 * 1024;

/// So many long steps a transfer may make in a row, a turn for each, while others wait for their first one: 1 MiB. Of 16 transfers over
/// TLS each GB took 0.9 of the CPU that it takes when they alternate after each 256 KiB, and with 4 MiB in a row no less.
pub const LONG_STEPS_MAX: usize = 8;

/// What must have come in bulk to wait in the socket for the turn of its transfer, in bytes: less is passed on at once.
pub const REST_BYTES_MIN: usize = RECORD_PLAINTEXT_MAX;

/// A worker that has not looked at deadlines for this long was kept from working, and its peers may not have been late.
pub const STANDSTILL: Duration = Duration::from_secs(1);

/// How long a connection that was answered and closed by us is read on, so that the answer is not destroyed by a reset
/// (RFC 9112 §9.6), ...
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// ... and how many bytes are read and dropped meanwhile.
pub const LINGER_BYTES_MAX: u64 = 4 << 20;

/// Time that a request body may fall behind its minimum rate before it is ended.
pub const BODY_RATE_GRACE: Duration = Duration::from_secs(10);

/// Interim responses (1xx) passed for one request before the upstream is held to be broken.
pub const INTERIM_RESPONSES_MAX: u32 = 64;

/// Endpoints tried for one request before it is answered 502.
pub const CONNECT_ATTEMPTS_MAX: usize = 3;

/// Pause of the accept loop after the process ran out of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time that connections get to say goodbye after the drain deadline.
pub const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Descriptors kept for everything that is not a client or upstream socket: logs, rings, listeners, resolver.
pub const DESCRIPTORS_RESERVED: u64 = 128;

/// Connections that are taken out of a backlog together with the one that was waited for.
pub const ACCEPTS_AT_ONCE_MAX: usize = 64;

const _: () = assert!(BUFFER_RECORD_BYTES >= RECORD_WIRE_MAX, "a record must fit its buffer");
const _: () = assert!(RECORD_WIRE_MAX < 32 * 1024, "a record must fit the usual receive buffer");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_largest_size_has_the_length_the_rfc_gives() {
        assert_eq!(RECORD_WIRE_MAX - RECORD_HEADER_BYTES, 18_432);
    }
}
