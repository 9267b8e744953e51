//! When each process is to be looked at: after so many ticks, then only while its cgroup is busy, and when it is to be
//! refreshed. What is not due costs nothing.

use crate::{
    ids::{CgroupId, ProcessKey},
    time::BootTime,
};
use std::collections::{BTreeSet, HashMap, HashSet};

/// All processes that wait.
#[derive(Debug, Default)]
pub(super) struct ProcessQueue {
    places: HashMap<ProcessKey, Turn>,
    /// By the tick of their next look.
    looks: BTreeSet<(u64, ProcessKey)>,
    /// Those whose look has come while their cgroup was idle.
    parked: HashMap<CgroupId, HashSet<ProcessKey>>,
    /// By the time of their next refresh.
    refreshes: BTreeSet<(BootTime, ProcessKey)>,
}

/// When a process's turn comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// The tick from which on it is to be looked at.
    pub(super) tick: u64,
    /// Whether only while its cgroup is busy.
    pub(super) if_busy: bool,
    /// Its cgroup.
    pub(super) cgroup: CgroupId,
    /// When it is to be looked at whatever happens.
    pub(super) refresh: BootTime,
}

impl ProcessQueue {
    /// Lets a process wait for its turn, instead of any it waits for.
    pub(super) fn put(&mut self, key: ProcessKey, turn: Turn) {
        self.remove(key);
        self.looks.insert((turn.tick, key));
        self.refreshes.insert((turn.refresh, key));
        self.places.insert(key, turn);
    }

    /// Lets a process wait no longer.
    pub(super) fn remove(&mut self, key: ProcessKey) {
        let Some(turn) = self.places.remove(&key) else { return };
        self.refreshes.remove(&(turn.refresh, key));
        if !self.looks.remove(&(turn.tick, key))
            && let Some(parked) = self.parked.get_mut(&turn.cgroup)
        {
            parked.remove(&key);
            if parked.is_empty() {
                self.parked.remove(&turn.cgroup);
            }
        }
    }

    /// Takes out those whose turn it is, in order. `busy` are the cgroups that are not idle; none where nobody knows.
    pub(super) fn take_due(
        &mut self,
        tick: u64,
        now: BootTime,
        busy: Option<&HashSet<CgroupId>>,
    ) -> BTreeSet<ProcessKey> {
        let mut due = BTreeSet::new();
        while let Some(&(at, key)) = self.looks.first()
            && at <= tick
        {
            self.looks.pop_first();
            let Some(turn) = self.places.get(&key) else { continue };
            if turn.if_busy && busy.is_some_and(|busy| !busy.contains(&turn.cgroup)) {
                self.parked.entry(turn.cgroup).or_default().insert(key);
            } else {
                due.insert(key);
            }
        }
        for cgroup in busy.into_iter().flatten() {
            due.extend(self.parked.remove(cgroup).into_iter().flatten());
        }
        while let Some(&(at, key)) = self.refreshes.first()
            && at <= now
        {
            self.refreshes.pop_first();
            due.insert(key);
        }
        due.iter().for_each(|key| self.remove(*key));
        due
    }

    /// Whether nobody waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.looks.is_empty() && self.parked.is_empty() && self.refreshes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tgid;

    const CGROUP: CgroupId = CgroupId(7);

    fn key(tgid: u32) -> ProcessKey {
        ProcessKey { tgid: Tgid(tgid), start_tick: 0 }
    }

    fn due(queue: &mut ProcessQueue, tick: u64, now: u64, busy: Option<&[u64]>) -> Vec<u32> {
        let busy = busy.map(|ids| ids.iter().map(|id| CgroupId(*id)).collect());
        queue.take_due(tick, BootTime(now), busy.as_ref()).into_iter().map(|key| key.tgid.0).collect()
    }

    fn turn(tick: u64, if_busy: bool, refresh: u64) -> Turn {
        Turn { tick, if_busy, cgroup: CGROUP, refresh: BootTime(refresh) }
    }

    #[test]
    fn a_look_waits_for_its_tick_and_then_for_a_busy_cgroup() {
        let mut queue = ProcessQueue::default();
        queue.put(key(1), turn(3, false, 1000));
        queue.put(key(2), turn(3, true, 1000));
        assert!(due(&mut queue, 2, 0, Some(&[7])).is_empty());
        assert_eq!(due(&mut queue, 3, 0, Some(&[8])), [1]);
        assert!(due(&mut queue, 9, 0, Some(&[8])).is_empty());
        assert_eq!(due(&mut queue, 10, 0, Some(&[8, 7])), [2]);
        assert!(queue.is_empty());
        queue.put(key(2), turn(3, true, 1000));
        assert_eq!(due(&mut queue, 3, 0, None), [2], "nothing tells of cgroups");
    }

    #[test]
    fn a_refresh_waits_for_nothing_but_its_time() {
        let mut queue = ProcessQueue::default();
        queue.put(key(1), turn(3, true, 50));
        queue.put(key(2), turn(99, true, 60));
        assert!(due(&mut queue, 3, 49, Some(&[])).is_empty());
        assert_eq!(due(&mut queue, 4, 50, Some(&[])), [1]);
        assert_eq!(due(&mut queue, 5, 60, Some(&[])), [2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_is_put_again_or_removed_leaves_nothing_behind() {
        let mut queue = ProcessQueue::default();
        queue.put(key(1), turn(1, true, 50));
        due(&mut queue, 1, 0, Some(&[]));
        queue.put(key(1), turn(5, false, 90));
        assert!(due(&mut queue, 2, 60, Some(&[7])).is_empty());
        queue.remove(key(1));
        assert!(queue.is_empty());
    }
}
