//! The machine as a whole, which one test has at a time: counts of the host bear no second workload beside them.

use anyhow::{Context, Result, ensure};
use std::fs::File;

/// The right to use the machine. Other tests, also of other processes, wait until it is dropped.
#[derive(Debug)]
pub struct Machine {
    _lock: File,
}

impl Machine {
    /// Waits for the machine and takes it.
    ///
    /// # Errors
    /// Not being root, or a lock file that cannot be used.
    pub fn claim() -> Result<Self> {
        // SAFETY: takes nothing and cannot fail.
        let user = unsafe { libc::geteuid() };
        ensure!(user == 0, "these tests load kernel programs and need root: run them with sudo");
        let path = std::env::temp_dir().join("monitor-tests.lock");
        let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _lock: lock })
    }
}
