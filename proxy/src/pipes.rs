//! Pipes of one worker: where bytes are while they are spliced from one socket to another.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

use crate::limits::{
    PIPE_BYTES, PIPE_NARROW_BYTES, PIPES_KEPT_BYTES, PIPES_KEPT_MAX, PIPES_MAX, PIPES_WIDE_MAX,
};
use crate::sys;

/// An empty pipe. Given back only when it is empty again: bytes left in it would come out in another connection.
#[derive(Debug)]
pub struct Pipe {
    /// Where bytes go in.
    pub write: OwnedFd,
    /// Where they come out.
    pub read: OwnedFd,
    /// Bytes that it holds.
    pub capacity: usize,
}

/// Free pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    free: RefCell<Vec<Pipe>>,
    in_use: Cell<usize>,
}

impl Pipes {
    /// A pipe; None when too many are in use, or the system has none left.
    pub fn take(&self) -> Option<Pipe> {
        let pipe = match self.free.borrow_mut().pop() {
            _ if self.in_use.get() >= PIPES_MAX => None,
            Some(pipe) => Some(pipe),
            None => self.make().inspect_err(|error| tracing::debug!("no pipe: {error}")).ok(),
        };
        if pipe.is_some() {
            self.in_use.set(self.in_use.get() + 1);
        }
        pipe
    }

    /// How many are in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Takes a pipe back, with how much is left in it.
    pub fn give(&self, pipe: Pipe, is_drained: bool) {
        self.in_use.set(self.in_use.get().saturating_sub(1));
        if !is_drained {
            return;
        }
        let mut free = self.free.borrow_mut();
        // Wide ones are taken first, and kept rather than others.
        let at = if pipe.capacity < PIPE_BYTES { 0 } else { free.len() };
        free.insert(at, pipe);
        let bytes = |free: &[Pipe]| free.iter().map(|pipe| pipe.capacity).sum::<usize>();
        while free.len() > PIPES_KEPT_MAX || bytes(&free) > PIPES_KEPT_BYTES {
            free.remove(0);
        }
    }

    /// Called where none is free, so that there are as many as are in use.
    fn make(&self) -> io::Result<Pipe> {
        let is_wide = self.in_use.get() < PIPES_WIDE_MAX;
        let (read, write, capacity) =
            sys::pipe(if is_wide { PIPE_BYTES } else { PIPE_NARROW_BYTES })?;
        Ok(Pipe { write, read, capacity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_are_in_use_and_only_empty_ones_are_kept() {
        let pipes = Pipes::default();
        let taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take()).collect();
        assert_eq!(taken.len(), PIPES_MAX);
        for (index, pipe) in taken.into_iter().enumerate() {
            pipes.give(pipe, index % 2 == 0);
        }
        assert!(pipes.free.borrow().len() <= PIPES_KEPT_MAX);
        assert_eq!(pipes.in_use.get(), 0);
        assert!(pipes.take().is_some());
    }

    #[test]
    fn some_are_wide_and_those_are_kept_whatever_the_order_they_come_back_in() {
        let is_wide = |pipe: &Pipe| pipe.capacity >= PIPE_BYTES;
        for is_reversed in [false, true] {
            let pipes = Pipes::default();
            let mut taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take()).collect();
            let wide = taken.iter().filter(|pipe| is_wide(pipe)).count();
            // Whoever runs this may have a smaller share of pages.
            assert!(wide <= PIPES_WIDE_MAX, "{wide}");
            if is_reversed {
                taken.reverse();
            }
            taken.into_iter().for_each(|pipe| pipes.give(pipe, true));
            let kept = pipes.free.borrow().iter().filter(|pipe| is_wide(pipe)).count();
            assert_eq!(kept, wide.min(PIPES_KEPT_BYTES / PIPE_BYTES));
            let bytes: usize = pipes.free.borrow().iter().map(|pipe| pipe.capacity).sum();
            assert!(bytes <= PIPES_KEPT_BYTES, "{bytes}");
            assert_eq!(pipes.take().is_some_and(|pipe| is_wide(&pipe)), wide > 0);
        }
    }
}
