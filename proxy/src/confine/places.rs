//! What stays usable, from the configuration.

use std::path::Path;

use super::files::{Place, Use};
use crate::config::{Config, EndpointAddr, LogTarget};

/// What name resolution reads: its configuration, which is replaced as a whole now and then, so that single files will
/// not do, and the libraries that this names.
const RESOLVER: [&str; 8] = [
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];

/// The directories of all files that this configuration names. A file may be replaced by another one of its name.
pub(super) fn of(config: &Config, file: &Path) -> Vec<Place> {
    let mut places: Vec<Place> = Place::around(file, Use::Read).collect();
    for certificate in &config.certificates {
        places.extend(Place::around(&certificate.file, Use::Read));
        places.extend(Place::around(&certificate.key, Use::Read));
    }
    if let Some(LogTarget::File(log)) = config.access_log.as_ref().map(|log| &log.target) {
        places.extend(Place::around(log, Use::Append));
    }
    if let Some(socket) = config.admin.as_ref().and_then(|admin| admin.socket.as_deref()) {
        places.extend(Place::around(socket, Use::Remove));
    }
    if has_names(config) {
        let present = RESOLVER.iter().map(Path::new).filter(|directory| directory.is_dir());
        places.extend(
            present.map(|directory| Place { directory: directory.into(), usage: Use::Read }),
        );
    }
    places
}

/// Whether any upstream is named rather than numbered.
fn has_names(config: &Config) -> bool {
    let mut endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    endpoints.any(|endpoint| matches!(endpoint, EndpointAddr::Name { .. }))
}
