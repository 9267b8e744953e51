//! Everything of the node that is large enough to leak, judged tick by tick.
//!
//! Subjects are process trees, and the cgroups of containers and services. Small ones cannot have leaked much, and are left out:
//! what watching costs goes with what there is to watch.

use super::{
    finding::{self, Finding, Subject},
    judge::{CountedBy, Judge, Point, RequestCoverage},
    regression::Settings,
};
use crate::{
    ids::{CgroupId, ProcessKey},
    model::{
        container,
        snapshot::{self, Cgroup, Snapshot, Tree},
        totals::{Requests, Totals},
    },
    time::BootTime,
};
use monitor_common::resident::ANON;
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};

/// What has less memory than this is not watched, unless it had more before.
const LEAST_BYTES: u64 = 8 << 20;
/// So many are watched at most: each takes up to 16 KiB.
const MOST_SUBJECTS: usize = 512;
/// A subject's findings are drawn up anew once in so many of its points.
const POINTS_EACH: u32 = 5;

/// The judges of all subjects.
#[derive(Debug, Default)]
pub struct Watch {
    settings: Settings,
    subjects: HashMap<Key, Watched>,
}

/// Which subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The tree of this root.
    Tree(ProcessKey),
    /// This cgroup.
    Cgroup(CgroupId),
}

#[derive(Debug)]
struct Watched {
    judge: Judge,
    /// Points until findings are drawn up anew.
    left: u32,
    findings: Vec<Arc<Finding>>,
    /// The snapshot that had it last.
    snapshot: u64,
}

/// What all detectors claim now.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// As of this moment.
    pub time: BootTime,
    /// The worst first, then the oldest.
    pub findings: Vec<Arc<Finding>>,
    /// How many are watched, and how many are not for want of room.
    pub watched: Watching,
}

/// How much of what there is is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Watching {
    /// Subjects that are watched.
    pub watched: usize,
    /// Those that are large enough, and left out as there are too many.
    pub left_out: usize,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes in a snapshot, and tells what is claimed after it. What was seen of the trees in `resets`, and of the cgroups that
    /// their roots are in, is forgotten before.
    pub fn take(&mut self, snapshot: &Snapshot, resets: &[ProcessKey]) -> Arc<Findings> {
        for tree in snapshot.trees.iter().filter(|tree| resets.contains(&tree.root.key())) {
            self.subjects.remove(&Key::Tree(tree.root.key()));
            self.subjects.remove(&Key::Cgroup(tree.cgroup));
        }
        let mut left_out = 0;
        each_subject(snapshot, |key, point, subject| {
            left_out += usize::from(!self.watch(key, &point, snapshot, subject));
        });
        self.subjects.retain(|_, watched| watched.snapshot == snapshot.number);
        let mut findings: Vec<_> =
            self.subjects.iter().flat_map(|(key, watched)| watched.findings.iter().map(move |f| (*key, f))).collect();
        findings.sort_by_key(|(key, finding)| (finding.severity, finding.since, *key, finding.detector));
        let findings = findings.into_iter().map(|(_, finding)| Arc::clone(finding)).collect();
        let watched = Watching { watched: self.subjects.len(), left_out };
        Arc::new(Findings { time: snapshot.time, findings, watched })
    }

    /// Gives a subject's judge a point. Whether there was room for it.
    fn watch(&mut self, key: Key, point: &Point, snapshot: &Snapshot, subject: &dyn Fn() -> Subject) -> bool {
        if !self.subjects.contains_key(&key) {
            if size(point) < LEAST_BYTES {
                return true;
            }
            if self.subjects.len() >= MOST_SUBJECTS {
                return false;
            }
            let judge = Judge::new(self.settings);
            self.subjects.insert(key, Watched { judge, left: 0, findings: Vec::new(), snapshot: 0 });
        }
        let Some(watched) = self.subjects.get_mut(&key) else { return false };
        watched.snapshot = snapshot.number;
        watched.judge.push(point);
        watched.left = match watched.left.checked_sub(1) {
            Some(left) => left,
            None => {
                let judgement = watched.judge.judgement();
                let found = finding::findings(&subject(), &judgement, point, snapshot.time);
                watched.findings = found.into_iter().map(Arc::new).collect();
                POINTS_EACH - 1
            }
        };
        true
    }
}

fn size(point: &Point) -> u64 {
    point.anon_bytes.unwrap_or(point.working_set_bytes)
}

/// Every subject of a snapshot whose memory is known, with how it stands and what it is.
pub fn each_subject(snapshot: &Snapshot, mut take: impl FnMut(Key, Point, &dyn Fn() -> Subject)) {
    let limits: HashMap<CgroupId, u64> =
        snapshot.cgroups.iter().filter_map(|cgroup| Some((cgroup.id, limit(cgroup)?))).collect();
    for tree in snapshot.trees.iter().filter(|tree| tree.running > 0) {
        if let Some(point) = tree_point(tree, snapshot.time) {
            let point = Point { limit_bytes: limits.get(&tree.cgroup).copied(), ..point };
            take(Key::Tree(tree.root.key()), point, &|| tree_subject(tree));
        }
    }
    for cgroup in subject_cgroups(snapshot) {
        if let Some(point) = cgroup_point(cgroup, snapshot.time) {
            take(Key::Cgroup(cgroup.id), point, &|| cgroup_subject(cgroup));
        }
    }
}

/// Cgroups of containers and services; what is inside of one of them belongs to it.
pub(crate) fn subject_cgroups(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Cgroup>> {
    let mut above: Option<&Cgroup> = None;
    // In order of path, so that what is inside comes after it.
    snapshot.cgroups.iter().filter(|cgroup| is_subject(cgroup)).filter(move |cgroup| {
        let is_inside =
            above.is_some_and(|above| cgroup.path.strip_prefix(&*above.path).is_some_and(|rest| rest.starts_with('/')));
        if !is_inside {
            above = Some(cgroup);
        }
        !is_inside
    })
}

/// Containers' and services' own cgroups: those above them are sums of others.
fn is_subject(cgroup: &Cgroup) -> bool {
    !cgroup.removed && cgroup.running > 0 && (cgroup.container.is_some() || container::unit(&cgroup.path).is_some())
}

fn tree_point(tree: &Tree, time: BootTime) -> Option<Point> {
    let usage = tree.usage?;
    let resident_bytes = usage.resident_bytes?;
    // What its processes share counts once, where that is known of all of them. It is not read as often as all else, so that of a
    // process alone it would only be older.
    let shares = usage.shares.filter(|shares| tree.running > 1 && shares.processes == tree.running);
    let working_set_bytes = shares.map_or(resident_bytes, |shares| shares.private_bytes + shares.shared_bytes);
    let anon_bytes = usage.anon_bytes.map(|anon| anon + usage.swap_bytes.unwrap_or_default());
    Some(Point { working_set_bytes, anon_bytes, ..point(&tree.subject, time) })
}

fn cgroup_point(cgroup: &Cgroup, time: BootTime) -> Option<Point> {
    let usage = cgroup.usage.as_ref()?;
    let memory = usage.reading.memory.as_ref()?;
    Some(Point {
        working_set_bytes: memory.working_set_bytes().unwrap_or(memory.current_bytes),
        // All that is in use, less what of the page cache could go at the end of the tick.
        peak_bytes: memory
            .tick_peak_bytes
            .zip(memory.inactive_file_bytes)
            .map(|(peak, file)| peak.saturating_sub(file)),
        anon_bytes: memory.anon_bytes.map(|anon| anon + memory.swap_bytes.unwrap_or_default()),
        limit_bytes: limit(cgroup),
        oom_kills_total: memory.events.oom_kill,
        ..point(&cgroup.subject, time)
    })
}

fn limit(cgroup: &Cgroup) -> Option<u64> {
    Some(cgroup.usage.as_ref()?.limit.as_ref()?.bytes)
}

/// What the kernel's events tell.
fn point(subject: &snapshot::Subject, time: BootTime) -> Point {
    let Totals { address_space: calls, .. } = &subject.totals;
    let net = |grown: u64, shrunk: u64| grown.wrapping_sub(shrunk) as i64;
    let mapped = calls.mapped_anonymous_bytes + calls.mremap_grown_bytes;
    Point {
        time_seconds: time.0 as f64 / 1e9,
        requests_total: subject.totals.requests.as_ref().map(|requests| requests.served()),
        requests: subject.totals.requests.as_deref().map(coverage),
        mapped_net_bytes: Some(net(mapped, calls.unmapped_bytes + calls.mremap_shrunk_bytes)),
        heap_net_bytes: Some(net(calls.heap_grown_bytes, calls.heap_shrunk_bytes)),
        resident_net_bytes: subject.resident.map(|resident| resident.bytes[ANON] as i64),
        ..Point::default()
    }
}

fn coverage(requests: &Requests) -> RequestCoverage {
    let counts = requests.counts();
    RequestCoverage {
        counted_by: if requests.posted > 0 { CountedBy::Posts } else { CountedBy::Turns },
        turns_total: counts.answered,
        unanswered_total: counts.unanswered,
        connections_total: counts.connections,
        received_bytes_total: counts.received_bytes,
        sent_bytes_total: counts.sent_bytes,
    }
}

pub(crate) fn tree_subject(tree: &Tree) -> Subject {
    let command = if tree.command_line.is_empty() { &tree.command } else { &tree.command_line };
    Subject::Tree {
        root: tree.root.key(),
        command: command.clone(),
        cgroup: tree.cgroup_path.clone(),
        container: tree.container.clone(),
    }
}

pub(crate) fn cgroup_subject(cgroup: &Cgroup) -> Subject {
    Subject::Cgroup { id: cgroup.id, path: Arc::clone(&cgroup.path), container: cgroup.container.clone() }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Severity, *};
    use crate::{
        ids::Tgid,
        model::usage::{CgroupUsage, TreeShares, TreeUsage},
        reading::{CgroupReading, MemoryReading},
        serve::fixtures,
    };

    fn leaks(findings: &Findings) -> Vec<(Severity, String)> {
        let leaks = findings.findings.iter().filter(|finding| finding.detector == "leak");
        leaks.map(|finding| (finding.severity, finding.summary.clone())).collect()
    }

    #[test]
    fn what_grows_for_ten_minutes_is_claimed_and_forgotten_when_that_is_wished() {
        let mut watch = Watch::default();
        for second in 0..590 {
            let findings = watch.take(&fixtures::grown(second, 64 + second), &[]);
            assert_eq!((leaks(&findings), findings.watched.watched), (vec![], 1), "after {second} s");
        }
        for second in 590..660 {
            watch.take(&fixtures::grown(second, 64 + second), &[]);
        }
        let told = leaks(&watch.take(&fixtures::grown(660, 724), &[]));
        assert_eq!(told, [(Severity::Warning, "python3 train.py --epochs 3 (10) leaks 3.5 GiB per hour".to_owned())]);
        let root = fixtures::snapshot().trees[0].root.key();
        assert_eq!(leaks(&watch.take(&fixtures::grown(661, 725), &[root])), []);
    }

    #[test]
    fn what_a_program_counts_itself_goes_before_turns_and_comes_with_what_was_seen() {
        let told = |posted| {
            let mut requests = Requests::default();
            requests.posted = posted;
            (requests.served(), coverage(&requests).counted_by)
        };
        assert_eq!([told(0), told(7)], [(0, CountedBy::Turns), (7, CountedBy::Posts)]);
    }

    #[test]
    fn small_ones_are_not_watched_and_those_that_are_gone_no_more() {
        let mut watch = Watch::default();
        assert_eq!(watch.take(&fixtures::grown(0, 7), &[]).watched.watched, 0);
        assert_eq!(watch.take(&fixtures::grown(1, 8), &[]).watched.watched, 1);
        assert_eq!(watch.take(&fixtures::grown(2, 1), &[]).watched.watched, 1, "it was larger before");
        let gone = Snapshot { trees: Vec::new(), ..fixtures::grown(3, 1) };
        assert_eq!(watch.take(&gone, &[]).watched.watched, 0);
    }

    #[test]
    fn of_too_many_the_rest_is_left_out_and_that_is_told() {
        let crowd = |second| {
            let snapshot = fixtures::grown(second, 64);
            let copy = |number: u32| {
                let mut tree = (*snapshot.trees[0]).clone();
                tree.root.tgid = Tgid(1000 + number);
                Arc::new(tree)
            };
            Snapshot { trees: (0..MOST_SUBJECTS as u32 + 3).map(copy).collect(), ..snapshot }
        };
        let mut watch = Watch::default();
        assert_eq!(watch.take(&crowd(0), &[]).watched, Watching { watched: MOST_SUBJECTS, left_out: 3 });
    }

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
        let cgroup = Arc::make_mut(snapshot.cgroups.last_mut().unwrap());
        cgroup.usage = Some(Arc::new(CgroupUsage { reading, ..CgroupUsage::default() }));
        cgroup.running = 1;
        let inside = Cgroup { path: format!("{}/inside", cgroup.path).into(), ..cgroup.clone() };
        snapshot.cgroups.push(Arc::new(inside));
        let mut told = Vec::new();
        each_subject(&snapshot, |key, point, subject| {
            if matches!(key, Key::Cgroup(_)) {
                told.push((subject().label(), point.working_set_bytes, point.anon_bytes));
            }
        });
        assert_eq!(told, [("container shop/web-0/nginx".to_owned(), 8 << 20, Some(6 << 20))]);
    }

    #[test]
    fn a_tree_has_the_memory_of_its_processes_and_the_limit_of_its_cgroup() {
        let mut snapshot = fixtures::snapshot_with_memory();
        let resident_bytes = Some(9);
        // Shares of a process alone are older than all else that is known of it.
        let shares = Some(TreeShares { private_bytes: 3, shared_bytes: 1, processes: 1 });
        let (anon_bytes, swap_bytes) = (Some(5), Some(2));
        let usage = TreeUsage { resident_bytes, anon_bytes, swap_bytes, shares, ..TreeUsage::default() };
        let limited = snapshot.cgroups.iter().find(|cgroup| limit(cgroup) == Some(8 << 20)).unwrap().id;
        let tree = Arc::make_mut(&mut snapshot.trees[0]);
        (tree.usage, tree.cgroup, tree.running) = (Some(usage), limited, 1);
        let mut told = Vec::new();
        each_subject(&snapshot, |key, point, _| {
            if key == Key::Tree(snapshot.trees[0].root.key()) {
                told.push((point.working_set_bytes, point.anon_bytes, point.limit_bytes));
            }
        });
        assert_eq!(told, [(9, Some(7), Some(8 << 20))]);
    }
}
