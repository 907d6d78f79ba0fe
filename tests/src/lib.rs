//! What the end-to-end tests are written with: a gateway process, clients that show every byte, upstreams that do what
//! a test tells them.
//!
//! A helper panics when what it stands for goes wrong: here that is what a test is for.
#![forbid(unsafe_code)]

/// The admin endpoint.
pub mod admin;
/// What the gateway keeps in the kernel.
pub mod bpf;
/// Gateways that stand still for a while.
pub mod brake;
/// Somebody else who is served meanwhile.
pub mod bystander;
/// What passes on the wire.
pub mod capture;
/// Clients that speak HTTP byte by byte.
pub mod client;
/// An upstream that sends bodies back.
pub mod echo;
/// A network that breaks.
pub mod fault;
/// The gateway as a process.
pub mod gateway;
/// An upstream on somebody else's parser.
pub mod hyper_origin;
/// Calls of the gateway that are made to fail.
pub mod inject;
/// An upstream that keeps account.
pub mod ledger;
/// Tunnels beside hostile clients.
pub mod load;
/// A network of one's own.
pub mod network;
/// Scripted upstreams.
pub mod origin;
/// Clients without TLS.
pub mod plain;
/// Clients that send and receive at once, in random pieces.
pub mod pump;
/// An origin that records what it received.
pub mod recorder;
/// Scripts that read like the wire.
pub mod script;
/// Servers by other hands.
pub mod servers;
/// Mixed load under faults, for a long time.
pub mod soak;
/// A second parser of requests.
pub mod strict;
/// The attack table as data.
pub mod table;
/// WebSocket clients.
pub mod websocket;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tlsplice_fixtures::certificate::Certificate;

/// Time after which something that should have happened will not happen any more. Loaded machines are slow, and guests on
/// them slower.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Names in the certificate beside localhost.
pub const NAMES: [&str; 3] = ["desk.example.org", "intranet.example.org", "a.wild.example.org"];

/// Set in the guests of `cargo xtask vm`.
pub const GUEST_VARIABLE: &str = "TLSPLICE_TEST_GUEST";

/// Whether this is a guest of `cargo xtask vm`: root, with nothing on it but what the tests need.
#[must_use]
pub fn is_guest() -> bool {
    std::env::var_os(GUEST_VARIABLE).is_some()
}

/// Has Debian packages installed. Guests come with theirs.
///
/// # Panics
/// When that cannot be done.
pub fn need(packages: &[&str]) {
    if !is_guest() {
        tlsplice_fixtures::packages::ensure(packages).expect("the packages can be installed");
    }
}

/// The build folder.
///
/// # Panics
/// When the program does not lie where cargo puts it.
#[must_use]
pub fn target() -> PathBuf {
    let binary = std::env::current_exe().expect("a test knows where it is");
    // target/debug/deps/name of a test, target/debug/name of a program
    let is_test = binary.parent().is_some_and(|folder| folder.ends_with("deps"));
    let target = binary.ancestors().nth(if is_test { 3 } else { 2 });
    target.expect("cargo puts programs two levels deep").to_owned()
}

/// The certificate that all gateways of this test binary present by default.
///
/// # Panics
/// When it cannot be made.
pub fn certificate() -> &'static Certificate {
    static CERTIFICATE: OnceLock<Certificate> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        Certificate::ensure(&target().join("tests/certificate"), &NAMES).expect("a certificate")
    })
}

/// Calls `look` until it returns something.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
