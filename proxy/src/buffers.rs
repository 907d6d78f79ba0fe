//! Buffers of one worker, kept for reuse in four sizes.
//!
//! What a connection pins while it is idle decides how many fit into memory: a socket on which little comes, such as
//! that of a tunnel at rest, waits with a [`Class::Tiny`] buffer, others with [`Class::Small`], an active one with
//! [`Class::Record`], and only a transfer that fills those gets [`Class::Bulk`] (a larger buffer costs less CPU per
//! byte). Nobody waits with one of these: the few that are in use stay in the processor's cache.

use std::cell::RefCell;

use crate::limits;
use crate::pipes::Pipes;
use crate::transport::Buffer;
use crate::turnstile::Turnstile;

/// Size of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// For a socket on which little comes.
    Tiny,
    /// For a socket that waits.
    Small,
    /// For one TLS record of any size.
    Record,
    /// For a transfer that fills [`Class::Record`] buffers.
    Bulk,
}

impl Class {
    /// Capacity in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Tiny => limits::BUFFER_TINY_BYTES,
            Self::Small => limits::BUFFER_SMALL_BYTES,
            Self::Record => limits::BUFFER_RECORD_BYTES,
            Self::Bulk => limits::BUFFER_BULK_BYTES,
        }
    }

    /// The smallest class that holds `bytes`; [`Class::Bulk`] when none does.
    #[must_use]
    pub fn holding(bytes: usize) -> Self {
        if bytes <= limits::BUFFER_TINY_BYTES {
            Self::Tiny
        } else if bytes <= limits::BUFFER_SMALL_BYTES {
            Self::Small
        } else if bytes <= limits::BUFFER_RECORD_BYTES {
            Self::Record
        } else {
            Self::Bulk
        }
    }

    /// The next larger class; [`Class::Bulk`] is its own.
    #[must_use]
    pub fn larger(self) -> Self {
        match self {
            Self::Tiny => Self::Small,
            Self::Small => Self::Record,
            Self::Record | Self::Bulk => Self::Bulk,
        }
    }

    /// The next smaller class; [`Class::Tiny`] is its own.
    #[must_use]
    pub fn smaller(self) -> Self {
        match self {
            Self::Tiny | Self::Small => Self::Tiny,
            Self::Record => Self::Small,
            Self::Bulk => Self::Record,
        }
    }
}

/// Free buffers of one worker. What does not fit the bounds of [`limits`] is freed.
#[derive(Debug, Default)]
pub struct Buffers {
    tiny: RefCell<Vec<Buffer>>,
    small: RefCell<Vec<Buffer>>,
    record: RefCell<Vec<Buffer>>,
    bulk: RefCell<Vec<Buffer>>,
    pipes: Pipes,
    turnstile: Turnstile,
}

impl Buffers {
    /// An empty buffer of `class`.
    #[must_use]
    pub fn take(&self, class: Class) -> Buffer {
        let (free, _) = self.shelf(class);
        free.borrow_mut().pop().unwrap_or_else(|| Buffer::with_capacity(class.bytes()))
    }

    /// The pipes, which are buffers of the kernel.
    #[must_use]
    pub fn pipes(&self) -> &Pipes {
        &self.pipes
    }

    /// Who works on a large buffer, or as long as that on something else, passes here.
    #[must_use]
    pub fn turnstile(&self) -> &Turnstile {
        &self.turnstile
    }

    /// Takes a buffer back. One of a foreign size, such as the empty default, is freed.
    pub fn give(&self, mut buffer: Buffer) {
        let class = Class::holding(buffer.capacity());
        if buffer.capacity() != class.bytes() {
            return;
        }
        let (free, kept_max) = self.shelf(class);
        let mut free = free.borrow_mut();
        if free.len() < kept_max {
            buffer.clear();
            free.push(buffer);
        }
    }

    fn shelf(&self, class: Class) -> (&RefCell<Vec<Buffer>>, usize) {
        match class {
            Class::Tiny => (&self.tiny, limits::BUFFERS_TINY_KEPT_MAX),
            Class::Small => (&self.small, limits::BUFFERS_SMALL_KEPT_MAX),
            Class::Record => (&self.record, limits::BUFFERS_RECORD_KEPT_MAX),
            Class::Bulk => (&self.bulk, limits::BUFFERS_BULK_KEPT_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_taken_again_and_empty() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(Class::Record);
        buffer.append(b"secret");
        let storage = buffer.filled().as_ptr();
        buffers.give(buffer);
        let again = buffers.take(Class::Record);
        assert!(again.is_empty());
        assert_eq!(again.filled().as_ptr(), storage);
    }

    #[test]
    fn no_more_than_the_bound_is_kept_and_foreign_sizes_are_freed() {
        let buffers = Buffers::default();
        for _ in 0..limits::BUFFERS_BULK_KEPT_MAX + 5 {
            buffers.give(Buffer::with_capacity(Class::Bulk.bytes()));
        }
        buffers.give(Buffer::default());
        assert_eq!(buffers.bulk.borrow().len(), limits::BUFFERS_BULK_KEPT_MAX);
        assert!(buffers.tiny.borrow().is_empty());
    }

    #[test]
    fn classes_are_ordered_and_hold_what_they_say() {
        for class in [Class::Tiny, Class::Small, Class::Record, Class::Bulk] {
            assert_eq!(Class::holding(class.bytes()), class);
            assert!(class.smaller() <= class && class <= class.larger());
        }
        assert_eq!(Class::holding(usize::MAX), Class::Bulk);
    }
}
