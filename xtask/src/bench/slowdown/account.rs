//! What the kernel's own clock says that the agent and its programs took of one run: an account that other load on the
//! machine does not disturb, and that knows nothing of caches.

use super::{agent_process::Agent, run_settled, workload::Workload};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{
    fmt, io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
};

/// Of one run of a workload.
pub(super) struct Account {
    run_seconds: f64,
    /// Of all runs of all programs on all processors, the measuring itself included.
    programs_seconds: f64,
    program_runs: u64,
    agent_seconds: f64,
}

/// `BPF_ENABLE_STATS` of bpf(2), and the only kind there is.
const ENABLE_STATS: libc::c_long = 32;
const RUN_TIME: u32 = 0;

/// Runs a workload once, with the agent, while the kernel takes the time of programs.
pub(super) fn take(workload: &mut Workload, agent: &Path, scratch: &Path) -> Result<Account> {
    let _statistics = enable_statistics().context("cannot have the kernel measure its programs")?;
    let agent = Agent::start(agent, scratch)?;
    let before = agent.query("/v1/health")?;
    let run = run_settled(workload)?;
    let after = agent.query("/v1/health")?;
    agent.stop()?;
    let grown = |of: &dyn Fn(&Value) -> Result<f64>| Ok::<_, anyhow::Error>(of(&after)? - of(&before)?);
    let account = Account {
        run_seconds: run.as_secs_f64(),
        programs_seconds: grown(&|health| over_programs(health, "measured_seconds"))?,
        program_runs: grown(&|health| over_programs(health, "measured_runs"))? as u64,
        agent_seconds: grown(&|health| number(&health["cost"], "cpu_seconds_total"))?,
    };
    ensure!(account.program_runs > 0, "the agent tells of no runs of its programs");
    Ok(account)
}

impl Account {
    /// Programs on all processors, to the length of the run. A run on several processors loses less.
    pub(super) fn programs_percent(&self) -> f64 {
        100.0 * self.programs_seconds / self.run_seconds
    }

    /// The agent's own processor time, to the length of the run.
    pub(super) fn agent_percent(&self) -> f64 {
        100.0 * self.agent_seconds / self.run_seconds
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, agent) = (self.programs_percent(), self.agent_percent());
        let Self { run_seconds, program_runs, .. } = self;
        let mean_ns = 1e9 * self.programs_seconds / *program_runs as f64;
        write!(f, "by the kernel's clock programs took {programs:.2} % and the agent {agent:.2} % of a run of ")?;
        write!(f, "{run_seconds:.2} s ({program_runs} runs of {mean_ns:.0} ns, measuring included)")
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

fn over_programs(health: &Value, name: &str) -> Result<f64> {
    let programs = health["cost"]["programs"].as_array().context("/v1/health tells no cost.programs")?;
    programs.iter().map(|program| number(program, name)).sum()
}

fn number(from: &Value, name: &str) -> Result<f64> {
    from[name].as_f64().with_context(|| format!("/v1/health tells no {name}"))
}
