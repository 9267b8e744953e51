//! A subject's account: totals that only grow, and what was added during the tick that is under way.

use super::{ledger::Addition, snapshot::Subject, totals::Rates};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Memory on GPUs by who holds it; none where not all of it is known.
pub(super) type GpuShares<K> = BTreeMap<K, Option<u64>>;

/// Anything that has a subject and is shared with readers.
pub(super) trait Counted: Clone {
    fn subject(&mut self) -> &mut Subject;
}

/// One account. Readers keep what they hold: a writer copies what is held before it writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Account<T> {
    pub(super) shared: Arc<T>,
    added: Rates,
}

impl<T: Counted> Account<T> {
    fn apply(&mut self, addition: &Addition) {
        self.edit().subject().totals.apply(addition);
        self.added.apply(addition);
    }

    pub(super) fn edit(&mut self) -> &mut T {
        Arc::make_mut(&mut self.shared)
    }

    /// Ends the tick: what was added becomes the rates.
    fn settle(&mut self, seconds: f64) {
        let rates = std::mem::take(&mut self.added).per_second(seconds);
        let subject = self.edit().subject();
        subject.rates = rates;
        subject.totals.settle();
    }
}

/// Accounts of one kind, in order of their keys. A tick costs in proportion to those that move, not to those there are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Deserialize<'de> + Ord, T: Deserialize<'de>"))]
pub(super) struct Accounts<K, T> {
    all: BTreeMap<K, Account<T>>,
    moved: BTreeSet<K>,
    moved_before: BTreeSet<K>,
}

impl<K, T> Default for Accounts<K, T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), moved: BTreeSet::new(), moved_before: BTreeSet::new() }
    }
}

impl<K: Ord + Copy, T: Counted> Accounts<K, T> {
    pub(super) fn contains(&self, key: K) -> bool {
        self.all.contains_key(&key)
    }

    pub(super) fn find(&self, key: K) -> Option<&Arc<T>> {
        self.all.get(&key).map(|account| &account.shared)
    }

    pub(super) fn edit(&mut self, key: K) -> Option<&mut T> {
        self.all.get_mut(&key).map(Account::edit)
    }

    pub(super) fn open(&mut self, key: K, subject: T) {
        self.all.insert(key, Account { shared: Arc::new(subject), added: Rates::default() });
    }

    pub(super) fn close(&mut self, key: K) -> Option<Arc<T>> {
        self.moved.remove(&key);
        self.moved_before.remove(&key);
        self.all.remove(&key).map(|account| account.shared)
    }

    /// Those that something was added to in the tick that is under way.
    pub(super) fn moved(&self) -> &BTreeSet<K> {
        &self.moved
    }

    /// Whether something was added in the tick that is under way.
    pub(super) fn has_moved(&self, key: K) -> bool {
        self.moved.contains(&key)
    }

    /// Adds to an account, if it is open.
    pub(super) fn apply(&mut self, key: K, addition: &Addition) {
        if let Some(account) = self.all.get_mut(&key) {
            account.apply(addition);
            self.moved.insert(key);
        }
    }

    /// Tells what each holds on GPUs now, where that is not what it held before.
    pub(super) fn tell_gpu_memory(&mut self, before: &GpuShares<K>, now: &GpuShares<K>) {
        for key in before.keys().chain(now.keys().filter(|key| !before.contains_key(key))) {
            let bytes = now.get(key).copied().flatten();
            if before.get(key) != now.get(key)
                && let Some(item) = self.edit(*key)
            {
                item.subject().gpu_memory_bytes = bytes;
            }
        }
    }

    /// Ends the tick for accounts that moved, and for those that have just come to rest.
    pub(super) fn settle(&mut self, seconds: f64) {
        let moved = std::mem::take(&mut self.moved);
        for key in moved.union(&self.moved_before) {
            if let Some(account) = self.all.get_mut(key) {
                account.settle(seconds);
            }
        }
        self.moved_before = moved;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &Arc<T>)> {
        self.all.iter().map(|(key, account)| (*key, &account.shared))
    }
}
