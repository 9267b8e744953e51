//! What the service manager is told, by a socket that stands in for systemd's. Started by env(1), so not in the virtual
//! machines.

use anyhow::{Context, Result, ensure};
use std::{
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, Instant},
};
use tests::{Agent, Machine, clock::PATIENCE, expect};

/// The watchdog's limit in these tests: the agent is to speak twice as often.
const LIMIT: Duration = Duration::from_millis(1600);

/// The other end of NOTIFY_SOCKET.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Result<Self> {
        Ok(Self(UnixDatagram::bind(path)?))
    }

    /// The next message, if it comes within `patience`.
    fn hear(&self, patience: Duration) -> Result<Option<String>> {
        let mut bytes = [0; 256];
        self.0.set_read_timeout(Some(patience))?;
        match self.0.recv(&mut bytes) {
            Ok(length) => Ok(Some(String::from_utf8(bytes[..length].to_vec())?.trim_end().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The first thread of a process, held by ptrace(2) while the others go on: in the agent, it runs the event loop.
struct HeldThread(i32);

impl HeldThread {
    fn hold(pid: u32) -> Result<Self> {
        let held = Self(i32::try_from(pid)?);
        held.trace(libc::PTRACE_SEIZE)?;
        held.trace(libc::PTRACE_INTERRUPT)?;
        // SAFETY: a null status is allowed: nothing is written.
        let stopped = unsafe { libc::waitpid(held.0, std::ptr::null_mut(), libc::__WALL) };
        ensure!(stopped == held.0, "thread {pid} does not stop: {}", std::io::Error::last_os_error());
        Ok(held)
    }

    fn release(&self) -> Result<()> {
        self.trace(libc::PTRACE_DETACH)
    }

    fn trace(&self, request: libc::c_uint) -> Result<()> {
        // SAFETY: none of the requests made here reads or writes memory of this process.
        let result = unsafe { libc::ptrace(request, self.0, 0, 0) };
        ensure!(result == 0, "ptrace({request}) of {}: {}", self.0, std::io::Error::last_os_error());
        Ok(())
    }
}

fn start(manager: &Path, limit: Option<Duration>) -> Result<Agent> {
    let socket = format!("NOTIFY_SOCKET={}", manager.display());
    let watchdog = limit.map(|limit| format!("WATCHDOG_USEC={}", limit.as_micros()));
    let mut wrapper = vec!["env", &socket];
    wrapper.extend(watchdog.as_deref());
    Agent::start_through(&wrapper, &[])
}

#[test]
fn it_is_told_of_readiness_of_life_and_of_the_end() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = Manager::listen(&path)?;
    let agent = start(&path, Some(LIMIT))?;
    expect::exactly("first message", manager.hear(PATIENCE)?.as_deref(), Some("READY=1"))?;
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        expect::exactly("message", manager.hear(PATIENCE)?.as_deref(), Some("WATCHDOG=1"))?;
        gaps.push(start.elapsed());
    }
    gaps.sort();
    // Not all of them: one is as long as the machine stands still.
    ensure!(gaps[2] < LIMIT * 3 / 4, "it speaks after {gaps:?}, too late for a limit of {LIMIT:?}");
    agent.stop()?;
    let mut last = None;
    while let Some(message) = manager.hear(Duration::from_millis(10))? {
        last = Some(message);
    }
    expect::exactly("last message", last.as_deref(), Some("STOPPING=1"))
}

#[test]
fn it_is_ready_only_once_the_socket_answers() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (path, socket) = (directory.path().join("notify"), directory.path().join("monitor.sock"));
    let manager = Manager::listen(&path)?;
    let mut agent = std::process::Command::new(tests::agent::binary()?)
        .args(["run", "--quiet", "--for", "5s", "--socket"])
        .arg(&socket)
        .env("NOTIFY_SOCKET", &path)
        .spawn()?;
    let first = manager.hear(PATIENCE)?.context("nothing was said")?;
    let answers = tests::http::get(&socket, "/v1/health");
    let status = agent.wait()?;
    expect::exactly("first message", first.as_str(), "READY=1")?;
    expect::exactly("status of the answer", answers?.status, 200)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[test]
fn an_agent_whose_loop_stands_still_falls_silent() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = Manager::listen(&path)?;
    let agent = start(&path, Some(LIMIT))?;
    expect::exactly("first message", manager.hear(PATIENCE)?.as_deref(), Some("READY=1"))?;
    let held = HeldThread::hold(agent.pid())?;
    while manager.hear(Duration::from_millis(10))?.is_some() {}
    expect::exactly("message while the loop stands still", manager.hear(2 * LIMIT)?, None)?;
    expect::exactly("status, by the threads that go on", agent.answer("/v1/health")?.status, 200)?;
    held.release()?;
    expect::exactly("message afterwards", manager.hear(PATIENCE)?.as_deref(), Some("WATCHDOG=1"))?;
    agent.stop()
}

#[test]
fn without_a_watchdog_it_does_not_chatter_and_a_lost_manager_is_no_failure() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = Manager::listen(&path)?;
    let agent = start(&path, None)?;
    expect::exactly("first message", manager.hear(PATIENCE)?.as_deref(), Some("READY=1"))?;
    expect::exactly("second message", manager.hear(2 * LIMIT)?, None)?;
    drop(manager);
    agent.stop()
}
