//! The tree of cgroups: names by id, and totals that include everything below.

use super::{
    account::{Accounts, Counted},
    container::Container,
    gpus::Shares,
    ledger::Addition,
    snapshot::{Cgroup, Subject},
    usage::{CgroupUsage, Limit},
};
use crate::{
    ids::CgroupId,
    reading::{CgroupReading, Watched},
    sample::FoundContainer,
    time::BootTime,
};
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
    /// Containers whose names are still looked for.
    nameless: Vec<Nameless>,
}

/// A container whose names are still looked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Nameless {
    /// Its cgroup.
    cgroup: CgroupId,
    /// Its id.
    id: Arc<str>,
    /// How often they were looked for in vain.
    tries: u32,
    /// When that was last done.
    looked: BootTime,
}

/// So often names are looked for: the kubelet makes its link when a container has started, which may take a while.
const TRIES: u32 = 6;
/// From the first time to the second; then twice that, and so on: the last is half a minute after the first.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl Nameless {
    fn is_due(&self, now: BootTime) -> bool {
        self.tries == 0 || now.since(self.looked) >= FIRST_PAUSE * (1 << (self.tries - 1))
    }
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

    /// Whether it is known to be gone.
    pub(super) fn is_removed(&self, id: CgroupId) -> bool {
        self.accounts.find(id).is_some_and(|cgroup| cgroup.removed)
    }

    pub(super) fn path(&self, id: CgroupId) -> Option<Arc<str>> {
        self.accounts.find(id).map(|cgroup| cgroup.path.clone())
    }

    pub(super) fn is_root(&self, id: CgroupId) -> bool {
        self.accounts.find(id).is_some_and(|cgroup| &*cgroup.path == "/")
    }

    pub(super) fn container(&self, id: CgroupId) -> Option<Arc<Container>> {
        self.accounts.find(id)?.container.clone()
    }

    pub(super) fn by_path(&self, path: &str) -> Option<CgroupId> {
        self.by_path.get(path).copied()
    }

    /// A cgroup is there. What is known under the id already stays; a parent that was not known may be now.
    pub(super) fn made(&mut self, id: CgroupId, path: &Arc<str>) {
        let parent = parent_path(path).and_then(|parent| self.by_path(parent));
        if let Some(parent) = parent {
            self.parents.entry(id).or_insert(parent);
        }
        if self.accounts.contains(id) {
            return;
        }
        let above = parent.and_then(|parent| self.container(parent));
        let container = self.enter_container(id, path, above);
        let subject = Subject::default();
        let cgroup = Cgroup { id, path: path.clone(), container, removed: false, running: 0, subject, usage: None };
        self.accounts.open(id, cgroup);
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
            let container = self.enter_container(id, &path, self.container(id));
            if let Some(cgroup) = self.accounts.edit(id) {
                self.by_path.remove(&cgroup.path);
                cgroup.path = path.clone();
                cgroup.container = container;
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
            self.nameless.retain(|nameless| nameless.cgroup != id);
        }
    }

    /// The container that a cgroup of this path is in: the one given, if it is that, else a new one without a name.
    fn enter_container(
        &mut self,
        cgroup: CgroupId,
        path: &str,
        known: Option<Arc<Container>>,
    ) -> Option<Arc<Container>> {
        let container = Container::of_path(path)?;
        known.filter(|known| known.id == container.id).or_else(|| {
            self.nameless.push(Nameless { cgroup, id: container.id.clone(), tries: 0, looked: BootTime::default() });
            Some(Arc::new(container))
        })
    }

    /// Containers whose names are to be looked for now.
    pub(super) fn nameless(&self, now: BootTime) -> Vec<Arc<str>> {
        self.nameless.iter().filter(|nameless| nameless.is_due(now)).map(|nameless| nameless.id.clone()).collect()
    }

    /// Takes in names that were looked for. Whether there were any.
    pub(super) fn named(&mut self, found: &[FoundContainer], now: BootTime) -> bool {
        if found.is_empty() {
            return false;
        }
        let found: HashMap<&str, &FoundContainer> = found.iter().map(|found| (&*found.id, found)).collect();
        let named = self.learn(&found);
        self.nameless.retain_mut(|nameless| {
            if found.contains_key(&*nameless.id) {
                nameless.tries += 1;
                nameless.looked = now;
            }
            nameless.tries < TRIES && !named.get(&nameless.id).is_some_and(|container| container.is_named())
        });
        !named.is_empty()
    }

    /// Lets all cgroups of containers have their names. Returns the containers that got some.
    fn learn(&mut self, found: &HashMap<&str, &FoundContainer>) -> HashMap<Arc<str>, Arc<Container>> {
        let mut named = HashMap::new();
        let cgroups = self.accounts.iter().filter_map(|(id, cgroup)| {
            let container = cgroup.container.as_ref()?;
            let found = found.get(&*container.id).filter(|found| !found.tells_nothing())?;
            let shared = named.entry(container.id.clone()).or_insert_with(|| {
                let mut container = (**container).clone();
                container.learn(found);
                Arc::new(container)
            });
            Some((id, shared.clone()))
        });
        for (id, container) in cgroups.collect::<Vec<_>>() {
            if let Some(cgroup) = self.accounts.edit(id) {
                cgroup.container = Some(container);
            }
        }
        named
    }

    /// Path and container of a cgroup, if they are known and others than these.
    pub(super) fn news(
        &self,
        id: CgroupId,
        path: Option<&Arc<str>>,
        container: Option<&Arc<Container>>,
    ) -> Option<(Arc<str>, Option<Arc<Container>>)> {
        let cgroup = self.accounts.find(id)?;
        let same = path == Some(&cgroup.path) && container == cgroup.container.as_ref();
        (!same).then(|| (cgroup.path.clone(), cgroup.container.clone()))
    }

    /// Adds to a cgroup and to all above it.
    pub(super) fn apply(&mut self, id: CgroupId, addition: &Addition) {
        let mut next = Some(id);
        while let Some(id) = next {
            self.accounts.apply(id, addition);
            next = self.parents.get(&id).copied();
        }
    }

    /// What a cgroup's files told. `host_bytes` is all the memory the host has.
    pub(super) fn read(&mut self, id: CgroupId, reading: CgroupReading, time: BootTime, host_bytes: Option<u64>) {
        let Some(cgroup) = self.accounts.edit(id) else { return };
        let before = cgroup.usage.take();
        let usage = CgroupUsage::new(reading, time, before.as_deref());
        let limit_before = before.as_ref().and_then(|before| before.own_limit());
        let is_limit_new = before.is_some() && limit_before != usage.own_limit();
        cgroup.usage = Some(Arc::new(usage));
        self.set_limit(id, host_bytes);
        if is_limit_new {
            let path = self.path(id).unwrap_or_default();
            let is_below =
                |other: &str| other.strip_prefix(path.trim_end_matches('/')).is_some_and(|r| r.starts_with('/'));
            let below: Vec<_> = self.accounts.iter().filter(|(_, c)| is_below(&c.path)).map(|(id, _)| id).collect();
            below.into_iter().for_each(|id| self.set_limit(id, host_bytes));
        }
    }

    /// Finds the limit that counts for a cgroup: the tightest of its own, those above it, and the host's memory.
    fn set_limit(&mut self, id: CgroupId, host_bytes: Option<u64>) {
        let mut limit = host_bytes.map(|bytes| Limit { bytes, source: None });
        let mut next = Some(id);
        while let Some(id) = next {
            if let Some(cgroup) = self.accounts.find(id)
                && let Some(bytes) = cgroup.usage.as_ref().and_then(|usage| usage.own_limit())
                // Of equal ones that of the outermost, which is the one to raise.
                && limit.as_ref().is_none_or(|limit| bytes <= limit.bytes)
            {
                limit = Some(Limit { bytes, source: Some(cgroup.path.clone()) });
            }
            next = self.parents.get(&id).copied();
        }
        if let Some(usage) = self.accounts.edit(id).and_then(|cgroup| cgroup.usage.as_mut())
            && usage.limit != limit
        {
            Arc::make_mut(usage).limit = limit;
        }
    }

    /// A cgroup that was read in the tick before was not in this one: it is idle.
    pub(super) fn rest(&mut self, id: CgroupId) {
        if let Some(usage) = self.accounts.edit(id).and_then(|cgroup| cgroup.usage.as_mut()) {
            let usage = Arc::make_mut(usage);
            usage.cpu_per_second = usage.reading.cpu_usage_ns.map(|_| 0.0);
            usage.stalls.rest();
        }
    }

    /// Those whose files are to be read, parents before children.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let mut watched: Vec<_> = self
            .accounts
            .iter()
            .filter(|(_, cgroup)| !cgroup.removed)
            .map(|(id, cgroup)| Watched {
                id,
                parent: self.parents.get(&id).copied(),
                path: cgroup.path.clone(),
                moved: self.accounts.has_moved(id),
            })
            .collect();
        watched.sort_by(|a, b| a.path.cmp(&b.path));
        watched
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

    /// A cgroup and all above it.
    pub(super) fn with_ancestors(&self, id: CgroupId) -> impl Iterator<Item = CgroupId> {
        std::iter::successors(Some(id), |id| self.parents.get(id).copied())
    }

    /// Tells cgroups what they hold on GPUs.
    pub(super) fn tell_gpu_memory(&mut self, before: &Shares, now: &Shares) {
        self.accounts.tell_gpu_memory(&before.cgroups, &now.cgroups);
    }

    /// Ends a tick.
    pub(super) fn settle(&mut self, seconds: f64) {
        self.accounts.settle(seconds);
    }

    /// Forgets what went longer ago than `keep`, whose totals live on above it.
    pub(super) fn fold(&mut self, now: BootTime, keep: Duration) {
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
            .filter(|cgroup| cgroup.running > 0 || !cgroup.subject.totals.is_zero() || holds_memory(cgroup))
            .cloned()
            .collect();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        list
    }

    /// Whether any is known that was removed.
    pub(super) fn any_removed(&self) -> bool {
        !self.removed.is_empty()
    }

    /// Those that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = CgroupId> {
        self.accounts.iter().filter(|(_, cgroup)| !cgroup.removed).map(|(id, _)| id)
    }
}

/// Whether memory is charged to it, perhaps though nobody lives there any more.
fn holds_memory(cgroup: &Cgroup) -> bool {
    let memory = cgroup.usage.as_ref().and_then(|usage| usage.reading.memory.as_ref());
    !cgroup.removed && memory.is_some_and(|memory| memory.current_bytes > 0)
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
        cgroups.fold(BootTime(1), Duration::from_secs(60));
        assert_eq!(totals(&cgroups), all);
        cgroups.fold(BootTime(61_000_000_001), Duration::from_secs(60));
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
