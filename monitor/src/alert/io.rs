//! Who waits for disks: for which, since when its queue is full, and by whom.
//!
//! The machine and cgroups are judged by what the kernel says of their waiting (PSI). Where it says nothing of a cgroup, each
//! tree in it is judged by its requests in flight: one that always has some waits all of the time; or by the kernel's delay
//! accounting of its processes' first threads, where that is on and has seen more. Whom they wait for is known
//! of every request that is done.

use super::{
    evidence::{Evidence, IoEvidence, TreeName, TreeOnDevice},
    level::{Key, Level, Limits, Show, Told},
    rule::Rule,
};
use crate::{
    detect::{self, Against, Subject},
    ids::{DeviceId, ProcessKey},
    model::{
        resources::io_wait_ratio,
        snapshot::{Cgroup, Snapshot, Tree},
    },
    units::human_seconds,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// What is told of devices is of about so long.
const RECENTLY: Duration = Duration::from_secs(5);
/// Who waits, so many of them.
const MOST_WAITING: usize = 3;
/// Who has this share of a queue fills it.
const FILLS: f64 = 0.5;

/// Who did I/O on which device lately.
#[derive(Debug, Default)]
pub(super) struct Recent(HashMap<(ProcessKey, DeviceId), Io>);

/// Rates, the latest of which count most.
#[derive(Clone, Copy, Debug, Default)]
struct Io {
    ops: f64,
    bytes: f64,
    /// Requests in flight.
    wait: f64,
}

impl Io {
    fn latency_seconds(&self) -> Option<f64> {
        (self.ops > 0.0).then(|| self.wait / self.ops)
    }
}

impl Recent {
    /// Takes in a tick.
    pub(super) fn take(&mut self, snapshot: &Snapshot) {
        /// Below this many requests a second, and this many in flight, somebody is forgotten.
        const NEXT_TO_NOTHING: f64 = 0.01;
        let old = (-snapshot.tick.as_secs_f64() / RECENTLY.as_secs_f64()).exp();
        for io in self.0.values_mut() {
            (io.ops, io.bytes, io.wait) = (io.ops * old, io.bytes * old, io.wait * old);
        }
        for new in snapshot.io.iter().filter(|new| new.ops.is_finite() && new.wait.is_finite()) {
            let io = self.0.entry((new.tree, new.device)).or_default();
            io.ops += new.ops * (1.0 - old);
            io.bytes += new.bytes * (1.0 - old);
            io.wait += new.wait * (1.0 - old);
        }
        self.0.retain(|_, io| io.ops > NEXT_TO_NOTHING || io.wait > NEXT_TO_NOTHING);
    }

    /// Trees that did I/O lately.
    fn trees<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a Arc<Tree>> {
        let mut keys: Vec<_> = self.0.keys().map(|(tree, _)| *tree).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter().filter_map(|key| tree(snapshot, key)).collect()
    }
}

/// How much of this tick a tree waited for disks, on any device: it had requests in flight, or delays of it were accounted for.
/// What a cgroup's own limit holds back (blk-throttle) is not in flight yet, and only delays tell of it.
pub(super) fn waits(snapshot: &Snapshot, tree: &Tree) -> f64 {
    let key = tree.root.key();
    let own = snapshot.io.iter().filter(|io| io.tree == key && io.wait.is_finite());
    own.map(|io| io.wait).sum::<f64>().max(delayed(tree).unwrap_or_default()).min(1.0)
}

/// How many of a tree's processes were delayed by disks, on average, as the kernel accounts for their first threads.
fn delayed(tree: &Tree) -> Option<f64> {
    tree.usage.and_then(|usage| usage.io_delay_ratio)
}

/// Shows how the machine, the cgroups of containers and services, and trees stand.
pub(super) fn each(snapshot: &Snapshot, subjects: &[&Arc<Cgroup>], recent: &Recent, threshold: f64, show: Show<'_>) {
    let limits = Limits::Above { warning: threshold, critical: None };
    let level = |key, value| Level { rule: Rule::IoBottleneck, key, value, limits };
    let stalled = snapshot.host_usage.as_ref().and_then(|usage| usage.stalls.io);
    if let Some(value) = stalled.or_else(|| io_wait_ratio(snapshot)) {
        show(level(Key::Host, value), &|level, mean| {
            told(level, mean, Subject::Host, evidence(snapshot, recent, |_| true))
        });
    }
    let mut told_by_kernel: Vec<&str> = Vec::new();
    for cgroup in subjects {
        let Some(value) = cgroup.usage.as_ref().and_then(|usage| usage.stalls.io) else { continue };
        told_by_kernel.push(&cgroup.path);
        show(level(Key::Cgroup(cgroup.id), value), &|level, mean| {
            let is_inside = |tree: &Tree| tree.cgroup_path.as_deref().is_some_and(|path| is_within(path, &cgroup.path));
            told(level, mean, detect::cgroup_subject(cgroup), evidence(snapshot, recent, is_inside))
        });
    }
    // The kernel's own threads write what others have left to them, and keep nobody waiting by that.
    for tree in recent.trees(snapshot).into_iter().filter(|tree| !tree.command_line.is_empty()) {
        let path = tree.cgroup_path.as_deref().unwrap_or_default();
        if told_by_kernel.iter().any(|above| is_within(path, above)) {
            continue;
        }
        let key = tree.root.key();
        show(level(Key::Tree(key), waits(snapshot, tree)), &|level, mean| {
            let evidence = evidence(snapshot, recent, |other| other.root.key() == key);
            told(level, mean, detect::tree_subject(tree), evidence)
        });
    }
}

/// Whether a cgroup is another one, or below it.
pub(super) fn is_within(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The tree with that root.
pub(super) fn tree(snapshot: &Snapshot, key: ProcessKey) -> Option<&Arc<Tree>> {
    // In order of the root's pid, of which there may be several where it was used again.
    let first = snapshot.trees.partition_point(|tree| tree.root.tgid < key.tgid);
    snapshot.trees[first..].iter().take_while(|tree| tree.root.tgid == key.tgid).find(|tree| tree.root.key() == key)
}

pub(super) fn name(tree: &Tree) -> TreeName {
    let command = match tree.command_line.as_str() {
        "" => tree.command.clone(),
        line => detect::shortened(line),
    };
    TreeName { tree: tree.root.tgid, command, cgroup: tree.cgroup_path.clone() }
}

/// What those who are meant wait for.
fn evidence(snapshot: &Snapshot, recent: &Recent, is_meant: impl Fn(&Tree) -> bool) -> IoEvidence {
    let all = recent.0.iter().filter_map(|((key, device), io)| Some((tree(snapshot, *key)?, *device, io)));
    let all: Vec<_> = all.collect();
    let meant = || all.iter().filter(|(tree, ..)| is_meant(tree));
    let mut waits = BTreeMap::<DeviceId, f64>::new();
    for (_, device, io) in meant() {
        *waits.entry(*device).or_default() += io.wait;
    }
    let Some((device, _)) = waits.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b)) else {
        return IoEvidence { device: stuck(snapshot), ..IoEvidence::default() };
    };
    let on_device = |(tree, _, io): &(&Arc<Tree>, DeviceId, &Io)| TreeOnDevice {
        name: name(tree),
        in_flight: io.wait,
        latency_seconds: io.latency_seconds(),
        delay_ratio: delayed(tree),
        ops_per_second: io.ops,
        bytes_per_second: io.bytes,
    };
    let mut waiting: Vec<_> = meant().filter(|(_, other, _)| *other == device).map(on_device).collect();
    waiting.sort_by(|a, b| b.in_flight.total_cmp(&a.in_flight).then(a.name.tree.cmp(&b.name.tree)));
    let everybody = || all.iter().filter(|(_, other, _)| *other == device);
    let in_flight = everybody().map(|(_, _, io)| io.wait).sum::<f64>();
    let largest = everybody().max_by(|(.., a), (.., b)| a.wait.total_cmp(&b.wait));
    let fills = |io: &Io| io.wait > FILLS * in_flight && io.wait > waiting.first().map_or(0.0, |first| first.in_flight);
    let noisy = largest.filter(|(tree, _, io)| !is_meant(tree) && fills(io)).map(on_device);
    // Of the machine all are meant: who fills the queue is told where others wait behind it.
    let is_alone = waiting.len() == 1;
    let noisy = noisy.or_else(|| {
        let first = waiting.first().filter(|first| !is_alone && first.in_flight > FILLS * in_flight)?;
        all.iter().all(|(tree, ..)| is_meant(tree)).then(|| first.clone())
    });
    let (ops, wait) = waiting.iter().fold((0.0, 0.0), |(o, w), tree| (o + tree.ops_per_second, w + tree.in_flight));
    waiting.truncate(MOST_WAITING);
    let known = snapshot.block_devices.iter().find(|known| known.id == device);
    let name = known.map_or_else(|| device.to_string(), |known| known.name.clone());
    IoEvidence {
        utilization_ratio: utilization(snapshot, &name),
        device: Some(name),
        in_flight: Some(in_flight),
        latency_seconds: (ops > 0.0).then(|| wait / ops),
        waiting,
        noisy,
    }
}

fn utilization(snapshot: &Snapshot, device: &str) -> Option<f64> {
    let usage = snapshot.host_usage.as_ref()?;
    let place = usage.reading.disks.iter().position(|disk| disk.name == device)?;
    Some(usage.disks.get(place)?.as_ref()?.utilization)
}

/// A disk that has requests and answers none.
fn stuck(snapshot: &Snapshot) -> Option<String> {
    let usage = snapshot.host_usage.as_ref()?;
    let disks = usage.reading.disks.iter().zip(&usage.disks).filter(|(disk, _)| disk.in_flight > 0);
    let busy = disks.filter_map(|(disk, rates)| Some((disk, rates.as_ref()?.utilization)));
    busy.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(disk, _)| disk.name.clone())
}

fn told(level: &Level, mean: f64, subject: Subject, evidence: IoEvidence) -> Told {
    let threshold = match level.limits {
        Limits::Above { warning, .. } => warning,
        _ => 0.0,
    };
    let against = Against { ratio: mean, what: " wait time", threshold };
    let mut summary = match &subject {
        Subject::Host => format!("I/O bottleneck: {against}"),
        other => format!("I/O bottleneck: {}: {against}", other.name()),
    };
    if let Some(device) = &evidence.device {
        summary += &format!(", for {device}");
    }
    if let Some(latency) = evidence.latency_seconds {
        summary += &format!(", {} a request", human_seconds(latency));
    }
    if let (Subject::Host, Some(first)) =
        (&subject, evidence.waiting.iter().find(|first| evidence.noisy.as_ref() != Some(first)))
    {
        summary += &format!("; {} waits", short(&first.name));
    }
    if let (Some(noisy), Some(all)) = (&evidence.noisy, evidence.in_flight) {
        let share = if all > 0.0 { noisy.in_flight / all } else { 1.0 };
        summary += &format!("; {} fills its queue: {:.0}% of what is in flight", short(&noisy.name), share * 100.0);
    }
    Told { subject, summary, evidence: Evidence::Io(evidence) }
}

/// A tree's name for a sentence.
pub(super) fn short(name: &TreeName) -> String {
    format!("{} ({})", name.command, name.tree)
}
