//! What the kernel publishes of each cgroup: memory, CPU time, I/O, pressure; by the names of cgroup v2 or v1, whichever the
//! memory controller is in.
//!
//! What is idle is not read: a cgroup whose CPU time and memory in use are as they were, and of which no kernel counter moved,
//! keeps its values for up to 30 s. On cgroup v2, where both include everything below, an idle cgroup
//! vouches for all below it. The two files of that question are kept open, as far as descriptors reach.

use super::{
    cgroup_files::{first_value, parse_blkio, parse_io_stat, read_v1, read_v2},
    descriptors::{self, Budget, Places},
    files::{Buffer, number},
    node::Polled,
    pressure, refresh,
};
use crate::{
    ids::CgroupId,
    kernel::support::{CgroupHierarchy, controller_mount},
    reading::{CgroupReading, IoReading, MemoryReading, Pressures, Throttled, Watched},
    time::BootTime,
};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

/// Descriptors kept for one cgroup: CPU time, memory in use, and its peak since the last tick.
const DESCRIPTORS: usize = 3;

/// Reads cgroups.
#[derive(Debug)]
pub struct CgroupStat {
    mounts: Mounts,
    known: HashMap<CgroupId, Known>,
    budget: Budget,
    round: u64,
    buffer: Buffer,
}

/// Where the controllers are that are polled.
#[derive(Debug)]
struct Mounts {
    version: Version,
    polled: Polled,
    /// Where the cgroups themselves are.
    memory: PathBuf,
    cpu: Option<PathBuf>,
    io: Option<PathBuf>,
    /// cgroup v2, the only one with pressure files.
    pressure: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// What is remembered of one cgroup from tick to tick.
#[derive(Debug, Default)]
struct Known {
    round: u64,
    /// When it is to be read whether it is idle or not: at once when it is new.
    refresh_at: BootTime,
    idle: bool,
    use_before: Use,
    peak: Option<u64>,
    kept: Option<Kept>,
}

/// What tells whether a cgroup is idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    cpu_ns: Option<u64>,
    current_bytes: Option<u64>,
}

/// Descriptors of one cgroup.
#[derive(Debug)]
struct Kept {
    cpu: Option<File>,
    current: Option<File>,
    /// Tells this descriptor's own peak since it was last reset (Linux 6.12), and changes nobody else's.
    peak: Option<File>,
    _places: Places,
}

impl CgroupStat {
    /// For one hierarchy, of what is polled; none where it is not mounted. Descriptors that are kept take places of the budget.
    pub fn new(hierarchy: &CgroupHierarchy, polled: Polled, budget: Budget) -> Option<Self> {
        let memory = hierarchy.mount()?.to_path_buf();
        let (version, cpu, io, pressure) = match hierarchy {
            CgroupHierarchy::V2 { .. } => {
                (Version::V2, Some(memory.clone()), Some(memory.clone()), Some(memory.clone()))
            }
            CgroupHierarchy::V1 { .. } => (
                Version::V1,
                controller_mount(Some("cpuacct")),
                controller_mount(Some("blkio")),
                controller_mount(None),
            ),
        };
        let (cpu, io) = (cpu.filter(|_| polled.cpu), io.filter(|_| polled.io));
        let mounts = Mounts { version, polled, memory, cpu, io, pressure };
        Some(Self { mounts, known: HashMap::new(), budget, round: 0, buffer: Buffer::default() })
    }

    /// Reads those that are not idle, or are to be refreshed. `cgroups` has parents before children, and all there are.
    pub fn read(&mut self, cgroups: &[Watched], now: BootTime) -> Vec<(CgroupId, CgroupReading)> {
        self.round += 1;
        let mut readings = Vec::new();
        for cgroup in cgroups {
            let parent_idle =
                self.mounts.version == Version::V2 && cgroup.parent.is_some_and(|parent| self.is_idle(parent));
            if let Some(reading) = self.visit(cgroup, parent_idle, now) {
                readings.push((cgroup.id, reading));
            }
        }
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        readings
    }

    /// Those in which a process may be at work. Where nobody tells of a cgroup's CPU time, as of one that only the memory controller
    /// of version 1 has, memory that stands still does not say that nobody is.
    pub fn busy(&self) -> HashSet<CgroupId> {
        let rests = |known: &Known| known.idle && (known.use_before.cpu_ns.is_some() || !self.mounts.polled.cpu);
        self.known.iter().filter(|(_, known)| !rests(known)).map(|(id, _)| *id).collect()
    }

    /// Whether nothing moved in a cgroup when it was last looked at, though it may have been read to refresh its values.
    fn is_idle(&self, id: CgroupId) -> bool {
        self.known.get(&id).is_some_and(|known| known.idle)
    }

    /// One cgroup: none when it is idle, when it has gone, and when it cannot be read now.
    fn visit(&mut self, cgroup: &Watched, parent_idle: bool, now: BootTime) -> Option<CgroupReading> {
        let Self { mounts, known, budget, buffer, .. } = self;
        let is_root = &*cgroup.path == "/";
        let below = cgroup.path.trim_start_matches('/');
        let known = known.entry(cgroup.id).or_default();
        known.round = self.round;
        let is_due = now >= known.refresh_at;
        if !is_due && parent_idle && !cgroup.moved {
            known.idle = true;
            return None;
        }
        buffer.begin();
        if known.kept.is_none() {
            known.kept = Kept::open(mounts, below, budget);
        }
        let in_use = match &known.kept {
            Some(kept) => kept.read(mounts.version, buffer),
            None => mounts.read_use(below, buffer),
        };
        // For want of descriptors it is neither idle nor gone.
        if buffer.failures().want {
            known.idle = false;
            return None;
        }
        known.idle = in_use == known.use_before && mounts.tells_use() && !cgroup.moved && !is_root;
        known.use_before = in_use;
        if known.idle && !is_due {
            return None;
        }
        let reading = mounts.reading(below, known, buffer);
        if is_due || reading.is_none() {
            known.refresh_at = if reading.is_some() { refresh::next(cgroup.id.0, now) } else { now };
        }
        reading
    }
}

impl Kept {
    /// Opens what there is of the files that are kept; none without places or descriptors for them.
    fn open(mounts: &Mounts, below: &str, budget: &Budget) -> Option<Self> {
        let mut places = budget.take(DESCRIPTORS)?;
        let open = |path: PathBuf| match File::open(path) {
            Err(error) if descriptors::is_want(&error) => None,
            file => Some(file.ok()),
        };
        let [cpu, current] = mounts.files_of_use(below).map(|path| path.map_or(Some(None), open));
        let (cpu, current) = (cpu?, current?);
        let peak = if mounts.polled.memory { resettable_peak(&mounts.memory.join(below)) } else { None };
        let count = [&cpu, &current, &peak].into_iter().flatten().count();
        places.keep(count);
        (count > 0).then_some(Self { cpu, current, peak, _places: places })
    }

    fn read(&self, version: Version, buffer: &mut Buffer) -> Use {
        let cpu_ns = self.cpu.as_ref().and_then(|file| parse_cpu(version, buffer.reread(file).ok()?));
        Use { cpu_ns, current_bytes: self.current.as_ref().and_then(|file| number(buffer.reread(file))) }
    }

    /// The peak since the last call, which begins the next one.
    fn take_peak(&mut self, buffer: &mut Buffer) -> Option<u64> {
        let file = self.peak.as_mut()?;
        let peak = number(buffer.reread(file));
        file.write_all(b"reset\n").ok()?;
        peak
    }
}

/// CPU time used, in nanoseconds.
fn parse_cpu(version: Version, text: &str) -> Option<u64> {
    match version {
        Version::V1 => text.trim().parse().ok(),
        Version::V2 => Some(first_value(text, "usage_usec")? * 1000),
    }
}

/// A descriptor of memory.peak whose own peak can be reset; none before Linux 6.12.
fn resettable_peak(directory: &Path) -> Option<File> {
    let opened = OpenOptions::new().read(true).write(true).open(directory.join("memory.peak"));
    let mut file = opened.inspect_err(descriptors::note).ok()?;
    file.write_all(b"reset\n").ok()?;
    Some(file)
}

impl Mounts {
    /// Whether anything is polled that tells when a cgroup is idle.
    fn tells_use(&self) -> bool {
        self.cpu.is_some() || self.polled.memory
    }

    /// The files of a cgroup's CPU time and of its memory in use; none of what is not polled.
    fn files_of_use(&self, below: &str) -> [Option<PathBuf>; 2] {
        let (cpu, current) = match self.version {
            Version::V1 => ("cpuacct.usage", "memory.usage_in_bytes"),
            Version::V2 => ("cpu.stat", "memory.current"),
        };
        let memory = self.polled.memory.then(|| self.memory.join(below).join(current));
        [self.cpu.as_ref().map(|mount| mount.join(below).join(cpu)), memory]
    }

    fn read_use(&self, below: &str, buffer: &mut Buffer) -> Use {
        let [cpu, current] = self.files_of_use(below);
        let cpu_ns = cpu.and_then(|path| parse_cpu(self.version, buffer.read(&path).ok()?));
        Use { cpu_ns, current_bytes: current.and_then(|path| number(buffer.read(&path))) }
    }

    /// Everything about one cgroup, of one time; none when it has gone, also while it was read, or could not be read whole.
    fn reading(&self, below: &str, known: &mut Known, buffer: &mut Buffer) -> Option<CgroupReading> {
        let memory = self.memory_reading(&self.memory.join(below), known, buffer);
        let (io, throttled) = match self.version {
            Version::V1 => (self.io_v1(below, buffer), None),
            Version::V2 => (self.io_v2(below, buffer), self.throttled(below, buffer)),
        };
        let (pressure, cpu_usage_ns) = (self.pressures(below, buffer), known.use_before.cpu_ns);
        let failures = buffer.failures();
        // Many a kernel lacks one of the files for good.
        if failures.want || failures.gone || failures.missing && !self.memory.join(below).exists() {
            return None;
        }
        Some(CgroupReading { memory, cpu_usage_ns, throttled, io, pressure })
    }

    fn memory_reading(&self, directory: &Path, known: &mut Known, buffer: &mut Buffer) -> Option<MemoryReading> {
        let mut memory = MemoryReading { current_bytes: known.use_before.current_bytes?, ..MemoryReading::default() };
        match self.version {
            Version::V1 => read_v1(directory, &mut memory, buffer)?,
            Version::V2 => read_v2(directory, &mut memory, buffer)?,
        }
        let rose = memory.peak_bytes > known.peak && known.peak.is_some();
        known.peak = memory.peak_bytes;
        memory.tick_peak_bytes = match &mut known.kept {
            // The first time it counts from when it was opened, just now.
            Some(kept) if kept.peak.is_some() => kept.take_peak(buffer),
            // What was never as high before was so since the last look.
            _ => memory.peak_bytes.filter(|_| rose),
        };
        Some(memory)
    }

    fn io_v2(&self, below: &str, buffer: &mut Buffer) -> Option<Vec<IoReading>> {
        buffer.read(&self.io.as_ref()?.join(below).join("io.stat")).map(parse_io_stat).ok()
    }

    fn io_v1(&self, below: &str, buffer: &mut Buffer) -> Option<Vec<IoReading>> {
        let mount = self.io.as_ref()?;
        let mut all = Vec::new();
        for (file, is_bytes) in
            [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
        {
            if let Ok(text) = buffer.read(&mount.join(below).join(file)) {
                parse_blkio(text, is_bytes, &mut all);
            }
        }
        (!all.is_empty()).then_some(all)
    }

    fn throttled(&self, below: &str, buffer: &mut Buffer) -> Option<Throttled> {
        let text = buffer.read(&self.cpu.as_ref()?.join(below).join("cpu.stat")).ok()?;
        Some(Throttled {
            periods: first_value(text, "nr_throttled")?,
            time_ns: first_value(text, "throttled_usec")? * 1000,
        })
    }

    fn pressures(&self, below: &str, buffer: &mut Buffer) -> Pressures {
        let Some(mount) = &self.pressure else { return Pressures::default() };
        // On hybrid hosts the root would be the host, but a cgroup of the same name need not be the same.
        let directory = mount.join(below);
        let mut read =
            |is_polled: bool, name: &str| is_polled.then(|| pressure::of(buffer.read(&directory.join(name)))).flatten();
        let Polled { cpu, memory, io } = self.polled;
        Pressures {
            cpu: read(cpu, "cpu.pressure"),
            memory: read(memory, "memory.pressure"),
            io: read(io, "io.pressure"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::log_lines, *};
    use std::collections::BTreeSet;

    const SECOND: u64 = 1_000_000_000;

    const ALL: Polled = Polled { cpu: true, memory: true, io: true };
    const PLACES: usize = 64;

    /// Directories with files as a kernel would have them.
    struct Fake {
        directory: tempfile::TempDir,
        stat: CgroupStat,
    }

    impl Fake {
        fn v2() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let hierarchy = CgroupHierarchy::V2 { mount: Some(directory.path().into()) };
            let stat = CgroupStat::new(&hierarchy, ALL, Budget::new(PLACES)).unwrap();
            let fake = Self { stat, directory };
            fake.write("cpu.stat", "usage_usec 9\n");
            for cgroup in ["a", "a/b"] {
                std::fs::create_dir(fake.directory.path().join(cgroup)).unwrap();
                fake.write(&format!("{cgroup}/cpu.stat"), "usage_usec 5\nnr_throttled 1\nthrottled_usec 2\n");
                fake.write(&format!("{cgroup}/memory.current"), "8192\n");
                fake.write(&format!("{cgroup}/memory.stat"), "anon 4096\nfile 1\ninactive_file 2\nslab 3\n");
                fake.write(&format!("{cgroup}/memory.max"), "max\n");
                fake.write(&format!("{cgroup}/memory.events"), "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n");
            }
            fake
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.directory.path().join(file), text).unwrap();
        }

        /// Paths that were read at a second.
        fn read(&mut self, second: u64, moved: &[u64]) -> Vec<u64> {
            let watched =
                [(1, None, "/"), (2, Some(1), "/a"), (3, Some(2), "/a/b")].map(|(id, parent, path)| Watched {
                    id: CgroupId(id),
                    parent: parent.map(CgroupId),
                    path: path.into(),
                    moved: moved.contains(&id),
                });
            self.stat.read(&watched, BootTime(second * SECOND)).into_iter().map(|(id, _)| id.0).collect()
        }
    }

    #[test]
    fn what_is_idle_is_not_read_until_it_is_refreshed() {
        let mut fake = Fake::v2();
        // Within the first half of the period, in which neither /a nor /a/b is refreshed.
        assert_eq!(fake.read(60, &[]), [1, 2, 3]);
        let due = |id| refresh::next(id, BootTime(60 * SECOND)).since(BootTime(65 * SECOND));
        assert!(!due(2).is_zero() && !due(3).is_zero());
        assert_eq!(fake.read(61, &[]), [1], "nothing but the root, which is never idle");
        assert_eq!(fake.read(62, &[2, 3]), [1, 2, 3], "kernel counters moved");
        fake.write("a/cpu.stat", "usage_usec 6\n");
        assert_eq!(fake.read(63, &[]), [1, 2], "CPU time moved above, not below");
        fake.write("a/b/memory.current", "4096\n");
        assert_eq!(fake.read(64, &[]), [1], "what is above vouches for it: there, nothing moved");
        fake.write("a/memory.current", "4096\n");
        assert_eq!(fake.read(65, &[]), [1, 2, 3]);
        let read: Vec<_> = (66..96).flat_map(|second| fake.read(second, &[])).filter(|id| *id != 1).collect();
        assert!(read == [2, 3] || read == [3, 2], "each once in 30 s: {read:?}");
        assert!(fake.stat.is_idle(CgroupId(2)), "being refreshed is not being busy");
    }

    #[test]
    fn who_works_is_not_known_where_nobody_tells_of_cpu_time() {
        let mut fake = Fake::v2();
        let busy = |fake: &Fake| fake.stat.busy().into_iter().map(|id| id.0).collect::<BTreeSet<_>>();
        std::fs::remove_file(fake.directory.path().join("a/b/cpu.stat")).unwrap();
        fake.read(60, &[]);
        assert_eq!(fake.read(61, &[]), [1], "it is not read for that");
        assert_eq!(busy(&fake), BTreeSet::from([1, 3]));
    }

    #[test]
    fn what_is_first_read_in_one_tick_is_not_refreshed_in_one() {
        let mut fake = Fake::v2();
        let watched: Vec<_> =
            (0..300).map(|id| Watched { id: CgroupId(id), parent: None, path: "/a".into(), moved: false }).collect();
        let mut read = |second: u64| fake.stat.read(&watched, BootTime(second * SECOND)).len();
        assert_eq!((read(60), read(60)), (300, 0));
        let refreshed: Vec<_> = (61..91).map(read).collect();
        assert_eq!(refreshed.iter().sum::<usize>(), 300, "{refreshed:?}");
        assert!(refreshed.iter().all(|&count| count <= 20), "{refreshed:?}");
    }

    #[test]
    fn what_has_gone_is_left_out_and_its_descriptors_are_closed() {
        let mut fake = Fake::v2();
        fake.read(0, &[]);
        // The files of CPU time and memory, but for the root, which has no memory.
        assert_eq!(fake.stat.budget.left(), PLACES - 5);
        std::fs::remove_dir_all(fake.directory.path().join("a/b")).unwrap();
        fake.stat.known.clear();
        assert_eq!(fake.read(1, &[]), [1, 2]);
        fake.stat.read(&[], BootTime(2));
        assert_eq!((fake.stat.budget.left(), fake.stat.known.len()), (PLACES, 0));
    }

    #[test]
    fn places_may_run_out() {
        let mut fake = Fake::v2();
        let _taken = fake.stat.budget.take(PLACES - 3).unwrap();
        assert_eq!(fake.read(0, &[]), [1, 2, 3]);
        assert_eq!(fake.stat.known.values().filter(|known| known.kept.is_some()).count(), 1);
        assert_eq!(fake.read(1, &[]), [1]);
    }

    #[test]
    fn each_read_may_fail_and_nothing_is_told_of_half_a_cgroup() {
        let lines = log_lines::during(|| {
            for number in [libc::ENODEV, libc::EMFILE] {
                for at in 0..40 {
                    let mut fake = Fake::v2();
                    fake.stat.buffer.fault = Some((at, number));
                    let whole = fake.read(0, &[]);
                    let fault = fake.stat.buffer.fault.take();
                    let has_failed = fault.is_some_and(|(left, _)| left > u32::MAX / 2);
                    assert_eq!(whole.len(), if has_failed { 2 } else { 3 }, "read {at}, {number}");
                    if at == 0 {
                        assert!(has_failed);
                    }
                    let again = fake.read(1, &[]);
                    let left_out: Vec<_> = [2, 3].into_iter().filter(|id| !whole.contains(id)).collect();
                    assert!(left_out.iter().all(|id| again.contains(id)), "read {at}, {number}: {again:?}");
                }
            }
        });
        assert_eq!(lines, Vec::<String>::new());
    }

    #[test]
    fn a_cgroup_that_vanishes_after_its_files_were_opened_is_gone_without_a_word() {
        let hierarchy = crate::kernel::support::probe().facts.cgroup;
        let mount = hierarchy.mount().expect("this test needs a mounted cgroup hierarchy").to_path_buf();
        let directory = mount.join(format!("monitor-unit-gone-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("this test makes a cgroup, which needs root");
        let path = format!("/{}", directory.file_name().unwrap().to_string_lossy());
        let watched = [Watched { id: CgroupId(2), parent: None, path: path.into(), moved: true }];
        let mut stat = CgroupStat::new(&hierarchy, ALL, Budget::new(PLACES)).unwrap();
        let first = stat.read(&watched, BootTime(0)).len();
        let kept = stat.known[&CgroupId(2)].kept.is_some();
        std::fs::remove_dir(&directory).unwrap();
        let lines = log_lines::during(|| assert_eq!(stat.read(&watched, BootTime(SECOND)), Vec::new()));
        assert_eq!((first, kept, lines), (1, true, Vec::<String>::new()));
        stat.read(&[], BootTime(2 * SECOND));
        assert_eq!(stat.budget.left(), PLACES);
    }

    #[test]
    fn what_is_not_polled_is_not_read() {
        let parts = |polled| {
            let fake = Fake::v2();
            fake.write("a/io.stat", "8:0 rbytes=1\n");
            let hierarchy = CgroupHierarchy::V2 { mount: Some(fake.directory.path().into()) };
            let mut stat = CgroupStat::new(&hierarchy, polled, Budget::new(PLACES)).unwrap();
            let watched = [Watched { id: CgroupId(2), parent: None, path: "/a".into(), moved: false }];
            let (_, reading) = stat.read(&watched, BootTime(0)).remove(0);
            let kept = PLACES - stat.budget.left();
            let cpu = (reading.cpu_usage_ns.is_some(), reading.throttled.is_some());
            (cpu, reading.memory.is_some(), reading.io.is_some(), kept)
        };
        assert_eq!(parts(ALL), ((true, true), true, true, 2));
        assert_eq!(parts(Polled { cpu: false, ..ALL }), ((false, false), true, true, 1));
        assert_eq!(parts(Polled { memory: false, ..ALL }), ((true, true), false, true, 1));
        assert_eq!(parts(Polled { io: false, ..ALL }), ((true, true), true, false, 2));
        assert_eq!(parts(Polled { cpu: false, memory: false, io: true }), ((false, false), false, true, 0));
    }

    #[test]
    fn numbers_are_those_of_the_files() {
        let mut fake = Fake::v2();
        let watched = [Watched { id: CgroupId(2), parent: None, path: "/a".into(), moved: true }];
        let (_, reading) = fake.stat.read(&watched, BootTime(0)).remove(0);
        assert_eq!(reading.cpu_usage_ns, Some(5000));
        assert_eq!(reading.throttled, Some(Throttled { periods: 1, time_ns: 2000 }));
        let memory = reading.memory.unwrap();
        assert_eq!((memory.current_bytes, memory.limit_bytes, memory.peak_bytes), (8192, None, None));
        assert_eq!((memory.anon_bytes, memory.kernel_bytes, memory.slab_bytes), (Some(4096), None, Some(3)));
        assert_eq!(memory.events.oom_kill, Some(4));
    }
}
