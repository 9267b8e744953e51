//! The agent: from kernel hooks to answers on a socket.
//!
//! Modules stand in reading order; each uses those above it and none below.

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "monitor is for x86-64 alone so far: its kernel programs know no other machine's registers and system calls"
);

pub mod units;
pub mod pattern;
pub mod durable;
pub mod ids;
pub mod time;
pub mod constant;
pub mod raw;
pub mod source;
pub mod privileges;
pub mod footprint;
pub mod service;
pub mod config;
pub mod cost;
pub mod coverage;
pub mod gpu;
pub mod inbox;
pub mod posted;
pub mod mark;
pub mod tally;
pub mod kernel;
pub mod reading;
pub mod sample;
pub mod decode;
pub mod event;
pub mod event_log;
pub mod model;
pub mod detect;
pub mod alert;
pub mod advise;
pub mod picture;
pub mod history;
pub mod collect;
pub mod doctor;
pub mod serve;
pub mod output;
pub mod notify;
pub mod learned;
pub mod agent;
pub mod cli;
