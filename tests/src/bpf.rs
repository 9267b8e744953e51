//! The kernel's lists of loaded programs, maps and links, to see that nothing stays behind, and its count of their runs. Needs
//! CAP_SYS_ADMIN.

use anyhow::{Context, Result};
use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Commands of bpf(2).
const PROG_GET_NEXT_ID: libc::c_long = 11;
const MAP_GET_NEXT_ID: libc::c_long = 12;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const ENABLE_STATS: libc::c_long = 32;
/// The only kind of statistics there is.
const STATS_RUN_TIME: u32 = 0;

/// Ids of everything of BPF that the kernel holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Census {
    /// Asks the kernel.
    ///
    /// # Errors
    /// A kernel without these lists (before 5.8), or missing rights.
    pub fn take() -> Result<Self> {
        Ok(Self {
            programs: ids(PROG_GET_NEXT_ID).context("cannot list BPF programs")?,
            maps: ids(MAP_GET_NEXT_ID).context("cannot list BPF maps")?,
            links: ids(LINK_GET_NEXT_ID).context("cannot list BPF links")?,
        })
    }

    /// What is here and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self {
            programs: &self.programs - &other.programs,
            maps: &self.maps - &other.maps,
            links: &self.links - &other.links,
        }
    }

    /// What is here and in `other` too.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            programs: &self.programs & &other.programs,
            maps: &self.maps & &other.maps,
            links: &self.links & &other.links,
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

/// For as long as it lives, the kernel counts the runs of all programs and takes their time.
#[derive(Debug)]
pub struct Statistics {
    _kept: OwnedFd,
}

impl Statistics {
    /// Begins to count.
    ///
    /// # Errors
    /// A kernel without such statistics (before 5.8), or missing rights.
    pub fn start() -> Result<Self> {
        let kind = STATS_RUN_TIME;
        // SAFETY: the kernel reads no more than the size that is passed along with the pointer.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, ENABLE_STATS, &raw const kind, size_of_val(&kind)) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("cannot have the kernel count the runs of programs");
        }
        // SAFETY: a descriptor that was just opened and is nobody else's.
        Ok(Self { _kept: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }
}

/// `union bpf_attr` of the GET_NEXT_ID commands.
#[repr(C)]
#[derive(Default)]
struct NextId {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
}

fn ids(command: libc::c_long) -> io::Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut attributes = NextId::default();
    loop {
        // SAFETY: the kernel reads and writes no more than the size that is passed along with the pointer.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<NextId>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(ids) } else { Err(error) };
        }
        ids.insert(attributes.next_id);
        attributes.start_id = attributes.next_id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(ids: &[u32]) -> Census {
        Census { programs: ids.iter().copied().collect(), ..Census::default() }
    }

    #[test]
    fn a_difference_is_what_is_new() {
        assert_eq!(programs(&[1, 2, 3]).without(&programs(&[2])), programs(&[1, 3]));
        assert_eq!(programs(&[1, 2, 3]).and(&programs(&[2, 4])), programs(&[2]));
        assert!(programs(&[1]).without(&programs(&[1])).is_empty());
        assert!(!programs(&[1]).is_empty());
    }
}
