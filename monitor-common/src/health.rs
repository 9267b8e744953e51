//! What a source lost, counted where it was lost.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One value per CPU and source; user space adds the CPUs up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Health {
    /// Ring records that found no room.
    pub ring_full: u64,
    /// Counts charged to [`Owner::UNATTRIBUTED`](crate::Owner::UNATTRIBUTED) because their map had no room for a new key.
    pub map_full: u64,
    /// Events whose other half was never seen: an I/O completed that was started before the agent was, for one.
    pub unmatched: u64,
    /// Runs given up because the same program was interrupted on this CPU by itself.
    pub nested: u64,
}

const _: () = assert!(size_of::<Health>() == 32);
