//! Answers over a Unix socket: HTTP/1.1 with JSON, for `curl --unix-socket`, `monitor query` and every language; to everybody
//! over a second one what is of its own process tree, and metrics also at a loopback address, where these are set.
//!
//! Reads snapshots that others made and never waits for their writer. Everything is bounded: connections, the time for
//! a request's head, the memory of an answer, and the time for draining at the end.

mod access;
mod alerts;
mod answer;
mod budget;
mod caller;
mod cells;
mod events;
mod fields;
mod findings;
#[cfg(test)]
pub(crate) mod fixtures;
mod gpu;
mod health;
mod loopback;
mod metrics;
mod posts;
mod problem;
mod recorded;
mod routes;
mod select;
mod server;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod usage;
mod view;

pub use alerts::AlertView;
pub use loopback::{BindError, Loopback};
pub use posts::Inboxes;
pub use recorded::answer_recorded;
pub use server::{State, serve, serve_metrics};
pub use socket::{Claim, ClaimError, Listener, claim, claim_for_workloads};
