//! The gateway at one moment, as `/connections` of the admin endpoint tells it and `tlsplice top` reads it.
//!
//! It names clients, routes and upstreams; never a target, a query or a token.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything at one moment. Numbers of different parts may be a few milliseconds apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The gateway's version.
    pub version: String,
    /// Seconds since the gateway started.
    pub uptime_s: f64,
    /// No new connection is accepted: the gateway ends when those below have.
    pub draining: bool,
    /// One for each core in use.
    pub workers: Vec<Worker>,
    /// Every endpoint of every upstream.
    pub upstreams: Vec<Upstream>,
    /// Sums over all workers.
    pub totals: Totals,
    /// Whether the kernel measures.
    pub ebpf: Ebpf,
    /// Clients' connections that are open, in no order.
    pub connections: Vec<Connection>,
}

/// One core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// Clients' connections open now.
    pub connections: u64,
    /// Clients' connections accepted since the start.
    pub accepted: u64,
    /// Requests since the start, tunnels' included.
    pub requests: u64,
}

/// One endpoint, with the pools of all workers summed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The upstream's name in the configuration.
    pub route_upstream: String,
    /// Its address and port.
    pub endpoint: String,
    /// It is asked for connections.
    pub healthy: bool,
    /// Connections that wait for a request.
    pub idle: u64,
    /// Connections that carry one, tunnels included.
    pub in_use: u64,
}

/// Sums over all workers: what is open now, and what has been since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Clients' connections open now.
    pub connections: u64,
    /// Of these, the ones that have become tunnels.
    pub tunnels: u64,
    /// Requests since the start, tunnels' included.
    pub requests: u64,
    /// Bytes of payload from clients since the start.
    pub bytes_in: u64,
    /// Bytes of payload to clients since the start.
    pub bytes_out: u64,
    /// Bytes of payload that never entered this process.
    pub spliced: u64,
    /// Bytes of payload that were copied through it.
    pub copied: u64,
    /// Connections with TLS in the kernel since the start.
    pub kernel_tls: u64,
    /// Connections with TLS in this process since the start.
    pub user_tls: u64,
    /// Connections without TLS since the start.
    pub no_tls: u64,
}

/// Whether the kernel measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ebpf {
    /// The programs are attached.
    pub active: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// One client's connection. What the kernel measures is none where it does not, and until it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, unique until the gateway ends.
    pub id: u64,
    /// The index of the worker that has it.
    pub worker: usize,
    /// The client's address, as upstreams are told it.
    pub client: IpAddr,
    /// The client's port; 0 when the proxy before this gateway did not say it.
    pub port: u16,
    /// The prefix of the route that its last request took.
    pub route: Option<String>,
    /// The endpoint that its last request went to.
    pub upstream: Option<String>,
    /// What it does.
    pub kind: Activity,
    /// Seconds since it was accepted.
    pub age_s: f64,
    /// Who encrypts.
    pub tls: Tls,
    /// How bodies and tunnels move.
    pub path: Path,
    /// Requests so far, the current one included.
    pub requests: u64,
    /// Bytes of payload from the client so far.
    pub bytes_in: u64,
    /// Bytes of payload to the client so far.
    pub bytes_out: u64,
    /// From the end of the last request's head until the first byte of its response came from the upstream, in ms.
    pub first_byte_ms: Option<f64>,
    /// From a byte's arrival from the upstream until it left for the client: the median, in µs.
    pub flush_p50_us: Option<u64>,
    /// The 99th percentile of the same, in µs.
    pub flush_p99_us: Option<u64>,
    /// The longest of the same, in µs.
    pub flush_max_us: Option<u64>,
    /// From a byte's arrival from the client until it left for the upstream: the median, in µs.
    pub input_p50_us: Option<u64>,
    /// The smoothed round-trip time between gateway and client, in µs.
    pub rtt_us: Option<u64>,
    /// Segments that were sent to the client again.
    pub retransmits: Option<u64>,
    /// Times that a tunnel said nothing for 1.5 s, at which Guacamole calls the connection unstable.
    pub gaps_1_5s: u64,
    /// Times that it said nothing for 15 s, at which Guacamole gives up.
    pub gaps_15s: u64,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// It shakes hands, or waits for a request.
    Idle,
    /// It has a request under way.
    Request,
    /// It has become a tunnel.
    Tunnel,
}

/// Who encrypts a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// The kernel, at least in one direction.
    Kernel,
    /// This process.
    User,
    /// Nobody.
    None,
}

/// How the payload of a connection moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Inside the kernel.
    Splice,
    /// Through this process.
    Copy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_reads_back_and_its_words_are_lower_case() {
        let text = r#"{"id":17,"worker":0,"client":"192.0.2.1","port":5000,"route":"/guacamole/","upstream":null,
            "kind":"tunnel","age_s":3.25,"tls":"kernel","path":"splice","requests":4,"bytes_in":1,"bytes_out":2,
            "first_byte_ms":1.5,"flush_p50_us":null,"flush_p99_us":80,"flush_max_us":null,"input_p50_us":null,
            "rtt_us":null,"retransmits":null,"gaps_1_5s":0,"gaps_15s":0}"#;
        let connection: Connection = serde_json::from_str(text).unwrap();
        assert_eq!(
            (connection.kind, connection.tls, connection.path),
            (Activity::Tunnel, Tls::Kernel, Path::Splice)
        );
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&connection).unwrap(), value);
    }
}
