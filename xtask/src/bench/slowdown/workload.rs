//! A fixed piece of work: a command that is run again and again and timed, and perhaps a server that it talks to.

use super::server::Server;
use crate::process;
use anyhow::{Context, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Makes a workload ready in a directory of its own. An error says why it cannot be run here.
pub(crate) type Prepare = fn(&Path) -> Result<Workload>;

/// Dropped, its server ends.
pub(crate) struct Workload {
    client: Command,
    _server: Option<Server>,
}

impl Workload {
    pub(crate) fn alone(client: Command) -> Self {
        Self { client, _server: None }
    }

    pub(crate) fn with_server(client: Command, server: Server) -> Self {
        Self { client, _server: Some(server) }
    }

    /// Does the work once: how long it took.
    pub(crate) fn run(&mut self) -> Result<Duration> {
        let start = Instant::now();
        process::run_unseen(&mut self.client)?;
        Ok(start.elapsed())
    }
}

/// A program in PATH, or the name of the Debian package that has it.
pub(crate) fn require_program(name: &str, package: &str) -> Result<PathBuf> {
    process::find_program(name).with_context(|| format!("{name} is missing; `apt-get install {package}` installs it"))
}
