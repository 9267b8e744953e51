//! Source `resident`: pages that each process has in memory, by kind, as the kernel's own counters have them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of pages, in the order of the kernel's `MM_FILEPAGES` and so on.
pub const KINDS: usize = 4;
/// Of files.
pub const FILE: usize = 0;
/// Anonymous.
pub const ANON: usize = 1;
/// Swapped out.
pub const SWAP: usize = 2;
/// Shared memory and tmpfs.
pub const SHMEM: usize = 3;

/// The counters of one process, as of its last change that they showed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pages {
    /// The address space (`mm_struct.context.ctx_id`), whose number is never used again: exec makes a new one.
    pub space: u64,
    /// Pages by kind. Kept by the kernel in parts, so that they can seem to be a few less than none.
    pub pages: [i64; KINDS],
}

const _: () = assert!(size_of::<Pages>() == 40);
