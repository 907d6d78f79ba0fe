//! Steps of the hot path, each repeated as often as is asked: what valgrind counts instructions and allocations of.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use tlsplice::config::HeaderEdits;
use tlsplice::message::chunked::{Decoder, chunk_head};
use tlsplice::message::fields::slots;
use tlsplice::message::request::RequestHead;
use tlsplice::message::response::ResponseHead;
use tlsplice::message::rewrite::{Identity, Mapping, write_request};
use tlsplice::message::via::Pseudonym;
use tlsplice::message::{HeadLimits, Parsed};

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 100 };

const REQUEST: &[u8] = b"GET /guacamole/api/session/tunnels?token=0123456789ABCDEF HTTP/1.1\r\n\
    Host: desk.example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://desk.example.org/guacamole/\r\nCookie: JSESSIONID=0123456789ABCDEF0123456789ABCDEF\r\n\
    Connection: keep-alive\r\n\r\n";

const RESPONSE: &[u8] =
    b"HTTP/1.1 200 \r\nContent-Type: application/json\r\nCache-Control: no-cache\r\n\
    Content-Length: 1024\r\nDate: Wed, 25 Nov 2026 06:00:00 GMT\r\n\r\n";

const CHUNK: usize = 300;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let step = arguments.next().unwrap_or_default();
    let times: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let step: fn(&mut Vec<u8>) = match step.as_str() {
        "request" => request,
        "response" => response,
        "chunk" => chunk,
        other => {
            eprintln!("unknown step {other:?}; there are request, response and chunk");
            return ExitCode::FAILURE;
        }
    };
    let mut out = Vec::with_capacity(64 * 1024);
    for _ in 0..times {
        out.clear();
        step(&mut out);
        black_box(&out);
    }
    ExitCode::SUCCESS
}

/// A browser's request head, parsed, rewritten and serialised.
fn request(out: &mut Vec<u8>) {
    let mut slots = slots();
    let parsed = RequestHead::parse(black_box(REQUEST), &mut slots, LIMITS);
    let Ok(Parsed::Complete(head, _)) = parsed else { panic!("a whole, valid head") };
    let mapping = Mapping { public: "/guacamole", upstream: "/guacamole" };
    let peer = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    let pseudonym = Pseudonym::new(1);
    let identity = Identity { peer, peer_is_trusted: false, https: true, port: 443, pseudonym };
    write_request(&head, mapping, identity, &HeaderEdits::default(), out);
}

/// A response head, parsed.
fn response(out: &mut Vec<u8>) {
    let mut slots = slots();
    let parsed = ResponseHead::parse(black_box(RESPONSE), &mut slots, LIMITS, false, None);
    let Ok(Parsed::Complete(head, len)) = parsed else { panic!("a whole, valid head") };
    black_box((&head, len));
    out.push(0);
}

/// A chunk of a stream, taken out of its framing and framed anew.
fn chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(chunk_head(CHUNK as u64).as_bytes());
    out.resize(out.len() + CHUNK, b'x');
    out.extend_from_slice(b"\r\n");
    let mut decoder = Decoder::default();
    let found = decoder.dechunk(black_box(out));
    assert!(found.is_ok_and(|found| found.data_len == CHUNK), "one chunk");
}
