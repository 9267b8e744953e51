//! A fixed piece of work that is done again and again and timed.

use super::background::Background;
use crate::process;
use anyhow::{Context, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Makes a workload ready in a directory of its own. An error says why it cannot be run here.
pub(crate) type Prepare = fn(&Path) -> Result<Workload>;

/// Dropped, the programs end that it keeps.
pub(crate) struct Workload(Box<dyn FnMut() -> Result<Duration>>);

impl Workload {
    /// A way to do the work once that returns how long it took.
    pub(crate) fn new(run: impl FnMut() -> Result<Duration> + 'static) -> Self {
        Self(Box::new(run))
    }

    /// A command that does the work once.
    pub(crate) fn alone(mut command: Command) -> Self {
        Self::new(move || {
            let start = Instant::now();
            process::run_unseen(&mut command)?;
            Ok(start.elapsed())
        })
    }

    /// As [`Self::alone`], with a server that the command talks to.
    pub(crate) fn with_server(client: Command, server: Background) -> Self {
        let mut client = Self::alone(client);
        Self::new(move || {
            let _kept = &server;
            client.run()
        })
    }

    /// Does the work once: how long it took.
    pub(crate) fn run(&mut self) -> Result<Duration> {
        (self.0)()
    }
}

/// A program in PATH, or the name of the Debian package that has it.
pub(crate) fn require_program(name: &str, package: &str) -> Result<PathBuf> {
    process::find_program(name).with_context(|| format!("{name} is missing; `apt-get install {package}` installs it"))
}
