//! What a configuration names: certificates, ports, upstreams.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use socket2::{Domain, Socket, Type};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::client::Head;
use super::{Finding, TIMEOUT};
use crate::config::{CertificateSummary, Config, Listener};
use crate::pool::{Endpoint, Target};

/// How long each certificate is good for, and whether it comes with its issuer. (Those that are not good at all are
/// errors of the configuration.)
pub(super) fn certificates(config: &Config) -> Vec<Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    config.certificates.iter().map(|summary| certificate(summary, now)).collect()
}

fn certificate(summary: &CertificateSummary, now: i64) -> Finding {
    let topic = "certificate";
    let file = summary.file.display();
    let days = summary.not_after.saturating_sub(now) / 86_400;
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(&summary.file).into_iter().flatten().flatten().collect();
    let is_signed_by_another = |leaf: &CertificateDer<'_>| {
        X509Certificate::from_der(leaf)
            .is_ok_and(|(_, leaf)| leaf.issuer().as_raw() != leaf.subject().as_raw())
    };
    match chain.as_slice() {
        [leaf] if is_signed_by_another(leaf) => Finding::warn(
            topic,
            format!("{file} holds the server's certificate alone, without its issuer's"),
            "clients that do not know the issuer refuse it",
            "use the full chain (fullchain.pem), unless clients trust the issuer itself",
        ),
        _ => Finding::ok(topic, format!("{file}: {} more days, chain of {}", days, chain.len())),
    }
}

/// Whether a gateway listens there already, and what the state of the port means. `presents` tells whether what listens
/// there has our certificate: only root sees the processes of others.
pub(super) fn port(listener: &Listener, presents: impl Fn() -> bool) -> (bool, Finding) {
    let address = listener.address;
    let bound = bind(address);
    let is_held = bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let holder = if is_held { holder(address) } else { None };
    if is_held && holder.is_none() && presents() {
        let fact = format!("{address} is held by what presents the configured certificate");
        return (true, Finding::ok("port", fact));
    }
    let is_ours = holder.as_ref().is_some_and(|(_, name)| name == "tlsplice");
    (is_ours, judge_port(address, &bound, holder))
}

fn judge_port(
    address: SocketAddr,
    bound: &io::Result<()>,
    holder: Option<(u32, String)>,
) -> Finding {
    let (topic, cost) = ("port", "the gateway does not start");
    let Err(error) = bound else { return Finding::ok(topic, format!("{address} is free")) };
    match (error.kind(), holder) {
        (io::ErrorKind::AddrInUse, Some((id, name))) if name == "tlsplice" => {
            Finding::ok(topic, format!("{address} is held by a running tlsplice (process {id})"))
        }
        (io::ErrorKind::AddrInUse, Some((id, name))) => {
            let fact = format!("{address} is held by {name} (process {id})");
            Finding::fail(topic, fact, cost, format!("stop it (kill {id}), or change `address`"))
        }
        (io::ErrorKind::AddrInUse, None) => {
            let fact = format!("{address} is held by a process that this user cannot see");
            let cure = format!("run this as root, or: ss -ltnp 'sport = :{}'", address.port());
            Finding::fail(topic, fact, "unless that is tlsplice, the gateway does not start", cure)
        }
        (io::ErrorKind::PermissionDenied, _) => {
            let fact = format!("{address} may not be bound by this user");
            Finding::fail(topic, fact, cost, "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit")
        }
        (io::ErrorKind::AddrNotAvailable, _) => {
            let fact = format!("{address} is no address of this machine");
            Finding::fail(topic, fact, cost, "see `ip address`, and change `address`")
        }
        _ => Finding::fail(topic, format!("{address}: {error}"), cost, "change `address`"),
    }
}

/// Binds as somebody who shares with nobody, and lets go again.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of the past must not count.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// The process that listens on this port, with its name.
fn holder(address: SocketAddr) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).ok());
    let inodes: Vec<String> =
        tables.iter().flatten().flat_map(|table| listening(table, address.port())).collect();
    let processes = fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((id, name.trim().to_owned()));
        }
    }
    None
}

/// Sockets that listen on `port`, as links of descriptors name them, from a table such as `/proc/net/tcp`.
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let socket = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_it = columns.get(1)?.ends_with(&suffix) && *columns.get(3)? == LISTEN;
        is_it.then(|| columns.get(9).map(|inode| format!("socket:[{inode}]")))?
    };
    table.lines().filter_map(socket).collect()
}

/// Connects to every endpoint and asks for the path of a route, all at the same time.
pub(super) fn upstreams(config: &Config) -> Vec<Finding> {
    let (sender, findings) = mpsc::channel();
    let mut count = 0;
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let route = config.routes.iter().find(|route| route.upstream == index);
        let path = route.map_or("/", |route| &route.upstream_path).to_owned();
        for addr in &upstream.endpoints {
            let endpoint = Endpoint::new(addr.clone());
            let (sender, path) = (sender.clone(), path.clone());
            let connect_timeout = upstream.connect_timeout.min(TIMEOUT);
            // A resolver may block for longer than anybody waits: such a thread is left behind.
            thread::spawn(move || {
                drop(sender.send(upstream_answer(&endpoint, &path, connect_timeout)));
            });
            count += 1;
        }
    }
    let deadline = Instant::now() + 3 * TIMEOUT;
    let mut all = Vec::new();
    while all.len() < count {
        match findings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(finding) => all.push(finding),
            Err(_) => {
                let fact = format!("{} endpoints did not answer in time", count - all.len());
                all.push(Finding::fail("upstream", fact, UNREACHED, "look at the resolver"));
                break;
            }
        }
    }
    all
}

const UNREACHED: &str = "its requests are answered with 502";

fn upstream_answer(endpoint: &Endpoint, path: &str, connect_timeout: Duration) -> Finding {
    let begun = Instant::now();
    let asked = endpoint.resolve().and_then(|()| {
        let targets = endpoint.targets();
        let target = targets.first().ok_or(io::ErrorKind::NotFound)?;
        ask(target, endpoint.authority().as_deref().unwrap_or("localhost"), path, connect_timeout)
    });
    judge_upstream(&endpoint.to_string(), path, asked, begun.elapsed())
}

fn judge_upstream(
    endpoint: &str,
    path: &str,
    asked: io::Result<u16>,
    elapsed: Duration,
) -> Finding {
    let topic = "upstream";
    match asked {
        Ok(status @ (404 | 500..)) => Finding::warn(
            topic,
            format!("{endpoint} answers {status} to {path}"),
            "so will the gateway",
            "deploy the application there, or correct `upstream`",
        ),
        Ok(status) => Finding::ok(
            topic,
            format!("{endpoint} answers {status} to {path} in {} ms", elapsed.as_millis()),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::fail(
            topic,
            format!("{endpoint} may not be connected to: {error}"),
            UNREACHED,
            "setsebool -P httpd_can_network_connect 1, or permissions of the socket",
        ),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Finding::fail(
            topic,
            format!("{endpoint}: {error}"),
            UNREACHED,
            "name the port of Tomcat's HTTP connector, neither AJP nor TLS",
        ),
        Err(error) => Finding::fail(
            topic,
            format!("{endpoint} is not reached: {error}"),
            UNREACHED,
            format!("start Tomcat, then: curl -v http://{endpoint}{path}"),
        ),
    }
}

fn ask(target: &Target, host: &str, path: &str, connect_timeout: Duration) -> io::Result<u16> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, connect_timeout)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            first_status(stream, host, path)
        }
        Target::Unix(file) => {
            let stream = UnixStream::connect(file)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            first_status(stream, host, path)
        }
    }
}

fn first_status(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<u16> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut start = [0; 16];
    stream.read_exact(&mut start)?;
    Ok(Head::parse(&String::from_utf8_lossy(&start))?.status)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn listeners_are_found_in_the_table_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n\
             1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        assert_eq!(listening(table, 8080), ["socket:[4711]"]);
        assert_eq!(listening(table, 80), [""; 0]);
    }

    #[test]
    fn each_refusal_of_a_port_has_its_cure() {
        let address = "127.0.0.1:443".parse().unwrap();
        let judge = |kind: io::ErrorKind, holder: Option<(u32, &str)>| {
            judge_port(address, &Err(kind.into()), holder.map(|(id, name)| (id, name.to_owned())))
        };
        let held = judge(io::ErrorKind::AddrInUse, Some((7, "nginx")));
        assert_eq!(held.verdict, Verdict::Fail);
        assert!(held.fact.contains("nginx (process 7)"));
        assert_eq!(judge(io::ErrorKind::AddrInUse, Some((7, "tlsplice"))).verdict, Verdict::Ok);
        assert!(judge(io::ErrorKind::AddrInUse, None).cure.unwrap().contains("sport = :443"));
        let refused = judge(io::ErrorKind::PermissionDenied, None);
        assert!(refused.cure.unwrap().contains("CAP_NET_BIND_SERVICE"));
        assert!(judge(io::ErrorKind::AddrNotAvailable, None).fact.contains("no address"));
    }

    #[test]
    fn each_answer_of_an_upstream_is_judged() {
        let judge = |asked| judge_upstream("t:8080", "/g/", asked, Duration::from_millis(3));
        assert_eq!(judge(Ok(302)).verdict, Verdict::Ok);
        assert_eq!(judge(Ok(404)).verdict, Verdict::Warn);
        assert_eq!(judge(Ok(503)).verdict, Verdict::Warn);
        let down = judge(Err(io::ErrorKind::ConnectionRefused.into()));
        assert_eq!(down.cure.as_deref(), Some("start Tomcat, then: curl -v http://t:8080/g/"));
        assert!(
            judge(Err(io::ErrorKind::PermissionDenied.into())).cure.unwrap().contains("setsebool")
        );
        assert!(judge(Err(io::ErrorKind::InvalidData.into())).cure.unwrap().contains("AJP"));
    }
}
