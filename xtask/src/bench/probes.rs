//! `cargo xtask bench probes`: hands over to the benchmark of that name, which stands beside the integration tests
//! because it loads kernel programs as they do.

use crate::process;
use anyhow::Result;

/// Measure the mean nanoseconds per event of each kernel program, next to an empty one on the same hook
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Measure the programs of one source only
    #[arg(long, value_name = "SOURCE")]
    only: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = process::cargo();
    command.args(["bench", "--package", "tests", "--bench", "probes"]);
    if options.json {
        command.arg("--quiet");
    }
    command.arg("--");
    if options.json {
        command.arg("--json");
    }
    if let Some(source) = &options.only {
        command.args(["--only", source]);
    }
    process::run(&mut command)
}
