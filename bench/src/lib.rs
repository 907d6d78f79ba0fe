//! Numbers against rivals: the benchmark of the gateway.
//!
//! A scenario is run against each gateway in turn, several times over, on one machine and in one go: noise that comes
//! and goes hits all of them. What is compared first is CPU time per unit of work, which a noisy neighbour hardly moves.
//! Load and origin are threads of this process; the gateways are processes of their own.
#![forbid(unsafe_code)]

/// A monotonic clock and stamps.
pub mod clock;

/// CPU time, context switches and memory as the kernel accounts for them.
pub mod measure;

/// Medians and ratios.
pub mod statistics;

/// WebSocket frames.
pub mod echo;

/// The server behind the gateways.
pub mod origin;

/// What they serve.
pub mod certificate;

/// The gateways under test.
pub mod gateways;

/// The clients in front of them.
pub mod load;

/// What is asked.
pub mod scenario;

/// What the user can ask for.
pub mod options;

/// What has to be there.
pub mod install;

/// Where it all happens.
pub mod network;

/// A relay that looks at nothing.
pub mod floor;

/// Load by wrk and h2load.
pub mod external;

mod machine;

mod schedule;

/// The runs, interleaved.
pub mod run;

/// What came of them.
pub mod outcome;

/// Instructions and allocations, counted.
pub mod micro;

/// Terminal, JSON and HTML.
pub mod report;
