//! Sections of a PEM file (RFC 7468), decoded so that no copy of a key is left in memory.
//!
//! Readers made for certificates collect a section's text in memory that they give back as it is, and what is given
//! back keeps what it held until something else takes its place.

use base64ct::{Base64, Encoding as _};
use zeroize::Zeroizing;

/// The text cannot be what it begins as: a line is cut, a section has no end, or it is no Base64.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// What stands between `-----BEGIN label-----` and `-----END label-----`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    /// As RFC 7468 section 4 names it.
    pub(super) label: &'a [u8],
    text: &'a [u8],
}

impl Section<'_> {
    /// The bytes that the text stands for, wiped when they are dropped.
    ///
    /// # Errors
    /// When the text is no Base64 with padding. White space is passed over wherever it is.
    pub(super) fn decode(&self) -> Result<Zeroizing<Vec<u8>>, Damaged> {
        // Room for everything from the start: a buffer that grows leaves copies behind.
        let mut digits = Zeroizing::new(Vec::with_capacity(self.text.len()));
        digits.extend(self.text.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let mut bytes = Zeroizing::new(vec![0; digits.len() / 4 * 3]);
        let length = Base64::decode(&digits, &mut bytes).map_err(|_| Damaged)?.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The sections of a file, in their order. What stands outside of them is passed over; after what is damaged nothing
/// follows.
pub(super) fn sections(file: &[u8]) -> Sections<'_> {
    Sections { rest: file }
}

/// See [`sections`].
#[derive(Debug)]
pub(super) struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    /// The next line without its end; None at the end of the file.
    fn line(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', self.rest).unwrap_or(self.rest.len());
        let line = self.rest.get(..end).unwrap_or_default();
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(line.trim_ascii_end())
    }

    /// What follows a line that begins a section of this label.
    fn section(&mut self, label: &'a [u8]) -> Result<Section<'a>, Damaged> {
        let start = self.rest;
        loop {
            let before = self.rest.len();
            let line = self.line().ok_or(Damaged)?;
            if line.starts_with(b"-----") {
                let text = start.get(..start.len() - before).unwrap_or_default();
                let ends = boundary(line, b"-----END ") == Some(label);
                return ends.then_some(Section { label, text }).ok_or(Damaged);
            }
        }
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.line()?;
            if !line.starts_with(BEGIN) {
                continue;
            }
            let section =
                boundary(line, BEGIN).ok_or(Damaged).and_then(|label| self.section(label));
            if section.is_err() {
                self.rest = &[];
            }
            return Some(section);
        }
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// The label in a line that begins or ends a section.
fn boundary<'a>(line: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(keyword)?.strip_suffix(b"-----")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls_pki_types::pem::{PemObject as _, SectionKind};

    use super::*;

    type Told<'a> = (&'a [u8], Result<Vec<u8>, Damaged>);

    fn read(file: &[u8]) -> Vec<Told<'_>> {
        sections(file)
            .map(|section| match section {
                Ok(section) => (section.label, section.decode().map(|bytes| bytes.to_vec())),
                Err(damaged) => (&b""[..], Err(damaged)),
            })
            .collect()
    }

    #[test]
    fn sections_are_told_from_what_is_around_them() {
        let file = b"Bag Attributes\n-----BEGIN EC PARAMETERS-----\nBggq\r\n-----END EC PARAMETERS-----\r\n\
                     -----BEGIN PRIVATE KEY----- \n\n AAEC \n\tAw==\n-----END PRIVATE KEY-----";
        assert_eq!(
            read(file),
            [
                (&b"EC PARAMETERS"[..], Ok(vec![6, 8, 42])),
                (&b"PRIVATE KEY"[..], Ok(vec![0, 1, 2, 3]))
            ]
        );
        assert!(read(b"").is_empty());
        assert!(read(b"-----END PRIVATE KEY-----\n").is_empty());
    }

    #[test]
    fn what_is_damaged_is_the_last_thing_told() {
        for file in [
            "-----BEGIN A",
            "-----BEGIN A----\nAAAA\n-----END A-----\n",
            "-----BEGIN A-----",
            "-----BEGIN A-----\nAAAA\n",
            "-----BEGIN A-----\nAAAA\n-----END B-----\n-----BEGIN B-----\n-----END B-----\n",
            "-----BEGIN A-----\nAAAA\n-----BEGIN A-----\nAAAA\n-----END A-----\n",
        ] {
            assert_eq!(read(file.as_bytes()), [(&b""[..], Err(Damaged))], "{file}");
        }
        for text in ["A", "AA", "AAA", "AA=A", "AA==AAAA", "AAB=", "Proc-Type: 4,ENCRYPTED"] {
            let file = format!("-----BEGIN A-----\n{text}\n-----END A-----\n");
            assert_eq!(read(file.as_bytes()), [(&b"A"[..], Err(Damaged))], "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(file in "(-----|BEGIN |END |A|A=|\n|\r|é| ){0,24}") {
            let found = read(file.as_bytes());
            prop_assert!(found.len() <= file.len());
        }

        /// Whatever the lines' length and end, the bytes are those that went in, and another reader finds the same.
        #[test]
        fn bytes_survive(
            wanted in proptest::collection::vec(any::<u8>(), 1..3_000),
            width in 1_usize..90,
            end in prop_oneof![Just("\n"), Just("\r\n"), Just(" \n")],
        ) {
            let digits = Base64::encode_string(&wanted);
            let mut file = format!("-----BEGIN PRIVATE KEY-----{end}");
            for line in digits.as_bytes().chunks(width) {
                file.push_str(std::str::from_utf8(line).unwrap());
                file.push_str(end);
            }
            file.push_str("-----END PRIVATE KEY-----");
            prop_assert_eq!(read(file.as_bytes()), [(&b"PRIVATE KEY"[..], Ok(wanted.clone()))]);
            let (kind, other) = <(SectionKind, Vec<u8>)>::from_pem_slice(file.as_bytes()).unwrap();
            prop_assert_eq!((kind, other), (SectionKind::PrivateKey, wanted));
        }
    }
}
