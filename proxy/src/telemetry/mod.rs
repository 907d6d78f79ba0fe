//! What happened, told to people: one access-log line per request and per tunnel. And what the kernel has measured.

mod counters;
mod gauge;
mod latency;
mod line;
mod live;
mod log;
mod meter;
pub mod snapshot;

pub use counters::{
    Counter, DURATION_BOUNDS_S, Ended, EndpointCounters, Entered, HandshakeFailure, NO_ROUTE,
    RouteCounters, STATUS_CLASSES, Seen, WorkerCounters,
};
pub use gauge::{Gauge, Hitch};
pub use latency::Latency;
pub use line::{CopyReason, DataPath, Kind, Measured, Outcome, Record, TlsPath, UserReason};
pub use live::{Doing, Live, Moved};
pub use log::AccessLog;
pub use meter::{Direction, Lack, Meter, Reading, Stats};
