//! Source `page_fault`: faults by who, what kind, and from where.

use crate::Owner;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of faults taken in user mode: read, write and instruction fetch, each not present and present.
pub const USER_KINDS: usize = 6;
/// Kinds of faults taken in kernel mode: read and write, each not present and present.
pub const KERNEL_KINDS: usize = 4;
/// All kinds, user mode first.
pub const KINDS: usize = USER_KINDS + KERNEL_KINDS;

/// A program at the perf event of page faults runs once in so many of them, and counts as many.
pub const SOFTWARE_PERIOD: u64 = 16;

/// Faults by kind. Index with [`user_kind`] or [`kernel_kind`].
pub type Counts = [u64; KINDS];

/// What the access was, times two; one more when the page was present (copy on write, protection).
pub const READ: usize = 0;
/// See [`READ`].
pub const WRITE: usize = 2;
/// See [`READ`].
pub const FETCH: usize = 4;
/// See [`READ`].
pub const PRESENT: usize = 1;

/// Bits of the error code that x86 pushes for a page fault (Intel SDM volume 3, 4.7).
mod error_code {
    pub(super) const PROTECTION: u64 = 1 << 0;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const INSTRUCTION: u64 = 1 << 4;
}

/// Index into [`Counts`] of a fault taken in user mode, always below [`USER_KINDS`].
#[inline(always)]
pub const fn user_kind(error_code: u64) -> usize {
    let present = (error_code & error_code::PROTECTION) as usize;
    if error_code & error_code::INSTRUCTION != 0 { FETCH + present } else { access(error_code) + present }
}

/// Index into [`Counts`] of a fault taken in kernel mode, always in [`USER_KINDS`]..[`KINDS`].
#[inline(always)]
pub const fn kernel_kind(error_code: u64) -> usize {
    USER_KINDS + access(error_code) + (error_code & error_code::PROTECTION) as usize
}

#[inline(always)]
const fn access(error_code: u64) -> usize {
    if error_code & error_code::WRITE != 0 { WRITE } else { READ }
}

/// The counts of the owner that faulted last on one CPU, not yet folded into the hash map.
///
/// Faults come in bursts from one thread a CPU, so most of them find their owner here, in one cache line, and cost one
/// addition. The counts are cumulative: when the owner changes they are *stored* into this CPU's value in the map, never
/// added, and the new owner's are loaded. So whoever copies the slots first and reads the map second, and takes the larger
/// of the two, neither misses a count nor sees one twice.
///
/// Whether a fault is the same owner's as the one before it is told by the thread: its address and start time, as long as
/// no task was moved between cgroups meanwhile. Looking its process and cgroup up takes seven cache lines, which a storm of
/// faults, each of which clears a page, keeps evicting.
///
/// Two programs, for the two processor modes, have slots of their own. In kernel mode only the first [`KERNEL_KINDS`]
/// counts are used.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Slot {
    /// Address of the thread that faulted last.
    pub thread: u64,
    /// When it started, boot clock.
    pub thread_start_ns: u64,
    /// Number of moves between cgroups when its owner was looked up.
    pub moves: u64,
    /// The owner's counts on this CPU since it was first seen.
    pub counts: [u64; USER_KINDS],
    /// Whose the counts are.
    pub owner: Owner,
    /// Odd while the owner is being changed.
    pub sequence: u64,
    /// Not 0 while the program runs, where the kernel itself does not keep it from interrupting itself.
    pub busy: u64,
    /// Always 0; keeps slots of two CPUs apart in the cache.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Slot>() == 128);
const _: () = assert!(core::mem::offset_of!(Slot, owner) == 72);
