//! What the kernel publishes of itself in files, as read at one moment. Raw: differences and limits of ancestors come later.
//!
//! What a host does not publish is none, never zero.

use crate::ids::{CgroupId, ProcessId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Everything polled in one tick. Only what has moved is in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Readings {
    /// Cgroups, parents before children.
    pub cgroups: Vec<(CgroupId, CgroupReading)>,
    /// Processes.
    pub processes: Vec<(ProcessId, ProcessReading)>,
    /// The machine.
    pub host: Option<HostReading>,
}

/// A cgroup to be looked at.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Which.
    pub id: CgroupId,
    /// The one above it.
    pub parent: Option<CgroupId>,
    /// Path below the hierarchy's root.
    pub path: Arc<str>,
    /// Whether some kernel counter of it, or of one below it, has moved since the last tick.
    pub moved: bool,
}

/// A process that something happened to since the last tick: it began, ended, came into another cgroup, or counters of it moved.
#[derive(Clone, Copy, Debug)]
pub struct ProcessChange {
    /// Which.
    pub id: ProcessId,
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// Whether it runs; else it has ended.
    pub runs: bool,
    /// Whether some kernel counter of it has moved.
    pub moved: bool,
}

/// One cgroup with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupReading {
    /// Its memory; none where it has no memory controller, as the root of cgroup v2.
    pub memory: Option<MemoryReading>,
    /// CPU time used.
    pub cpu_usage_ns: Option<u64>,
    /// How often, and for how long, it was kept from running by its CPU limit.
    pub throttled: Option<Throttled>,
    /// I/O by device; none where the kernel does not account it, as cgroup v1 does not unless it throttles.
    pub io: Option<Vec<IoReading>>,
    /// Who waits for what.
    pub pressure: Pressures,
}

/// Memory of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryReading {
    /// Its own limit; none where it has none.
    pub limit_bytes: Option<u64>,
    /// In use, page cache included.
    pub current_bytes: u64,
    /// The most ever in use, by the kernel's account (cgroup v2 from Linux 5.19, cgroup v1).
    pub peak_bytes: Option<u64>,
    /// The most in use since the tick before, exactly; none where nothing tells.
    pub tick_peak_bytes: Option<u64>,
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Page cache, shared memory included.
    pub file_bytes: Option<u64>,
    /// Page cache that is given back first.
    pub inactive_file_bytes: Option<u64>,
    /// The kernel's own, on the cgroup's behalf.
    pub kernel_bytes: Option<u64>,
    /// Of that, in slabs.
    pub slab_bytes: Option<u64>,
    /// Swapped out.
    pub swap_bytes: Option<u64>,
    /// Faults that waited for a disk, since it was made.
    #[serde(default)]
    pub major_faults: Option<u64>,
    /// What befell it.
    pub events: MemoryEvents,
}

/// Counters of what befell a cgroup for want of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// Reclaimed though below `memory.low`.
    pub low: Option<u64>,
    /// Throttled at `memory.high`.
    pub high: Option<u64>,
    /// At its limit; on cgroup v1 charges that failed.
    pub max: Option<u64>,
    /// Reclaim could not help.
    pub oom: Option<u64>,
    /// Processes killed.
    pub oom_kill: Option<u64>,
}

/// How a CPU limit held a cgroup back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled {
    /// Periods in which it was.
    pub periods: u64,
    /// For how long.
    pub time_ns: u64,
}

/// I/O of one cgroup on one device, by the I/O controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoReading {
    /// Device number, `major:minor`.
    pub device: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// Pressure-stall information (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressures {
    /// For the processor.
    pub cpu: Option<Pressure>,
    /// For memory.
    pub memory: Option<Pressure>,
    /// For disks.
    pub io: Option<Pressure>,
}

/// Pressure for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waits.
    pub some: Stall,
    /// All tasks wait; not told of the processor before Linux 5.13.
    pub full: Option<Stall>,
}

/// How long was waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Share of the last 10 s, 0–1.
    pub avg10_ratio: f64,
    /// Share of the last 60 s.
    pub avg60_ratio: f64,
    /// Share of the last 300 s.
    pub avg300_ratio: f64,
    /// Since boot, or since the cgroup was made.
    pub total_us: u64,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessReading {
    /// CPU time used, user and system; none where that is not polled.
    pub cpu_ns: Option<u64>,
    /// Threads.
    pub threads: u32,
    /// Minor faults.
    pub minor_faults: u64,
    /// Major faults: those that waited for a disk.
    pub major_faults: u64,
    /// Time waited for block I/O, where delay accounting is on; else it stays zero in the kernel, and none here.
    pub io_delay_ns: Option<u64>,
    /// Resident memory; none for kernel threads, and where not looked at this time.
    pub resident: Option<Resident>,
    /// Proportional and unique set sizes; none where not looked at this time.
    pub shares: Option<Shares>,
    /// Open files; none where not looked at this time.
    pub open_files: Option<u32>,
    /// Bytes read from and written to storage, by the process's own account; none where not looked at this time.
    pub storage: Option<Storage>,
    /// Its arguments, joined by spaces; none where not looked at this time, or as they were the last time.
    #[serde(default)]
    pub command_line: Option<String>,
}

/// Resident memory by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Anonymous.
    pub anon_bytes: u64,
    /// Of files.
    pub file_bytes: u64,
    /// Shared memory.
    pub shmem_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
}

impl Resident {
    /// All that is in memory.
    pub const fn total_bytes(&self) -> u64 {
        self.anon_bytes + self.file_bytes + self.shmem_bytes
    }
}

/// What of a process's memory is its own (/proc/PID/smaps_rollup).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Each page divided by how many processes map it.
    pub proportional_bytes: u64,
    /// Pages nobody else maps.
    pub unique_bytes: u64,
}

/// Bytes to and from storage (/proc/PID/io).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Fetched from storage.
    pub read_bytes: u64,
    /// Sent to storage, or to be sent.
    pub write_bytes: u64,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReading {
    /// CPU time, all processors together.
    pub cpu: CpuTimes,
    /// CPU time by processor, those on line.
    pub cpus: Vec<(u32, CpuTimes)>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Memory.
    pub memory: Option<HostMemory>,
    /// Who waits for what.
    pub pressure: Pressures,
    /// Disks, as /proc/diskstats has them.
    pub disks: Vec<DiskReading>,
    /// Network interfaces.
    pub interfaces: Vec<InterfaceReading>,
}

/// CPU time since boot (proc_stat(5)), in nanoseconds; guest time is in `user` and `nice`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// In user mode.
    pub user_ns: u64,
    /// In user mode, at low priority.
    pub nice_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Doing nothing.
    pub idle_ns: u64,
    /// Doing nothing while something waits for a disk.
    pub iowait_ns: u64,
    /// Serving interrupts.
    pub irq_ns: u64,
    /// Serving deferred interrupts.
    pub softirq_ns: u64,
    /// Taken by other virtual machines.
    pub steal_ns: u64,
}

/// Memory of the machine (proc_meminfo(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// Usable.
    pub total_bytes: u64,
    /// Not used for anything.
    pub free_bytes: u64,
    /// To be had without swapping.
    pub available_bytes: u64,
    /// Buffers of block devices.
    pub buffers_bytes: u64,
    /// Page cache.
    pub cached_bytes: u64,
    /// Shared memory and tmpfs.
    pub shmem_bytes: u64,
    /// The kernel's slabs.
    pub slab_bytes: u64,
    /// Waiting to be written.
    pub dirty_bytes: u64,
    /// Anonymous pages.
    pub anon_bytes: u64,
    /// Swap there is.
    pub swap_total_bytes: u64,
    /// Swap not used.
    pub swap_free_bytes: u64,
}

/// One disk, counted by the kernel since boot (Documentation/admin-guide/iostats.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReading {
    /// Its name.
    pub name: String,
    /// Reads completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests under way now.
    pub in_flight: u64,
    /// Time with at least one request under way.
    pub busy_ns: u64,
    /// Time that requests spent, summed.
    pub wait_ns: u64,
}

/// One network interface, counted since it was made (/proc/net/dev).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReading {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Received in error, or dropped.
    pub received_bad: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Not sent: errors and drops.
    pub sent_bad: u64,
}
