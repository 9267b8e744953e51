//! The agent: from kernel hooks to answers on a socket.
//!
//! Modules stand in reading order; each uses those above it and none below.

pub mod agent;
pub mod cli;
pub mod collect;
pub mod config;
pub mod coverage;
pub mod decode;
pub mod doctor;
pub mod event;
pub mod event_log;
pub mod ids;
pub mod kernel;
pub mod model;
pub mod output;
pub mod sample;
pub mod serve;
pub mod source;
pub mod time;
pub mod units;
