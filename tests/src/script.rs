//! The notation of the attack table: scripts that read like the wire.
//!
//! `⏎` is CRLF, `␊` LF, `␍` CR, `␠` a blank, `⇥` a tab, `␀` NUL, `␋` and `␌` bytes 11 and 12. In braces stand bytes
//! (`{x1F}`), repetitions (`{5*ab}`, which may hold further braces) and abbreviations (`{P}`).

/// Abbreviations, and what they stand for.
const ABBREVIATIONS: [(&str, &str); 8] = [
    ("G", "GET /guacamole/ HTTP/1.1⏎Host: a⏎"),
    ("P", "POST /guacamole/ HTTP/1.1⏎Host: a⏎"),
    ("C", "POST /guacamole/ HTTP/1.1⏎Host: a⏎Transfer-Encoding: chunked⏎⏎"),
    ("S", "GET /poison HTTP/1.1⏎Host: a⏎⏎"),
    ("N", "GET /next HTTP/1.1⏎Host: a⏎⏎"),
    (
        "W",
        "GET /guacamole/ HTTP/1.1⏎Host: a⏎Origin: https://a⏎Connection: Upgrade⏎Upgrade: websocket⏎\
         Sec-WebSocket-Version: 13⏎Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==⏎⏎",
    ),
    ("CL", "Content-Length"),
    ("TE", "Transfer-Encoding"),
];

/// The bytes that `text` stands for.
///
/// # Panics
/// When it is not in the notation.
#[must_use]
pub fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '⏎' => out.extend_from_slice(b"\r\n"),
            '␊' => out.push(b'\n'),
            '␍' => out.push(b'\r'),
            '␠' => out.push(b' '),
            '⇥' => out.push(b'\t'),
            '␀' => out.push(0),
            '␋' => out.push(11),
            '␌' => out.push(12),
            '{' => {
                let end = closing(rest);
                out.extend_from_slice(&braces(&rest[..end]));
                rest = &rest[end + 1..];
            }
            letter => {
                assert!(letter.is_ascii(), "{letter:?} has no meaning in {text:?}");
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
    out
}

fn closing(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    panic!("a brace is open in {text:?}");
}

fn braces(text: &str) -> Vec<u8> {
    if let Some((_, long)) = ABBREVIATIONS.iter().find(|(short, _)| *short == text) {
        return bytes(long);
    }
    if let Some((count, part)) = text.split_once('*') {
        return bytes(part).repeat(count.parse().expect("a number before the asterisk"));
    }
    let digits = text.strip_prefix('x').expect("a byte, a repetition or an abbreviation");
    vec![u8::from_str_radix(digits, 16).expect("two hexadecimal digits")]
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn the_notation_reads_like_the_wire() {
        assert_eq!(bytes("a⏎␠{x1F}{2*b{2*c}⏎}␀"), b"a\r\n \x1fbcc\r\nbcc\r\n\0");
        assert_eq!(bytes("{CL}: 5"), b"Content-Length: 5");
    }
}
