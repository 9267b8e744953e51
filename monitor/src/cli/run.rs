//! `monitor run`: the agent.

use super::settings::Settings;
use crate::{
    agent::{self, Claims},
    config::Config,
    privileges, serve,
    units::parse_duration,
};
use anyhow::Context as _;
use std::{process::ExitCode, time::Duration};
use tokio::runtime::{Builder, Handle};

/// Threads that answer clients and write tables.
const SERVERS: usize = 1;
/// How long work that does not end by itself may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Run the agent: count in the kernel, answer at the socket, show what happens.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo monitor run                                     until Ctrl-C
  sudo monitor run --for 10s --socket /tmp/m.sock      for ten seconds, with a socket of its own
  sudo monitor run --quiet --socket-group wheel        as a service that members of wheel may ask
  sudo monitor run --workload-socket /run/monitor/workload/monitor.sock
                                                       where servers in containers may ask about themselves
  sudo monitor run --quiet --record /var/lib/monitor/  and keep a day of it, for `monitor query --from`
  sudo monitor run --log-interval 10                   with GPUs, CPU, memory, I/O and alerts every 10 ticks
  sudo monitor run --csv resource_logs                 with a row of every tick in resource_logs/epoch_0.csv
  sudo monitor run --set block_io.slow=20ms --set page_fault.enabled=false
  sudo monitor run --set 'trees.entry_points=serve, java * -jar *-server-*.jar'
                                                       with a tree for each program, script or module of this name,
                                                       and for command lines that fit a pattern of * and ?

Settings come from defaults, then --config, then MONITOR_… variables, then flags; `monitor config` lists all of them.")]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// End after this time, such as 10s or 5m.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    run_for: Option<Duration>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.settings.load()?.config;
    config.run_for = arguments.run_for;
    run_agent(config)
}

/// Runs an agent until its end.
pub(super) fn run_agent(config: Config) -> anyhow::Result<ExitCode> {
    drive(config, async |config, claims, servers| agent::run(config, claims, &servers).await)?;
    Ok(ExitCode::SUCCESS)
}

/// Claims what an agent listens at, makes the threads that it takes, and waits for what is done with them on this one.
pub(super) fn drive<T>(
    config: Config,
    work: impl AsyncFnOnce(Config, Claims, Handle) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let claims = Claims {
        node: serve::claim(&config.socket, config.socket_group.as_deref())?,
        workloads: config
            .workload_socket
            .as_deref()
            .map(|path| serve::claim_for_workloads(path.as_ref()))
            .transpose()?,
    };
    let mut servers = Builder::new_multi_thread();
    servers.worker_threads(SERVERS).enable_all();
    if config.drop_capabilities {
        // This thread attaches, and lays down its own after that.
        servers.on_thread_start(lay_down_capabilities);
    }
    let servers = servers.build().context("cannot start threads")?;
    // The agent waits for its own timers and rings: that another thread woke it would cost as much again.
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot wait for anything")?;
    let result = runtime.block_on(work(config, claims, servers.handle().clone()));
    servers.shutdown_timeout(PATIENCE);
    result
}

fn lay_down_capabilities() {
    if let Err(error) = privileges::keep_needed() {
        log::error!("a thread cannot lay down its capabilities: {error}");
    }
}
