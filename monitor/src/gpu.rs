//! What a driver tells of the GPUs: raw readings, shared by the samples and the snapshots made from them.
//!
//! What a GPU does not tell is none, never 0.

use crate::{
    constant::{self, Name},
    coverage::State,
    ids::Tgid,
    time::BootTime,
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// What is known of all GPUs at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GpuReading {
    /// The configuration switched them off.
    Disabled,
    /// There is no driver, or it cannot be asked.
    Unavailable {
        /// Why, in one line.
        reason: String,
    },
    /// The last answer; it may be old where the driver hangs.
    Live {
        /// When it was asked for.
        time: BootTime,
        /// A new one is to be expected this often.
        every: Duration,
        /// All GPUs, in the driver's order. There may be none.
        gpus: Vec<Arc<Gpu>>,
    },
}

/// One physical GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// When it was read.
    pub time: BootTime,
    /// Its number in the driver's order, from 0: it may differ after a restart of the host.
    pub index: u32,
    /// Its name for good, such as "GPU-b3f2…".
    pub uuid: Option<String>,
    /// Its product's name.
    pub name: Option<String>,
    /// Why nothing else is known, where it does not answer though the driver does.
    pub failure: Option<String>,
    /// Share of the driver's last sampling period (1/6 to 1 s) in which any kernel ran.
    pub utilization_ratio: Option<f64>,
    /// Share of the same period in which its memory was read or written.
    pub memory_utilization_ratio: Option<f64>,
    /// Its memory.
    pub memory: GpuMemory,
    /// Temperature of its chip.
    pub temperature_celsius: Option<u32>,
    /// What it draws, with its memory and board.
    pub power_watts: Option<f64>,
    /// The most it may draw, as the driver enforces it.
    pub power_limit_watts: Option<f64>,
    /// Present clock of its graphics domain.
    pub graphics_clock_hertz: Option<u64>,
    /// Present clock of its streaming multiprocessors.
    pub sm_clock_hertz: Option<u64>,
    /// Present clock of its memory.
    pub memory_clock_hertz: Option<u64>,
    /// What holds its clocks down, by name; empty for nothing.
    #[serde(deserialize_with = "constant::optional_list")]
    pub throttle_reasons: Option<Vec<Name>>,
    /// Its instances, where it is in MIG mode.
    pub mig: Option<Vec<MigInstance>>,
    /// Who holds memory on it, in order of pid, its instances included.
    pub processes: Option<Vec<GpuProcess>>,
}

/// Memory of a GPU or an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// Allocated.
    pub used_bytes: Option<u64>,
    /// There is.
    pub total_bytes: Option<u64>,
}

impl GpuMemory {
    /// Used to total, from 0 to 1.
    pub fn ratio(&self) -> Option<f64> {
        let total = self.total_bytes.filter(|&total| total > 0)?;
        Some(self.used_bytes? as f64 / total as f64)
    }
}

/// A part of a GPU that works as one by itself (MIG).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MigInstance {
    /// Its number within its GPU.
    pub index: u32,
    /// Its name for good, such as "MIG-1c5f…".
    pub uuid: Option<String>,
    /// Its size, in NVIDIA's notation, such as "1g.10gb".
    pub profile: Option<String>,
    /// Its memory.
    pub memory: GpuMemory,
    /// Who holds memory on it, in order of pid.
    pub processes: Option<Vec<GpuProcess>>,
}

/// A process's share of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Which, in the pid namespace of the agent: the host's.
    pub pid: Tgid,
    /// What it holds, by computing and graphics together; none where the driver does not tell.
    pub memory_bytes: Option<u64>,
}

/// Whether GPUs are told of, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuStanding {
    /// Whether they are.
    pub state: State,
    /// Why not, or what is wrong.
    pub reason: Option<String>,
    /// Whether something was lost that was there: a host without GPUs is in good health.
    #[serde(skip)]
    pub failing: bool,
}

impl Default for GpuStanding {
    fn default() -> Self {
        Self { state: State::Disabled, reason: None, failing: false }
    }
}

impl GpuReading {
    /// How old it is at `now`, where newer ones should have come.
    pub fn overdue(&self, now: BootTime) -> Option<Duration> {
        /// So many should have come since.
        const MISSED: u32 = 5;
        match self {
            Self::Live { time, every, .. } => Some(now.since(*time)).filter(|age| *age > *every * MISSED),
            Self::Disabled | Self::Unavailable { .. } => None,
        }
    }

    /// How GPUs stand at `now`, where they were or were not live before.
    pub fn standing(&self, now: BootTime, live_before: bool) -> GpuStanding {
        match self {
            Self::Disabled => GpuStanding::default(),
            Self::Unavailable { reason } => {
                GpuStanding { state: State::Unavailable, reason: Some(reason.clone()), failing: live_before }
            }
            Self::Live { gpus, .. } => {
                let overdue = self.overdue(now);
                let reason = overdue.map(|age| format!("the driver has not answered for {} s", age.as_secs()));
                let reason = reason.or_else(|| failures(gpus));
                GpuStanding { state: State::Live, failing: reason.is_some(), reason }
            }
        }
    }
}

/// Which GPUs do not answer, in one line.
fn failures(gpus: &[Arc<Gpu>]) -> Option<String> {
    let failures = gpus.iter().filter_map(|gpu| Some(format!("GPU {}: {}", gpu.index, gpu.failure.as_ref()?)));
    let failures: Vec<_> = failures.collect();
    (!failures.is_empty()).then(|| failures.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn live(gpus: Vec<Arc<Gpu>>) -> GpuReading {
        GpuReading::Live { time: BootTime(10 * SECOND), every: Duration::from_secs(1), gpus }
    }

    #[test]
    fn an_old_answer_and_a_lost_gpu_are_told() {
        let fresh = live(Vec::new()).standing(BootTime(15 * SECOND), true);
        assert_eq!(fresh, GpuStanding { state: State::Live, reason: None, failing: false });
        let late = live(Vec::new()).standing(BootTime(17 * SECOND), true);
        assert_eq!(late.reason.as_deref(), Some("the driver has not answered for 7 s"));
        assert!(late.failing);
        let lost = Gpu { index: 1, failure: Some("fell off the bus".to_owned()), ..Gpu::default() };
        let lost = live(vec![Arc::new(Gpu::default()), Arc::new(lost)]).standing(BootTime(10 * SECOND), true);
        assert_eq!(lost.reason.as_deref(), Some("GPU 1: fell off the bus"));
        assert!(lost.failing);
    }

    #[test]
    fn a_host_without_a_driver_is_in_good_health_unless_it_had_one() {
        let none = GpuReading::Unavailable { reason: "no library".to_owned() };
        assert!(!none.standing(BootTime(0), false).failing);
        assert!(none.standing(BootTime(0), true).failing);
        assert_eq!(none.standing(BootTime(0), true).state, State::Unavailable);
        assert_eq!(GpuReading::Disabled.standing(BootTime(0), false).state, State::Disabled);
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let memory = |used_bytes, total_bytes| GpuMemory { used_bytes, total_bytes }.ratio();
        assert_eq!(memory(Some(1), Some(4)), Some(0.25));
        assert_eq!((memory(None, Some(4)), memory(Some(1), None), memory(Some(0), Some(0))), (None, None, None));
    }
}
