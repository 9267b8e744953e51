//! What the self-check reads of the process that runs it, both ways: by field offsets and by the kernel's own helpers.

use crate::{Owner, record::Command};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The running task, as the kernel programs see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Report {
    /// By offsets.
    pub owner: Owner,
    /// By offset.
    pub pid: u32,
    /// Number of threads that live, by offset.
    pub live_threads: u32,
    /// By helper: tgid << 32 | pid.
    pub helper_pid_tgid: u64,
    /// End of the heap, by offset.
    pub brk: u64,
    /// Start of the arguments, by offset.
    pub arg_start: u64,
    /// End of the arguments, by offset.
    pub arg_end: u64,
    /// Number of the system call that it is in, by the registers it came with.
    pub system_call: u64,
    /// Name, by offset.
    pub command: Command,
    /// 1 when the program ran to its end.
    pub complete: u64,
}

const _: () = assert!(size_of::<Report>() == 96);
