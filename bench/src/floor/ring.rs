//! The same on a ring, as this gateway drives it: receives stand, and many sends share a call of the kernel.

use std::future::pending;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tlsplice::buffers::{Buffers, Class};
use tlsplice::handshake::{Handshake, Progress};
use tlsplice::ktls::{self, Opened, Opener, Sealer};
use tlsplice::limits::RECORD_WIRE_MAX;
use tlsplice::telemetry::{Gauge, Hitch, Meter};
use tlsplice::transport::{Buffer, Transport as _};
use tlsplice::uring::{self, ListenOptions, Listener, Setup, Socket};

use super::Addresses;
use super::heads::Heads;
use crate::load::failed;

/// What is done for each connection.
#[derive(Clone)]
pub(super) struct Relay {
    /// Where bytes go.
    pub(super) origin: SocketAddr,
    /// The client's TLS; None for the listener without.
    pub(super) config: Option<Arc<ServerConfig>>,
    /// Measures each connection.
    pub(super) meter: Option<Arc<Meter>>,
    /// Heads are read, and written anew.
    pub(super) reads_heads: bool,
}

/// Relays until it is killed.
pub(super) fn run(addresses: Addresses, relay: Relay) -> io::Result<()> {
    uring::start(Setup::default(), |_| serve(addresses, relay))
        .map_err(|error| failed(error.to_string()))?
}

async fn serve(addresses: Addresses, relay: Relay) -> io::Result<()> {
    let buffers = Rc::<Buffers>::default();
    uring::lend(Rc::clone(&buffers));
    let plain = Relay { config: None, ..relay.clone() };
    for (address, relay) in [(addresses.plain, plain), (addresses.tls, relay)] {
        let listener = Listener::bind(address, &ListenOptions::default())?;
        let buffers = Rc::clone(&buffers);
        uring::spawn(async move {
            while let Ok((client, peer)) = listener.accept().await {
                let (relay, buffers) = (relay.clone(), Rc::clone(&buffers));
                uring::spawn(async move {
                    // An error is the end of this connection and of no other.
                    let _ = pair(client, peer, relay, buffers).await;
                });
            }
        });
    }
    pending().await
}

/// A client's connection and the origin's: a task for each direction.
async fn pair(
    client: Socket,
    peer: SocketAddr,
    relay: Relay,
    buffers: Rc<Buffers>,
) -> io::Result<()> {
    let origin = Socket::connect(&relay.origin.into())?.await?;
    let [requests, responses] = match relay.reads_heads {
        true => Heads::of(peer, relay.config.is_some()),
        false => [Heads::Pass, Heads::Pass],
    };
    let (up, down, first) = match relay.config {
        None => (Layer::None, Layer::None, Buffer::default()),
        Some(config) => {
            let (opener, sealer, first) = handshake(&client, config).await?;
            (Layer::Open(Box::new(opener), Vec::new()), Layer::Seal(Box::new(sealer)), first)
        }
    };
    let (up, down) = (Work::new(up, requests), Work::new(down, responses));
    // As long as the connections live.
    let _measured = relay.meter.map(|meter| measure(&meter, &client, &origin)).transpose()?;
    let (back, forth) = (Rc::clone(&buffers), (origin.clone(), client.clone()));
    uring::spawn(async move {
        let _ = pass_all(forth, down, Buffer::default(), back).await;
    });
    pass_all((client, origin), up, first, buffers).await
}

/// Has the kernel measure how long bytes take from one to the other. A floor that measured less than it says would be none.
fn measure(meter: &Arc<Meter>, client: &Socket, origin: &Socket) -> io::Result<(Hitch, Gauge)> {
    let gauge = Gauge::begin(meter, client.cookie()?);
    let gauge = gauge.ok_or_else(|| failed("a connection cannot be measured"))?;
    let cookie = origin.cookie()?;
    let mut hitch = Hitch::default();
    hitch.to(&gauge, || Some(cookie));
    Ok((hitch, gauge))
}

/// What happens to bytes on their way.
struct Work {
    layer: Layer,
    heads: Heads,
    /// The head that was written last.
    written: Vec<u8>,
}

/// The part of it that is TLS.
enum Layer {
    /// Nothing.
    None,
    /// Records are opened. One that has begun is kept.
    Open(Box<Opener>, Vec<u8>),
    /// They are sealed.
    Seal(Box<Sealer>),
}

async fn pass_all(
    (from, to): (Socket, Socket),
    mut work: Work,
    first: Buffer,
    buffers: Rc<Buffers>,
) -> io::Result<()> {
    let result = pass((&from, &to), &mut work, first, &buffers).await;
    // The other direction ends, too.
    from.shutdown(Shutdown::Both);
    to.shutdown(Shutdown::Both);
    result
}

async fn pass(
    (from, to): (&Socket, &Socket),
    work: &mut Work,
    first: Buffer,
    buffers: &Buffers,
) -> io::Result<()> {
    let mut received = first;
    loop {
        let mut rest = if received.is_empty() { received } else { work.done(received, buffers)? };
        while !rest.is_empty() {
            let (sent, buffer) = to.send(rest).await;
            sent?;
            rest = buffer;
        }
        buffers.give(rest);
        let (count, buffer) = from.recv(buffers.take(Class::Tiny)).await;
        if count? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received = buffer;
    }
}

impl Work {
    fn new(layer: Layer, heads: Heads) -> Self {
        Self { layer, heads, written: Vec::new() }
    }

    /// What goes on of what was received.
    fn done(&mut self, received: Buffer, buffers: &Buffers) -> io::Result<Buffer> {
        let Self { layer, heads, written } = self;
        Ok(match layer {
            Layer::Open(..) => heads.rewrite(layer.pass(received, buffers)?, written, buffers),
            Layer::None | Layer::Seal(_) => {
                layer.pass(heads.rewrite(received, written, buffers), buffers)?
            }
        })
    }
}

impl Layer {
    /// What goes on of what was received, as far as TLS is concerned.
    fn pass(&mut self, received: Buffer, buffers: &Buffers) -> io::Result<Buffer> {
        match self {
            Self::None => Ok(received),
            Self::Open(opener, begun) => open(opener, begun, received, buffers),
            Self::Seal(sealer) => {
                let len = sealer.headroom() + received.len() + sealer.tailroom();
                let mut sealed = buffers.take(Class::holding(len));
                sealer
                    .seal_from(received.filled(), &mut sealed.spare_mut()[..len])
                    .map_err(|error| failed(error.to_string()))?;
                sealed.advance(len);
                buffers.give(received);
                Ok(sealed)
            }
        }
    }
}

/// Opens where they are the records that are whole.
fn open(
    opener: &mut Opener,
    begun: &mut Vec<u8>,
    mut received: Buffer,
    buffers: &Buffers,
) -> io::Result<Buffer> {
    if !begun.is_empty() {
        let mut whole = buffers.take(Class::holding(begun.len() + received.len()));
        whole.append(begun);
        whole.append(received.filled());
        buffers.give(std::mem::replace(&mut received, whole));
        begun.clear();
    }
    let (mut at, mut plain) = (0, 0..0);
    loop {
        let record = &mut received.filled_mut()[at..];
        match opener.open(record).map_err(|error| failed(error.to_string()))? {
            Opened::Partial => break,
            Opened::Data { payload, record_len } => {
                let from = at + payload.start..at + payload.end;
                if plain.is_empty() {
                    plain = from;
                } else {
                    received.filled_mut().copy_within(from, plain.end);
                    plain.end += payload.len();
                }
                at += record_len;
            }
            Opened::Handled { record_len } | Opened::KeyUpdated { record_len } => at += record_len,
            Opened::CloseNotify => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    begun.extend_from_slice(&received.filled()[at..]);
    received.consume(plain.start);
    received.truncate(plain.len());
    Ok(received)
}

/// Also gives what has come behind it.
async fn handshake(
    client: &Socket,
    config: Arc<ServerConfig>,
) -> io::Result<(Opener, Sealer, Buffer)> {
    let mut handshake = Handshake::new(config).map_err(|error| failed(error.to_string()))?;
    let mut input = Buffer::with_capacity(RECORD_WIRE_MAX);
    loop {
        let (count, buffer) = client.recv(input).await;
        input = buffer;
        if count? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut answer = Vec::new();
        let progress = handshake.on_bytes(&mut input, &mut answer);
        let mut output = Buffer::with_capacity(answer.len());
        output.append(&answer);
        while !output.is_empty() {
            let (sent, rest) = client.send(output).await;
            sent?;
            output = rest;
        }
        let progress = progress.map_err(|error| failed(error.to_string()))?;
        if let Progress::Established(established) = progress {
            let (opener, sealer) =
                ktls::session(*established).map_err(|error| failed(error.to_string()))?;
            return Ok((opener, sealer, input));
        }
    }
}
