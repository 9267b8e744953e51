//! Whom a kernel counter is charged to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A process while it was in one cgroup: the key of every kernel counter.
///
/// A process that moves to another cgroup is charged there from then on, under a second key. The start time makes a
/// reused pid another process.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Owner {
    /// kernfs id of the cgroup: the inode number of its directory. On hosts where the memory controller sits in a
    /// cgroup v1 hierarchy it is that hierarchy's cgroup, on all others the cgroup v2 one.
    pub cgroup: u64,
    /// When the thread-group leader started, in nanoseconds of the boot clock.
    pub start_ns: u64,
    /// Thread-group id, which user space calls pid, in the initial pid namespace.
    pub tgid: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Owner {
    /// Takes what could be charged to nobody because a map was full, so that host totals stay exact.
    pub const UNATTRIBUTED: Self = Self { cgroup: 0, start_ns: 0, tgid: 0, reserved: 0 };
}

const _: () = assert!(size_of::<Owner>() == 24);
