//! What is kept of servers' trees, tick by tick: their memory beside the requests they had in flight.

use crate::{
    ids::ProcessKey,
    model::snapshot::{Snapshot, Tree},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// What has less memory than this needs no budget, unless it had more before.
const LEAST_BYTES: u64 = 8 << 20;
/// So many trees are watched at most: each takes some 4 KiB.
const MOST_TREES: usize = 64;
/// So many points are kept of each: four minutes of ticks of a second in which something moved.
const MOST_POINTS: usize = 240;

/// Watches the trees that are worth a budget: those that serve requests, and those of a known kind with more than one process.
#[derive(Debug, Default)]
pub struct Budgets {
    now: Arc<Loads>,
}

/// What was seen of all of them.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    trees: HashMap<ProcessKey, Arc<Load>>,
    /// Trees that are worth a budget and not watched, as there are too many.
    pub left_out: usize,
}

/// What was seen of one tree.
#[derive(Clone, Debug, Default)]
pub struct Load {
    points: VecDeque<Point>,
    /// How many of its processes run, and have exited: others have other memory.
    processes: (u32, u64),
    segment: u32,
}

/// A tree at the end of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// Points with the same number are of the same processes.
    pub(super) segment: u32,
    /// Requests in flight.
    pub(super) in_flight: u32,
    /// Anonymous memory, swapped out or not, summed over its processes: what they share since a fork is in it once for each.
    pub(super) anon_bytes: u64,
}

impl Budgets {
    /// Takes in a snapshot, and gives what was seen until then.
    pub fn take(&mut self, snapshot: &Snapshot) -> Arc<Loads> {
        let (mut trees, mut left_out) = (HashMap::with_capacity(self.now.trees.len()), 0);
        // Those that are watched have their places, wherever in the list they stand.
        let mut room = MOST_TREES.saturating_sub(self.now.trees.len());
        for tree in snapshot.trees.iter().filter(|tree| tree.running > 0) {
            let key = tree.root.key();
            let mut load = match self.now.trees.get(&key) {
                Some(load) => Arc::clone(load),
                None if !is_worth_it(tree) => continue,
                None if room == 0 => {
                    left_out += 1;
                    continue;
                }
                None => {
                    room -= 1;
                    Arc::default()
                }
            };
            if let Some((in_flight, anon_bytes)) = point(tree) {
                Load::take(&mut load, (tree.running, tree.exited_total), in_flight, anon_bytes);
            }
            trees.insert(key, load);
        }
        self.now = Arc::new(Loads { trees, left_out });
        Arc::clone(&self.now)
    }
}

impl Loads {
    /// What was seen of a tree; none where it is not watched.
    pub fn of(&self, tree: ProcessKey) -> Option<&Load> {
        self.trees.get(&tree).map(|load| &**load)
    }
}

impl Load {
    /// Takes a point, where anything is new: what stands still says nothing of how one goes with the other.
    fn take(this: &mut Arc<Self>, processes: (u32, u64), in_flight: u32, anon_bytes: u64) {
        let segment = this.segment + u32::from(this.processes != processes);
        let point = Point { segment, in_flight, anon_bytes };
        if this.points.back() == Some(&point) {
            return;
        }
        // Whoever answers may still have the one before.
        let this = Arc::make_mut(this);
        (this.processes, this.segment) = (processes, segment);
        if this.points.len() == MOST_POINTS {
            this.points.pop_front();
        }
        this.points.push_back(point);
    }

    /// What was seen, in order of time.
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        self.points.iter()
    }

    #[cfg(test)]
    pub(super) fn of(points: impl IntoIterator<Item = (u32, u32, u64)>) -> Self {
        let point = |(segment, in_flight, anon_bytes)| Point { segment, in_flight, anon_bytes };
        Self { points: points.into_iter().map(point).collect(), ..Self::default() }
    }
}

fn is_worth_it(tree: &Tree) -> bool {
    let is_server = tree.subject.totals.requests.is_some() || (tree.rule.is_some() && tree.running > 1);
    is_server && anon(tree).is_some_and(|bytes| bytes >= LEAST_BYTES)
}

/// Requests in flight and memory; none where either is not known.
fn point(tree: &Tree) -> Option<(u32, u64)> {
    let in_flight = tree.subject.totals.requests.as_ref()?.in_flight();
    Some((u32::try_from(in_flight).unwrap_or(u32::MAX), anon(tree)?))
}

fn anon(tree: &Tree) -> Option<u64> {
    let usage = tree.usage?;
    Some(usage.anon_bytes? + usage.swap_bytes.unwrap_or_default())
}
