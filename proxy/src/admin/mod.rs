//! How the gateway does, told to administrators: an HTTP endpoint on a thread of its own, never on a worker.
//!
//! It reads what workers have written down and never makes one wait for longer than it takes to copy a table of
//! pointers. Nothing here changes anything.

mod endpoint;
mod metrics;
mod view;

pub use endpoint::{AdminError, Endpoint};
pub use view::View;
