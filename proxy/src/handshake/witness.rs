//! Remembers the name that a client asked for, which rustls does not tell after an unbuffered handshake.

use std::sync::{Arc, OnceLock};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Stands before the choice of certificates for one handshake.
#[derive(Debug)]
pub struct Witness {
    inner: Arc<dyn ResolvesServerCert>,
    name: OnceLock<String>,
}

impl Witness {
    /// The same configuration with a witness of its own.
    #[must_use]
    pub fn of(config: &ServerConfig) -> (Arc<Self>, Arc<ServerConfig>) {
        let inner = Arc::clone(&config.cert_resolver);
        let witness = Arc::new(Self { inner, name: OnceLock::new() });
        let mut config = config.clone();
        config.cert_resolver = Arc::<Self>::clone(&witness);
        (witness, Arc::new(config))
    }

    /// The name in lower case, once the ClientHello has come; None when it had none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }
}

impl ResolvesServerCert for Witness {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(name) = client_hello.server_name() {
            // After a HelloRetryRequest the same one comes again (RFC 8446 §4.1.2).
            self.name.get_or_init(|| name.to_ascii_lowercase());
        }
        self.inner.resolve(client_hello)
    }
}
