use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use socket2::{Domain, Socket, Type};

use crate::{PATIENCE, certificate};

/// The versions of TLS that every test of the data path runs with.
pub const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// A client's connection: it sends what it is told and shows what comes.
pub struct Client {
    stream: Stream,
    received: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A response. Names are in lower case.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its fields, in order.
    pub fields: Vec<(String, String)>,
    /// Its body, without chunked framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first such field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn is_chunked(&self) -> bool {
        self.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }
}

/// A configuration that trusts the test authority alone.
///
/// # Panics
/// When the authority cannot be read.
#[must_use]
pub fn tls_config(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(roots(&certificate().authority))
        .with_no_client_auth()
}

/// The same with what a provider offers, TLS 1.3 only.
///
/// # Panics
/// As [`tls_config`].
#[must_use]
pub fn tls_config_of(provider: CryptoProvider) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_root_certificates(roots(&certificate().authority))
        .with_no_client_auth()
}

/// A configuration for each version with each of its ciphers that fits the certificate, with their names.
///
/// # Panics
/// As [`tls_config`].
#[must_use]
pub fn every_cipher() -> Vec<(String, Arc<ClientConfig>)> {
    let all = rustls::crypto::aws_lc_rs::default_provider();
    let suites = all.cipher_suites.iter().copied();
    let named = suites.map(|suite| (format!("{:?}", suite.suite()), suite));
    let fitting = named.filter(|(name, _)| !name.contains("ECDHE_RSA"));
    fitting
        .map(|(name, suite)| {
            let provider = CryptoProvider { cipher_suites: vec![suite], ..all.clone() };
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[suite.version()])
                .expect("the cipher belongs to the version")
                .with_root_certificates(roots(&certificate().authority))
                .with_no_client_auth();
            (name, Arc::new(config))
        })
        .collect()
}

/// The same with another authority.
///
/// # Panics
/// As [`tls_config`].
#[must_use]
pub fn tls_config_trusting(authority: &Path) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots(authority)).with_no_client_auth()
}

fn roots(authority: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(authority).expect("a certificate");
    roots.add(authority).expect("an authority");
    roots
}

fn default_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| Arc::new(tls_config(rustls::DEFAULT_VERSIONS))))
}

fn connect(address: SocketAddr) -> TcpStream {
    prepared(TcpStream::connect(address).expect("the gateway accepts"))
}

fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
    stream
}

/// A connection on which the handshake has not begun.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn tls_stream(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let tls = ClientConnection::new(Arc::clone(config), name).expect("a client");
    StreamOwned::new(tls, connect(address))
}

impl Client {
    /// A TLS connection as `localhost`, with any version.
    #[must_use]
    pub fn tls(address: SocketAddr) -> Self {
        Self::with(address, &default_config(), "localhost")
    }

    /// A TLS connection with this version.
    #[must_use]
    pub fn tls_version(address: SocketAddr, version: &'static SupportedProtocolVersion) -> Self {
        Self::with(address, &Arc::new(tls_config(&[version])), "localhost")
    }

    /// A TLS connection to this name.
    #[must_use]
    pub fn with(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Self {
        let stream = Box::new(tls_stream(address, config, name));
        Self { stream: Stream::Tls(stream), received: Vec::new() }
    }

    /// A TLS connection from an address of this machine.
    ///
    /// # Panics
    /// When the address cannot be taken.
    #[must_use]
    pub fn tls_from(source: SocketAddr, address: SocketAddr) -> Self {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
        socket.bind(&source.into()).expect("the address is one of this machine");
        socket.connect(&address.into()).expect("the gateway accepts");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(default_config(), name).expect("a client");
        let stream = StreamOwned::new(tls, prepared(socket.into()));
        Self { stream: Stream::Tls(Box::new(stream)), received: Vec::new() }
    }

    /// A connection as `localhost`, with TLS or without, on which a handshake is over.
    ///
    /// # Errors
    /// When the gateway does not take it.
    ///
    /// # Panics
    /// When TLS is configured in a way that cannot be.
    pub fn try_connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        Self::try_connect_with(address, tls, None)
    }

    /// The same, with so many bytes that the kernel receives beforehand.
    ///
    /// # Errors
    /// As [`Client::try_connect`].
    ///
    /// # Panics
    /// As [`Client::try_connect`].
    pub fn try_connect_with(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        receive_buffer: Option<usize>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(&address.into())?;
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let Some(config) = tls else {
            return Ok(Self { stream: Stream::Plain(socket), received: Vec::new() });
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let conn = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let mut stream = StreamOwned::new(conn, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(stream)), received: Vec::new() })
    }

    /// What a stream says from here on.
    #[must_use]
    pub fn over(stream: StreamOwned<ClientConnection, TcpStream>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), received: Vec::new() }
    }

    /// A connection without TLS.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { stream: Stream::Plain(connect(address)), received: Vec::new() }
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    /// Sends bytes, in one record where TLS allows it.
    ///
    /// # Errors
    /// When the gateway has closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes.as_ref()),
            Stream::Tls(stream) => {
                stream.write_all(bytes.as_ref())?;
                stream.flush()
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When they cannot be sent.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the gateway reads");
    }

    /// Receives at least one byte more; false at the clean end. With TLS an end without close_notify is an error.
    ///
    /// # Errors
    /// When nothing comes in time, or the end is not clean.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut piece = [0; 64 * 1024];
        let count = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut piece)?,
            Stream::Tls(stream) => stream.read(&mut piece)?,
        };
        self.received.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }

    /// Receives until there are `count` bytes, and takes them.
    ///
    /// # Errors
    /// As [`Client::receive`], and when the end comes before.
    pub fn try_take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < count {
            if !self.receive()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.received.drain(..count).collect())
    }

    /// The same.
    ///
    /// # Panics
    /// When they do not come.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        self.try_take(count).expect("more comes from the gateway")
    }

    /// Drops what has been received and not taken, and tells how much that was.
    pub fn drop_received(&mut self) -> usize {
        std::mem::take(&mut self.received).len()
    }

    /// What has been received and not taken, if the gateway sends nothing more within `time`.
    ///
    /// # Panics
    /// When a socket option cannot be set.
    pub fn pending_after(&mut self, time: Duration) -> &[u8] {
        self.socket().set_read_timeout(Some(time)).expect("a socket option");
        while self.receive().unwrap_or(false) {}
        self.socket().set_read_timeout(Some(PATIENCE)).expect("a socket option");
        &self.received
    }

    /// Receives a line and takes it, without its end.
    ///
    /// # Errors
    /// As [`Client::try_take`].
    pub fn try_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
                self.received.drain(..end + 2);
                return Ok(line);
            }
            if !self.receive()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Receives the head of a response.
    ///
    /// # Errors
    /// As [`Client::try_take`]; `InvalidData` when it is no response.
    pub fn try_head(&mut self) -> io::Result<Response> {
        let line = self.try_line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))?;
        let mut fields = Vec::new();
        loop {
            let line = self.try_line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Response { status, fields, body: Vec::new() })
    }

    /// The same.
    ///
    /// # Panics
    /// When none comes.
    pub fn head(&mut self) -> Response {
        self.try_head().expect("the gateway answers")
    }

    /// Receives one chunk; empty at the last one.
    ///
    /// # Errors
    /// As [`Client::try_take`].
    pub fn try_chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.try_line()?;
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "not a chunk");
        let size = usize::from_str_radix(&line, 16).map_err(invalid)?;
        let data = self.try_take(size)?;
        self.try_line()?;
        Ok(data)
    }

    /// Receives a whole response to a request that is not HEAD.
    ///
    /// # Errors
    /// As [`Client::try_take`].
    pub fn try_response(&mut self) -> io::Result<Response> {
        let mut response = self.try_head()?;
        if response.is_chunked() {
            loop {
                let chunk = self.try_chunk()?;
                if chunk.is_empty() {
                    return Ok(response);
                }
                response.body.extend_from_slice(&chunk);
            }
        }
        if matches!(response.status, 100..200 | 204 | 304) {
            return Ok(response);
        }
        let length = response.field("content-length").and_then(|length| length.parse().ok());
        if let Some(length) = length {
            response.body = self.try_take(length)?;
            return Ok(response);
        }
        while self.receive()? {}
        response.body = std::mem::take(&mut self.received);
        Ok(response)
    }

    /// The same.
    ///
    /// # Panics
    /// When it does not come.
    pub fn response(&mut self) -> Response {
        self.try_response().expect("the gateway answers")
    }

    /// Sends a request and receives its response.
    ///
    /// # Panics
    /// When either fails.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request);
        self.response()
    }

    /// GET with nothing special.
    ///
    /// # Panics
    /// When it fails.
    pub fn get(&mut self, target: &str) -> Response {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Expects that the gateway closes in good order and sends nothing before.
    ///
    /// # Panics
    /// When it does not.
    pub fn expect_close(&mut self) {
        let more = self.receive().expect("a clean end");
        assert!(!more, "more came: {:?}", String::from_utf8_lossy(&self.received));
    }

    /// Expects that the connection is cut: a reset, or an end without close_notify.
    ///
    /// # Panics
    /// When it is closed in good order or goes on.
    pub fn expect_cut(&mut self) {
        loop {
            match self.receive() {
                Ok(true) => {}
                Ok(false) => panic!("closed as if everything had been said"),
                Err(error) => {
                    let is_cut = !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    );
                    assert!(is_cut, "still open: {error}");
                    return;
                }
            }
        }
    }

    /// Where this end is.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.socket().local_addr().expect("it is connected")
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        // It may have been reset by the other side.
        let _ = rustix::net::connect_unspec(self.socket());
    }

    /// Says that nothing more will be sent: close_notify, and FIN.
    ///
    /// # Panics
    /// When that cannot be sent.
    pub fn finish(&mut self) {
        self.try_finish().expect("the gateway reads");
    }

    /// The same.
    ///
    /// # Errors
    /// When the gateway has closed.
    pub fn try_finish(&mut self) -> io::Result<()> {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.socket().shutdown(Shutdown::Write)
    }
}

/// A client as a stream of plaintext, for those who bring a protocol of their own.
pub struct Plaintext(pub Client);

impl Read for Plaintext {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.received.is_empty() {
            self.0.receive()?;
        }
        let count = self.0.received.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.0.received[..count]);
        self.0.received.drain(..count);
        Ok(count)
    }
}

impl Write for Plaintext {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0.stream {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0.stream {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
