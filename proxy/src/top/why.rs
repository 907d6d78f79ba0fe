//! What makes a connection slow. Pure: from the numbers of one snapshot.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::telemetry::snapshot::{Activity, Connection};

/// A round trip from which on typing feels late.
const RTT_SLOW: Duration = Duration::from_millis(100);

/// Linux waits at least this long before it sends a segment again, when nothing tells it earlier.
const RETRANSMIT_WAIT: Duration = Duration::from_millis(200);

/// Fewer segments sent again say nothing yet.
const RETRANSMITS_MIN: u64 = 3;

/// One segment of so many sent again means a bad network.
const SEGMENTS_PER_RETRANSMIT: u64 = 50;

/// Payload of a full segment on Ethernet, in bytes. Connections with smaller ones are judged sooner.
const SEGMENT: u64 = 1448;

/// Bytes that wait in the gateway for longer were held up.
const FLUSH_SLOW: Duration = Duration::from_millis(5);

/// A response whose first byte takes longer is late.
const FIRST_BYTE_SLOW: Duration = Duration::from_millis(200);

/// Guacamole's client calls a tunnel unstable after a silence of this length.
const SILENCE: Duration = Duration::from_millis(1500);

/// A silence at least this often is no accident.
const SILENCE_EVERY_S: f64 = 60.0;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Culprit {
    /// What lies between gateway and client.
    Network,
    /// This gateway, or the machine it shares.
    Gateway,
    /// The upstream.
    Tomcat,
}

/// Why a connection is slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    /// Round trips to the client take long.
    RoundTrip(Duration),
    /// Segments to the client get lost: so many were sent again.
    Loss(u64),
    /// Bytes that had arrived waited so long for their way out.
    Flush(Duration),
    /// The first byte of the response took so long.
    FirstByte(Duration),
    /// So often the tunnel had nothing to say.
    Silence(u64),
}

impl Why {
    /// The greatest delay of a connection that is too long for its kind; None when none is.
    ///
    /// What does not fit into a slow network waits in the gateway, and the tunnel falls silent: then the network counts,
    /// not the flush latency and not the silences. The first byte of a tunnel was that of its upgrade, and does not
    /// count; silences of a tunnel do, when there is at least one per minute.
    #[must_use]
    pub fn of(connection: &Connection) -> Option<Self> {
        let network = network(connection);
        let unless_network = |found: Option<(Duration, Self)>| found.filter(|_| network.is_none());
        let flush = above(connection.flush_p99_us.map(Duration::from_micros), FLUSH_SLOW);
        let flush = unless_network(flush.map(|delay| (delay, Self::Flush(delay))));
        let silence = unless_network(silence(connection));
        let first_byte = connection.first_byte_ms.and_then(milliseconds);
        let first_byte = match connection.kind {
            Activity::Tunnel => None,
            Activity::Idle | Activity::Request => above(first_byte, FIRST_BYTE_SLOW),
        };
        let first_byte = first_byte.map(|delay| (delay, Self::FirstByte(delay)));
        let found = [network, flush, silence, first_byte].into_iter().flatten();
        found.max_by_key(|(delay, _)| *delay).map(|(_, why)| why)
    }

    /// Who is to blame for it.
    #[must_use]
    pub fn culprit(self) -> Culprit {
        match self {
            Self::RoundTrip(_) | Self::Loss(_) => Culprit::Network,
            Self::Flush(_) => Culprit::Gateway,
            Self::FirstByte(_) | Self::Silence(_) => Culprit::Tomcat,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RoundTrip(delay) => write!(f, "network: rtt {}", super::format::delay(delay)),
            Self::Loss(count) => write!(f, "network: {count} resent"),
            Self::Flush(delay) => write!(f, "gateway: flush {}", super::format::delay(delay)),
            Self::FirstByte(delay) => write!(f, "Tomcat: byte 1 {}", super::format::delay(delay)),
            Self::Silence(count) => {
                write!(f, "Tomcat: {count} x {} silent", super::format::delay(SILENCE))
            }
        }
    }
}

fn above(delay: Option<Duration>, slow: Duration) -> Option<Duration> {
    delay.filter(|delay| *delay >= slow)
}

/// None for what is no time.
fn milliseconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number / 1000.0).ok()
}

fn network(connection: &Connection) -> Option<(Duration, Why)> {
    let rtt = connection.rtt_us.map(Duration::from_micros).unwrap_or_default();
    let resent = connection.retransmits.unwrap_or_default();
    let segments = connection.bytes_out / SEGMENT;
    if resent >= RETRANSMITS_MIN && resent.saturating_mul(SEGMENTS_PER_RETRANSMIT) >= segments {
        return Some((rtt + RETRANSMIT_WAIT, Why::Loss(resent)));
    }
    above(Some(rtt), RTT_SLOW).map(|delay| (delay, Why::RoundTrip(delay)))
}

fn silence(connection: &Connection) -> Option<(Duration, Why)> {
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds, far below 2^52")]
    let often = connection.gaps_1_5s as f64 * SILENCE_EVERY_S >= connection.age_s;
    let silent = connection.kind == Activity::Tunnel && connection.gaps_1_5s > 0 && often;
    silent.then_some((SILENCE, Why::Silence(connection.gaps_1_5s)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::connection;
    use super::*;

    #[test]
    fn a_quick_connection_has_no_culprit() {
        assert_eq!(Why::of(&connection(1)), None);
        let unmeasured = Connection {
            first_byte_ms: None,
            flush_p99_us: None,
            rtt_us: None,
            retransmits: None,
            ..connection(1)
        };
        assert_eq!(Why::of(&unmeasured), None);
    }

    #[test]
    fn each_bound_is_the_first_slow_value() {
        type Set = fn(&mut Connection, u64);
        let cases: [(&str, Set, u64, Culprit); 3] = [
            ("rtt", |it, us| it.rtt_us = Some(us), 100_000, Culprit::Network),
            ("flush", |it, us| it.flush_p99_us = Some(us), 5_000, Culprit::Gateway),
            (
                "byte",
                |it, us| it.first_byte_ms = Some(us as f64 / 1000.0),
                200_000,
                Culprit::Tomcat,
            ),
        ];
        for (name, set, slow, culprit) in cases {
            let mut it = connection(1);
            set(&mut it, slow - 1);
            assert_eq!(Why::of(&it), None, "{name}");
            set(&mut it, slow);
            assert_eq!(Why::of(&it).map(Why::culprit), Some(culprit), "{name}");
        }
    }

    #[test]
    fn the_greatest_delay_is_the_reason() {
        let mut it = connection(1);
        (it.flush_p99_us, it.first_byte_ms) = (Some(300_000), Some(250.0));
        assert_eq!(Why::of(&it), Some(Why::Flush(Duration::from_millis(300))));
        it.first_byte_ms = Some(2_000.0);
        assert_eq!(Why::of(&it), Some(Why::FirstByte(Duration::from_secs(2))));
        it.rtt_us = Some(3_000_000);
        assert_eq!(Why::of(&it), Some(Why::RoundTrip(Duration::from_secs(3))));
    }

    #[test]
    fn what_waits_for_a_slow_network_is_not_the_gateways() {
        let mut it = connection(1);
        (it.flush_p99_us, it.rtt_us) = (Some(900_000), Some(150_000));
        assert_eq!(Why::of(&it).map(Why::culprit), Some(Culprit::Network));
    }

    #[test]
    fn losses_count_as_a_share_of_the_segments() {
        let mut it = connection(1);
        it.bytes_out = SEGMENT * 500;
        for (resent, why) in [(2, None), (9, None), (10, Some(Why::Loss(10)))] {
            it.retransmits = Some(resent);
            assert_eq!(Why::of(&it), why, "{resent} of 500");
        }
        (it.bytes_out, it.retransmits) = (0, Some(RETRANSMITS_MIN));
        assert_eq!(Why::of(&it), Some(Why::Loss(RETRANSMITS_MIN)));
    }

    #[test]
    fn a_tunnel_is_judged_by_its_silences_not_by_its_upgrade() {
        let mut it = connection(1);
        (it.kind, it.first_byte_ms, it.age_s) = (Activity::Tunnel, Some(5_000.0), 120.0);
        assert_eq!(Why::of(&it), None);
        it.gaps_1_5s = 1;
        assert_eq!(Why::of(&it), None, "one in two minutes");
        it.gaps_1_5s = 2;
        assert_eq!(Why::of(&it), Some(Why::Silence(2)));
        it.flush_p99_us = Some(242_000);
        assert_eq!(Why::of(&it), Some(Why::Silence(2)), "a shorter delay does not explain it");
        it.flush_p99_us = Some(1_600_000);
        assert_eq!(Why::of(&it).map(Why::culprit), Some(Culprit::Gateway));
        it.rtt_us = Some(150_000);
        assert_eq!(Why::of(&it).map(Why::culprit), Some(Culprit::Network));
        (it.flush_p99_us, it.rtt_us) = (None, None);
        it.kind = Activity::Request;
        it.first_byte_ms = None;
        assert_eq!(Why::of(&it), None, "no tunnel");
    }

    #[test]
    fn a_time_that_is_none_accuses_nobody() {
        for odd in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let it = Connection { first_byte_ms: Some(odd), ..connection(1) };
            assert_eq!(Why::of(&it), None, "{odd}");
        }
    }
}
