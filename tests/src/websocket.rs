use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use crate::PATIENCE;
use crate::client::tls_stream;

/// A WebSocket over TLS.
pub type Socket = WebSocket<StreamOwned<ClientConnection, TcpStream>>;

/// Opens a WebSocket. It takes messages and frames of any size.
///
/// # Errors
/// What tungstenite says, a refusal with its response among it.
pub fn open(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    target: &str,
) -> Result<Socket, Box<tungstenite::Error>> {
    let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let mut stream = tls_stream(address, config, "localhost");
    // A full buffer shows as 0 bytes written, which tungstenite takes for the end.
    stream.conn.set_buffer_limit(None);
    let uri = format!("wss://localhost:{}{target}", address.port());
    match tungstenite::client::client_with_config(uri, stream, Some(limits)) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(error)) => Err(Box::new(error)),
        Err(tungstenite::HandshakeError::Interrupted(_)) => {
            Err(Box::new(io::Error::from(io::ErrorKind::TimedOut).into()))
        }
    }
}

/// Sends messages and receives at the same time until `count` data messages have come, so that neither side waits for
/// the other however small the buffers between them are.
///
/// # Panics
/// When they do not come in time.
pub fn exchange(socket: &mut Socket, messages: Vec<Message>, count: usize) -> Vec<Message> {
    socket.get_ref().sock.set_nonblocking(true).expect("a socket option");
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut received = Vec::new();
    for message in messages {
        match socket.write(message) {
            Ok(()) => {}
            Err(error) if is_waiting(&error) => {}
            Err(error) => panic!("sending: {error}"),
        }
    }
    while received.len() < count {
        match socket.flush() {
            Ok(()) => {}
            Err(error) if is_waiting(&error) => {}
            Err(error) => panic!("sending: {error}"),
        }
        match socket.read() {
            Ok(message) if message.is_text() || message.is_binary() => received.push(message),
            Ok(_) => {}
            Err(error) if is_waiting(&error) => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("receiving: {error}"),
        }
        assert!(Instant::now() < deadline, "only {} of {count} messages came", received.len());
    }
    socket.get_ref().sock.set_nonblocking(false).expect("a socket option");
    received
}

/// Ends a WebSocket in good order on all layers, as long as the server takes part. Returns the server's close frame.
///
/// # Panics
/// When the server does not close.
pub fn close(mut socket: Socket, frame: CloseFrame) -> Option<CloseFrame> {
    socket.close(Some(frame)).expect("it is sent");
    let mut answer = None;
    while let Ok(message) = socket.read() {
        if let Message::Close(frame) = message {
            answer = frame;
        }
    }
    let stream = socket.get_mut();
    stream.conn.send_close_notify();
    stream.flush().expect("the gateway reads");
    answer
}

fn is_waiting(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}
