//! Properties that must hold whatever the bytes are, one function each: it panics where one does not.
//!
//! They run on what is kept in `corpus/` with every test, and on what a fuzzer makes of it by `cargo xtask fuzz`.
#![forbid(unsafe_code)]

mod chunks;
mod configuration;
mod heads;
mod input;
mod paths;
mod relay;
mod tls;
mod tomcat;

use std::path::PathBuf;

/// What one input is tried with.
pub type Property = fn(&[u8]);

/// All properties, by the names in `targets.txt`.
pub const TARGETS: [(&str, Property); 11] = [
    ("request_head", heads::request),
    ("response_head", heads::response),
    ("chunked", chunks::run),
    ("rewrite", heads::rewrite),
    ("route", paths::run),
    ("config", configuration::run),
    ("identity", configuration::identity),
    ("preamble", tls::preamble),
    ("handshake", tls::handshake),
    ("flow", relay::flow),
    ("pump", relay::pump),
];

/// The property `name`.
#[must_use]
pub fn find(name: &str) -> Option<Property> {
    TARGETS.iter().find(|(own, _)| *own == name).map(|(_, property)| *property)
}

/// Where the inputs for the target `name` are kept.
#[must_use]
pub fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}
