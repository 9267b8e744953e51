//! `cargo xtask bench`: what the agent costs, against the limits it promises. One file per benchmark; `agent_process`
//! starts and stops the agent for those that need one, `crowd` and `population` the processes it watches, `statistics` judges, `table`
//! prints.

mod agent;
mod agent_process;
mod crowd;
mod loopback;
mod population;
mod probes;
mod recording;
mod scale;
mod scratch;
mod slowdown;
mod statistics;
mod table;
mod turns;

use crate::{process, workspace};
use anyhow::{Result, bail};

pub(crate) use crowd::sleep_and_work;
pub(crate) use population::{Household, live};

/// The benchmarks. Each fails when a limit is broken, and all need root.
#[derive(clap::Subcommand)]
pub(crate) enum Benchmark {
    Probes(probes::Options),
    Slowdown(slowdown::Options),
    Turns(turns::Options),
    Agent(agent::Options),
    Recording(recording::Options),
    Scale(scale::Options),
}

pub(crate) fn run(benchmark: &Benchmark) -> Result<()> {
    workspace::require_supported_machine()?;
    if !process::is_root() {
        bail!(
            "the benchmarks load kernel programs: run them as root, for example `sudo env PATH=\"$PATH\" cargo xtask bench …`"
        );
    }
    match benchmark {
        Benchmark::Probes(options) => probes::run(options),
        Benchmark::Slowdown(options) => slowdown::run(options),
        Benchmark::Turns(options) => turns::run(options),
        Benchmark::Agent(options) => agent::run(options),
        Benchmark::Recording(options) => recording::run(options),
        Benchmark::Scale(options) => scale::run(options),
    }
}
