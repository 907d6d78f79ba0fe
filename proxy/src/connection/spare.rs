//! What a request needed on the heap goes to a later one.
//!
//! Each allocation lasts from the head of the request to that of its answer. With more of them at a time than the allocator keeps
//! ready for a thread (7 of each size in glibc), each would take its slow path.

use std::cell::RefCell;

use super::request::Forward;

/// Requests that are over, of one worker.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
pub struct Spare(RefCell<Vec<Box<Forward>>>);

impl Spare {
    /// As many as may be on their way where many are at once.
    const KEPT_MAX: usize = 64;
    /// Of a larger head, in bytes, the memory is given back.
    const HEAD_BYTES_MAX: usize = 4096;

    /// One that is over.
    pub(super) fn take(&self) -> Option<Box<Forward>> {
        self.0.borrow_mut().pop()
    }

    /// Keeps the memory of `forward`.
    pub(super) fn give(&self, mut forward: Box<Forward>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < Self::KEPT_MAX && forward.head.capacity() <= Self::HEAD_BYTES_MAX {
            forward.head.clear();
            forward.authority.clear();
            spare.push(forward);
        }
    }
}

/// Heads have cookies in them.
impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spare").field("kept", &self.0.borrow().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::message::Version;
    use crate::message::framing::Framing;
    use crate::message::rewrite::Identity;
    use crate::message::via::Pseudonym;

    fn over(head: &[u8]) -> Box<Forward> {
        Box::new(Forward {
            route: 0,
            head: head.to_vec(),
            framing: Framing::None,
            version: Version::Http11,
            keep_alive: true,
            to_head: false,
            is_idempotent: true,
            websocket_key: None,
            authority: "a.example".to_owned(),
            identity: Identity {
                peer: Ipv4Addr::LOCALHOST.into(),
                peer_is_trusted: false,
                https: false,
                port: 80,
                pseudonym: Pseudonym::new(1),
            },
        })
    }

    #[test]
    fn memory_is_kept_without_what_stood_in_it_and_within_bounds() {
        let spare = Spare::default();
        assert!(spare.take().is_none());
        spare.give(over(b"Cookie: secret"));
        assert!(!format!("{spare:?}").contains("secret"));
        let again = spare.take().expect("it was kept");
        assert!(again.head.is_empty() && again.authority.is_empty());
        assert!(again.head.capacity() > 0 && again.authority.capacity() > 0);
        spare.give(over(&[b'x'; Spare::HEAD_BYTES_MAX + 1]));
        assert!(spare.take().is_none(), "a large head");
        (0..Spare::KEPT_MAX + 5).for_each(|_| spare.give(over(b"x")));
        assert_eq!(std::iter::from_fn(|| spare.take()).count(), Spare::KEPT_MAX);
    }
}
