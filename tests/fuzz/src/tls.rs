use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tlsplice::handshake::{Handshake, HandshakeError, Progress};
use tlsplice::message::request::RequestHead;
use tlsplice::message::{HeadLimits, Parsed, fields};
use tlsplice::transport::Buffer;

use crate::input::Input;

/// Behind all preambles.
const REQUEST: &[u8] = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n";

/// As much as the gateway takes before it knows who asks.
const INPUT_BYTES: usize = 64 * 1024;

/// The type of a record with messages of the handshake.
const HANDSHAKE: u8 = 22;

static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    // The groups without Kyber are smaller and faster.
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate with its key");
    server.enable_secret_extraction = true;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
});

/// The first flight of a client, always the same.
static HELLO: LazyLock<Vec<u8>> = LazyLock::new(|| sent_by(&mut client()));

fn client() -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(&CONFIGS.1), name).expect("a client")
}

fn server() -> Handshake {
    Handshake::new(Arc::clone(&CONFIGS.0)).expect("a server")
}

fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).expect("memory takes it");
    }
    wire
}

/// Gives the client what the server sent; false when it makes nothing of it.
fn received_by(client: &mut ClientConnection, mut wire: &[u8]) -> bool {
    while !wire.is_empty() {
        if client.read_tls(&mut wire).is_err() || client.process_new_packets().is_err() {
            return false;
        }
        // Nothing is expected; what is there must not fill the buffer.
        drop(client.reader().read(&mut [0; 64]));
    }
    true
}

/// How a handshake with bytes that nobody answers ended, and what it said.
fn outcome(bytes: &[u8], pieces: impl IntoIterator<Item = usize>) -> (String, Vec<u8>) {
    let (mut server, mut input) = (server(), Buffer::with_capacity(INPUT_BYTES));
    let (mut output, mut at, mut state) = (Vec::new(), 0, "nothing".to_owned());
    for piece in pieces.into_iter().chain([bytes.len()]) {
        let end = bytes.len().min(at + piece);
        at += input.append(&bytes[at..end]);
        assert_eq!(at, end, "all of it fits");
        match server.on_bytes(&mut input, &mut output) {
            Ok(Progress::NeedInput { next_read_max }) => {
                assert!((1..=INPUT_BYTES).contains(&next_read_max), "{next_read_max}");
                state = "more".to_owned();
            }
            Ok(Progress::Established(_)) => return ("established".to_owned(), output),
            Err(error) => return (kind(&error), output),
        }
        input.compact();
    }
    (state, output)
}

/// Without what depends on how much has come.
fn kind(error: &HandshakeError) -> String {
    match error {
        HandshakeError::Tls(error) => format!("{error:?}"),
        other => format!("{other:?}"),
    }
}

/// The types of the records in `wire`.
fn records(mut wire: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let Some(&[first, _, _, high, low]) = wire.get(..5) {
        types.push(first);
        wire = wire.get(5 + usize::from(u16::from_be_bytes([high, low]))..).unwrap_or(&[]);
    }
    types
}

/// No preamble is skipped: neither a handshake nor a request behind one is seen.
pub(crate) fn preamble(bytes: &[u8]) {
    let with_hello = [bytes, HELLO.as_slice()].concat();
    let (state, output) = outcome(&with_hello, [with_hello.len()]);
    assert_ne!(state, "established", "nobody has answered");
    match bytes.first() {
        None => {
            assert_eq!(records(&output).first(), Some(&HANDSHAKE), "an answer without preamble")
        }
        Some(&HANDSHAKE) => {}
        Some(_) => {
            assert!(
                state != "more" && !records(&output).contains(&HANDSHAKE),
                "{state}: {output:?}"
            );
        }
    }
    let with_request = [bytes, REQUEST].concat();
    let mut slots = fields::slots();
    let limits = HeadLimits { bytes: 4096, fields: 64 };
    if let Ok(Parsed::Complete(head, len)) = RequestHead::parse(&with_request, &mut slots, limits) {
        let own = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let is_request_alone = own.is_empty() && head.target.path == "/behind";
        // The preamble was itself a request, or the beginning of one whose head ends with the lines behind it.
        let is_start = !own.is_empty() && with_request[..len].ends_with(b"\r\n\r\n");
        assert!(
            is_request_alone
                || is_start
                    && own.starts_with(
                        head.method
                            .as_bytes()
                            .get(..own.len().min(head.method.len()))
                            .unwrap_or(&[])
                    )
        );
        assert!(!bytes.starts_with(b"PROXY ") && !bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    }
}

pub(crate) fn handshake(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.bit() {
        alone(&mut input);
    } else {
        with_client(&mut input);
    }
}

/// Bytes in any pieces come to the same.
fn alone(input: &mut Input<'_>) {
    let step = usize::from(input.byte()) + 1;
    // A part of a good first flight, and what the fuzzer makes behind it.
    let good = &HELLO[..usize::from(input.word()).min(HELLO.len())];
    let wire = [good, input.take(usize::MAX)].concat();
    let (whole, said) = outcome(&wire, [wire.len()]);
    let (split, also_said) = outcome(&wire, std::iter::repeat_n(step, wire.len().div_ceil(step)));
    assert_eq!(whole, split, "in pieces of {step}");
    assert_eq!(records(&said).first(), records(&also_said).first());
}

/// A handshake with a real client, whose records come in pieces, cut anew or with a bit turned.
fn with_client(input: &mut Input<'_>) {
    const EARLY: &[u8] = b"what rustls must never see";
    let (mut client, mut server) = (client(), server());
    let (mut buffer, mut is_whole) = (Buffer::with_capacity(INPUT_BYTES), true);
    let (mut wire, mut at, mut early) = (Vec::new(), 0, Vec::new());
    loop {
        if at == wire.len() {
            (wire, at) = (sent_by(&mut client), 0);
            if wire.is_empty() {
                assert!(!is_whole, "both sides wait");
                return;
            }
            if input.bit() {
                wire = cut_anew(&wire, usize::from(input.byte()) + 1);
            }
            let turned = usize::from(input.word());
            if turned > 0 && turned <= wire.len() {
                wire[turned - 1] ^= 1 << (input.byte() & 7);
                is_whole = false;
            }
            if !client.is_handshaking() && early.is_empty() {
                client.writer().write_all(EARLY).expect("memory takes it");
                early = sent_by(&mut client);
                wire.extend_from_slice(&early);
            }
        }
        let count = (usize::from(input.byte()) + 1).min(wire.len() - at);
        buffer.append(&wire[at..at + count]);
        at += count;
        let mut output = Vec::new();
        match server.on_bytes(&mut buffer, &mut output) {
            Ok(Progress::NeedInput { .. }) => buffer.compact(),
            Ok(Progress::Established(_)) => {
                let rest = [buffer.filled(), &wire[at..]].concat();
                assert!(
                    early.ends_with(&rest) || !is_whole,
                    "what stands behind it stays unopened"
                );
                assert!(rest == early || !is_whole, "all of it");
                return;
            }
            Err(error) => {
                assert!(!is_whole, "{error}");
                return;
            }
        }
        if !received_by(&mut client, &output) {
            assert!(!is_whole, "the client refuses");
            return;
        }
    }
}

/// The same messages in records of at most `size` bytes, as far as they are in the clear (RFC 8446 §5.1).
fn cut_anew(wire: &[u8], size: usize) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), wire);
    while let Some(&[first, major, minor, high, low]) = rest.get(..5) {
        let len = usize::from(u16::from_be_bytes([high, low]));
        let body = &rest[5..5 + len];
        let size = if first == HANDSHAKE { size } else { len };
        for piece in body.chunks(size.max(1)) {
            let len = u16::try_from(piece.len()).expect("no longer than before");
            out.extend_from_slice(&[first, major, minor]);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(piece);
        }
        rest = &rest[5 + len..];
    }
    out
}
