//! The admin endpoint: whether a gateway answers there, or what stands in its way.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::Finding;
use crate::config::{Admin, FlushLatency};
use crate::telemetry::snapshot::Snapshot;
use crate::top::client::{Error, Source, fetch};

const TOPIC: &str = "admin";

/// What it costs when the endpoint cannot be had.
const NO_START: &str = "the gateway does not start";

/// Looks at each place that `[admin]` names. `wanted` is whether the gateway was told to measure.
pub(super) fn examine(admin: &Admin, wanted: FlushLatency) -> Vec<Finding> {
    let socket = admin.socket.iter().map(|path| {
        let is_socket = fs::symlink_metadata(path).map(|found| found.file_type().is_socket());
        match is_socket {
            Ok(false) => no_socket(path),
            Ok(true) | Err(_) => judge(fetch(&Source::Socket(path.clone())), wanted),
        }
    });
    let address = admin.address.map(|address| match fetch(&Source::Address(address)) {
        Err(Error::Refused(_)) => free(address),
        answer => judge(answer, wanted),
    });
    socket.chain(address).collect()
}

fn no_socket(path: &Path) -> Finding {
    let fact = format!("{} exists and is no socket", path.display());
    Finding::fail(TOPIC, fact, NO_START, "remove it, or change `socket`")
}

/// Whether an address where nobody answers can be bound.
fn free(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(TOPIC, format!("{address} is free, and nobody answers there yet")),
        Err(error) => {
            let fact = format!("{address} cannot be bound: {error}");
            Finding::fail(TOPIC, fact, NO_START, "change `address`")
        }
    }
}

fn judge(answer: Result<Snapshot, Error>, wanted: FlushLatency) -> Finding {
    match answer {
        Ok(snapshot) => answered(&snapshot, wanted),
        Err(Error::Missing(source)) => {
            Finding::ok(TOPIC, format!("{source} is free, and nobody answers there yet"))
        }
        Err(Error::Refused(source)) => {
            Finding::ok(TOPIC, format!("{source} was left behind, and is replaced at the start"))
        }
        Err(error @ Error::Forbidden(_)) => {
            let cost = "`tlsplice top` and metrics cannot be had by this user";
            Finding::warn(TOPIC, error.to_string(), cost, "run this as the user of the gateway")
        }
        Err(error) => {
            let cure = "see who holds it (ss -lxtnp), and stop that or change `[admin]`";
            Finding::fail(TOPIC, error.to_string(), "metrics cannot be had", cure)
        }
    }
}

fn answered(snapshot: &Snapshot, wanted: FlushLatency) -> Finding {
    let Snapshot { version, totals, ebpf, .. } = snapshot;
    let fact = format!("tlsplice {version} answers, with {} connections", totals.connections);
    match (&ebpf.reason, wanted) {
        (None, _) => Finding::ok(TOPIC, format!("{fact}, measured by the kernel")),
        (Some(_), FlushLatency::Off) => Finding::ok(TOPIC, fact),
        (Some(reason), FlushLatency::Auto) => Finding::warn(
            TOPIC,
            format!("{fact}, which are not measured: {reason}"),
            "`tlsplice top` does not tell network, gateway and Tomcat apart",
            "see the line eBPF, and restart the gateway",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::top::testing::snapshot;

    #[test]
    fn what_answers_is_judged() {
        let source = || Source::Socket("/run/admin.sock".into());
        let verdict = |error| judge(Err(error), FlushLatency::Auto).verdict;
        assert_eq!(verdict(Error::Missing(source())), Verdict::Ok);
        assert_eq!(verdict(Error::Refused(source())), Verdict::Ok);
        assert_eq!(verdict(Error::Forbidden(source())), Verdict::Warn);
        assert_eq!(verdict(Error::Foreign(source(), "status 404".into())), Verdict::Fail);
        let mut snapshot = snapshot(Vec::new());
        snapshot.ebpf.reason = None;
        assert_eq!(answered(&snapshot, FlushLatency::Auto).verdict, Verdict::Ok);
        snapshot.ebpf.reason = Some("no CAP_BPF".into());
        let found = answered(&snapshot, FlushLatency::Auto);
        assert!(found.verdict == Verdict::Warn && found.fact.ends_with("measured: no CAP_BPF"));
        assert_eq!(answered(&snapshot, FlushLatency::Off).verdict, Verdict::Ok);
    }
}
