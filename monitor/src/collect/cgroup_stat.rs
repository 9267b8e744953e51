//! What the kernel publishes of each cgroup: memory, CPU time, I/O, pressure; by the names of cgroup v2 or v1, whichever the
//! memory controller is in.
//!
//! What is idle is not read: a cgroup whose CPU time and memory in use are as they were, and of which no kernel counter moved,
//! keeps its values for up to [`REFRESH`]. On cgroup v2, where both include everything below, an idle cgroup vouches for all
//! below it. The two files of that question are kept open, as far as descriptors reach.

use super::{
    files::{Buffer, each_pair, number},
    pressure,
};
use crate::{
    ids::CgroupId,
    kernel::support::{CgroupHierarchy, controller_mount},
    reading::{CgroupReading, IoReading, MemoryEvents, MemoryReading, Pressures, Throttled, Watched},
    time::BootTime,
};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// What is idle is read again after this long.
pub const REFRESH: Duration = Duration::from_secs(30);
/// Descriptors kept for one cgroup: CPU time, memory in use, and its peak since the last tick.
const DESCRIPTORS: usize = 3;

/// Reads cgroups.
#[derive(Debug)]
pub struct CgroupStat {
    mounts: Mounts,
    known: HashMap<CgroupId, Known>,
    /// How many cgroups may keep descriptors.
    keepers: usize,
    keeping: usize,
    round: u64,
    buffer: Buffer,
}

/// Where the controllers are.
#[derive(Debug)]
struct Mounts {
    version: Version,
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
#[derive(Debug)]
struct Known {
    round: u64,
    read_at: Option<BootTime>,
    idle: bool,
    cpu_ns: Option<u64>,
    current: Option<u64>,
    peak: Option<u64>,
    kept: Option<Kept>,
}

/// Descriptors of one cgroup.
#[derive(Debug)]
struct Kept {
    cpu: Option<File>,
    current: Option<File>,
    /// Tells this descriptor's own peak since it was last reset (Linux 6.12), and changes nobody else's.
    peak: Option<File>,
}

impl CgroupStat {
    /// For one hierarchy; none where it is not mounted. `descriptors` are the most it may keep.
    pub fn new(hierarchy: &CgroupHierarchy, descriptors: usize) -> Option<Self> {
        let memory = hierarchy.mount()?.to_path_buf();
        let mounts = match hierarchy {
            CgroupHierarchy::V2 { .. } => Mounts {
                version: Version::V2,
                cpu: Some(memory.clone()),
                io: Some(memory.clone()),
                pressure: Some(memory.clone()),
                memory,
            },
            CgroupHierarchy::V1 { .. } => Mounts {
                version: Version::V1,
                cpu: controller_mount(Some("cpuacct")),
                io: controller_mount(Some("blkio")),
                pressure: controller_mount(None),
                memory,
            },
        };
        let (known, keepers) = (HashMap::new(), descriptors / DESCRIPTORS);
        Some(Self { mounts, known, keepers, keeping: 0, round: 0, buffer: Buffer::default() })
    }

    /// Reads those that are not idle. `cgroups` has parents before children, and all there are.
    pub fn read(&mut self, cgroups: &[Watched], now: BootTime) -> Vec<(CgroupId, CgroupReading)> {
        self.round += 1;
        let mut readings = Vec::new();
        for cgroup in cgroups {
            let parent_idle = self.mounts.version == Version::V2
                && cgroup.parent.and_then(|parent| self.known.get(&parent)).is_some_and(|parent| parent.idle);
            if let Some(reading) = self.visit(cgroup, parent_idle, now) {
                readings.push((cgroup.id, reading));
            }
        }
        let round = self.round;
        let keeping = &mut self.keeping;
        self.known.retain(|_, known| {
            let stays = known.round == round;
            *keeping -= usize::from(!stays && known.kept.is_some());
            stays
        });
        readings
    }

    /// One cgroup: none when it is idle, or has gone.
    fn visit(&mut self, cgroup: &Watched, parent_idle: bool, now: BootTime) -> Option<CgroupReading> {
        let is_root = &*cgroup.path == "/";
        let below = cgroup.path.trim_start_matches('/');
        let known = self.known.entry(cgroup.id).or_insert_with(|| {
            let kept = (self.keeping < self.keepers).then(|| Kept::open(&self.mounts, below));
            self.keeping += usize::from(kept.is_some());
            Known { round: 0, read_at: None, idle: false, cpu_ns: None, current: None, peak: None, kept }
        });
        known.round = self.round;
        let fresh = known.read_at.is_some_and(|read_at| now.since(read_at) < REFRESH);
        if fresh && parent_idle && !cgroup.moved {
            known.idle = true;
            return None;
        }
        let (cpu_ns, current) = match &known.kept {
            Some(kept) => kept.read(self.mounts.version, &mut self.buffer),
            None => Kept::open(&self.mounts, below).read(self.mounts.version, &mut self.buffer),
        };
        let unchanged = (cpu_ns, current) == (known.cpu_ns, known.current);
        known.idle = fresh && unchanged && !cgroup.moved && !is_root;
        (known.cpu_ns, known.current) = (cpu_ns, current);
        if known.idle {
            return None;
        }
        let reading = self.mounts.reading(below, known, &mut self.buffer)?;
        known.read_at = Some(now);
        Some(reading)
    }
}

impl Kept {
    fn open(mounts: &Mounts, below: &str) -> Self {
        let (cpu, current) = match mounts.version {
            Version::V1 => ("cpuacct.usage", "memory.usage_in_bytes"),
            Version::V2 => ("cpu.stat", "memory.current"),
        };
        Self {
            cpu: mounts.cpu.as_ref().and_then(|mount| File::open(mount.join(below).join(cpu)).ok()),
            current: File::open(mounts.memory.join(below).join(current)).ok(),
            peak: resettable_peak(&mounts.memory.join(below)),
        }
    }

    /// CPU time used, in nanoseconds, and memory in use, in bytes.
    fn read(&self, version: Version, buffer: &mut Buffer) -> (Option<u64>, Option<u64>) {
        let mut read = |file: &File, parse: fn(&str) -> Option<u64>| parse(buffer.reread(file).ok()?);
        let plain = |text: &str| text.trim().parse().ok();
        let cpu_ns = self.cpu.as_ref().and_then(|file| match version {
            Version::V1 => read(file, plain),
            Version::V2 => read(file, |text| Some(first_value(text, "usage_usec")? * 1000)),
        });
        (cpu_ns, self.current.as_ref().and_then(|file| read(file, plain)))
    }

    /// The peak since the last call, which begins the next one.
    fn take_peak(&mut self, buffer: &mut Buffer) -> Option<u64> {
        let file = self.peak.as_mut()?;
        let peak = number(buffer.reread(file));
        file.write_all(b"reset\n").ok()?;
        peak
    }
}

/// A descriptor of memory.peak whose own peak can be reset; none before Linux 6.12.
fn resettable_peak(directory: &Path) -> Option<File> {
    let mut file = OpenOptions::new().read(true).write(true).open(directory.join("memory.peak")).ok()?;
    file.write_all(b"reset\n").ok()?;
    Some(file)
}

fn first_value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

impl Mounts {
    /// Everything about one cgroup; none when it has gone.
    fn reading(&self, below: &str, known: &mut Known, buffer: &mut Buffer) -> Option<CgroupReading> {
        let memory = self.memory_reading(&self.memory.join(below), known, buffer);
        let (io, throttled) = match self.version {
            Version::V1 => (self.io_v1(below, buffer), None),
            Version::V2 => (self.io_v2(below, buffer), self.throttled(below, buffer)),
        };
        if memory.is_none() && known.cpu_ns.is_none() && !self.memory.join(below).exists() {
            return None;
        }
        let pressure = self.pressures(below, buffer);
        Some(CgroupReading { memory, cpu_usage_ns: known.cpu_ns, throttled, io, pressure })
    }

    fn memory_reading(&self, directory: &Path, known: &mut Known, buffer: &mut Buffer) -> Option<MemoryReading> {
        let mut memory = MemoryReading { current_bytes: known.current?, ..MemoryReading::default() };
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
        let mut read = |name: &str| pressure::of(buffer.read(&directory.join(name)));
        Pressures { cpu: read("cpu.pressure"), memory: read("memory.pressure"), io: read("io.pressure") }
    }
}

/// Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".
fn read_v2(directory: &Path, memory: &mut MemoryReading, buffer: &mut Buffer) -> Option<()> {
    let text = buffer.read(&directory.join("memory.stat")).ok()?;
    each_pair(text, |name, value| match name {
        "anon" => memory.anon_bytes = Some(value),
        "file" => memory.file_bytes = Some(value),
        "inactive_file" => memory.inactive_file_bytes = Some(value),
        // Since Linux 5.18.
        "kernel" => memory.kernel_bytes = Some(value),
        "slab" => memory.slab_bytes = Some(value),
        _ => {}
    });
    // "max" is no number, and no limit.
    memory.limit_bytes = number(buffer.read(&directory.join("memory.max")));
    memory.peak_bytes = number(buffer.read(&directory.join("memory.peak")));
    memory.swap_bytes = number(buffer.read(&directory.join("memory.swap.current")));
    if let Ok(text) = buffer.read(&directory.join("memory.events")) {
        let events = &mut memory.events;
        each_pair(text, |name, value| match name {
            "low" => events.low = Some(value),
            "high" => events.high = Some(value),
            "max" => events.max = Some(value),
            "oom" => events.oom = Some(value),
            "oom_kill" => events.oom_kill = Some(value),
            _ => {}
        });
    }
    Some(())
}

/// Documentation/admin-guide/cgroup-v1/memory.rst. The names that begin with `total_` include everything below.
fn read_v1(directory: &Path, memory: &mut MemoryReading, buffer: &mut Buffer) -> Option<()> {
    /// What stands for no limit: the largest number of pages, in bytes.
    const UNLIMITED: u64 = (i64::MAX as u64) & !4095;
    let text = buffer.read(&directory.join("memory.stat")).ok()?;
    each_pair(text, |name, value| match name {
        "total_rss" => memory.anon_bytes = Some(value),
        "total_cache" => memory.file_bytes = Some(value),
        "total_inactive_file" => memory.inactive_file_bytes = Some(value),
        "total_swap" => memory.swap_bytes = Some(value),
        _ => {}
    });
    let mut read = |name: &str| number(buffer.read(&directory.join(name)));
    memory.limit_bytes = read("memory.limit_in_bytes").filter(|&limit| limit < UNLIMITED);
    memory.peak_bytes = read("memory.max_usage_in_bytes");
    memory.kernel_bytes = read("memory.kmem.usage_in_bytes");
    memory.events = MemoryEvents { max: read("memory.failcnt"), ..MemoryEvents::default() };
    if let Ok(text) = buffer.read(&directory.join("memory.oom_control")) {
        // Since Linux 4.13; of this cgroup alone.
        memory.events.oom_kill = first_value(text, "oom_kill ");
    }
    Some(())
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, a line for each device.
fn parse_io_stat(text: &str) -> Vec<IoReading> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut io = IoReading { device: fields.next()?.to_owned(), ..IoReading::default() };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.read_ops = value,
                "wios" => io.write_ops = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

/// `8:0 Read 1`, a line for each device and kind.
fn parse_blkio(text: &str, is_bytes: bool, all: &mut Vec<IoReading>) {
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (Some(device), Some(kind), Some(value)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Ok(value) = value.parse() else { continue };
        let place = all.iter().position(|io: &IoReading| io.device == device).unwrap_or_else(|| {
            all.push(IoReading { device: device.to_owned(), ..IoReading::default() });
            all.len() - 1
        });
        match (kind, is_bytes) {
            ("Read", true) => all[place].read_bytes = value,
            ("Write", true) => all[place].write_bytes = value,
            ("Read", false) => all[place].read_ops = value,
            ("Write", false) => all[place].write_ops = value,
            _ => {}
        }
    }
}

/// Raises the limit on open files as far as it goes, and tells how many of them cgroups may keep: half.
pub fn descriptors() -> usize {
    /// More are of no use: each costs the kernel some 4 KiB.
    const MOST: u64 = 12_288;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer, and then the same limit with a larger soft part.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 0;
        }
        limit.rlim_cur = limit.rlim_max.min(2 * MOST);
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            log::debug!("the limit on open files stays: {}", io::Error::last_os_error());
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        }
    }
    (limit.rlim_cur / 2).min(MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_of_either_version_is_told_by_device() {
        let v2 = parse_io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n");
        assert_eq!(v2[0], IoReading { device: "8:0".into(), read_bytes: 1, write_bytes: 2, read_ops: 3, write_ops: 4 });
        assert_eq!(v2[1], IoReading { device: "7:1".into(), ..IoReading::default() });
        let mut v1 = Vec::new();
        parse_blkio("8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\nTotal 3\n", true, &mut v1);
        parse_blkio("8:0 Read 3\n8:0 Write 4\nTotal 7\n", false, &mut v1);
        assert_eq!(v1, v2[..1]);
    }

    /// Directories with files as a kernel would have them.
    struct Fake {
        directory: tempfile::TempDir,
        stat: CgroupStat,
    }

    impl Fake {
        fn v2() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let hierarchy = CgroupHierarchy::V2 { mount: Some(directory.path().into()) };
            let fake = Self { stat: CgroupStat::new(&hierarchy, 64).unwrap(), directory };
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
            self.stat.read(&watched, BootTime(second * 1_000_000_000)).into_iter().map(|(id, _)| id.0).collect()
        }
    }

    #[test]
    fn what_is_idle_is_not_read_until_it_is_stale() {
        let mut fake = Fake::v2();
        assert_eq!(fake.read(0, &[]), [1, 2, 3]);
        assert_eq!(fake.read(1, &[]), [1], "nothing but the root, which is never idle");
        assert_eq!(fake.read(2, &[2, 3]), [1, 2, 3], "kernel counters moved");
        fake.write("a/cpu.stat", "usage_usec 6\n");
        assert_eq!(fake.read(3, &[]), [1, 2], "CPU time moved above, not below");
        fake.write("a/b/memory.current", "4096\n");
        assert_eq!(fake.read(4, &[]), [1], "what is above vouches for it: there, nothing moved");
        fake.write("a/memory.current", "4096\n");
        assert_eq!(fake.read(5, &[]), [1, 2, 3]);
        assert_eq!(fake.read(35, &[]), [1, 2, 3], "30 s old");
    }

    #[test]
    fn what_has_gone_is_left_out_and_its_descriptors_are_closed() {
        let mut fake = Fake::v2();
        fake.read(0, &[]);
        assert_eq!(fake.stat.keeping, 3);
        std::fs::remove_dir_all(fake.directory.path().join("a/b")).unwrap();
        fake.stat.known.clear();
        fake.stat.keeping = 0;
        assert_eq!(fake.read(1, &[]), [1, 2]);
        fake.stat.read(&[], BootTime(2));
        assert_eq!((fake.stat.keeping, fake.stat.known.len()), (0, 0));
    }

    #[test]
    fn descriptors_may_run_out() {
        let mut fake = Fake::v2();
        fake.stat.keepers = 1;
        assert_eq!(fake.read(0, &[]), [1, 2, 3]);
        assert_eq!(fake.stat.keeping, 1);
        assert_eq!(fake.read(1, &[]), [1]);
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
