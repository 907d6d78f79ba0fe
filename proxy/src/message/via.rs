//! Which gateways a request has come through (RFC 9110 §7.6.3), so that one that comes round is recognised.

use super::fields::list;

/// What this gateway calls itself in Via fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pseudonym {
    name: [u8; 25],
}

impl Pseudonym {
    /// The one with this number, which should be random, so that no other gateway has it.
    #[must_use]
    pub fn new(number: u64) -> Self {
        let mut name = *b"tlsplice-0000000000000000";
        let mut rest = number;
        for digit in name[9..].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 0xf) as usize];
            rest >>= 4;
        }
        Self { name }
    }

    /// The name.
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }
}

/// Whether one of the values of Via fields names `pseudonym`: the request has been here before.
pub fn names<'v>(values: impl IntoIterator<Item = &'v [u8]>, pseudonym: Pseudonym) -> bool {
    values.into_iter().flat_map(list).any(|element| {
        // The protocol, who received it, and perhaps a comment.
        let mut words = element.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|received_by| received_by.eq_ignore_ascii_case(pseudonym.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_finds_its_own_name_and_no_other() {
        let found = |values: &[&'static str]| {
            names(values.iter().map(|value| value.as_bytes()), Pseudonym::new(0xab))
        };
        assert!(found(&["1.1 tlsplice-00000000000000ab"]));
        assert!(found(&["1.0 fred", "1.1 a:80 (x), HTTP/1.1\tTLSPLICE-00000000000000AB (y)"]));
        assert!(!found(&[]));
        assert!(!found(&["1.1 tlsplice-00000000000000ac", "1.1 tlsplice-00000000000000ab0"]));
        assert!(!found(&[
            "tlsplice-00000000000000ab 1.1",
            "1.1 a (1.1 tlsplice-00000000000000ab)"
        ]));
    }
}
