//! What readings come to: rates, limits that count, peaks, working sets. Pure.

use crate::{
    reading::{
        CgroupReading, CpuTimes, DiskReading, HostMemory, HostReading, InterfaceReading, MemoryReading, Pressure,
        Pressures, ProcessReading, Stall,
    },
    time::BootTime,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a cgroup's files tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupUsage {
    /// When they were read.
    pub time: BootTime,
    /// What they said.
    pub reading: CgroupReading,
    /// The limit that counts: the tightest of its own, those above it, and the host's memory.
    pub limit: Option<Limit>,
    /// The most memory ever in use.
    pub peak: Option<Peak>,
    /// CPUs in use, on average between the last two readings: 1 is one whole processor. Zero once it is idle.
    pub cpu_per_second: Option<f64>,
    /// How it was held up between the last two readings. Zero once it is idle.
    #[serde(default)]
    pub stalls: Stalls,
}

/// Shares of the time between two readings, 0–1, in which something was held up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// At least one task waited for a disk.
    pub io: Option<f64>,
    /// At least one task waited for memory.
    pub memory: Option<f64>,
    /// All tasks that would run waited for memory.
    pub memory_full: Option<f64>,
    /// A CPU limit kept it from running: of each of its processors, summed.
    pub throttled: Option<f64>,
    /// Major faults per second, which is no share.
    pub major_faults: Option<f64>,
}

/// A memory limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// How much.
    pub bytes: u64,
    /// Path of the cgroup that sets it; none where it is all the memory that the host has.
    pub source: Option<Arc<str>>,
}

/// The most memory ever in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// How much.
    pub bytes: u64,
    /// Whether the kernel tells; else it is the largest value that was seen.
    pub by_kernel: bool,
}

/// What /proc tells of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// When it was looked at: of CPU time, threads and faults.
    pub time: BootTime,
    /// When resident memory, storage and open files were read, which is not done each time; none where none of them is told.
    #[serde(default)]
    pub full_time: Option<BootTime>,
    /// When its memory was split into shares; none where it was not.
    #[serde(default)]
    pub shares_time: Option<BootTime>,
    /// What it told; what was left out this time is as it was told before.
    pub reading: ProcessReading,
    /// CPUs in use, on average between the last two looks. Zero once it is idle.
    pub cpu_per_second: Option<f64>,
    /// Share of that time in which its first thread waited for disks, 0–1; none where delay accounting is off, or it never waited.
    #[serde(default)]
    pub io_delay_ratio: Option<f64>,
    /// Its anonymous memory when it was split into shares: what has come since is its own. None where it was not split.
    #[serde(default)]
    pub shares_anon_bytes: Option<u64>,
}

/// Sums over the processes of a tree. What is not polled, or does not exist as memory of kernel threads, is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeUsage {
    /// CPU time used, also by those that have exited or left.
    pub cpu_ns: Option<u64>,
    /// CPUs in use.
    pub cpu_per_second: Option<f64>,
    /// How many of its processes waited for disks, on average, by delay accounting.
    #[serde(default)]
    pub io_delay_ratio: Option<f64>,
    /// Threads.
    pub threads: u64,
    /// Resident memory, each process's added up: shared pages are in it once for each.
    pub resident_bytes: Option<u64>,
    /// Of that, anonymous memory: what processes share since a fork, too, is in it once for each.
    #[serde(default)]
    pub anon_bytes: Option<u64>,
    /// Swapped out.
    pub swap_bytes: Option<u64>,
    /// Shared and private memory, each page once.
    pub shares: Option<TreeShares>,
    /// When the oldest of these was read, but for the shares.
    #[serde(default)]
    pub oldest_time: Option<BootTime>,
}

/// A tree's memory without counting shared pages for each of its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeShares {
    /// Pages of one process alone, summed.
    pub private_bytes: u64,
    /// Pages that several processes map, each divided among all who do: what the tree's processes share with each other
    /// counts once.
    pub shared_bytes: u64,
    /// Processes this is known of.
    pub processes: u32,
}

/// What the machine tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostUsage {
    /// What it said.
    pub reading: HostReading,
    /// Shares of the last tick, all processors together; none in the first tick.
    pub cpu: Option<CpuShares>,
    /// The same by processor.
    pub cpus: Vec<(u32, Option<CpuShares>)>,
    /// What disks did in the last tick, in the reading's order.
    pub disks: Vec<Option<DiskRates>>,
    /// What interfaces did in the last tick, in the reading's order.
    pub interfaces: Vec<Option<InterfaceRates>>,
    /// How it was held up in the last tick.
    #[serde(default)]
    pub stalls: Stalls,
}

/// What processors did with their time, each 0–1 and together 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuShares {
    /// In user mode, at any priority.
    pub user: f64,
    /// In the kernel, interrupts included.
    pub system: f64,
    /// Nothing, while something waited for a disk.
    pub iowait: f64,
    /// Taken by other virtual machines.
    pub steal: f64,
    /// Nothing.
    pub idle: f64,
}

/// What one disk did, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskRates {
    /// Share of the time with at least one request under way.
    pub utilization: f64,
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub write_bytes: f64,
    /// Requests completed.
    pub ops: f64,
}

/// What one interface did, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceRates {
    /// Bytes received.
    pub received_bytes: f64,
    /// Bytes sent.
    pub sent_bytes: f64,
}

impl CgroupUsage {
    /// From a reading and what was known before. The limit is still to be set.
    pub(super) fn new(reading: CgroupReading, time: BootTime, before: Option<&Self>) -> Self {
        let cpu_of = |usage: &Self| usage.reading.cpu_usage_ns;
        let cpu_per_second = rate(reading.cpu_usage_ns, time, before.and_then(|b| Some((cpu_of(b)?, b.time))));
        let peak = reading.memory.as_ref().map(|memory| match memory.peak_bytes {
            Some(bytes) => Peak { bytes, by_kernel: true },
            None => {
                let seen = before.and_then(|before| before.peak).map_or(0, |peak| peak.bytes);
                Peak { bytes: seen.max(memory.current_bytes), by_kernel: false }
            }
        });
        let stalls = before.map(|before| Stalls::of_cgroup(&reading, &before.reading, seconds(before.time, time)));
        let limit = before.and_then(|before| before.limit.clone());
        Self { time, reading, limit, peak, cpu_per_second, stalls: stalls.unwrap_or_default() }
    }

    /// Its own limit.
    pub(super) fn own_limit(&self) -> Option<u64> {
        self.reading.memory.as_ref().and_then(|memory| memory.limit_bytes)
    }
}

impl Stalls {
    fn of_cgroup(now: &CgroupReading, before: &CgroupReading, seconds: f64) -> Self {
        let throttled = now.throttled.zip(before.throttled).map(|(now, before)| (now.time_ns, before.time_ns));
        let faults = |reading: &CgroupReading| reading.memory.as_ref()?.major_faults;
        Self {
            throttled: throttled.and_then(|(now, before)| grown(now, before, seconds)).map(|ns| ns / 1e9),
            major_faults: faults(now).zip(faults(before)).and_then(|(now, before)| grown(now, before, seconds)),
            ..Self::of_pressures(&now.pressure, &before.pressure, seconds)
        }
    }

    fn of_pressures(now: &Pressures, before: &Pressures, seconds: f64) -> Self {
        let some = |now: Option<Pressure>, before: Option<Pressure>| {
            now.zip(before).and_then(|(now, before)| now.some.share_since(&before.some, seconds))
        };
        let full = now.memory.and_then(|now| now.full).zip(before.memory.and_then(|before| before.full));
        Self {
            io: some(now.io, before.io),
            memory: some(now.memory, before.memory),
            memory_full: full.and_then(|(now, before)| now.share_since(&before, seconds)),
            ..Self::default()
        }
    }

    /// Nothing is held up, of what is known.
    pub(super) fn rest(&mut self) {
        for share in
            [&mut self.io, &mut self.memory, &mut self.memory_full, &mut self.throttled, &mut self.major_faults]
        {
            *share = share.map(|_| 0.0);
        }
    }
}

impl Stall {
    /// The share of the time since `before`, so many seconds, in which was waited.
    fn share_since(&self, before: &Self, seconds: f64) -> Option<f64> {
        grown(self.total_us, before.total_us, seconds).map(|us| (us / 1e6).min(1.0))
    }
}

/// How much a counter grew per second; none where no time has passed.
fn grown(now: u64, before: u64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| now.saturating_sub(before) as f64 / seconds)
}

fn seconds(from: BootTime, to: BootTime) -> f64 {
    to.since(from).as_secs_f64()
}

impl MemoryReading {
    /// What it cannot do without, as kubelet has it: in use, less the page cache that is given back first.
    pub fn working_set_bytes(&self) -> Option<u64> {
        Some(self.current_bytes.saturating_sub(self.inactive_file_bytes?))
    }
}

impl ProcessUsage {
    /// From a look and what was known before.
    pub(super) fn new(mut reading: ProcessReading, time: BootTime, before: Option<&Self>) -> Self {
        let cpu_per_second = rate(reading.cpu_ns, time, before.and_then(|b| Some((b.reading.cpu_ns?, b.time))));
        // It is not told while it is zero, which it stays where nobody counts.
        let delay_before = before.map(|b| (b.reading.io_delay_ns.unwrap_or_default(), b.time));
        let io_delay_ratio = rate(reading.io_delay_ns, time, delay_before).map(|share| share.min(1.0));
        let is_full = reading.resident.is_some() || reading.storage.is_some() || reading.open_files.is_some();
        let mut usage = Self {
            time,
            full_time: is_full.then_some(time),
            shares_time: reading.shares.map(|_| time),
            reading: ProcessReading::default(),
            cpu_per_second,
            io_delay_ratio,
            shares_anon_bytes: None,
        };
        if let Some(before) = before {
            usage.full_time = usage.full_time.or(before.full_time);
            usage.shares_time = usage.shares_time.or(before.shares_time);
            reading.resident = reading.resident.or(before.reading.resident);
            reading.shares = reading.shares.or(before.reading.shares);
            reading.open_files = reading.open_files.or(before.reading.open_files);
            reading.storage = reading.storage.or(before.reading.storage);
        }
        usage.shares_anon_bytes = match (usage.shares_time == Some(time), before) {
            (true, _) => reading.resident.map(|resident| resident.anon_bytes),
            (false, before) => before.and_then(|before| before.shares_anon_bytes),
        };
        Self { reading, ..usage }
    }

    /// When the oldest of its numbers was read, but for its shares, which have a time of their own.
    pub fn oldest_time(&self) -> BootTime {
        self.full_time.map_or(self.time, |full| full.min(self.time))
    }
}

impl TreeUsage {
    /// Adds one of its running processes, without the CPU time that it had used before it came into the tree.
    pub(super) fn add(&mut self, usage: &ProcessUsage, cpu_before_ns: u64) {
        let (reading, time) = (&usage.reading, usage.oldest_time());
        self.oldest_time = Some(self.oldest_time.map_or(time, |oldest| oldest.min(time)));
        if let Some(cpu_ns) = reading.cpu_ns {
            *self.cpu_ns.get_or_insert_default() += cpu_ns.saturating_sub(cpu_before_ns);
            *self.cpu_per_second.get_or_insert_default() += usage.cpu_per_second.unwrap_or_default();
        }
        if let Some(share) = usage.io_delay_ratio {
            *self.io_delay_ratio.get_or_insert_default() += share;
        }
        self.threads += u64::from(reading.threads);
        if let Some(resident) = reading.resident {
            *self.resident_bytes.get_or_insert_default() += resident.total_bytes();
            *self.anon_bytes.get_or_insert_default() += resident.anon_bytes;
            *self.swap_bytes.get_or_insert_default() += resident.swap_bytes;
        }
        if let Some(of_process) = reading.shares {
            let shares = self.shares.get_or_insert_default();
            shares.private_bytes += of_process.unique_bytes;
            shares.shared_bytes += of_process.proportional_bytes.saturating_sub(of_process.unique_bytes);
            shares.processes += 1;
        }
    }
}

impl HostUsage {
    /// From a reading and the one of the tick before.
    pub(super) fn new(reading: HostReading, before: Option<&HostReading>, seconds: f64) -> Self {
        let cpu = before.and_then(|before| CpuShares::between(&before.cpu, &reading.cpu));
        let cpu_before = |number| before?.cpus.iter().find(|(other, _)| *other == number).map(|(_, times)| times);
        let cpus = reading
            .cpus
            .iter()
            .map(|(number, times)| (*number, cpu_before(*number).and_then(|b| CpuShares::between(b, times))))
            .collect();
        let disk_before = |name: &str| before?.disks.iter().find(|disk| disk.name == name);
        let disks = reading
            .disks
            .iter()
            .map(|disk| Some(DiskRates::between(disk_before(&disk.name)?, disk, seconds)))
            .collect();
        let interface_before = |name: &str| before?.interfaces.iter().find(|interface| interface.name == name);
        let interfaces = reading
            .interfaces
            .iter()
            .map(|interface| Some(InterfaceRates::between(interface_before(&interface.name)?, interface, seconds)))
            .collect();
        let stalls = before.map(|before| Stalls::of_pressures(&reading.pressure, &before.pressure, seconds));
        Self { reading, cpu, cpus, disks, interfaces, stalls: stalls.unwrap_or_default() }
    }
}

impl CpuTimes {
    const fn all_ns(&self) -> u64 {
        self.user_ns
            + self.nice_ns
            + self.system_ns
            + self.idle_ns
            + self.iowait_ns
            + self.irq_ns
            + self.softirq_ns
            + self.steal_ns
    }
}

impl CpuShares {
    /// None where no time has passed. The kernel's idle and iowait times may go backwards by a tick: that counts as zero.
    fn between(before: &CpuTimes, now: &CpuTimes) -> Option<Self> {
        let grown = |read: fn(&CpuTimes) -> u64| read(now).saturating_sub(read(before)) as f64;
        let all = grown(CpuTimes::all_ns);
        (all > 0.0).then(|| Self {
            user: grown(|t| t.user_ns + t.nice_ns) / all,
            system: grown(|t| t.system_ns + t.irq_ns + t.softirq_ns) / all,
            iowait: grown(|t| t.iowait_ns) / all,
            steal: grown(|t| t.steal_ns) / all,
            idle: grown(|t| t.idle_ns) / all,
        })
    }

    /// The share that did something.
    pub fn busy(&self) -> f64 {
        (1.0 - self.idle - self.iowait).clamp(0.0, 1.0)
    }
}

impl HostMemory {
    /// What cannot be had without swapping.
    pub const fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.available_bytes)
    }
}

impl DiskRates {
    fn between(before: &DiskReading, now: &DiskReading, seconds: f64) -> Self {
        let grown = |read: fn(&DiskReading) -> u64| read(now).saturating_sub(read(before)) as f64 / seconds;
        Self {
            utilization: (grown(|d| d.busy_ns) / 1e9).min(1.0),
            read_bytes: grown(|d| d.read_bytes),
            write_bytes: grown(|d| d.write_bytes),
            ops: grown(|d| d.read_ops + d.write_ops),
        }
    }
}

impl InterfaceRates {
    fn between(before: &InterfaceReading, now: &InterfaceReading, seconds: f64) -> Self {
        let grown = |read: fn(&InterfaceReading) -> u64| read(now).saturating_sub(read(before)) as f64 / seconds;
        Self { received_bytes: grown(|i| i.received_bytes), sent_bytes: grown(|i| i.sent_bytes) }
    }
}

/// Growth of a time in nanoseconds per second of real time.
fn rate(now: Option<u64>, time: BootTime, before: Option<(u64, BootTime)>) -> Option<f64> {
    let ((now, time), (before, time_before)) = ((now?, time), before?);
    let seconds = time.since(time_before).as_secs_f64();
    (seconds > 0.0).then(|| now.saturating_sub(before) as f64 / 1e9 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Resident, Shares};

    const SECOND: u64 = 1_000_000_000;

    fn cgroup(current_bytes: u64, peak_bytes: Option<u64>, cpu_ns: u64) -> CgroupReading {
        let memory = MemoryReading { current_bytes, peak_bytes, ..MemoryReading::default() };
        CgroupReading { memory: Some(memory), cpu_usage_ns: Some(cpu_ns), ..CgroupReading::default() }
    }

    #[test]
    fn a_peak_that_the_kernel_does_not_tell_is_the_largest_seen() {
        let first = CgroupUsage::new(cgroup(700, None, 0), BootTime(SECOND), None);
        let second = CgroupUsage::new(cgroup(500, None, SECOND / 2), BootTime(3 * SECOND), Some(&first));
        assert_eq!(second.peak, Some(Peak { bytes: 700, by_kernel: false }));
        assert_eq!(second.cpu_per_second, Some(0.25));
        let told = CgroupUsage::new(cgroup(500, Some(900), 0), BootTime(SECOND), None);
        assert_eq!(told.peak, Some(Peak { bytes: 900, by_kernel: true }));
    }

    #[test]
    fn a_delay_that_is_told_for_the_first_time_was_zero_before() {
        let at = |second, io_delay_ns, before: Option<&ProcessUsage>| {
            let reading = ProcessReading { io_delay_ns, ..ProcessReading::default() };
            ProcessUsage::new(reading, BootTime(second * SECOND), before)
        };
        let nothing = at(2, None, Some(&at(1, None, None)));
        assert_eq!(nothing.io_delay_ratio, None, "nobody accounts for delays, or there were none");
        let some = at(6, Some(SECOND), Some(&nothing));
        assert_eq!(some.io_delay_ratio, Some(0.25));
        assert_eq!(at(7, Some(3 * SECOND), Some(&some)).io_delay_ratio, Some(1.0));
    }

    #[test]
    fn workers_do_not_multiply_what_they_share() {
        let mut tree = TreeUsage::default();
        for _ in 0..4 {
            let resident = Some(Resident { anon_bytes: 100, ..Resident::default() });
            // 60 bytes shared by four, 40 of its own.
            let shares = Some(Shares { proportional_bytes: 55, unique_bytes: 40 });
            let reading = ProcessReading { resident, shares, threads: 2, ..ProcessReading::default() };
            tree.add(&ProcessUsage::new(reading, BootTime(1), None), 0);
        }
        assert_eq!((tree.resident_bytes, tree.threads), (Some(400), 8));
        assert_eq!(tree.shares, Some(TreeShares { private_bytes: 160, shared_bytes: 60, processes: 4 }));
    }

    #[test]
    fn what_is_left_out_this_time_stays_as_it_was() {
        let shares = Some(Shares { proportional_bytes: 5, unique_bytes: 3 });
        let full = ProcessReading { shares, open_files: Some(4), ..ProcessReading::default() };
        let first = ProcessUsage::new(full, BootTime(1), None);
        let second = ProcessUsage::new(ProcessReading::default(), BootTime(2), Some(&first));
        assert_eq!((second.reading.shares, second.reading.open_files), (shares, Some(4)));
    }

    #[test]
    fn what_was_anonymous_when_memory_was_split_is_remembered() {
        let look = |time, anon_bytes: Option<u64>, shares, before: Option<&ProcessUsage>| {
            let resident = anon_bytes.map(|anon_bytes| Resident { anon_bytes, ..Resident::default() });
            ProcessUsage::new(ProcessReading { resident, shares, ..ProcessReading::default() }, BootTime(time), before)
        };
        let shares = Some(Shares { proportional_bytes: 5, unique_bytes: 3 });
        let first = look(1, Some(9), None, None);
        assert_eq!(first.shares_anon_bytes, None);
        // Nothing else was read with it.
        let split = look(2, None, shares, Some(&first));
        let grown = look(3, Some(12), None, Some(&split));
        assert_eq!([split.shares_anon_bytes, grown.shares_anon_bytes], [Some(9); 2]);
        assert_eq!(look(4, Some(14), shares, Some(&grown)).shares_anon_bytes, Some(14));
    }

    #[test]
    fn old_numbers_keep_their_age() {
        let resident = Some(Resident { anon_bytes: 1, ..Resident::default() });
        let shares = Some(Shares { proportional_bytes: 5, unique_bytes: 3 });
        let new = |time, resident, shares, before| {
            ProcessUsage::new(ProcessReading { resident, shares, ..ProcessReading::default() }, BootTime(time), before)
        };
        let split = new(1, resident, shares, None);
        let full = new(2, resident, None, Some(&split));
        let short = new(3, None, None, Some(&full));
        assert_eq!((short.time, short.oldest_time(), short.shares_time), (BootTime(3), BootTime(2), Some(BootTime(1))));
        let kernel_thread = new(4, None, None, None);
        assert_eq!(kernel_thread.oldest_time(), BootTime(4));
    }

    #[test]
    fn shares_of_processors_add_up_to_one() {
        let before = CpuTimes { user_ns: 10, idle_ns: 10, ..CpuTimes::default() };
        let now = CpuTimes { user_ns: 12, nice_ns: 1, system_ns: 1, idle_ns: 13, iowait_ns: 3, ..before };
        let shares = CpuShares::between(&before, &now).unwrap();
        assert_eq!((shares.user, shares.system, shares.iowait, shares.idle), (0.3, 0.1, 0.3, 0.3));
        assert!((shares.busy() - 0.4).abs() < 1e-9);
        assert_eq!(CpuShares::between(&now, &now), None);
    }

    #[test]
    fn disks_and_interfaces_are_compared_by_name() {
        let disk = |name: &str, busy_ns, read_bytes| DiskReading {
            name: name.into(),
            busy_ns,
            read_bytes,
            ..DiskReading::default()
        };
        let before = HostReading { disks: vec![disk("a", 0, 0), disk("b", 5, 5)], ..HostReading::default() };
        let now = HostReading { disks: vec![disk("b", SECOND + 5, 105), disk("c", 9, 9)], ..HostReading::default() };
        let usage = HostUsage::new(now, Some(&before), 2.0);
        let b = DiskRates { utilization: 0.5, read_bytes: 50.0, ..DiskRates::default() };
        assert_eq!(usage.disks, [Some(b), None]);
    }
}
