//! The test's side of the `workload` program: one line in, one line of JSON out. Between two lines it sleeps in read(2)
//! and does nothing, so what the agent counts then is final.

use crate::agent::{built, end, send_signal};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

/// A process that does as it is told and counts it. Killed on drop.
#[derive(Debug)]
pub struct Workload {
    child: Child,
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// No binary, or it ended.
    pub fn start() -> Result<Self> {
        Self::start_by(Command::new(binary()?))
    }

    /// As [`Workload::start`], by a command for its program, which may say where it is and whose it is to be.
    ///
    /// # Errors
    /// As [`Workload::start`].
    pub fn start_by(mut command: Command) -> Result<Self> {
        let mut child = command
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the workload")?;
        let commands = child.stdin.take().context("the workload has no standard input")?;
        let reports = BufReader::new(child.stdout.take().context("the workload has no standard output")?);
        let mut workload = Self { child, commands, reports };
        workload.receive().context("the workload does not start")?;
        Ok(workload)
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it do one thing and gives its report.
    ///
    /// # Errors
    /// It could not do it, or ended.
    pub fn run(&mut self, command: &str) -> Result<Value> {
        self.send(command)?;
        self.receive().with_context(|| format!("the workload failed at `{command}`"))
    }

    /// Lets it begin, without waiting for the report.
    ///
    /// # Errors
    /// It ended.
    pub fn send(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands, "{command}").with_context(|| format!("the workload does not take `{command}`"))
    }

    /// Waits for its report.
    ///
    /// # Errors
    /// It could not do it, or ended.
    pub fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.reports.read_line(&mut line)? > 0, "it ended");
        let report: Value = serde_json::from_str(&line).with_context(|| format!("no JSON: {line:?}"))?;
        match report.get("error") {
            Some(error) => bail!("{error}"),
            None => Ok(report),
        }
    }

    /// Waits for its report, for at most so long.
    ///
    /// # Errors
    /// It could not do it, or ended.
    pub fn receive_soon(&mut self, patience: Duration) -> Result<Option<Value>> {
        if self.reports.buffer().is_empty() {
            let mut poll = libc::pollfd { fd: self.reports.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, as the count says.
            let ready = unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) };
            if ready == 0 {
                return Ok(None);
            }
        }
        self.receive().map(Some)
    }

    /// Waits for its end, which must have been brought about.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait for the workload")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        send_signal(self.pid(), signal)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            end(&mut self.child);
        }
    }
}

/// Path of the `workload` program, for tests that start it in another way.
///
/// # Errors
/// It is not built.
pub fn binary() -> Result<PathBuf> {
    built("workload", "WORKLOAD_BIN")
}
