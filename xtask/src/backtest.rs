//! `cargo xtask backtest`: what each policy of advice would have cost. The work is done by a program of its own
//! (`bin/backtest.rs`), which takes the agent's library.

use crate::process;
use anyhow::Result;

/// Count what each policy of advice would have cost: kills, memory set aside for nothing, changes
///
/// Every life of the scorecard's corpus, generated and recorded, and some of a week or two are replayed through each policy, as `monitor
/// recommend --backtest` does. One half is there to improve policies by; tables are of both, of parts and of all, and of each recorded life by
/// itself, with the kills at a ladder of limits that never change.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only series of these families, by the beginning of their names
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// A line for each generated life, too
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = process::cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "xtask",
        "--features",
        "backtest",
        "--bin",
        "backtest",
        "--",
    ]);
    command.args(["--only", &options.only]);
    if options.all {
        command.arg("--all");
    }
    process::run(&mut command)
}
