//! What a source lost, counted where it was lost.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One value per CPU and source; user space adds the CPUs up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Health {
    /// Ring records that found no room.
    pub ring_full: u64,
    /// Keys that their map had no room for. What was to be counted under them is charged to
    /// [`Owner::UNATTRIBUTED`](crate::Owner::UNATTRIBUTED), but for latencies and for the sizes of brk calls, which are lost.
    pub map_full: u64,
    /// Events whose other half was not seen: an I/O whose completion was shown to no program, for one.
    pub unmatched: u64,
    /// Runs given up because the same program was interrupted on this CPU by itself.
    pub nested: u64,
}

const _: () = assert!(size_of::<Health>() == 32);
