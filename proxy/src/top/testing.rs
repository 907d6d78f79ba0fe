//! A gateway to look at.

use std::net::{IpAddr, Ipv4Addr};

use crate::telemetry::snapshot::{
    Activity, Connection, Ebpf, Path, Snapshot, Tls, Totals, Upstream, Worker,
};

/// A connection with nothing slow about it.
pub(super) fn connection(id: u64) -> Connection {
    Connection {
        id,
        worker: 0,
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        port: 5000,
        route: Some("/guacamole/".to_owned()),
        upstream: Some("127.0.0.1:8080".to_owned()),
        kind: Activity::Request,
        age_s: 75.0,
        tls: Tls::Kernel,
        path: Path::Splice,
        requests: 4,
        bytes_in: 1_200,
        bytes_out: 3_400_000,
        first_byte_ms: Some(1.5),
        flush_p50_us: Some(30),
        flush_p99_us: Some(80),
        flush_max_us: Some(120),
        input_p50_us: Some(25),
        rtt_us: Some(900),
        retransmits: Some(0),
        gaps_1_5s: 0,
        gaps_15s: 0,
    }
}

/// A gateway with these connections.
pub(crate) fn snapshot(connections: Vec<Connection>) -> Snapshot {
    Snapshot {
        version: "0.1.0".to_owned(),
        uptime_s: 7_620.0,
        draining: false,
        workers: vec![
            Worker { index: 0, connections: 2, accepted: 120, requests: 999 },
            Worker { index: 1, connections: 1, accepted: 80, requests: 801 },
        ],
        upstreams: vec![Upstream {
            route_upstream: "tomcat".to_owned(),
            endpoint: "127.0.0.1:8080".to_owned(),
            healthy: true,
            idle: 3,
            in_use: 2,
        }],
        totals: Totals {
            connections: 3,
            tunnels: 1,
            requests: 1_800,
            bytes_in: 10_000,
            bytes_out: 5_000_000,
            spliced: 4_000_000,
            copied: 1_010_000,
            kernel_tls: 150,
            user_tls: 50,
            no_tls: 0,
        },
        ebpf: Ebpf { active: true, reason: None },
        connections,
    }
}
