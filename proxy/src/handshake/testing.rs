//! A TLS client in memory, for the tests of everything that stands on a handshake.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig,
    SignatureAlgorithm, SupportedCipherSuite,
};

use super::{Established, Handshake, HandshakeError, Progress};
use crate::transport::Buffer;

static CERTIFICATE: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.der().clone(), made.signing_key.serialize_der())
});

/// Every suite that both sides know. Those for RSA certificates differ in the signature alone and are left out.
pub(crate) fn suites() -> Vec<SupportedCipherSuite> {
    let mut suites = aws_lc_rs::default_provider().cipher_suites;
    suites.retain(|suite| suite.usable_for_signature_algorithm(SignatureAlgorithm::ECDSA));
    suites
}

/// What one side offers: all suites but for `suite`, all groups but for `groups`.
fn provider(suite: Option<CipherSuite>, groups: &[NamedGroup]) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites.retain(|known| known.suite() == suite);
    }
    if !groups.is_empty() {
        let all = provider.kx_groups.clone();
        let find = |group: &NamedGroup| all.iter().copied().find(|known| known.name() == *group);
        provider.kx_groups = groups.iter().filter_map(find).collect();
    }
    Arc::new(provider)
}

/// A server with tickets, like the one of the gateway.
pub(crate) fn server(groups: &[NamedGroup]) -> Arc<ServerConfig> {
    let (certificate, key) = &*CERTIFICATE;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
    let mut config = ServerConfig::builder_with_provider(provider(None, groups))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a certificate with its key");
    config.enable_secret_extraction = true;
    config.ticketer = aws_lc_rs::Ticketer::new().expect("a ticketer");
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// A client that remembers tickets as long as its configuration lives.
pub(crate) fn client_config(
    suite: Option<CipherSuite>,
    groups: &[NamedGroup],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CERTIFICATE.0.clone()).expect("a root");
    let provider = provider(suite, groups);
    let versions = match provider.cipher_suites.as_slice() {
        [only] if only.tls13().is_some() => vec![&rustls::version::TLS13],
        [_] => vec![&rustls::version::TLS12],
        _ => rustls::DEFAULT_VERSIONS.to_vec(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// A client that has not begun.
pub(crate) fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("a client")
}

/// Everything that the client wants to send.
pub(crate) fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).expect("memory takes it");
    }
    wire
}

/// Gives the client what the server sent; what it makes of it are its plaintext, or its error.
pub(crate) fn received_by(
    client: &mut ClientConnection,
    mut wire: &[u8],
) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    while !wire.is_empty() {
        client.read_tls(&mut wire).expect("memory gives it");
        client.process_new_packets()?;
        // The end after close_notify shows as 0, the lack of more data as an error.
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = client.reader().read(&mut piece) {
            plain.extend_from_slice(&piece[..count]);
        }
    }
    Ok(plain)
}

/// Seals `plain` with the client.
pub(crate) fn sealed_by(client: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
    client.set_buffer_limit(None);
    client.writer().write_all(plain).expect("memory takes it");
    sent_by(client)
}

/// A finished handshake: what the record layer starts with, and what came behind it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) established: Established,
    pub(crate) leftover: Buffer,
    /// Bytes that were fed at most beyond what had been asked for.
    pub(crate) overread: usize,
}

/// Runs a handshake. The server gets at most `piece(asked)` bytes at a time; `early` is what the client says as soon as
/// it may, together with its last flight.
pub(crate) fn run(
    client: &mut ClientConnection,
    config: Arc<ServerConfig>,
    mut piece: impl FnMut(usize) -> usize,
    early: &[u8],
) -> Result<Done, (HandshakeError, Vec<u8>)> {
    let mut server = Handshake::new(config).expect("a server");
    let mut input = Buffer::with_capacity(64 * 1024);
    let (mut wire, mut at, mut asked, mut overread) = (Vec::new(), 0, 5, 0);
    let mut has_spoken = false;
    loop {
        if at == wire.len() {
            wire = sent_by(client);
            at = 0;
            if !client.is_handshaking() && !has_spoken {
                has_spoken = true;
                wire.extend(sealed_by(client, early));
            }
            assert!(!wire.is_empty(), "both sides wait");
        }
        let count = piece(asked).clamp(1, wire.len() - at);
        overread = overread.max(count.saturating_sub(asked));
        input.append(&wire[at..at + count]);
        at += count;
        let mut output = Vec::new();
        match server.on_bytes(&mut input, &mut output) {
            Ok(Progress::NeedInput { next_read_max }) => asked = next_read_max,
            Ok(Progress::Established(established)) => {
                received_by(client, &output).expect("the client accepts the last flight");
                input.compact();
                input.append(&wire[at..]);
                if !has_spoken {
                    input.append(&sealed_by(client, early));
                }
                return Ok(Done { established: *established, leftover: input, overread });
            }
            Err(error) => return Err((error, output)),
        }
        if received_by(client, &output).is_err() {
            return Err((HandshakeError::Closed, sent_by(client)));
        }
        input.compact();
    }
}
