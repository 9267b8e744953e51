//! The command's process: made before anything else, held until the agent is ready, waited for.
//!
//! It is forked while this process is small and has one thread. So it inherits neither the limits that the agent raises nor its
//! memory, which the kernel would count into the command's peak (exec keeps the high-water mark of what was there before it), and
//! the kernel's records tell of all that it does.

use anyhow::Context as _;
use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitStatus},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A process that becomes the command when it is let go. Dropped, it ends and becomes nothing.
#[derive(Debug)]
pub(super) struct Held {
    pid: libc::pid_t,
    gate: PipeWriter,
    refusal: PipeReader,
}

/// A process that was let go.
#[derive(Debug)]
pub(super) struct Running {
    pid: libc::pid_t,
    refusal: PipeReader,
    signals: Signals,
}

/// What the command's user may send to this process.
#[derive(Debug)]
struct Signals {
    child: Signal,
    terminate: Signal,
    hangup: Signal,
    /// A terminal sends these to the command as well. They are listened to for not dying of them.
    _of_terminal: [Signal; 2],
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// Its exit code or signal.
    pub(super) status: ExitStatus,
    /// The most resident memory that a single process had, by the kernel's count (ru_maxrss): its own, or one of those that were
    /// waited for.
    pub(super) max_rss_bytes: u64,
}

/// What comes first.
enum Next {
    Child,
    PassOn(libc::c_int),
}

impl Held {
    /// Makes the process. To be called while this one has one thread only.
    pub(super) fn fork(command: &[OsString]) -> io::Result<Self> {
        let (opened, gate) = io::pipe()?;
        let (refusal, refuse) = io::pipe()?;
        // SAFETY: there is one thread, so the child may do whatever this process may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop((gate, refusal));
                become_command(command, opened, refuse)
            }
            pid => Ok(Self { pid, gate, refusal }),
        }
    }

    /// Its pid, which stays the command's.
    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Lets it become the command. From then on signals to this process are the command's.
    pub(super) fn start(mut self) -> anyhow::Result<Running> {
        let listen = |kind| signal(kind).context("listening for signals");
        let signals = Signals {
            child: listen(SignalKind::child())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            _of_terminal: [listen(SignalKind::interrupt())?, listen(SignalKind::quit())?],
        };
        match self.gate.write_all(&[1]) {
            // Somebody has ended it meanwhile, as Ctrl-C does: it is waited for like any other.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).context("cannot start it"),
            _ => {}
        }
        Ok(Running { pid: self.pid, refusal: self.refusal, signals })
    }
}

/// In the child: waits, and becomes the command.
fn become_command(command: &[OsString], mut opened: PipeReader, mut refuse: PipeWriter) -> ! {
    if let ([program, arguments @ ..], Ok(())) = (command, opened.read_exact(&mut [0])) {
        let error = Command::new(program).args(arguments).exec();
        let number = error.raw_os_error().unwrap_or(libc::EINVAL);
        let _ = refuse.write_all(&number.to_ne_bytes());
    }
    // SAFETY: ends the process, and leaves to its parent what the parent has to do at its own end.
    unsafe { libc::_exit(1) }
}

impl Running {
    /// Waits for its end. What asks this process to end is passed on to it.
    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = self.look()? {
                return Ok(ended);
            }
            match self.signals.next().await {
                Next::Child => {}
                Next::PassOn(signal) => self.send(signal),
            }
        }
    }

    /// Why it did not become the command; none where it did. To be asked after its end.
    pub(super) fn refusal(&mut self) -> Option<io::Error> {
        let mut number = [0; size_of::<i32>()];
        let told = self.refusal.read_exact(&mut number);
        told.is_ok().then(|| io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
    }

    fn look(&self) -> io::Result<Option<Ended>> {
        let mut status = 0;
        // SAFETY: all zeroes are a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both are there for the kernel to write to.
        match unsafe { libc::wait4(self.pid, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 => Ok(None),
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Some(Ended {
                status: ExitStatus::from_raw(status),
                // In KiB, see getrusage(2).
                max_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
            })),
        }
    }

    fn send(&self, signal: libc::c_int) {
        // SAFETY: takes numbers only. The pid is not used again before it is waited for.
        if unsafe { libc::kill(self.pid, signal) } != 0 {
            log::warn!("signal {signal} could not be passed on to the command: {}", io::Error::last_os_error());
        }
    }
}

impl Signals {
    async fn next(&mut self) -> Next {
        tokio::select! {
            _ = self.child.recv() => Next::Child,
            _ = self.terminate.recv() => Next::PassOn(libc::SIGTERM),
            _ = self.hangup.recv() => Next::PassOn(libc::SIGHUP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Builder;

    /// In the tests there are more threads than one; what the child does between fork and exec takes no lock.
    fn ended(command: &[&str]) -> (Ended, Option<io::Error>) {
        let command: Vec<OsString> = command.iter().map(Into::into).collect();
        let held = Held::fork(&command).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut running = held.start().unwrap();
            let ended = running.ended().await.unwrap();
            (ended, running.refusal())
        })
    }

    #[test]
    fn a_command_ends_as_it_will() {
        let (end, refusal) = ended(&["sh", "-c", "exit 7"]);
        assert_eq!((end.status.code(), refusal.map(|error| error.kind())), (Some(7), None));
        assert!(end.max_rss_bytes > 100 << 10, "{} bytes", end.max_rss_bytes);
        let (end, _) = ended(&["sh", "-c", "kill -9 $$"]);
        assert_eq!((end.status.code(), end.status.signal()), (None, Some(9)));
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let why = |command| ended(&[command]).1.map(|error| error.kind());
        assert_eq!(why("/no/such/command"), Some(io::ErrorKind::NotFound));
        assert_eq!(why("/etc/passwd"), Some(io::ErrorKind::PermissionDenied));
    }
}
