//! Which connection has which place in the arrays that the kernel's programs write to. Pure.

use std::collections::HashMap;

use slab::Slab;

/// Places for a number of connections.
#[derive(Debug)]
pub(super) struct Places {
    taken: Slab<()>,
    by_client: HashMap<u64, usize>,
    capacity: u32,
}

impl Places {
    /// For as many connections at once.
    pub(super) fn new(capacity: u32) -> Self {
        Self { taken: Slab::new(), by_client: HashMap::new(), capacity }
    }

    /// A place for the connection of this client, that which it has if it has one; None when there is no free one.
    pub(super) fn take(&mut self, client: u64) -> Option<u32> {
        if let Some(place) = self.of(client) {
            return Some(place);
        }
        if self.taken.len() >= self.capacity as usize {
            return None;
        }
        let place = self.taken.insert(());
        self.by_client.insert(client, place);
        Some(number(place))
    }

    /// The place of this client's connection; None when it has none.
    pub(super) fn of(&self, client: u64) -> Option<u32> {
        self.by_client.get(&client).copied().map(number)
    }

    /// Frees the place of this client's connection, and returns it; None when it has none.
    pub(super) fn give_back(&mut self, client: u64) -> Option<u32> {
        let place = self.by_client.remove(&client)?;
        self.taken.remove(place);
        Some(number(place))
    }
}

/// Places are below the capacity.
fn number(place: usize) -> u32 {
    u32::try_from(place).expect("the capacity has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_connection_s_until_it_is_given_back() {
        let mut places = Places::new(2);
        let (first, second) = (places.take(11), places.take(12));
        assert_ne!(first, second);
        assert!(first.is_some_and(|place| place < 2) && second.is_some_and(|place| place < 2));
        assert_eq!((places.take(12), places.take(13)), (second, None));
        assert_eq!((places.of(11), places.of(13)), (first, None));
        assert_eq!(places.give_back(11), first);
        assert_eq!((places.give_back(11), places.of(11)), (None, None));
        assert_eq!(places.take(13), first);
        assert_eq!((places.of(12), places.of(13)), (second, first));
    }
}
