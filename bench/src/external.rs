//! Load by other hands: wrk and h2load, closed loop. What they report is counted, what the gateway used for it is
//! measured as with our own load.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tlsplice_fixtures::{Error, Result};

use crate::load::{Front, Group, Work};

/// A program that loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// wrk.
    Wrk,
    /// h2load, with HTTP/1.1.
    H2load,
}

/// What one run of it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    /// Requests answered.
    pub requests: u64,
    /// Median and 99th percentile of their latency, microseconds, where it tells them.
    pub latency: Option<(f64, f64)>,
}

/// For OpenSSL: the cipher that all gateways are measured with.
const OPENSSL: &str = "openssl_conf = all\n[all]\nssl_conf = tls\n[tls]\nsystem_default = one\n\
    [one]\nMinProtocol = TLSv1.3\nCiphersuites = TLS_AES_128_GCM_SHA256\nGroups = X25519\n";

impl Generator {
    /// Its Debian package.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::H2load => "nghttp2-client",
        }
    }

    /// Loads `address` as `group` says from `core`, for `window` in whole seconds. `directory` is for its configuration.
    ///
    /// # Errors
    /// When it cannot be run, or answers were not what they should be.
    pub fn run(
        self,
        group: &Group,
        address: SocketAddr,
        window: Duration,
        core: usize,
        directory: &Path,
    ) -> Result<Count> {
        let Work::Get { path } = &group.work else {
            return Err(Error::failed("wrk and h2load ask for small responses only"));
        };
        let scheme = if group.front == Front::Plain { "http" } else { "https" };
        let url = format!("{scheme}://localhost:{}{path}", address.port());
        let configuration = directory.join("openssl.cnf");
        std::fs::write(&configuration, OPENSSL)
            .map_err(Error::io(format!("cannot write {}", configuration.display())))?;
        let seconds = duration(window).as_secs();
        let connections = group.connections.to_string();
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &core.to_string()]).env("OPENSSL_CONF", configuration);
        match self {
            Self::Wrk => command.args(["wrk", "--latency", "-t1", "-c", &connections, "-d"]),
            Self::H2load => command.args(["h2load", "--h1", "-t1", "-c", &connections, "-D"]),
        };
        let output = command
            .args([&seconds.to_string(), &url])
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("cannot run {self:?}")))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = || Error::failed(format!("{self:?} said what is not understood:\n{text}"));
        if !output.status.success() {
            return Err(failed());
        }
        match self {
            Self::Wrk => wrk(&text),
            Self::H2load => h2load(&text),
        }
        .ok_or_else(failed)
    }
}

/// For how long they run where `window` is wanted: in whole seconds, as their options are.
#[must_use]
pub fn duration(window: Duration) -> Duration {
    Duration::from_secs_f64(window.as_secs_f64().ceil().max(1.0))
}

/// None when there were errors, too.
fn wrk(text: &str) -> Option<Count> {
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        return None;
    }
    let requests = text.lines().find_map(|line| line.split_once(" requests in "))?.0;
    let percentile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        microseconds(line.trim())
    };
    Some(Count {
        requests: requests.trim().parse().ok()?,
        latency: percentile("50%").zip(percentile("99%")),
    })
}

fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

/// None when there were errors, too.
fn h2load(text: &str) -> Option<Count> {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let of = |what: &str| -> Option<u64> {
        line.split(", ").find_map(|part| part.strip_suffix(what))?.trim().parse().ok()
    };
    (of(" failed")? == 0).then_some(())?;
    Some(Count { requests: of(" succeeded")?, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_wrk_are_read() {
        let text = "Running 1s test @ http://localhost:1/small\n  Latency Distribution\n     50%  1.50ms\n\
                    \x20    99%  820.00us\n  51234 requests in 1.10s, 60.00MB read\nRequests/sec:  46000.0\n";
        let expected = Count { requests: 51_234, latency: Some((1500.0, 820.0)) };
        assert_eq!(wrk(text), Some(expected));
        assert_eq!(
            wrk(&format!("{text}  Socket errors: connect 0, read 3, write 0, timeout 0")),
            None
        );
    }

    #[test]
    fn the_words_of_h2load_are_read() {
        let of = |failed| {
            let line = format!(
                "requests: 120 total, 130 started, 120 done, 118 succeeded, {failed} failed, 0 errored, 0 timeout"
            );
            h2load(&format!("starting benchmark...\n{line}\nstatus codes: 118 2xx\n"))
        };
        assert_eq!(of(0), Some(Count { requests: 118, latency: None }));
        assert_eq!(of(2), None);
    }
}
