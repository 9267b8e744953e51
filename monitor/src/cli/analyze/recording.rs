//! The subjects of a recording: each container by its cgroup, and each process tree.

use super::subjects::Subjects;
use crate::{
    detect::Point,
    history::Recording,
    ids::ProcessId,
    model::snapshot::{Cgroup, Snapshot, Tree},
};
use std::{collections::HashMap, path::Path};

/// Replays a recording into its subjects. What of it cannot be read is told on standard error.
pub(super) fn read(path: &Path, subjects: &mut Subjects) -> anyhow::Result<()> {
    let recording = Recording::open(path)?;
    recording.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    recording.for_each_snapshot(|time_ns, snapshot| tell(time_ns as f64 / 1e9, snapshot, subjects))?;
    Ok(())
}

fn tell(time_seconds: f64, snapshot: &Snapshot, subjects: &mut Subjects) {
    let mut above: Option<&Cgroup> = None;
    // In order of path, so that what is inside a container comes after it.
    for cgroup in &snapshot.cgroups {
        let Some(container) = &cgroup.container else { continue };
        let is_inside =
            above.is_some_and(|above| cgroup.path.strip_prefix(&*above.path).is_some_and(|rest| rest.starts_with('/')));
        if is_inside {
            continue;
        }
        above = Some(cgroup);
        if let Some(point) = container_point(time_seconds, cgroup) {
            subjects.push(&format!("container {} {}", container.label(), cgroup.id), &point, true);
        }
    }
    let anon = anon_of_trees(snapshot);
    for tree in &snapshot.trees {
        if let Some(point) = tree_point(time_seconds, tree, anon.get(&tree.root).copied()) {
            let point = Point { limit_bytes: limit(snapshot, tree), ..point };
            subjects.push(&format!("tree {} {}", tree.root.tgid, tree.command), &point, true);
        }
    }
}

fn container_point(time_seconds: f64, cgroup: &Cgroup) -> Option<Point> {
    let usage = cgroup.usage.as_ref().filter(|_| !cgroup.removed)?;
    let memory = usage.reading.memory.as_ref()?;
    Some(Point {
        time_seconds,
        working_set_bytes: memory.working_set_bytes().unwrap_or(memory.current_bytes),
        anon_bytes: memory.anon_bytes.map(|anon| anon + memory.swap_bytes.unwrap_or_default()),
        limit_bytes: usage.limit.as_ref().map(|limit| limit.bytes),
        oom_kills_total: memory.events.oom_kill,
        ..Point::default()
    })
}

fn tree_point(time_seconds: f64, tree: &Tree, anon_bytes: Option<u64>) -> Option<Point> {
    let resident_bytes = tree.usage.as_ref().filter(|_| tree.running > 0)?.resident_bytes?;
    Some(Point { time_seconds, working_set_bytes: resident_bytes, anon_bytes, ..Point::default() })
}

/// Anonymous memory with swap of each tree's running processes. Pages that a fork shares count for each.
fn anon_of_trees(snapshot: &Snapshot) -> HashMap<ProcessId, u64> {
    let mut anon = HashMap::new();
    for process in snapshot.running() {
        if let Some(resident) = process.usage.as_ref().and_then(|usage| usage.reading.resident) {
            *anon.entry(process.tree).or_default() += resident.anon_bytes + resident.swap_bytes;
        }
    }
    anon
}

/// The limit of a tree's cgroup.
fn limit(snapshot: &Snapshot, tree: &Tree) -> Option<u64> {
    let path = tree.cgroup_path.as_ref()?;
    let place = snapshot.cgroups.binary_search_by(|cgroup| cgroup.path.cmp(path)).ok()?;
    Some(snapshot.cgroups[place].usage.as_ref()?.limit.as_ref()?.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::Settings,
        model::usage::{CgroupUsage, ProcessUsage, TreeUsage},
        reading::{CgroupReading, MemoryReading, ProcessReading, Resident},
        serve::fixtures,
    };
    use std::sync::Arc;

    #[test]
    fn a_container_is_one_subject_whatever_is_in_it() {
        let mut snapshot = fixtures::snapshot_with_container();
        let memory = MemoryReading {
            current_bytes: 9 << 20,
            inactive_file_bytes: Some(1 << 20),
            anon_bytes: Some(5 << 20),
            swap_bytes: Some(1 << 20),
            ..MemoryReading::default()
        };
        let reading = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
        let usage = Arc::new(CgroupUsage { reading, ..CgroupUsage::default() });
        let cgroup = Arc::make_mut(snapshot.cgroups.last_mut().unwrap());
        cgroup.usage = Some(usage);
        let point = container_point(7.0, cgroup).unwrap();
        assert_eq!((point.working_set_bytes, point.anon_bytes), (8 << 20, Some(6 << 20)));
        let inside = Cgroup { path: format!("{}/inside", cgroup.path).into(), ..cgroup.clone() };
        snapshot.cgroups.push(Arc::new(inside));
        let mut subjects = Subjects::new(Settings::default());
        tell(7.0, &snapshot, &mut subjects);
        let names: Vec<_> = subjects.judged().map(|(name, ..)| name.to_owned()).collect();
        assert_eq!(names, ["container shop/web-0/nginx 9"]);
    }

    #[test]
    fn a_tree_is_one_with_the_memory_of_its_processes_and_the_limit_of_its_cgroup() {
        let mut snapshot = fixtures::snapshot_with_memory();
        let resident = Resident { anon_bytes: 2 << 20, swap_bytes: 1 << 20, ..Resident::default() };
        let reading = ProcessReading { resident: Some(resident), ..ProcessReading::default() };
        let usage = Arc::new(ProcessUsage { reading, ..ProcessUsage::default() });
        for process in &mut snapshot.processes {
            Arc::make_mut(process).usage = Some(usage.clone());
        }
        let tree = snapshot.trees[0].clone();
        let of_tree = snapshot.running().iter().filter(|process| process.tree == tree.root).count() as u64;
        assert_eq!(anon_of_trees(&snapshot)[&tree.root], of_tree * (3 << 20));
        assert_eq!(limit(&snapshot, &tree), Some(8 << 20));
        let usage = Some(TreeUsage { resident_bytes: Some(5), ..TreeUsage::default() });
        let point = tree_point(7.0, &Tree { usage, ..(*tree).clone() }, Some(3)).unwrap();
        assert_eq!((point.working_set_bytes, point.anon_bytes), (5, Some(3)));
        assert!(tree_point(7.0, &Tree { usage, running: 0, ..(*tree).clone() }, None).is_none());
    }
}
