//! The flags that set the configuration, for the commands that take it.

use crate::config::{Assignment, Effective, Error, Layers, Origin};
use clap::Args;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Where an agent is found, and what it writes to. An agent that runs beside the node's own has these by flags alone.
const OF_ONE_AGENT: &[&str] = &[
    "socket",
    "socket_group",
    "workload_socket",
    "metrics.listen",
    "record.path",
    "export_timeseries",
    "timeseries_path",
    "console",
    "log_interval",
    "alerts.json_lines",
    "alerts.webhook",
    "alerts.alertmanager",
    "alerts.exec",
    "alerts.email_server",
    "oom.directory",
    "alerts.learned",
    "advice.directory",
];

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Source {
    /// Read this TOML file; `monitor config` prints one. Without it, the file that MONITOR_CONFIG names.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any setting that `monitor config` lists, such as block_io.slow=20ms; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Where the agent's socket is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Socket {
    /// The agent's socket [default: /run/monitor/monitor.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// What the agent takes.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Settings {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    socket: Socket,
    /// Members of this group may read, besides root.
    #[arg(long, value_name = "NAME")]
    socket_group: Option<String>,
    /// A second socket, where everybody, also in a container, may ask and post for its own process tree and nothing else.
    #[arg(long, value_name = "PATH")]
    workload_socket: Option<PathBuf>,
    /// Time from one snapshot to the next, from 100ms to 1h [default: 1s]
    #[arg(long, value_name = "TIME")]
    tick: Option<String>,
    /// Show nothing on standard output.
    #[arg(long)]
    quiet: bool,
    /// Write a block of resources and alerts every so many ticks instead of the live table, or 0 for the table only. "auto"
    /// is the table, and beside it, where standard output is no terminal, a block every 10 ticks [default: auto]
    #[arg(long, value_name = "TICKS")]
    log_interval: Option<String>,
    /// Record what is read to this file, which stops at record.max_bytes [256MiB], or directory (a name that ends with a
    /// slash), which keeps the newest; `monitor query --from` asks it.
    #[arg(long, value_name = "FILE|DIR")]
    record: Option<PathBuf>,
    /// Write a row of every tick to epoch_N.csv in this directory, for a notebook or a spreadsheet.
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

impl Source {
    /// The configuration with these flags.
    pub(super) fn load(self) -> Result<Effective, Error> {
        self.load_with(Vec::new(), &[])
    }

    fn load_with(self, more: Vec<Assignment>, only_by_flags: &'static [&'static str]) -> Result<Effective, Error> {
        let mut flags = self.set.iter().map(|text| Assignment::parse(text)).collect::<Result<Vec<_>, _>>()?;
        flags.extend(more);
        Effective::load(Layers { file: self.config, environment: environment(), flags, only_by_flags })
    }
}

impl Socket {
    /// The configuration with this flag.
    pub(super) fn load(&self) -> Result<Effective, Error> {
        let flags = self.assignment().into_iter().collect();
        Effective::load(Layers { environment: environment(), flags, ..Layers::default() })
    }

    fn assignment(&self) -> Option<Assignment> {
        self.socket.as_deref().map(|path| flag("socket", &text(path), "--socket"))
    }
}

impl Settings {
    /// The configuration with these flags.
    pub(super) fn load(self) -> Result<Effective, Error> {
        self.load_with(&[])
    }

    /// The configuration for an agent that runs beside the node's own, with its socket at this path unless a flag names another.
    pub(super) fn load_aside(mut self, socket: &Path) -> Result<Effective, Error> {
        self.socket.socket.get_or_insert_with(|| socket.to_owned());
        self.load_with(OF_ONE_AGENT)
    }

    fn load_with(self, only_by_flags: &'static [&'static str]) -> Result<Effective, Error> {
        let flags = [
            self.socket.assignment(),
            self.socket_group.as_deref().map(|group| flag("socket_group", group, "--socket-group")),
            self.workload_socket.as_deref().map(|path| flag("workload_socket", &text(path), "--workload-socket")),
            self.tick.as_deref().map(|tick| flag("tick", tick, "--tick")),
            self.quiet.then(|| flag("console", "false", "--quiet")),
            self.log_interval.as_deref().map(|ticks| flag("log_interval", ticks, "--log-interval")),
            self.record.as_deref().map(|path| flag("record.path", &text(path), "--record")),
            self.csv.as_ref().map(|_| flag("export_timeseries", "true", "--csv")),
            self.csv.as_deref().map(|path| flag("timeseries_path", &text(path), "--csv")),
        ];
        self.source.load_with(flags.into_iter().flatten().collect(), only_by_flags)
    }
}

fn flag(path: &str, value: &str, name: &str) -> Assignment {
    Assignment { path: path.to_owned(), value: value.to_owned(), origin: Origin::Flag(name.to_owned()) }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}
