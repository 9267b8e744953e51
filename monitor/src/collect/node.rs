//! Everything that is polled once a tick, besides the kernel programs' counters: the machine, its cgroups, its processes.

use super::{cgroup_stat::CgroupStat, descriptors::Budget, host::Host, process_stat::ProcessStat};
use crate::{kernel::support::CgroupHierarchy, model::Model, reading::Readings, time::BootTime};

/// What to poll, of the machine, of cgroups and of processes alike. Nothing is opened or read for what is not polled, but for
/// /proc/PID/stat, which tells whether a process still is the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Processors: time used, throttling, load, pressure.
    pub cpu: bool,
    /// Memory: limits, use, peaks, events, pressure.
    pub memory: bool,
    /// Disks, network interfaces, and who uses storage; pressure.
    pub io: bool,
}

/// Polls this node.
#[derive(Debug)]
pub struct Node {
    polled: Polled,
    host: Host,
    cgroups: Option<CgroupStat>,
    processes: ProcessStat,
}

impl Node {
    /// Opens nothing yet. Cgroups and processes share the budget of files that are kept open.
    pub fn new(polled: Polled, hierarchy: &CgroupHierarchy, budget: &Budget) -> Self {
        let cgroups = polled.anything().then(|| CgroupStat::new(hierarchy, polled, budget.clone())).flatten();
        Self { polled, host: Host::default(), cgroups, processes: ProcessStat::new(polled, budget.clone()) }
    }

    /// Reads what has moved or is to be refreshed, as far as the model knows who is there.
    pub fn read(&mut self, model: &Model, now: BootTime) -> Readings {
        if !self.polled.anything() {
            return Readings::default();
        }
        let host = Some(self.host.read(self.polled));
        let (cgroups, busy) = match &mut self.cgroups {
            Some(stat) => {
                let cgroups = stat.read(&model.watched(), now);
                (cgroups, Some(stat.busy()))
            }
            None => (Vec::new(), None),
        };
        let processes = self.processes.read(model.process_changes(), busy.as_ref(), now);
        Readings { cgroups, processes, host }
    }
}

impl Polled {
    /// Whether there is anything to poll.
    pub const fn anything(self) -> bool {
        self.cpu || self.memory || self.io
    }
}
