//! What /proc tells of single processes: CPU time, memory by kind, threads, faults, storage, delays; on a budget also what of
//! their memory is their own, and how many files they have open.
//!
//! Only what runs is read. A process is looked at when kernel counters of it moved, when it had changed the last time, or when
//! its cgroup is not idle; one that was found unchanged is looked at less and less often, down to every eighth tick. Those
//! that rest are read once in 30 s all the same.

use super::{
    descriptors::{Absent, Budget, Places},
    files::Buffer,
    node::Polled,
    process,
    process_files::{Identity, open_files, parse_io, parse_shares, parse_stat, parse_status},
    process_queue::{ProcessQueue, Turn},
    refresh,
};
use crate::{
    ids::{CgroupId, ProcessId, ProcessKey},
    reading::{ProcessChange, ProcessReading},
    time::{BootTime, thread_cpu_time},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Instant,
};

/// A process that does not change is looked at once in so many ticks.
const REST: u32 = 8;
/// A process that goes on changing is read in full, by three more files, every so many ticks.
const FULL_EVERY: u64 = 16;
/// Or when its resident memory has changed by so much, or by a sixteenth.
const FULL_BYTES: u64 = 1 << 20;
/// Share of a processor's time that smaps_rollup may take: reading it walks a process's page tables, which takes 20 us of
/// a small one and milliseconds of a large one.
const SHARES_RATIO: f64 = 0.002;
/// So many seconds of it are saved up at most, and there to begin with.
const SHARES_SAVED: f64 = 0.02;
/// At most so many of them in one tick.
const SHARES_COUNT: usize = 8;
/// Ticks before a process's shares are read again, though it goes on changing.
const SHARES_AGE: u64 = 30;
/// Processes whose stat files are kept open: reading one again costs a sixth of opening it. Each takes the kernel some 4 KiB.
const MOST_KEPT: usize = 512;

/// Reads processes.
#[derive(Debug)]
pub struct ProcessStat {
    polled: Polled,
    known: HashMap<ProcessKey, Known>,
    queue: ProcessQueue,
    /// Those whose shares are to be read, the next first.
    wishes: BTreeSet<Wish>,
    /// /proc/PID/stat of some that go on changing.
    kept: HashMap<ProcessKey, (File, Places)>,
    budget: Budget,
    tick: u64,
    now: BootTime,
    /// When shares were last thought of, and how many seconds of a processor's time for them were left: one that took longer
    /// leaves a debt.
    shares_time: Option<(Instant, f64)>,
    buffer: Buffer,
}

/// Those first whose shares were never read, then those not for longest, the busiest first.
type Wish = (Option<u64>, Reverse<u64>, ProcessKey);

/// What is remembered of one process.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: ProcessId,
    cgroup: CgroupId,
    cpu_ns: u64,
    faults: u64,
    /// Faults between the last two looks: how busy it is.
    new_faults: u64,
    /// Whether it had changed when it was last looked at, or could not be.
    changed: bool,
    /// Unchanged looks in a row.
    still: u32,
    /// When to look again; 0 before the first time.
    next: u64,
    /// When it is read in full whether it rests or not.
    refresh_at: BootTime,
    /// When it is read in full at the latest while it goes on changing, and its resident memory when it was.
    full_at: u64,
    resident_bytes: u64,
    /// Whether its shares are to be read, and when and of how much memory they were.
    wants_shares: bool,
    shares_at: Option<u64>,
    shares_of: u64,
    /// Hash of the command line that was told last.
    title: Option<u64>,
}

impl ProcessStat {
    /// Of what is polled. Files that are kept open take places of the budget.
    pub fn new(polled: Polled, budget: Budget) -> Self {
        Self {
            polled,
            known: HashMap::new(),
            queue: ProcessQueue::default(),
            wishes: BTreeSet::new(),
            kept: HashMap::new(),
            budget,
            tick: 0,
            now: BootTime::default(),
            shares_time: None,
            buffer: Buffer::default(),
        }
    }

    /// Reads those that are not at rest, and those that are to be refreshed. `changes` are all that something happened to since
    /// the last call, `busy` the cgroups that are not idle: none where nobody knows.
    pub fn read(
        &mut self,
        changes: impl Iterator<Item = ProcessChange>,
        busy: Option<&HashSet<CgroupId>>,
        now: BootTime,
    ) -> Vec<(ProcessId, ProcessReading)> {
        self.tick += 1;
        self.now = now;
        let mut due: BTreeMap<ProcessKey, bool> = changes.filter_map(|change| self.hear(change)).collect();
        for key in self.queue.take_due(self.tick, now, busy) {
            due.entry(key).or_default();
        }
        let mut readings = Vec::new();
        for (key, moved) in due {
            if let Some(reading) = self.visit(key, moved) {
                readings.push(reading);
            }
        }
        self.add_shares(&mut readings);
        readings
    }

    /// Takes in what happened to a process. If it runs, it is due: with whether counters of it moved.
    fn hear(&mut self, change: ProcessChange) -> Option<(ProcessKey, bool)> {
        let ProcessChange { id, cgroup, runs, moved } = change;
        if !runs {
            self.forget(id.key());
            return None;
        }
        self.queue.remove(id.key());
        let known = self.known.entry(id.key()).or_insert_with(|| Known::new(id));
        (known.id, known.cgroup) = (id, cgroup);
        Some((id.key(), moved))
    }

    /// Looks at a process, and lets it wait for its next turn; for none when it has gone.
    fn visit(&mut self, key: ProcessKey, moved: bool) -> Option<(ProcessId, ProcessReading)> {
        let mut known = *self.known.get(&key)?;
        let looked = self.look(&mut known, moved);
        match looked {
            Ok(_) => {}
            Err(Absent::Gone) => {
                self.forget(key);
                return None;
            }
            Err(_) => (known.changed, known.next) = (true, self.tick + 1),
        }
        if known.still > 1 {
            self.kept.remove(&key);
        }
        self.remember(known);
        Some((known.id, looked.ok()??))
    }

    fn remember(&mut self, known: Known) {
        let (key, Known { next: tick, cgroup, refresh_at: refresh, .. }) = (known.id.key(), known);
        self.queue.put(key, Turn { tick, if_busy: !known.changed, cgroup, refresh });
        if let Some(before) = self.known.insert(key, known) {
            self.wishes.remove(&before.wish());
        }
        if known.wants_shares {
            self.wishes.insert(known.wish());
        }
    }

    fn forget(&mut self, key: ProcessKey) {
        self.queue.remove(key);
        self.kept.remove(&key);
        if let Some(known) = self.known.remove(&key) {
            self.wishes.remove(&known.wish());
        }
    }

    /// Reads a process, in full if it has changed, has just come to rest, or is to be refreshed; none when it goes on resting.
    fn look(&mut self, known: &mut Known, moved: bool) -> Result<Option<ProcessReading>, Absent> {
        self.buffer.begin();
        let directory = PathBuf::from(format!("/proc/{}", known.id.tgid));
        let (Identity { start_tick, resident_bytes }, mut reading) = self.read_stat(known, &directory)?;
        // Another process has the pid by now.
        if start_tick != known.id.key().start_tick {
            return Err(Absent::Gone);
        }
        let (is_first, is_refresh) = (known.next == 0, self.now >= known.refresh_at);
        let faults = reading.minor_faults + reading.major_faults;
        known.changed = is_first || (reading.cpu_ns.unwrap_or(0), faults) != (known.cpu_ns, known.faults);
        known.new_faults = faults.saturating_sub(known.faults);
        (known.cpu_ns, known.faults) = (reading.cpu_ns.unwrap_or(0), faults);
        known.still = if known.changed { 0 } else { known.still.saturating_add(1) };
        known.next = self.tick + u64::from((1_u32 << known.still.min(16)).min(REST));
        if known.still > 1 && !moved && !is_refresh {
            return Ok(None);
        }
        let apart = resident_bytes.abs_diff(known.resident_bytes);
        let has_grown = apart >= FULL_BYTES.min(known.resident_bytes / 16) && apart > 0;
        if known.changed && !is_refresh && self.tick < known.full_at && !has_grown {
            return Ok(Some(reading));
        }
        if !self.read_rest(&directory, &mut reading) {
            // Told with its old values and their age; tried again in the next tick.
            (known.full_at, known.refresh_at) = (self.tick + 1, self.now);
            return Ok(Some(reading));
        }
        if is_refresh {
            known.refresh_at = refresh::next(known.id.tgid.0.into(), self.now);
        }
        // Not all of them in the same tick.
        known.full_at = self.tick + FULL_EVERY / 2 + u64::from(known.id.tgid.0) % FULL_EVERY;
        known.resident_bytes = resident_bytes;
        let resident_bytes = reading.resident.map_or(0, |resident| resident.total_bytes());
        // Kernel threads have neither.
        if reading.resident.is_some() || !self.polled.memory {
            reading.command_line = new_title(known);
        }
        let is_old = known.shares_at.is_none_or(|at| self.tick >= at + SHARES_AGE);
        known.wants_shares |= resident_bytes != known.shares_of && (is_old || !known.changed);
        Ok(Some(reading))
    }

    /// Reads /proc/PID/stat, which is kept open of a process that goes on changing.
    fn read_stat(&mut self, known: &Known, directory: &Path) -> Result<(Identity, ProcessReading), Absent> {
        let path = directory.join("stat");
        let may_keep = known.next != 0 && known.changed && self.kept.len() < MOST_KEPT;
        if may_keep
            && let Entry::Vacant(vacant) = self.kept.entry(known.id.key())
            && let Some(places) = self.budget.take(1)
            && let Ok(file) = self.buffer.note(File::open(&path))
        {
            vacant.insert((file, places));
        }
        let text = match self.kept.get(&known.id.key()) {
            Some((file, _)) => self.buffer.reread(file),
            None => self.buffer.read(&path),
        };
        let (identity, mut reading) = parse_stat(text?).ok_or(Absent::Untold)?;
        reading.cpu_ns = reading.cpu_ns.filter(|_| self.polled.cpu);
        reading.io_delay_ns = reading.io_delay_ns.filter(|_| self.polled.io);
        Ok((identity, reading))
    }

    /// Reads what takes further files. False, and nothing of it, when not all that is there could be read: values of one time
    /// stay together.
    fn read_rest(&mut self, directory: &Path, reading: &mut ProcessReading) -> bool {
        let Self { polled, buffer, .. } = self;
        if polled.memory {
            reading.resident = buffer.read(&directory.join("status")).ok().and_then(parse_status);
        }
        if polled.io {
            reading.storage = buffer.read(&directory.join("io")).ok().map(parse_io);
        }
        reading.open_files = open_files(&directory.join("fd"));
        let failures = buffer.failures();
        // A kernel may lack one of the files for good.
        let is_whole = !failures.want && !failures.gone && (!failures.missing || directory.exists());
        if !is_whole {
            (reading.resident, reading.storage, reading.open_files) = (None, None, None);
        }
        is_whole
    }

    /// Splits the memory of some processes into their own and what they share, as far as the budget reaches.
    fn add_shares(&mut self, readings: &mut Vec<(ProcessId, ProcessReading)>) {
        if !self.polled.memory {
            return;
        }
        let now = Instant::now();
        let mut left = self.shares_time.map_or(SHARES_SAVED, |(before, left)| {
            (left + now.duration_since(before).as_secs_f64() * SHARES_RATIO).min(SHARES_SAVED)
        });
        for (.., key) in self.wishes.iter().take(SHARES_COUNT).copied().collect::<Vec<_>>() {
            // No tick waits long for processes that change their mappings all the time.
            if left <= 0.0 || now.elapsed().as_secs_f64() >= SHARES_SAVED {
                break;
            }
            let start = thread_cpu_time();
            self.split(key, readings);
            left -= thread_cpu_time().saturating_sub(start).as_secs_f64();
        }
        self.shares_time = Some((now, left));
    }

    /// Splits the memory of one process.
    fn split(&mut self, key: ProcessKey, readings: &mut Vec<(ProcessId, ProcessReading)>) {
        let place = match readings.iter().position(|(id, _)| id.key() == key) {
            Some(place) => place,
            // It rests by now: it is looked at once more, so that all its numbers are of one time.
            None => match self.visit(key, true) {
                Some(reading) => {
                    readings.push(reading);
                    readings.len() - 1
                }
                None => return,
            },
        };
        let Some(mut known) = self.known.get(&key).copied() else { return };
        let reading = &mut readings[place].1;
        self.buffer.begin();
        let text = self.buffer.read(&PathBuf::from(format!("/proc/{}/smaps_rollup", key.tgid)));
        reading.shares = text.ok().map(parse_shares);
        // Without a descriptor it stays first in the row.
        known.wants_shares = self.buffer.failures().want;
        if !known.wants_shares {
            known.shares_at = Some(self.tick);
            known.shares_of = reading.resident.map_or(known.shares_of, |resident| resident.total_bytes());
        }
        self.remember(known);
    }
}

impl Known {
    /// Never looked at, and so due.
    const fn new(id: ProcessId) -> Self {
        Self {
            id,
            cgroup: CgroupId(0),
            cpu_ns: 0,
            faults: 0,
            new_faults: 0,
            changed: true,
            still: 0,
            next: 0,
            refresh_at: BootTime(0),
            full_at: 0,
            resident_bytes: 0,
            wants_shares: false,
            shares_at: None,
            shares_of: 0,
            title: None,
        }
    }

    const fn wish(&self) -> Wish {
        (self.shares_at, Reverse(self.new_faults), self.id.key())
    }
}

/// The command line, where it is another than was told last: servers write titles over theirs.
fn new_title(known: &mut Known) -> Option<String> {
    let line = process::command_line(known.id.tgid).ok()??;
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    let hash = hasher.finish();
    (known.title.replace(hash) != Some(hash)).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::{super::log_lines, *};
    use crate::ids::{TICK_NS, Tgid};
    use std::fs;

    const ALL: Polled = Polled { cpu: true, memory: true, io: true };
    const CGROUP: CgroupId = CgroupId(1);
    const SECOND: u64 = 1_000_000_000;

    /// Reads processes every second.
    struct Ticks {
        stat: ProcessStat,
        second: u64,
    }

    impl Ticks {
        fn new(polled: Polled) -> Self {
            Self { stat: ProcessStat::new(polled, Budget::new(16)), second: 1000 }
        }

        /// One tick: something happened to these, and their cgroup is busy or not.
        fn tick(&mut self, changes: &[ProcessChange], is_busy: bool) -> Vec<(ProcessId, ProcessReading)> {
            self.second += 1;
            let busy = is_busy.then_some(CGROUP).into_iter().collect();
            self.stat.read(changes.iter().copied(), Some(&busy), BootTime(self.second * SECOND))
        }

        fn remembers_nothing(&self) -> bool {
            let ProcessStat { known, queue, wishes, kept, budget, .. } = &self.stat;
            known.is_empty() && queue.is_empty() && wishes.is_empty() && kept.is_empty() && budget.left() == 16
        }
    }

    fn born(id: ProcessId) -> ProcessChange {
        ProcessChange { id, cgroup: CGROUP, runs: true, moved: false }
    }

    fn of(pid: u32) -> ProcessId {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (Identity { start_tick, .. }, _) = parse_stat(&stat).unwrap();
        ProcessId { tgid: Tgid(pid), start_ns: start_tick * TICK_NS }
    }

    fn myself() -> ProcessId {
        of(std::process::id())
    }

    /// A process that does nothing, and is reaped on drop.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            // It rests once it has become what it is to be.
            while fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() != "sleep\n"
                || !fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(" S ")
            {
                std::thread::yield_now();
            }
            Self(child)
        }

        fn id(&self) -> ProcessId {
            of(self.0.id())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).unwrap();
        }
    }

    #[test]
    fn this_process_is_read_in_full() {
        let (_, reading) = Ticks::new(ALL).tick(&[born(myself())], true).remove(0);
        let resident = reading.resident.unwrap();
        assert!(resident.anon_bytes > 0 && resident.file_bytes > 0 && reading.threads > 0);
        let shares = reading.shares.unwrap();
        assert!(shares.unique_bytes > 0 && shares.unique_bytes <= shares.proportional_bytes);
        assert!(shares.proportional_bytes <= resident.total_bytes() + (1 << 20));
        assert!(reading.storage.is_some() && reading.cpu_ns.is_some() && reading.command_line.is_some());
    }

    #[test]
    fn a_command_line_is_told_once() {
        let mut known = Known::new(myself());
        assert_eq!((new_title(&mut known).is_some(), new_title(&mut known)), (true, None));
    }

    #[test]
    fn what_is_not_polled_is_not_told() {
        let read = |polled| Ticks::new(polled).tick(&[born(myself())], true).remove(0).1;
        let parts = |polled| {
            let reading = read(polled);
            (reading.cpu_ns.is_some(), reading.resident.is_some(), reading.shares.is_some(), reading.storage.is_some())
        };
        assert_eq!(parts(Polled { cpu: false, ..ALL }), (false, true, true, true));
        assert_eq!(parts(Polled { memory: false, ..ALL }), (true, false, false, true));
        assert_eq!(parts(Polled { io: false, ..ALL }), (true, true, true, false));
    }

    #[test]
    fn a_pid_that_somebody_else_has_is_not_read() {
        let mut ticks = Ticks::new(ALL);
        let other = ProcessId { start_ns: myself().start_ns + TICK_NS, ..myself() };
        let gone = ProcessId { tgid: Tgid(u32::MAX), start_ns: 0 };
        assert_eq!(ticks.tick(&[born(other), born(gone)], true), Vec::new());
        assert!(ticks.remembers_nothing());
    }

    #[test]
    fn what_rests_is_looked_at_less_and_less_often_and_not_in_an_idle_cgroup() {
        let (sleeper, mut ticks) = (Sleeper::start(), Ticks::new(ALL));
        let key = sleeper.id().key();
        let (mut looks, mut next) = (0, 0);
        ticks.tick(&[born(sleeper.id())], true);
        for _ in 0..20 {
            ticks.tick(&[], true);
            looks += usize::from(ticks.stat.known[&key].next != next);
            next = ticks.stat.known[&key].next;
        }
        assert!((3..10).contains(&looks), "{looks} looks in 20 ticks");
        ticks.stat.known.get_mut(&key).unwrap().wants_shares = false;
        ticks.stat.wishes.clear();
        let mut read = Vec::new();
        for second in 0..60 {
            if !ticks.tick(&[], false).is_empty() {
                read.push(second);
            }
            if ticks.stat.known[&key].next != next {
                assert_eq!(read.last(), Some(&second), "it was looked at in an idle cgroup");
                next = ticks.stat.known[&key].next;
            }
        }
        assert_eq!(read.len(), 2, "read at {read:?}, not once in 30 s");
        assert_eq!(read[1] - read[0], 30);
    }

    #[test]
    fn a_refresh_reads_in_full() {
        let (sleeper, mut ticks) = (Sleeper::start(), Ticks::new(ALL));
        ticks.tick(&[born(sleeper.id())], false);
        ticks.tick(&[], false);
        let readings: Vec<_> = (0..30).flat_map(|_| ticks.tick(&[], false)).collect();
        let (_, last) = readings.last().unwrap();
        assert!(last.resident.is_some() && last.storage.is_some() && last.threads == 1, "{last:?}");
    }

    #[test]
    fn what_is_first_read_in_one_tick_is_not_refreshed_in_one() {
        let (sleepers, mut ticks) = ((0..30).map(|_| Sleeper::start()).collect::<Vec<_>>(), Ticks::new(ALL));
        ticks.tick(&sleepers.iter().map(|sleeper| born(sleeper.id())).collect::<Vec<_>>(), false);
        for _ in 0..3 {
            ticks.tick(&[], false);
        }
        ticks.stat.wishes.clear();
        let refreshed: Vec<_> = (0..30).map(|_| ticks.tick(&[], false).len()).collect();
        assert_eq!(refreshed.iter().sum::<usize>(), 30, "{refreshed:?}");
        assert!(refreshed.iter().all(|&count| count <= 10), "{refreshed:?}");
    }

    #[test]
    fn one_that_vanishes_after_its_file_was_opened_is_gone_without_a_word() {
        let (sleeper, mut ticks) = (Sleeper::start(), Ticks::new(ALL));
        let id = sleeper.id();
        ticks.tick(&[born(id)], true);
        ticks.stat.known.get_mut(&id.key()).unwrap().changed = true;
        ticks.tick(&[born(id)], true);
        assert_eq!(ticks.stat.kept.len(), 1);
        drop(sleeper);
        let lines = log_lines::during(|| assert_eq!(ticks.tick(&[born(id)], true), []));
        assert_eq!(lines, Vec::<String>::new());
        assert!(ticks.remembers_nothing());
    }

    #[test]
    fn each_read_may_fail_and_only_a_vanished_process_is_gone() {
        let lines = log_lines::during(|| {
            for at in 0..4 {
                for number in [libc::ESRCH, libc::EMFILE] {
                    let (id, mut ticks) = (myself(), Ticks::new(ALL));
                    ticks.stat.buffer.fault = Some((at, number));
                    let readings = ticks.tick(&[born(id)], true);
                    assert_eq!(ticks.stat.known.is_empty(), at == 0 && number == libc::ESRCH, "read {at}, {number}");
                    let (resident, storage) =
                        readings.first().map_or((false, false), |(_, r)| (r.resident.is_some(), r.storage.is_some()));
                    assert_eq!((resident, storage), (at == 3, at == 3), "values of one time stay together");
                    // Nothing fails any more.
                    ticks.tick(&[], true);
                    let again = ticks.tick(&[ProcessChange { moved: true, ..born(id) }], true);
                    assert_eq!(again.len(), 1, "read {at}, {number}");
                }
            }
        });
        assert_eq!(lines, Vec::<String>::new());
    }
}
