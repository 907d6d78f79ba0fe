//! What happened, told to people: one access-log line per request and per tunnel.

mod line;
mod log;

pub use line::{CopyReason, DataPath, Kind, Outcome, Record, TlsPath, UserReason};
pub use log::AccessLog;
