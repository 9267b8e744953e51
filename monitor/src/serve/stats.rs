//! `/v1/stats`: what a server's own `/stats/` endpoint forwards: the memory it may use and uses, and the processes of its
//! tree. Found by the pid of any of them; without one, of whoever asks, as a server in a container does not know the pid that
//! it has on the host.

use super::{
    problem::Problem,
    view::{Context, Listed as _},
};
use crate::{
    ids::Tgid,
    model::snapshot::{Process, ProcessState, Snapshot},
};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// Bytes to what mem_info calls a megabyte.
const MB: f64 = (1 << 20) as f64;

/// The answer.
#[derive(Serialize)]
pub(super) struct Stats {
    time_ns: u64,
    mem_info: MemInfo,
    /// Whose memory that is: a cgroup's path; null for the machine's.
    mem_info_cgroup: Option<Arc<str>>,
    /// Pid of the tree's root.
    tree: Tgid,
    /// The root; null where it has gone and its processes go on.
    root: Option<Box<RawValue>>,
    /// All processes of the tree that run, the root too.
    processes: Vec<Box<RawValue>>,
}

/// Memory, by the names that model servers use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct MemInfo {
    /// The limit that counts, or all that the machine has.
    total_mb: f64,
    /// In use.
    usage_mb: f64,
    /// The most ever in use.
    max_usage_mb: f64,
}

impl MemInfo {
    fn of_bytes(total: u64, usage: u64, most: u64) -> Self {
        let mb = |bytes: u64| bytes as f64 / MB;
        Self { total_mb: mb(total), usage_mb: mb(usage), max_usage_mb: mb(most) }
    }
}

impl Stats {
    /// Of the tree that a process belongs to.
    pub(super) fn of(snapshot: &Snapshot, pid: Tgid) -> Result<Self, Problem> {
        let running = |process: &&Arc<Process>| process.state == ProcessState::Running;
        let asked =
            snapshot.processes.iter().filter(running).find(|process| process.id.tgid == pid).ok_or_else(|| {
                Problem::new(StatusCode::NOT_FOUND, format!("no process {pid} runs, or it began after the last tick"))
            })?;
        let tree: Vec<_> = snapshot.processes.iter().filter(running).filter(|p| p.tree == asked.tree).collect();
        let root = tree.iter().find(|process| process.id == asked.tree);
        let (mem_info, mem_info_cgroup) = memory(snapshot, root.unwrap_or(&asked)).ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "memory is not polled: memory_monitoring is switched off")
        })?;
        let context = Context::of(snapshot);
        Ok(Self {
            time_ns: snapshot.time.0,
            mem_info,
            mem_info_cgroup,
            tree: asked.tree.tgid,
            root: root.map(|root| json(root, context)).transpose()?,
            processes: tree.iter().map(|process| json(process, context)).collect::<Result<_, _>>()?,
        })
    }
}

/// A process as `/v1/processes` lists it.
fn json(process: &Process, context: Context) -> Result<Box<RawValue>, Problem> {
    let write = || {
        let mut out = Vec::new();
        process.write(context, &mut out)?;
        serde_json::from_slice(&out)
    };
    write().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Memory of a process's cgroup, and its path; outside any, the machine's.
fn memory(snapshot: &Snapshot, process: &Process) -> Option<(MemInfo, Option<Arc<str>>)> {
    let of_cgroup = || {
        let path = process.cgroup_path.as_ref().filter(|path| &***path != "/")?;
        let place = snapshot.cgroups.binary_search_by(|cgroup| cgroup.path.cmp(path)).ok()?;
        let usage = snapshot.cgroups[place].usage.as_ref()?;
        let current = usage.reading.memory.as_ref()?.current_bytes;
        let (limit, peak) = (usage.limit.as_ref()?.bytes, usage.peak?.bytes);
        Some((MemInfo::of_bytes(limit, current, peak.max(current)), Some(path.clone())))
    };
    let of_host = || {
        let memory = snapshot.host_usage.as_ref()?.reading.memory?;
        let used = memory.used_bytes();
        Some((MemInfo::of_bytes(memory.total_bytes, used, used), None))
    };
    of_cgroup().or_else(of_host)
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};
    use crate::{
        model::usage::{CgroupUsage, HostUsage, Limit, Peak},
        reading::{CgroupReading, HostMemory, HostReading, MemoryReading},
    };

    fn snapshot() -> Snapshot {
        let mut snapshot = fixtures::snapshot();
        let memory = MemoryReading { current_bytes: 3 << 20, ..MemoryReading::default() };
        let usage = CgroupUsage {
            reading: CgroupReading { memory: Some(memory), ..CgroupReading::default() },
            limit: Some(Limit { bytes: 8 << 20, source: None }),
            peak: Some(Peak { bytes: 5 << 20, by_kernel: true }),
            ..CgroupUsage::default()
        };
        let cgroup = snapshot.cgroups.iter_mut().find(|cgroup| &*cgroup.path == "/apps/a").unwrap();
        Arc::make_mut(cgroup).usage = Some(Arc::new(usage));
        let memory = HostMemory { total_bytes: 64 << 20, available_bytes: 44 << 20, ..HostMemory::default() };
        let reading = HostReading { memory: Some(memory), ..HostReading::default() };
        snapshot.host_usage = Some(Arc::new(HostUsage { reading, ..HostUsage::default() }));
        snapshot
    }

    #[test]
    fn any_process_of_a_tree_tells_of_all_of_it() {
        let snapshot = snapshot();
        let of = |pid| Stats::of(&snapshot, Tgid(pid)).map_err(|problem| problem.json()).unwrap();
        let (root, worker) = (of(10), of(11));
        assert_eq!((root.tree, worker.tree), (Tgid(10), Tgid(10)));
        assert_eq!(root.processes.len(), 2);
        assert!(worker.root.unwrap().get().contains("\"pid\":10,"));
        assert_eq!(worker.mem_info, MemInfo { total_mb: 8.0, usage_mb: 3.0, max_usage_mb: 5.0 });
        assert_eq!(worker.mem_info_cgroup.as_deref(), Some("/apps/a"));
    }

    #[test]
    fn outside_a_cgroup_with_memory_it_is_the_machines() {
        let stats = Stats::of(&snapshot(), Tgid(20)).map_err(|problem| problem.json()).unwrap();
        assert_eq!(stats.mem_info, MemInfo { total_mb: 64.0, usage_mb: 20.0, max_usage_mb: 20.0 });
        assert_eq!(stats.mem_info_cgroup, None);
    }

    #[test]
    fn who_does_not_run_is_not_found() {
        assert!(Stats::of(&snapshot(), Tgid(30)).err().unwrap().json().contains("no process 30 runs"));
        assert!(Stats::of(&fixtures::snapshot(), Tgid(10)).err().unwrap().json().contains("memory_monitoring"));
    }
}
