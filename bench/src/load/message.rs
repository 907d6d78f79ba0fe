//! What is sent, and what is looked for in what comes. Pure.

use super::Work;
use crate::clock;

/// As a browser asks, with the fields that a gateway has to look at.
pub(super) fn request(work: &Work, host: &str) -> Vec<u8> {
    let common = format!(
        "Host: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
         Cookie: JSESSIONID=0123456789ABCDEF0123456789ABCDEF\r\n"
    );
    let text = match work {
        Work::Get { path } => format!("GET {path} HTTP/1.1\r\n{common}\r\n"),
        Work::Connect { .. } => format!("GET /small HTTP/1.1\r\n{common}\r\n"),
        Work::Download { bytes, .. } => format!("GET /bytes/{bytes} HTTP/1.1\r\n{common}\r\n"),
        Work::Upload { bytes } => {
            format!("POST /sink HTTP/1.1\r\n{common}Content-Length: {bytes}\r\n\r\n")
        }
        Work::Stream => format!("GET /stream HTTP/1.1\r\n{common}\r\n"),
        Work::Echo { .. } | Work::Paced { .. } | Work::Idle => format!(
            "GET /ws HTTP/1.1\r\n{common}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    };
    text.into_bytes()
}

/// The ages of the whole stamps in `input`, which keeps what may be the beginning of another.
pub(super) fn stamps(input: &mut Vec<u8>, now: u64) -> Vec<u64> {
    let mut ages = Vec::new();
    let mut from = 0;
    while let Some(at) = input[from..].iter().position(|byte| *byte == clock::MARK) {
        let start = from + at + 1;
        let Some(digits) = input.get(start..start + clock::DIGITS) else {
            input.drain(..from + at);
            return ages;
        };
        let stamp = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok());
        ages.extend(stamp.map(|stamp| now.saturating_sub(stamp)));
        from = start + clock::DIGITS;
    }
    input.clear();
    ages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_however_the_bytes_are_cut() {
        let chunk = clock::stamped();
        for cut in 1..chunk.len() {
            let mut input = chunk[..cut].to_vec();
            let mut found = stamps(&mut input, u64::MAX / 2);
            input.extend_from_slice(&chunk[cut..]);
            found.extend(stamps(&mut input, u64::MAX / 2));
            assert_eq!(found.len(), 1, "cut at {cut}");
        }
    }
}
