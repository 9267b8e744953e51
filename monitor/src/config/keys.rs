//! The table of settings: name, help, and where in [`Config`] the value lives.

use super::{Config, SourceConfig};
use crate::{
    source::Source,
    units::{parse_bytes, parse_duration, show_bytes, show_duration},
};
use log::LevelFilter;
use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// One setting.
pub struct Key {
    /// The TOML table it stands in; none for the top level.
    pub section: Option<&'static str>,
    /// Its name there.
    pub name: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// A variable of the environment that sets it besides [`Key::variable`], by the name that a document has for it.
    pub other_variable: Option<&'static str>,
    place: Place,
}

/// Where the value lives: in the configuration, or in that of one source.
#[derive(Clone, Copy)]
enum Place {
    General(fn(&mut Config) -> Slot<'_>),
    OfSource(Source, fn(&mut SourceConfig) -> Slot<'_>),
}

/// A value that can be set from text and shown, with its range.
pub enum Slot<'a> {
    /// A path, never empty.
    Path(&'a mut PathBuf),
    /// A name, or empty for none.
    Name(&'a mut Option<String>),
    /// A name, never empty.
    Word(&'a mut String),
    /// Names, with commas between them; or none.
    Names(&'a mut Vec<String>),
    /// An address and port of the loopback interface, or empty for none.
    Loopback(&'a mut Option<SocketAddr>),
    /// true or false.
    Switch(&'a mut bool),
    /// A plain number.
    Count(&'a mut u32, RangeInclusive<u32>),
    /// How many ticks; none is written as "auto".
    Ticks(&'a mut Option<u32>, RangeInclusive<u32>),
    /// A share, from 0 to 1.
    Ratio(&'a mut f64),
    /// A number with a fraction.
    Number(&'a mut f64, RangeInclusive<f64>),
    /// How many keys a map has room for.
    Capacity(&'a mut Option<u32>, RangeInclusive<u32>),
    /// A size in bytes.
    Bytes(&'a mut u64, RangeInclusive<u64>),
    /// The size of a ring in bytes: a power of two.
    RingBytes(&'a mut Option<u32>, RangeInclusive<u32>),
    /// A duration.
    Duration(&'a mut Duration, RangeInclusive<Duration>),
    /// How much to log.
    Level(&'a mut LevelFilter),
}

/// Leaves a number to the agent.
const AUTO: &str = "auto";

/// All settings, in the order in which they are shown.
pub fn keys() -> Vec<Key> {
    let mut keys = general();
    keys.extend(Source::ALL.into_iter().flat_map(of_source));
    keys
}

fn general() -> Vec<Key> {
    let key =
        |section, name, help, slot| Key { section, name, help, other_variable: None, place: Place::General(slot) };
    let drum = |name, help, variable, slot| Key {
        other_variable: Some(variable),
        ..key(Some("detectors.regression"), name, help, slot)
    };
    vec![
        key(None, "socket", "where the socket appears", |c| Slot::Path(&mut c.socket)),
        key(None, "socket_group", "a group whose members may read, besides root", |c| Slot::Name(&mut c.socket_group)),
        key(
            None,
            "workload_socket",
            "a second socket, where everybody may ask and post for its own process tree; empty for none",
            |c| Slot::Name(&mut c.workload_socket),
        ),
        key(None, "tick", "time from one snapshot to the next", |c| {
            Slot::Duration(&mut c.tick, 100 * MILLISECOND..=HOUR)
        }),
        key(None, "console", "show on standard output what happens", |c| Slot::Switch(&mut c.console)),
        key(None, "console_interval", "how often to show it as a live table", |c| {
            Slot::Duration(&mut c.console_interval, 100 * MILLISECOND..=HOUR)
        }),
        key(
            None,
            "log_interval",
            "ticks from one block of resources and alerts to the next, without the live table; 0 for the table alone; \
             \"auto\" for the table, and beside it, where output is no terminal, a block every 10 ticks",
            |c| Slot::Ticks(&mut c.log_interval, 0..=1_000_000),
        ),
        key(None, "drop_capabilities", "once attached, keep only the capabilities that counting takes", |c| {
            Slot::Switch(&mut c.drop_capabilities)
        }),
        key(None, "cpu_monitoring", "poll processors: of the machine, and CPU time of cgroups and processes", |c| {
            Slot::Switch(&mut c.cpu_monitoring)
        }),
        key(None, "memory_monitoring", "poll memory: of the machine, of cgroups and of processes", |c| {
            Slot::Switch(&mut c.memory_monitoring)
        }),
        key(None, "io_monitoring", "poll disks, network interfaces, and I/O of cgroups and processes", |c| {
            Slot::Switch(&mut c.io_monitoring)
        }),
        key(None, "kernel_log", "the most talkative level of the kernel programs", |c| Slot::Level(&mut c.kernel_log)),
        key(None, "gpu_monitoring", "read GPUs, where the host has a driver", |c| Slot::Switch(&mut c.gpu_monitoring)),
        key(None, "export_timeseries", "write a row of every tick as CSV", |c| Slot::Switch(&mut c.export_timeseries)),
        key(None, "timeseries_path", "the directory of its files, epoch_N.csv", |c| Slot::Path(&mut c.timeseries_path)),
        key(None, "alert_gpu_underutilization", "tell which GPUs have little to do", |c| {
            Slot::Switch(&mut c.thresholds.alert_gpu_underutilization)
        }),
        key(None, "alert_memory_pressure", "tell that memory is nearly used up", |c| {
            Slot::Switch(&mut c.thresholds.alert_memory_pressure)
        }),
        key(None, "alert_io_bottleneck", "tell who waits for disks", |c| {
            Slot::Switch(&mut c.thresholds.alert_io_bottleneck)
        }),
        key(None, "alert_gpu_temperature", "tell which GPUs are hot", |c| {
            Slot::Switch(&mut c.thresholds.alert_gpu_temperature)
        }),
        key(None, "alert_memory_stall", "tell who waits for memory", |c| {
            Slot::Switch(&mut c.thresholds.alert_memory_stall)
        }),
        key(None, "alert_thrashing", "tell who reads from disks again and again what was in memory", |c| {
            Slot::Switch(&mut c.thresholds.alert_thrashing)
        }),
        key(None, "alert_gpu_memory", "tell which GPUs' memory is nearly used up", |c| {
            Slot::Switch(&mut c.thresholds.alert_gpu_memory)
        }),
        key(None, "alert_gpu_throttling", "tell which GPUs' clocks are held down", |c| {
            Slot::Switch(&mut c.thresholds.alert_gpu_throttling)
        }),
        key(None, "alert_gpu_lost", "tell which GPUs do not answer any more", |c| {
            Slot::Switch(&mut c.thresholds.alert_gpu_lost)
        }),
        key(None, "alert_leak", "tell who leaks memory", |c| Slot::Switch(&mut c.thresholds.alert_leak)),
        key(None, "alert_oom_kill", "tell whom the kernel killed for want of memory", |c| {
            Slot::Switch(&mut c.thresholds.alert_oom_kill)
        }),
        key(None, "alert_deviation", "learn what is usual at each time of day, and tell what is not", |c| {
            Slot::Switch(&mut c.thresholds.alert_deviation)
        }),
        key(
            None,
            "gpu_util_threshold",
            "a GPU that works for less than this share of the time has little to do",
            |c| Slot::Ratio(&mut c.thresholds.gpu_util),
        ),
        key(None, "memory_threshold", "memory of which more than this share is not available is short", |c| {
            Slot::Ratio(&mut c.thresholds.memory)
        }),
        key(None, "io_wait_threshold", "the share of processors' time that they may wait for disks", |c| {
            Slot::Ratio(&mut c.thresholds.io_wait)
        }),
        key(None, "gpu_temp_threshold", "a GPU above this temperature is hot, in degrees Celsius", |c| {
            Slot::Count(&mut c.thresholds.gpu_temp, 0..=200)
        }),
        key(None, "gpu_memory_threshold", "a GPU's memory is nearly used up above this share of it", |c| {
            Slot::Ratio(&mut c.thresholds.gpu_memory)
        }),
        key(
            None,
            "memory_warning_threshold",
            "a warning is told above this share of a memory limit, or of the machine's memory; above memory_threshold it is \
             critical",
            |c| Slot::Ratio(&mut c.thresholds.memory_warning),
        ),
        key(None, "memory_stall_threshold", "the share of the time in which tasks may wait for memory", |c| {
            Slot::Ratio(&mut c.thresholds.memory_stall)
        }),
        key(None, "major_faults_threshold", "faults that may wait for a disk, per second", |c| {
            Slot::Number(&mut c.thresholds.major_faults, 0.0..=1e9)
        }),
        key(
            None,
            "deviation_threshold",
            "what is so many times its usual spread away from its usual level is not usual",
            |c| Slot::Number(&mut c.thresholds.deviation, 0.1..=1000.0),
        ),
        key(
            Some("oom"),
            "directory",
            "a directory to keep a file in for each time that the kernel kills for want of memory; empty for none",
            |c| Slot::Name(&mut c.oom.directory),
        ),
        key(Some("oom"), "keep", "how many of these files are kept", |c| Slot::Count(&mut c.oom.keep, 1..=100_000)),
        key(Some("alerts"), "enabled", "judge what is out of the ordinary, and tell it", |c| {
            Slot::Switch(&mut c.alerts.enabled)
        }),
        key(Some("alerts"), "hold", "how long something must be out of the ordinary, on average, to be told", |c| {
            Slot::Duration(&mut c.alerts.hold, Duration::ZERO..=HOUR)
        }),
        key(Some("alerts"), "gpu_hold", "how long a GPU must have little to do to be told", |c| {
            Slot::Duration(&mut c.alerts.gpu_hold, Duration::ZERO..=24 * HOUR)
        }),
        key(Some("alerts"), "deviation_hold", "how long something must not be as it usually is to be told", |c| {
            Slot::Duration(&mut c.alerts.deviation_hold, Duration::ZERO..=24 * HOUR)
        }),
        key(
            Some("alerts"),
            "learn_days",
            "on how many days an hour of the day must have been seen before it is known what is usual in it",
            |c| Slot::Count(&mut c.alerts.learn_days, 1..=14),
        ),
        key(Some("alerts"), "learned", "a file to keep what is usual in, for the next start; empty for none", |c| {
            Slot::Name(&mut c.alerts.learned)
        }),
        key(Some("alerts"), "cool_down", "how long what is over is not told anew", |c| {
            Slot::Duration(&mut c.alerts.cool_down, Duration::ZERO..=24 * HOUR)
        }),
        key(
            Some("alerts"),
            "silence",
            "whose alerts are not told, with commas: patterns with * and ? for a subject's name, or for RULE:SUBJECT",
            |c| Slot::Names(&mut c.alerts.silence),
        ),
        key(Some("alerts"), "log", "tell alerts in the log", |c| Slot::Switch(&mut c.alerts.log)),
        key(Some("alerts"), "json_lines", "a file to add a line of JSON to for each; empty for none", |c| {
            Slot::Name(&mut c.alerts.json_lines)
        }),
        key(
            Some("alerts"),
            "webhook",
            "an address, http:// or https://, to post each to as Slack takes it; empty for none",
            |c| Slot::Name(&mut c.alerts.webhook),
        ),
        key(
            Some("alerts"),
            "alertmanager",
            "Prometheus' Alertmanager, such as http://127.0.0.1:9093; empty for none",
            |c| Slot::Name(&mut c.alerts.alertmanager),
        ),
        key(
            Some("alerts"),
            "exec",
            "a program to run for each, with it as JSON on standard input; empty for none",
            |c| Slot::Name(&mut c.alerts.exec),
        ),
        key(
            Some("alerts"),
            "email_server",
            "a mail server: smtp://HOST:PORT, smtp://HOST:PORT?tls=required, or smtps://USER:PASSWORD@HOST; empty for none",
            |c| Slot::Name(&mut c.alerts.email_server),
        ),
        key(Some("alerts"), "email_from", "who the mail is from", |c| Slot::Name(&mut c.alerts.email_from)),
        key(Some("alerts"), "email_to", "who it is to, with commas", |c| Slot::Names(&mut c.alerts.email_to)),
        key(Some("advice"), "enabled", "work out what memory everybody should get", |c| {
            Slot::Switch(&mut c.advice.enabled)
        }),
        key(Some("advice"), "policy", "how: rules, vpa, krr or peaks", |c| Slot::Word(&mut c.advice.policy)),
        key(Some("advice"), "interval", "the time whose largest and mean working set are kept", |c| {
            Slot::Duration(&mut c.advice.interval, 1000 * MILLISECOND..=HOUR)
        }),
        key(Some("advice"), "window", "for how long they are kept: what advice rests on", |c| {
            Slot::Duration(&mut c.advice.window, HOUR / 4..=14 * 24 * HOUR)
        }),
        key(Some("advice"), "directory", "where they outlive the agent; empty for nowhere", |c| {
            Slot::Name(&mut c.advice.directory)
        }),
        key(Some("advice"), "max_bytes", "the most that is kept there", |c| {
            Slot::Bytes(&mut c.advice.max_bytes, 1 << 20..=1 << 40)
        }),
        key(Some("advice"), "request_min", "no request is smaller", |c| {
            Slot::Bytes(&mut c.advice.request_min, 0..=1 << 50)
        }),
        key(Some("advice"), "request_max", "no request is larger", |c| {
            Slot::Bytes(&mut c.advice.request_max, 0..=1 << 50)
        }),
        key(Some("advice"), "limit_min", "no limit is smaller", |c| Slot::Bytes(&mut c.advice.limit_min, 0..=1 << 50)),
        key(Some("advice"), "limit_max", "no limit is larger, unless the request is", |c| {
            Slot::Bytes(&mut c.advice.limit_max, 0..=1 << 50)
        }),
        key(
            Some("advice"),
            "overrides",
            "sizes that go before all advice, with commas: SUBJECT=REQUEST:LIMIT, such as shop/*=256Mi:512Mi",
            |c| Slot::Names(&mut c.advice.overrides),
        ),
        key(Some("advice"), "enforced", "sizes that somebody has enforced, in the same form", |c| {
            Slot::Names(&mut c.advice.enforced)
        }),
        key(
            Some("advice"),
            "template",
            "what everybody is made with: REQUEST:LIMIT; empty where that is not known",
            |c| Slot::Name(&mut c.advice.template),
        ),
        key(Some("gpu"), "interval", "time from one reading of the GPUs to the next", |c| {
            Slot::Duration(&mut c.gpu.interval, 100 * MILLISECOND..=HOUR)
        }),
        key(Some("gpu"), "retry", "time from one try to reach a driver or GPU that does not answer to the next", |c| {
            Slot::Duration(&mut c.gpu.retry, 100 * MILLISECOND..=HOUR)
        }),
        key(Some("gpu"), "library", "NVIDIA's library (NVML): a path, or a name to be searched for", |c| {
            Slot::Path(&mut c.gpu.library)
        }),
        key(
            Some("trees"),
            "entry_points",
            "whose processes form trees, with commas: patterns for the whole command line with * and ?, or names of \
             programs, scripts or modules",
            |c| Slot::Names(&mut c.entry_points),
        ),
        key(Some("exited"), "keep", "how long exited processes stay visible", |c| {
            Slot::Duration(&mut c.exited.keep, Duration::ZERO..=HOUR)
        }),
        key(Some("exited"), "limit", "how many of them at most", |c| Slot::Count(&mut c.exited.limit, 0..=100_000)),
        key(Some("cost"), "window", "how long the run time of the kernel programs is measured each time", |c| {
            Slot::Duration(&mut c.cost.window, 10 * MILLISECOND..=HOUR)
        }),
        key(Some("cost"), "every", "how often it is measured; \"0s\" for never", |c| {
            Slot::Duration(&mut c.cost.every, Duration::ZERO..=24 * HOUR)
        }),
        key(Some("containers"), "names", "read names of containers from the files below", |c| {
            Slot::Switch(&mut c.containers.names)
        }),
        key(Some("containers"), "logs", "the kubelet's links to the containers' logs", |c| {
            Slot::Path(&mut c.containers.logs)
        }),
        key(Some("containers"), "docker", "Docker's containers", |c| Slot::Path(&mut c.containers.docker)),
        key(Some("containers"), "containerd", "containerd's running tasks", |c| {
            Slot::Path(&mut c.containers.containerd)
        }),
        key(Some("containers"), "storage", "podman's and CRI-O's storage (graphroot)", |c| {
            Slot::Path(&mut c.containers.storage)
        }),
        key(Some("containers"), "storage_run", "what of it a reboot empties (runroot)", |c| {
            Slot::Path(&mut c.containers.storage_run)
        }),
        key(
            Some("containers"),
            "cri",
            "a runtime's socket (CRI), to be asked for what no file tells, in builds with that feature; empty for none",
            |c| Slot::Name(&mut c.containers.cri),
        ),
        key(Some("csv"), "max_bytes", "the most that is written to a CSV file before the next begins", |c| {
            Slot::Bytes(&mut c.csv.max_bytes, 4096..=1 << 40)
        }),
        key(
            Some("csv"),
            "max_age",
            "how long a CSV file is written to before the next begins; \"0s\" for any time",
            |c| Slot::Duration(&mut c.csv.max_age, Duration::ZERO..=24 * 30 * HOUR),
        ),
        key(Some("record"), "path", "a file or directory to record to; empty for none", |c| {
            Slot::Name(&mut c.record.path)
        }),
        key(Some("record"), "max_bytes", "the most that is kept of a recording: a file stops there", |c| {
            Slot::Bytes(&mut c.record.max_bytes, 1 << 20..=1 << 40)
        }),
        key(Some("record"), "keep", "how long what a directory holds is kept", |c| {
            Slot::Duration(&mut c.record.keep, HOUR / 60..=24 * 365 * HOUR)
        }),
        drum(
            "enabled",
            "judge memory's growth with requests by a line through the last samples",
            "DRUM_MEMORY_LEAK_ENABLED",
            |c| Slot::Switch(&mut c.regression.enabled),
        ),
        drum("window", "how many samples the line goes through", "DRUM_MEMORY_LEAK_SAMPLE_WINDOW", |c| {
            Slot::Count(&mut c.regression.window, 2..=10_000)
        }),
        drum(
            "threshold_mb_per_1k",
            "more growth is a leak, in MB (1024 × 1024 bytes) per 1,000 requests",
            "DRUM_MEMORY_LEAK_THRESHOLD_MB",
            |c| Slot::Number(&mut c.regression.threshold_mb_per_1k, 0.0..=1e6),
        ),
        key(Some("metrics"), "top", "how many cgroups, trees, disks and so on have metrics of their own", |c| {
            Slot::Count(&mut c.metrics.top, 1..=1000)
        }),
        key(
            Some("metrics"),
            "listen",
            "a loopback address to scrape metrics at, besides the socket; empty for none",
            |c| Slot::Loopback(&mut c.metrics.listen),
        ),
    ]
}

fn of_source(source: Source) -> Vec<Key> {
    let section = Some(source.name());
    let key =
        |name, help, slot| Key { section, name, help, other_variable: None, place: Place::OfSource(source, slot) };
    let mut keys = vec![
        key("enabled", "attach this source", |s| Slot::Switch(&mut s.enabled)),
        key("rung", "the only way of attaching to try; empty for the best that works", |s| Slot::Name(&mut s.rung)),
    ];
    if Config::default().source(source).owners.is_some() {
        keys.push(key("owners", "for how many processes, in a cgroup each, it can count at a time", |s| {
            Slot::Capacity(&mut s.owners, 16..=1 << 20)
        }));
    }
    if Config::default().source(source).ring_bytes.is_some() {
        keys.push(key("ring_bytes", "size of the ring that carries its moments", |s| {
            Slot::RingBytes(&mut s.ring_bytes, 4096..=16 << 20)
        }));
    }
    let general = |name, help, slot| Key { section, name, help, other_variable: None, place: Place::General(slot) };
    match source {
        Source::AddressSpace => {
            keys.push(general("large_call", "tell each call of at least this size as an event", |c| {
                Slot::Bytes(&mut c.large_call_bytes, 0..=1 << 40)
            }));
        }
        Source::BlockIo => {
            keys.push(general("slow", "tell each I/O that took at least this long as an event", |c| {
                Slot::Duration(&mut c.slow_io, Duration::ZERO..=HOUR)
            }));
        }
        Source::PageFault | Source::Lifecycle | Source::Requests | Source::Resident => {}
    }
    keys
}

impl Key {
    /// Its full name, as `--set` takes it: "section.name", or the name alone at the top level.
    pub fn path(&self) -> String {
        self.section.map_or_else(|| self.name.to_owned(), |section| format!("{section}.{}", self.name))
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("MONITOR_{}", self.path().replace('.', "_").to_uppercase())
    }

    /// The place of its value.
    pub fn slot<'a>(&self, config: &'a mut Config) -> Slot<'a> {
        match self.place {
            Place::General(slot) => slot(config),
            Place::OfSource(source, slot) => slot(config.source_mut(source)),
        }
    }
}

impl Slot<'_> {
    /// Sets the value. None when the text is not allowed; the value is then as before.
    pub fn set(self, text: &str) -> Option<()> {
        match self {
            Self::Path(path) => *path = (!text.is_empty()).then(|| PathBuf::from(text))?,
            Self::Name(name) => *name = (!text.is_empty()).then(|| text.to_owned()),
            Self::Word(word) => *word = (!text.is_empty()).then(|| text.to_owned())?,
            Self::Names(names) => {
                *names = text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
            }
            Self::Loopback(address) => {
                *address = if text.is_empty() { None } else { Some(parse_loopback(text)?) };
            }
            Self::Switch(switch) => *switch = text.parse().ok()?,
            Self::Count(count, range) => *count = text.parse().ok().filter(|n| range.contains(n))?,
            Self::Ticks(ticks, range) => {
                *ticks = if text == AUTO { None } else { Some(text.parse().ok().filter(|n| range.contains(n))?) };
            }
            // Zero is added so that none is negative.
            Self::Ratio(ratio) => *ratio = text.parse::<f64>().ok().filter(|n| (0.0..=1.0).contains(n))? + 0.0,
            Self::Number(number, range) => *number = text.parse().ok().filter(|n| range.contains(n))? + 0.0,
            Self::Capacity(count, range) => *count = Some(text.parse().ok().filter(|n| range.contains(n))?),
            Self::Bytes(bytes, range) => *bytes = parse_bytes(text).ok().filter(|n| range.contains(n))?,
            Self::RingBytes(bytes, range) => {
                let size = u32::try_from(parse_bytes(text).ok()?).ok()?;
                *bytes = Some(size).filter(|n| range.contains(n) && n.is_power_of_two()).map(Some)?;
            }
            Self::Duration(duration, range) => {
                *duration = parse_duration(text).ok().filter(|d| range.contains(d))?;
            }
            Self::Level(level) => *level = text.parse().ok()?,
        }
        Some(())
    }

    /// The value as text that [`Self::set`] takes.
    pub fn show(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Name(name) => name.as_deref().unwrap_or_default().to_owned(),
            Self::Word(word) => (*word).clone(),
            Self::Names(names) => names.join(","),
            Self::Loopback(address) => address.map(|address| address.to_string()).unwrap_or_default(),
            Self::Switch(switch) => switch.to_string(),
            Self::Count(count, _) => count.to_string(),
            Self::Ticks(ticks, _) => ticks.map_or_else(|| AUTO.to_owned(), |ticks| ticks.to_string()),
            Self::Ratio(number) | Self::Number(number, _) => number.to_string(),
            Self::Capacity(count, _) => count.unwrap_or_default().to_string(),
            Self::Bytes(bytes, _) => show_bytes(**bytes),
            Self::RingBytes(bytes, _) => bytes.map(|bytes| show_bytes(bytes.into())).unwrap_or_default(),
            Self::Duration(duration, _) => show_duration(**duration),
            Self::Level(level) => level.as_str().to_lowercase(),
        }
    }

    /// What it takes, to follow "it takes".
    pub fn allowed(&self) -> String {
        match self {
            Self::Path(_) => "a path".to_owned(),
            Self::Name(_) | Self::Word(_) => "a name in quotes".to_owned(),
            Self::Names(_) => "names in quotes, with commas between them".to_owned(),
            Self::Loopback(_) => "a loopback address with its port, such as \"127.0.0.1:9117\", or \"\"".to_owned(),
            Self::Switch(_) => "true or false".to_owned(),
            Self::Count(_, range) | Self::Capacity(_, range) => {
                format!("a number from {} to {}", range.start(), range.end())
            }
            Self::Ticks(_, range) => format!("a number from {} to {}, or \"{AUTO}\"", range.start(), range.end()),
            Self::Ratio(_) => "a ratio from 0 to 1, such as 0.5".to_owned(),
            Self::Number(_, range) => format!("a number from {} to {}, such as 2.5", range.start(), range.end()),
            Self::Bytes(_, range) => {
                format!("a size from {} to {}, such as \"1MiB\"", show_bytes(*range.start()), show_bytes(*range.end()))
            }
            Self::RingBytes(_, range) => {
                let (start, end) = (show_bytes((*range.start()).into()), show_bytes((*range.end()).into()));
                format!("a power of two from {start} to {end}, such as \"64KiB\"")
            }
            Self::Duration(_, range) => {
                let (start, end) = (show_duration(*range.start()), show_duration(*range.end()));
                format!("a duration from {start} to {end}, such as \"500ms\"")
            }
            Self::Level(_) => "off, error, warn, info, debug or trace".to_owned(),
        }
    }

    /// Whether TOML writes the value as a bare number.
    pub(super) const fn takes_integer(&self) -> bool {
        matches!(
            self,
            Self::Count(..)
                | Self::Ticks(..)
                | Self::Ratio(_)
                | Self::Number(..)
                | Self::Capacity(..)
                | Self::Bytes(..)
                | Self::RingBytes(..)
        )
    }

    /// Whether TOML writes the value as a number with a fraction.
    pub(super) const fn takes_fraction(&self) -> bool {
        matches!(self, Self::Ratio(_) | Self::Number(..))
    }

    /// Whether TOML writes the value as a bare word.
    pub(super) const fn takes_boolean(&self) -> bool {
        matches!(self, Self::Switch(_))
    }

    /// The value as TOML writes it.
    pub(super) fn toml(&self) -> String {
        match self {
            Self::Switch(_)
            | Self::Count(..)
            | Self::Capacity(..)
            | Self::Ratio(_)
            | Self::Number(..)
            | Self::Ticks(Some(_), _) => self.show(),
            _ => toml::Value::String(self.show()).to_string(),
        }
    }

    /// The value as JSON: what it is in TOML.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Switch(switch) => (**switch).into(),
            Self::Count(count, _) => (**count).into(),
            Self::Capacity(count, _) | Self::Ticks(count @ Some(_), _) => (**count).into(),
            Self::Ratio(number) | Self::Number(number, _) => (**number).into(),
            _ => self.show().into(),
        }
    }
}

/// An address that only this machine reaches, with a port by which readers find it.
fn parse_loopback(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback() && address.port() != 0)
}
