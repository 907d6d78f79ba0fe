//! Both halves of one direction, for the tests of everything that stands on the record layer.

use std::rc::Rc;

use rustls::CipherSuite;

use super::cipher::Cipher;
use super::{Opener, RecordLimit, Sealer, Version, halves};
use crate::handshake::testing::{client, client_config, run, server};

/// The opener of a server, and a sealer with the keys of its client, which can say what rustls never would.
pub(crate) fn against_any_client(suite: CipherSuite) -> (Opener, Sealer) {
    let mut client = client(&client_config(Some(suite), &[]));
    let done = run(&mut client, server(&[]), |_| usize::MAX, b"x").expect("a handshake");
    let (mut opener, _) = halves(done.established, RecordLimit::KEY).expect("a known suite");
    let mut first = done.leftover.filled().to_vec();
    opener.open(&mut first).expect("it is authentic");
    let secrets = client.dangerous_extract_secrets().expect("the configuration allows it");
    let version = if suite.as_str().is_some_and(|name| name.starts_with("TLS13")) {
        Version::Tls13
    } else {
        Version::Tls12
    };
    let cipher = Cipher::new(version, secrets.tx.1).expect("a known suite");
    let schedule = Rc::clone(&opener.schedule);
    (opener, Sealer::new(cipher, secrets.tx.0, schedule, RecordLimit::KEY))
}
