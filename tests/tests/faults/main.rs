//! The fault table: what breaks around a gateway, and what must hold then. `tests/faults/rows.txt` names the test of each
//! row.

mod client;
mod network;
mod process;
mod resources;
mod stage;
mod upstream;
