//! `monitor config`: the configuration that holds, and where each value came from.

use super::{settings::Settings, written};
use std::{
    io::{self, Write as _},
    process::ExitCode,
};

/// Print the configuration that would hold, as a TOML file with the origin of each value.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  monitor config > monitor.toml                        a file to start from
  monitor config --config monitor.toml --tick 500ms    what `monitor run` would make of these flags

Any setting can also come from a variable: block_io.slow from MONITOR_BLOCK_IO_SLOW, tick from MONITOR_TICK.")]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Print JSON, with the variable that sets each value.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let effective = arguments.settings.load()?;
    let text = if arguments.json { format!("{:#}\n", effective.to_json()) } else { effective.to_toml() };
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}
