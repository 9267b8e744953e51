//! What memory a container should get, and what a server's is made of. Pure: time and what was observed are arguments.

pub mod advisor;
pub mod backtest;
pub mod budget;
pub mod fixed_limits;
pub mod guardrails;
pub mod histories;
mod krr;
pub mod life;
pub mod observed;
pub mod past;
mod peaks;
pub mod policy;
pub mod proposal;
pub mod rules;
mod vpa;
mod window;

use serde::{Deserialize, Serialize};

/// Memory request and limit of a container, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// What the scheduler sets aside for it.
    pub request_bytes: u64,
    /// Where the kernel kills it.
    pub limit_bytes: u64,
}

/// What a container has, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// Its request.
    pub request_bytes: Option<u64>,
    /// Its own limit.
    pub limit_bytes: Option<u64>,
}

/// 2²⁰ bytes, which Kubernetes writes `Mi`.
pub const MEBIBYTE: u64 = 1 << 20;
