//! The TLS server that certificates are served by: versions, groups, tickets, and the choice by
//! name.
//!
//! A ticket is only good for the name it was issued for: rustls keeps the server name in the ticket
//! and falls back to a full handshake, with the certificate of the new name, when the client asks
//! for another one (RFC 6066 §3, RFC 8446 §4.6.1). Tickets of an earlier configuration are not good
//! at all: each has its own ticket keys.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::model::Host;

/// Certificates by server name.
#[derive(Debug, Default)]
pub(super) struct Sites {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By parent, with its leading dot.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Sites {
    pub(super) fn insert(&mut self, name: Host, key: Arc<CertifiedKey>) {
        match name {
            Host::Exact(name) => self.exact.insert(name, key),
            Host::Wildcard(parent) => self.wildcard.insert(parent, key),
        };
    }

    /// The certificate for unknown names and for clients that send none.
    pub(super) fn set_default(&mut self, key: Arc<CertifiedKey>) {
        self.default = Some(key);
    }

    /// Exact name, then wildcard, then the default.
    fn select(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name: Cow<'_, str> = if name.bytes().any(|b| b.is_ascii_uppercase()) {
                name.to_ascii_lowercase().into()
            } else {
                name.into()
            };
            // A wildcard takes one label (RFC 9525 §6.3).
            let parent = || name.find('.').and_then(|at| self.wildcard.get(name.get(at..)?));
            self.exact.get(&*name).or_else(parent)
        });
        named.or(self.default.as_ref())
    }
}

impl ResolvesServerCert for Sites {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.select(client_hello.server_name()).cloned()
    }
}

/// The primitives in use: aws-lc-rs, the post-quantum hybrid before the classical groups.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// A server for TLS 1.2 and 1.3 that answers with `sites`.
pub(super) fn config(sites: Sites) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(sites));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sealed by keys that rotate every six hours and are good for twelve.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 2;
    // Tickets need no memory here; the store would be a lock that all workers share.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A replayed `tunnel?write` is a replayed keystroke.
    config.max_early_data_size = 0;
    // The record layer is ours after the handshake.
    config.enable_secret_extraction = true;
    // A client without AES instructions puts ChaCha20 first, and knows why.
    config.ignore_client_order = false;
    Ok(config)
}
