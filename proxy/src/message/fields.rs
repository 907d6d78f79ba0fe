//! Bytes of heads, and the fields in them.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::LazyLock;

use httparse::{Header, Status};
use memchr::memmem::Finder;
use thiserror::Error;

use super::name::{Name, Names};

/// Most fields a head may ever have; the configured limit is at most this.
pub const FIELDS_MAX: usize = 256;

/// Room for the fields of one head, on the caller's stack.
#[derive(Debug)]
pub struct Slots<'b> {
    pub(super) headers: [MaybeUninit<Header<'b>>; FIELDS_MAX],
    pub(super) marks: [Mark; FIELDS_MAX],
}

/// Empty room for fields.
#[must_use]
pub fn slots<'b>() -> Slots<'b> {
    Slots {
        headers: [const { MaybeUninit::uninit() }; FIELDS_MAX],
        marks: [Mark { name: Name::EndToEnd, is_plain: false }; FIELDS_MAX],
    }
}

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    name: Name,
    /// Its line is written as we write lines: one blank behind the colon, and none behind the value.
    is_plain: bool,
}

/// A field: what it is, how it came, and where in the head its line stands, if that is written as we write lines.
pub(super) type Line<'s, 'b> = (Name, &'s Header<'b>, Option<Range<usize>>);

/// The fields of a head, as they came, and what each of them is.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'s, 'b> {
    head: &'b [u8],
    headers: &'s [Header<'b>],
    marks: &'s [Mark],
    present: Names,
}

impl<'s, 'b> Fields<'s, 'b> {
    /// Marks `headers`, which httparse has found in `head`.
    ///
    /// # Panics
    /// Without room for as many marks.
    pub(super) fn new(head: &'b [u8], headers: &'s [Header<'b>], marks: &'s mut [Mark]) -> Self {
        let mut present = Names::default();
        let marks = &mut marks[..headers.len()];
        for (mark, header) in marks.iter_mut().zip(headers) {
            let name = Name::of(header.name);
            present.insert(name);
            *mark = Mark { name, is_plain: is_plain(head, header) };
        }
        Self { head, headers, marks, present }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// The values of all fields of this name, in their order; where it stands for many names, of all of these.
    pub fn values(&self, name: Name) -> impl DoubleEndedIterator<Item = &'b [u8]> + use<'s, 'b> {
        // Most of what is asked for is not there.
        let len = if self.present.contains(name) { self.headers.len() } else { 0 };
        let fields = self.marks[..len].iter().zip(&self.headers[..len]);
        fields.filter(move |(mark, _)| mark.name == name).map(|(_, header)| header.value)
    }

    /// The value of the first field `name`, whatever its case.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&'b [u8]> {
        let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(header.value)
    }

    /// All fields, in their order.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'s, 'b>> + use<'s, 'b> {
        let head = self.head;
        self.marks.iter().zip(self.headers).map(move |(mark, header)| {
            let line = mark.is_plain.then(|| span(head, header));
            (mark.name, header, line)
        })
    }

    /// The bytes they were found in.
    pub(super) fn head(&self) -> &'b [u8] {
        self.head
    }

    /// Whether each line of a head that httparse has accepted ends in CRLF: the start, the fields and the end. It lets no other
    /// control byte than tabs through, and no CR without its LF, but it skips empty lines in front.
    fn are_whole(&self) -> bool {
        // The head ends with the first empty line, which has its CR.
        let start_is_whole = || {
            let start = self.headers.first().map(|first| span(self.head, first).start);
            start.is_some_and(|start| self.head[..start].ends_with(b"\r\n"))
        };
        let are_plain = self.marks.iter().all(|mark| mark.is_plain) && start_is_whole();
        let lines = self.headers.len() + 2;
        self.head[0] != b'\n'
            && (are_plain || self.head.iter().filter(|&&byte| byte == b'\r').count() == lines)
    }
}

/// Where in `head` the line of `header` stands, if it is written as we write lines.
fn span(head: &[u8], header: &Header<'_>) -> Range<usize> {
    let start = header.name.as_ptr().addr() - head.as_ptr().addr();
    start..start + header.name.len() + header.value.len() + 4
}

/// Whether the line of `header` is written as we write lines. httparse gives parts of the head.
fn is_plain(head: &[u8], header: &Header<'_>) -> bool {
    let name = header.name.as_ptr().addr();
    let line = span(head, header);
    header.value.as_ptr().addr() == name + header.name.len() + 2
        && head.get(line).is_some_and(|line| {
            line[header.name.len()..].starts_with(b": ") && line.ends_with(b"\r\n")
        })
}

/// Why the bytes of a head cannot be a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// RFC 9112 §2.2 lets a recipient accept it; a second parser behind us may not.
    #[error("a line ends in LF without CR")]
    BareLf,
    /// RFC 9112 §2.2: a bare CR is not a line end.
    #[error("CR without LF")]
    BareCr,
    /// RFC 9110 §5.5: control bytes are invalid in a field.
    #[error("a control byte")]
    Control,
    /// The head is longer than the limit.
    #[error("the head is longer than {0} bytes")]
    TooLong(usize),
    /// The head has more fields than the limit.
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
    /// The start line does not parse.
    #[error("the start line is malformed")]
    StartLine,
    /// A field does not parse: folded line, space before the colon, empty name, no colon.
    #[error("a field line is malformed")]
    Field,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the version is not supported")]
    Version,
}

/// Length of the head at the start of `bytes`, or None while its empty line has not arrived. What has arrived in whole is
/// to be judged by [`check`].
///
/// # Errors
/// Before the end is there: on a byte no head may contain, at the first such byte, and when no end is found within `max`
/// bytes.
pub(super) fn head_len(bytes: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
    match end(&bytes[..bytes.len().min(max)]) {
        Some(len) => Ok(Some(len)),
        None => walk(bytes, max),
    }
}

/// Where the first empty line ends.
fn end(window: &[u8]) -> Option<usize> {
    // Without the CR before it, which stands at every line's end and would halt the search there.
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\n\r\n"));
    if window.starts_with(b"\r\n") {
        return Some(2);
    }
    EMPTY_LINE.find(window).map(|at| at + 3)
}

/// What httparse says of a head, in which it has found `fields`, but stricter: it takes a bare LF for the end of a line.
///
/// # Errors
/// The first byte that no head may contain, or else what httparse finds wrong.
pub(super) fn check(
    verdict: httparse::Result<usize>,
    fields: &Fields<'_, '_>,
    fields_max: usize,
) -> Result<(), HeadError> {
    match verdict {
        Ok(Status::Complete(len)) if len == fields.head.len() && fields.are_whole() => Ok(()),
        verdict => {
            walk(fields.head, fields.head.len())?;
            Err(verdict
                .err()
                .map_or(HeadError::StartLine, |error| from_httparse(error, fields_max)))
        }
    }
}

/// One line after the other: what is missing or wrong, at the first byte that is.
fn walk(bytes: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
    let window = &bytes[..bytes.len().min(max)];
    let mut line_start = 0;
    for lf in memchr::memchr_iter(b'\n', window) {
        if lf == 0 || window[lf - 1] != b'\r' {
            return Err(HeadError::BareLf);
        }
        let line = &window[line_start..lf - 1];
        check_line(line)?;
        if line.is_empty() {
            return Ok(Some(lf + 1));
        }
        line_start = lf + 1;
    }
    let rest = &window[line_start..];
    // The last byte may be the CR of a line end whose LF has not arrived.
    check_line(rest.strip_suffix(b"\r").unwrap_or(rest))?;
    if bytes.len() >= max { Err(HeadError::TooLong(max)) } else { Ok(None) }
}

fn check_line(line: &[u8]) -> Result<(), HeadError> {
    for &byte in line {
        if byte < 0x20 && byte != b'\t' || byte == 0x7f {
            return Err(if byte == b'\r' { HeadError::BareCr } else { HeadError::Control });
        }
    }
    Ok(())
}

/// The verdict of httparse in our words.
fn from_httparse(error: httparse::Error, fields_max: usize) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields(fields_max),
        httparse::Error::Version => HeadError::Version,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => HeadError::Field,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
            HeadError::StartLine
        }
    }
}

/// Elements of a comma-separated list, without surrounding blanks and without empty elements (RFC 9110 §5.6.1).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
#[must_use]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether `text` begins with `prefix`, ignoring ASCII case.
#[must_use]
pub fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    let start = text.as_bytes().get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::{RequestError, RequestHead};
    use super::super::response::{ResponseError, ResponseHead};
    use super::super::{HeadLimits, Parsed};
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_and_nowhere_else() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        assert_eq!(head_len(head, 1024), Ok(Some(27)));
        for cut in 0..27 {
            assert_eq!(head_len(&head[..cut], 1024), Ok(None), "cut at {cut}");
        }
    }

    /// Of a request's head and of a response's.
    fn verdicts(bytes: &[u8], max: usize) -> [Result<Option<usize>, HeadError>; 2] {
        let limits = HeadLimits { bytes: max, fields: 64 };
        let mut room = slots();
        let request = match RequestHead::parse(bytes, &mut room, limits) {
            Ok(Parsed::Partial) => Ok(None),
            Ok(Parsed::Complete(_, len)) => Ok(Some(len)),
            Err(RequestError::Head(error)) => Err(error),
            Err(other) => panic!("{other:?}: {}", bytes.escape_ascii()),
        };
        let mut room = slots();
        let response = match ResponseHead::parse(bytes, &mut room, limits, false, None) {
            Ok(Parsed::Partial) => Ok(None),
            Ok(Parsed::Complete(_, len)) => Ok(Some(len)),
            Err(ResponseError::Head(error)) => Err(error),
            Err(other) => panic!("{other:?}: {}", bytes.escape_ascii()),
        };
        [request, response]
    }

    #[test]
    fn bytes_that_parsers_disagree_about_are_refused_whole_and_split() {
        let cases: [(&[u8], HeadError); 9] = [
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\n\nGET / HTTP/1.1\r\n\r\n", HeadError::BareLf),
            (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::BareLf),
            (b"GET / HTTP/1.1\r\nHost: a\r\rb\r\n\r\n", HeadError::BareCr),
            (b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", HeadError::Control),
            (b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", HeadError::Control),
            (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", HeadError::Control),
        ];
        for (bytes, error) in cases {
            assert_eq!(verdicts(bytes, 1024), [Err(error); 2]);
            let first = (0..=bytes.len()).find_map(|cut| verdicts(&bytes[..cut], 1024)[0].err());
            assert_eq!(first, Some(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_limit_holds_for_complete_and_endless_heads() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(head_len(head, head.len()), Ok(Some(head.len())));
        assert_eq!(head_len(head, head.len() - 1), Err(HeadError::TooLong(head.len() - 1)));
    }

    proptest! {
        #[test]
        fn no_head_is_accepted_with_a_byte_that_none_may_contain(
            start in "(GET /a?b|OPTIONS \\*)( HTTP/1.1)?|HTTP/1.1 200( [a-z\t ]{0,4})?|[a-z]{0,3}",
            pieces in proptest::collection::vec(
                "(\r\n){0,1}|(\r|\n|\n\n|\r\r|\x00|\x7f)|(\r\n[a-z]{1,3}: ?[a-z\t ]{0,9})", 0..6,
            ),
            tail in "(\r\n\r\n|\r\n\n|\n\n)?.{0,8}",
            max in 20..200_usize,
        ) {
            let bytes = start + "\r\nhost: h\r\ncontent-length: 0" + &pieces.concat() + &tail;
            let bytes = bytes.as_bytes();
            let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
            let [request, response] = verdicts(bytes, max);
            for (verdict, walked, skipped) in
                [(request, walk(&bytes[skipped..], max), skipped), (response, walk(bytes, max), 0)]
            {
                match walked {
                    Ok(Some(len)) => {
                        let is_of_httparse = matches!(
                            verdict,
                            Err(HeadError::StartLine | HeadError::Field | HeadError::Version),
                        );
                        prop_assert!(verdict == Ok(Some(skipped + len)) || is_of_httparse);
                    }
                    walked => prop_assert_eq!(verdict, walked),
                }
            }
        }
    }
}
