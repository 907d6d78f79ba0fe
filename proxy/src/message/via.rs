//! Which gateways a request has come through (RFC 9110 §7.6.3), so that one that comes round is recognised.

use httparse::Header;

use super::fields::list;

/// What this gateway calls itself in Via fields. Its number should be random, so that no other one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pseudonym(pub u64);

impl Pseudonym {
    /// The name. Every request is given it: no formatter makes it.
    pub(super) fn name(self) -> [u8; 25] {
        let mut name = *b"tlsplice-0000000000000000";
        let mut rest = self.0;
        for digit in name[9..].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 0xf) as usize];
            rest >>= 4;
        }
        name
    }
}

/// Whether a Via field names `pseudonym`: the request has been here before.
#[must_use]
pub fn names(fields: &[Header<'_>], pseudonym: Pseudonym) -> bool {
    let mut vias = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("via")).peekable();
    if vias.peek().is_none() {
        return false;
    }
    let own = pseudonym.name();
    vias.flat_map(|field| list(field.value)).any(|element| {
        // The protocol, who received it, and perhaps a comment.
        let mut words = element.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|received_by| received_by.eq_ignore_ascii_case(&own))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_finds_its_own_name_and_no_other() {
        let found = |values: &[&'static str]| {
            let fields: Vec<_> = values
                .iter()
                .map(|value| Header { name: "vIa", value: value.as_bytes() })
                .collect();
            names(&fields, Pseudonym(0xab))
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
