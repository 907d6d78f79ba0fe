//! One line of the access log.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::Reading;
use crate::config::LogFormat;
use crate::error::Fault;
use crate::relay::UnstableRisk;

/// What the line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One request and its response.
    Request,
    /// A WebSocket, from its upgrade to its end.
    Tunnel,
    /// Several requests of Guacamole's HTTP tunnel on one connection, which comes with two per second.
    Folded,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should.
    Complete,
    /// The gateway answered for the upstream.
    Refused,
    /// Cut off after the response had begun.
    Aborted,
    /// A tunnel ended for lack of traffic.
    Idle,
    /// A tunnel ended because the gateway was stopped.
    Drained,
    /// A tunnel ended because a TLS key had protected as many records as it may.
    KeyWorn,
}

/// Where the record layer of the connection runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsPath {
    /// In the kernel.
    Kernel,
    /// In this process.
    User,
    /// There is none.
    None,
}

/// Why the record layer did not run in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UserReason {
    /// `offload = "never"`.
    Configured,
    /// This kernel cannot; the start-up report says why.
    NoKernelTls,
    /// This kernel lacks the cipher that was negotiated.
    Cipher,
    /// The kernel refused this connection, or more than the handshake had been received.
    Refused,
}

impl UserReason {
    /// Labels in the order of the declaration, as in the log.
    pub const LABELS: [&str; 4] = ["configured", "no_kernel_tls", "cipher", "refused"];
}

/// How payload was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    /// Through buffers of this process.
    Copy,
    /// At least in part from socket to socket inside the kernel.
    Splice,
}

/// Why payload was copied only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyReason {
    /// `splice = "never"`.
    Configured,
    /// The record layer of this process had to see it.
    UserTls,
    /// No pipe was to be had: too many are in use, or the system has none left.
    NoPipe,
    /// The body of the response ends with its connection: how much of it comes next is not known.
    UnknownLength,
    /// It came in small pieces, for which copying is cheaper.
    NotBulk,
}

impl CopyReason {
    /// Labels in the order of the declaration, as in the log.
    pub const LABELS: [&str; 5] =
        ["configured", "user_tls", "no_pipe", "unknown_length", "not_bulk"];
}

/// Everything a line tells. Names and units are those of the JSON format.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When the request began, in UTC.
    pub time: Timestamp,
    /// What the line is about.
    pub kind: Kind,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub port: u16,
    /// The method; empty when the head was not understood.
    pub method: String,
    /// The target, without secrets.
    pub target: String,
    /// Host as the client named it.
    pub host: String,
    /// The route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The route's place in the configuration. Known without a log, too: requests are counted by it.
    #[serde(skip)]
    pub route_index: Option<usize>,
    /// The endpoint that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Status sent to the client; 0 when none was.
    pub status: u16,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Number of requests told of; more than 1 in folded lines only.
    pub requests: u64,
    /// Until the last byte was sent.
    #[serde(rename = "total_ms", serialize_with = "milliseconds")]
    pub total: Duration,
    /// Until an upstream connection was there.
    #[serde(rename = "connect_ms", serialize_with = "optional_milliseconds")]
    pub connect: Option<Duration>,
    /// Until the first byte of the response came from the upstream.
    #[serde(rename = "first_byte_ms", serialize_with = "optional_milliseconds")]
    pub first_byte: Option<Duration>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whose fault it was that it did not end well.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "fault")]
    pub fault: Option<Fault>,
    /// What went wrong, with everything that the client is not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the record layer runs.
    pub tls: TlsPath,
    /// Why not in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_reason: Option<UserReason>,
    /// How payload was moved.
    pub path: DataPath,
    /// Why all of it was copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_reason: Option<CopyReason>,
    /// User agent, for the combined format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Referrer, for the combined format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referer: Option<String>,
    /// Silences towards the client of a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unstable_risk: Option<UnstableRisk>,
    /// What the kernel has measured of the connection from its beginning on.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What the kernel has measured of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Median time that bytes of the upstream waited in the gateway.
    #[serde(rename = "flush_p50_ms", serialize_with = "optional_milliseconds")]
    pub flush_p50: Option<Duration>,
    /// What 99 of 100 waited at most.
    #[serde(rename = "flush_p99_ms", serialize_with = "optional_milliseconds")]
    pub flush_p99: Option<Duration>,
    /// The longest wait.
    #[serde(rename = "flush_max_ms", serialize_with = "optional_milliseconds")]
    pub flush_max: Option<Duration>,
    /// Waits counted.
    pub flush_count: u64,
    /// Median time that bytes of the client waited in the gateway.
    #[serde(rename = "input_p50_ms", serialize_with = "optional_milliseconds")]
    pub input_p50: Option<Duration>,
    /// Smoothed round-trip time between gateway and client.
    #[serde(rename = "rtt_ms", serialize_with = "optional_milliseconds")]
    pub rtt: Option<Duration>,
    /// Segments sent to the client again.
    pub retransmits: u64,
}

impl From<Reading> for Measured {
    fn from(reading: Reading) -> Self {
        let Reading { down, up, srtt, retransmits } = reading;
        Self {
            flush_p50: down.p50(),
            flush_p99: down.p99(),
            flush_max: (down.count > 0).then_some(down.max),
            flush_count: down.count,
            input_p50: up.p50(),
            rtt: srtt,
            retransmits,
        }
    }
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are what the clock gives; finer digits would be noise.
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}

fn optional_milliseconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => milliseconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

fn fault<S: Serializer>(fault: &Option<Fault>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(fault.map_or("", Fault::label))
}

impl Record {
    /// The line with its line end.
    #[must_use]
    pub fn to_line(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Json => match serde_json::to_string(self) {
                Ok(mut line) => {
                    line.push('\n');
                    line
                }
                Err(error) => format!("{{\"error\":\"{error}\"}}\n"),
            },
            LogFormat::Combined => self.to_combined(),
        }
    }

    /// The combined log format of Apache and nginx, with our figures behind it.
    fn to_combined(&self) -> String {
        let time = self.time.strftime("%d/%b/%Y:%H:%M:%S +0000");
        let text = |value: &Option<String>| escape(value.as_deref().unwrap_or("-"));
        let seconds = |value: Option<Duration>| match value {
            Some(duration) => format!("{:.3}", duration.as_secs_f64()),
            None => "-".to_owned(),
        };
        format!(
            "{} - - [{time}] \"{} {} HTTP/1.1\" {} {} \"{}\" \"{}\" {} {} {} {:?} {} {}\n",
            self.client,
            escape(&self.method),
            escape(&self.target),
            self.status,
            self.bytes_out,
            text(&self.referer),
            text(&self.agent),
            seconds(Some(self.total)),
            seconds(self.connect),
            seconds(self.first_byte),
            self.outcome,
            self.fault.map_or("-", Fault::label),
            self.bytes_in,
        )
    }
}

/// Keeps a quoted value on its line and in its quotes.
fn escape(value: &str) -> String {
    value
        .chars()
        .flat_map(|character| match character {
            '"' | '\\' => vec!['\\', character],
            _ if character.is_control() => character.escape_default().collect(),
            _ => vec![character],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            time: "2026-03-04T05:06:07Z".parse().unwrap(),
            kind: Kind::Request,
            client: "192.0.2.1".parse().unwrap(),
            port: 5,
            method: "GET".into(),
            target: "/a\"\n".into(),
            host: "h".into(),
            route: Some("/".into()),
            route_index: None,
            upstream: None,
            status: 502,
            bytes_in: 1,
            bytes_out: 2,
            requests: 1,
            total: Duration::from_micros(1500),
            connect: None,
            first_byte: None,
            outcome: Outcome::Refused,
            fault: Some(Fault::Upstream),
            reason: Some("refused".into()),
            tls: TlsPath::User,
            tls_reason: Some(UserReason::Configured),
            path: DataPath::Copy,
            path_reason: Some(CopyReason::UserTls),
            agent: None,
            referer: None,
            unstable_risk: None,
            measured: None,
        }
    }

    #[test]
    fn labels_are_those_of_the_log() {
        let reasons = [
            UserReason::Configured,
            UserReason::NoKernelTls,
            UserReason::Cipher,
            UserReason::Refused,
        ];
        for reason in reasons {
            let label = UserReason::LABELS[reason as usize];
            assert_eq!(serde_json::to_value(reason).unwrap(), label);
        }
        use CopyReason::{Configured, NoPipe, NotBulk, UnknownLength, UserTls};
        for reason in [Configured, UserTls, NoPipe, UnknownLength, NotBulk] {
            let label = CopyReason::LABELS[reason as usize];
            assert_eq!(serde_json::to_value(reason).unwrap(), label);
        }
    }

    #[test]
    fn json_is_one_object_on_one_line() {
        let line = record().to_line(LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["fault"], "upstream");
        assert_eq!(value["total_ms"], 1.5);
        assert_eq!(value["target"], "/a\"\n");
    }

    #[test]
    fn combined_cannot_be_broken_out_of() {
        assert_eq!(
            record().to_line(LogFormat::Combined),
            "192.0.2.1 - - [04/Mar/2026:05:06:07 +0000] \"GET /a\\\"\\n HTTP/1.1\" 502 2 \"-\" \"-\" \
             0.002 - - Refused upstream 1\n"
        );
    }
}
