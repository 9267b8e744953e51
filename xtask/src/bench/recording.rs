//! `cargo xtask bench recording`: what a recording takes on disk and of the processor.

use super::{
    agent_process::{self, Agent},
    crowd::Crowd,
    scratch::Scratch,
    table,
};
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Measure what a recording takes among busy processes: bytes and processor time for each snapshot
///
/// Fails above its limits: 16 KiB a snapshot, 1 ms of one core.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Processes around the agent, each waking four times a second
    #[arg(long, default_value_t = 200)]
    processes: usize,
    /// Seconds to measure for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure this agent instead of a release build
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

const LIMIT_BYTES: f64 = 16.0 * 1024.0;
const LIMIT_MILLISECONDS: f64 = 1.0;
/// The checkpoint is written by then.
const SETTLING_TIME: Duration = Duration::from_secs(3);
const SECONDS_A_DAY: f64 = 86_400.0;

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = options.program.clone().map_or_else(agent_process::build, Ok)?;
    let scratch = Scratch::new("bench-recording")?;
    let crowd = Crowd::start(options.processes)?;
    let path = scratch.path().join("bench.rec");
    let agent = Agent::start_with(&program, scratch.path(), &[OsStr::new("--record"), path.as_os_str()])?;
    eprintln!("recording {} processes for {} s", options.processes, options.seconds);
    std::thread::sleep(SETTLING_TIME);
    let before = Reading::take(&agent, &path)?;
    std::thread::sleep(Duration::from_secs(options.seconds));
    let after = Reading::take(&agent, &path)?;
    agent.stop()?;
    drop(crowd);

    let snapshots = after.snapshots - before.snapshots;
    let bytes = (after.bytes - before.bytes) / snapshots;
    let milliseconds = 1000.0 * (after.cpu_seconds - before.cpu_seconds) / snapshots;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let day = bytes * SECONDS_A_DAY / f64::from(1 << 20);
    print!(
        "{}",
        table::render(&[
            row("cost", "measured".to_owned()),
            row("file at first, with its checkpoint", format!("{:.1} KiB", before.bytes / 1024.0)),
            row("each snapshot", format!("{:.2} KiB", bytes / 1024.0)),
            row("a day of them, one a second", format!("{day:.0} MiB")),
            row("CPU time of the thread, each snapshot", format!("{milliseconds:.2} ms")),
            row("samples lost", format!("{:.0}", after.lost)),
        ])
    );
    if !(bytes <= LIMIT_BYTES && milliseconds <= LIMIT_MILLISECONDS && after.lost == 0.0) {
        bail!("a recording takes more than its limits allow, or lost samples");
    }
    Ok(())
}

/// How the recording stands.
struct Reading {
    snapshots: f64,
    lost: f64,
    bytes: f64,
    cpu_seconds: f64,
}

impl Reading {
    fn take(agent: &Agent, path: &Path) -> Result<Self> {
        let health = agent.query("/v1/health")?;
        let told = |name: &str| {
            health["recording"][name].as_f64().with_context(|| format!("/v1/health tells no recording.{name}"))
        };
        let bytes = fs::metadata(path).with_context(|| format!("no recording {}", path.display()))?.len() as f64;
        Ok(Self {
            snapshots: told("snapshots_total")?,
            lost: told("lost_samples_total")?,
            bytes,
            cpu_seconds: recorder_seconds(agent.pid())?,
        })
    }
}

/// Processor time of the thread that writes the recording.
fn recorder_seconds(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
        let task = task.with_context(|| tasks.clone())?.path();
        // A thread may end while we look.
        let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
        if read("comm").trim() == "recorder" {
            // Time on a processor in nanoseconds, then two other numbers (Documentation/scheduler/sched-stats.rst): the
            // clock ticks of its stat are too coarse.
            let statistics = read("schedstat");
            let first = statistics.split(' ').next().and_then(|number| number.parse::<f64>().ok());
            return Ok(first.context("the kernel tells no processor time in schedstat")? / 1e9);
        }
    }
    bail!("the agent has no thread that records")
}
