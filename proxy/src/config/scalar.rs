//! Text to values: durations, sizes, networks, names, paths, URLs. Pure; each function says what is
//! wrong with one value and leaves where it stands to the caller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::model::{EndpointAddr, Host};
use super::report::{Fault, quoted};

/// Longest path of a unix socket in bytes: `sun_path` is 108 with its final NUL, unix(7).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Longest host name in bytes (RFC 1035 §2.3.4, without the root's dot).
const HOST_BYTES_MAX: usize = 253;

/// Longest label of a host name in bytes (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// `250ms`, `3s`, `5m`, `1h` within `bounds`.
pub(super) fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let expected =
        format!("{} to {}", show_duration(*bounds.start()), show_duration(*bounds.end()));
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let (Some(millis_per_unit), false) = (millis_per_unit, number.is_empty()) else {
        let fault = Fault::new(format!("{} is not a duration", quoted(text)), expected);
        return Err(
            fault.hint("write a whole number and a unit: \"250ms\", \"3s\", \"5m\", \"1h\"")
        );
    };
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis_per_unit));
    match value.map(Duration::from_millis) {
        Some(value) if value < *bounds.start() => {
            Err(Fault::new(format!("{} is too short", quoted(text)), expected))
        }
        Some(value) if value <= *bounds.end() => Ok(value),
        _ => Err(Fault::new(format!("{} is too long", quoted(text)), expected)),
    }
}

/// The shortest spelling that [`duration`] reads back as `value` (to the millisecond).
pub(super) fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// `512B`, `32KiB`, `4MiB`, `1GiB`, or a bare number of bytes. [`within`] has the bounds.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let (Some(shift), false) = (shift, number.is_empty()) else {
        return Err(Fault::new(format!("{} is not a size", quoted(text)), "").hint(
            "write a whole number of bytes, or text with a binary unit: \"32KiB\", \"4MiB\", \
             \"1GiB\"",
        ));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| Fault::new(format!("{} does not fit 64 bits", quoted(text)), ""))
}

/// Checks a number against its bounds.
pub(super) fn within(value: i128, bounds: &RangeInclusive<u64>) -> Result<u64, Fault> {
    let expected = || format!("{} to {}", bounds.start(), bounds.end());
    match u64::try_from(value) {
        Ok(value) if bounds.contains(&value) => Ok(value),
        Ok(value) if value > *bounds.end() => {
            Err(Fault::new(format!("{value} is above the maximum of {}", bounds.end()), expected()))
        }
        _ => Err(Fault::new(
            format!("{value} is below the minimum of {}", bounds.start()),
            expected(),
        )),
    }
}

/// `192.0.2.0/24`, `2001:db8::/32`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    let expected = "an address or a network such as 192.0.2.0/24 or 2001:db8::/32";
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network = text
        .parse::<IpNet>()
        .map_err(|_| Fault::new(format!("{} is not a network", quoted(text)), expected))?;
    if network.trunc() != network {
        let fault = Fault::new(format!("{} has bits set after its prefix", quoted(text)), expected);
        return Err(fault.hint(format!("the network is written {}", network.trunc())));
    }
    match network {
        // Clients are compared as IPv4 when they are, so a mapped network would never match.
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.network().to_ipv4_mapped().is_some() => {
            Err(Fault::new(format!("{} is an IPv4 network inside IPv6", quoted(text)), expected)
                .hint("write it as IPv4: such clients are seen with their IPv4 address"))
        }
        network => Ok(network),
    }
}

/// `0.0.0.0:443` or `[::]:443`.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        let fault = Fault::new(
            format!("{} is not an address with a port", quoted(text)),
            "such as 0.0.0.0:443 or [::]:443",
        );
        if let Ok(address) = text.parse::<IpAddr>() {
            fault.hint(format!("add the port: \"{}\"", SocketAddr::new(address, 443)))
        } else if let Some(port) = text.strip_prefix(':').or(text.strip_prefix("*:")) {
            fault.hint(format!("for every address: [\"0.0.0.0:{port}\", \"[::]:{port}\"]"))
        } else {
            fault.hint("names are not looked up here: write the address")
        }
    })
}

/// A DNS name in lower case (RFC 1123 §2.1; `_` is let through, container networks use it). An IPv4
/// address is no name.
pub(super) fn dns_name(text: &str) -> Result<String, Fault> {
    let fault = |why: &str| Fault::new(format!("{} is not a host name: {why}", quoted(text)), "");
    let name = text.to_ascii_lowercase();
    if !name.is_ascii() {
        return Err(fault("it has characters outside ASCII")
            .hint("write an international name in its `xn--` form"));
    }
    if name.is_empty() || name.len() > HOST_BYTES_MAX {
        return Err(fault("it must have 1 to 253 bytes"));
    }
    if name.contains("://") || name.contains('/') {
        return Err(fault("it must have no scheme and no path"));
    }
    if name.contains(':') {
        return Err(fault("it must have no port"));
    }
    for label in name.split('.') {
        let bytes = label.as_bytes();
        if bytes.is_empty() || bytes.len() > LABEL_BYTES_MAX {
            return Err(fault("each label must have 1 to 63 bytes"));
        }
        let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
        if !bytes.iter().all(plain) || bytes.starts_with(b"-") || bytes.ends_with(b"-") {
            return Err(fault("labels are letters, digits and inner hyphens"));
        }
    }
    // A last label of digits is an address in every URL parser (WHATWG URL "ends in a number").
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(fault("it ends in a number, as an address does"));
    }
    Ok(name)
}

/// What a certificate is chosen by: a name, or `*.` before a name.
pub(super) fn server_name(text: &str) -> Result<Host, Fault> {
    match text.strip_prefix("*.") {
        Some(parent) => Ok(Host::Wildcard(format!(".{}", dns_name(parent)?))),
        None if text.contains('*') => Err(Fault::new(
            format!("{} has `*` where it cannot stand", quoted(text)),
            "`*.` before a name, for one label",
        )),
        None => dns_name(text).map(Host::Exact),
    }
}

/// What a route matches the Host field with: as [`server_name`], or an address.
pub(super) fn route_host(text: &str) -> Result<Host, Fault> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Exact(address.to_string()));
    }
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bracketed.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
        return Ok(Host::Exact(format!("[{address}]")));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Fault::new(format!("{} lacks its brackets", quoted(text)), "")
            .hint(format!("write \"[{text}]\", as the Host field does")));
    }
    server_name(text).map_err(|fault| match text {
        "*" => fault.hint("leave `host` out to match any host"),
        _ => fault,
    })
}

/// A path prefix in canonical form: begins and ends with `/`.
///
/// What Tomcat and the gateway could read differently (`..`, `;`, `%`, `//`, `\`) is refused, so a
/// prefix means the same to both.
pub(super) fn path_prefix(text: &str) -> Result<String, Fault> {
    let fault =
        |why: &str| Fault::new(format!("{} {why}", quoted(text)), "a path such as /guacamole/");
    if !text.starts_with('/') {
        return Err(
            fault("does not begin with `/`").hint(format!("write {}", quoted(&format!("/{text}"))))
        );
    }
    if text.len() > 1024 {
        return Err(fault("is longer than 1024 bytes"));
    }
    if text.contains('?') || text.contains('#') {
        return Err(fault("has a query or a fragment, and routes match paths only"));
    }
    if text.contains("//") {
        return Err(fault("has an empty segment (`//`)"));
    }
    if let Some(found) = text.chars().find(|c| matches!(c, ';' | '%' | '\\' | '*')) {
        return Err(fault(&format!("contains `{found}`")));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(fault("has a space, a control character or a byte outside ASCII"));
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(fault("has a segment `.` or `..`"));
    }
    Ok(if text.ends_with('/') { text.to_owned() } else { format!("{text}/") })
}

/// Whether a value of `upstream` is an address rather than the name of an `[[upstream]]`.
pub(super) fn is_url(text: &str) -> bool {
    text.contains("://") || text.starts_with("unix:") || text.contains('/')
}

/// `http://host:port`, `http://host:port/path/` or `unix:/path`. The path, where there is one,
/// comes back in canonical form.
pub(super) fn upstream_url(text: &str) -> Result<(EndpointAddr, Option<String>), Fault> {
    let expected = "http://host:port or unix:/path/to/socket";
    let fault = |why: &str| Fault::new(format!("{} {why}", quoted(text)), expected);
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.starts_with("//") || path.contains('\0') {
            return Err(fault("is not an absolute path to a socket"));
        }
        if path.len() > UNIX_PATH_BYTES_MAX {
            return Err(fault(&format!("is longer than {UNIX_PATH_BYTES_MAX} bytes")));
        }
        return Ok((EndpointAddr::Unix(PathBuf::from(path)), None));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(fault("is not a URL"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        "ws" => {
            return Err(fault("has scheme ws").hint("write http: a route carries WebSockets too"));
        }
        "https" | "wss" => {
            return Err(fault("asks for TLS to the upstream, which is not supported"));
        }
        _ => return Err(fault("has an unknown scheme")),
    }
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(fault("has a user name, which would go nowhere"));
    }
    let path = if path.is_empty() { None } else { Some(path_prefix(path)?) };
    Ok((endpoint(authority, &fault)?, path))
}

/// `host`, `host:port`, `[v6]:port`; port 80 when there is none, as http has it.
fn endpoint(authority: &str, fault: &dyn Fn(&str) -> Fault) -> Result<EndpointAddr, Fault> {
    const HTTP_PORT: u16 = 80;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => HTTP_PORT,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
            _ => return Err(fault("has a port that is not 1 to 65535")),
        },
    };
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        let address = address.ok_or_else(|| fault("has a bad IPv6 address"))?;
        return Ok(EndpointAddr::Socket(SocketAddr::new(IpAddr::V6(address), port)));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(EndpointAddr::Socket(SocketAddr::new(IpAddr::V4(address), port)));
    }
    if host.contains(':') {
        return Err(fault("has an IPv6 address without brackets"));
    }
    Ok(EndpointAddr::Name { host: dns_name(host)?, port })
}

/// How an endpoint is written in canonical form.
pub(super) fn show_endpoint(endpoint: &EndpointAddr) -> String {
    match endpoint {
        EndpointAddr::Socket(address) => format!("http://{address}"),
        EndpointAddr::Name { host, port } => format!("http://{host}:{port}"),
        EndpointAddr::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// An origin as a browser writes it (RFC 6454 §6.2): lower case, the scheme's own port left out.
pub(super) fn origin(text: &str) -> Result<String, Fault> {
    let expected = "such as https://desk.example.org";
    let fault = |why: &str| Fault::new(format!("{} {why}", quoted(text)), expected);
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = match lower.split_once("://") {
        Some((scheme @ ("http" | "https"), authority)) => (scheme, authority),
        _ => return Err(fault("does not begin with https:// or http://")),
    };
    if authority.contains(['/', '?', '#']) {
        return Err(fault("has a path, and an origin ends with the host or port")
            .hint("leave out everything from the `/` on"));
    }
    let default_port = if scheme == "https" { 443 } else { 80 };
    let port_given = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let (host, port) = match endpoint(authority, &fault)? {
        EndpointAddr::Socket(SocketAddr::V4(address)) => (address.ip().to_string(), address.port()),
        EndpointAddr::Socket(SocketAddr::V6(address)) => {
            (format!("[{}]", address.ip()), address.port())
        }
        EndpointAddr::Name { host, port } => (host, port),
        EndpointAddr::Unix(_) => return Err(fault("is not an origin")),
    };
    if port_given && port != default_port {
        Ok(format!("{scheme}://{host}:{port}"))
    } else {
        Ok(format!("{scheme}://{host}"))
    }
}

/// The value of a Strict-Transport-Security field (RFC 6797 §6.1): one max-age, known directives.
pub(super) fn hsts(text: &str) -> Result<String, Fault> {
    let mut max_ages = 0;
    let mut known = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    for directive in text.split(';').map(str::trim) {
        let (name, value) = match directive.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
            None => (directive, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("max-age", Some(value)) => {
                known &= !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                max_ages += 1;
            }
            ("includesubdomains" | "preload", None) => {}
            _ => known = false,
        }
    }
    if known && max_ages == 1 {
        return Ok(text.to_owned());
    }
    Err(Fault::new(
        format!("{} is not a Strict-Transport-Security value", quoted(text)),
        "such as \"max-age=31536000; includeSubDomains\"",
    ))
}

/// Name of an `[[upstream]]`.
pub(super) fn upstream_name(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Fault::new(
        format!("{} is not a name", quoted(text)),
        "1 to 64 letters, digits, `-`, `_`, `.`",
    ))
}
