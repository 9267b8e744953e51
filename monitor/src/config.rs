//! What a user may set, and where it came from: defaults < file < environment < flags.
//!
//! [`keys`] is the one table of settings; every layer, the refusals and `monitor config` read it. Unknown names are
//! refused everywhere, because a setting with no effect is worse than an agent that does not start.

mod file;
mod keys;
mod layers;

pub use keys::{Key, Slot, keys};
pub use layers::{Assignment, Effective, Layers, Origin};

use crate::source::Source;
use log::LevelFilter;
use monitor_common::limits;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Everything the agent can be told. [`keys`] has the meaning and the allowed values of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the socket appears.
    pub socket: PathBuf,
    /// A group whose members may read, besides root.
    pub socket_group: Option<String>,
    /// Where everybody may ask about its own process tree; none for nowhere.
    pub workload_socket: Option<String>,
    /// One aggregation interval.
    pub tick: Duration,
    /// End after this time; only a flag sets it.
    pub run_for: Option<Duration>,
    /// Whether `monitor run` writes to standard output.
    pub console: bool,
    /// How often the live table is shown.
    pub console_interval: Duration,
    /// Ticks from one block of resources and alerts to the next, in place of the live table; zero for never. None leaves it to
    /// what standard output is: the table on a terminal, blocks elsewhere.
    pub log_interval: Option<u32>,
    /// What the block tells as an alert.
    pub thresholds: Thresholds,
    /// When alerts are told, and to whom.
    pub alerts: Alerts,
    /// How it is kept why the kernel killed processes for want of memory.
    pub oom: Oom,
    /// How it is worked out what memory everybody should get.
    pub advice: Advice,
    /// How the document's leak detector judges.
    pub regression: Regression,
    /// Whether to keep only the capabilities that counting takes, once attached.
    pub drop_capabilities: bool,
    /// The most talkative level the kernel programs may log at.
    pub kernel_log: LevelFilter,
    /// Exited processes.
    pub exited: Exited,
    /// The agent's measuring of itself.
    pub cost: Cost,
    /// Whether to poll processors: of the machine, and CPU time of cgroups and processes.
    pub cpu_monitoring: bool,
    /// Whether to poll memory: of the machine, of cgroups and of processes.
    pub memory_monitoring: bool,
    /// Whether to poll disks and network interfaces, and the I/O of cgroups and processes.
    pub io_monitoring: bool,
    /// Patterns for the command lines of those whose processes form trees, or names in them, besides the programs that are known.
    pub entry_points: Vec<String>,
    /// Where names of containers are read.
    pub containers: Containers,
    /// What is recorded.
    pub record: Record,
    /// What is told as metrics.
    pub metrics: Metrics,
    /// Whether a row of every tick is written as CSV.
    pub export_timeseries: bool,
    /// The directory it is written to.
    pub timeseries_path: PathBuf,
    /// When a file of it makes room for the next.
    pub csv: Csv,
    /// Calls of at least this many bytes are told as events.
    pub large_call_bytes: u64,
    /// I/O of at least this total latency is told as an event.
    pub slow_io: Duration,
    /// Whether GPUs are read.
    pub gpu_monitoring: bool,
    /// How they are.
    pub gpu: Gpu,
    /// Indexed by [`Source`].
    sources: [SourceConfig; Source::ALL.len()],
}

/// When alerts are told, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alerts {
    /// Whether anything is judged at all.
    pub enabled: bool,
    /// For how long something must be out of the ordinary, on average, before it is told.
    pub hold: Duration,
    /// The same of a GPU that has little to do.
    pub gpu_hold: Duration,
    /// The same of what is not as it usually is.
    pub deviation_hold: Duration,
    /// On so many days an hour of the day must have been seen before what is usual in it is known.
    pub learn_days: u32,
    /// A file where it is kept what is usual; none where it is learned anew each time.
    pub learned: Option<String>,
    /// For how long what is over is not told anew.
    pub cool_down: Duration,
    /// Whose alerts are not told: patterns for "RULE:SUBJECT" or a subject's name.
    pub silence: Vec<String>,
    /// Whether they are told in the log.
    pub log: bool,
    /// A file that a line of JSON is added to for each; none for no file.
    pub json_lines: Option<String>,
    /// Where each is posted to, as Slack takes it.
    pub webhook: Option<String>,
    /// An Alertmanager of Prometheus.
    pub alertmanager: Option<String>,
    /// A program that is run for each, with it as JSON on standard input.
    pub exec: Option<String>,
    /// A mail server: smtp://HOST:PORT, or smtps://USER:PASSWORD@HOST.
    pub email_server: Option<String>,
    /// Who the mail is from.
    pub email_from: Option<String>,
    /// Who it is to.
    pub email_to: Vec<String>,
}

/// How it is worked out what memory everybody should get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Whether it is.
    pub enabled: bool,
    /// By which policy.
    pub policy: String,
    /// How long an interval is, whose peak and mean are kept.
    pub interval: Duration,
    /// For how long they are.
    pub window: Duration,
    /// A directory where they outlive the agent; none where they do not.
    pub directory: Option<String>,
    /// The most that is kept there.
    pub max_bytes: u64,
    /// No request is smaller.
    pub request_min: u64,
    /// Or larger.
    pub request_max: u64,
    /// No limit is smaller.
    pub limit_min: u64,
    /// Or larger.
    pub limit_max: u64,
    /// What people wish, each as SUBJECT=REQUEST:LIMIT.
    pub overrides: Vec<String>,
    /// What was enforced, in the same form.
    pub enforced: Vec<String>,
    /// What everybody is made with, as REQUEST:LIMIT.
    pub template: Option<String>,
}

/// How it is kept why the kernel killed processes for want of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oom {
    /// A directory with a file for each kill; none where they are kept in memory only.
    pub directory: Option<String>,
    /// So many files at most.
    pub keep: u32,
}

/// What is told as an alert, and from where on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Whether GPUs that have little to do are told.
    pub alert_gpu_underutilization: bool,
    /// Whether it is told that memory is short.
    pub alert_memory_pressure: bool,
    /// Whether it is told that processors wait for disks.
    pub alert_io_bottleneck: bool,
    /// Whether GPUs that are hot are told.
    pub alert_gpu_temperature: bool,
    /// Whether it is told that memory is waited for.
    pub alert_memory_stall: bool,
    /// Whether it is told that what is needed is read from disks again and again.
    pub alert_thrashing: bool,
    /// Whether GPUs whose memory is nearly used up are told.
    pub alert_gpu_memory: bool,
    /// Whether GPUs whose clocks are held down are told.
    pub alert_gpu_throttling: bool,
    /// Whether GPUs that do not answer any more are told.
    pub alert_gpu_lost: bool,
    /// Whether leaks are told.
    pub alert_leak: bool,
    /// Whether it is told whom the kernel killed for want of memory.
    pub alert_oom_kill: bool,
    /// Whether it is learned what is usual, and told what is not.
    pub alert_deviation: bool,
    /// A GPU has little to do when it works for less than this share of the time, 0–1.
    pub gpu_util: f64,
    /// Memory is short when more than this share of it is not available, 0–1.
    pub memory: f64,
    /// Processors wait for disks when they do so for more than this share of their time, 0–1.
    pub io_wait: f64,
    /// A GPU is hot above this temperature, in degrees Celsius.
    pub gpu_temp: u32,
    /// A GPU's memory is nearly used up above this share of it, 0–1.
    pub gpu_memory: f64,
    /// Memory gets short above this share of it; above [`Self::memory`] it is critical.
    pub memory_warning: f64,
    /// The share of the time in which tasks may wait for memory, 0–1.
    pub memory_stall: f64,
    /// Faults that may wait for a disk, per second.
    pub major_faults: f64,
    /// What is so many spreads away from its usual level is not usual.
    pub deviation: f64,
}

/// How memory's growth with requests is judged, by the model server's document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regression {
    /// Whether it is judged at all.
    pub enabled: bool,
    /// Samples that the line goes through.
    pub window: u32,
    /// More growth than this is a leak, in MB (1024 × 1024 bytes) per 1,000 requests.
    pub threshold_mb_per_1k: f64,
}

impl Default for Regression {
    fn default() -> Self {
        Self { enabled: true, window: 100, threshold_mb_per_1k: 50.0 }
    }
}

/// How exited processes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// How long each stays visible.
    pub keep: Duration,
    /// How many at most.
    pub limit: u32,
}

/// What is recorded, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// A file, or a directory; none for no recording.
    pub path: Option<String>,
    /// Its size at most, of all files together.
    pub max_bytes: u64,
    /// What is older than this is deleted from a directory.
    pub keep: Duration,
}

/// When a CSV file makes room for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csv {
    /// The size it reaches at most.
    pub max_bytes: u64,
    /// The time from its first row to its last at most; zero for any.
    pub max_age: Duration,
}

/// What is told as metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// So many of each kind have series of their own.
    pub top: u32,
    /// A loopback address where they are told besides the socket; none for nowhere.
    pub listen: Option<SocketAddr>,
}

/// When the run time of the kernel programs is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Length of one window.
    pub window: Duration,
    /// A window begins this often; zero for never.
    pub every: Duration,
}

/// Where names of containers are found: directories, and a socket, as the agent sees them, which in a container of its own
/// may be mounted elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containers {
    /// Whether files are read for them.
    pub names: bool,
    /// The kubelet's links to the containers' logs.
    pub logs: PathBuf,
    /// Docker's containers.
    pub docker: PathBuf,
    /// containerd's running tasks.
    pub containerd: PathBuf,
    /// Storage of podman and CRI-O, what outlives a reboot: "graphroot" of storage.conf(5).
    pub storage: PathBuf,
    /// Storage of podman and CRI-O, what does not: "runroot".
    pub storage_run: PathBuf,
    /// The socket of a runtime that is asked for what no file tells, by the Container Runtime Interface (CRI).
    pub cri: Option<String>,
}

/// How GPUs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Time from one reading to the next.
    pub interval: Duration,
    /// Time from one try to reach a driver, or a GPU, that does not answer to the next.
    pub retry: Duration,
    /// NVIDIA's library, as dlopen(3) takes it: a path, or a name to be searched for.
    pub library: PathBuf,
}

/// What can be set of each source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceConfig {
    /// Whether to attach it.
    pub enabled: bool,
    /// The only rung to try; none for the best that works.
    pub rung: Option<String>,
    /// Owners (processes in a cgroup) that its map has room for; none for a source that counts nothing.
    pub owners: Option<u32>,
    /// Size of its ring in bytes, a power of two; none for a source without a ring.
    pub ring_bytes: Option<u32>,
}

impl Config {
    /// What is set of one source.
    pub fn source(&self, source: Source) -> &SourceConfig {
        &self.sources[source as usize]
    }

    /// As [`Self::source`], to change it.
    pub fn source_mut(&mut self, source: Source) -> &mut SourceConfig {
        &mut self.sources[source as usize]
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Self {
            socket: PathBuf::from("/run/monitor/monitor.sock"),
            socket_group: None,
            workload_socket: None,
            tick: Duration::from_secs(1),
            run_for: None,
            console: true,
            console_interval: Duration::from_secs(2),
            log_interval: None,
            thresholds: Thresholds {
                alert_gpu_underutilization: true,
                alert_memory_pressure: true,
                alert_io_bottleneck: true,
                alert_gpu_temperature: true,
                gpu_util: 0.5,
                memory: 0.9,
                io_wait: 0.3,
                gpu_temp: 80,
                alert_memory_stall: true,
                alert_thrashing: true,
                alert_gpu_memory: true,
                alert_gpu_throttling: true,
                alert_gpu_lost: true,
                alert_leak: true,
                alert_oom_kill: true,
                alert_deviation: false,
                gpu_memory: 0.9,
                memory_warning: 0.8,
                memory_stall: 0.1,
                major_faults: 100.0,
                deviation: 6.0,
            },
            alerts: Alerts {
                enabled: true,
                hold: Duration::from_secs(10),
                gpu_hold: Duration::from_secs(60),
                deviation_hold: Duration::from_secs(15 * 60),
                learn_days: 3,
                learned: None,
                cool_down: Duration::from_secs(300),
                silence: Vec::new(),
                log: true,
                json_lines: None,
                webhook: None,
                alertmanager: None,
                exec: None,
                email_server: None,
                email_from: None,
                email_to: Vec::new(),
            },
            oom: Oom { directory: None, keep: 100 },
            advice: Advice {
                enabled: true,
                policy: "rules".to_owned(),
                interval: Duration::from_secs(60),
                window: Duration::from_secs(24 * 3600),
                directory: None,
                max_bytes: 64 << 20,
                request_min: 64 << 20,
                request_max: 4 << 30,
                limit_min: 128 << 20,
                limit_max: 8 << 30,
                overrides: Vec::new(),
                enforced: Vec::new(),
                template: None,
            },
            regression: Regression::default(),
            drop_capabilities: false,
            kernel_log: LevelFilter::Warn,
            exited: Exited { keep: Duration::from_secs(60), limit: 8192 },
            cost: Cost { window: Duration::from_secs(1), every: Duration::from_secs(60) },
            cpu_monitoring: true,
            memory_monitoring: true,
            io_monitoring: true,
            entry_points: Vec::new(),
            containers: Containers {
                names: true,
                logs: PathBuf::from("/var/log/containers"),
                docker: PathBuf::from("/var/lib/docker/containers"),
                containerd: PathBuf::from("/run/containerd/io.containerd.runtime.v2.task"),
                storage: PathBuf::from("/var/lib/containers/storage"),
                storage_run: PathBuf::from("/run/containers/storage"),
                cri: None,
            },
            record: Record { path: None, max_bytes: 256 << 20, keep: Duration::from_secs(24 * 3600) },
            metrics: Metrics { top: 20, listen: None },
            export_timeseries: false,
            timeseries_path: PathBuf::from("resource_logs"),
            csv: Csv { max_bytes: 64 << 20, max_age: Duration::ZERO },
            large_call_bytes: 1 << 20,
            slow_io: Duration::from_millis(50),
            gpu_monitoring: true,
            gpu: Gpu {
                interval: Duration::from_secs(1),
                retry: Duration::from_secs(30),
                library: PathBuf::from("libnvidia-ml.so.1"),
            },
            sources: Default::default(),
        };
        for source in Source::ALL {
            *config.source_mut(source) = SourceConfig {
                enabled: true,
                rung: None,
                owners: default_owners(source),
                ring_bytes: default_ring_bytes(source),
            };
        }
        config
    }
}

const fn default_owners(source: Source) -> Option<u32> {
    match source {
        Source::PageFault => Some(limits::PAGE_FAULT_OWNERS),
        Source::AddressSpace => Some(limits::ADDRESS_SPACE_OWNERS),
        Source::BlockIo => Some(limits::BLOCK_IO_KEYS),
        Source::Requests => Some(limits::REQUESTS_OWNERS),
        Source::Resident => Some(limits::RESIDENT_OWNERS),
        Source::Lifecycle => None,
    }
}

const fn default_ring_bytes(source: Source) -> Option<u32> {
    match source {
        Source::PageFault | Source::Requests | Source::Resident => None,
        Source::AddressSpace => Some(limits::ADDRESS_SPACE_RING_BYTES),
        Source::BlockIo => Some(limits::BLOCK_IO_RING_BYTES),
        Source::Lifecycle => Some(limits::LIFECYCLE_RING_BYTES),
    }
}

/// A configuration that is refused. Each message is one line that names where the fault is and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// No setting has this name.
    #[error("{origin}: there is no setting \"{name}\"; {hint}")]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// The name given.
        name: String,
        /// The nearest right name, or how to list them.
        hint: String,
    },
    /// The value is not one of those allowed.
    #[error("{origin}: {key} = {value:?} is refused: it takes {allowed}")]
    Value {
        /// Where it was given.
        origin: Origin,
        /// The setting's full name.
        key: String,
        /// The value given.
        value: String,
        /// What it takes.
        allowed: String,
    },
    /// Settings that are right each by itself do not go together, or do not fit this program.
    #[error("{0}")]
    Conflict(String),
}

#[cfg(test)]
mod tests;
