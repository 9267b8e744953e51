//! The tree of cgroups: names by id, and totals that include everything below.

use super::{
    account::{Accounts, Counted},
    ledger::Addition,
    snapshot::{Cgroup, Subject},
};
use crate::{ids::CgroupId, time::BootTime};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// All cgroups of the hierarchy that is charged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cgroups {
    accounts: Accounts<CgroupId, Cgroup>,
    parents: HashMap<CgroupId, CgroupId>,
    by_path: HashMap<Arc<str>, CgroupId>,
    removed: VecDeque<(BootTime, CgroupId)>,
}

impl Counted for Cgroup {
    fn subject(&mut self) -> &mut Subject {
        &mut self.subject
    }
}

impl Cgroups {
    pub(super) fn contains(&self, id: CgroupId) -> bool {
        self.accounts.contains(id)
    }

    pub(super) fn path(&self, id: CgroupId) -> Option<Arc<str>> {
        self.accounts.find(id).map(|cgroup| cgroup.path.clone())
    }

    pub(super) fn by_path(&self, path: &str) -> Option<CgroupId> {
        self.by_path.get(path).copied()
    }

    /// A cgroup is there. What is known under the id already stays; a parent that was not known may be now.
    pub(super) fn made(&mut self, id: CgroupId, path: &Arc<str>) {
        if let Some(parent) = parent_path(path).and_then(|parent| self.by_path(parent)) {
            self.parents.entry(id).or_insert(parent);
        }
        if self.accounts.contains(id) {
            return;
        }
        let subject = Subject::default();
        self.accounts.open(id, Cgroup { id, path: path.clone(), removed: false, running: 0, subject });
        self.by_path.insert(path.clone(), id);
    }

    /// A cgroup has another name now, and with it everything below.
    pub(super) fn renamed(&mut self, id: CgroupId, path: &Arc<str>) {
        let Some(old) = self.path(id) else { return self.made(id, path) };
        let below: Vec<(CgroupId, Arc<str>)> = self
            .accounts
            .iter()
            .filter_map(|(id, cgroup)| Some((id, cgroup.path.strip_prefix(&*old)?)))
            .filter(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
            .map(|(id, rest)| (id, format!("{path}{rest}").into()))
            .collect();
        for (id, path) in below {
            if let Some(cgroup) = self.accounts.edit(id) {
                self.by_path.remove(&cgroup.path);
                cgroup.path = path.clone();
                self.by_path.insert(path, id);
            }
        }
    }

    /// A cgroup has gone. It stays visible for a while.
    pub(super) fn removed(&mut self, id: CgroupId, time: BootTime) {
        if let Some(cgroup) = self.accounts.edit(id)
            && !cgroup.removed
        {
            cgroup.removed = true;
            let path = cgroup.path.clone();
            // Another cgroup may have the path by now.
            if self.by_path.get(&path) == Some(&id) {
                self.by_path.remove(&path);
            }
            self.removed.push_back((time, id));
        }
    }

    /// Adds to a cgroup and to all above it.
    pub(super) fn apply(&mut self, id: CgroupId, addition: &Addition) {
        let mut next = Some(id);
        while let Some(id) = next {
            self.accounts.apply(id, addition);
            next = self.parents.get(&id).copied();
        }
    }

    /// Counts a process that came (1) or went (-1), here and in all above.
    pub(super) fn count_running(&mut self, id: CgroupId, change: i32) {
        let mut next = Some(id);
        while let Some(id) = next {
            if let Some(cgroup) = self.accounts.edit(id) {
                cgroup.running = cgroup.running.saturating_add_signed(change);
            }
            next = self.parents.get(&id).copied();
        }
    }

    /// Ends a tick; forgets what went longer ago than `keep`, whose totals live on above it.
    pub(super) fn settle(&mut self, seconds: f64, now: BootTime, keep: Duration) {
        self.accounts.settle(seconds);
        while let Some(&(time, id)) = self.removed.front()
            && now.since(time) > keep
        {
            self.removed.pop_front();
            self.accounts.close(id);
            self.parents.remove(&id);
        }
    }

    /// Those worth telling of, in order of path.
    pub(super) fn list(&self) -> Vec<Arc<Cgroup>> {
        let mut list: Vec<_> = self
            .accounts
            .iter()
            .map(|(_, cgroup)| cgroup)
            .filter(|cgroup| cgroup.running > 0 || !cgroup.subject.totals.is_zero())
            .cloned()
            .collect();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        list
    }

    /// Those that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = CgroupId> {
        self.accounts.iter().filter(|(_, cgroup)| !cgroup.removed).map(|(id, _)| id)
    }
}

/// The path one level up; none for the root.
fn parent_path(path: &str) -> Option<&str> {
    match path.rsplit_once('/')? {
        ("", "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[(u64, &str)]) -> Cgroups {
        let mut cgroups = Cgroups::default();
        for &(id, path) in paths {
            cgroups.made(CgroupId(id), &path.into());
        }
        cgroups
    }

    fn faults(n: u64) -> Addition {
        let mut counts = monitor_common::page_fault::Counts::default();
        counts[0] = n;
        Addition::PageFaults(counts)
    }

    fn totals(cgroups: &Cgroups) -> Vec<(String, u64)> {
        cgroups.list().iter().map(|c| (c.path.to_string(), c.subject.totals.user_faults())).collect()
    }

    #[test]
    fn a_parent_includes_its_children_also_after_they_are_gone() {
        let mut cgroups = tree(&[(1, "/"), (2, "/a"), (3, "/a/b")]);
        cgroups.apply(CgroupId(3), &faults(5));
        cgroups.apply(CgroupId(2), &faults(1));
        let all = [("/".into(), 6), ("/a".into(), 6), ("/a/b".into(), 5)];
        assert_eq!(totals(&cgroups), all);
        cgroups.removed(CgroupId(3), BootTime(0));
        cgroups.settle(1.0, BootTime(1), Duration::from_secs(60));
        assert_eq!(totals(&cgroups), all);
        cgroups.settle(1.0, BootTime(61_000_000_001), Duration::from_secs(60));
        assert_eq!(totals(&cgroups), all[..2]);
    }

    #[test]
    fn a_rename_moves_what_is_below_and_only_that() {
        let mut cgroups = tree(&[(1, "/"), (2, "/a"), (3, "/a/b"), (4, "/ab")]);
        cgroups.renamed(CgroupId(2), &"/c".into());
        assert_eq!(cgroups.path(CgroupId(3)).as_deref(), Some("/c/b"));
        assert_eq!(cgroups.path(CgroupId(4)).as_deref(), Some("/ab"));
        assert_eq!(cgroups.by_path("/c/b"), Some(CgroupId(3)));
        assert_eq!(cgroups.by_path("/a/b"), None);
    }

    #[test]
    fn a_path_made_again_belongs_to_the_new_cgroup() {
        let mut cgroups = tree(&[(1, "/"), (2, "/a")]);
        cgroups.removed(CgroupId(2), BootTime(0));
        cgroups.made(CgroupId(5), &"/a".into());
        assert_eq!(cgroups.by_path("/a"), Some(CgroupId(5)));
        assert!(cgroups.contains(CgroupId(2)));
    }
}
