//! From samples to snapshots: names, process trees, the cgroup tree, roll-ups, rates. Pure: time and data are arguments.
//!
//! A sample costs in proportion to what moved in it: what was added to an owner's counters is added to its process, tree,
//! cgroups and device, and to the host, and nothing is summed up anew.

mod account;
mod cgroups;
pub mod container;
mod gpus;
mod ledger;
mod processes;
pub mod resources;
mod rule;
pub mod snapshot;
mod tell;
pub mod totals;
pub mod usage;

use crate::{
    constant::{self, Name},
    event::Event,
    ids::{CgroupId, DeviceId, ProcessId, ProcessKey, Tgid},
    mark::Mark,
    reading::{MemoryReading, ProcessChange, Readings, Watched},
    sample::{Counters, Found, Harvest, Moment, Sample, Unknown, What},
    tally::Tally,
    time::BootTime,
    units::PAGE,
};
use account::{Accounts, Counted};
use cgroups::Cgroups;
use gpus::Gpus;
use ledger::{Addition, Ledger};
use monitor_common::{Owner, block_io};
use processes::Processes;
use serde::{Deserialize, Serialize};
use snapshot::{BlockDevice, Resident, Snapshot, Subject, TreeIo};
use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};
use totals::Rates;
use usage::HostUsage;

/// How long what has ended stays visible.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Retention {
    /// Exited processes and removed cgroups stay for this long.
    pub keep: Duration,
    /// At most so many exited processes do.
    pub limit: usize,
}

/// Everything known about this node. It can be written down and read back, to go on from there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Model {
    since: BootTime,
    retention: Retention,
    #[serde(deserialize_with = "constant::name")]
    hierarchy: Name,
    ledger: Ledger,
    host: Subject,
    host_added: Rates,
    processes: Processes,
    cgroups: Cgroups,
    devices: Accounts<DeviceId, BlockDevice>,
    /// In the tick that is under way.
    #[serde(default)]
    io_added: BTreeMap<(ProcessKey, DeviceId), IoAdded>,
    host_usage: Option<(BootTime, Arc<HostUsage>)>,
    /// What was read in the tick before.
    #[serde(default)]
    read_before: Busy,
    #[serde(default)]
    gpus: Gpus,
    last_snapshot: Option<BootTime>,
    #[serde(default)]
    snapshots_total: u64,
    #[serde(default)]
    mark: Option<Arc<Mark>>,
}

/// What a tree did on a device.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct IoAdded {
    count: u64,
    bytes: u64,
    wait_ns: u64,
}

/// Cgroups and processes that files were read of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Busy {
    cgroups: HashSet<CgroupId>,
    processes: HashSet<ProcessId>,
}

/// What came of taking in a sample.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Moments to tell, in order of time.
    pub events: Vec<Event>,
    /// What the kernel may forget now.
    pub harvest: Harvest,
}

impl Counted for BlockDevice {
    fn subject(&mut self) -> &mut Subject {
        &mut self.subject
    }
}

impl Model {
    /// A model that knows nothing yet. `entry_points` are patterns for the command lines of those whose processes form
    /// trees, or names in them.
    pub fn new(since: BootTime, retention: Retention, hierarchy: &'static str, entry_points: Vec<String>) -> Self {
        Self {
            since,
            retention,
            hierarchy,
            ledger: Ledger::default(),
            host: Subject::default(),
            host_added: Rates::default(),
            processes: Processes::new(entry_points),
            cgroups: Cgroups::default(),
            devices: Accounts::default(),
            io_added: BTreeMap::new(),
            host_usage: None,
            read_before: Busy::default(),
            gpus: Gpus::default(),
            last_snapshot: None,
            snapshots_total: 0,
            mark: None,
        }
    }

    /// The same, where `agent` is the process that counts: what that starts is there to be watched, and begins trees of its own.
    pub fn of_agent(mut self, agent: Tgid) -> Self {
        self.processes.keep_apart(agent);
        self
    }

    /// What a sample mentions and nobody has heard of: to be looked up before the sample is taken in.
    pub fn unknown(&self, sample: &Sample) -> Unknown {
        let mut search = Search { model: self, born: HashSet::new(), made: HashSet::new(), found: Unknown::default() };
        sample.moments.iter().for_each(|moment| search.moment(&moment.what));
        if let Some(counters) = &sample.counters {
            search.counters(counters);
        }
        for id in sample.marked.into_iter().chain(sample.tallies.iter().map(|tally| tally.by)) {
            search.process(id, CgroupId::default());
        }
        search.found.containers = self.cgroups.nameless(sample.time);
        search.found
    }

    /// Takes in a sample.
    pub fn take(&mut self, sample: &Sample) -> Taken {
        let mut events = Vec::new();
        self.name(&sample.found, sample.time);
        for moment in &sample.moments {
            if self.live(moment) {
                // Told after it was taken in, so that names are the new ones.
                events.push(self.tell(moment));
            }
        }
        if !sample.tallies.is_empty() {
            events.extend(sample.tallies.iter().map(|tally| self.count_posted(tally)));
            events.sort_by_key(|event| event.time_ns);
        }
        let mut harvest = Harvest::default();
        if let Some(counters) = &sample.counters {
            self.count(counters);
            self.remember_resident(counters);
            harvest = self.processes.harvest(counters, &self.ledger, &self.cgroups, sample.time);
        }
        if let Some(reading) = &sample.gpus {
            self.gpus.take(reading);
        }
        if let Some(mark) = &sample.mark {
            let of_tree = sample.marked.and_then(|id| self.processes.mark(id, mark));
            self.mark = of_tree.or_else(|| Some(Arc::new(self.unattributed(mark, sample.marked))));
        }
        self.read(&sample.readings, sample.time);
        for id in &sample.found.gone {
            self.exit(*id, sample.time, None);
        }
        for id in &sample.found.gone_cgroups {
            self.cgroups.removed(*id, sample.time);
        }
        // Not only once a tick, which may be an hour.
        if sample.counters.is_some() {
            self.fold(sample.time);
        }
        Taken { events, harvest }
    }

    /// Forgets what has gone and is not to be kept any longer.
    fn fold(&mut self, now: BootTime) {
        self.processes.fold(now, self.retention);
        self.cgroups.fold(now, self.retention.keep);
    }

    /// The whole of a mark that no tree has: it goes on from the last one where nobody can say that it is another's.
    fn unattributed(&self, mark: &Mark, marked: Option<ProcessId>) -> Mark {
        mark.after(self.mark.as_deref().filter(|_| marked.is_none()))
    }

    /// The kernel has forgotten these: should one of their keys come back, it starts from zero.
    pub fn forget(&mut self, harvest: &Harvest) {
        let Self { ledger, host, processes, cgroups, .. } = self;
        ledger.give_up(harvest, |owner, addition| {
            host.totals.apply(&addition);
            processes.apply(owner, &addition);
            cgroups.apply(CgroupId(owner.cgroup), &addition);
        });
        self.ledger.forget(harvest);
    }

    /// How many exited processes wait to be harvested, and since when the first of them does.
    pub fn awaiting_harvest(&self) -> (usize, Option<BootTime>) {
        self.processes.awaiting_harvest()
    }

    /// Cgroups whose files are to be read, parents before children.
    pub fn watched(&self) -> Vec<Watched> {
        self.cgroups.watched()
    }

    /// Processes that something happened to since the last snapshot.
    pub fn process_changes(&self) -> impl Iterator<Item = ProcessChange> {
        self.processes.changes()
    }

    /// Processes thought to be running.
    pub fn running(&self) -> impl Iterator<Item = ProcessId> {
        self.processes.running()
    }

    /// Cgroups thought to be there.
    pub fn present_cgroups(&self) -> impl Iterator<Item = CgroupId> {
        self.cgroups.present()
    }

    /// The picture at the end of a tick.
    pub fn snapshot(&mut self, sample: &Sample) -> Snapshot {
        let tick = self.last_snapshot.map_or(Duration::ZERO, |last| sample.time.since(last));
        self.last_snapshot = Some(sample.time);
        let number = self.snapshots_total;
        self.snapshots_total += 1;
        // What was counted before the first tick is no rate of anything.
        let seconds = if tick.is_zero() { f64::INFINITY } else { tick.as_secs_f64() };
        self.host.rates = mem::take(&mut self.host_added).per_second(seconds);
        self.host.totals.settle();
        self.processes.settle(seconds);
        self.cgroups.settle(seconds);
        self.fold(sample.time);
        self.devices.settle(seconds);
        self.gpus.join(&mut self.processes, &mut self.cgroups);
        Snapshot {
            time: sample.time,
            number,
            tick,
            since: self.since,
            mark: self.mark.clone(),
            hierarchy: self.hierarchy,
            host: self.host.clone(),
            host_usage: self.host_usage.as_ref().map(|(_, usage)| usage.clone()),
            processes: self.processes.list(),
            trees: self.processes.list_trees(),
            cgroups: self.cgroups.list(),
            block_devices: self.devices.iter().map(|(_, device)| device.clone()).collect(),
            io: mem::take(&mut self.io_added).into_iter().map(|(of, added)| added.per_second(of, seconds)).collect(),
            gpus: self.gpus.list(),
            gpu: self.gpus.standing(sample.time),
            folded_processes_total: self.processes.folded_total(),
            coverage: sample.coverage.clone(),
            cost: sample.cost.clone(),
        }
    }

    /// Takes in what was polled. Of what is not in it, nothing has moved.
    fn read(&mut self, readings: &Readings, time: BootTime) {
        if *readings == Readings::default() {
            return;
        }
        if let Some(host) = &readings.host {
            let before = self.host_usage.as_ref().map(|(time, usage)| (*time, &usage.reading));
            let seconds = before.map_or(0.0, |(before, _)| time.since(before).as_secs_f64());
            let usage = HostUsage::new(host.clone(), before.map(|(_, reading)| reading), seconds);
            self.host_usage = Some((time, Arc::new(usage)));
        }
        let host_bytes = self.host_usage.as_ref().and_then(|(_, usage)| Some(usage.reading.memory?.total_bytes));
        let busy = Busy {
            cgroups: readings.cgroups.iter().map(|(id, _)| *id).collect(),
            processes: readings.processes.iter().map(|(id, _)| *id).collect(),
        };
        let before = mem::replace(&mut self.read_before, busy);
        for id in before.cgroups.difference(&self.read_before.cgroups) {
            self.cgroups.rest(*id);
        }
        for id in before.processes.difference(&self.read_before.processes) {
            self.processes.rest(*id);
        }
        for (id, reading) in &readings.cgroups {
            let mut reading = reading.clone();
            if reading.memory.is_none() && self.cgroups.is_root(*id) {
                reading.memory = self.host_memory();
            }
            self.cgroups.read(*id, reading, time, host_bytes);
        }
        for (id, reading) in &readings.processes {
            self.processes.read(*id, reading, time);
            if let Some(resident) = &reading.resident {
                self.processes.reconcile(*id, resident, self.since);
            }
        }
        self.processes.sum_trees();
    }

    /// The root of cgroup v2 has no memory files: what is outside any memory cgroup has all of the host's.
    fn host_memory(&self) -> Option<MemoryReading> {
        let memory = self.host_usage.as_ref()?.1.reading.memory?;
        Some(MemoryReading {
            current_bytes: memory.used_bytes(),
            inactive_file_bytes: Some(0),
            anon_bytes: Some(memory.anon_bytes),
            file_bytes: Some(memory.cached_bytes),
            slab_bytes: Some(memory.slab_bytes),
            swap_bytes: Some(memory.swap_total_bytes.saturating_sub(memory.swap_free_bytes)),
            ..MemoryReading::default()
        })
    }

    /// Takes in what had to be looked up.
    fn name(&mut self, found: &Found, now: BootTime) {
        for (id, path) in &found.cgroups {
            self.cgroups.made(*id, path);
        }
        for process in &found.processes {
            let shown = process.cgroup_path.as_deref().and_then(|path| self.cgroups.by_path(path));
            let mentioned = Some(process.cgroup).filter(|id| *id != CgroupId::default());
            let cgroup = if process.running { shown.or(mentioned) } else { mentioned.or(shown) };
            self.processes.found(process, cgroup, &mut self.cgroups, now);
        }
        for (id, name) in &found.devices {
            if !self.devices.contains(*id) {
                self.devices.open(*id, BlockDevice { id: *id, name: name.clone(), subject: Subject::default() });
            }
        }
        if self.cgroups.named(&found.containers, now) {
            self.processes.refresh_cgroups(&self.cgroups);
        }
    }

    /// Takes in one moment of a process's or cgroup's life.
    /// Takes in a moment. Whether it is news.
    fn live(&mut self, moment: &Moment) -> bool {
        match &moment.what {
            What::Fork { child, parent, command } => {
                self.processes.fork(child, *parent, command, &mut self.cgroups);
            }
            What::Exec { owner, command, arguments, cut } => {
                self.processes.exec(owner, command, arguments, *cut, &mut self.cgroups);
            }
            What::Exit { owner, wait_status, command } => {
                let id = ProcessId::from(owner);
                self.processes.name(id, command);
                return self.exit(id, moment.time, Some(*wait_status));
            }
            What::OomVictim { owner, resident, .. } => self.processes.doom(ProcessId::from(owner), *resident),
            What::Moved(owner) => self.processes.enter_cgroup(owner, &mut self.cgroups),
            What::CgroupMade(id, path) => self.cgroups.made(*id, path),
            What::CgroupRenamed(id, path) => {
                self.cgroups.renamed(*id, path);
                self.processes.refresh_cgroups(&self.cgroups);
            }
            What::CgroupRemoved(id, _) => self.cgroups.removed(*id, moment.time),
            What::AddressSpace(_) | What::BlockIo(_) => {}
        }
        true
    }

    /// Takes in what processes have in memory now.
    fn remember_resident(&mut self, counters: &Counters) {
        let Self { ledger, processes, since, .. } = self;
        ledger.retell(counters, |owner, pages| {
            let bytes = pages.pages.map(|pages| pages.max(0) as u64 * PAGE);
            processes.resident(owner, Resident { bytes, processes: 1 }, *since);
        });
    }

    /// Adds requests that a process counted itself to everyone they belong to, and tells of them.
    fn count_posted(&mut self, tally: &Tally) -> Event {
        let cgroup = self.processes.find(tally.by).map(|process| process.cgroup).unwrap_or_default();
        let id = tally.by;
        let owner = Owner { cgroup: cgroup.0, start_ns: id.start_ns, tgid: id.tgid.0, reserved: 0 };
        let addition = Addition::Posted(tally.count);
        self.host.totals.apply(&addition);
        self.processes.apply(&owner, &addition);
        self.cgroups.apply(cgroup, &addition);
        self.tell_tally(&owner, tally)
    }

    fn exit(&mut self, id: ProcessId, time: BootTime, wait_status: Option<u32>) -> bool {
        self.processes.exit(id, time, wait_status, &mut self.cgroups)
    }

    /// Adds what is new to everyone it belongs to.
    fn count(&mut self, counters: &Counters) {
        let Self { ledger, host, host_added, processes, cgroups, devices, io_added, .. } = self;
        ledger.post(counters, |owner, addition| {
            host.totals.apply(&addition);
            host_added.apply(&addition);
            if let Addition::BlockIo(key, _) | Addition::BlockLatency(key, ..) = &addition {
                devices.apply(DeviceId(key.device), &addition);
            }
            if *owner != Owner::UNATTRIBUTED {
                if let Addition::BlockIo(key, new) = &addition
                    && let Some(process) = processes.find(ProcessId::from(owner))
                {
                    io_added.entry((process.tree.key(), DeviceId(key.device))).or_default().add(new);
                }
                processes.apply(owner, &addition);
                cgroups.apply(CgroupId(owner.cgroup), &addition);
            }
        });
    }
}

impl IoAdded {
    fn add(&mut self, new: &block_io::Totals) {
        self.count += new.count;
        self.bytes += new.bytes;
        self.wait_ns += new.wait_ns;
    }

    fn per_second(self, (tree, device): (ProcessKey, DeviceId), seconds: f64) -> TreeIo {
        let each = |sum: f64| sum / seconds;
        TreeIo {
            tree,
            device,
            ops: each(self.count as f64),
            bytes: each(self.bytes as f64),
            wait: each(self.wait_ns as f64 / 1e9),
        }
    }
}

/// Looks through a sample for what the model does not know.
struct Search<'a> {
    model: &'a Model,
    born: HashSet<ProcessId>,
    made: HashSet<CgroupId>,
    found: Unknown,
}

impl Search<'_> {
    fn moment(&mut self, what: &What) {
        match what {
            What::Fork { child, .. } => {
                self.born.insert(ProcessId::from(child));
                self.cgroup(child);
            }
            What::Exec { owner, .. }
            | What::Exit { owner, .. }
            | What::OomVictim { owner, .. }
            | What::Moved(owner) => {
                self.owner(owner);
            }
            What::AddressSpace(call) => self.owner(&call.owner),
            What::BlockIo(completion) => {
                self.owner(&completion.owner);
                self.device(DeviceId(completion.device));
            }
            What::CgroupMade(id, _) | What::CgroupRenamed(id, _) | What::CgroupRemoved(id, _) => {
                self.made.insert(*id);
            }
        }
    }

    fn counters(&mut self, counters: &Counters) {
        counters.page_faults.iter().for_each(|(owner, _)| self.owner(owner));
        counters.address_spaces.iter().for_each(|(owner, _)| self.owner(owner));
        counters.requests.iter().for_each(|(owner, _)| self.owner(owner));
        for (owner, _) in &counters.resident {
            self.process(ProcessId::from(owner), CgroupId(owner.cgroup));
        }
        for (key, _) in &counters.block_io {
            self.owner(&key.owner);
            self.device(DeviceId(key.device));
        }
    }

    fn owner(&mut self, owner: &Owner) {
        if *owner == Owner::UNATTRIBUTED {
            return;
        }
        self.process(ProcessId::from(owner), CgroupId(owner.cgroup));
        self.cgroup(owner);
    }

    fn process(&mut self, id: ProcessId, cgroup: CgroupId) {
        if !self.model.processes.contains(id) && self.born.insert(id) {
            self.found.processes.push((id, cgroup));
        }
    }

    fn cgroup(&mut self, owner: &Owner) {
        let id = CgroupId(owner.cgroup);
        if id.0 != 0 && !self.model.cgroups.contains(id) && self.made.insert(id) {
            self.found.cgroups.push(id);
        }
    }

    fn device(&mut self, id: DeviceId) {
        if id.0 != 0 && !self.model.devices.contains(id) && !self.found.devices.contains(&id) {
            self.found.devices.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
