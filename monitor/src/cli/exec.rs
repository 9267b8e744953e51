//! `monitor exec`: an agent for one command, and what became of its memory.
//!
//! The command's process is made first and held (`command`), until the agent in this process has attached everything. The story
//! (`story`) reads the agent's snapshots along, so that nothing is kept of a command that runs for days. After the command's end
//! the agent takes one more snapshot, which has the last of what the kernel counted.

mod command;
mod story;
mod told;

use super::{analyze::FailOn, exit, run::drive, settings::Settings};
use crate::{
    agent::{self, Companion},
    config::Config,
    ids::Tgid,
    picture::Picture,
};
use anyhow::{Context as _, bail};
use command::{Ended, Held};
use std::{
    ffi::OsString,
    fs::{File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Instant, SystemTime},
};
use story::{Story, Told};
use tokio::sync::{oneshot, watch};
use told::Run;

/// Exit codes of shells for what cannot be run.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Run a command, and tell what became of its memory: of its process and of all that descend from it.
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("socket", |socket| socket.help("Where the agent listens meanwhile, instead of in a directory of its own")),
    mut_arg("quiet", |quiet| quiet.hide(true)),
    mut_arg("log_interval", |interval| interval.hide(true)),
    after_help = "\
The command begins once everything is attached, with the input, output, environment and directory of this one. At its end, the \
story goes to standard error: memory, page faults, I/O, requests and processes of the command and of all that descends from it, \
and the verdict that `monitor analyze` would give. A verdict takes 20 ticks, 13 seconds, and 500 requests or without any 10 \
minutes.

Ctrl-C is the command's; SIGTERM and SIGHUP are passed on to it. Where monitor is killed, the command goes on.

Examples:
  sudo monitor exec -- make -j8                              how much memory a build takes
  sudo monitor exec --fail-on leak -- ./soak-test.sh         in CI: exits with 4 where something leaks
  sudo monitor exec --tick 100ms --json story.json -- python3 train.py
  sudo monitor exec -- runuser -u me -- ./server --port 80   as another user
  sudo monitor exec --record night.rec -- ./server           and ask later what happened, when and where

Exit codes: the command's own, or 128 and the signal that ended it; 4 where it succeeded, but there is what --fail-on names; 127 \
where there is no such command, and 126 where it cannot be executed; 1 or 2 where it was not begun, as nothing could be watched."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Exit with 4 where one of the command's process trees leaks, or with "growing" where one grows at all.
    #[arg(long, value_name = "VERDICT")]
    fail_on: Option<FailOn>,
    /// Write the story to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The command, with its arguments.
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { settings, fail_on, json, command } = arguments;
    let directory = tempfile::Builder::new().prefix("monitor-").permissions(Permissions::from_mode(0o700)).tempdir();
    let directory = directory.context("cannot create a directory for the socket")?;
    let mut config = settings.load_aside(&directory.path().join("monitor.sock"))?.config;
    config.console = false;
    // What becomes of the command is told at its end, and the node's own agent tells of the node.
    config.alerts.enabled = false;
    config.advice.enabled = false;
    let json = json.map(|path| Json::create(&path)).transpose()?;
    // Before there is any other thread.
    let held = Held::fork(&command).context("cannot make a process for the command")?;
    let (pid, tick) = (held.pid(), config.tick);
    let watched = match drive(config, async |config, claims, servers| watch(held, config, claims, servers).await)? {
        Ok(watched) => watched,
        Err(refusal) => {
            let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
            eprintln!("monitor: cannot run {program:?}: {refusal}");
            return Ok(ExitCode::from(code_of(&refusal)));
        }
    };
    let Watched { start, duration, ended, told } = watched;
    let run = Run { command, pid, start, duration, ended, tick, fail_on, told };
    // Who does not read it has the exit code.
    let _ = io::stderr().write_all(run.text().as_bytes());
    let code = match run.code() {
        0 if run.failed() => exit::FOUND,
        code => code,
    };
    match json.map(|json| json.write(&run)).transpose() {
        Err(error) if code == 0 => return Err(error),
        Err(error) => log::error!("{error:#}"),
        Ok(_) => {}
    }
    Ok(ExitCode::from(code))
}

/// The file for programs, which is made before the command begins: no story is lost for want of a directory.
struct Json {
    path: PathBuf,
    file: File,
}

impl Json {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(mut self, run: &Run) -> anyhow::Result<()> {
        let written = self.file.write_all(run.json()?.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A command that has run.
struct Watched {
    start: SystemTime,
    duration: std::time::Duration,
    ended: Ended,
    told: Told,
}

/// Runs the agent, and the command beside it. Inside, why the process did not become the command.
async fn watch(
    held: Held,
    config: Config,
    claims: agent::Claims,
    servers: tokio::runtime::Handle,
) -> anyhow::Result<Result<Watched, io::Error>> {
    let (ready, pictures) = oneshot::channel();
    let (end, told_to_end) = oneshot::channel();
    let regression = config.regression;
    let agent = agent::run_beside(Companion { ready, end: told_to_end }, config, claims, &servers);
    let command = async {
        // Where the agent could not start, it says why.
        let Ok(pictures) = pictures.await else { return Ok(None) };
        accompany(held, regression, pictures, end).await.map(Some)
    };
    let (agent, command) = tokio::join!(agent, command);
    match command? {
        None => {
            agent?;
            bail!("the agent ended before the command began")
        }
        Some(done) => {
            if let Err(error) = agent {
                log::error!("{error:#}");
            }
            Ok(done)
        }
    }
}

/// Lets the command begin, and reads along until the snapshot after its end.
async fn accompany(
    held: Held,
    regression: crate::detect::Settings,
    mut pictures: watch::Receiver<Arc<Picture>>,
    end: oneshot::Sender<()>,
) -> anyhow::Result<Result<Watched, io::Error>> {
    let first = Arc::clone(&pictures.borrow_and_update().snapshot);
    let story = Story::begin(regression, Tgid(std::process::id()), Tgid(held.pid()), first);
    let mut story = story.context("the agent does not see the command's process, so it was not begun")?;
    let (start, clock) = (SystemTime::now(), Instant::now());
    let mut command = held.start()?;
    let ended = {
        let ended = command.ended();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => break ended.context("cannot wait for the command")?,
                Ok(()) = pictures.changed() => story.take(Arc::clone(&pictures.borrow_and_update().snapshot)),
            }
        }
    };
    let duration = clock.elapsed();
    // It takes one more snapshot.
    drop(end);
    while pictures.changed().await.is_ok() {
        story.take(Arc::clone(&pictures.borrow_and_update().snapshot));
    }
    Ok(match command.refusal() {
        Some(refusal) => Err(refusal),
        None => Ok(Watched { start, duration, ended, told: story.end() }),
    })
}

/// As shells have it.
fn code_of(refusal: &io::Error) -> u8 {
    if refusal.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE }
}
