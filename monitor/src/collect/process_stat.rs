//! What /proc tells of single processes: CPU time, memory by kind, threads, faults, storage, delays; on a budget also what of
//! their memory is their own, and how many files they have open.
//!
//! Only what runs is read. A process is looked at when kernel counters of it moved, when it had changed the last time, or when
//! its cgroup is not idle; one that was found unchanged is looked at less and less often, down to every eighth tick.

use super::{
    files::{Buffer, each_pair},
    process,
};
use crate::{
    ids::{ProcessId, ProcessKey, TICK_NS, Tgid},
    reading::{Candidate, ProcessReading, Resident, Shares, Storage},
};
use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

/// A process that does not change is looked at once in so many ticks.
const REST: u32 = 8;
/// A process that goes on changing is read in full, by three more files, every so many ticks.
const FULL_EVERY: u64 = 16;
/// Or when its resident memory has changed by so much, or by a sixteenth.
const FULL_BYTES: u64 = 1 << 20;
/// Share of all time that smaps_rollup may take: reading it walks a process's page tables, which takes 20 us of a small one
/// and milliseconds of a large one.
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
#[derive(Debug, Default)]
pub struct ProcessStat {
    known: HashMap<ProcessKey, Known>,
    /// /proc/PID/stat of some that go on changing.
    kept: HashMap<ProcessKey, File>,
    tick: u64,
    /// When shares were last thought of, and how many seconds for them were left: one that took longer leaves a debt.
    shares_time: Option<(Instant, f64)>,
    buffer: Buffer,
}

/// What is remembered of one process.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: ProcessId,
    seen: u64,
    cpu_ns: u64,
    faults: u64,
    /// Faults between the last two looks: how busy it is.
    new_faults: u64,
    /// Whether it had changed when it was last looked at.
    changed: bool,
    /// Unchanged looks in a row.
    still: u32,
    /// When to look again.
    next: u64,
    /// When it is read in full at the latest, and its resident memory when it was.
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
    /// Reads those that are not at rest; `candidates` are all there are.
    pub fn read(&mut self, candidates: impl Iterator<Item = Candidate>) -> Vec<(ProcessId, ProcessReading)> {
        self.tick += 1;
        let mut readings = Vec::new();
        for candidate in candidates {
            if let Some(reading) = self.visit(candidate) {
                readings.push((candidate.id, reading));
            }
        }
        let tick = self.tick;
        self.known.retain(|_, known| known.seen == tick);
        let known = &self.known;
        self.kept.retain(|key, _| known.get(key).is_some_and(|known| known.still < 2));
        self.add_shares(&mut readings);
        readings
    }

    fn visit(&mut self, candidate: Candidate) -> Option<ProcessReading> {
        let (tick, key) = (self.tick, candidate.id.key());
        let before = self.known.get(&key).copied();
        let mut known = before.unwrap_or_else(|| Known::new(candidate.id));
        known.seen = tick;
        let is_due = known.changed || candidate.moved || (candidate.cgroup_busy && tick >= known.next);
        let reading = if is_due { self.look(&mut known, candidate.moved) } else { None };
        self.known.insert(key, known);
        reading
    }

    /// Reads a process, in full if it has changed or has just come to rest; none when it has gone, or goes on resting.
    fn look(&mut self, known: &mut Known, moved: bool) -> Option<ProcessReading> {
        let directory = PathBuf::from(format!("/proc/{}", known.id.tgid));
        let key = known.id.key();
        if known.next != 0
            && known.changed
            && self.kept.len() < MOST_KEPT
            && let Entry::Vacant(place) = self.kept.entry(key)
            && let Ok(file) = File::open(directory.join("stat"))
        {
            place.insert(file);
        }
        let text = match self.kept.get(&key) {
            Some(file) => self.buffer.reread(file),
            None => self.buffer.read(&directory.join("stat")),
        };
        let (Identity { start_tick, resident_bytes }, mut reading) = parse_stat(text.ok()?)?;
        // Another process has the pid by now.
        if start_tick != known.id.key().start_tick {
            return None;
        }
        let faults = reading.minor_faults + reading.major_faults;
        known.changed = known.next == 0 || (reading.cpu_ns, faults) != (known.cpu_ns, known.faults);
        known.new_faults = faults.saturating_sub(known.faults);
        (known.cpu_ns, known.faults) = (reading.cpu_ns, faults);
        known.still = if known.changed { 0 } else { known.still.saturating_add(1) };
        known.next = self.tick + u64::from((1_u32 << known.still.min(16)).min(REST));
        if known.still > 1 && !moved {
            return None;
        }
        let apart = resident_bytes.abs_diff(known.resident_bytes);
        let is_full = self.tick >= known.full_at || apart >= FULL_BYTES.min(known.resident_bytes / 16) && apart > 0;
        if known.changed && !is_full {
            return Some(reading);
        }
        // Not all of them in the same tick.
        known.full_at = self.tick + FULL_EVERY / 2 + u64::from(known.id.tgid.0) % FULL_EVERY;
        known.resident_bytes = resident_bytes;
        reading.resident = self.buffer.read(&directory.join("status")).ok().and_then(parse_status);
        reading.storage = self.buffer.read(&directory.join("io")).ok().map(parse_io);
        reading.open_files = open_files(&directory.join("fd"));
        let resident_bytes = reading.resident.map_or(0, |resident| resident.total_bytes());
        // Kernel threads have none.
        reading.command_line = reading.resident.and_then(|_| new_title(known));
        let is_old = known.shares_at.is_none_or(|at| self.tick >= at + SHARES_AGE);
        known.wants_shares |= resident_bytes != known.shares_of && (is_old || !known.changed);
        Some(reading)
    }

    /// Splits the memory of some processes into their own and what they share, as far as the budget reaches: those first that
    /// were never looked at so, then those not for longest, the busiest first.
    fn add_shares(&mut self, readings: &mut Vec<(ProcessId, ProcessReading)>) {
        let now = Instant::now();
        let mut left = self.shares_time.map_or(SHARES_SAVED, |(before, left)| {
            (left + now.duration_since(before).as_secs_f64() * SHARES_RATIO).min(SHARES_SAVED)
        });
        let mut wanting: Vec<Known> = self.known.values().filter(|known| known.wants_shares).copied().collect();
        wanting.sort_by_key(|known| (known.shares_at, Reverse(known.new_faults)));
        for mut known in wanting.into_iter().take(SHARES_COUNT) {
            if left <= 0.0 {
                break;
            }
            let start = Instant::now();
            let id = known.id;
            let place = match readings.iter().position(|(other, _)| *other == id) {
                Some(place) => place,
                // It rests by now: it is looked at once more, so that all its numbers are of one time.
                None => match self.look(&mut known, true) {
                    Some(reading) => {
                        readings.push((id, reading));
                        readings.len() - 1
                    }
                    None => continue,
                },
            };
            let reading = &mut readings[place].1;
            reading.shares = read_shares(&mut self.buffer, id.tgid);
            known.wants_shares = false;
            known.shares_at = Some(self.tick);
            if let Some(resident) = reading.resident {
                known.shares_of = resident.total_bytes();
            }
            self.known.insert(id.key(), known);
            left -= start.elapsed().as_secs_f64();
        }
        self.shares_time = Some((now, left));
    }
}

impl Known {
    /// Never looked at, and so due.
    const fn new(id: ProcessId) -> Self {
        Self {
            id,
            seen: 0,
            cpu_ns: 0,
            faults: 0,
            new_faults: 0,
            changed: true,
            still: 0,
            next: 0,
            full_at: 0,
            resident_bytes: 0,
            wants_shares: false,
            shares_at: None,
            shares_of: 0,
            title: None,
        }
    }
}

/// The command line, where it is another than was told last: servers write titles over theirs.
fn new_title(known: &mut Known) -> Option<String> {
    let line = process::command_line(known.id.tgid)?;
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    let hash = hasher.finish();
    (known.title.replace(hash) != Some(hash)).then_some(line)
}

fn read_shares(buffer: &mut Buffer, pid: Tgid) -> Option<Shares> {
    buffer.read(&PathBuf::from(format!("/proc/{pid}/smaps_rollup"))).ok().map(parse_shares)
}

/// What of /proc/PID/stat is not for others.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    /// When it started, in clock ticks since boot: a pid that is used again has another.
    start_tick: u64,
    /// As the kernel counts it: near enough to tell a change by.
    resident_bytes: u64,
}

/// proc_pid_stat(5). Names may hold spaces and brackets, so fields are counted from the last bracket.
fn parse_stat(text: &str) -> Option<(Identity, ProcessReading)> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    let reading = ProcessReading {
        cpu_ns: (field(14)? + field(15)?) * TICK_NS,
        threads: field(20)? as u32,
        minor_faults: field(10)?,
        major_faults: field(12)?,
        // Without delay accounting it stays zero, and nobody can tell that from no delay.
        io_delay_ns: field(42).filter(|&ticks| ticks > 0).map(|ticks| ticks * TICK_NS),
        ..ProcessReading::default()
    };
    Some((Identity { start_tick: field(22)?, resident_bytes: field(24)? * 4096 }, reading))
}

/// proc_pid_status(5); kernel threads have no such lines.
fn parse_status(text: &str) -> Option<Resident> {
    let (mut resident, mut has_memory) = (Resident::default(), false);
    for line in text.lines() {
        let Some((name, value)) = line.trim_end_matches(" kB").split_once(':') else { continue };
        let place = match name {
            "RssAnon" => &mut resident.anon_bytes,
            "RssFile" => &mut resident.file_bytes,
            "RssShmem" => &mut resident.shmem_bytes,
            "VmSwap" => &mut resident.swap_bytes,
            _ => continue,
        };
        *place = value.trim().parse::<u64>().ok()? * 1024;
        has_memory = true;
    }
    has_memory.then_some(resident)
}

fn parse_io(text: &str) -> Storage {
    let mut storage = Storage::default();
    each_pair(text, |name, value| match name {
        "read_bytes:" => storage.read_bytes = value,
        "write_bytes:" => storage.write_bytes = value,
        _ => {}
    });
    storage
}

fn parse_shares(text: &str) -> Shares {
    let mut shares = Shares::default();
    for line in text.lines() {
        each_pair(line.trim_end_matches(" kB"), |name, kib| match name {
            "Pss:" => shares.proportional_bytes = kib * 1024,
            "Private_Clean:" | "Private_Dirty:" | "Private_Hugetlb:" => shares.unique_bytes += kib * 1024,
            _ => {}
        });
    }
    shares
}

/// How many files are open: the size of the directory tells since Linux 6.2.
fn open_files(directory: &Path) -> Option<u32> {
    fs::metadata(directory).ok().map(|metadata| metadata.size() as u32).filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: ProcessId, moved: bool, cgroup_busy: bool) -> impl Iterator<Item = Candidate> {
        std::iter::once(Candidate { id, moved, cgroup_busy })
    }

    fn myself() -> ProcessId {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (Identity { start_tick, .. }, _) = parse_stat(&stat).unwrap();
        ProcessId { tgid: Tgid(std::process::id()), start_ns: start_tick * TICK_NS }
    }

    #[test]
    fn this_process_is_read_in_full() {
        let (_, reading) = ProcessStat::default().read(candidate(myself(), true, true)).remove(0);
        let resident = reading.resident.unwrap();
        assert!(resident.anon_bytes > 0 && resident.file_bytes > 0 && reading.threads > 0);
        let shares = reading.shares.unwrap();
        assert!(shares.unique_bytes > 0 && shares.unique_bytes <= shares.proportional_bytes);
        assert!(shares.proportional_bytes <= resident.total_bytes() + (1 << 20));
        assert!(reading.storage.is_some() && reading.command_line.is_some());
    }

    #[test]
    fn a_command_line_is_told_once() {
        let mut known = Known::new(myself());
        assert_eq!((new_title(&mut known).is_some(), new_title(&mut known)), (true, None));
    }

    #[test]
    fn a_pid_that_somebody_else_has_is_not_read() {
        let other = ProcessId { start_ns: myself().start_ns + TICK_NS, ..myself() };
        assert_eq!(ProcessStat::default().read(candidate(other, true, true)), []);
        let gone = ProcessId { tgid: Tgid(u32::MAX), start_ns: 0 };
        assert_eq!(ProcessStat::default().read(candidate(gone, true, true)), []);
    }

    #[test]
    fn what_rests_is_looked_at_less_and_less_often() {
        // kthreadd does nothing unless a kernel thread is made.
        let (Identity { start_tick, .. }, _) = parse_stat(&fs::read_to_string("/proc/2/stat").unwrap()).unwrap();
        let kthreadd = ProcessId { tgid: Tgid(2), start_ns: start_tick * TICK_NS };
        let mut stat = ProcessStat::default();
        let mut looks = 0;
        for _ in 0..40 {
            let before = stat.known.get(&kthreadd.key()).map_or(0, |known| known.next);
            stat.read(candidate(kthreadd, false, true));
            looks += usize::from(stat.known[&kthreadd.key()].next != before);
        }
        assert!((5..20).contains(&looks), "{looks} looks in 40 ticks");
        let next = stat.known[&kthreadd.key()].next;
        for _ in 0..40 {
            stat.read(candidate(kthreadd, false, false));
        }
        assert_eq!(stat.known[&kthreadd.key()].next, next, "it was looked at in an idle cgroup");
    }

    #[test]
    fn numbers_are_those_of_the_files() {
        let stat =
            "7 (a ) b) S 1 7 7 0 -1 4194304 101 5 2 0 3 4 0 0 20 0 6 0 99 1 2 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 8 0 0";
        let (identity, reading) = parse_stat(stat).unwrap();
        assert_eq!(identity, Identity { start_tick: 99, resident_bytes: 2 * 4096 });
        assert_eq!((reading.cpu_ns, reading.threads), (7 * TICK_NS, 6));
        assert_eq!((reading.minor_faults, reading.major_faults, reading.io_delay_ns), (101, 2, Some(8 * TICK_NS)));
        let status = "Name:\tx\nRssAnon:\t       4 kB\nRssFile:\t 8 kB\nRssShmem:\t 0 kB\nVmSwap:\t 1 kB\n";
        let resident = parse_status(status).unwrap();
        assert_eq!((resident.total_bytes(), resident.swap_bytes), (12 << 10, 1 << 10));
        assert_eq!(parse_status("Name:\tkthreadd\n"), None);
        let shares = parse_shares("Rss: 9 kB\nPss:    5 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty:   2 kB\n");
        assert_eq!(shares, Shares { proportional_bytes: 5 << 10, unique_bytes: 3 << 10 });
        assert_eq!(parse_io("rchar: 1\nread_bytes: 2\nwrite_bytes: 3\n"), Storage { read_bytes: 2, write_bytes: 3 });
    }
}
