//! The body of a chunked message (RFC 9112 §7.1): decoding that may stop and go on at any byte, and encoding.

use thiserror::Error;

use super::fields::is_token_byte;

/// Bytes of chunk extensions and trailers in one body before it is refused.
pub const OVERHEAD_BYTES_MAX: u32 = 16 * 1024;

/// Longest chunk-size line that [`chunk_head`] makes: 16 digits and CRLF.
pub const CHUNK_HEAD_BYTES_MAX: usize = 18;

/// What follows each chunk.
pub const CHUNK_TAIL: &[u8] = b"\r\n";

/// The last chunk, without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Why a chunked body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// No digit, a foreign byte, or more digits than a 64-bit size has.
    #[error("a chunk size is malformed")]
    Size,
    /// A line of the framing does not end in CRLF, or holds a control byte.
    #[error("a chunk is not delimited by CRLF")]
    Delimiter,
    /// An extension is not a name with or without a value.
    #[error("a chunk extension is malformed")]
    Extension,
    /// Extensions and trailers in all exceed [`OVERHEAD_BYTES_MAX`].
    #[error("chunk extensions and trailers exceed {OVERHEAD_BYTES_MAX} bytes")]
    Overhead,
    /// A trailer line is not a field.
    #[error("a trailer is malformed")]
    Trailer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { size: u64, digits: u8 },
    Extension { size: u64, part: Part },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

/// Where an extension stands: `;name`, `;name=token` or `;name="text"`, without blanks (RFC 9112 §7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Behind the semicolon.
    Start,
    Name,
    /// Behind the equals sign.
    ValueStart,
    Token,
    Quoted,
    /// Behind a backslash.
    Escaped,
    /// Behind the closing quote.
    QuotedEnd,
}

impl Part {
    /// Whether the extension may end here.
    fn is_complete(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::QuotedEnd)
    }

    fn next(self, byte: u8) -> Result<Self, ChunkError> {
        let is_text = byte == b'\t' || byte >= 0x20 && byte != 0x7f;
        Ok(match (self, byte) {
            (Self::Quoted, b'"') => Self::QuotedEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, _) if is_text => Self::Quoted,
            (Self::Name, b'=') => Self::ValueStart,
            (Self::ValueStart, b'"') => Self::Quoted,
            (part, b';') if part.is_complete() => Self::Start,
            (Self::Start | Self::Name, _) if is_token_byte(byte) => Self::Name,
            (Self::ValueStart | Self::Token, _) if is_token_byte(byte) => Self::Token,
            _ => return Err(ChunkError::Extension),
        })
    }
}

/// Where a chunked body stands.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    overhead: u32,
}

/// What one call of [`Decoder::dechunk`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dechunked {
    /// Bytes of input used up.
    pub consumed: usize,
    /// Bytes of data, now at the front of the input.
    pub data_len: usize,
    /// The last chunk and its trailers have been read; what follows `consumed` is another message.
    pub ended: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, overhead: 0 }
    }
}

impl Decoder {
    /// Whether the body has been read to its end.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.state == State::End
    }

    /// Bytes of data that the current chunk still owes.
    #[must_use]
    pub fn chunk_left(&self) -> u64 {
        match self.state {
            State::Data { left } => left,
            _ => 0,
        }
    }

    /// Says that `count` bytes of data of the current chunk, at most [`Decoder::chunk_left`], went by unseen.
    pub fn skip(&mut self, count: u64) {
        if let State::Data { left } = self.state {
            debug_assert!(count <= left, "data beyond its chunk");
            let left = left.saturating_sub(count);
            self.state = if left == 0 { State::DataCr } else { State::Data { left } };
        }
    }

    /// Reads as much of `input` as belongs to the body and moves its data to the front. Trailers are checked and dropped.
    ///
    /// # Errors
    /// At the first byte that cannot be chunked framing. Data found before it in the same input is not reported.
    pub fn dechunk(&mut self, input: &mut [u8]) -> Result<Dechunked, ChunkError> {
        let mut at = 0;
        let mut data_len = 0;
        while at < input.len() && self.state != State::End {
            if let State::Data { left } = self.state {
                let available = input.len() - at;
                let count = usize::try_from(left).map_or(available, |left| left.min(available));
                if at != data_len {
                    input.copy_within(at..at + count, data_len);
                }
                at += count;
                data_len += count;
                let left = left - count as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.framing_byte(input[at])?;
                at += 1;
            }
        }
        Ok(Dechunked { consumed: at, data_len, ended: self.is_ended() })
    }

    fn framing_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == 16 {
                    return Err(ChunkError::Size);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(ChunkError::Size),
            (State::Size { size, .. }, b'\r') => State::SizeLf { size },
            (State::Extension { size, part }, b'\r') if part.is_complete() => {
                State::SizeLf { size }
            }
            (State::Size { size, .. }, b';') => {
                self.count_overhead()?;
                State::Extension { size, part: Part::Start }
            }
            (State::Size { .. }, _) => return Err(ChunkError::Size),
            (State::Extension { size, part }, _) => {
                self.count_overhead()?;
                State::Extension { size, part: part.next(byte)? }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => {
                self.count_overhead()?;
                State::TrailerName
            }
            (State::TrailerStart | State::TrailerName, _) => return Err(ChunkError::Trailer),
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, _) => {
                self.count_overhead()?;
                text(byte)?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(ChunkError::Delimiter),
        })
    }

    fn count_overhead(&mut self) -> Result<(), ChunkError> {
        self.overhead += 1;
        if self.overhead > OVERHEAD_BYTES_MAX { Err(ChunkError::Overhead) } else { Ok(()) }
    }
}

fn text(byte: u8) -> Result<(), ChunkError> {
    if byte < 0x20 && byte != b'\t' || byte == 0x7f { Err(ChunkError::Trailer) } else { Ok(()) }
}

/// The line before a chunk of `len` bytes. `len` must not be 0: that would be the last chunk.
#[must_use]
pub fn chunk_head(len: u64) -> ChunkHead {
    debug_assert!(len > 0, "an empty chunk ends the body");
    let mut bytes = [0; CHUNK_HEAD_BYTES_MAX];
    let digits = (u64::BITS - len.leading_zeros()).div_ceil(4).max(1) as usize;
    for (index, byte) in bytes[..digits].iter_mut().enumerate() {
        let digit = (len >> (4 * (digits - 1 - index))) & 0xf;
        *byte = char::from_digit(digit as u32, 16).map_or(b'0', |digit| digit as u8);
    }
    bytes[digits..digits + 2].copy_from_slice(CHUNK_TAIL);
    ChunkHead { bytes, len: digits + 2 }
}

/// A chunk-size line.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    bytes: [u8; CHUNK_HEAD_BYTES_MAX],
    len: usize,
}

impl ChunkHead {
    /// Its bytes, with CRLF.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(input: &[u8], pieces: &[usize]) -> Result<(Vec<u8>, usize, bool), ChunkError> {
        let mut decoder = Decoder::default();
        let (mut data, mut at, mut piece) = (Vec::new(), 0, 0);
        while at < input.len() && !decoder.is_ended() {
            let len = pieces.get(piece).copied().unwrap_or(usize::MAX).clamp(1, input.len() - at);
            piece += 1;
            let mut part = input[at..at + len].to_vec();
            let found = decoder.dechunk(&mut part)?;
            data.extend_from_slice(&part[..found.data_len]);
            at += found.consumed;
        }
        Ok((data, at, decoder.is_ended()))
    }

    #[test]
    fn the_example_of_the_rfc_with_extensions_and_trailers() {
        let body = b"4;a=b;c\r\nWiki\r\n5;d=\"\\\";\"\r\npedia\r\n000;x=\"y\"\r\nExpires: never\r\n\r\nGET /";
        for cut in 1..body.len() {
            let whole = decode(body, &[cut]).unwrap();
            assert_eq!(whole, (b"Wikipedia".to_vec(), body.len() - 5, true));
        }
    }

    #[test]
    fn what_parsers_disagree_about_is_refused_whole_and_byte_by_byte() {
        let cases: [(&[u8], ChunkError); 20] = [
            (b"\r\n", ChunkError::Size),
            (b"0x4\r\nWiki", ChunkError::Size),
            (b" 4\r\nWiki", ChunkError::Size),
            (b"4 \r\nWiki", ChunkError::Size),
            (b"-4\r\nWiki", ChunkError::Size),
            (b"00000000000000004\r\nWiki", ChunkError::Size),
            (b"4\nWiki\r\n", ChunkError::Size),
            (b"4\r\rWiki", ChunkError::Delimiter),
            (b"4\r\nWikiX\r\n", ChunkError::Delimiter),
            (b"4\r\nWiki\n0\r\n\r\n", ChunkError::Delimiter),
            (b"4;a\nb\r\nWiki\r\n", ChunkError::Extension),
            (b"4;\r\nWiki\r\n", ChunkError::Extension),
            (b"4;[x]\r\nWiki\r\n", ChunkError::Extension),
            (b"4;a=\r\nWiki\r\n", ChunkError::Extension),
            (b"4;a=\"b\r\nWiki\r\n", ChunkError::Extension),
            (b"4;a=\"b\"c\r\nWiki\r\n", ChunkError::Extension),
            (b"4;a =b\r\nWiki\r\n", ChunkError::Extension),
            (b"0\r\n X: y\r\n\r\n", ChunkError::Trailer),
            (b"0\r\nX : y\r\n\r\n", ChunkError::Trailer),
            (b"0\r\nX: y\n\r\n", ChunkError::Trailer),
        ];
        for (body, error) in cases {
            let name = body.escape_ascii().to_string();
            assert_eq!(decode(body, &[]).unwrap_err(), error, "{name}");
            assert_eq!(decode(body, &vec![1; body.len()]).unwrap_err(), error, "{name}");
        }
    }

    #[test]
    fn extensions_are_bounded_over_the_whole_body() {
        let mut body = Vec::new();
        for _ in 0..=OVERHEAD_BYTES_MAX / 8 {
            body.extend_from_slice(b"1;abcdefg\r\nx\r\n");
        }
        assert_eq!(decode(&body, &[]).unwrap_err(), ChunkError::Overhead);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same_whatever_the_splits(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
            pieces in proptest::collection::vec(1_usize..50, 0..200),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(chunk_head(chunk.len() as u64).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(CHUNK_TAIL);
            }
            body.extend_from_slice(LAST_CHUNK);
            let end = body.len();
            body.extend_from_slice(b"next");
            let (data, consumed, ended) = decode(&body, &pieces).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(consumed, end);
            prop_assert!(ended);
        }

        #[test]
        fn any_bytes_give_the_same_verdict_whole_and_split(
            body in proptest::collection::vec(prop_oneof![
                Just(b'0'), Just(b'1'), Just(b'\r'), Just(b'\n'), Just(b';'), Just(b':'), Just(b'a'), any::<u8>()
            ], 0..60),
        ) {
            let whole = decode(&body, &[]);
            let split = decode(&body, &vec![1; body.len()]);
            match (whole, split) {
                (Ok(whole), Ok(split)) => prop_assert_eq!(whole, split),
                (Err(whole), Err(split)) => prop_assert_eq!(whole, split),
                (whole, split) => prop_assert!(false, "{:?} but {:?}", whole, split),
            }
        }
    }
}
