//! The loaded programs, as far as they are accounted for: run time, skipped runs.

use super::syscall::{self, ProgramStatistics};
use aya::programs::ProgramFd;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

/// One program that is attached.
pub struct LoadedProgram {
    name: &'static str,
    fd: ProgramFd,
}

impl LoadedProgram {
    pub(super) fn new(name: &'static str, fd: ProgramFd) -> Self {
        Self { name, fd }
    }

    /// Its name, beginning with its source's.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its statistics, since it was loaded.
    pub fn statistics(&self) -> io::Result<ProgramStatistics> {
        syscall::program_statistics(self.fd.as_fd())
    }
}

/// Run-time statistics of all programs on this host are on while this lives.
pub struct StatisticsWindow(#[expect(dead_code, reason = "held for its effect")] OwnedFd);

impl StatisticsWindow {
    /// Switches them on.
    pub fn open() -> io::Result<Self> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime).map(Self).map_err(|error| error.io_error)
    }
}

/// Whether the host has run-time statistics on anyway.
pub fn statistics_always_on() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|value| value.trim() == "1")
}
