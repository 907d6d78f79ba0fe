use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::PATIENCE;

/// A request for `/`.
pub const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A further listener without TLS.
#[must_use]
pub fn listener(address: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\nservice = \"http\"\n")
}

/// Connects.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway accepts");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream
}

/// The client's own port.
///
/// # Panics
/// When it is not connected.
#[must_use]
pub fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().expect("it is connected").port()
}

/// Sends [`GET`] and reads until the response ends with `end`.
///
/// # Panics
/// When it does not come.
pub fn ask(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    stream.write_all(GET.as_bytes()).expect("it is sent");
    let (mut received, mut piece) = (Vec::new(), [0; 4096]);
    while !received.ends_with(end) {
        let count = stream.read(&mut piece).expect("a response");
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&piece[..count]);
    }
    received
}
