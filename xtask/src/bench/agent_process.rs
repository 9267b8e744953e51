//! The agent, in release mode and at defaults but for its socket: started, asked and stopped by a benchmark.

use crate::{process, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Builds the agent in release mode and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    process::run(process::cargo().args(["build", "--release", "--package", "monitor"]))?;
    Ok(workspace::target_directory()?.join("release/monitor"))
}

/// A running agent. Killed when dropped, unless it was stopped before.
pub(crate) struct Agent {
    program: PathBuf,
    socket: PathBuf,
    child: Child,
}

impl Agent {
    /// Starts the agent and waits until its socket is there: from then on every source has been tried.
    pub(crate) fn start(program: &Path, scratch: &Path) -> Result<Self> {
        Self::start_with(program, scratch, &[])
    }

    /// As [`Self::start`], with further flags.
    pub(crate) fn start_with(program: &Path, scratch: &Path, flags: &[&OsStr]) -> Result<Self> {
        let socket = scratch.join("monitor.sock");
        let messages_file = scratch.join("monitor.log");
        let messages = File::create(&messages_file).with_context(|| format!("make {}", messages_file.display()))?;
        let child = Command::new(program)
            .args(["run", "--quiet", "--socket"])
            .arg(&socket)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut agent = Self { program: program.to_owned(), socket, child };
        let messages = || fs::read_to_string(&messages_file).unwrap_or_default();
        agent.wait_for_socket().with_context(|| format!("the agent said:\n{}", messages()))?;
        Ok(agent)
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !self.socket.exists() {
            if let Some(status) = self.child.try_wait().context("wait for the agent")? {
                bail!("the agent ended at its start with {status}");
            }
            if Instant::now() > deadline {
                bail!("the agent made no socket within {} s", START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the agent answers to a GET, asked as a user would.
    pub(crate) fn query(&self, path: &str) -> Result<Value> {
        let answer = process::output(Command::new(&self.program).args(["query", path, "--socket"]).arg(&self.socket))?;
        serde_json::from_str(&answer).with_context(|| format!("the agent's answer to {path} is not JSON"))
    }

    /// Ends the agent as a service manager would.
    pub(crate) fn stop(mut self) -> Result<()> {
        process::signal(&self.child, libc::SIGTERM)?;
        match process::wait(&mut self.child, STOP_LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the agent ended with {status} after SIGTERM"),
            None => bail!("the agent did not end within {} s of SIGTERM", STOP_LIMIT.as_secs()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
