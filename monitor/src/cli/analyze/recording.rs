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
    use crate::serve::fixtures;

    #[test]
    fn containers_and_trees_are_subjects() {
        let mut subjects = Subjects::default();
        tell(1.0, &fixtures::snapshot_with_memory(), &mut subjects);
        let names: Vec<_> = subjects.judged().map(|(name, ..)| name.to_owned()).collect();
        assert!(names.iter().any(|name| name.starts_with("tree 10 ")), "{names:?}");
        let mut subjects = Subjects::default();
        tell(1.0, &fixtures::snapshot_with_container(), &mut subjects);
        let inside = subjects.judged().filter(|(name, ..)| name.starts_with("container ")).count();
        assert!(inside <= 1, "what is inside a container is not another one");
    }
}
