//! What the kernel's own clock says that the agent and its programs took of one run: an account that other load on the
//! machine does not disturb, and that knows nothing of caches.

use super::{SETTLING_TIME, agent_process::Agent, workload::Workload};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{
    fmt, io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    time::Instant,
};

/// Of one run of a workload.
pub(super) struct Account {
    run_seconds: f64,
    /// The dearest first.
    programs: Vec<Program>,
    agent_seconds: f64,
}

/// All runs of one program on all processors.
struct Program {
    name: String,
    /// The measuring itself included.
    seconds: f64,
    runs: u64,
}

/// So many programs are told by their names.
const NAMED: usize = 3;

/// `BPF_ENABLE_STATS` of bpf(2), and the only kind there is.
const ENABLE_STATS: libc::c_long = 32;
const RUN_TIME: u32 = 0;

/// Runs a workload once, with the agent, while the kernel takes the time of programs.
pub(super) fn take(workload: &mut Workload, agent: &Path, scratch: &Path) -> Result<Account> {
    let _statistics = enable_statistics().context("cannot have the kernel measure its programs")?;
    let agent = Agent::start(agent, scratch)?;
    std::thread::sleep(SETTLING_TIME);
    let (begun, before) = (Instant::now(), agent.query("/v1/health")?);
    workload.run()?;
    let (run, after) = (begun.elapsed(), agent.query("/v1/health")?);
    agent.stop()?;
    let (before, after) = (&before["cost"], &after["cost"]);
    let account = Account {
        run_seconds: run.as_secs_f64(),
        programs: programs_between(before, after)?,
        agent_seconds: number(after, "cpu_seconds_total")? - number(before, "cpu_seconds_total")?,
    };
    ensure!(account.runs() > 0, "the agent tells of no runs of its programs");
    Ok(account)
}

impl Account {
    /// Programs on all processors, to the length of the run. A run on several processors loses less.
    pub(super) fn programs_percent(&self) -> f64 {
        100.0 * self.seconds() / self.run_seconds
    }

    fn seconds(&self) -> f64 {
        self.programs.iter().map(|program| program.seconds).sum()
    }

    fn runs(&self) -> u64 {
        self.programs.iter().map(|program| program.runs).sum()
    }

    /// The agent's own processor time, to the length of the run.
    pub(super) fn agent_percent(&self) -> f64 {
        100.0 * self.agent_seconds / self.run_seconds
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, agent) = (self.programs_percent(), self.agent_percent());
        let (seconds, runs) = (self.run_seconds, self.runs());
        let mean_ns = 1e9 * self.seconds() / runs as f64;
        write!(f, "by the kernel's clock programs took {programs:.2} % and the agent {agent:.2} % of a run of ")?;
        write!(f, "{seconds:.2} s ({runs} runs of {mean_ns:.0} ns, measuring included; most:")?;
        for Program { name, seconds, runs } in self.programs.iter().take(NAMED) {
            write!(
                f,
                " {name} {:.2} %, {runs} of {:.0} ns;",
                100.0 * seconds / self.run_seconds,
                1e9 * seconds / *runs as f64
            )?;
        }
        f.write_str(")")
    }
}

/// For as long as it is open, the kernel measures its programs.
fn enable_statistics() -> io::Result<OwnedFd> {
    let kind = RUN_TIME;
    // SAFETY: the attribute is as long as it says, and is only read.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, ENABLE_STATS, &raw const kind, size_of_val(&kind)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What each program that ran took between two answers of `/v1/health`.
fn programs_between(before: &Value, after: &Value) -> Result<Vec<Program>> {
    let list = |cost: &Value| cost["programs"].as_array().cloned().context("/v1/health tells no cost.programs");
    let mut programs = Vec::new();
    for (before, after) in list(before)?.iter().zip(&list(after)?) {
        ensure!(before["name"] == after["name"], "the agent's programs changed while a workload ran");
        let grown = |name| Ok::<_, anyhow::Error>(number(after, name)? - number(before, name)?);
        let name = after["name"].as_str().context("a program of /v1/health has no name")?.to_owned();
        let (seconds, runs) = (grown("measured_seconds")?, grown("measured_runs")? as u64);
        programs.push(Program { name, seconds, runs });
    }
    programs.retain(|program| program.runs > 0);
    programs.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(programs)
}

fn number(from: &Value, name: &str) -> Result<f64> {
    from[name].as_f64().with_context(|| format!("/v1/health tells no {name}"))
}
