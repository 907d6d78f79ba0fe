//! Buffers that a ring receives into before anybody has said where to: the kernel takes the next free one when there is
//! something to put into it (`IORING_REGISTER_PBUF_RING`, Linux 5.19).

use std::alloc::{self, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::limits::{PROVIDED_BUFFER_BYTES as BYTES, PROVIDED_BUFFERS as COUNT};

/// The group by which operations name the buffers of their ring.
pub(super) const GROUP: u16 = 0;

/// What the kernel asks of the address of the list.
const PAGE_BYTES: usize = 4096;

/// Where the tail of the list lies: in the last field of its first entry, which has no other use (`struct io_uring_buf_ring`).
const TAIL_OFFSET: usize = 14;

/// The buffers of one ring. Each is either in the list, and the kernel's to write, or has been handed over with a completion,
/// and is ours to read until it is given back.
pub(super) struct Provided {
    list: NonNull<BufRingEntry>,
    storage: NonNull<u8>,
    tail: u16,
}

impl Provided {
    fn list_layout() -> Layout {
        Layout::array::<BufRingEntry>(COUNT.into())
            .and_then(|layout| layout.align_to(PAGE_BYTES))
            .expect("it is small")
    }

    fn storage_layout() -> Layout {
        Layout::array::<u8>(Self::offset(COUNT)).expect("it is small")
    }

    /// Where the buffer `id` begins in the storage.
    fn offset(id: u16) -> usize {
        usize::from(id) * BYTES as usize
    }

    /// Gives `ring` its buffers. They must not be dropped before it.
    ///
    /// # Errors
    /// Those of `io_uring_register(2)`: `EINVAL` where the kernel knows no such thing.
    pub(super) fn register(ring: &IoUring) -> io::Result<Self> {
        let allocate = |layout: Layout| {
            // SAFETY: neither layout is of size zero.
            let memory = unsafe { alloc::alloc_zeroed(layout) };
            NonNull::new(memory).unwrap_or_else(|| alloc::handle_alloc_error(layout))
        };
        let list = allocate(Self::list_layout()).cast::<BufRingEntry>();
        let storage = allocate(Self::storage_layout());
        let mut provided = Self { list, storage, tail: 0 };
        let address = list.addr().get() as u64;
        // SAFETY: the list has so many entries, begins at a page, and is freed after the ring, as the caller was told.
        unsafe { ring.submitter().register_buf_ring(address, COUNT, GROUP) }?;
        for id in 0..COUNT {
            provided.give_back(id);
        }
        Ok(provided)
    }

    /// What the kernel has put into the buffer `id`, which a completion has handed over together with `count`.
    ///
    /// # Panics
    /// When there is no such buffer, or it has less room: a defect of the kernel.
    pub(super) fn filled(&self, id: u16, count: u32) -> &[u8] {
        assert!(id < COUNT && count <= BYTES, "the kernel knows its buffers");
        // SAFETY: the buffer lies within the storage.
        let start = unsafe { self.storage.add(Self::offset(id)) };
        // SAFETY: the bytes lie within the storage, which was zeroed once. The buffer has been handed over: the kernel does not
        // write it until it is given back, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), count as usize) }
    }

    /// Lets the kernel have the buffer `id` again.
    pub(super) fn give_back(&mut self, id: u16) {
        // SAFETY: the buffer lies within the storage.
        let start = unsafe { self.storage.add(Self::offset(id)) };
        // SAFETY: the index is below the length of the list.
        let mut entry = unsafe { self.list.add(usize::from(self.tail % COUNT)) };
        // SAFETY: the kernel reads no entry from the tail on, and there is always one: there are as many as buffers. The
        // field that is the tail, in the first of them, is written by none of these calls.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(start.addr().get() as u64);
        entry.set_len(BYTES);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the offset lies within the first entry.
        let tail = unsafe { self.list.cast::<u8>().add(TAIL_OFFSET) };
        // SAFETY: these are two bytes, aligned, inside memory that was zeroed once. The kernel only reads them, and here they
        // are reached through this pointer only.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast().as_ptr()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout. The ring, which writes here, has gone.
        unsafe { alloc::dealloc(self.list.as_ptr().cast(), Self::list_layout()) };
        // SAFETY: as above.
        unsafe { alloc::dealloc(self.storage.as_ptr(), Self::storage_layout()) };
    }
}
