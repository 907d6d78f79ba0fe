//! The gateway that runs with this configuration, seen as a browser sees it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::Finding;
use super::client::{Client, upgrade};
use crate::config::{App, Config, Host, Listener, Route, Service};

/// Looks at one listener: certificate, an answer for each route, and Guacamole's WebSocket.
pub(super) fn examine(config: &Config, listener: &Listener, stream: Option<&str>) -> Vec<Finding> {
    if listener.service != Service::Https {
        return Vec::new();
    }
    let address = reachable(listener.address);
    let mut findings = vec![presented(config, address)];
    // All at the same time: an upstream that hangs must not add up.
    let answers = thread::scope(|scope| {
        let ask = |route| scope.spawn(move || route_findings(config, address, route));
        let asked: Vec<_> = config.routes.iter().map(ask).collect();
        asked.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    findings.extend(answers);
    if let Some(target) = stream {
        findings.push(super::stream::examine(config, address, &server_name(config), target));
    }
    findings
}

/// An answer for one route, and its WebSocket.
fn route_findings(config: &Config, address: SocketAddr, route: &Route) -> Vec<Finding> {
    let name = match &route.host {
        Some(Host::Exact(name)) => name.clone(),
        Some(Host::Wildcard(parent)) => format!("doctor{parent}"),
        None => server_name(config),
    };
    let mut findings = vec![answer(route, request(address, &name, &route.path))];
    if route.app == App::Guacamole {
        findings.push(judge_websocket(&route.name, tunnel(address, &name, &route.path)));
    }
    findings
}

/// Whether what listens there speaks TLS and presents a certificate of the configuration.
pub(super) fn is_ours(config: &Config, listener: &Listener) -> bool {
    listener.service == Service::Https
        && Client::connect(reachable(listener.address), &server_name(config))
            .is_ok_and(|client| is_known(config, &client))
}

fn is_known(config: &Config, client: &Client) -> bool {
    let leaf = client.certificates().first();
    config.certificates.iter().any(|summary| {
        CertificateDer::from_pem_file(&summary.file).is_ok_and(|file| leaf == Some(&file))
    })
}

/// Where a client on this machine reaches an address that may mean all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A name that the gateway has a certificate for.
fn server_name(config: &Config) -> String {
    let mut names = config.certificates.iter().flat_map(|certificate| &certificate.names);
    let name = names.next().map_or("localhost", String::as_str);
    name.strip_prefix('*').map_or_else(|| name.to_owned(), |parent| format!("doctor{parent}"))
}

/// Whether the certificate is the one in the file.
fn presented(config: &Config, address: SocketAddr) -> Finding {
    let topic = "handshake";
    let client = match Client::connect(address, &server_name(config)) {
        Ok(client) => client,
        Err(error) => {
            let fact = format!("{address} completes no TLS handshake: {error}");
            return Finding::fail(topic, fact, "no browser gets in", "see the gateway's log");
        }
    };
    match is_known(config, &client) {
        true => Finding::ok(topic, format!("{address} presents the configured certificate")),
        false => Finding::warn(
            topic,
            format!("{address} presents another certificate than the files hold"),
            "the renewed certificate is not in use",
            "reload: kill -HUP of tlsplice",
        ),
    }
}

fn request(address: SocketAddr, host: &str, path: &str) -> io::Result<u16> {
    let mut client = Client::connect(address, host)?;
    client.send(
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    Ok(client.head()?.status)
}

fn answer(route: &Route, asked: io::Result<u16>) -> Finding {
    let name = &route.name;
    match asked {
        Ok(status @ (502 | 504)) => Finding::fail(
            "route",
            format!("{name} is answered with {status}"),
            "nobody reaches the application",
            "start the upstream; `reason` in the access log says what happened",
        ),
        Ok(status @ (403 | 404 | 500..)) => Finding::warn(
            "route",
            format!("{name} is answered with {status}"),
            "so are users",
            "see `allow` and `deny`, and the upstream's own log",
        ),
        Ok(status) => Finding::ok("route", format!("{name} is answered with {status}")),
        Err(error) => Finding::fail(
            "route",
            format!("{name} is not answered: {error}"),
            "nobody reaches the application",
            "see the gateway's log",
        ),
    }
}

/// Status and chosen subprotocol of an upgrade.
type Upgraded = (u16, Option<String>);

fn tunnel(address: SocketAddr, host: &str, path: &str) -> io::Result<Upgraded> {
    let mut client = Client::connect(address, host)?;
    client.send(upgrade(host, &format!("{path}websocket-tunnel")).as_bytes())?;
    let head = client.head()?;
    Ok((head.status, head.field("sec-websocket-protocol").map(str::to_owned)))
}

fn judge_websocket(name: &str, upgraded: io::Result<Upgraded>) -> Finding {
    let (topic, cost) = ("websocket", "Guacamole falls back to its slower HTTP tunnel, or hangs");
    match upgraded {
        Ok((101, Some(protocol))) if protocol == "guacamole" => {
            Finding::ok(topic, format!("{name}websocket-tunnel: 101, subprotocol guacamole"))
        }
        Ok((101, protocol)) => Finding::fail(
            topic,
            format!("{name}websocket-tunnel: 101, but subprotocol {protocol:?}"),
            "browsers close the tunnel at once",
            "look at what stands between the gateway and Tomcat",
        ),
        Ok((status @ (502 | 504), _)) => Finding::fail(
            topic,
            format!("{name}websocket-tunnel: {status}"),
            cost,
            "start the upstream; `reason` in the access log says what happened",
        ),
        Ok((status, _)) => Finding::warn(
            topic,
            format!("{name}websocket-tunnel: reached, and refused with {status}"),
            cost,
            "is Guacamole at this path? see `allowed_origins` and Tomcat's log",
        ),
        Err(error) => Finding::fail(
            topic,
            format!("{name}websocket-tunnel is not answered: {error}"),
            cost,
            "see the gateway's log",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn an_upgrade_is_good_only_with_its_subprotocol() {
        let judge = |status, protocol: Option<&str>| {
            judge_websocket("*/g/", Ok((status, protocol.map(str::to_owned)))).verdict
        };
        assert_eq!(judge(101, Some("guacamole")), Verdict::Ok);
        assert_eq!(judge(101, None), Verdict::Fail);
        assert_eq!(judge(404, None), Verdict::Warn);
        assert_eq!(judge(502, None), Verdict::Fail);
        assert_eq!(
            judge_websocket("x", Err(io::ErrorKind::TimedOut.into())).verdict,
            Verdict::Fail
        );
    }

    #[test]
    fn all_addresses_are_reached_over_loopback() {
        let reach = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reach("0.0.0.0:443"), "127.0.0.1:443");
        assert_eq!(reach("[::]:443"), "[::1]:443");
        assert_eq!(reach("192.0.2.1:443"), "192.0.2.1:443");
    }
}
