//! Which process begins a tree, who follows it there, and what a tree is called.

use super::Processes;
use crate::{
    constant::Name,
    ids::{ProcessKey, TICK_NS, Tgid},
    model::{
        rule::{self, Place},
        snapshot::{Process, ProcessState, Resident, Subject, Tree},
        usage::TreeUsage,
    },
};
use std::{
    cmp,
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

impl Processes {
    /// The command line of a process is new: its tree is named after it where it is the root, else it may begin one now. What is no
    /// new program keeps the rule that it fitted before.
    pub(super) fn apply_rules(&mut self, key: ProcessKey, is_new_program: bool) {
        let Some(process) = self.accounts.find(key) else { return };
        let (tree, rule) = (process.tree.key(), rule::of(&process.command_line, &self.entry_points));
        if let Some(root) = self.trees.edit(key) {
            root.command.clone_from(&process.command);
            root.command_line.clone_from(&process.command_line);
            if is_new_program || rule.is_some() {
                root.rule = rule;
                self.firsts_changed = true;
            }
        }
        if tree != key && rule.is_some() && !rule::is_of_program(self.rule_of(tree)) {
            self.begin_tree(key);
        }
    }

    pub(super) fn rule_of(&self, tree: ProcessKey) -> Option<Name> {
        self.trees.find(tree).and_then(|tree| tree.rule)
    }

    /// A process leaves its tree and becomes the root of one, and those that descend from it follow.
    pub(super) fn begin_tree(&mut self, key: ProcessKey) {
        let Some(process) = self.accounts.edit(key) else { return };
        let (root, old_tree, used_ns) = (process.id, process.tree.key(), process.cpu_in_tree_ns());
        process.tree = root;
        process.cpu_before_ns += used_ns.unwrap_or_default();
        let mut tree = new_tree(process, rule::of(&process.command_line, &self.entry_points));
        let mut stays = vec![used_ns];
        for follower in self.descendants(key, old_tree) {
            if let Some(process) = self.accounts.edit(follower) {
                let used_ns = process.cpu_in_tree_ns();
                process.tree = root;
                process.cpu_before_ns += used_ns.unwrap_or_default();
                tree.running += 1;
                stays.push(used_ns);
            }
        }
        if let Some(old) = self.trees.edit(old_tree) {
            old.running = old.running.saturating_sub(stays.len() as u32);
            stays.into_iter().for_each(|used_ns| old.keep_cpu(used_ns));
        }
        self.trees.open(key, tree);
        (self.firsts_changed, self.trees_left) = (true, true);
    }

    /// Those running in a tree that descend from a process, also by way of some that have gone.
    fn descendants(&self, key: ProcessKey, tree: ProcessKey) -> Vec<ProcessKey> {
        let others_run = self.trees.find(tree).is_some_and(|tree| tree.running > 1);
        let Some(process) = self.accounts.find(key).filter(|_| others_run) else { return Vec::new() };
        let mut children: HashMap<Tgid, Vec<&Process>> = HashMap::new();
        for (_, member) in self.accounts.iter().filter(|(_, member)| member.tree.key() == tree) {
            if let Some(parent) = member.parent {
                children.entry(parent).or_default().push(member);
            }
        }
        let (mut found, mut ahead, mut seen) = (Vec::new(), vec![&**process], HashSet::from([key]));
        while let Some(parent) = ahead.pop() {
            let all = children.get(&parent.id.tgid).into_iter().flatten();
            for child in all.filter(|child| may_have_made(parent, child)) {
                if seen.insert(child.id.key()) {
                    ahead.push(child);
                    found.extend((child.state == ProcessState::Running).then_some(child.id.key()));
                }
            }
        }
        found
    }

    /// Names the trees with which containers and units begin: of each the one whose root is the oldest, unless it has a program's
    /// rule. A container's runtime goes through several processes before the first that stays, so this is told only once a tick.
    pub(super) fn name_firsts(&mut self) {
        if !mem::take(&mut self.firsts_changed) {
            return;
        }
        let mut firsts: HashMap<Place<'_>, ProcessKey> = HashMap::new();
        let age = |key: ProcessKey| (key.start_tick, key.tgid);
        for (key, tree) in self.trees.iter().filter(|(_, tree)| tree.running > 0) {
            if let Some(place) = place_of(tree) {
                let first = firsts.entry(place).or_insert(key);
                *first = cmp::min_by_key(*first, key, |key| age(*key));
            }
        }
        let changed: Vec<_> = self
            .trees
            .iter()
            .filter(|(_, tree)| tree.running > 0 && !rule::is_of_program(tree.rule))
            .map(|(key, tree)| {
                let place = place_of(tree).filter(|place| firsts.get(place) == Some(&key));
                (key, tree.rule, place.map(Place::rule))
            })
            .filter(|(_, before, now)| before != now)
            .collect();
        for (key, _, rule) in changed {
            if let Some(tree) = self.trees.edit(key) {
                tree.rule = rule;
            }
        }
    }

    fn all_running(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.accounts.iter().map(|(_, process)| process).filter(|process| process.state == ProcessState::Running)
    }

    /// Sums up what the running processes of each tree have in memory.
    pub(super) fn sum_resident(&mut self) {
        let mut sums: HashMap<ProcessKey, Resident> = HashMap::new();
        for process in self.all_running() {
            if let Some(resident) = &process.subject.resident {
                sums.entry(process.tree.key()).and_modify(|sum| sum.add(resident)).or_insert(*resident);
            }
        }
        let stale = |(key, tree): (ProcessKey, &Arc<Tree>)| {
            let now = sums.get(&key).copied();
            (tree.subject.resident != now).then_some((key, now))
        };
        for (key, now) in self.trees.iter().filter_map(stale).collect::<Vec<_>>() {
            if let Some(tree) = self.trees.edit(key) {
                tree.subject.resident = now;
            }
        }
    }

    /// Sums up what is known of each tree: of its running processes, and the CPU time of those that were in it before.
    pub(in crate::model) fn sum_trees(&mut self) {
        let mut sums: HashMap<ProcessKey, TreeUsage> = HashMap::new();
        for (key, tree) in self.trees.iter().filter(|(_, tree)| tree.cpu_gone_ns.is_some()) {
            sums.insert(key, TreeUsage { cpu_ns: tree.cpu_gone_ns, cpu_per_second: Some(0.0), ..TreeUsage::default() });
        }
        for process in self.all_running() {
            if let Some(usage) = &process.usage {
                sums.entry(process.tree.key()).or_default().add(usage, process.cpu_before_ns);
            }
        }
        let changed: Vec<_> = self
            .trees
            .iter()
            .map(|(key, tree)| (key, tree.usage, sums.get(&key).copied()))
            .filter(|(_, before, now)| before != now)
            .map(|(key, _, now)| (key, now))
            .collect();
        for (key, usage) in changed {
            if let Some(tree) = self.trees.edit(key) {
                tree.usage = usage;
            }
        }
    }
}

/// Whether one process may be what the other tells as its parent: it was there when that began. Pids are used again.
fn may_have_made(parent: &Process, child: &Process) -> bool {
    let was_there = match parent.state {
        ProcessState::Running => true,
        ProcessState::Exited { time, .. } => child.id.key().start_tick <= time.0 / TICK_NS,
    };
    was_there && parent.id.key().start_tick <= child.id.key().start_tick
}

fn place_of(tree: &Tree) -> Option<Place<'_>> {
    Place::of(tree.container.as_deref(), tree.cgroup_path.as_deref())
}

pub(super) fn new_tree(root: &Process, rule: Option<Name>) -> Tree {
    Tree {
        root: root.id,
        command: root.command.clone(),
        command_line: root.command_line.clone(),
        rule,
        cgroup: root.cgroup,
        cgroup_path: root.cgroup_path.clone(),
        container: root.container.clone(),
        running: 1,
        exited_total: 0,
        mark: None,
        subject: Subject::default(),
        usage: None,
        cpu_gone_ns: None,
    }
}
