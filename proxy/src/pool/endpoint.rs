//! Where endpoints are. Names are resolved on a control thread; workers only read the result.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use crate::config::EndpointAddr;

/// An address that can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix stream socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One endpoint of an upstream, shared by all workers.
#[derive(Debug)]
pub struct Endpoint {
    addr: EndpointAddr,
    targets: RwLock<Arc<[Target]>>,
}

impl Endpoint {
    /// Takes the configured address; a name has no targets until [`Endpoint::resolve`].
    #[must_use]
    pub fn new(addr: EndpointAddr) -> Self {
        let targets: Arc<[Target]> = match &addr {
            EndpointAddr::Socket(address) => Arc::new([Target::Tcp(*address)]),
            EndpointAddr::Unix(path) => Arc::new([Target::Unix(path.clone())]),
            EndpointAddr::Name { .. } => Arc::new([]),
        };
        Self { addr, targets: RwLock::new(targets) }
    }

    /// Whether it is given by name, so that its targets may change.
    #[must_use]
    pub fn is_name(&self) -> bool {
        matches!(self.addr, EndpointAddr::Name { .. })
    }

    /// Asks the system's resolver, which may block for seconds. A failure keeps the targets known before.
    ///
    /// # Errors
    /// The resolver's error, with the name.
    pub fn resolve(&self) -> io::Result<()> {
        let EndpointAddr::Name { host, port } = &self.addr else { return Ok(()) };
        let targets: Arc<[Target]> =
            (host.as_str(), *port).to_socket_addrs()?.map(Target::Tcp).collect();
        if targets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        *self.targets.write().unwrap_or_else(std::sync::PoisonError::into_inner) = targets;
        Ok(())
    }

    /// Where to connect to, best first; empty while a name is not resolved.
    #[must_use]
    pub fn targets(&self) -> Arc<[Target]> {
        Arc::clone(&self.targets.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Host and port as a URL of the application would show them; None for a unix socket.
    #[must_use]
    pub fn authority(&self) -> Option<String> {
        match &self.addr {
            EndpointAddr::Socket(address) => Some(address.to_string()),
            EndpointAddr::Name { host, port } => Some(format!("{host}:{port}")),
            EndpointAddr::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.addr {
            EndpointAddr::Socket(address) => address.fmt(f),
            EndpointAddr::Name { host, port } => write!(f, "{host}:{port}"),
            EndpointAddr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_and_addresses_need_not_be() {
        let named = Endpoint::new(EndpointAddr::Name { host: "localhost".into(), port: 8080 });
        assert!(named.targets().is_empty() && named.is_name());
        named.resolve().unwrap();
        assert!(matches!(named.targets()[0], Target::Tcp(address) if address.ip().is_loopback()));
        let fixed = Endpoint::new(EndpointAddr::Socket("127.0.0.1:1".parse().unwrap()));
        fixed.resolve().unwrap();
        assert_eq!(fixed.targets().len(), 1);
        assert_eq!(named.authority().as_deref(), Some("localhost:8080"));
    }

    #[test]
    fn a_failed_resolution_keeps_what_was_known() {
        let endpoint =
            Endpoint::new(EndpointAddr::Name { host: "no.such.invalid".into(), port: 1 });
        *endpoint.targets.write().unwrap() =
            Arc::new([Target::Tcp("127.0.0.1:1".parse().unwrap())]);
        assert!(endpoint.resolve().is_err());
        assert_eq!(endpoint.targets().len(), 1);
    }
}
