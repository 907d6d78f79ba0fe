use tlsplice::message::chunked::{ChunkError, Decoder};

/// What became of a body: its data, the bytes it took, and whether it ended.
type Outcome = Result<(Vec<u8>, usize, bool), ChunkError>;

pub(crate) fn run(bytes: &[u8]) {
    let whole = decode(bytes, [bytes.len()]);
    assert_eq!(decode(bytes, std::iter::repeat_n(1, bytes.len())), whole, "byte by byte");
    for cut in 1..bytes.len() {
        assert_eq!(decode(bytes, [cut, bytes.len() - cut]), whole, "cut at {cut}");
    }
    // Pieces as long as the bytes say: any number of cuts anywhere.
    assert_eq!(decode(bytes, bytes.iter().map(|&byte| usize::from(byte % 7) + 1)), whole);
    // With data that the kernel moved, unseen by the decoder.
    assert_eq!(decode_skipping(bytes), whole, "with skipped data");
    if let Ok((data, len, true)) = &whole {
        assert_eq!(model(bytes), Some((data.clone(), *len)), "as the model has it");
    }
}

fn decode(bytes: &[u8], pieces: impl IntoIterator<Item = usize>) -> Outcome {
    let mut decoder = Decoder::default();
    let (mut data, mut at) = (Vec::new(), 0);
    for piece in pieces.into_iter().chain([bytes.len()]) {
        let mut part = bytes[at..bytes.len().min(at + piece)].to_vec();
        let found = decoder.dechunk(&mut part)?;
        assert!(found.consumed == part.len() || found.ended, "it takes everything until its end");
        assert_eq!(found.ended, decoder.is_ended());
        data.extend_from_slice(&part[..found.data_len]);
        at += found.consumed;
    }
    Ok((data, at, decoder.is_ended()))
}

fn decode_skipping(bytes: &[u8]) -> Outcome {
    let mut decoder = Decoder::default();
    let (mut data, mut at) = (Vec::new(), 0);
    while at < bytes.len() && !decoder.is_ended() {
        let rest = bytes.len() - at;
        let unseen = usize::try_from(decoder.chunk_left()).unwrap_or(usize::MAX).min(rest);
        if unseen > 0 {
            data.extend_from_slice(&bytes[at..at + unseen]);
            decoder.skip(unseen as u64);
            at += unseen;
        } else {
            let found = decoder.dechunk(&mut [bytes[at]])?;
            at += found.consumed;
        }
    }
    Ok((data, at, decoder.is_ended()))
}

/// RFC 9112 §7.1 line by line, for bodies that are whole: data, and bytes used.
fn model(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut data, mut rest) = (Vec::new(), bytes);
    loop {
        let line = take_line(&mut rest)?;
        let digits = line.split(|&byte| byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if digits.starts_with(b"+") {
            return None;
        }
        if size == 0 {
            break;
        }
        data.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let line = take_line(&mut rest)?;
        if line.is_empty() {
            return Some((data, bytes.len() - rest.len()));
        }
        let name = line.split(|&byte| byte == b':').next()?;
        if name.len() == line.len() || name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return None;
        }
    }
}

/// A line without its CRLF, in which neither CR nor LF may stand alone.
fn take_line<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let line = rest[..end].strip_suffix(b"\r")?;
    *rest = &rest[end + 1..];
    (!line.contains(&b'\r')).then_some(line)
}
