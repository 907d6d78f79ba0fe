//! A socket with or without TLS that never blocks.
//!
//! TLS is what all gateways share: 1.3, AES-128-GCM, X25519, and no check of the certificate, which costs the client
//! alone. The client offers nothing else, so that no gateway can choose something cheaper.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::failed;

/// What a client needs for TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// For the certificate of `name`; with tickets or without.
    ///
    /// # Errors
    /// When the cryptography library lacks what is fixed here.
    pub fn new(name: &'static str, resumed: bool) -> io::Result<Self> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let provider = Arc::new(provider);
        let verifier = Arc::new(Unverified(Arc::clone(&provider)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        if !resumed {
            config.resumption = Resumption::disabled();
        }
        let name = ServerName::try_from(name).map_err(|error| failed(error.to_string()))?;
        Ok(Self { config: Arc::new(config), name })
    }
}

#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that is being made, or is.
#[derive(Debug)]
pub struct Socket {
    /// For the registration.
    pub tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Socket {
    /// Begins to connect.
    ///
    /// # Errors
    /// When there is no descriptor or port left.
    pub fn connect(address: SocketAddr, tls: Option<&Tls>) -> io::Result<Self> {
        let tcp = TcpStream::connect(address)?;
        let tls = tls
            .map(|tls| ClientConnection::new(Arc::clone(&tls.config), tls.name.clone()))
            .transpose()
            .map_err(|error| failed(error.to_string()))?
            .map(Box::new);
        Ok(Self { tcp, tls })
    }

    /// To be called once it is connected.
    ///
    /// # Errors
    /// When it could not be connected.
    pub fn on_connected(&self) -> io::Result<()> {
        if let Some(error) = self.tcp.take_error()? {
            return Err(error);
        }
        self.tcp.set_nodelay(true)
    }

    /// Whether the handshake resumed an earlier session.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
    }

    /// Plaintext, as `read(2)`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.tcp)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(|error| failed(error.to_string()))?;
            flush(tls, &mut self.tcp)?;
        }
    }

    /// Plaintext, as `write(2)`; some of it may wait here until the next call.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing more is taken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.write(bytes) };
        if !flush(tls, &mut self.tcp)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = tls.writer().write(bytes)?;
        flush(tls, &mut self.tcp)?;
        if written == 0 && !bytes.is_empty() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(written)
        }
    }

    /// Sends what waits here.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => flush(tls, &mut self.tcp).map(drop),
            None => Ok(()),
        }
    }

    /// Says goodbye as TLS asks for; an error no longer matters.
    pub fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = flush(tls, &mut self.tcp);
        }
    }
}

/// Whether everything is sent.
fn flush(tls: &mut ClientConnection, tcp: &mut TcpStream) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(tcp) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
