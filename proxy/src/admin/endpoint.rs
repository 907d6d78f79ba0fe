//! The endpoint itself: sockets, HTTP, and bounds for clients that misbehave.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::{fs, io::ErrorKind};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::{View, metrics};
use crate::config::{Account, Admin};

/// Clients served at once; further ones wait.
const CLIENTS_MAX: usize = 32;

/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may take in all.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed for lack of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

const INDEX: &str = "tlsplice\n\n\
    /metrics      for Prometheus\n\
    /connections  open connections, as JSON\n\
    /healthz      200 while the process runs\n\
    /readyz       200 while connections are accepted, 503 while the gateway is being stopped\n";

/// Why the endpoint cannot be had.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Another gateway uses the socket.
    #[error("admin.socket: another process serves {0}; stop it, or give this gateway another path")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("admin.socket: {0} exists and is no socket; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("admin.socket: cannot listen on {0}: {1}")]
    Socket(PathBuf, io::Error),
    /// The address cannot be bound.
    #[error("admin.address: cannot listen on {0}: {1}")]
    Address(SocketAddr, io::Error),
    /// The thread cannot be had.
    #[error("the admin endpoint cannot start: {0}")]
    Thread(#[from] io::Error),
}

/// Bound sockets. The file of the unix socket is removed when it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, SocketAddr)>,
}

impl Endpoint {
    /// Binds what the configuration names. The unix socket belongs to `owner`, when there is one.
    ///
    /// # Errors
    /// When something cannot be bound.
    pub fn bind(config: &Admin, owner: Option<&Account>) -> Result<Self, AdminError> {
        let unix = config.socket.as_deref().map(|path| bind_unix(path, owner)).transpose()?;
        let tcp = config.address.map(|address| {
            let error = |error| AdminError::Address(address, error);
            let listener = TcpListener::bind(address).map_err(error)?;
            listener.set_nonblocking(true).map_err(error)?;
            let bound = listener.local_addr().map_err(error)?;
            Ok::<_, AdminError>((listener, bound))
        });
        Ok(Self { unix, tcp: tcp.transpose()? })
    }

    /// Where it can be asked, for the start-up report.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|(_, file)| format!("unix:{}", file.path.display()));
        unix.chain(self.tcp.iter().map(|(_, address)| format!("http://{address}"))).collect()
    }

    /// Answers on a thread of its own until the process ends. What is returned removes the socket's file.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn serve(self, view: View) -> Result<Option<SocketFile>, AdminError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let view = Arc::new(view);
        let (unix, file) = self.unix.unzip();
        let tcp = self.tcp.map(|(listener, _)| listener);
        let serve = move || {
            let served: io::Result<()> = runtime.block_on(async {
                let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
                let unix = unix.map(tokio::net::UnixListener::from_std).transpose()?;
                let tcp = tcp.map(tokio::net::TcpListener::from_std).transpose()?;
                let accept_unix = async {
                    let Some(listener) = unix else { return };
                    loop {
                        let accepted = listener.accept().await.map(|(stream, _)| stream);
                        take(accepted, &clients, &view, Way::Unix).await;
                    }
                };
                let accept_tcp = async {
                    let Some(listener) = tcp else { return };
                    loop {
                        let accepted = listener.accept().await.map(|(stream, _)| stream);
                        take(accepted, &clients, &view, Way::Tcp).await;
                    }
                };
                tokio::join!(accept_unix, accept_tcp);
                Ok(())
            });
            if let Err(error) = served {
                tracing::error!("the admin endpoint has ended: {error}");
            }
        };
        thread::Builder::new().name("admin".into()).spawn(serve)?;
        Ok(file)
    }
}

/// Which way a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Unix,
    Tcp,
}

/// Serves a client beside the others, as soon as there is a place.
async fn take<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: io::Result<S>,
    clients: &Arc<Semaphore>,
    view: &Arc<View>,
    way: Way,
) {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!("the admin endpoint cannot accept: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return;
        }
    };
    // The semaphore is never closed.
    let Ok(place) = Arc::clone(clients).acquire_owned().await else { return };
    let view = Arc::clone(view);
    tokio::spawn(async move {
        let answer = service_fn(|request: Request<Incoming>| {
            let response = answer(&view, way, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        match tokio::time::timeout(CLIENT_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("an admin client: {error}"),
            Err(_) => tracing::debug!("an admin client took too long"),
        }
        drop(place);
    });
}

fn answer(view: &Arc<View>, way: Way, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let text = |status, text: &str| respond(status, PLAIN, text.to_owned());
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    if way == Way::Tcp && !host.is_none_or(is_local) {
        return text(StatusCode::FORBIDDEN, "ask by the address, or as localhost\n");
    }
    match request.uri().path() {
        "/" => text(StatusCode::OK, INDEX),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if view.is_serving() => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/metrics" => match metrics::render(view) {
            Ok(body) => respond(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        "/connections" => match serde_json::to_string(&view.snapshot()) {
            Ok(body) => respond(StatusCode::OK, "application/json", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "no such path; / lists those there are\n"),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Whether a Host names this machine by its address. A web page that has its own name resolve to a loopback address
/// makes a browser ask here, but with that name.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// The file of a bound unix socket. Removed when dropped, unless another one has its name by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Nobody is left who could be told that it stays.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Binds a socket that its owner alone may connect to, in place of one that nobody serves any more.
fn bind_unix(
    path: &Path,
    owner: Option<&Account>,
) -> Result<(UnixListener, SocketFile), AdminError> {
    let failed = |error| AdminError::Socket(path.to_owned(), error);
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(AdminError::InUse(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let bind = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
        // Before it listens nobody can connect, whatever the mask of the process.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        if let Some(owner) = owner {
            lchown(path, Some(owner.user), Some(owner.group))?;
        }
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok((UnixListener::from(socket), file))
    };
    bind().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LocalHost:9180", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "[::1]"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:9180", "localhost.evil.example", "::1:x"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
