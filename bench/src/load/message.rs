//! What is sent, and what is looked for in what comes. Pure.

use super::Work;
use crate::clock;

/// Asks for a stream of so many chunks.
pub(super) fn stream(chunks: u64, host: &str) -> Vec<u8> {
    get(&format!("/stream/{chunks}"), host)
}

/// As a browser asks, with the fields that a gateway has to look at.
pub(super) fn request(work: &Work, host: &str) -> Vec<u8> {
    let common = common(host);
    match work {
        Work::Get { path } => get(path, host),
        Work::Connect { .. } => get("/small", host),
        Work::Download { bytes, .. } => get(&format!("/bytes/{bytes}"), host),
        // One chunk proves it; how many follow is asked for by the window.
        Work::Stream => stream(1, host),
        Work::Upload { bytes } => {
            format!("POST /sink HTTP/1.1\r\n{common}Content-Length: {bytes}\r\n\r\n").into_bytes()
        }
        Work::Echo { .. } | Work::Paced { .. } | Work::Idle => format!(
            "GET /ws HTTP/1.1\r\n{common}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes(),
    }
}

fn get(path: &str, host: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{}\r\n", common(host)).into_bytes()
}

fn common(host: &str) -> String {
    format!(
        "Host: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
         Cookie: JSESSIONID=0123456789ABCDEF0123456789ABCDEF\r\n"
    )
}

/// The ages of the whole stamps in `input`, which keeps what may be the beginning of another, or of the end of the stream.
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
    let kept = input.len().min(clock::STREAM_END.len());
    input.drain(..input.len() - kept);
    ages
}

/// Whether a stream ends with `input`, of which [`stamps`] has taken the stamps.
pub(super) fn is_end(input: &[u8]) -> bool {
    input.ends_with(clock::STREAM_END)
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

    #[test]
    fn the_end_of_a_stream_is_found_however_the_bytes_are_cut() {
        let framed = [b"12c\r\n", &clock::stamped()[..], b"\r\n"].concat();
        let stream = [&framed[..], &framed, clock::STREAM_END].concat();
        for cut in 1..stream.len() {
            let mut input = stream[..cut].to_vec();
            let mut found = stamps(&mut input, u64::MAX / 2).len();
            assert!(!is_end(&input), "cut at {cut}");
            input.extend_from_slice(&stream[cut..]);
            found += stamps(&mut input, u64::MAX / 2).len();
            assert!(found == 2 && is_end(&input), "cut at {cut}: {found}");
        }
    }
}
