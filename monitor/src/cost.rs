//! What the agent itself costs: data like any other.

use serde::{Deserialize, Serialize};

/// What the agent costs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// Processor time of the agent's process, user and system, in seconds.
    pub cpu_seconds_total: f64,
    /// Processor time over the last tick, as a share of one processor (0–1); none in the first one.
    pub cpu_ratio: Option<f64>,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// Kernel memory of its maps and rings.
    pub map_bytes: u64,
    /// Its kernel programs.
    pub programs: Vec<ProgramCost>,
}

/// Run time of one kernel program, measured in windows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Its name, beginning with its source's.
    pub name: String,
    /// Runs measured.
    pub measured_runs: u64,
    /// Time they took, the measuring itself (some 29 ns each) included.
    pub measured_seconds: f64,
}
