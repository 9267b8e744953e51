//! GPUs, and their memory joined to the processes, trees and cgroups that hold it.

use super::{account::GpuShares, cgroups::Cgroups, processes::Processes};
use crate::{
    gpu::{Gpu, GpuReading, GpuStanding},
    ids::{CgroupId, ProcessKey, Tgid},
    time::BootTime,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The GPUs as last told of, and who holds memory on them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Gpus {
    reading: Option<Arc<GpuReading>>,
    /// Whether the driver has ever answered.
    ever_live: bool,
    told: Shares,
}

/// Who holds memory on GPUs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Shares {
    /// By process.
    pub(super) processes: GpuShares<ProcessKey>,
    /// By root of the tree.
    pub(super) trees: GpuShares<ProcessKey>,
    /// By cgroup, each with everything below it.
    pub(super) cgroups: GpuShares<CgroupId>,
}

impl Gpus {
    pub(super) fn take(&mut self, reading: &Arc<GpuReading>) {
        self.ever_live |= matches!(**reading, GpuReading::Live { .. });
        self.reading = Some(Arc::clone(reading));
    }

    pub(super) fn list(&self) -> Vec<Arc<Gpu>> {
        self.gpus().to_vec()
    }

    pub(super) fn standing(&self, now: BootTime) -> GpuStanding {
        self.reading.as_ref().map(|reading| reading.standing(now, self.ever_live)).unwrap_or_default()
    }

    /// Tells processes, trees and cgroups what they hold. Costs in proportion to those that do.
    pub(super) fn join(&mut self, processes: &mut Processes, cgroups: &mut Cgroups) {
        let mut now = Shares::default();
        for (pid, bytes) in by_process(self.gpus()) {
            let Some((process, tree, cgroup)) = processes.whereabouts(pid) else { continue };
            add(&mut now.processes, process, bytes);
            add(&mut now.trees, tree, bytes);
            for cgroup in cgroups.with_ancestors(cgroup) {
                add(&mut now.cgroups, cgroup, bytes);
            }
        }
        processes.tell_gpu_memory(&self.told, &now);
        cgroups.tell_gpu_memory(&self.told, &now);
        self.told = now;
    }

    fn gpus(&self) -> &[Arc<Gpu>] {
        match self.reading.as_deref() {
            Some(GpuReading::Live { gpus, .. }) => gpus,
            _ => &[],
        }
    }
}

/// What each process holds on all GPUs together.
fn by_process(gpus: &[Arc<Gpu>]) -> GpuShares<Tgid> {
    let mut shares = BTreeMap::new();
    for process in gpus.iter().filter_map(|gpu| gpu.processes.as_ref()).flatten() {
        add(&mut shares, process.pid, process.memory_bytes);
    }
    shares
}

/// Adds a part. A sum with an unknown part is not known.
fn add<K: Ord>(shares: &mut GpuShares<K>, key: K, bytes: Option<u64>) {
    let sum = shares.entry(key).or_insert(Some(0));
    *sum = sum.zip(bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
}
