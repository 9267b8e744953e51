//! `monitor doctor`: what this host offers, and what the agent would make of it.

use super::{exit, settings::Source, written};
use crate::doctor;
use std::{
    io::{self, Write as _},
    process::ExitCode,
};

/// Width where there is no terminal.
const PLAIN_WIDTH: usize = 120;

/// Show what this kernel offers, and by which rung each source would be attached.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits with 3 when this kernel can serve no source at all. Nothing is left attached.")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(&arguments.source.load()?.config)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.render(terminal_size::terminal_size().map_or(PLAIN_WIDTH, |(width, _)| usize::from(width.0)))
    };
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(if report.serves_nothing() { ExitCode::from(exit::UNSUPPORTED) } else { ExitCode::SUCCESS })
}
