//! The table of sources. Configuration, command line, plan, collection, coverage and tests read it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing the agent watches in the kernel. Its name is the stem of its files in every crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Page faults, by kind.
    PageFault,
    /// mmap, munmap, mremap and brk.
    AddressSpace,
    /// Requests to block devices and their latencies.
    BlockIo,
    /// Processes and cgroups, from birth to death.
    Lifecycle,
    /// Turns of requests and answers on accepted connections.
    Requests,
    /// Pages that each process has in memory, by kind.
    Resident,
}

impl Source {
    /// All of them, in the order in which they are attached: life first, so that nothing is counted unnamed.
    pub const ALL: [Self; 6] =
        [Self::Lifecycle, Self::PageFault, Self::AddressSpace, Self::BlockIo, Self::Requests, Self::Resident];

    /// Its name, in files, programs, configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageFault => "page_fault",
            Self::AddressSpace => "address_space",
            Self::BlockIo => "block_io",
            Self::Lifecycle => "lifecycle",
            Self::Requests => "requests",
            Self::Resident => "resident",
        }
    }

    /// The first Linux that it can be had on, unless its hooks were brought to an older one.
    pub const fn since(self) -> (u32, u32) {
        match self {
            Self::PageFault | Self::AddressSpace | Self::BlockIo | Self::Lifecycle | Self::Resident => (5, 10),
            Self::Requests => (6, 3),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
