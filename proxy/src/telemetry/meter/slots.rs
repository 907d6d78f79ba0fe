//! Which sockets have their own entry in the array of links, and which are kept apart. Pure.

use std::collections::HashSet;

/// Entries of an array, a power of two of them; a socket's is that of the low bits of its cookie. The kernel numbers the sockets of
/// a processor one after the other for long, so that few that live at once fall on the same one.
#[derive(Debug)]
pub(super) struct Slots {
    /// The cookie of the socket that has it; 0, which is no cookie, when nobody has.
    owners: Vec<u64>,
    /// Sockets that found their slot taken. They stay apart when it gets free, so that each has one link only.
    apart: HashSet<u64>,
}

/// Where the link of a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// In the array, at this index.
    Own(u32),
    /// In the map by cookies.
    Apart,
}

impl Slots {
    /// As many as `sockets`, or more.
    pub(super) fn new(sockets: u32) -> Self {
        // 2^31 is more than any map has.
        let count = sockets.clamp(1, 1 << 31).next_power_of_two();
        Self { owners: vec![0; count as usize], apart: HashSet::new() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.owners.len()).expect("they were counted in 32 bits")
    }

    /// What a cookie's slot is made from: cookie & mask.
    pub(super) fn mask(&self) -> u32 {
        self.count() - 1
    }

    /// Where the link of this socket is, if there is one.
    pub(super) fn of(&self, cookie: u64) -> Option<Slot> {
        let index = self.index(cookie);
        if cookie != 0 && self.owners[index as usize] == cookie {
            return Some(Slot::Own(index));
        }
        self.apart.contains(&cookie).then_some(Slot::Apart)
    }

    /// Where the link of this socket is from now on.
    pub(super) fn take(&mut self, cookie: u64) -> Slot {
        if let Some(slot) = self.of(cookie) {
            return slot;
        }
        debug_assert_ne!(cookie, 0, "a socket has a cookie");
        let index = self.index(cookie);
        let owner = &mut self.owners[index as usize];
        if *owner == 0 {
            *owner = cookie;
            return Slot::Own(index);
        }
        self.apart.insert(cookie);
        Slot::Apart
    }

    /// This socket has no link any more; says where it was, if there was one.
    pub(super) fn give_back(&mut self, cookie: u64) -> Option<Slot> {
        let slot = self.of(cookie)?;
        match slot {
            Slot::Own(index) => self.owners[index as usize] = 0,
            Slot::Apart => drop(self.apart.remove(&cookie)),
        }
        Some(slot)
    }

    fn index(&self, cookie: u64) -> u32 {
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
        assert_eq!((slots.take(3), slots.take(4)), (Slot::Own(3), Slot::Own(4)));
        assert_eq!((slots.take(3), slots.of(3)), (Slot::Own(3), Some(Slot::Own(3))));
        assert_eq!((slots.of(0), slots.of(5), slots.give_back(5)), (None, None, None));
        assert_eq!((slots.give_back(3), slots.of(3)), (Some(Slot::Own(3)), None));
        assert_eq!(slots.take(3 + 8), Slot::Own(3));
        assert_eq!(slots.take(u64::MAX), Slot::Own(7));
    }

    #[test]
    fn who_was_put_apart_stays_there_when_the_slot_is_free() {
        let mut slots = Slots::new(8);
        let (first, second) = (3, 3 + 8);
        assert_eq!((slots.take(first), slots.take(second)), (Slot::Own(3), Slot::Apart));
        slots.give_back(first);
        assert_eq!((slots.take(second), slots.of(second)), (Slot::Apart, Some(Slot::Apart)));
        assert_eq!(slots.take(first), Slot::Own(3));
        assert_eq!((slots.give_back(second), slots.give_back(second)), (Some(Slot::Apart), None));
        slots.give_back(first);
        assert_eq!(slots.take(second), Slot::Own(3));
    }
}
