//! Source `address_space`: mmap, munmap, mremap and brk, with their results.

use crate::{Header, Owner};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What one owner did to its address space. Calls count failed ones too; bytes are whole pages of calls that succeeded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Totals {
    /// Calls of mmap with `MAP_ANONYMOUS`.
    pub mmap_anonymous_calls: u64,
    /// Calls of mmap of a file or device.
    pub mmap_file_calls: u64,
    /// Bytes mapped with `MAP_ANONYMOUS`.
    pub mapped_anonymous_bytes: u64,
    /// Bytes mapped of files and devices.
    pub mapped_file_bytes: u64,
    /// Calls of munmap.
    pub munmap_calls: u64,
    /// Bytes munmap was asked to unmap; holes in the range count as well.
    pub unmapped_bytes: u64,
    /// Calls of mremap.
    pub mremap_calls: u64,
    /// Bytes by which mremap made mappings larger, or duplicated them.
    pub mremap_grown_bytes: u64,
    /// Bytes by which mremap made mappings smaller.
    pub mremap_shrunk_bytes: u64,
    /// Calls of brk, also those that only ask where the heap ends.
    pub brk_calls: u64,
    /// Bytes by which brk made the heap larger.
    pub heap_grown_bytes: u64,
    /// Bytes by which brk made the heap smaller.
    pub heap_shrunk_bytes: u64,
    /// Calls of any of the four that failed.
    pub failed_calls: u64,
}

const _: () = assert!(size_of::<Totals>() == 13 * 8);

/// Where a heap ends; kept in the kernel only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Heap {
    /// The address space (`mm_struct.context.ctx_id`), whose number is never used again: exec makes a new one.
    pub space: u64,
    /// Address behind its last byte.
    pub end: u64,
}

const _: () = assert!(size_of::<Heap>() == 16);

/// Code of the system call in a [`Call`]: also its header's kind.
pub mod call {
    /// mmap with `MAP_ANONYMOUS`.
    pub const MMAP_ANONYMOUS: u32 = 1;
    /// mmap of a file or device.
    pub const MMAP_FILE: u32 = 2;
    /// munmap.
    pub const MUNMAP: u32 = 3;
    /// mremap.
    pub const MREMAP: u32 = 4;
    /// brk.
    pub const BRK: u32 = 5;
}

/// Ring record: one call that was large or failed. The header's kind is one of [`call`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Call {
    /// Time and system call.
    pub header: Header,
    /// Who called.
    pub owner: Owner,
    /// The calling thread's id.
    pub tid: u32,
    /// The error as a positive errno, 0 when the call succeeded.
    pub errno: u32,
    /// Where: the address returned, or the one passed when the call failed, or for munmap and brk.
    pub address: u64,
    /// Whole pages mapped or unmapped, in bytes; negative when the heap or a mapping became smaller; for a failed call,
    /// the size asked for.
    pub bytes: i64,
}

const _: () = assert!(size_of::<Call>() == 64);
