//! Processes and the trees they form: who is there, whose child, in which cgroup, and who has gone.

mod trees;

use super::{
    Retention,
    account::{Accounts, Counted},
    cgroups::Cgroups,
    gpus::Shares,
    ledger::{Addition, Ledger},
    rule,
    snapshot::{Process, ProcessState, Resident, Subject, Tree},
    usage::ProcessUsage,
};
use crate::{
    decode,
    ids::{CgroupId, ProcessId, ProcessKey, Tgid},
    mark::Mark,
    reading::{self, ProcessChange, ProcessReading},
    sample::{Counters, FoundProcess, Harvest},
    time::BootTime,
};
use monitor_common::{Owner, record::Command, resident};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};
use trees::new_tree;

/// All processes, live and lately gone, and their trees.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Processes {
    accounts: Accounts<ProcessKey, Process>,
    trees: Accounts<ProcessKey, Tree>,
    /// Who runs under a pid now.
    running: HashMap<Tgid, ProcessKey>,
    /// In order of exit, until they are folded away.
    exited: VecDeque<(BootTime, ProcessKey)>,
    /// Exited ones whose keys are still in the kernel's maps.
    awaiting_harvest: VecDeque<(BootTime, ProcessKey)>,
    /// Chosen by the kernel to be killed.
    doomed: HashSet<ProcessKey>,
    /// Those that began, ended or came into another cgroup in the tick that is under way. Only who polls asks for them.
    #[serde(skip)]
    changed: BTreeSet<ProcessKey>,
    folded_total: u64,
    /// What makes a tree, besides the programs that are known.
    entry_points: Vec<String>,
    /// Whether other trees may be the first of their container or unit than were when that was last worked out.
    firsts_changed: bool,
    /// Whether processes have left trees of which nobody may be left.
    trees_left: bool,
    /// The agent, whose children begin trees; none where nobody said which process that is.
    agent: Option<Tgid>,
}

impl Counted for Process {
    fn subject(&mut self) -> &mut Subject {
        &mut self.subject
    }
}

impl Counted for Tree {
    fn subject(&mut self) -> &mut Subject {
        &mut self.subject
    }
}

/// How long after a process's exit record its last faults may still be counted: the record is made before the process
/// lets go of its memory.
const GRACE: Duration = Duration::from_millis(50);
/// Trees with a mark at most: with the largest marks some 16 MiB. That of one more is known as the last of all only.
const MARKED_TREES: usize = 1024;

impl Processes {
    pub(super) fn new(entry_points: Vec<String>) -> Self {
        Self { entry_points, ..Self::default() }
    }

    pub(super) fn keep_apart(&mut self, agent: Tgid) {
        self.agent = Some(agent);
    }

    pub(super) fn contains(&self, id: ProcessId) -> bool {
        self.accounts.contains(id.key())
    }

    pub(super) fn find(&self, id: ProcessId) -> Option<&Arc<Process>> {
        self.accounts.find(id.key())
    }

    /// A process that /proc shows, or that only its id is known of any more.
    pub(super) fn found(
        &mut self,
        found: &FoundProcess,
        cgroup: Option<CgroupId>,
        cgroups: &mut Cgroups,
        now: BootTime,
    ) {
        if let Some(known) = self.find(found.id) {
            if known.command.is_empty() && found.running {
                self.learn(found, cgroup, cgroups);
            }
            return;
        }
        let parent = found.parent.and_then(|parent| self.running.get(&parent).copied());
        let process = Process {
            id: found.id,
            parent: found.parent,
            command: found.command.clone(),
            command_line: found.command_line.clone(),
            cgroup: cgroup.unwrap_or_default(),
            cgroup_path: cgroup.and_then(|id| cgroups.path(id)),
            container: cgroup.and_then(|id| cgroups.container(id)),
            tree: found.id,
            state: ProcessState::Running,
            subject: Subject::default(),
            usage: None,
            cpu_before_ns: 0,
            resident_when_killed: None,
        };
        self.begin(process, parent, cgroups);
        if !found.running {
            self.exit(found.id, now, None, cgroups);
        }
    }

    /// Names a process that could not be looked up when it was first heard of.
    fn learn(&mut self, found: &FoundProcess, cgroup: Option<CgroupId>, cgroups: &mut Cgroups) {
        let key = found.id.key();
        if let Some(process) = self.accounts.edit(key) {
            process.parent = process.parent.or(found.parent);
        }
        self.rename(key, found.command.clone(), found.command_line.clone());
        if let Some((cgroup, process)) = cgroup.zip(self.find(found.id))
            && process.cgroup == CgroupId::default()
        {
            let (start_ns, tgid) = (process.id.start_ns, process.id.tgid.0);
            self.enter_cgroup(&Owner { cgroup: cgroup.0, start_ns, tgid, reserved: 0 }, cgroups);
        }
    }

    pub(super) fn fork(&mut self, child: &Owner, parent: ProcessId, command: &Command, cgroups: &mut Cgroups) {
        let id = ProcessId::from(child);
        // What was found in /proc before its record came is known already, but for who made it.
        if let Some(process) = self.accounts.edit(id.key()) {
            process.parent = Some(parent.tgid);
            process.id = id;
            return;
        }
        let process = Process {
            id,
            parent: Some(parent.tgid),
            command: decode::command(command),
            command_line: self.find(parent).map(|parent| parent.command_line.clone()).unwrap_or_default(),
            cgroup: CgroupId(child.cgroup),
            cgroup_path: cgroups.path(CgroupId(child.cgroup)),
            container: cgroups.container(CgroupId(child.cgroup)),
            tree: id,
            state: ProcessState::Running,
            subject: Subject::default(),
            usage: None,
            cpu_before_ns: 0,
            resident_when_killed: None,
        };
        self.begin(process, Some(parent.key()), cgroups);
    }

    pub(super) fn exec(
        &mut self,
        owner: &Owner,
        command: &Command,
        arguments: &[u8],
        cut: bool,
        cgroups: &mut Cgroups,
    ) {
        let id = ProcessId::from(owner);
        self.enter_cgroup(owner, cgroups);
        let Some(process) = self.accounts.edit(id.key()) else { return };
        process.command = decode::command(command);
        let command_line = decode::command_line(arguments, cut);
        // /proc may have told more of it, where it was read before the record was.
        let begin = command_line.trim_end_matches(['…', char::REPLACEMENT_CHARACTER]);
        if !cut || !process.command_line.starts_with(begin) {
            process.command_line = command_line;
        }
        self.apply_rules(id.key(), true);
    }

    /// A process has its name and arguments now, which nothing had told before.
    fn rename(&mut self, key: ProcessKey, command: String, command_line: String) {
        let Some(process) = self.accounts.edit(key) else { return };
        (process.command, process.command_line) = (command, command_line);
        self.apply_rules(key, true);
    }

    /// A process has another command line now, by its own doing, or by /proc telling more of it.
    fn retitle(&mut self, id: ProcessId, command_line: String) {
        if self.find(id).is_none_or(|process| process.command_line == command_line) {
            return;
        }
        if let Some(process) = self.accounts.edit(id.key()) {
            process.command_line = command_line;
        }
        self.apply_rules(id.key(), false);
    }

    /// Names a process that nothing else has named.
    pub(super) fn name(&mut self, id: ProcessId, command: &Command) {
        if self.find(id).is_some_and(|process| process.command.is_empty())
            && let Some(process) = self.accounts.edit(id.key())
        {
            process.command = decode::command(command);
        }
    }

    /// The kernel will kill this process, which has this in memory.
    pub(super) fn doom(&mut self, id: ProcessId, resident: Option<reading::Resident>) {
        if let Some(process) = self.accounts.edit(id.key()) {
            process.resident_when_killed = resident;
            self.doomed.insert(id.key());
        }
    }

    /// A process has ended. Whether that is news: before Linux 6.16 each of several threads that end at once may take itself for the
    /// last, and tell of it.
    pub(super) fn exit(
        &mut self,
        id: ProcessId,
        time: BootTime,
        wait_status: Option<u32>,
        cgroups: &mut Cgroups,
    ) -> bool {
        let key = id.key();
        let oom_killed = self.doomed.remove(&key);
        self.give_back(id);
        let Some(process) = self.accounts.edit(key) else { return true };
        match &mut process.state {
            ProcessState::Running => process.state = ProcessState::Exited { time, wait_status, oom_killed },
            // Found gone before its record was read: only how it ended is new.
            ProcessState::Exited { wait_status: known @ None, oom_killed: killed, .. } => {
                *known = wait_status;
                *killed |= oom_killed;
                return true;
            }
            ProcessState::Exited { .. } => return false,
        }
        let (tree, cgroup, used_ns) = (process.tree.key(), process.cgroup, process.cpu_in_tree_ns());
        self.changed.insert(key);
        self.firsts_changed = true;
        if self.running.get(&id.tgid) == Some(&key) {
            self.running.remove(&id.tgid);
        }
        cgroups.count_running(cgroup, -1);
        if let Some(tree) = self.trees.edit(tree) {
            tree.running = tree.running.saturating_sub(1);
            tree.exited_total += 1;
            tree.keep_cpu(used_ns);
        }
        self.exited.push_back((time, key));
        self.awaiting_harvest.push_back((time, key));
        true
    }

    /// At a process's end it has nothing in memory any more.
    fn give_back(&mut self, id: ProcessId) {
        if let Some(before) = self.accounts.find(id.key()).and_then(|process| process.subject.resident) {
            let owner = Owner { tgid: id.tgid.0, start_ns: id.start_ns, ..Owner::default() };
            self.apply(&owner, &change(Some(before), None));
            if let Some(process) = self.accounts.edit(id.key()) {
                process.subject.resident = None;
            }
        }
    }

    /// A process may be in another cgroup now. If so, it begins a tree of its own, unless it is the root of its tree, or follows
    /// that into the same cgroup.
    pub(super) fn enter_cgroup(&mut self, owner: &Owner, cgroups: &mut Cgroups) {
        let (key, cgroup) = (ProcessId::from(owner).key(), CgroupId(owner.cgroup));
        let (path, container) = (cgroups.path(cgroup), cgroups.container(cgroup));
        let Some(process) = self.accounts.edit(key) else { return };
        process.id.start_ns = owner.start_ns;
        if process.cgroup == cgroup || process.state != ProcessState::Running {
            return;
        }
        cgroups.count_running(process.cgroup, -1);
        cgroups.count_running(cgroup, 1);
        self.changed.insert(key);
        process.cgroup = cgroup;
        process.cgroup_path.clone_from(&path);
        process.container.clone_from(&container);
        let old_tree = process.tree.key();
        self.firsts_changed = true;
        if old_tree == key {
            if let Some(tree) = self.trees.edit(key) {
                tree.cgroup = cgroup;
                tree.cgroup_path = path;
                tree.container = container;
            }
            return;
        }
        if self.trees.find(old_tree).is_none_or(|tree| tree.cgroup != cgroup) {
            self.begin_tree(key);
        }
    }

    /// Adds to a process and its tree.
    pub(super) fn apply(&mut self, owner: &Owner, addition: &Addition) {
        let key = ProcessId::from(owner).key();
        let Some(tree) = self.accounts.find(key).map(|process| process.tree.key()) else { return };
        self.accounts.apply(key, addition);
        self.trees.apply(tree, addition);
    }

    /// What a process has in memory now. What it had before the agent came is no change.
    pub(super) fn resident(&mut self, owner: &Owner, now: Resident, since: BootTime) {
        let key = ProcessId::from(owner).key();
        let Some(process) = self.accounts.find(key).filter(|process| process.state == ProcessState::Running) else {
            return;
        };
        let (before, is_new) = (process.subject.resident, owner.start_ns >= since.0);
        if before == Some(now) {
            return;
        }
        if let Some(process) = self.accounts.edit(key) {
            process.subject.resident = Some(now);
        }
        if before.is_some() || is_new {
            self.apply(owner, &change(before, Some(now)));
        }
    }

    /// What /proc says that a process has in memory, where the kernel's events tell of it: they leave out what has not been added
    /// to the whole yet, and /proc may have that.
    pub(super) fn reconcile(&mut self, id: ProcessId, reading: &reading::Resident, since: BootTime) {
        let Some(process) = self.find(id).filter(|process| process.subject.resident.is_some()) else { return };
        let owner = Owner { cgroup: process.cgroup.0, start_ns: id.start_ns, tgid: id.tgid.0, reserved: 0 };
        let mut bytes = [0; resident::KINDS];
        bytes[resident::FILE] = reading.file_bytes;
        bytes[resident::ANON] = reading.anon_bytes;
        bytes[resident::SHMEM] = reading.shmem_bytes;
        bytes[resident::SWAP] = reading.swap_bytes;
        self.resident(&owner, Resident { bytes, processes: 1 }, since);
    }

    /// Those that something happened to in the tick that is under way.
    pub(super) fn changes(&self) -> impl Iterator<Item = ProcessChange> {
        self.changed.union(self.accounts.moved()).filter_map(|key| {
            let process = self.accounts.find(*key)?;
            Some(ProcessChange {
                id: process.id,
                cgroup: process.cgroup,
                runs: process.state == ProcessState::Running,
                moved: self.accounts.has_moved(*key),
            })
        })
    }

    /// What /proc told of a process.
    pub(super) fn read(&mut self, id: ProcessId, reading: &ProcessReading, time: BootTime) {
        let mut reading = reading.clone();
        let command_line = reading.command_line.take();
        if let Some(process) = self.accounts.edit(id.key()) {
            process.usage = Some(Arc::new(ProcessUsage::new(reading, time, process.usage.as_deref())));
        }
        if let Some(command_line) = command_line {
            self.retitle(id, command_line);
        }
    }

    /// A process that was looked at in the tick before was not in this one: it rests.
    pub(super) fn rest(&mut self, id: ProcessId) {
        if let Some(usage) = self.accounts.edit(id.key()).and_then(|process| process.usage.as_mut()) {
            let usage = Arc::make_mut(usage);
            usage.cpu_per_second = usage.reading.cpu_ns.map(|_| 0.0);
            usage.io_delay_ratio = usage.reading.io_delay_ns.map(|_| 0.0);
        }
    }

    /// Marks the tree of a process, and tells its whole mark. None where nobody knows the process, or too many trees have
    /// marks.
    pub(super) fn mark(&mut self, id: ProcessId, mark: &Mark) -> Option<Arc<Mark>> {
        let tree = self.find(id)?.tree.key();
        let has_one = self.trees.find(tree)?.mark.is_some();
        if !has_one && self.trees.iter().filter(|(_, tree)| tree.mark.is_some()).count() >= MARKED_TREES {
            return None;
        }
        let tree = self.trees.edit(tree)?;
        let whole = Arc::new(mark.after(tree.mark.as_deref()));
        tree.mark = Some(Arc::clone(&whole));
        Some(whole)
    }

    /// The running process with that pid, its tree and its cgroup.
    pub(super) fn whereabouts(&self, pid: Tgid) -> Option<(ProcessKey, ProcessKey, CgroupId)> {
        let key = *self.running.get(&pid)?;
        self.accounts.find(key).map(|process| (key, process.tree.key(), process.cgroup))
    }

    /// Tells processes and trees what they hold on GPUs.
    pub(super) fn tell_gpu_memory(&mut self, before: &Shares, now: &Shares) {
        self.accounts.tell_gpu_memory(&before.processes, &now.processes);
        self.trees.tell_gpu_memory(&before.trees, &now.trees);
    }

    /// Counters that are as good as final, out of those read at `time`: of processes that have gone, and of those that left a
    /// cgroup which was removed then. Kernel threads write back for many cgroups, and outlive them all.
    pub(super) fn harvest(
        &mut self,
        counters: &Counters,
        ledger: &Ledger,
        cgroups: &Cgroups,
        time: BootTime,
    ) -> Harvest {
        while let Some(&(exited, _)) = self.awaiting_harvest.front()
            && time.since(exited) >= GRACE
        {
            self.awaiting_harvest.pop_front();
        }
        let may_have_left = cgroups.any_removed();
        let gone = |owner: &&Owner| {
            let key = ProcessId::from(*owner).key();
            // Nearly all go on where they are, and for that the process itself need not be looked at.
            let goes_on = !may_have_left && self.running.get(&key.tgid) == Some(&key);
            !goes_on
                && **owner != Owner::UNATTRIBUTED
                && self.find(ProcessId::from(*owner)).is_none_or(|process| match process.state {
                    ProcessState::Exited { time: exited, .. } => time.since(exited) >= GRACE,
                    ProcessState::Running => {
                        process.cgroup.0 != owner.cgroup && cgroups.is_removed(CgroupId(owner.cgroup))
                    }
                })
        };
        Harvest {
            page_faults: counters.page_faults.iter().map(|(owner, _)| owner).filter(gone).copied().collect(),
            address_spaces: counters.address_spaces.iter().map(|(owner, _)| owner).filter(gone).copied().collect(),
            block_io: counters.block_io.iter().map(|(key, _)| key).filter(|key| gone(&&key.owner)).copied().collect(),
            requests: counters.requests.iter().map(|(owner, _)| owner).filter(gone).copied().collect(),
            // The kernel may have evicted it for another one.
            resident: ledger.told_resident().filter(gone).copied().collect(),
            block_latencies: counters
                .block_latencies
                .iter()
                .map(|(bucket, _)| *bucket)
                .filter(|bucket| ledger.key_of(*bucket).is_none_or(|key| gone(&&key.owner)))
                .collect(),
        }
    }

    pub(super) fn awaiting_harvest(&self) -> (usize, Option<BootTime>) {
        (self.awaiting_harvest.len(), self.awaiting_harvest.front().map(|&(time, _)| time))
    }

    pub(super) fn running(&self) -> impl Iterator<Item = ProcessId> {
        self.accounts
            .iter()
            .filter(|(_, process)| process.state == ProcessState::Running)
            .map(|(_, process)| process.id)
    }

    /// After a rename, or when a container has got its names: what those in it tell of their cgroup.
    pub(super) fn refresh_cgroups(&mut self, cgroups: &Cgroups) {
        let stale = self.accounts.iter().filter_map(|(key, process)| {
            Some((key, cgroups.news(process.cgroup, process.cgroup_path.as_ref(), process.container.as_ref())?))
        });
        for (key, (path, container)) in stale.collect::<Vec<_>>() {
            if let Some(process) = self.accounts.edit(key) {
                process.cgroup_path = Some(path);
                process.container = container;
            }
        }
        let stale = self.trees.iter().filter_map(|(key, tree)| {
            Some((key, cgroups.news(tree.cgroup, tree.cgroup_path.as_ref(), tree.container.as_ref())?))
        });
        for (key, (path, container)) in stale.collect::<Vec<_>>() {
            if let Some(tree) = self.trees.edit(key) {
                tree.cgroup_path = Some(path);
                tree.container = container;
                self.firsts_changed = true;
            }
        }
    }

    /// Ends a tick.
    pub(super) fn settle(&mut self, seconds: f64) {
        self.accounts.settle(seconds);
        self.trees.settle(seconds);
        self.sum_resident();
        self.name_firsts();
        self.changed.clear();
    }

    /// Folds away processes that went too long ago, or are too many, and trees of which nothing is left.
    pub(super) fn fold(&mut self, now: BootTime, retention: Retention) {
        let unharvested = self.awaiting_harvest.len();
        while let Some(&(time, key)) = self.exited.front()
            && self.exited.len() > unharvested
            && (now.since(time) > retention.keep || self.exited.len() > retention.limit)
        {
            self.exited.pop_front();
            self.accounts.close(key);
            self.folded_total += 1;
            self.trees_left = true;
        }
        if !mem::take(&mut self.trees_left) {
            return;
        }
        let listed: HashSet<ProcessKey> = self.accounts.iter().map(|(_, process)| process.tree.key()).collect();
        let empty: Vec<_> = self.trees.iter().map(|(key, _)| key).filter(|key| !listed.contains(key)).collect();
        for key in empty {
            self.trees.close(key);
        }
    }

    pub(super) fn folded_total(&self) -> u64 {
        self.folded_total
    }

    /// Live ones, then exited ones.
    pub(super) fn list(&self) -> Vec<Arc<Process>> {
        let all = self.accounts.iter().map(|(_, process)| process.clone());
        let (mut list, exited): (Vec<_>, Vec<_>) = all.partition(|process| process.state == ProcessState::Running);
        list.extend(exited);
        list
    }

    pub(super) fn list_trees(&self) -> Vec<Arc<Tree>> {
        self.trees.iter().map(|(_, tree)| tree.clone()).collect()
    }

    /// A process is there: finds its tree, or makes it the root of one.
    fn begin(&mut self, mut process: Process, parent: Option<ProcessKey>, cgroups: &mut Cgroups) {
        let key = process.id.key();
        self.firsts_changed = true;
        cgroups.count_running(process.cgroup, 1);
        let rule = rule::of(&process.command_line, &self.entry_points);
        let fits = |tree: ProcessId| rule.is_none() || rule::is_of_program(self.rule_of(tree.key()));
        let parent = parent.and_then(|parent| self.accounts.find(parent));
        let is_agent = |parent: &Process| Some(parent.id.tgid) == self.agent;
        let parent = parent.filter(|parent| joins(&process, parent) && !is_agent(parent) && fits(parent.tree));
        if let Some(tree) = parent.map(|parent| parent.tree)
            && let Some(running) = self.trees.edit(tree.key()).map(|tree| &mut tree.running)
        {
            *running += 1;
            process.tree = tree;
        } else {
            self.trees.open(key, new_tree(&process, rule));
        }
        self.running.insert(process.id.tgid, key);
        self.changed.insert(key);
        self.accounts.open(key, process);
    }
}

/// What changed in memory.
fn change(before: Option<Resident>, now: Option<Resident>) -> Addition {
    let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
    let mut change = [0; resident::KINDS];
    for (change, (before, now)) in change.iter_mut().zip(before.bytes.into_iter().zip(now.bytes)) {
        *change = now.wrapping_sub(before) as i64;
    }
    Addition::Resident(change)
}

/// Whether a process belongs to its parent's tree: not to that of the system's two ancestors (init, kthreadd), and not
/// across a cgroup's border, which is where a container or a service begins.
fn joins(process: &Process, parent: &Process) -> bool {
    parent.id.tgid > Tgid(2) && parent.cgroup == process.cgroup
}
