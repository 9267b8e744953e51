//! The command line: one file per subcommand. Parse, build, run, exit code.

mod alerts;
mod analyze;
mod compare;
mod budget;
mod config;
mod doctor;
mod exec;
mod findings;
mod oom;
mod query;
mod recommend;
mod record;
mod run;
mod samples;
mod settings;

use crate::{config::Error as ConfigError, serve::ClaimError};
use clap::{Parser, Subcommand};
use std::{io::Write as _, process::ExitCode};

/// Exit codes, as `--help` explains them.
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const UNSUPPORTED: u8 = 3;
    pub(super) const FOUND: u8 = 4;
}

/// Shows which processes and cgroups of this machine fault pages, map memory and wait for disks.
///
/// The agent counts in the kernel, by eBPF, and answers over a Unix socket while it runs.
#[derive(Debug, Parser)]
#[command(name = "monitor", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  sudo monitor run                             run the agent and watch; Ctrl-C ends it
  sudo monitor run --quiet --tick 500ms        run it for others to ask, twice a second
  monitor query '/v1/trees?sort=page_faults.per_second&limit=5'
  monitor query '/v1/events?follow=true'       what happens, as it happens
  monitor findings                             who leaks memory, how fast, and when it will be at its limit
  monitor alerts                               who waits for disks, whose memory is short, which GPUs idle, and why
  monitor oom                                  why the kernel killed: whose limit, who grew, whom it hit
  monitor recommend                            what memory request and limit each container should get, and why
  monitor budget                               what a server's memory is made of, and how many workers fit its limit
  sudo monitor record --for 10m night.rec      record, and ask later: monitor query --from night.rec /v1/trees
  monitor analyze night.rec                    whose memory leaked meanwhile
  monitor compare before.rec after.rec         memory of two recordings, side by side
  sudo monitor exec --fail-on leak -- ./soak   tell what became of a command's memory; fail where it leaks
  monitor doctor                               what this kernel offers, and what is missing

Exit codes: 0 done, 1 failed at run time, 2 wrong usage or configuration; doctor: 3 this kernel can serve no source; analyze and \
exec: 4 there is what --fail-on names; exec: else the command's own, 127 where there is none, 126 where it cannot be executed.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Record(record::Arguments),
    Query(query::Arguments),
    Findings(findings::Arguments),
    Alerts(alerts::Arguments),
    Oom(oom::Arguments),
    Recommend(recommend::Arguments),
    Budget(budget::Arguments),
    Analyze(analyze::Arguments),
    Compare(compare::Arguments),
    Exec(exec::Arguments),
    Doctor(doctor::Arguments),
    Config(config::Arguments),
}

/// Runs the command line and tells its exit code.
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    start_log(matches!(command, Command::Run(_) | Command::Record(_)));
    let result = match command {
        Command::Run(arguments) => run::run(arguments),
        Command::Record(arguments) => record::run(arguments),
        Command::Query(arguments) => query::run(&arguments),
        Command::Findings(arguments) => findings::run(&arguments),
        Command::Alerts(arguments) => alerts::run(arguments),
        Command::Oom(arguments) => oom::run(&arguments),
        Command::Recommend(arguments) => recommend::run(arguments),
        Command::Budget(arguments) => budget::run(&arguments),
        Command::Analyze(arguments) => analyze::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::Exec(arguments) => exec::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Config(arguments) => config::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("monitor: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Which kind of failure an error is, by what lies at its root.
fn exit_code(error: &anyhow::Error) -> u8 {
    let is_usage = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<ConfigError>()
            || cause.is::<samples::Malformed>()
            || matches!(cause.downcast_ref(), Some(ClaimError::UnknownGroup { .. }))
    };
    if error.chain().any(is_usage) { exit::USAGE } else { exit::FAILED }
}

/// Logs to standard error, as RUST_LOG says; where it says nothing, the agent tells more than the other commands.
fn start_log(agent: bool) {
    let level = if agent { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(|out, record| writeln!(out, "monitor: {}: {}", record.level().as_str().to_lowercase(), record.args()))
        .init();
}

/// What writing to standard output came to: a reader that has gone is no failure.
fn written(result: std::io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn exit_codes_follow_the_root_of_an_error() {
        let config = Err::<(), _>(ConfigError::Conflict("a and b".to_owned())).context("while starting");
        assert_eq!(exit_code(&config.unwrap_err()), 2);
        let group = ClaimError::UnknownGroup { group: "g".to_owned() };
        assert_eq!(exit_code(&group.into()), 2);
        let path = ClaimError::NotASocket { path: "/".into(), flag: "--socket" };
        assert_eq!(exit_code(&path.into()), 1);
        assert_eq!(exit_code(&anyhow!("anything else")), 1);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        assert!(written(Err(std::io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(written(Err(std::io::ErrorKind::StorageFull.into())).is_err());
    }
}
