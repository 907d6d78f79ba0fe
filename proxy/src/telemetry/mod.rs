//! What happened, told to people: one access-log line per request and per tunnel. And what the kernel has measured.

mod gauge;
mod latency;
mod line;
mod log;
mod meter;

pub use gauge::{Gauge, Hitch};
pub use latency::Latency;
pub use line::{CopyReason, DataPath, Kind, Measured, Outcome, Record, TlsPath, UserReason};
pub use log::AccessLog;
pub use meter::{Direction, Meter, Reading, Stats};
