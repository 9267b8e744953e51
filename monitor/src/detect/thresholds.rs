//! What of a snapshot is out of the ordinary, by thresholds. Pure: each snapshot is judged by itself, and what lasts or has been
//! told before is for others to know.
//!
//! What is not known is no cause for an alert.

use crate::{
    config::Thresholds,
    gpu::Gpu,
    model::{
        resources::{io_wait_ratio, memory_ratio},
        snapshot::Snapshot,
    },
};
use std::fmt;

/// Something out of the ordinary. Written out it is one line, in the words of the training document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exceeded {
    /// A GPU has less to do than it should.
    GpuUnderutilized {
        /// Its number; none where there is but one GPU.
        gpu: Option<u32>,
        /// Share of the time in which it worked, 0–1.
        ratio: f64,
        /// The least it should be.
        threshold: f64,
    },
    /// The machine's memory is used up.
    HighMemoryUsage {
        /// What is not available of it, to all of it, 0–1.
        ratio: f64,
        /// The most it should be.
        threshold: f64,
    },
    /// Processors wait for disks.
    IoBottleneck {
        /// Share of their time, 0–1.
        ratio: f64,
        /// The most it should be.
        threshold: f64,
    },
    /// A GPU is hot.
    GpuTemperatureHigh {
        /// Its number; none where there is but one GPU.
        gpu: Option<u32>,
        /// Its temperature.
        celsius: u32,
    },
}

/// All that is out of the ordinary in a snapshot: of GPUs in their order, then of memory, disks and heat.
pub fn exceeded(snapshot: &Snapshot, thresholds: &Thresholds) -> Vec<Exceeded> {
    let Thresholds { gpu_util, memory, io_wait, gpu_temp, .. } = *thresholds;
    let number = |gpu: &Gpu| (snapshot.gpus.len() > 1).then_some(gpu.index);
    let idle = |gpu: &Gpu| {
        let ratio = gpu.utilization_ratio.filter(|ratio| *ratio < gpu_util)?;
        Some(Exceeded::GpuUnderutilized { gpu: number(gpu), ratio, threshold: gpu_util })
    };
    let hot = |gpu: &Gpu| {
        let celsius = gpu.temperature_celsius.filter(|celsius| *celsius > gpu_temp)?;
        Some(Exceeded::GpuTemperatureHigh { gpu: number(gpu), celsius })
    };
    let full = memory_ratio(snapshot).filter(|ratio| *ratio > memory);
    let slow = io_wait_ratio(snapshot).filter(|ratio| *ratio > io_wait);
    let gpus = || snapshot.gpus.iter();
    let mut alerts = Vec::new();
    if thresholds.alert_gpu_underutilization {
        alerts.extend(gpus().filter_map(|gpu| idle(gpu)));
    }
    if thresholds.alert_memory_pressure {
        alerts.extend(full.map(|ratio| Exceeded::HighMemoryUsage { ratio, threshold: memory }));
    }
    if thresholds.alert_io_bottleneck {
        alerts.extend(slow.map(|ratio| Exceeded::IoBottleneck { ratio, threshold: io_wait }));
    }
    if thresholds.alert_gpu_temperature {
        alerts.extend(gpus().filter_map(|gpu| hot(gpu)));
    }
    alerts
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |gpu: Option<u32>| gpu.map_or_else(|| "GPU".to_owned(), |index| format!("GPU {index}"));
        match *self {
            Self::GpuUnderutilized { gpu, ratio, threshold } => {
                write!(f, "{} underutilized: {}", name(gpu), Against { ratio, what: "", threshold })
            }
            Self::HighMemoryUsage { ratio, threshold } => {
                write!(f, "High memory usage: {}", Against { ratio, what: "", threshold })
            }
            Self::IoBottleneck { ratio, threshold } => {
                write!(f, "I/O bottleneck: {}", Against { ratio, what: " wait time", threshold })
            }
            Self::GpuTemperatureHigh { gpu, celsius } => write!(f, "{} temperature high: {celsius}°C", name(gpu)),
        }
    }
}

/// A ratio and its threshold in percent: "42.3% (threshold: 50%)".
pub(crate) struct Against {
    pub(crate) ratio: f64,
    /// What it is a share of.
    pub(crate) what: &'static str,
    pub(crate) threshold: f64,
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A threshold is shown as it was set: 7, though 0.07 times 100 is a little more.
        let threshold = (self.threshold * 1e5).round() / 1e3;
        write!(f, "{:.1}%{} (threshold: {threshold}%)", self.ratio * 100.0, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        model::usage::{CpuShares, HostUsage},
        reading::{HostMemory, HostReading},
        serve::fixtures,
    };
    use std::sync::Arc;

    const DEFAULTS: fn() -> Thresholds = || Config::default().thresholds;

    fn gpu(index: u32, utilization_ratio: Option<f64>, temperature_celsius: Option<u32>) -> Arc<Gpu> {
        Arc::new(Gpu { index, utilization_ratio, temperature_celsius, ..Gpu::default() })
    }

    /// Memory is used, and disks are waited for, by these shares.
    fn host(memory: f64, iowait: f64) -> Option<Arc<HostUsage>> {
        let (total_bytes, available_bytes) = (1000, 1000 - (memory * 1000.0).round() as u64);
        let memory = HostMemory { total_bytes, available_bytes, ..HostMemory::default() };
        let reading = HostReading { memory: Some(memory), ..HostReading::default() };
        let cpu = Some(CpuShares { iowait, ..CpuShares::default() });
        Some(Arc::new(HostUsage { reading, cpu, ..HostUsage::default() }))
    }

    fn told(snapshot: &Snapshot, thresholds: &Thresholds) -> Vec<String> {
        exceeded(snapshot, thresholds).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn alerts_are_in_the_documents_words() {
        let one = Snapshot {
            gpus: vec![gpu(0, Some(0.423), Some(85))],
            host_usage: host(0.921, 0.45),
            ..fixtures::snapshot()
        };
        let expected = [
            "GPU underutilized: 42.3% (threshold: 50%)",
            "High memory usage: 92.1% (threshold: 90%)",
            "I/O bottleneck: 45.0% wait time (threshold: 30%)",
            "GPU temperature high: 85°C",
        ];
        assert_eq!(told(&one, &DEFAULTS()), expected);
    }

    #[test]
    fn of_several_gpus_each_is_named() {
        let gpus = vec![gpu(0, Some(0.9), Some(81)), gpu(1, Some(0.1), Some(80)), gpu(2, Some(0.0), None)];
        let several = Snapshot { gpus, host_usage: None, ..fixtures::snapshot() };
        let expected = [
            "GPU 1 underutilized: 10.0% (threshold: 50%)",
            "GPU 2 underutilized: 0.0% (threshold: 50%)",
            "GPU 0 temperature high: 81°C",
        ];
        assert_eq!(told(&several, &DEFAULTS()), expected);
    }

    #[test]
    fn at_a_threshold_and_where_nothing_is_known_there_is_no_alert() {
        let at =
            Snapshot { gpus: vec![gpu(0, Some(0.5), Some(80))], host_usage: host(0.9, 0.3), ..fixtures::snapshot() };
        assert_eq!(exceeded(&at, &DEFAULTS()), []);
        let unknown = Snapshot { gpus: vec![gpu(0, None, None)], host_usage: None, ..fixtures::snapshot() };
        assert_eq!(exceeded(&unknown, &DEFAULTS()), []);
    }

    #[test]
    fn each_is_switched_off_and_moved_by_its_setting() {
        let snapshot = Snapshot {
            gpus: vec![gpu(0, Some(0.423), Some(85))],
            host_usage: host(0.921, 0.45),
            ..fixtures::snapshot()
        };
        type Change = fn(&mut Thresholds);
        let without = |switch: Change| {
            let mut thresholds = DEFAULTS();
            switch(&mut thresholds);
            told(&snapshot, &thresholds)
        };
        let settings: [(&str, Change, Change); 4] = [
            ("underutilized", |t| t.alert_gpu_underutilization = false, |t| t.gpu_util = 0.4),
            ("memory", |t| t.alert_memory_pressure = false, |t| t.memory = 0.93),
            ("bottleneck", |t| t.alert_io_bottleneck = false, |t| t.io_wait = 0.5),
            ("temperature", |t| t.alert_gpu_temperature = false, |t| t.gpu_temp = 85),
        ];
        for (word, off, moved) in settings {
            for told in [without(off), without(moved)] {
                assert_eq!(told.len(), 3, "{told:?}");
                assert!(!told.iter().any(|line| line.contains(word)), "{told:?}");
            }
        }
        let lines = without(|t| t.memory = 0.07);
        assert!(lines.iter().any(|line| line.ends_with("(threshold: 7%)")), "{lines:?}");
    }
}
