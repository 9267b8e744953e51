//! What a server's memory is made of, and what fits below its limit: the table of a memory budget (baseline, workers, requests,
//! margin), from what was measured instead of what is assumed.
//!
//! - The baseline is what does not go with workers: the root's own memory, and what processes share, each page once
//!   (proportional set sizes less the workers' unique ones).
//! - A worker's private memory is its unique set size, at rest: less what its requests in flight held when it was read. Of all
//!   workers it is the median.
//! - What a request in flight holds is fitted (`fit`) from the anonymous memory and the requests in flight of all ticks
//!   (`load`); sums take the high end of its interval (`sums`).
//! - The limit is the tightest of the tree's cgroup; what others use below it is taken off.
//!
//! What is not known is none, and a remark says why.

mod crew;
mod fit;
mod load;
mod sums;
#[cfg(test)]
mod tests;

pub use load::{Budgets, Load, Loads};
pub use sums::MaxRequests;

use crate::{
    detect::{Estimate, Finding, Findings, Subject},
    ids::{ProcessKey, Tgid},
    model::{
        snapshot::{Process, Snapshot, Tree},
        usage::Limit,
    },
    source::Source,
    units::human_bytes,
};
use crew::{Crew, Spent};
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};
use sums::Parts;

/// What limits memory that no cgroup limits.
const HOST: &str = "host";
/// The detector whose findings ask for restarts.
const LEAK: &str = "leak";

/// The memory budget of one process tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    /// Pid of its root.
    pub tree: Tgid,
    /// The root's arguments, or its name where it has none.
    pub command: String,
    /// Path of the root's cgroup.
    pub cgroup: Option<Arc<str>>,
    /// Children of the root that run, but for those that are too small to be workers.
    pub workers: u64,
    /// What may be used.
    pub limit_bytes: Option<u64>,
    /// Path of the cgroup that sets the limit, or "host".
    pub limit_source: Option<Arc<str>>,
    /// What others use below the same limit, page cache that is given back first left out.
    pub others_bytes: Option<u64>,
    /// What does not go with workers.
    pub baseline_bytes: Option<u64>,
    /// One worker.
    pub worker: Worker,
    /// What a request in flight holds, with the 95 % interval.
    pub per_request: Option<PerRequest>,
    /// The most requests that are known to have been in flight at once.
    pub concurrent_requests_peak: Option<u64>,
    /// What one more worker takes, with as many requests in flight as a worker had at most.
    pub one_more_worker_bytes: Option<u64>,
    /// The most workers that fit, each with as many requests in flight as one had at most.
    pub most_workers: Option<u64>,
    /// The most requests in flight that fit, of each worker there is: its threads.
    pub most_threads_per_worker: Option<u64>,
    /// What is left of the limit when all workers are at their peak; below zero where that does not fit.
    pub margin_bytes: Option<i64>,
    /// What keeps a known leak below the limit.
    pub max_requests: Option<MaxRequests>,
    /// What it saves at most to load before workers are forked.
    pub preload_saves_bytes: Option<u64>,
    /// Why something is not told, and what is to be known of what is.
    pub remarks: Vec<String>,
}

/// A worker's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// What it has for itself while it rests: the median of all workers.
    pub private_bytes: Option<u64>,
    /// What it has in memory that others map as well: the median.
    pub shared_bytes: Option<u64>,
    /// The most requests that one had in flight; without workers, the root.
    pub requests_peak: Option<u64>,
}

/// Bytes that a request in flight holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PerRequest {
    /// The best guess.
    pub value_bytes: u64,
    /// It is hardly less than this.
    pub low_bytes: u64,
    /// It is hardly more than this.
    pub high_bytes: u64,
}

impl Budget {
    /// Of all trees that are watched, the largest first.
    pub fn all(snapshot: &Snapshot, loads: &Loads, findings: &Findings) -> Vec<Self> {
        let mut trees: Vec<(&Tree, Vec<&Process>)> = Vec::new();
        let mut places = HashMap::new();
        for tree in snapshot.trees.iter().filter(|tree| loads.of(tree.root.key()).is_some()) {
            places.insert(tree.root.key(), trees.len());
            trees.push((tree, Vec::new()));
        }
        for process in snapshot.running() {
            if let Some(place) = places.get(&process.tree.key()) {
                trees[*place].1.push(process);
            }
        }
        let size = |tree: &Tree| tree.usage.and_then(|usage| usage.resident_bytes);
        trees.sort_by_key(|(tree, _)| std::cmp::Reverse(size(tree)));
        let of = |(tree, processes): &(&Tree, Vec<&Process>)| {
            Self::of(snapshot, tree, processes, loads.of(tree.root.key()), findings)
        };
        trees.iter().map(of).collect()
    }

    /// Of one tree, whether it is watched or not; none where there is no such tree.
    pub fn one(snapshot: &Snapshot, tree: ProcessKey, loads: &Loads, findings: &Findings) -> Option<Self> {
        let found = snapshot.trees.iter().find(|one| one.root.key() == tree)?;
        let of_tree = snapshot.running().iter().map(|process| &**process).filter(|one| one.tree.key() == tree);
        Some(Self::of(snapshot, found, &of_tree.collect::<Vec<_>>(), loads.of(tree), findings))
    }

    fn of(snapshot: &Snapshot, tree: &Tree, processes: &[&Process], load: Option<&Load>, findings: &Findings) -> Self {
        let crew = Crew::of(tree, processes);
        let command = if tree.command_line.is_empty() { &tree.command } else { &tree.command_line };
        let mut budget = Self {
            tree: tree.root.tgid,
            command: command.clone(),
            cgroup: tree.cgroup_path.clone(),
            workers: crew.workers.len() as u64,
            ..Self::default()
        };
        budget.count_requests(snapshot, tree, &crew);
        let request = budget.fit(load);
        let rest = Spent { in_flight: request.map_or(0.0, |request| request.value), served: 0.0 };
        budget.split(tree, &crew, rest);
        budget.find_limit(snapshot, tree, &crew);
        if let Some(parts) = budget.parts() {
            budget.one_more_worker_bytes = Some(parts.one_worker()).filter(|_| budget.workers > 0);
            budget.margin_bytes = Some(parts.margin());
            budget.most_workers = parts.most_workers();
            budget.most_threads_per_worker = parts.most_requests();
        }
        let leaked = budget.leak(findings, tree, &crew, rest);
        budget.preload(&crew, Spent { served: leaked, ..rest });
        budget
    }

    fn remark(&mut self, words: impl Into<String>) {
        self.remarks.push(words.into());
    }

    fn count_requests(&mut self, snapshot: &Snapshot, tree: &Tree, crew: &Crew) {
        if !snapshot.coverage.is_live(Source::Requests) {
            return;
        }
        self.concurrent_requests_peak = Some(tree.subject.totals.requests.as_ref().map_or(0, |requests| requests.peak));
        self.worker.requests_peak = Some(crew.requests_peak());
    }

    /// What a request holds.
    fn fit(&mut self, load: Option<&Load>) -> Option<Estimate> {
        let fitted = match (self.concurrent_requests_peak, load) {
            (None, _) => Err("requests are not counted (`monitor doctor` says why)"),
            (Some(0), _) => Err("it has served none"),
            (_, None) => Err("it has not been watched"),
            (_, Some(load)) => fit::per_request(load),
        };
        match fitted {
            Ok(estimate) => {
                self.per_request = Some(PerRequest {
                    value_bytes: estimate.value.round() as u64,
                    low_bytes: estimate.low.round() as u64,
                    high_bytes: estimate.high.round() as u64,
                });
                Some(estimate)
            }
            Err(reason) => {
                self.remark(format!("what a request holds is not known, and left out of all sums: {reason}"));
                None
            }
        }
    }

    /// The baseline, and a worker's memory.
    fn split(&mut self, tree: &Tree, crew: &Crew, rest: Spent) {
        self.worker.private_bytes = crew.private(rest);
        self.worker.shared_bytes = crew.shared();
        self.baseline_bytes = crew.baseline(rest);
        let of = tree.running;
        match crew.unsplit() {
            0 => {}
            unsplit if self.baseline_bytes.is_some() => {
                self.remark(format!("of {unsplit} of {of} processes it is not known what they share: left out"));
            }
            unsplit => self.remark(format!("of {unsplit} of {of} processes it is not known yet what they share")),
        }
        match crew.helpers {
            0 => {}
            1 => self.remark("one more process is too small to be a worker, and in the baseline"),
            helpers => {
                self.remark(format!("{helpers} more processes are too small to be workers, and in the baseline"))
            }
        }
        if let Some(swapped) = tree.usage.and_then(|usage| usage.swap_bytes).filter(|&bytes| bytes > 0) {
            let swapped = human_bytes(swapped as f64);
            self.remark(format!("{swapped} are swapped out, and neither in the baseline nor in a worker's memory"));
        }
        if crew.workers.is_empty() {
            self.remark("it has no workers: what one takes, and how many fit, is not told");
        }
    }

    fn find_limit(&mut self, snapshot: &Snapshot, tree: &Tree, crew: &Crew) {
        let Some(limit) = limit(snapshot, tree) else {
            return self.remark("its limit is not known: memory is not polled");
        };
        self.others_bytes =
            used(snapshot, limit.source.as_deref()).map(|used| used.saturating_sub(crew.proportional()));
        if self.others_bytes.is_none() {
            self.remark("what others use below the same limit is not known, and left out");
        }
        self.limit_bytes = Some(limit.bytes);
        self.limit_source = Some(limit.source.unwrap_or_else(|| HOST.into()));
    }

    /// What sums are made of; none where something is not known that all of them need.
    fn parts(&self) -> Option<Parts> {
        Some(Parts {
            limit: self.limit_bytes?,
            fixed: self.baseline_bytes?.saturating_add(self.others_bytes.unwrap_or_default()),
            workers: self.workers,
            private: if self.workers == 0 { 0 } else { self.worker.private_bytes? },
            request: self.per_request.map_or(0, |request| request.high_bytes),
            requests: self.worker.requests_peak.unwrap_or_default(),
        })
    }

    /// What keeps a known leak below the limit. Tells what each request has leaked at least.
    fn leak(&mut self, findings: &Findings, tree: &Tree, crew: &Crew, rest: Spent) -> f64 {
        let Some(finding) = leak_of(findings, tree) else { return 0.0 };
        let Some(leaked) = finding.bytes_per_1000_requests.filter(|leaked| leaked.low > 0.0) else {
            self.remark("it leaks, but not by requests that are counted: no max-requests is told");
            return 0.0;
        };
        let (least, most) = (leaked.low / 1000.0, leaked.high / 1000.0);
        // What has leaked so far goes with a restart.
        let begun = Spent { served: least, ..rest };
        let others = self.others_bytes.unwrap_or_default();
        let fresh = self.parts().and_then(|parts| {
            let fixed = crew.baseline(begun)?.saturating_add(others);
            let private = if self.workers == 0 { 0 } else { crew.private(begun)? };
            Some(Parts { fixed, private, ..parts })
        });
        self.max_requests = fresh.and_then(|fresh| fresh.max_requests(most));
        if fresh.is_some() && self.max_requests.is_none() {
            self.remark(
                "it leaks, and no max-requests keeps it below the limit: without the leak it does not fit either",
            );
        }
        least
    }

    fn preload(&mut self, crew: &Crew, begun: Spent) {
        if crew.workers.is_empty() {
            return;
        }
        match crew.preload_saves(begun) {
            Ok(bytes) => self.preload_saves_bytes = Some(bytes),
            Err(reason) => self.remark(format!("what preloading would save is not told: {reason}")),
        }
    }
}

/// The limit that counts for a tree: its cgroup's, else the machine's memory.
fn limit(snapshot: &Snapshot, tree: &Tree) -> Option<Limit> {
    let of_cgroup = tree.cgroup_path.as_deref().and_then(|path| snapshot.cgroup(path)?.usage.as_ref()?.limit.clone());
    let of_host = || {
        let memory = snapshot.host_usage.as_ref()?.reading.memory?;
        Some(Limit { bytes: memory.total_bytes, source: None })
    };
    of_cgroup.or_else(of_host)
}

/// What is in use below a limit, and not given back first.
fn used(snapshot: &Snapshot, source: Option<&str>) -> Option<u64> {
    match source {
        Some(path) => {
            let memory = snapshot.cgroup(path)?.usage.as_ref()?.reading.memory.as_ref()?;
            Some(memory.working_set_bytes().unwrap_or(memory.current_bytes))
        }
        None => Some(snapshot.host_usage.as_ref()?.reading.memory?.used_bytes()),
    }
}

/// The leak that was found of a tree, else of a container or service that it is in.
fn leak_of<'a>(findings: &'a Findings, tree: &Tree) -> Option<&'a Finding> {
    let leaks = || findings.findings.iter().filter(|finding| finding.detector == LEAK);
    let is_tree =
        |finding: &&Arc<Finding>| matches!(&finding.subject, Subject::Tree { root, .. } if *root == tree.root.key());
    let is_above = |finding: &&Arc<Finding>| match (&finding.subject, &tree.cgroup_path) {
        (Subject::Cgroup { path: above, .. }, Some(path)) => {
            path.strip_prefix(&**above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    };
    leaks().find(is_tree).or_else(|| leaks().find(is_above)).map(|finding| &**finding)
}
