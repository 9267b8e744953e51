//! What an alert rests on: the numbers behind its words.

use super::usual::Metric;
use crate::{detect, ids::Tgid};
use serde::Serialize;
use std::sync::Arc;

/// What an alert rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Who waits for which device, and who fills its queue.
    Io(IoEvidence),
    /// Whose memory it is, and what there is.
    Memory(MemoryEvidence),
    /// How a GPU stands, and what keeps its work from it.
    Gpu(GpuEvidence),
    /// A detector's claim.
    Finding(detect::Evidence),
    /// The victim.
    Oom(OomEvidence),
    /// How it is, and how it usually is.
    Deviation(Deviation),
}

/// A process tree, in few words: alerts go to other machines, and command lines may hold what is nobody's business there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TreeName {
    /// Its root.
    pub tree: Tgid,
    /// The beginning of the root's arguments, or its name where it has none.
    pub command: String,
    /// Path of the root's cgroup.
    pub cgroup: Option<Arc<str>>,
}

/// Who waits for which device. Rates and latencies are of the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IoEvidence {
    /// The device that is waited for most; none where no I/O of the subject's was done, and no disk stands out.
    pub device: Option<String>,
    /// Share of the time in which the device had a request under way, 0–1.
    pub utilization_ratio: Option<f64>,
    /// Requests in flight on it, on average, of everybody.
    pub in_flight: Option<f64>,
    /// How long a request of the subject's took on average, from submission to completion.
    pub latency_seconds: Option<f64>,
    /// Who waits for it, of the subject, the longest first.
    pub waiting: Vec<TreeOnDevice>,
    /// The tree that fills the device's queue, where that is somebody else.
    pub noisy: Option<TreeOnDevice>,
}

/// A tree's part in what a device does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TreeOnDevice {
    /// Which.
    #[serde(flatten)]
    pub name: TreeName,
    /// Its requests in flight, on average.
    pub in_flight: f64,
    /// How long one took on average.
    pub latency_seconds: Option<f64>,
    /// How many of its processes waited for disks in the last tick, on average, by the kernel's delay accounting of their first
    /// threads; none where that is off.
    pub delay_ratio: Option<f64>,
    /// Requests done per second.
    pub ops_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// Whose memory it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryEvidence {
    /// In use, less the page cache that is given back first.
    pub working_set_bytes: Option<u64>,
    /// The limit that counts, or the machine's memory.
    pub limit_bytes: Option<u64>,
    /// Share of the time in which a task waited for memory, 0–1.
    pub stall_ratio: Option<f64>,
    /// Share in which all tasks did.
    pub full_stall_ratio: Option<f64>,
    /// Faults that waited for a disk, per second.
    pub major_faults_per_second: Option<f64>,
    /// The largest process trees there.
    pub largest: Vec<TreeMemory>,
}

/// A tree's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TreeMemory {
    /// Which.
    #[serde(flatten)]
    pub name: TreeName,
    /// In memory: what its processes share counts once for each.
    pub resident_bytes: u64,
}

/// How a GPU stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuEvidence {
    /// Share of the time in which it worked, 0–1.
    pub utilization_ratio: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Memory there is.
    pub memory_total_bytes: Option<u64>,
    /// Its chip's temperature.
    pub temperature_celsius: Option<u32>,
    /// What holds its clocks down.
    pub throttle_reasons: Option<Vec<&'static str>>,
    /// The tree that holds most of its memory.
    pub holder: Option<TreeName>,
    /// Why it has little to do: what the holder was held up by while it was idle.
    pub cause: Option<Cause>,
    /// Shares of the GPU's idle time, 0–1.
    pub causes: Option<Causes>,
}

/// What keeps a GPU's work from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Data is read from, or written to, a disk.
    BlockIo,
    /// Memory is short on the host: faults and reclaim.
    Memory,
    /// A CPU limit.
    CpuThrottling,
    /// Processors are at work, and the GPU waits for what they make.
    Cpu,
    /// Nobody gives it anything to do.
    NothingToDo,
}

/// Shares of a GPU's idle time in which its holder was held up, or busy: they may overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Causes {
    /// Waiting for disks.
    pub block_io: f64,
    /// Waiting for memory.
    pub memory: f64,
    /// Kept from running by a CPU limit.
    pub cpu_throttling: f64,
    /// Processors in use: 1 is one whole.
    pub cpus: f64,
}

/// The victim of a kill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OomEvidence {
    /// Its pid.
    pub pid: Tgid,
    /// Its name.
    pub command: String,
    /// How many were killed in its cgroup lately.
    pub kills: u64,
}

/// How something is, and how it usually is at this time of day.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// Which number, and its unit.
    pub metric: Metric,
    /// Its mean over the last minute.
    pub value: f64,
    /// What it usually is.
    pub level: f64,
    /// By how much it usually differs from that: a standard deviation, or what is too little to matter.
    pub spread: f64,
    /// Days on which that was learned.
    pub days: u32,
}
