//! The derived picture of one tick: immutable, shared behind an `Arc`, compact. `serve::view` gives it its JSON names.

use super::{
    container::Container,
    totals::{Rates, Totals},
    usage::{CgroupUsage, HostUsage, ProcessUsage, TreeUsage},
};
use crate::{
    constant::{self, Name},
    cost::Cost,
    coverage::Coverage,
    gpu::{Gpu, GpuStanding},
    ids::{CgroupId, DeviceId, ProcessId, ProcessKey, Tgid},
    mark::Mark,
    reading,
    time::BootTime,
};
use monitor_common::resident;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// Everything known after one tick.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was taken.
    pub time: BootTime,
    /// Snapshots taken before it.
    pub number: u64,
    /// Time since the snapshot before it: what rates are over. Zero in the first one.
    pub tick: Duration,
    /// When counting began.
    pub since: BootTime,
    /// The mark that was told last, whatever tree it is of; none where none was. It outlives its tree.
    pub mark: Option<Arc<Mark>>,
    /// Whose cgroups everything is charged to: "v1:memory" or "v2".
    pub hierarchy: &'static str,
    /// The whole machine: all processes, exited ones too, and what could be charged to nobody.
    pub host: Subject,
    /// What the machine publishes of itself; none where that is switched off.
    pub host_usage: Option<Arc<HostUsage>>,
    /// Live ones, then those that exited lately; each in order of pid.
    pub processes: Vec<Arc<Process>>,
    /// Trees with at least one process in `processes`, in order of the root's pid.
    pub trees: Vec<Arc<Tree>>,
    /// Cgroups with anything charged to them or below, in order of path.
    pub cgroups: Vec<Arc<Cgroup>>,
    /// Devices with any I/O.
    pub block_devices: Vec<Arc<BlockDevice>>,
    /// Who did I/O on which device in the last tick.
    pub io: Vec<TreeIo>,
    /// GPUs, as the driver last told of them.
    pub gpus: Vec<Arc<Gpu>>,
    /// Whether they are told of.
    pub gpu: GpuStanding,
    /// Exited processes no longer listed: their totals live on in `host`, their cgroup and their tree.
    pub folded_processes_total: u64,
    /// What was live, and what was lost.
    pub coverage: Arc<Coverage>,
    /// What the agent itself costs.
    pub cost: Arc<Cost>,
}

impl Snapshot {
    /// The training loop's step, or batch; without one, the number of the tick.
    pub fn step(&self) -> u64 {
        self.mark.as_ref().and_then(|mark| mark.step).unwrap_or(self.number)
    }

    /// Processes that run, in order of pid.
    pub fn running(&self) -> &[Arc<Process>] {
        &self.processes[..self.processes.partition_point(|process| process.state == ProcessState::Running)]
    }

    /// The running process with that pid; where the end of an earlier one was lost, the newest.
    pub fn running_with(&self, pid: Tgid) -> Option<&Arc<Process>> {
        let running = self.running();
        let place = running.partition_point(|process| process.id.tgid <= pid).checked_sub(1)?;
        running.get(place).filter(|process| process.id.tgid == pid)
    }

    /// A process, whether it runs or has exited lately.
    pub fn process(&self, key: ProcessKey) -> Option<&Arc<Process>> {
        let (running, exited) = self.processes.split_at(self.running().len());
        let find = |part: &[Arc<Process>]| part.binary_search_by_key(&key, |process| process.id.key()).ok();
        find(running).map(|place| &running[place]).or_else(|| find(exited).map(|place| &exited[place]))
    }

    /// The cgroup at a path; where one was made anew there, the one that is there now.
    pub fn cgroup(&self, path: &str) -> Option<&Arc<Cgroup>> {
        let from = self.cgroups.partition_point(|cgroup| &*cgroup.path < path);
        let mut there = self.cgroups[from..].iter().take_while(|cgroup| &*cgroup.path == path);
        let first = there.next()?;
        if first.removed { there.find(|cgroup| !cgroup.removed).or(Some(first)) } else { Some(first) }
    }
}

/// What is counted of anything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// Since the agent started.
    pub totals: Totals,
    /// Over the last tick.
    pub rates: Rates,
    /// Memory held on all GPUs now; none where none is held, and where the driver does not tell all of it.
    pub gpu_memory_bytes: Option<u64>,
    /// What of it is in memory, as the kernel counts; none where nothing was told yet, or nothing is there any more.
    pub resident: Option<Resident>,
}

/// Memory by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Bytes, by the kinds of [`monitor_common::resident`].
    pub bytes: [u64; resident::KINDS],
    /// Of how many processes that is the sum: each has an error of its own.
    pub processes: u64,
}

impl Resident {
    /// Adds what another one has.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, new) in self.bytes.iter_mut().zip(other.bytes) {
            *mine += new;
        }
        self.processes += other.processes;
    }
}

/// One process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Which.
    pub id: ProcessId,
    /// Who made it, at fork; none where that is not known.
    pub parent: Option<Tgid>,
    /// Its name, as the kernel keeps it.
    pub command: String,
    /// Its arguments, joined by spaces, or what it has written over them; empty for kernel threads. At most 1 KiB is kept, and of
    /// one that has just begun 256 bytes.
    pub command_line: String,
    /// The cgroup it is in, or was in at its end.
    pub cgroup: CgroupId,
    /// That cgroup's path below its hierarchy's root; none where it is not known.
    pub cgroup_path: Option<Arc<str>>,
    /// The container it is in; none outside any.
    pub container: Option<Arc<Container>>,
    /// Root of the tree it belongs to.
    pub tree: ProcessId,
    /// Running, or how it ended.
    pub state: ProcessState,
    /// Its counters, over all cgroups it was in.
    pub subject: Subject,
    /// What /proc tells of it, as of when it was last looked at.
    pub usage: Option<Arc<ProcessUsage>>,
    /// CPU time that it had used in other trees before it came into this one, in nanoseconds.
    #[serde(default)]
    pub cpu_before_ns: u64,
    /// What it had in memory when the kernel chose it to be killed for want of it; none where it was not, or that is not known.
    #[serde(default)]
    pub resident_when_killed: Option<reading::Resident>,
}

impl Process {
    /// CPU time that it used in its tree, as of when it was last looked at, in nanoseconds.
    pub(super) fn cpu_in_tree_ns(&self) -> Option<u64> {
        Some(self.usage.as_ref()?.reading.cpu_ns?.saturating_sub(self.cpu_before_ns))
    }
}

/// Whether a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It does.
    Running,
    /// It has gone.
    Exited {
        /// When; where its exit record was lost, when that was found out.
        time: BootTime,
        /// As wait(2) gives it; none where the exit record was lost.
        wait_status: Option<u32>,
        /// Whether the kernel killed it for want of memory.
        oom_killed: bool,
    },
}

/// A root process with all its descendants in the same cgroup tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tree {
    /// The root process; it may have exited.
    pub root: ProcessId,
    /// The root's name.
    pub command: String,
    /// The root's arguments.
    pub command_line: String,
    /// The rule that made it a root: the name of a known server or trainer, `entry_point`, `container` for the first process of
    /// one, or `unit` for that of a systemd unit, a session's too; none where there is no reason but its parent's cgroup or end.
    #[serde(default, deserialize_with = "constant::optional")]
    pub rule: Option<Name>,
    /// The root's cgroup.
    pub cgroup: CgroupId,
    /// That cgroup's path.
    pub cgroup_path: Option<Arc<str>>,
    /// The container the root is in; none outside any.
    pub container: Option<Arc<Container>>,
    /// Processes now running.
    pub running: u32,
    /// Processes that have exited, since the agent started.
    pub exited_total: u64,
    /// Where its training loop is, by what it told last; none where none did.
    #[serde(default)]
    pub mark: Option<Arc<Mark>>,
    /// Sums over all its processes, exited ones too.
    pub subject: Subject,
    /// Sums over its running processes of what /proc tells, and the CPU time of all; none where it tells of none of them.
    pub usage: Option<TreeUsage>,
    /// CPU time that processes used in it that have exited or left since, as far as was seen, in nanoseconds; none where there
    /// are none.
    #[serde(default)]
    pub cpu_gone_ns: Option<u64>,
}

impl Tree {
    /// Keeps what a process used in it that is not among its running ones any more, so that its total does not fall.
    pub(super) fn keep_cpu(&mut self, used_ns: Option<u64>) {
        if let Some(used_ns) = used_ns {
            *self.cpu_gone_ns.get_or_insert_default() += used_ns;
        }
    }
}

/// One cgroup, with everything below it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cgroup {
    /// kernfs id; 0 where only the path is known.
    pub id: CgroupId,
    /// Path below the hierarchy's root.
    pub path: Arc<str>,
    /// The container whose cgroup this or one above it is; none outside any.
    pub container: Option<Arc<Container>>,
    /// Whether it is still there.
    pub removed: bool,
    /// Processes now running in it or below.
    pub running: u32,
    /// Sums over everything ever charged to it or below.
    pub subject: Subject,
    /// What its files tell, as of when they were last read.
    pub usage: Option<Arc<CgroupUsage>>,
}

/// One block device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Which.
    pub id: DeviceId,
    /// Its name in /sys/block; its number where it has none any more.
    pub name: String,
    /// Only `block_io` is ever counted.
    pub subject: Subject,
}

/// What one tree did on one block device in the last tick: requests that were done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TreeIo {
    /// The tree's root.
    pub tree: ProcessKey,
    /// On which device.
    pub device: DeviceId,
    /// Requests a second.
    pub ops: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// Seconds that its requests spent waiting, from submission to completion, in each second: how many were in flight on average.
    pub wait: f64,
}

impl TreeIo {
    /// Seconds that a request took on average, from submission to completion.
    pub fn latency_seconds(&self) -> Option<f64> {
        (self.ops > 0.0).then(|| self.wait / self.ops)
    }
}
