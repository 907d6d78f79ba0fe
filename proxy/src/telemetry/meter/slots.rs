//! Which sockets have their own entry in the array of links, and which share one. Pure.

/// Entries of an array, a power of two of them; a socket's is that of the low bits of its cookie. The kernel numbers sockets one
/// after the other, so that few that live at once fall on the same one.
#[derive(Debug)]
pub(super) struct Slots {
    /// The cookie of the socket that has it; 0, which is no cookie, when nobody has.
    owners: Vec<u64>,
}

impl Slots {
    /// As many as `sockets`, or more.
    pub(super) fn new(sockets: u32) -> Self {
        // 2^31 is more than any map has.
        let count = sockets.clamp(1, 1 << 31).next_power_of_two();
        Self { owners: vec![0; count as usize] }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.owners.len()).expect("they were counted in 32 bits")
    }

    /// What a cookie's slot is made from: cookie & mask.
    pub(super) fn mask(&self) -> u32 {
        self.count() - 1
    }

    /// The slot of this socket, if it is free or its own; None when another one has it.
    pub(super) fn take(&mut self, cookie: u64) -> Option<u32> {
        let slot = self.slot(cookie);
        let owner = &mut self.owners[slot as usize];
        if *owner != 0 && *owner != cookie {
            return None;
        }
        *owner = cookie;
        Some(slot)
    }

    /// The slot that this socket has taken; None when it has none.
    pub(super) fn of(&self, cookie: u64) -> Option<u32> {
        let slot = self.slot(cookie);
        (cookie != 0 && self.owners[slot as usize] == cookie).then_some(slot)
    }

    /// Frees the slot of this socket, and returns it; None when it has none.
    pub(super) fn give_back(&mut self, cookie: u64) -> Option<u32> {
        let slot = self.of(cookie)?;
        self.owners[slot as usize] = 0;
        Some(slot)
    }

    fn slot(&self, cookie: u64) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low bits, as the programs take them"
        )]
        let low = cookie as u32;
        low & self.mask()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_one_socket_s_until_it_is_given_back() {
        let mut slots = Slots::new(5);
        assert_eq!((slots.count(), slots.mask()), (8, 7));
        assert_eq!((slots.take(3), slots.take(4), slots.take(3)), (Some(3), Some(4), Some(3)));
        let another = 3 + 8;
        assert_eq!(
            (slots.take(another), slots.of(another), slots.give_back(another)),
            (None, None, None)
        );
        assert_eq!((slots.of(3), slots.give_back(3), slots.of(3)), (Some(3), Some(3), None));
        assert_eq!((slots.take(another), slots.take(3)), (Some(3), None));
        assert_eq!((slots.of(0), slots.take(u64::MAX)), (None, Some(7)));
    }
}
