//! A small client: TLS that shows which certificate it was given instead of judging it, and heads of HTTP.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::TIMEOUT;

/// Longest head that is read, in bytes.
const HEAD_MAX: usize = 64 * 1024;

/// A connection.
pub(super) struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    received: Vec<u8>,
}

/// The head of a response, in lower case.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    text: String,
}

impl Head {
    /// Reads a status line and fields.
    pub(super) fn parse(text: &str) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "what answers is no HTTP");
        let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        Ok(Self { status: status.ok_or_else(invalid)?, text: text.to_ascii_lowercase() })
    }

    /// The value of a field, in lower case; `name` too.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.text.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
    }
}

impl Client {
    /// Connects and shakes hands.
    pub(super) fn connect(address: SocketAddr, name: &str) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream, received: Vec::new() })
    }

    /// The certificates that were presented, the server's own first.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.conn.peer_certificates().unwrap_or_default()
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The plaintext as it comes.
    pub(super) fn stream(&mut self) -> &mut impl Read {
        &mut self.stream
    }

    /// Receives a head; what came behind it stays.
    pub(super) fn head(&mut self) -> io::Result<Head> {
        let text = self.until(b"\r\n\r\n")?;
        Head::parse(&text)
    }

    /// Receives until `end` has come, and takes all up to it.
    pub(super) fn until(&mut self, end: &[u8]) -> io::Result<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.received, end) {
                let taken: Vec<u8> = self.received.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(&taken).into_owned());
            }
            if self.received.len() > HEAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the head has no end"));
            }
            self.receive()?;
        }
    }

    /// Receives at least a byte.
    fn receive(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        let count = self.stream.read(&mut piece)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(piece.get(..count).unwrap_or_default());
        Ok(())
    }
}

/// The request that opens Guacamole's tunnel.
pub(super) fn upgrade(host: &str, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Origin: https://{host}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGxzcGxpY2UgZG9jdG9yIQ==\r\nSec-WebSocket-Protocol: guacamole\r\n\r\n"
    )
}

/// Takes every certificate: the doctor must be able to look at the one that is wrong. It sends nothing secret.
struct AnyCertificate(Arc<CryptoProvider>);

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_and_others_refused() {
        let head =
            Head::parse("HTTP/1.1 101 Switching\r\nSec-WebSocket-Protocol: guacamole\r\n\r\n");
        let head = head.unwrap();
        assert_eq!((head.status, head.field("sec-websocket-protocol")), (101, Some("guacamole")));
        assert!(Head::parse("SSH-2.0-x\r\n\r\n").is_err());
    }
}
