//! What a client gets: versions, groups, the certificate for a name, and tickets.

use std::sync::Arc;

use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore,
    ServerConfig, ServerConnection,
};

use super::tls::{HTTPS, TLS, site};
use super::*;

/// Every certificate is good and every session is offered to every name: the client that the server
/// must be safe from.
#[derive(Debug)]
struct OneSession(ClientSessionMemoryCache);

fn anybody() -> ServerName<'static> {
    ServerName::try_from("anybody").unwrap()
}

impl ClientSessionStore for OneSession {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(anybody(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&anybody())
    }

    fn set_tls12_session(
        &self,
        _: ServerName<'static>,
        value: rustls::client::Tls12ClientSessionValue,
    ) {
        self.0.set_tls12_session(anybody(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&anybody())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&anybody());
    }

    fn insert_tls13_ticket(
        &self,
        _: ServerName<'static>,
        value: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.insert_tls13_ticket(anybody(), value);
    }

    fn take_tls13_ticket(
        &self,
        _: &ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&anybody())
    }
}

fn client(roots: &[&str], version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(OneSession(ClientSessionMemoryCache::new(8))));
    // The tests' certificates are valid around NOW, not around the day they run on.
    config.time_provider = Arc::new(TestTime);
    Arc::new(config)
}

#[derive(Debug)]
struct TestTime;

impl rustls::time_provider::TimeProvider for TestTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            NOW.unsigned_abs(),
        )))
    }
}

/// A handshake in memory, with everything that follows it.
fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

struct Served {
    server: Arc<ServerConfig>,
    roots: Vec<String>,
}

/// desk.example.org by default and one.example.org as a site.
fn served(unknown_name: &str) -> Served {
    let mut memory = Memory::with_certificate();
    let one = pair(&["one.example.org", "*.one.example.org"]);
    memory.put("/etc/tlsplice/one.pem", &one.certificate);
    memory.put("/etc/tlsplice/one-key.pem", &one.key);
    let text = format!("{HTTPS}{TLS}unknown_name = \"{unknown_name}\"\n{}", site("one", ""));
    let config = memory.parse(&text).unwrap_or_else(|report| panic!("{report}")).config;
    let default = &memory.files[Path::new("/etc/tlsplice/cert.pem")].0;
    let roots = vec![String::from_utf8(default.clone()).unwrap(), one.certificate];
    Served { server: config.tls.unwrap(), roots }
}

impl Served {
    fn client(&self, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
        client(&[&self.roots[0], &self.roots[1]], version)
    }

    /// Which of the roots a client that trusts both is shown.
    fn shown(&self, name: &str) -> usize {
        let client = self.client(&rustls::version::TLS13);
        let (client, _) = shake(&client, &self.server, name).unwrap();
        let shown = &client.peer_certificates().unwrap()[0];
        self.roots
            .iter()
            .position(|root| CertificateDer::from_pem_slice(root.as_bytes()).unwrap() == *shown)
            .unwrap()
    }
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let served = served("default");
    assert_eq!(served.shown("desk.example.org"), 0);
    assert_eq!(served.shown("ONE.example.ORG"), 1);
    assert_eq!(served.shown("a.one.example.org"), 1);
    let client = served.client(&rustls::version::TLS13);
    let error = shake(&client, &served.server, "unknown.org").unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(_)),
        "the default is shown: {error:?}"
    );
}

#[test]
fn a_site_that_lists_a_name_of_the_default_certificate_serves_it() {
    let mut memory = Memory::with_certificate();
    let site_pair = pair(&["desk.example.org"]);
    memory.put("/etc/tlsplice/one.pem", &site_pair.certificate);
    memory.put("/etc/tlsplice/one-key.pem", &site_pair.key);
    let loaded = memory.parse(&format!("{HTTPS}{TLS}{}", site("one", ""))).unwrap();
    // A client that trusts the site's certificate only.
    let client = client(&[&site_pair.certificate], &rustls::version::TLS13);
    assert!(shake(&client, &loaded.config.tls.unwrap(), "desk.example.org").is_ok());
}

#[test]
fn unknown_names_are_refused_when_the_file_says_so() {
    let served = served("refuse");
    assert_eq!(served.shown("desk.example.org"), 0);
    assert_eq!(served.shown("x.apps.example.org"), 0);
    let client = served.client(&rustls::version::TLS13);
    for name in ["unknown.org", "192.0.2.1", "a.b.one.example.org"] {
        let error = shake(&client, &served.server, name).unwrap_err();
        assert_eq!(
            error,
            rustls::Error::General("no server certificate chain resolved".into()),
            "{name}"
        );
    }
}

#[test]
fn both_versions_are_served_with_the_hybrid_group_first_and_http_1_1() {
    let served = served("default");
    for (version, protocol, group) in [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3, NamedGroup::X25519MLKEM768),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2, NamedGroup::X25519),
    ] {
        let client = served.client(version);
        let (_, server) = shake(&client, &served.server, "desk.example.org").unwrap();
        assert_eq!(server.protocol_version(), Some(protocol));
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), group);
        assert_eq!(server.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert!(server.dangerous_extract_secrets().is_ok());
    }
    assert_eq!(served.server.max_early_data_size, 0);
    assert_eq!(served.server.send_tls13_tickets, 2);
}

#[test]
fn a_ticket_is_good_for_its_own_name_and_no_other() {
    let served = served("default");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let kind = |client: &Arc<ClientConfig>, name| {
            shake(client, &served.server, name).unwrap().1.handshake_kind().unwrap()
        };
        let client = served.client(version);
        assert_eq!(kind(&client, "desk.example.org"), HandshakeKind::Full);
        assert_eq!(kind(&client, "desk.example.org"), HandshakeKind::Resumed);
        assert_eq!(kind(&client, "one.example.org"), HandshakeKind::Full);
    }
}

#[test]
fn a_ticket_does_not_outlive_its_configuration() {
    let (before, after) = (served("default"), served("default"));
    let roots: Vec<&str> = before.roots.iter().chain(&after.roots).map(String::as_str).collect();
    let client = client(&roots, &rustls::version::TLS13);
    shake(&client, &before.server, "desk.example.org").unwrap();
    let (_, server) = shake(&client, &after.server, "desk.example.org").unwrap();
    assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
}
