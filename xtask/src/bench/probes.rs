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
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = process::cargo();
    command.args(["bench", "--package", "tests", "--bench", "probes"]);
    if options.json {
        command.args(["--quiet", "--", "--json"]);
    }
    process::run(&mut command)
}
