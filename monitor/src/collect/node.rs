//! Everything that is polled once a tick, besides the kernel programs' counters: the machine, its cgroups, its processes.

use super::{
    cgroup_stat::{self, CgroupStat},
    host::Host,
    process_stat::ProcessStat,
};
use crate::{kernel::support::CgroupHierarchy, model::Model, reading::Readings, time::BootTime};
use std::collections::HashSet;

/// What to poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Processors and memory: of the machine, of cgroups and of processes.
    pub cpu: bool,
    /// Disks and network interfaces of the machine.
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
    /// Opens nothing yet.
    pub fn new(polled: Polled, hierarchy: &CgroupHierarchy) -> Self {
        let cgroups = polled.cpu.then(|| CgroupStat::new(hierarchy, cgroup_stat::descriptors())).flatten();
        Self { polled, host: Host::default(), cgroups, processes: ProcessStat::default() }
    }

    /// Reads what has moved, as far as the model knows who is there.
    pub fn read(&mut self, model: &Model, now: BootTime) -> Readings {
        let Polled { cpu, io } = self.polled;
        let host = (cpu || io).then(|| self.host.read(cpu, io));
        let cgroups = match &mut self.cgroups {
            Some(cgroups) => cgroups.read(&model.watched(), now),
            None => Vec::new(),
        };
        let busy: HashSet<_> = cgroups.iter().map(|(id, _)| *id).collect();
        let processes = if cpu { self.processes.read(model.candidates(&busy)) } else { Vec::new() };
        Readings { cgroups, processes, host }
    }
}
