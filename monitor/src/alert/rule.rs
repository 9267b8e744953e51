//! What alerts are about: one rule for each thing that can be out of the ordinary.

use crate::config::Thresholds;
use serde::Serialize;

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Somebody waits for disks.
    IoBottleneck,
    /// Memory is nearly used up: a cgroup's limit, or the machine.
    MemoryPressure,
    /// Somebody waits for memory.
    MemoryStall,
    /// What is needed is read from disks again and again.
    Thrashing,
    /// A GPU whose memory is held has little to do.
    GpuUnderutilization,
    /// A GPU's memory is nearly used up.
    GpuMemory,
    /// A GPU is hot.
    GpuTemperature,
    /// A GPU's clocks are held down.
    GpuThrottling,
    /// A GPU, or the driver of all, does not answer any more.
    GpuLost,
    /// Memory leaks.
    Leak,
    /// The kernel killed a process for want of memory.
    OomKill,
    /// It is not as it usually is at this time of day.
    Deviation,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::IoBottleneck,
        Self::MemoryPressure,
        Self::MemoryStall,
        Self::Thrashing,
        Self::GpuUnderutilization,
        Self::GpuMemory,
        Self::GpuTemperature,
        Self::GpuThrottling,
        Self::GpuLost,
        Self::Leak,
        Self::OomKill,
        Self::Deviation,
    ];

    /// Its name, as answers, messages and silences have it; with `alert_` before it, the setting that switches it off.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoBottleneck => "io_bottleneck",
            Self::MemoryPressure => "memory_pressure",
            Self::MemoryStall => "memory_stall",
            Self::Thrashing => "thrashing",
            Self::GpuUnderutilization => "gpu_underutilization",
            Self::GpuMemory => "gpu_memory",
            Self::GpuTemperature => "gpu_temperature",
            Self::GpuThrottling => "gpu_throttling",
            Self::GpuLost => "gpu_lost",
            Self::Leak => "leak",
            Self::OomKill => "oom_kill",
            Self::Deviation => "deviation",
        }
    }

    /// Whether it is switched on.
    pub const fn is_on(self, thresholds: &Thresholds) -> bool {
        match self {
            Self::IoBottleneck => thresholds.alert_io_bottleneck,
            Self::MemoryPressure => thresholds.alert_memory_pressure,
            Self::MemoryStall => thresholds.alert_memory_stall,
            Self::Thrashing => thresholds.alert_thrashing,
            Self::GpuUnderutilization => thresholds.alert_gpu_underutilization,
            Self::GpuMemory => thresholds.alert_gpu_memory,
            Self::GpuTemperature => thresholds.alert_gpu_temperature,
            Self::GpuThrottling => thresholds.alert_gpu_throttling,
            Self::GpuLost => thresholds.alert_gpu_lost,
            Self::Leak => thresholds.alert_leak,
            Self::OomKill => thresholds.alert_oom_kill,
            Self::Deviation => thresholds.alert_deviation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn names_are_those_of_json_and_of_the_switches() {
        let keys: Vec<_> = keys().iter().map(|key| key.path()).collect();
        for rule in Rule::ALL {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
            assert!(keys.contains(&format!("alert_{}", rule.name())), "no switch for {}", rule.name());
        }
    }
}
