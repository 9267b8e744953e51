//! A program that is run for each alert.

use super::{Notice, Sink, TRY_FOR, worker::Failure};
use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How often to look whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs a program.
pub(super) struct Exec {
    program: PathBuf,
}

impl Exec {
    pub(super) fn new(program: &str) -> Self {
        Self { program: PathBuf::from(program) }
    }
}

impl Sink for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    /// It gets the alert as JSON on standard input, and in its environment what a shell script wants first. What it writes goes
    /// where the agent's log goes. One that does not end in time is killed.
    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        let shown = self.program.display();
        let whole = notice.json();
        let word = |name: &str| whole[name].as_str().unwrap_or_default().to_owned();
        let mut command = Command::new(&self.program);
        // It ends with this thread: nobody would look after it.
        // SAFETY: between fork and exec only prctl is called, which may be.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command
            .env("MONITOR_ALERT_RULE", word("rule"))
            .env("MONITOR_ALERT_STATE", word("state"))
            .env("MONITOR_ALERT_SEVERITY", word("severity"))
            .env("MONITOR_ALERT_SUMMARY", word("summary"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Failure::later(format!("{shown}: {error}")))?;
        if let Some(mut input) = child.stdin.take() {
            // It need not read it; a pipe has room for all of it, so that this does not wait.
            let mut line = whole.to_string();
            line.push('\n');
            let _ = input.write_all(&line.as_bytes()[..line.len().min(PIPE)]);
        }
        let begun = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(Failure::later(format!("{shown}: {status}"))),
                Ok(None) if begun.elapsed() < TRY_FOR => thread::sleep(LOOK_EVERY),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Failure::later(format!("{shown} did not end within {} s", TRY_FOR.as_secs())));
                }
                Err(error) => return Err(Failure::later(format!("{shown}: {error}"))),
            }
        }
    }
}

/// What a pipe has room for (pipe(7)); no alert comes near it.
const PIPE: usize = 64 << 10;
