//! `/v1/stats`: what a server's own `/stats/` endpoint forwards: the memory it may use and uses, and the processes of its
//! tree. Found by the pid of any of them; without one, of whoever asks, as a server in a container does not know the pid that
//! it has on the host.

use super::{
    problem::Problem,
    select::Chosen,
    view::{Context, Listed as _},
};
use crate::{
    ids::Tgid,
    model::{
        snapshot::{Process, ProcessState, Snapshot},
        usage::CgroupUsage,
    },
};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use std::{iter, sync::Arc};

/// Bytes to what mem_info calls a megabyte.
const MB: f64 = (1 << 20) as f64;
/// Processes listed at most. Whoever may ask for its own tree only may have made that of any size.
const PROCESSES: usize = 1000;

/// The answer, but for the list of processes, which follows it.
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
    /// Processes of the tree that run, the root too.
    total: usize,
    /// Whether fewer than that are listed.
    truncated: bool,
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
    /// Of the tree that a running process belongs to, and which processes those are.
    pub(super) fn of(snapshot: &Snapshot, asked: &Process) -> Result<(Self, Chosen), Problem> {
        let of_tree = (0..).zip(snapshot.running()).filter(|(_, process)| process.tree == asked.tree);
        let mut places: Vec<u32> = of_tree.map(|(place, _)| place).collect();
        let total = places.len();
        places.truncate(PROCESSES);
        let root = snapshot.process(asked.tree.key()).filter(|root| root.state == ProcessState::Running);
        let (mem_info, mem_info_cgroup) = memory(snapshot, root.map_or(asked, |root| root)).ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "memory is not polled: memory_monitoring is switched off")
        })?;
        let stats = Self {
            time_ns: snapshot.time.0,
            mem_info,
            mem_info_cgroup,
            tree: asked.tree.tgid,
            root: root.map(|root| json(root, Context::of(snapshot))).transpose()?,
            total,
            truncated: places.len() < total,
        };
        Ok((stats, Chosen { places, total }))
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

fn of_usage(usage: &CgroupUsage) -> Option<MemInfo> {
    let current = usage.reading.memory.as_ref()?.current_bytes;
    let (limit, peak) = (usage.limit.as_ref()?.bytes, usage.peak?.bytes);
    Some(MemInfo::of_bytes(limit, current, peak.max(current)))
}

/// Memory of the innermost cgroup of a process that has memory of its own, and its path; outside any, the machine's.
fn memory(snapshot: &Snapshot, process: &Process) -> Option<(MemInfo, Option<Arc<str>>)> {
    let of_cgroup = || {
        // Below a cgroup that hands no controller down, memory is counted in that one.
        let path = process.cgroup_path.as_deref()?;
        iter::successors(Some(path), |path| Some(path.rsplit_once('/')?.0))
            .filter_map(|path| snapshot.cgroup(path).filter(|cgroup| &*cgroup.path != "/"))
            .find_map(|cgroup| Some((of_usage(cgroup.usage.as_ref()?)?, Some(Arc::clone(&cgroup.path)))))
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
    use crate::model::snapshot::Cgroup;

    fn of(snapshot: &Snapshot, pid: u32) -> Result<(Stats, Chosen), String> {
        let asked = snapshot.running_with(Tgid(pid)).ok_or("no such process")?;
        Stats::of(snapshot, asked).map_err(|problem| problem.json())
    }

    #[test]
    fn any_process_of_a_tree_tells_of_all_of_it() {
        let snapshot = fixtures::snapshot_with_memory();
        let ((root, listed), (worker, _)) = (of(&snapshot, 10).unwrap(), of(&snapshot, 11).unwrap());
        assert_eq!((root.tree, worker.tree), (Tgid(10), Tgid(10)));
        assert_eq!((listed.places, root.total, root.truncated), (vec![0, 1], 2, false));
        assert!(worker.root.unwrap().get().contains("\"pid\":10,"));
        assert_eq!(worker.mem_info, MemInfo { total_mb: 8.0, usage_mb: 3.0, max_usage_mb: 5.0 });
        assert_eq!(worker.mem_info_cgroup.as_deref(), Some("/apps/a"));
    }

    #[test]
    fn a_large_tree_is_cut() {
        let mut snapshot = fixtures::snapshot_with_memory();
        let worker = snapshot.processes[1].clone();
        snapshot.processes.splice(1..1, vec![worker; PROCESSES]);
        let (stats, listed) = of(&snapshot, 10).unwrap();
        assert_eq!((stats.total, stats.truncated, listed.places.len()), (PROCESSES + 2, true, PROCESSES));
    }

    #[test]
    fn outside_a_cgroup_with_memory_it_is_the_machines() {
        let (stats, _) = of(&fixtures::snapshot_with_memory(), 20).unwrap();
        assert_eq!(stats.mem_info, MemInfo { total_mb: 64.0, usage_mb: 20.0, max_usage_mb: 20.0 });
        assert_eq!(stats.mem_info_cgroup, None);
    }

    #[test]
    fn a_cgroup_without_memory_of_its_own_is_counted_in_the_one_above() {
        let mut snapshot = fixtures::snapshot_with_memory();
        let above = snapshot.cgroups.iter().position(|cgroup| &*cgroup.path == "/apps/a").unwrap();
        let inner = Cgroup { path: "/apps/a/inner".into(), usage: None, ..(*snapshot.cgroups[above]).clone() };
        snapshot.cgroups.insert(above + 1, Arc::new(inner));
        Arc::make_mut(&mut snapshot.processes[0]).cgroup_path = Some("/apps/a/inner".into());
        let (stats, _) = of(&snapshot, 10).unwrap();
        assert_eq!((stats.mem_info.total_mb, stats.mem_info_cgroup.as_deref()), (8.0, Some("/apps/a")));
    }

    #[test]
    fn of_two_cgroups_of_a_name_the_one_that_is_there_now_counts() {
        let mut snapshot = fixtures::snapshot_with_memory();
        let place = snapshot.cgroups.iter().position(|cgroup| &*cgroup.path == "/apps/a").unwrap();
        let gone = Cgroup { removed: true, usage: None, ..(*snapshot.cgroups[place]).clone() };
        for at in [place, place + 2] {
            snapshot.cgroups.insert(at, Arc::new(gone.clone()));
            assert_eq!(of(&snapshot, 10).unwrap().0.mem_info.total_mb, 8.0);
        }
    }

    #[test]
    fn what_is_not_polled_is_not_told() {
        assert!(of(&fixtures::snapshot(), 10).err().unwrap().contains("memory_monitoring"));
    }
}
