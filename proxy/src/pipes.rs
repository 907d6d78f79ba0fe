//! Pipes of one worker: where bytes are while they are spliced from one socket to another.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

use crate::limits::{PIPES_KEPT_MAX, PIPES_MAX};
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
            None => Self::make().inspect_err(|error| tracing::debug!("no pipe: {error}")).ok(),
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
        let mut free = self.free.borrow_mut();
        if is_drained && free.len() < PIPES_KEPT_MAX {
            free.push(pipe);
        }
    }

    fn make() -> io::Result<Pipe> {
        let (read, write, capacity) = sys::pipe()?;
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
}
