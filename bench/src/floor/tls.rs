//! The client's TLS, ended by handshake and record layer of the gateway.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tlsplice::handshake::{Handshake, Progress};
use tlsplice::ktls::{self, Opened, Opener, Sealer};
use tlsplice::limits::{RECORD_PLAINTEXT_MAX, RECORD_WIRE_MAX};
use tlsplice::transport::Buffer;

use super::read;
use crate::load::failed;

/// One connection.
pub(super) enum Tls {
    /// The handshake, and what has come and is not used yet.
    Handshake(Handshake, Buffer),
    /// Records, and the beginning of one.
    Records(Box<(Opener, Sealer)>, Vec<u8>),
}

/// TLS as the gateways under test have it; no tickets, since nobody comes again.
pub(super) fn config(certificate: &Path, key: &Path) -> io::Result<Arc<ServerConfig>> {
    let error = |error: &dyn std::fmt::Display| failed(error.to_string());
    let certificate = CertificateDer::from_pem_file(certificate).map_err(|found| error(&found))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|found| error(&found))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|found| error(&found))?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|found| error(&found))?;
    config.enable_secret_extraction = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

impl Tls {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let handshake = Handshake::new(config).map_err(|error| failed(error.to_string()))?;
        Ok(Self::Handshake(handshake, Buffer::with_capacity(RECORD_WIRE_MAX)))
    }

    /// What the client has sent goes on. It is used for small messages only, which the other socket always has room for.
    pub(super) fn up(
        &mut self,
        client: &mut TcpStream,
        origin: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        loop {
            let start = match self {
                Self::Records(_, begun) => {
                    buffer[..begun.len()].copy_from_slice(begun);
                    begun.len()
                }
                Self::Handshake(..) => 0,
            };
            let Some(count) = read(client, &mut buffer[start..])? else { return Ok(()) };
            let end = start + count;
            self.open(&mut buffer[..end], client, origin)?;
            // A read that does not fill the buffer has taken all of it.
            if end < buffer.len() {
                return Ok(());
            }
        }
    }

    /// What the origin has sent goes on.
    pub(super) fn down(
        &mut self,
        origin: &mut TcpStream,
        client: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let Self::Records(halves, _) = self else {
            return Err(failed("the origin speaks before it is asked"));
        };
        let sealer = &mut halves.1;
        let start = sealer.headroom();
        loop {
            let room = &mut buffer[start..start + RECORD_PLAINTEXT_MAX];
            let Some(count) = read(origin, room)? else { return Ok(()) };
            let slot = &mut buffer[..start + count + sealer.tailroom()];
            sealer.seal_slot(slot).map_err(|error| failed(error.to_string()))?;
            client.write_all(slot)?;
            if count < RECORD_PLAINTEXT_MAX {
                return Ok(());
            }
        }
    }

    /// Opens what the client has sent and passes it on.
    fn open(
        &mut self,
        mut bytes: &mut [u8],
        client: &mut TcpStream,
        origin: &mut TcpStream,
    ) -> io::Result<()> {
        if let Self::Handshake(handshake, input) = self {
            if input.append(bytes) < bytes.len() {
                return Err(failed("more than a handshake needs"));
            }
            let mut output = Vec::new();
            let progress = handshake.on_bytes(input, &mut output);
            client.write_all(&output)?;
            let Progress::Established(established) =
                progress.map_err(|error| failed(error.to_string()))?
            else {
                return Ok(());
            };
            let halves = ktls::session(*established).map_err(|error| failed(error.to_string()))?;
            let mut rest = input.filled().to_vec();
            *self = Self::Records(Box::new(halves), Vec::new());
            return self.open(&mut rest, client, origin);
        }
        let Self::Records(halves, begun) = self else { return Ok(()) };
        loop {
            match halves.0.open(bytes).map_err(|error| failed(error.to_string()))? {
                Opened::Partial => {
                    begun.clear();
                    begun.extend_from_slice(bytes);
                    return Ok(());
                }
                Opened::Data { payload, record_len } => {
                    origin.write_all(&bytes[payload])?;
                    bytes = &mut bytes[record_len..];
                }
                Opened::Handled { record_len } | Opened::KeyUpdated { record_len } => {
                    bytes = &mut bytes[record_len..];
                }
                Opened::CloseNotify => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
