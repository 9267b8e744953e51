//! `cargo xtask run`: builds the agent in release mode and becomes it, with the rights it needs.

use crate::{process, workspace};
use anyhow::{Context, Result};
use std::{convert::Infallible, os::unix::process::CommandExt, path::Path, process::Command};

/// Build the agent in release mode and start it with the flags after `--`
///
/// When not root the agent is started through sudo, with the MONITOR_… variables of the environment handed on. Ctrl-C or
/// SIGTERM ends it cleanly.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Flags of `monitor run`, for example `--tick 500ms --for 10s`
    #[arg(last = true)]
    agent_flags: Vec<String>,
}

/// Returns only when the agent could not be started: this process becomes the agent.
pub(crate) fn run(options: &Options) -> Result<()> {
    workspace::require_supported_machine()?;
    process::run(process::cargo().args(["build", "--release", "--package", "monitor"]))?;
    let agent = workspace::target_directory()?.join("release/monitor");
    match become_agent(&agent, &options.agent_flags)? {}
}

fn become_agent(agent: &Path, flags: &[String]) -> Result<Infallible> {
    let settings: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with("MONITOR_")).collect();
    let mut words = process::root_prefix(&settings)?;
    words.push(agent.to_str().context("the target directory's name is not text")?.to_owned());
    let mut command = Command::new(&words[0]);
    let error = command.args(&words[1..]).arg("run").args(flags).exec();
    Err(error).with_context(|| format!("cannot start {}", words[0]))
}
