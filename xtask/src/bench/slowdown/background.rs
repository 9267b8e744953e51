//! A program that runs beside a measurement, such as the server that a workload talks to: private, waited for, and ended with it.

use crate::process;
use anyhow::{Context, Result, bail};
use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ended by its own signal when dropped; killed when that does not help.
pub(crate) struct Background {
    child: Child,
    stop_signal: i32,
}

impl Background {
    /// Starts a program and waits until it is ready.
    pub(crate) fn start(command: &mut Command, stop_signal: i32, mut is_ready: impl FnMut() -> bool) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut started = Self { child: child.with_context(|| format!("cannot start {name}"))?, stop_signal };
        let deadline = Instant::now() + START_LIMIT;
        while !is_ready() {
            if let Some(status) = started.child.try_wait().with_context(|| format!("wait for {name}"))? {
                bail!("{name} ended at its start with {status}");
            }
            if Instant::now() > deadline {
                bail!("{name} is not ready after {} s", START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let asked = process::signal(&self.child, self.stop_signal);
        if asked.is_err() || !matches!(process::wait(&mut self.child, STOP_LIMIT), Ok(Some(_))) {
            // Both fail only where it has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A loopback port that nobody listens on at this moment.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback device")?;
    Ok(listener.local_addr().context("the port just bound")?.port())
}
