//! From an accepted socket to plaintext in both directions.

use std::rc::Rc;
use std::sync::Arc;

use thiserror::Error;

use super::{Core, Door};
use crate::buffers::Class;
use crate::config::{Offload, Service, Splice};
use crate::handshake::{Handshake, HandshakeError, Progress, Witness};
use crate::ktls;
use crate::ktls::kernel::{self, HandoverError};
use crate::message::Version;
use crate::message::reply::{self, Refusal};
use crate::pool::Network;
use crate::stream::{Reader, StreamError, Writer};
use crate::telemetry::{Direction, Gauge, HandshakeFailure, Live, TlsPath, UserReason};
use crate::timers::{Activity, Watched};
use crate::transport::{Buffer, Transport};

/// One downstream connection, ready for requests.
pub(super) struct Session<T: Transport> {
    pub watch: Rc<Watched<T>>,
    pub reader: Reader<T>,
    pub writer: Writer<T>,
    pub tls: TlsPath,
    /// Why it is not the kernel that runs the record layer.
    pub tls_reason: Option<UserReason>,
    /// Tells others how the connection does.
    pub live: Arc<Live>,
    /// Whether bulk data may move inside the kernel.
    pub splice: Splice,
    /// Measures the connection, when it is measured.
    pub gauge: Option<Rc<Gauge>>,
    /// The name that the client asked for in its handshake, where there is a choice of certificates.
    pub server_name: Option<Rc<str>>,
}

impl<T: Transport> Session<T> {
    fn new(
        watch: Rc<Watched<T>>,
        mut reader: Reader<T>,
        mut writer: Writer<T>,
        (tls, tls_reason): (TlsPath, Option<UserReason>),
        splice: Splice,
        live: &Arc<Live>,
    ) -> Self {
        reader.tell(live);
        writer.tell(live);
        live.set_tls(tls);
        if splice == Splice::Never {
            reader.forbid_splicing();
            writer.forbid_splicing();
        }
        let live = Arc::clone(live);
        let (gauge, server_name) = (None, None);
        Self { watch, reader, writer, tls, tls_reason, live, splice, gauge, server_name }
    }

    /// Whether a TLS key has protected so many records that the connection should end at the next opportunity.
    pub(super) fn is_key_worn(&self) -> bool {
        self.reader.is_key_worn() || self.writer.is_key_worn()
    }

    /// Has the connection measured from now on.
    pub(super) fn measure(&mut self, gauge: Gauge) {
        let gauge = Rc::new(gauge);
        self.reader.measure(Rc::clone(&gauge));
        self.gauge = Some(gauge);
    }

    /// What the client sent last was not for the application.
    pub(super) fn on_answered_here(&self) {
        if let Some(gauge) = &self.gauge {
            gauge.swallowed(Direction::Up);
        }
    }
}

/// Why there is no session.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Handshake(#[from] HandshakeError),
    /// The kernel did not take the keys.
    #[error("{0}")]
    Handover(#[from] HandoverError),
    /// The peer closed or the socket failed.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// The peer closed before the handshake was complete.
    #[error("closed during the TLS handshake")]
    Closed,
    /// The listener speaks TLS, and no certificate is loaded.
    #[error("no certificate is loaded")]
    NoCertificate,
}

impl SessionError {
    /// The cause by which it is counted; None when the handshake was not at fault.
    pub(super) fn failure(&self) -> Option<HandshakeFailure> {
        Some(match self {
            Self::Handshake(HandshakeError::PlainHttp) => HandshakeFailure::PlainHttp,
            Self::Handshake(HandshakeError::NotTls) => HandshakeFailure::NotTls,
            Self::Handshake(HandshakeError::Closed) | Self::Closed => HandshakeFailure::Closed,
            Self::Handshake(_) => HandshakeFailure::Tls,
            Self::Handover(_) => HandshakeFailure::Handover,
            Self::Stream(StreamError::Expired | StreamError::Stalled) => HandshakeFailure::Timeout,
            Self::Stream(StreamError::Drained) | Self::NoCertificate => return None,
            Self::Stream(_) => HandshakeFailure::Io,
        })
    }
}

/// Speaks TLS if the listener does, until plaintext can flow.
pub(super) async fn establish<N: Network>(
    core: &Core<N>,
    io: N::Io,
    door: Door,
    live: &Arc<Live>,
) -> Result<Session<N::Io>, SessionError> {
    let watch = Rc::new(core.timers.watch(io.clone(), Activity::Exchange));
    let buffers = || Rc::clone(&core.buffers);
    let generation = Rc::clone(&core.generation.borrow());
    let config = &generation.shared.config;
    let write_timeout = config.limits.write_timeout;
    if door.service != Service::Https {
        let reader = Reader::plain(Rc::clone(&watch), io.clone(), buffers());
        let writer = Writer::plain(Rc::clone(&watch), io, buffers(), write_timeout);
        return Ok(Session::new(watch, reader, writer, (TlsPath::None, None), door.splice, live));
    }
    let mut tls = config.tls.clone().ok_or(SessionError::NoCertificate)?;
    let mut witness = None;
    if config.certificates.len() > 1 {
        let (seen, watched) = Witness::of(&tls);
        (witness, tls) = (Some(seen), watched);
    }
    let server_name = || witness.as_ref().and_then(|seen| seen.name()).map(Rc::from);
    // Decided before the first byte: for the kernel nothing may be read beyond the handshake.
    let mut reason = match door.offload {
        Offload::Never => UserReason::Configured,
        Offload::Auto | Offload::Always => UserReason::NoKernelTls,
    };
    let is_for_kernel = door.offload != Offload::Never && core.kernel_tls.is_any();
    watch.receive_within(config.limits.handshake_timeout);
    let mut handshake = Handshake::new(tls)?;
    let mut wire = Writer::plain(Rc::clone(&watch), io.clone(), buffers(), write_timeout);
    let mut input = core.buffers.take(Class::Record);
    let mut output = Vec::new();
    loop {
        let is_long = handshake.is_long_step(input.filled());
        let leave = if is_long { Some(core.buffers.turnstile().enter().await) } else { None };
        if let Some(cause) = watch.shut() {
            return Err(StreamError::from(cause).into());
        }
        let step = async {
            let progress = handshake.on_bytes(&mut input, &mut output);
            if !output.is_empty() {
                wire.push_all(&output).await?;
                wire.flush().await?;
                output.clear();
            }
            Ok::<_, StreamError>(progress)
        };
        let progress = match leave {
            Some(leave) => leave.go(io.turn(), step).await?,
            None => step.await?,
        };
        match progress {
            Ok(Progress::NeedInput { next_read_max }) => {
                input.compact();
                input = if is_for_kernel {
                    receive_exactly(&io, &watch, input, next_read_max).await?
                } else {
                    receive(&io, &watch, input).await?
                };
            }
            Ok(Progress::Established(established)) => {
                watch.receive_at_leisure();
                let mut established = *established;
                let is_possible = kernel::is_possible(&established, &core.kernel_tls);
                if is_for_kernel {
                    reason = if is_possible { UserReason::Refused } else { UserReason::Cipher };
                }
                if is_for_kernel
                    && is_possible
                    && input.is_empty()
                    && let Some(socket) = io.kernel_tls()
                {
                    established = match kernel::handover(established, socket, &core.kernel_tls) {
                        Ok((opener, sealer)) => {
                            core.buffers.give(input);
                            let watched = || Rc::clone(&watch);
                            let reader = Reader::kernel(watched(), io.clone(), buffers(), opener);
                            let writer =
                                Writer::kernel(watched(), io, buffers(), write_timeout, sealer);
                            let path = (TlsPath::Kernel, None);
                            let session =
                                Session::new(watch, reader, writer, path, door.splice, live);
                            return Ok(Session { server_name: server_name(), ..session });
                        }
                        Err(HandoverError::Refused(established, error)) => {
                            tracing::debug!("TLS stays in user space: {error}");
                            *established
                        }
                        Err(error) => return Err(error.into()),
                    };
                }
                let (opener, sealer) = ktls::session(established)?;
                let reader = Reader::tls(Rc::clone(&watch), io.clone(), buffers(), opener, input);
                let writer = Writer::tls(Rc::clone(&watch), io, buffers(), write_timeout, sealer);
                let path = (TlsPath::User, Some(reason));
                let session = Session::new(watch, reader, writer, path, door.splice, live);
                return Ok(Session { server_name: server_name(), ..session });
            }
            Err(HandshakeError::PlainHttp) => {
                let mut reply = Vec::new();
                let refusal = Refusal::PlainHttp;
                reply::write_refusal(refusal, Version::Http11, true, false, &mut reply);
                wire.push_all(&reply).await?;
                wire.flush().await?;
                let reader = Reader::plain(Rc::clone(&watch), io, buffers());
                let mut session =
                    Session::new(watch, reader, wire, (TlsPath::None, None), door.splice, live);
                super::close(&mut session).await;
                return Err(HandshakeError::PlainHttp.into());
            }
            Err(error) => {
                // The alert must not be overtaken by a reset for what we did not read.
                wire.finish().await?;
                return Err(error.into());
            }
        }
    }
}

/// Receives `count` bytes at most, so that nothing beyond them leaves the socket.
async fn receive_exactly<T: Transport>(
    io: &T,
    watch: &Watched<T>,
    mut input: Buffer,
    count: usize,
) -> Result<Buffer, SessionError> {
    loop {
        let result = io.try_recv(&mut input, count);
        match result {
            Ok(0) | Err(_) if watch.shut().is_some() => {
                return Err(watch
                    .shut()
                    .map_or(SessionError::Closed, |cause| StreamError::from(cause).into()));
            }
            Ok(0) => return Err(SessionError::Closed),
            Ok(_) => return Ok(input),
            Err(error) if crate::stream::is_retry(&error) => {
                io.readable().await.map_err(StreamError::from)?;
            }
            Err(error) => return Err(StreamError::from(error).into()),
        }
    }
}

/// Receives once, to the end of what is there.
async fn receive<T: Transport>(
    io: &T,
    watch: &Watched<T>,
    input: Buffer,
) -> Result<Buffer, SessionError> {
    let (result, input) = io.recv(input).await;
    match result {
        Ok(0) | Err(_) if watch.shut().is_some() => {
            Err(watch.shut().map_or(SessionError::Closed, |cause| StreamError::from(cause).into()))
        }
        Ok(0) => Err(SessionError::Closed),
        Ok(_) => Ok(input),
        Err(error) if crate::stream::is_retry(&error) => Ok(input),
        Err(error) => Err(StreamError::from(error).into()),
    }
}
