//! Acknowledgements that wait until a thread has nothing else to do.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Weak;

use crate::sys;

/// Turns in a row that bring something new, after which acknowledgements wait no more. A sender that holds small parts back
/// until they are acknowledged (RFC 1122 §4.2.3.4) then still does not wait for the kernel's own patience.
const TURNS_MAX: usize = 16;

/// Sockets that have passed on what they received, and have not acknowledged it.
#[derive(Default)]
pub(super) struct Unacknowledged {
    sockets: Vec<Weak<OwnedFd>>,
    /// Turns that they have waited for.
    turns: usize,
}

impl Unacknowledged {
    /// Adds a socket, which may close before its turn.
    pub(super) fn push(&mut self, socket: Weak<OwnedFd>) {
        self.sockets.push(socket);
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// After a turn in which `completed` operations have: those who wait acknowledge what they received if there were none, or if they
    /// have waited for long.
    pub(super) fn after_turn(&mut self, completed: usize) {
        self.turns += 1;
        if completed > 0 && self.turns < TURNS_MAX {
            return;
        }
        self.turns = 0;
        for socket in self.sockets.drain(..) {
            if let Some(socket) = socket.upgrade() {
                sys::acknowledge(socket.as_fd());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_goes_on_in_a_quiet_turn_and_after_some_busy_ones() {
        let mut waiting = Unacknowledged::default();
        for _ in 0..2 {
            waiting.push(Weak::new());
            for _ in 1..TURNS_MAX {
                waiting.after_turn(1);
                assert!(!waiting.is_empty());
            }
            waiting.after_turn(1);
            assert!(waiting.is_empty());
        }
        waiting.push(Weak::new());
        waiting.after_turn(0);
        assert!(waiting.is_empty());
    }
}
