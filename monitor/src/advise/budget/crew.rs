//! A tree's processes as a budget sees them: the root, workers, and what is too small to be one.

use crate::{
    ids::Tgid,
    model::{
        snapshot::{Process, Tree},
        totals::Requests,
    },
    reading::Shares,
};
use std::collections::HashMap;

/// What has less than one so manyth of a worker's private memory is no worker, but helps them.
const HELPER_PART: u64 = 8;
/// A worker that has loaded less than one so manyth of its private memory since it was forked has nothing to preload.
const LOADED_PART: u64 = 8;
/// Generations between a worker and the root, at most.
const DEPTH: usize = 32;

/// The processes of one tree that run.
#[derive(Debug, Default)]
pub(super) struct Crew<'a> {
    pub(super) root: Option<&'a Process>,
    pub(super) workers: Vec<Worker<'a>>,
    /// Children of the root that are too small to be workers.
    pub(super) helpers: usize,
    all: Vec<&'a Process>,
}

/// A child of the root, with all that descends from it.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    pub(super) top: &'a Process,
    below: Vec<&'a Process>,
}

/// What a process has for itself comes also from requests: those in flight hold it, and those served may have leaked it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Bytes that each request in flight holds.
    pub(super) in_flight: f64,
    /// Bytes that each request served has leaked.
    pub(super) served: f64,
}

impl Spent {
    /// By a process, until now.
    fn of(self, process: &Process) -> u64 {
        let requests = process.subject.totals.requests.as_ref();
        let of =
            |requests: &Requests| self.in_flight * requests.in_flight() as f64 + self.served * requests.served() as f64;
        requests.map_or(0.0, |requests| of(requests)) as u64
    }
}

impl<'a> Crew<'a> {
    /// From a tree's running processes.
    pub(super) fn of(tree: &Tree, processes: &[&'a Process]) -> Self {
        let root = processes.iter().copied().find(|process| process.id.key() == tree.root.key());
        let parents: HashMap<Tgid, Option<Tgid>> =
            processes.iter().map(|process| (process.id.tgid, process.parent)).collect();
        let mut workers: Vec<Worker<'a>> = Vec::new();
        let (tops, below): (Vec<&Process>, Vec<&Process>) = processes
            .iter()
            .copied()
            .filter(|process| process.id.key() != tree.root.key())
            .partition(|process| top(process.id.tgid, tree.root.tgid, &parents) == process.id.tgid);
        workers.extend(tops.into_iter().map(|top| Worker { top, below: Vec::new() }));
        for process in below {
            let top = top(process.id.tgid, tree.root.tgid, &parents);
            if let Some(worker) = workers.iter_mut().find(|worker| worker.top.id.tgid == top) {
                worker.below.push(process);
            }
        }
        let mut crew = Self { root, workers, helpers: 0, all: processes.to_vec() };
        crew.dismiss_helpers();
        crew
    }

    fn dismiss_helpers(&mut self) {
        let Some(usual) = self.private(Spent::default()) else { return };
        let before = self.workers.len();
        let helps = |worker: &Worker| {
            worker.private(Spent::default()).is_some_and(|private| private.saturating_mul(HELPER_PART) < usual)
        };
        self.workers.retain(|worker| !helps(worker));
        self.helpers = before - self.workers.len();
    }

    /// What a worker has for itself, less what was spent on requests: the median, of an even number the larger of the two in the
    /// middle; none where it is known of no worker.
    pub(super) fn private(&self, spent: Spent) -> Option<u64> {
        middle(self.workers.iter().filter_map(|worker| worker.private(spent)))
    }

    /// What a worker has in memory that others map as well: the median.
    pub(super) fn shared(&self) -> Option<u64> {
        middle(self.workers.iter().filter_map(|worker| {
            let resident = worker.top.usage.as_ref()?.reading.resident?.total_bytes();
            Some(resident.saturating_sub(shares(worker.top)?.unique_bytes))
        }))
    }

    /// What all have in memory, each page once: what is shared with others, in part.
    ///
    /// A process's part of what it shares is read now and then only. Where there were fewer processes then, it was so much larger.
    pub(super) fn proportional(&self) -> u64 {
        let mut starts: Vec<u64> = self.all.iter().map(|process| process.id.start_ns).collect();
        starts.sort_unstable();
        let of = |process: &&Process| {
            let (shares, read_at) = (shares(process)?, process.usage.as_ref()?.shares_time?);
            let there = starts.partition_point(|start| *start <= read_at.0).max(1) as u64;
            let shared = shares.proportional_bytes.saturating_sub(shares.unique_bytes);
            Some(shares.unique_bytes + shared * there / starts.len() as u64)
        };
        self.all.iter().filter_map(of).sum()
    }

    /// What does not go with workers: what the root and helpers have for themselves, and what is shared, once. None where that is
    /// not known of the root, or of no worker.
    pub(super) fn baseline(&self, spent: Spent) -> Option<u64> {
        let own = match self.root {
            Some(root) => spent.of(root).min(shares(root)?.unique_bytes),
            None => 0,
        };
        if !self.workers.is_empty() {
            self.private(Spent::default())?;
        }
        let workers: u64 = self.workers.iter().filter_map(|worker| worker.private(Spent::default())).sum();
        Some(self.proportional().saturating_sub(workers + own))
    }

    /// How many processes' memory is not split into their own and what they share yet.
    pub(super) fn unsplit(&self) -> usize {
        self.all.iter().filter(|process| shares(process).is_none()).count()
    }

    /// The most requests that a worker had in flight, or the root where there are none.
    pub(super) fn requests_peak(&self) -> u64 {
        let peak = |process: &Process| process.subject.totals.requests.as_ref().map_or(0, |requests| requests.peak);
        let peaks = self.workers.iter().map(|worker| worker.all().map(peak).sum());
        peaks.max().unwrap_or_else(|| self.root.map_or(0, peak))
    }

    /// What preloading would save at most: what each worker has for itself, once instead of once for each. Where it has loaded
    /// anything since it was forked, that is: the rest are pages of the root that it has written to, of which loading makes some.
    /// Else why that cannot be told.
    pub(super) fn preload_saves(&self, spent: Spent) -> Result<u64, &'static str> {
        let root = self.root.ok_or("the root has gone")?;
        if self.workers.len() < 2 {
            return Err("it takes two workers to share what is loaded");
        }
        if !self.workers.iter().all(|worker| is_fork(root, worker.top)) {
            return Err("workers run programs of their own, which share nothing that the root loads");
        }
        let root = anon(root).ok_or(UNREAD)?;
        // What all have in common is no more than what the smallest has.
        let least = |read: &dyn Fn(&Worker) -> Option<u64>| {
            let all: Option<Vec<u64>> = self.workers.iter().map(read).collect();
            all.and_then(|all| all.into_iter().min()).ok_or(UNREAD)
        };
        let private = least(&|worker| worker.private(spent))?;
        let loaded = least(&|worker| Some(anon(worker.top)?.saturating_sub(root + spent.of(worker.top))))?;
        if loaded < private / LOADED_PART {
            return Err("workers have loaded next to nothing since they were forked");
        }
        Ok(private * (self.workers.len() as u64 - 1))
    }
}

const UNREAD: &str = "the memory of its processes has not been read yet";

impl Worker<'_> {
    fn all(&self) -> impl Iterator<Item = &Process> {
        [self.top].into_iter().chain(self.below.iter().copied())
    }

    /// What it and what descends from it have for themselves, less what was spent on requests; none where that is not known of it.
    fn private(&self, spent: Spent) -> Option<u64> {
        shares(self.top)?;
        let own = |process: &Process| Some(shares(process)?.unique_bytes.saturating_sub(spent.of(process)));
        Some(self.all().filter_map(own).sum())
    }
}

/// The process below the root that a process descends from, or is: also one whose parent has gone.
fn top(pid: Tgid, root: Tgid, parents: &HashMap<Tgid, Option<Tgid>>) -> Tgid {
    let mut top = pid;
    for _ in 0..DEPTH {
        match parents.get(&top).copied().flatten() {
            Some(parent) if parent != root && parents.contains_key(&parent) => top = parent,
            _ => break,
        }
    }
    top
}

/// What of a process's memory is its own now. It is split now and then only; anonymous memory that came, or went, since then was
/// its own.
fn shares(process: &Process) -> Option<Shares> {
    let usage = process.usage.as_ref()?;
    let shares = usage.reading.shares?;
    let anon = |then: u64| Some((usage.reading.resident?.anon_bytes, then));
    let (now, then) = usage.shares_anon_bytes.and_then(anon).unwrap_or_default();
    let since = |bytes: u64| (bytes + now).saturating_sub(then);
    Some(Shares { proportional_bytes: since(shares.proportional_bytes), unique_bytes: since(shares.unique_bytes) })
}

fn anon(process: &Process) -> Option<u64> {
    let resident = process.usage.as_ref()?.reading.resident?;
    Some(resident.anon_bytes + resident.swap_bytes)
}

/// Whether a process was forked and goes on with its parent's program: it has the same arguments, or both have written titles such
/// as `gunicorn: worker` over them.
fn is_fork(root: &Process, worker: &Process) -> bool {
    let (of_root, of_worker) = (&root.command_line, &worker.command_line);
    let titled = || {
        of_root
            .split_once(": ")
            .zip(of_worker.split_once(": "))
            .is_some_and(|(root, worker)| root.0 == worker.0 && !root.0.contains([' ', '/']))
    };
    !of_root.is_empty() && (of_root == of_worker || titled())
}

/// The median, of an even number the larger of the two in the middle.
fn middle(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}
