//! What the agent itself costs: processor time, memory, and the run time of its kernel programs, measured in windows.

use super::Collector;
use crate::{
    cost::{Cost, ProgramCost},
    kernel::program::{StatisticsWindow, statistics_always_on},
    time::BootTime,
};
use std::{fs::File, os::unix::fs::FileExt as _};

/// Keeps count of what the agent costs.
pub struct CostMeter {
    window: Option<StatisticsWindow>,
    always_on: bool,
    /// When processor time was last read, and what it was.
    last: Option<(BootTime, f64)>,
    /// /proc/self/statm, kept open: it can be read when there is no descriptor left.
    statm: Option<File>,
}

impl Default for CostMeter {
    fn default() -> Self {
        Self { window: None, always_on: statistics_always_on(), last: None, statm: File::open("/proc/self/statm").ok() }
    }
}

impl CostMeter {
    /// Begins to measure run times: some 29 ns for every event on this host, until [`Self::close_window`].
    pub fn open_window(&mut self) {
        if self.always_on || self.window.is_some() {
            return;
        }
        match StatisticsWindow::open() {
            Ok(window) => self.window = Some(window),
            Err(error) => log::debug!("measuring run times of kernel programs: {error}"),
        }
    }

    /// Ends measuring.
    pub fn close_window(&mut self) {
        self.window = None;
    }

    /// The cost so far.
    pub fn read(&mut self, collector: &Collector, now: BootTime) -> Cost {
        let cpu_seconds_total = cpu_seconds();
        let last = self.last.replace((now, cpu_seconds_total));
        let cpu_ratio = last.map(|(then, before)| (cpu_seconds_total - before) / now.since(then).as_secs_f64());
        let programs = collector.programs().map(|program| {
            let statistics = program.statistics().unwrap_or_default();
            ProgramCost {
                name: program.name().to_owned(),
                measured_runs: statistics.runs,
                measured_seconds: statistics.run_time_ns as f64 / 1e9,
            }
        });
        Cost {
            cpu_seconds_total,
            cpu_ratio,
            resident_bytes: self.statm.as_ref().and_then(resident_bytes).unwrap_or_default(),
            map_bytes: collector.map_bytes(),
            programs: programs.collect(),
        }
    }
}

/// User and system time of this process, all threads.
fn cpu_seconds() -> f64 {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid rusage for the kernel to write.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Second field of /proc/self/statm, in pages.
fn resident_bytes(statm: &File) -> Option<u64> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0).ok()?;
    let pages = str::from_utf8(&text[..length]).ok()?.split(' ').nth(1)?.parse::<u64>().ok()?;
    Some(pages * procfs::page_size())
}
