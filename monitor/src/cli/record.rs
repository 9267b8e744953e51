//! `monitor record`: the agent without a console, for the sake of its recording.

use super::{run::run_agent, settings::Settings};
use crate::units::parse_duration;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Where to record when nothing says so.
const DEFAULT_PATH: &str = "monitor.rec";

/// Record what the agent reads, to be asked later. It is `monitor run` without a console.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo monitor record --for 10m night.rec              ten minutes, to a file
  sudo monitor record /var/lib/monitor/                until Ctrl-C, to a directory that keeps a day, or 256 MiB
  sudo monitor record --set record.keep=7d --set record.max_bytes=2GiB /var/lib/monitor/
  monitor query --from night.rec --at=-30s '/v1/trees?sort=page_faults.per_second'

A file that is there already is continued if it is a recording. Only root may read what is written, as command lines may
hold secrets.")]
pub(super) struct Arguments {
    /// A file, or a directory (a name that ends with a slash) [default: record.path, or else monitor.rec]
    #[arg(value_name = "FILE|DIR", conflicts_with = "record")]
    path: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// End after this time, such as 10s or 5m.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    run_for: Option<Duration>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.settings.load()?.config;
    config.run_for = arguments.run_for;
    config.console = false;
    let path = arguments.path.as_deref().map(|path| path.to_string_lossy().into_owned());
    config.record.path = path.or(config.record.path).or_else(|| Some(DEFAULT_PATH.to_owned()));
    run_agent(config)
}
