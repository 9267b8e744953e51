//! Why the kernel killed a process: whose limit was reached, who grew into it, and whom it hit.
//!
//! The last ten minutes of every cgroup with a limit, of every container and service, and of all larger processes are kept,
//! coarsely. When a process is killed for want of memory, what is kept of its cgroup and of all who live under the same limit
//! becomes a [`Story`], which stays when all of them have gone. Pure: time and data are arguments.

use super::{evidence::TreeName, io};
use crate::{
    detect,
    ids::{CgroupId, ProcessKey, Tgid},
    model::{
        container::Container,
        snapshot::{Cgroup, Process, ProcessState, Snapshot},
    },
    reading::MemoryEvents,
    time::BootTime,
    units::PAGE,
};
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Time from one point to the next, and how many are kept: ten minutes.
const EVERY: Duration = Duration::from_secs(10);
const POINTS: usize = 60;
/// Cgroups and processes that points are kept of, at most: with all of them some 2.5 MiB.
const MOST_CGROUPS: usize = 256;
const MOST_PROCESSES: usize = 512;
/// Smaller processes are not followed.
const LEAST_BYTES: u64 = 8 << 20;
/// Processes that a story names, and stories that are kept.
const MOST_NAMED: usize = 10;
const MOST_STORIES: usize = 32;
/// Who has this share of a limit is at it.
const AT_LIMIT: f64 = 0.95;

/// What happened before the kernel killed processes of one cgroup, and who was to blame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Story {
    /// When the first of them ended.
    pub time_ns: BootTime,
    /// Path of the cgroup that they were in.
    pub cgroup: Option<Arc<str>>,
    /// The container that is.
    pub container: Option<String>,
    /// Whether the cgroup has gone since.
    pub cgroup_removed: bool,
    /// In one line.
    pub summary: String,
    /// The limit that was reached.
    pub limit: Reached,
    /// Whom the kernel killed, in order of their end.
    pub victims: Vec<Member>,
    /// Who grew most under that limit.
    pub culprit: Option<Member>,
    /// Whether that was one of the victims.
    pub culprit_was_killed: bool,
    /// Those under that limit who grew most, or had most.
    pub members: Vec<Member>,
    /// The last ten minutes under that limit, the oldest first; those of the victim's cgroup where no other are kept.
    pub points: Vec<Point>,
    /// Path of the cgroup that `points` are of; none where they are the machine's.
    pub points_of: Option<Arc<str>>,
}

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reached {
    /// Path of the cgroup that sets it; none where the machine's memory was used up.
    pub cgroup: Option<Arc<str>>,
    /// How much it is.
    pub bytes: Option<u64>,
    /// How that is known.
    pub known_by: KnownBy,
    /// In use there, when that was last read.
    pub current_bytes: Option<u64>,
    /// The most that was ever in use there.
    pub peak_bytes: Option<u64>,
}

/// How it is known which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownBy {
    /// The kernel counted it there (`oom` of memory.events, memory.failcnt).
    Counter,
    /// Memory in use, or its peak, was at it.
    Use,
    /// It is the tightest: all had gone before anything was counted.
    TightestLimit,
    /// There is no limit but the machine's memory.
    NoLimit,
}

/// A process under the limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// Its pid.
    pub pid: Tgid,
    /// When it started, boot clock.
    pub start_time_ns: u64,
    /// Its name.
    pub command: String,
    /// The tree it belongs to.
    pub tree: Option<TreeName>,
    /// Path of its cgroup.
    pub cgroup: Option<Arc<str>>,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
    /// In memory ten minutes ago, or when it was first looked at since; 0 where it is younger.
    pub first_bytes: u64,
    /// In memory when it was last looked at; of a victim, when the kernel chose it.
    pub last_bytes: Option<u64>,
    /// Its faults on fresh pages since the agent started, in bytes: what it touched, though it may have lived too shortly to be
    /// looked at.
    pub faulted_bytes: u64,
    /// How much it grew: by what was seen of it, or by what it touched around the kill, where that is more.
    pub grown_bytes: u64,
    /// Requests that its tree had served.
    pub requests_total: Option<u64>,
    /// Memory that it held on GPUs.
    pub gpu_memory_bytes: Option<u64>,
}

/// How memory stood at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// When.
    pub time_ns: BootTime,
    /// In use.
    pub current_bytes: u64,
    /// In use, less the page cache that is given back first.
    pub working_set_bytes: Option<u64>,
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Swapped out.
    pub swap_bytes: Option<u64>,
    /// Share of the time in which a task waited for memory.
    pub memory_stall_ratio: Option<f64>,
    /// Share of the time in which a task waited for a disk.
    pub io_stall_ratio: Option<f64>,
    /// Processes.
    pub processes: u32,
    /// Requests answered per second.
    pub requests_per_second: f64,
}

/// Keeps what stories are made of.
#[derive(Debug, Default)]
pub struct BlackBox {
    due: BootTime,
    host: VecDeque<Point>,
    cgroups: HashMap<CgroupId, Kept>,
    processes: HashMap<ProcessKey, VecDeque<(BootTime, u64)>>,
    /// Victims that a story was, or is to be, told of.
    known: HashSet<ProcessKey>,
    /// Victims of the last tick, by cgroup.
    killed: Vec<Vec<Arc<Process>>>,
    /// What processes touched in that tick, in bytes, where somebody was killed.
    touched: HashMap<ProcessKey, u64>,
    stories: Stories,
}

/// What is kept of a cgroup.
#[derive(Debug, Default)]
struct Kept {
    points: VecDeque<Point>,
    /// Its counters at the last point, and at the one before: one of them is of before the kill.
    events: [MemoryEvents; 2],
}

/// All stories, the latest first.
pub type Stories = Arc<Vec<Arc<Story>>>;

impl BlackBox {
    /// Takes in a snapshot. What there is to tell that was not told before: of the tick before, as what is read of a tick may be
    /// older than what is last heard of in it.
    pub fn take(&mut self, snapshot: &Snapshot) -> Vec<Arc<Story>> {
        let killed = std::mem::take(&mut self.killed);
        if !killed.is_empty() {
            self.touch(snapshot);
        }
        let news: Vec<_> = killed.iter().map(|victims| Arc::new(self.story(snapshot, victims))).collect();
        let exited = &snapshot.processes[snapshot.running().len()..];
        let is_victim =
            |process: &&Arc<Process>| matches!(process.state, ProcessState::Exited { oom_killed: true, .. });
        let victims: Vec<_> = exited.iter().filter(is_victim).collect();
        self.known.retain(|key| victims.iter().any(|victim| victim.id.key() == *key));
        let mut by_cgroup = BTreeMap::<CgroupId, Vec<Arc<Process>>>::new();
        for victim in victims {
            if self.known.insert(victim.id.key()) {
                by_cgroup.entry(victim.cgroup).or_default().push(Arc::clone(victim));
            }
        }
        self.killed = by_cgroup.into_values().collect();
        self.touched.clear();
        if !self.killed.is_empty() {
            self.touch(snapshot);
        }
        if !news.is_empty() {
            let all = news.iter().rev().chain(self.stories.iter()).cloned();
            self.stories = Arc::new(all.take(MOST_STORIES).collect());
        }
        if snapshot.time >= self.due {
            self.due = BootTime(snapshot.time.0 + EVERY.as_nanos() as u64);
            self.keep(snapshot);
        }
        news
    }

    /// All that is kept, the latest first.
    pub fn stories(&self) -> Stories {
        Arc::clone(&self.stories)
    }

    /// Adds what processes touched in a tick.
    fn touch(&mut self, snapshot: &Snapshot) {
        for process in &snapshot.processes {
            let faults = finite(process.subject.rates.page_faults) * snapshot.tick.as_secs_f64();
            if faults > 0.0 {
                *self.touched.entry(process.id.key()).or_default() += faults.round() as u64 * PAGE;
            }
        }
    }

    fn keep(&mut self, snapshot: &Snapshot) {
        push(&mut self.host, host_point(snapshot));
        let subjects: HashSet<CgroupId> = detect::subject_cgroups(snapshot).map(|cgroup| cgroup.id).collect();
        self.cgroups.retain(|id, _| snapshot.cgroups.iter().any(|cgroup| cgroup.id == *id));
        for cgroup in snapshot.cgroups.iter().filter(|cgroup| !cgroup.removed) {
            let Some((point, events)) = cgroup_point(snapshot, cgroup) else { continue };
            let is_meant = subjects.contains(&cgroup.id) || own_limit(cgroup).is_some();
            if !is_meant || !self.cgroups.contains_key(&cgroup.id) && self.cgroups.len() >= MOST_CGROUPS {
                continue;
            }
            let kept = self.cgroups.entry(cgroup.id).or_default();
            push(&mut kept.points, point);
            kept.events = [kept.events[1], events];
        }
        let running = snapshot.running();
        let runs = |key: &ProcessKey| running.binary_search_by_key(key, |process| process.id.key()).is_ok();
        // Of whom a story is to be told, too.
        let is_victim = |key: &ProcessKey| self.killed.iter().flatten().any(|victim| victim.id.key() == *key);
        self.processes.retain(|key, _| runs(key) || is_victim(key));
        for process in running {
            let (key, Some(bytes)) = (process.id.key(), resident_bytes(process)) else { continue };
            let is_known = self.processes.contains_key(&key);
            if !is_known && (bytes < LEAST_BYTES || self.processes.len() >= MOST_PROCESSES) {
                continue;
            }
            push(self.processes.entry(key).or_default(), (snapshot.time, bytes));
        }
    }

    fn story(&self, snapshot: &Snapshot, victims: &[Arc<Process>]) -> Story {
        let first = &victims[0];
        let path = first.cgroup_path.as_deref().unwrap_or("/");
        let cgroup = snapshot.cgroups.iter().find(|cgroup| cgroup.id == first.cgroup);
        let limit = self.reached(snapshot, path);
        let is_under = |process: &Process| match &limit.cgroup {
            Some(limit) => process.cgroup_path.as_deref().is_some_and(|path| io::is_within(path, limit)),
            None => true,
        };
        let is_gone = |victim: &&Arc<Process>| snapshot.process(victim.id.key()).is_none();
        let mut members: Vec<_> = snapshot
            .processes
            .iter()
            .chain(victims.iter().filter(is_gone))
            .filter(|process| is_under(process))
            .map(|process| self.member(snapshot, process))
            .collect();
        members.sort_by_key(|member| (Reverse((member.grown_bytes, member.last_bytes)), member.pid));
        members.truncate(MOST_NAMED);
        let victims: Vec<_> = victims.iter().map(|victim| self.member(snapshot, victim)).collect();
        let culprit = members.first().filter(|member| member.grown_bytes > 0).cloned();
        let culprit_was_killed = culprit.as_ref().is_some_and(|culprit| culprit.oom_killed);
        let time_ns = ended(first).unwrap_or(snapshot.time);
        let (points, points_of) = self.points(snapshot, &limit, cgroup);
        let container: Option<&Container> = first.container.as_deref();
        Story {
            time_ns,
            summary: summary(&victims, &limit, culprit.as_ref(), culprit_was_killed),
            cgroup: first.cgroup_path.clone(),
            container: container.map(Container::label),
            cgroup_removed: cgroup.is_none_or(|cgroup| cgroup.removed),
            limit,
            victims,
            culprit,
            culprit_was_killed,
            members,
            points,
            points_of,
        }
    }

    /// The limit that was reached by who is in this cgroup: the innermost one that the kernel counted it at, else one that is
    /// full, else the tightest.
    fn reached(&self, snapshot: &Snapshot, path: &str) -> Reached {
        let mut above: Vec<&Arc<Cgroup>> =
            snapshot.cgroups.iter().filter(|cgroup| io::is_within(path, &cgroup.path)).collect();
        above.sort_by_key(|cgroup| Reverse(cgroup.path.len()));
        let limited = || above.iter().filter(|cgroup| own_limit(cgroup).is_some());
        let counted = limited().find(|cgroup| self.has_counted(cgroup));
        let full = || limited().find(|cgroup| is_full(cgroup));
        let tightest = || limited().min_by_key(|cgroup| own_limit(cgroup));
        let known = counted.map(|cgroup| (cgroup, KnownBy::Counter));
        let known = known.or_else(|| full().map(|cgroup| (cgroup, KnownBy::Use)));
        let known = known.or_else(|| tightest().map(|cgroup| (cgroup, KnownBy::TightestLimit)));
        let Some((cgroup, known_by)) = known else {
            let memory = snapshot.host_usage.as_ref().and_then(|usage| usage.reading.memory);
            return Reached {
                cgroup: None,
                bytes: memory.map(|memory| memory.total_bytes),
                known_by: KnownBy::NoLimit,
                current_bytes: memory.map(|memory| memory.used_bytes()),
                peak_bytes: None,
            };
        };
        let usage = cgroup.usage.as_ref();
        Reached {
            cgroup: Some(Arc::clone(&cgroup.path)),
            bytes: own_limit(cgroup),
            known_by,
            current_bytes: usage.and_then(|usage| Some(usage.reading.memory.as_ref()?.current_bytes)),
            peak_bytes: usage.and_then(|usage| Some(usage.peak?.bytes)),
        }
    }

    /// Whether reclaim failed at this cgroup's limit lately: `oom` of cgroup v2, and of v1, which has no such counter, charges
    /// that failed.
    fn has_counted(&self, cgroup: &Cgroup) -> bool {
        let Some(memory) = cgroup.usage.as_ref().and_then(|usage| usage.reading.memory.as_ref()) else { return false };
        let before = self.cgroups.get(&cgroup.id).map(|kept| kept.events[0]).unwrap_or_default();
        let count = |events: &MemoryEvents| events.oom.or(events.max).unwrap_or_default();
        count(&memory.events) > count(&before)
    }

    fn points(
        &self,
        snapshot: &Snapshot,
        limit: &Reached,
        cgroup: Option<&Arc<Cgroup>>,
    ) -> (Vec<Point>, Option<Arc<str>>) {
        let limiting = limit.cgroup.as_deref().and_then(|path| snapshot.cgroup(path));
        let Some(meant) = limiting.or(cgroup.filter(|_| limit.cgroup.is_some())) else {
            let last = host_point(snapshot);
            return (self.host.iter().copied().chain([last]).collect(), None);
        };
        let kept = self.cgroups.get(&meant.id).map(|kept| kept.points.iter().copied()).into_iter().flatten();
        let last = cgroup_point(snapshot, meant).map(|(point, _)| point);
        (kept.chain(last).collect(), Some(Arc::clone(&meant.path)))
    }

    fn member(&self, snapshot: &Snapshot, process: &Process) -> Member {
        let kept = self.processes.get(&process.id.key());
        let last_bytes =
            resident_bytes(process).or_else(|| kept.and_then(|points| points.back()).map(|(_, bytes)| *bytes));
        // Who is older than what is kept had something before, that is not known unless it was looked at.
        let begin = snapshot.time.0.saturating_sub(EVERY.as_nanos() as u64 * POINTS as u64);
        let is_young = process.id.start_ns >= begin.max(snapshot.since.0);
        let first_bytes = match kept.and_then(|points| points.front()) {
            _ if is_young => 0,
            Some((_, bytes)) => *bytes,
            None => last_bytes.unwrap_or_default().min(LEAST_BYTES),
        };
        // A fault brings a page, and of a huge one 512 times as much: this is the least it can be.
        let faulted_bytes = process.subject.totals.user_faults() * PAGE;
        let seen = last_bytes.unwrap_or_default().saturating_sub(first_bytes);
        // What grows within a tick, and may have given it back by the end of it, is known by its faults.
        let touched = self.touched.get(&process.id.key()).copied().unwrap_or_default();
        let grown_bytes = seen.max(if is_young { faulted_bytes } else { touched });
        let tree = io::tree(snapshot, process.tree.key());
        Member {
            pid: process.id.tgid,
            start_time_ns: process.id.start_ns,
            command: process.command.clone(),
            tree: tree.map(|tree| io::name(tree)),
            cgroup: process.cgroup_path.clone(),
            oom_killed: matches!(process.state, ProcessState::Exited { oom_killed: true, .. }),
            first_bytes,
            last_bytes,
            faulted_bytes,
            grown_bytes,
            requests_total: tree.and_then(|tree| Some(tree.subject.totals.requests.as_ref()?.served())),
            gpu_memory_bytes: process.subject.gpu_memory_bytes,
        }
    }
}

fn push<T>(points: &mut VecDeque<T>, point: T) {
    if points.len() >= POINTS {
        points.pop_front();
    }
    points.push_back(point);
}

/// In memory, when it was last looked at; the kernel's word is newer than /proc's, but gone with the process unless it was killed.
fn resident_bytes(process: &Process) -> Option<u64> {
    let when_killed = process.resident_when_killed.map(|resident| resident.total_bytes());
    let by_kernel = process
        .subject
        .resident
        .map(|resident| resident.bytes.iter().sum::<u64>() - resident.bytes[monitor_common::resident::SWAP]);
    when_killed.or(by_kernel).or_else(|| Some(process.usage.as_ref()?.reading.resident?.total_bytes()))
}

fn own_limit(cgroup: &Cgroup) -> Option<u64> {
    cgroup.usage.as_ref()?.reading.memory.as_ref()?.limit_bytes
}

fn is_full(cgroup: &Cgroup) -> bool {
    let Some((usage, limit)) = cgroup.usage.as_ref().zip(own_limit(cgroup)) else { return false };
    let current = usage.reading.memory.as_ref().map_or(0, |memory| memory.current_bytes);
    let most = usage.peak.map_or(current, |peak| peak.bytes.max(current));
    most as f64 >= AT_LIMIT * limit as f64
}

fn ended(process: &Process) -> Option<BootTime> {
    match process.state {
        ProcessState::Exited { time, .. } => Some(time),
        ProcessState::Running => None,
    }
}

fn cgroup_point(snapshot: &Snapshot, cgroup: &Cgroup) -> Option<(Point, MemoryEvents)> {
    let usage = cgroup.usage.as_ref()?;
    let memory = usage.reading.memory.as_ref()?;
    let point = Point {
        time_ns: snapshot.time,
        current_bytes: memory.current_bytes,
        working_set_bytes: memory.working_set_bytes(),
        anon_bytes: memory.anon_bytes,
        swap_bytes: memory.swap_bytes,
        memory_stall_ratio: usage.stalls.memory,
        io_stall_ratio: usage.stalls.io,
        processes: cgroup.running,
        requests_per_second: finite(cgroup.subject.rates.requests),
    };
    Some((point, memory.events))
}

fn host_point(snapshot: &Snapshot) -> Point {
    let usage = snapshot.host_usage.as_ref();
    let memory = usage.and_then(|usage| usage.reading.memory);
    let stalls = usage.map(|usage| usage.stalls).unwrap_or_default();
    Point {
        time_ns: snapshot.time,
        current_bytes: memory.map_or(0, |memory| memory.used_bytes()),
        working_set_bytes: memory.map(|memory| memory.used_bytes()),
        anon_bytes: memory.map(|memory| memory.anon_bytes),
        swap_bytes: memory.map(|memory| memory.swap_total_bytes.saturating_sub(memory.swap_free_bytes)),
        memory_stall_ratio: stalls.memory,
        io_stall_ratio: stalls.io,
        processes: snapshot.running().len() as u32,
        requests_per_second: finite(snapshot.host.rates.requests),
    }
}

/// Nothing is a rate in a first tick.
fn finite(rate: f64) -> f64 {
    if rate.is_finite() { rate } else { 0.0 }
}

fn summary(victims: &[Member], limit: &Reached, culprit: Option<&Member>, culprit_was_killed: bool) -> String {
    use crate::units::human_bytes;
    let name = |member: &Member| format!("{} ({})", member.command, member.pid);
    let mut words = format!("the kernel killed {}", name(&victims[0]));
    if victims.len() > 1 {
        words += &format!(" and {} more", victims.len() - 1);
    }
    words += &match (&limit.cgroup, limit.bytes) {
        (Some(path), Some(bytes)) => format!(": {path} was at its limit of {}", human_bytes(bytes as f64)),
        _ => ": the machine's memory was used up".to_owned(),
    };
    if let Some(culprit) = culprit {
        let grown = human_bytes(culprit.grown_bytes as f64);
        words += &if culprit_was_killed && culprit.pid == victims[0].pid {
            format!("; it had grown by {grown}")
        } else {
            format!("; {} had grown by {grown}", name(culprit))
        };
    }
    words
}

#[cfg(test)]
mod tests;
