//! A type per id, so that swapping a pid for a thread id or a cgroup id does not compile.

use monitor_common::Owner;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Thread-group id in the initial pid namespace: what user space calls a pid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tgid(pub u32);

/// Thread id in the initial pid namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tid(pub u32);

/// kernfs id of a cgroup, which is the inode number of its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CgroupId(pub u64);

/// A process for good: its pid together with when it started, so that a reused pid is another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Thread-group id.
    pub tgid: Tgid,
    /// When its thread-group leader started, in nanoseconds of the boot clock.
    pub start_ns: u64,
}

impl ProcessId {
    /// What it is found by: /proc tells start times in clock ticks only, and no pid is used twice within one.
    pub const fn key(self) -> ProcessKey {
        ProcessKey { tgid: self.tgid, start_tick: self.start_ns / TICK_NS }
    }
}

/// Nanoseconds to a clock tick (USER_HZ, 100 a second on all of x86).
pub const TICK_NS: u64 = 10_000_000;

/// A process for good, as exactly as all sources of information can tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Thread-group id.
    pub tgid: Tgid,
    /// When its thread-group leader started, in clock ticks of the boot clock.
    pub start_tick: u64,
}

impl From<&Owner> for ProcessId {
    fn from(owner: &Owner) -> Self {
        Self { tgid: Tgid(owner.tgid), start_ns: owner.start_ns }
    }
}

/// Device number, major << 20 | minor, as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// The driver's number.
    pub const fn major(self) -> u32 {
        self.0 >> 20
    }

    /// The device's number within the driver.
    pub const fn minor(self) -> u32 {
        self.0 & ((1 << 20) - 1)
    }
}

impl fmt::Display for Tgid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As in /sys/dev/block: `major:minor`.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major(), self.minor())
    }
}
