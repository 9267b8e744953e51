//! The frame of every ring record.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Stands first in every record of every ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// When it happened, in nanoseconds of the boot clock.
    pub time_ns: u64,
    /// What it is: a code of the source's own module. Codes are not shared between sources, as each has its own ring.
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Header>() == 16);

/// A task's name as the kernel keeps it, with NULs at the end.
pub type Command = [u8; 16];
