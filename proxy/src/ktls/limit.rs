//! How many records one key may protect.

/// A bound on the records of one key.
///
/// AES-GCM allows 2^24.5 (RFC 8446 §5.5). A key is changed, or its connection ended at the next opportunity, when half of
/// 2^24 is reached; a quarter more is the end, wherever the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordLimit(u64);

impl RecordLimit {
    /// That of all our ciphers; ChaCha20-Poly1305 would allow more.
    pub(super) const KEY: Self = Self(1 << 23);

    /// Another one, for tests.
    #[cfg(test)]
    pub(super) const fn of(records: u64) -> Self {
        Self(records)
    }

    /// It is time for another key.
    pub(super) fn is_reached(self, records: u64) -> bool {
        records >= self.0
    }

    /// Another key was asked of the peer long ago.
    pub(super) fn is_overdue(self, records: u64) -> bool {
        records >= self.0 + self.0 / 4
    }

    /// This key must not be used any more.
    pub(super) fn is_exceeded(self, records: u64) -> bool {
        records >= self.0 + self.0 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_comes_before_the_bound_of_the_cipher() {
        let limit = RecordLimit::KEY;
        assert!(!limit.is_reached((1 << 23) - 1) && limit.is_reached(1 << 23));
        assert!(!limit.is_overdue(1 << 23) && limit.is_overdue(5 << 21));
        assert!(!limit.is_exceeded(5 << 21) && limit.is_exceeded(3 << 22));
        assert!(limit.is_exceeded((1 << 24) - 1));
    }
}
