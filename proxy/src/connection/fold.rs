//! Guacamole's HTTP tunnel makes two requests per second and tab; told one by one they would drown the log.

use std::rc::Rc;

use super::OpenFold;
use crate::generation::Generation;
use crate::pool::Network;
use crate::telemetry::{Gauge, Kind, Record};

/// Requests told of in one line.
const REQUESTS_MAX: u64 = 1000;

/// Successful tunnel requests of one connection, added up.
pub(super) struct Fold(Record);

/// Whether a (redacted) target reads from or writes to an HTTP tunnel.
pub(super) fn is_tunnel_request(target: &str) -> bool {
    target
        .split_once("/tunnel?")
        .is_some_and(|(_, query)| query.starts_with("read:") || query.starts_with("write:"))
}

impl Fold {
    /// Adds `record` to the fold of its connection.
    pub(super) fn add<N: Network>(
        open: &mut OpenFold<N>,
        generation: &Rc<Generation<N>>,
        record: Record,
        gauge: Option<&Gauge>,
    ) {
        match open {
            Some((_, Self(sum))) => {
                sum.requests += 1;
                sum.bytes_in += record.bytes_in;
                sum.bytes_out += record.bytes_out;
                sum.total += record.total;
            }
            None => {
                let sum = Record { kind: Kind::Folded, ..record };
                *open = Some((Rc::clone(generation), Self(sum)));
            }
        }
        if open.as_ref().is_some_and(|(_, Self(sum))| sum.requests >= REQUESTS_MAX)
            && let Some((generation, fold)) = open.take()
        {
            super::write_record(&generation, &mut fold.into_record(), gauge);
        }
    }

    /// The line.
    pub(super) fn into_record(self) -> Record {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::is_tunnel_request;

    #[test]
    fn only_reads_and_writes_are_folded() {
        assert!(is_tunnel_request("/guacamole/tunnel?read:[redacted]:4"));
        assert!(is_tunnel_request("/tunnel?write:[redacted]"));
        assert!(!is_tunnel_request("/guacamole/tunnel?connect"));
        assert!(!is_tunnel_request("/guacamole/websocket-tunnel?token=x"));
    }
}
