//! Source `lifecycle`: processes and cgroups, from birth to death.

use crate::{Header, Owner, record::Command, resident::KINDS};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of this source's records.
pub mod kind {
    /// [`super::Fork`]
    pub const FORK: u32 = 1;
    /// [`super::Exec`]
    pub const EXEC: u32 = 2;
    /// [`super::Exit`]
    pub const EXIT: u32 = 3;
    /// [`super::OomVictim`]
    pub const OOM_VICTIM: u32 = 4;
    /// [`super::Cgroup`]
    pub const CGROUP_MADE: u32 = 5;
    /// [`super::Cgroup`]
    pub const CGROUP_RENAMED: u32 = 6;
    /// [`super::Cgroup`]
    pub const CGROUP_REMOVED: u32 = 7;
    /// [`super::Moved`]
    pub const MOVED: u32 = 8;
}

/// A process was made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fork {
    /// Time; [`kind::FORK`].
    pub header: Header,
    /// The new process.
    pub child: Owner,
    /// Start time of the parent's thread-group leader, boot clock.
    pub parent_start_ns: u64,
    /// The parent's thread-group id.
    pub parent_tgid: u32,
    /// 1 for a kernel thread.
    pub kernel_thread: u32,
    /// Name inherited from the parent.
    pub command: Command,
}

/// Bytes of arguments kept of an exec.
pub const ARGUMENTS_BYTES: usize = 256;

/// A process became another program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exec {
    /// Time; [`kind::EXEC`].
    pub header: Header,
    /// The process.
    pub owner: Owner,
    /// Its new name.
    pub command: Command,
    /// Bytes of all its arguments, also where more than [`ARGUMENTS_BYTES`]; 0 where they could not be read.
    pub arguments_bytes: u64,
    /// The first of them, each ended by a NUL.
    pub arguments: [u8; ARGUMENTS_BYTES],
}

/// A process's last thread has gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exit {
    /// Time; [`kind::EXIT`].
    pub header: Header,
    /// The process.
    pub owner: Owner,
    /// As wait(2) gives it: exit code << 8 | terminating signal | 0x80 when core was dumped.
    pub wait_status: u32,
    /// Always 0.
    pub reserved: u32,
    /// Name at the end.
    pub command: Command,
}

/// The kernel chose a process to kill for want of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OomVictim {
    /// Time; [`kind::OOM_VICTIM`].
    pub header: Header,
    /// The victim.
    pub owner: Owner,
    /// Its name.
    pub command: Command,
    /// What it has in memory, by the kinds of [`crate::resident`]; [`UNKNOWN_PAGES`] where the kernel's counters are not known.
    pub pages: [i64; KINDS],
}

/// How many pages a victim has where that cannot be told.
pub const UNKNOWN_PAGES: i64 = -1;

/// Bytes kept of a cgroup's path: systemd's deepest Kubernetes paths take some 230.
pub const PATH_BYTES: usize = 384;

/// A cgroup was made, renamed or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cgroup {
    /// Time; [`kind::CGROUP_MADE`], [`kind::CGROUP_RENAMED`] or [`kind::CGROUP_REMOVED`].
    pub header: Header,
    /// kernfs id.
    pub id: u64,
    /// Bytes of the path with its NUL, at most [`PATH_BYTES`], in which case it may be cut; 0 where it could not be read.
    pub path_bytes: u64,
    /// Path below the hierarchy's root, starting with '/', ended by a NUL.
    pub path: [u8; PATH_BYTES],
}

/// A process was moved to another cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Moved {
    /// Time; [`kind::MOVED`].
    pub header: Header,
    /// The process, with the cgroup it is in now.
    pub owner: Owner,
}

const _: () = assert!(size_of::<Fork>() == 72);
const _: () = assert!(size_of::<Exec>() == 64 + ARGUMENTS_BYTES);
const _: () = assert!(size_of::<Exit>() == 64);
const _: () = assert!(size_of::<OomVictim>() == 56 + 8 * KINDS);
const _: () = assert!(size_of::<Cgroup>() == 32 + PATH_BYTES);
const _: () = assert!(size_of::<Moved>() == 40);
