//! The agent as a black box: a program that is started, asked through its socket, and stopped.

use crate::{
    clock::{PATIENCE, boot_ns, wait_until},
    http::{self, Answer},
    json, proc,
    workload::Workload,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};
use tempfile::TempDir;

/// Variables that are not settings, which the agent under test keeps.
const KEPT_VARIABLES: [&str; 2] = ["MONITOR_BIN", "MONITOR_OBJECTS"];
/// How often something is measured in which the kernel skipped runs of programs.
pub const TRIES: u32 = 12;
/// The tick of the tests, unless they give one.
const TICK: [&str; 2] = ["--tick", "200ms"];

/// A running agent with a socket of its own. Killed on drop; tests end it by [`Agent::stop`].
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
    errors: PathBuf,
    _directory: TempDir,
}

/// What a workload did between two settled snapshots, by its own account and by the agent's.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The workload's account.
    pub made: Value,
    /// The process before, as the agent has it.
    pub before: Value,
    /// The process after.
    pub after: Value,
    /// Page faults in between by /proc/PID/stat.
    pub proc_faults: u64,
}

impl Measured {
    /// Growth of one of the process's counters.
    ///
    /// # Errors
    /// As [`json::grown`].
    pub fn grown(&self, name: &str) -> Result<u64> {
        json::grown(&self.before, &self.after, name)
    }
}

impl Agent {
    /// Starts one, with these flags of `monitor run`, and waits until it answers.
    ///
    /// # Errors
    /// No binary, or the agent ended; its own words are in the error.
    pub fn start(flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("monitor.sock");
        Self::start_in(directory, socket, command()?, flags)
    }

    /// As [`Agent::start`], with variables in its environment.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("monitor.sock");
        let mut command = command()?;
        command.envs(variables.iter().copied());
        Self::start_in(directory, socket, command, flags)
    }

    /// As [`Agent::start`], on a given socket.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_on(socket: &Path, flags: &[&str]) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, socket.to_owned(), command()?, flags)
    }

    /// As [`Agent::start`], with at most so many open files: the hard limit, which it cannot raise.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_limited(files: u64, flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("monitor.sock");
        let mut command = command()?;
        let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
        let set = move || {
            // SAFETY: a valid limit.
            let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec only setrlimit is called, which may be.
        unsafe { command.pre_exec(set) };
        Self::start_in(directory, socket, command, flags)
    }

    /// As [`Agent::start`], by a program that becomes the agent after it has changed what the agent inherits, such as
    /// setpriv(1) or env(1). Every user may make sockets in the directory, so that it may be another user's, too.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_through(wrapper: &[&str], flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
        let socket = directory.path().join("monitor.sock");
        Self::start_in(directory, socket, command_through(wrapper)?, flags)
    }

    /// As [`Agent::start`], with its standard output in a file: the others say nothing there.
    ///
    /// # Errors
    /// As [`Agent::start`]; or no such file can be made.
    pub fn start_into(output: &Path, flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("monitor.sock");
        let mut command = command()?;
        command.args(["run", "--socket"]).arg(&socket).stdout(File::create(output)?);
        Self::start_as(directory, socket, command, flags)
    }

    fn start_in(directory: TempDir, socket: PathBuf, mut command: Command, flags: &[&str]) -> Result<Self> {
        command.args(["run", "--socket"]).arg(&socket).arg("--quiet").stdout(Stdio::null());
        Self::start_as(directory, socket, command, flags)
    }

    /// Starts a command that has a subcommand, a socket and a standard output.
    fn start_as(directory: TempDir, socket: PathBuf, mut command: Command, flags: &[&str]) -> Result<Self> {
        let errors = directory.path().join("stderr");
        if !flags.contains(&TICK[0]) {
            command.args(TICK);
        }
        command.args(flags).stdin(Stdio::null()).stderr(File::create(&errors)?);
        let child = command.spawn().context("cannot start the agent")?;
        let mut agent = Self { child, socket, errors, _directory: directory };
        wait_until("the agent to answer", PATIENCE, || {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", agent.words());
            }
            Ok(agent.answers().then_some(()))
        })
        .with_context(|| format!("the agent said:\n{}", agent.words()))?;
        Ok(agent)
    }

    fn answers(&self) -> bool {
        let owner = || self.get("/v1/health").and_then(|health| json::count(&health, "pid"));
        self.socket.exists() && owner().is_ok_and(|pid| pid == u64::from(self.pid()))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it wrote to its standard error so far.
    pub fn words(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Lines of what it wrote to its standard error that warn or tell of errors, but for alerts, which are about others.
    pub fn complaints(&self) -> Vec<String> {
        let is_complaint = |line: &&str| {
            let words = ["monitor: warn: ", "monitor: error: "].iter().find_map(|level| line.strip_prefix(level));
            words.is_some_and(|words| !words.starts_with("[Resources]"))
        };
        self.words().lines().filter(is_complaint).map(str::to_owned).collect()
    }

    /// What its descriptors lead to; what was just closed is left out.
    ///
    /// # Errors
    /// It has ended.
    pub fn open_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).context("the agent has ended")?;
        Ok(entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect())
    }

    /// Asks, and expects JSON with status 200.
    ///
    /// # Errors
    /// No answer, another status, or no JSON.
    pub fn get(&self, target: &str) -> Result<Value> {
        let answer = self.answer(target)?;
        ensure!(answer.status == 200, "{target} answered {}: {}", answer.status, answer.body);
        serde_json::from_str(&answer.body).with_context(|| format!("{target} answered no JSON: {}", answer.body))
    }

    /// Asks, whatever the status.
    ///
    /// # Errors
    /// No answer.
    pub fn answer(&self, target: &str) -> Result<Answer> {
        http::get(&self.socket, target).with_context(|| format!("the agent said:\n{}", self.words()))
    }

    /// Waits for a snapshot that holds everything that happened before this call: the second one dated after it, as the
    /// first may have been begun before.
    ///
    /// # Errors
    /// The agent takes no more snapshots.
    pub fn settle(&self) -> Result<()> {
        let mut last = boot_ns();
        for _ in 0..2 {
            last = wait_until("a new snapshot", PATIENCE, || {
                let time = json::count(&self.get("/v1/processes?limit=1")?, "time_ns")?;
                Ok((time > last).then_some(time))
            })?;
        }
        Ok(())
    }

    /// Every process the agent tells of with that pid: several where it was used again.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn processes_with(&self, pid: u32) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/v1/processes?pid={pid}"))?;
        Ok(json::list(&answer, "processes")?.clone())
    }

    /// The process with that pid, in the newest snapshot.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn process(&self, pid: u32) -> Result<Value> {
        let mut found = self.processes_with(pid)?;
        ensure!(found.len() == 1, "{} processes with pid {pid}, not one: {found:?}", found.len());
        Ok(found.swap_remove(0))
    }

    /// All processes of the newest snapshot.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn processes(&self) -> Result<Vec<Value>> {
        Ok(json::list(&self.get("/v1/processes?limit=100000")?, "processes")?.clone())
    }

    /// The cgroup with that path, where there is one.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn cgroup(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.get("/v1/cgroups?limit=100000")?;
        Ok(json::list(&answer, "cgroups")?.iter().find(|c| c["path"] == path).cloned())
    }

    /// The block device of that name, where the agent has seen any of its I/O.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn block_device(&self, name: &str) -> Result<Option<Value>> {
        let answer = self.get("/v1/block_devices?limit=100000")?;
        Ok(json::list(&answer, "block_devices")?.iter().find(|d| d["name"] == name).cloned())
    }

    /// What became of one source.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn coverage(&self, source: &str) -> Result<Value> {
        Ok(json::at(&self.get("/v1/processes?limit=1")?, &format!("coverage.{source}"))?.clone())
    }

    /// Moments of a source so far, seen or lost: everything its programs tried to tell.
    ///
    /// # Errors
    /// As [`Agent::get`].
    pub fn moments(&self, source: &str) -> Result<Moments> {
        let coverage = self.coverage(source)?;
        Ok(Moments { seen: json::count(&coverage, "seen_total")?, lost: json::count(&coverage, "lost_total")? })
    }

    /// The recent events that fit.
    ///
    /// # Errors
    /// No answer, or a line that is no JSON.
    pub fn events(&self, fits: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let answer = self.answer("/v1/events")?;
        ensure!(answer.status == 200, "/v1/events answered {}: {}", answer.status, answer.body);
        let lines = answer.body.lines().map(|l| serde_json::from_str(l).with_context(|| format!("no JSON: {l}")));
        let events: Vec<Value> = lines.collect::<Result<_>>()?;
        Ok(events.into_iter().filter(fits).collect())
    }

    /// Waits for the first event that fits.
    ///
    /// # Errors
    /// It does not come.
    pub fn event(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(what, PATIENCE, || Ok(self.events(&fits)?.into_iter().next()))
    }

    /// Lets a workload do one thing, between two settled snapshots.
    ///
    /// Since Linux 7.0 a program can be preempted, and the kernel then skips it for a task that needs it meanwhile, and says
    /// so: what was skipped is told as lost. A measurement in which that happened is made again.
    ///
    /// # Errors
    /// Those of the agent and of the workload; or the kernel skips runs every time.
    pub fn measure(&self, workload: &mut Workload, command: &str) -> Result<Measured> {
        for _ in 0..TRIES {
            let skipped = self.skipped_runs()?;
            let measured = self.measure_once(workload, command)?;
            if self.skipped_runs()? == skipped || proc::kernel_release()?.0 < 7 {
                return Ok(measured);
            }
        }
        bail!("the kernel skipped runs of the programs in each of {TRIES} measurements")
    }

    /// Runs of its programs that the kernel skipped so far.
    fn skipped_runs(&self) -> Result<u64> {
        let answer = self.get("/v1/processes?limit=1")?;
        let sources = json::at(&answer, "coverage")?.as_object().context("no coverage")?;
        sources.values().map(|source| json::count(source, "lost.skipped_runs")).sum()
    }

    fn measure_once(&self, workload: &mut Workload, command: &str) -> Result<Measured> {
        self.settle()?;
        let (before, faults_before) = (self.process(workload.pid())?, proc::faults(workload.pid())?);
        let made = workload.run(command)?;
        let faults_after = proc::faults(workload.pid())?;
        self.settle()?;
        let after = self.process(workload.pid())?;
        Ok(Measured { made, before, after, proc_faults: faults_after - faults_before })
    }

    /// Stops it from reading its rings, without its knowing.
    ///
    /// # Errors
    /// It does not stop.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        wait_until("the agent to stand still", PATIENCE, || Ok((proc::state(self.pid())? == 'T').then_some(())))
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Ends it by SIGTERM and sees that it ended well.
    ///
    /// # Errors
    /// It did not end, or with another code than 0.
    pub fn stop(self) -> Result<()> {
        let status = self.end_by(libc::SIGTERM)?;
        ensure!(status.code() == Some(0), "the agent ended with {status} on SIGTERM");
        Ok(())
    }

    /// Ends it by any signal.
    ///
    /// # Errors
    /// It did not end.
    pub fn end_by(mut self, signal: i32) -> Result<ExitStatus> {
        self.signal(signal)?;
        let words = self.words();
        wait_until("the agent to end", PATIENCE, || Ok(self.child.try_wait()?))
            .with_context(|| format!("the agent said:\n{words}"))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        send_signal(self.pid(), signal).context("cannot signal the agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.words());
        }
        if let Ok(None) = self.child.try_wait() {
            end(&mut self.child);
        }
    }
}

/// Moments a source's programs tried to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// Received and understood.
    pub seen: u64,
    /// Lost, and known to be.
    pub lost: u64,
}

impl Moments {
    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self { seen: self.seen - before.seen, lost: self.lost - before.lost }
    }

    /// All of them.
    pub fn made(&self) -> u64 {
        self.seen + self.lost
    }
}

/// Runs the agent's binary to its end: for subcommands, and for starts that fail.
///
/// # Errors
/// No binary.
pub fn run(arguments: &[&str]) -> Result<Output> {
    run_with(arguments, &[])
}

/// As [`run`], with variables in its environment.
///
/// # Errors
/// As [`run`].
pub fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = command()?;
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().context("cannot start the agent")
}

/// Path of the agent's binary.
///
/// # Errors
/// It is not built.
pub fn binary() -> Result<PathBuf> {
    built("monitor", "MONITOR_BIN")
}

/// As [`run`], by a program that becomes the agent.
///
/// # Errors
/// As [`run`]; or no such program.
pub fn run_through(wrapper: &[&str], arguments: &[&str]) -> Result<Output> {
    let mut command = command_through(wrapper)?;
    command.args(arguments).stdin(Stdio::null());
    command.output().with_context(|| format!("cannot start the agent by {wrapper:?}"))
}

/// The agent's binary, without settings from this environment, to be started by the test itself.
///
/// # Errors
/// It is not built.
pub fn command() -> Result<Command> {
    Ok(without_settings(Command::new(binary()?)))
}

/// The same, as the last arguments of another program.
fn command_through(wrapper: &[&str]) -> Result<Command> {
    let (program, arguments) = wrapper.split_first().context("no program to start the agent by")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(binary()?);
    Ok(without_settings(command))
}

fn without_settings(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("MONITOR_") && !KEPT_VARIABLES.contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
}

/// A binary of this workspace: named by a variable, or of the same build as the running test.
pub(crate) fn built(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let test = env::current_exe().context("cannot tell where the test runs from")?;
    let beside = test.parent().and_then(Path::parent).context("the test runs from no build folder")?.join(name);
    let package = if name == "monitor" { name } else { "tests" };
    ensure!(beside.exists(), "no {}: build it with `cargo build -p {package}`, or set {variable}", beside.display());
    Ok(beside)
}

pub(crate) fn send_signal(pid: u32, signal: i32) -> Result<()> {
    let pid = i32::try_from(pid).context("not a pid")?;
    // SAFETY: kill takes two numbers and touches no memory.
    let result = unsafe { libc::kill(pid, signal) };
    ensure!(result == 0, "cannot send signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Kills a child that may live and leaves no zombie of it.
pub(crate) fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait().map(|_| ())) {
        eprintln!("cannot end process {}: {error}", child.id());
    }
}

/// How a process ended, in the words of the agent: exit code and signal, one of them none.
pub fn ending(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    (status.code(), status.signal())
}
