//! What became of a command and all that descends from it, snapshot by snapshot. Pure, and bounded however long it takes.
//!
//! The command begins a tree (`model/processes.rs`), which its descendants join. Some begin trees of their own there: in another
//! cgroup, such as a container's, or by a rule. The story is of all of them.

use crate::{
    coverage::Coverage,
    detect::{Judge, Judgement, Key, Point, Settings, Verdict, each_subject},
    ids::{ProcessKey, Tgid},
    model::snapshot::{Process, ProcessState, Snapshot, Tree},
    source::Source,
    time::BootTime,
};
use monitor_common::{
    block_io::operation::{READ, WRITE},
    resident::{ANON, FILE, SHMEM},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Trees that are judged at the same time, each with up to 16 KiB.
const MOST_JUDGED: usize = 512;
/// Judgements that are kept of trees that have ended: the worst.
const MOST_KEPT: usize = 32;

/// The story so far.
pub(super) struct Story {
    settings: Settings,
    agent: Tgid,
    command: Tgid,
    /// What is to be added to the boot clock for seconds since 1970.
    calendar_seconds: f64,
    before: Arc<Snapshot>,
    /// The command's trees as they were last seen, by their roots.
    trees: BTreeMap<ProcessKey, Arc<Tree>>,
    /// What those did that are not told of any more.
    gone: Counts,
    judges: HashMap<ProcessKey, (String, Judge)>,
    judged: Vec<Judged>,
    /// Trees that there was no room to judge.
    unjudged: HashSet<ProcessKey>,
    trees_left_out: u64,
    memory: Memory,
    doomed: HashSet<ProcessKey>,
    oom_kills: u64,
}

/// What a tree's memory came to.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    /// As tables call the tree.
    pub(super) name: String,
    pub(super) judgement: Judgement,
}

/// Resident memory of all processes together, as it was at ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Ticks at which any was there.
    pub(super) samples: u64,
    pub(super) peak_bytes: u64,
    pub(super) last_bytes: u64,
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) page_faults: u64,
    pub(super) mapped_bytes: u64,
    pub(super) heap_grown_bytes: u64,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
    pub(super) wait_ns: u64,
    pub(super) requests: u64,
    pub(super) processes: u64,
    pub(super) running: u64,
}

/// The whole story.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// None where no tick found it running.
    pub(super) memory: Option<Memory>,
    pub(super) counts: Counts,
    pub(super) oom_kills: u64,
    /// The worst first.
    pub(super) judged: Vec<Judged>,
    /// Trees that were not judged, or whose judgements were not kept.
    pub(super) trees_left_out: u64,
    pub(super) coverage: Arc<Coverage>,
}

impl Story {
    /// Of a process of this pid that the agent has made, which `snapshot` has, and has seen do nothing yet. None where it has not.
    pub(super) fn begin(settings: Settings, agent: Tgid, command: Tgid, snapshot: Arc<Snapshot>) -> Option<Self> {
        let process = snapshot.running_with(command).filter(|process| process.parent == Some(agent))?;
        let root = process.tree.key();
        let tree = snapshot.trees.iter().find(|tree| tree.root.key() == root && root == process.id.key())?;
        let wall = snapshot.time.wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Some(Self {
            settings,
            agent,
            command,
            calendar_seconds: wall.as_secs_f64() - seconds(snapshot.time),
            trees: BTreeMap::from([(root, Arc::clone(tree))]),
            before: snapshot,
            gone: Counts::default(),
            judges: HashMap::new(),
            judged: Vec::new(),
            unjudged: HashSet::new(),
            trees_left_out: 0,
            memory: Memory::default(),
            doomed: HashSet::new(),
            oom_kills: 0,
        })
    }

    /// Takes in the next snapshot.
    pub(super) fn take(&mut self, snapshot: Arc<Snapshot>) {
        self.find_trees(&snapshot);
        self.measure();
        self.judge(&snapshot);
        self.count_oom_kills(&snapshot);
        self.before = snapshot;
    }

    /// The whole of it.
    pub(super) fn end(mut self) -> Told {
        for (name, mut judge) in std::mem::take(&mut self.judges).into_values() {
            self.keep(Judged { name, judgement: judge.judgement() });
        }
        let mut counts = self.gone;
        self.trees.values().for_each(|tree| counts.add(&Counts::of(tree)));
        Told {
            memory: (self.memory.samples > 0).then_some(self.memory),
            counts,
            oom_kills: self.oom_kills,
            judged: self.judged,
            trees_left_out: self.trees_left_out,
            coverage: Arc::clone(&self.before.coverage),
        }
    }

    /// Brings the command's trees up to date, with those that have come.
    fn find_trees(&mut self, snapshot: &Snapshot) {
        let mut listed = HashSet::new();
        // One that came may be the maker of another that came.
        let mut more = true;
        while std::mem::take(&mut more) {
            for tree in &snapshot.trees {
                let key = tree.root.key();
                if !listed.contains(&key) && (self.trees.contains_key(&key) || self.is_below(key, snapshot)) {
                    more |= self.trees.insert(key, Arc::clone(tree)).is_none();
                    listed.insert(key);
                }
            }
        }
        let gone = &mut self.gone;
        self.trees.retain(|key, tree| {
            let stays = listed.contains(key);
            if !stays {
                gone.add(&Counts::of(tree));
            }
            stays
        });
    }

    /// Whether the root of a tree descends from the command: it is its own, or was in one of its trees, or was made by one of those.
    fn is_below(&self, root: ProcessKey, snapshot: &Snapshot) -> bool {
        let Some(process) = snapshot.process(root) else { return false };
        let is_of_us = |process: &Arc<Process>| self.trees.contains_key(&process.tree.key());
        (process.parent == Some(self.agent) && process.id.tgid == self.command)
            || self.before.process(root).is_some_and(is_of_us)
            || maker(snapshot, process).is_some_and(is_of_us)
    }

    fn measure(&mut self) {
        let running = self.trees.values().filter(|tree| tree.running > 0);
        if let Some(bytes) = running.filter_map(|tree| resident_bytes(tree)).reduce(|sum, bytes| sum + bytes) {
            self.memory.samples += 1;
            self.memory.last_bytes = bytes;
            self.memory.peak_bytes = self.memory.peak_bytes.max(bytes);
        }
    }

    fn judge(&mut self, snapshot: &Snapshot) {
        let Self { trees, judges, unjudged, calendar_seconds, settings, trees_left_out, .. } = self;
        unjudged.retain(|root| trees.contains_key(root));
        each_subject(snapshot, |key, point, subject| {
            let Key::Tree(root) = key else { return };
            if !trees.contains_key(&root) {
                return;
            }
            if !judges.contains_key(&root) && judges.len() >= MOST_JUDGED {
                *trees_left_out += u64::from(unjudged.insert(root));
                return;
            }
            let (name, judge) = judges.entry(root).or_insert_with(|| (String::new(), Judge::new(*settings)));
            // Its program may be another one by now.
            *name = subject().label();
            judge.push(&Point { time_seconds: point.time_seconds + *calendar_seconds, ..point });
        });
        let ended: Vec<_> = self
            .judges
            .keys()
            .filter(|root| self.trees.get(root).is_none_or(|tree| tree.running == 0))
            .copied()
            .collect();
        for root in ended {
            if let Some((name, mut judge)) = self.judges.remove(&root) {
                self.keep(Judged { name, judgement: judge.judgement() });
            }
        }
    }

    /// Keeps a judgement, unless there are enough that are worse.
    fn keep(&mut self, judged: Judged) {
        let place = self.judged.partition_point(|other| other.badness() >= judged.badness());
        self.judged.insert(place, judged);
        if self.judged.len() > MOST_KEPT {
            self.judged.pop();
            self.trees_left_out += 1;
        }
    }

    fn count_oom_kills(&mut self, snapshot: &Snapshot) {
        let is_doomed =
            |process: &&Arc<Process>| matches!(process.state, ProcessState::Exited { oom_killed: true, .. });
        let doomed: HashSet<_> = snapshot
            .processes
            .iter()
            .filter(is_doomed)
            .filter(|process| self.trees.contains_key(&process.tree.key()))
            .map(|process| process.id.key())
            .collect();
        self.oom_kills += doomed.difference(&self.doomed).count() as u64;
        self.doomed = doomed;
    }
}

impl Judged {
    /// What is worse is more.
    fn badness(&self) -> Reverse<u8> {
        Reverse(match self.judgement.verdict {
            Verdict::Leak => 0,
            Verdict::Growing => 1,
            Verdict::Stable => 2,
            Verdict::Insufficient => 3,
        })
    }
}

impl Told {
    /// The worst verdict of all trees.
    pub(super) fn verdict(&self) -> Verdict {
        self.judged.first().map_or(Verdict::Insufficient, |worst| worst.judgement.verdict)
    }

    /// A number, where its source counts, or there was something to count all the same: requests that programs post.
    pub(super) fn known(&self, source: Source, number: u64) -> Option<u64> {
        (self.coverage.is_live(source) || number > 0).then_some(number)
    }
}

impl Counts {
    fn of(tree: &Tree) -> Self {
        let totals = &tree.subject.totals;
        let calls = &totals.address_space;
        let transferred =
            |operation: u16| totals.block_io.as_ref().map_or(0, |io| io.operations[usize::from(operation)].bytes);
        Self {
            page_faults: totals.user_faults() + totals.kernel_faults(),
            mapped_bytes: calls.mapped_anonymous_bytes + calls.mapped_file_bytes,
            heap_grown_bytes: calls.heap_grown_bytes,
            read_bytes: transferred(READ),
            write_bytes: transferred(WRITE),
            wait_ns: totals.block_io.as_ref().map_or(0, |io| io.wait_ns()),
            requests: totals.requests.as_ref().map_or(0, |requests| requests.served()),
            processes: u64::from(tree.running) + tree.exited_total,
            running: tree.running.into(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.page_faults += other.page_faults;
        self.mapped_bytes += other.mapped_bytes;
        self.heap_grown_bytes += other.heap_grown_bytes;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.wait_ns += other.wait_ns;
        self.requests += other.requests;
        self.processes += other.processes;
        self.running += other.running;
    }
}

/// Who made a process: the newest of its parent's pid that was there before it, as pids are used again.
fn maker<'a>(snapshot: &'a Snapshot, child: &Process) -> Option<&'a Arc<Process>> {
    let latest = ProcessKey { tgid: child.parent?, start_tick: child.id.key().start_tick };
    let (running, exited) = snapshot.processes.split_at(snapshot.running().len());
    let before = |part: &'a [Arc<Process>]| {
        let end = part.partition_point(|process| process.id.key() <= latest);
        part[..end].last().filter(|process| process.id.tgid == latest.tgid)
    };
    before(running).into_iter().chain(before(exited)).max_by_key(|process| process.id.start_ns)
}

/// What a tree has in memory: by the kernel's events, which tell of each tick, else by /proc.
fn resident_bytes(tree: &Tree) -> Option<u64> {
    let by_events =
        tree.subject.resident.map(|resident| [ANON, FILE, SHMEM].map(|kind| resident.bytes[kind]).iter().sum());
    by_events.or_else(|| tree.usage?.resident_bytes)
}

fn seconds(time: BootTime) -> f64 {
    time.0 as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{CgroupId, ProcessId, TICK_NS},
        model::{
            snapshot::{Resident, Subject},
            totals::Totals,
            usage::TreeUsage,
        },
        serve::fixtures,
    };
    use monitor_common::page_fault;

    const AGENT: u32 = 5;
    const COMMAND: u32 = 100;
    const MIB: u64 = 1 << 20;

    /// All begin in the order of their pids.
    fn id(pid: u32) -> ProcessId {
        ProcessId { tgid: Tgid(pid), start_ns: u64::from(pid) * TICK_NS }
    }

    fn process(pid: u32, parent: u32, tree: u32) -> Arc<Process> {
        Arc::new(Process {
            id: id(pid),
            parent: Some(Tgid(parent)),
            command: String::new(),
            command_line: String::new(),
            cgroup: CgroupId(1),
            cgroup_path: None,
            container: None,
            tree: id(tree),
            state: ProcessState::Running,
            subject: Subject::default(),
            usage: None,
            cpu_before_ns: 0,
            resident_when_killed: None,
        })
    }

    fn exited(pid: u32, parent: u32, tree: u32, oom_killed: bool) -> Arc<Process> {
        let state = ProcessState::Exited { time: BootTime(u64::MAX), wait_status: Some(0), oom_killed };
        Arc::new(Process { state, ..(*process(pid, parent, tree)).clone() })
    }

    fn tree(pid: u32, running: u32, exited_total: u64, faults: u64, mebibytes: Option<u64>) -> Arc<Tree> {
        let mut page_fault = page_fault::Counts::default();
        page_fault[page_fault::WRITE] = faults;
        let resident = mebibytes.map(|mebibytes| Resident { bytes: [7, mebibytes * MIB, 99, 0], processes: 1 });
        let bytes = mebibytes.map(|mebibytes| mebibytes * MIB);
        let usage = TreeUsage { resident_bytes: bytes, anon_bytes: bytes, ..TreeUsage::default() };
        let fixture = &fixtures::snapshot().trees[0];
        Arc::new(Tree {
            root: id(pid),
            running,
            exited_total,
            usage: Some(usage),
            subject: Subject { totals: Totals { page_fault, ..Totals::default() }, resident, ..Subject::default() },
            ..(**fixture).clone()
        })
    }

    fn snapshot(second: u64, processes: Vec<Arc<Process>>, trees: Vec<Arc<Tree>>) -> Arc<Snapshot> {
        let time = BootTime(1000 * 1_000_000_000 + second * 1_000_000_000);
        Arc::new(Snapshot { time, number: second, processes, trees, ..fixtures::snapshot() })
    }

    /// The command, the agent, and somebody else.
    fn begun() -> Story {
        let processes = vec![process(AGENT, 2, AGENT), process(50, 2, 50), process(COMMAND, AGENT, COMMAND)];
        let trees = vec![tree(AGENT, 1, 0, 9000, None), tree(50, 1, 0, 9000, None), tree(COMMAND, 1, 0, 0, None)];
        Story::begin(Settings::default(), Tgid(AGENT), Tgid(COMMAND), snapshot(0, processes, trees)).unwrap()
    }

    #[test]
    fn only_a_child_of_the_agent_with_a_tree_of_its_own_is_the_command() {
        let begin = |process: Arc<Process>, root| {
            let first = snapshot(0, vec![process], vec![tree(root, 1, 0, 0, None)]);
            Story::begin(Settings::default(), Tgid(AGENT), Tgid(COMMAND), first).is_some()
        };
        assert!(begin(process(COMMAND, AGENT, COMMAND), COMMAND));
        assert!(!begin(process(COMMAND, 50, COMMAND), COMMAND));
        assert!(!begin(process(COMMAND, AGENT, 50), 50));
        assert!(!begin(process(50, AGENT, 50), 50));
    }

    #[test]
    fn trees_that_begin_below_the_command_are_of_it_and_stay_counted_when_they_are_gone() {
        let mut story = begun();
        let (agent, other) = (process(AGENT, 2, AGENT), process(50, 2, 50));
        let others = [tree(AGENT, 1, 0, 9000, Some(1000)), tree(50, 1, 0, 9000, Some(1000))];
        // 110 was made by the command and has gone; 120 by that, in a tree of its own; 130 by that, likewise; 140 by somebody else.
        let processes = vec![
            agent.clone(),
            other.clone(),
            process(COMMAND, AGENT, COMMAND),
            process(120, 110, 120),
            process(130, 120, 130),
            process(140, 50, 140),
            exited(110, COMMAND, COMMAND, false),
        ];
        let trees = [
            tree(COMMAND, 1, 1, 10, Some(1)),
            tree(120, 1, 0, 200, Some(20)),
            tree(130, 1, 0, 3000, Some(300)),
            tree(140, 1, 0, 9000, Some(1000)),
        ];
        story.take(snapshot(1, processes, [&others[..], &trees[..]].concat()));
        let sum = 321 * MIB + 3 * 7;
        assert_eq!(story.memory, Memory { samples: 1, peak_bytes: sum, last_bytes: sum });

        // Two of them have gone without a trace, and another process has the pid of one.
        let processes = vec![agent, other, process(COMMAND, AGENT, COMMAND), process(150, 120, 150)];
        let trees = [tree(COMMAND, 1, 1, 11, Some(2)), tree(150, 1, 0, 9000, Some(1000))];
        story.take(snapshot(2, processes, [&others[..], &trees[..]].concat()));
        let told = story.end();
        assert_eq!(told.memory, Some(Memory { samples: 2, peak_bytes: sum, last_bytes: 2 * MIB + 7 }));
        assert_eq!((told.counts.page_faults, told.counts.processes), (3211, 4));
        assert_eq!(told.judged.len(), 3);
    }

    #[test]
    fn a_process_of_the_command_that_begins_a_tree_takes_it_along() {
        let mut story = begun();
        let command = process(COMMAND, AGENT, COMMAND);
        let child = |tree| process(120, 110, tree);
        story.take(snapshot(1, vec![command.clone(), child(COMMAND)], vec![tree(COMMAND, 2, 1, 10, Some(1))]));
        // Its maker is not told of any more.
        let trees = vec![tree(COMMAND, 1, 1, 10, Some(1)), tree(120, 1, 0, 5, Some(1))];
        story.take(snapshot(2, vec![command, child(120)], trees));
        let told = story.end();
        assert_eq!((told.counts.page_faults, told.counts.processes, told.counts.running), (15, 3, 2));
    }

    #[test]
    fn a_kill_for_want_of_memory_is_counted_once() {
        let mut story = begun();
        let take = |story: &mut Story, second, killed: &[u32]| {
            let killed = killed.iter().map(|pid| exited(*pid, COMMAND, COMMAND, true));
            let processes = [process(COMMAND, AGENT, COMMAND)].into_iter().chain(killed).collect();
            story.take(snapshot(second, processes, vec![tree(COMMAND, 1, 1, 10, Some(1))]));
        };
        take(&mut story, 1, &[110]);
        take(&mut story, 2, &[110, 120]);
        take(&mut story, 3, &[120]);
        assert_eq!(story.end().oom_kills, 2);
    }

    #[test]
    fn of_many_trees_the_worst_judgements_are_kept() {
        let mut story = begun();
        let leaks = COMMAND + 40;
        // Each ends at once, but for one that grows for twelve minutes.
        for second in 0..720 {
            let pid = COMMAND + 1000 + second as u32;
            let mut trees = vec![tree(COMMAND, 1, 0, 0, Some(1)), tree(leaks, 1, 0, 0, Some(64 + second))];
            let mut processes = vec![process(COMMAND, AGENT, COMMAND), process(leaks, COMMAND, leaks)];
            if second < 100 {
                trees.push(tree(pid, 1, 0, 0, Some(1)));
                processes.push(process(pid, COMMAND, pid));
            }
            story.take(snapshot(second + 1, processes, trees));
        }
        let told = story.end();
        assert_eq!((told.judged.len(), told.trees_left_out), (MOST_KEPT, 102 - MOST_KEPT as u64));
        assert_eq!(told.verdict(), Verdict::Leak);
        let worst = &told.judged[0];
        assert!(worst.name.starts_with("tree 140 "), "{}", worst.name);
        // By the calendar: not seconds since boot.
        assert!(worst.judgement.since > 1.7e9, "{}", worst.judgement.since);
    }
}
