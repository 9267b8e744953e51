//! `cargo xtask bench agent`: what the agent itself takes at defaults, as it says and as the kernel says.

use super::{
    agent_process::{self, Agent},
    crowd::Crowd,
    scratch::Scratch,
    table,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Measure what the agent itself takes at defaults: memory, kernel maps and processor time
///
/// Each is told twice, by the agent and by the kernel, and fails above its limit: 15 MiB resident, 8 MiB of maps on two
/// processors, half a per cent of one core.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Processes around the agent, each waking four times a second
    #[arg(long, default_value_t = 200)]
    processes: usize,
    /// Seconds to measure for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const MEBIBYTE: f64 = (1 << 20) as f64;
const RESIDENT_LIMIT_MEBIBYTES: f64 = 15.0;
const CPU_LIMIT_PERCENT: f64 = 0.5;

/// Start-up work, such as giving memory back, is over by then.
const SETTLING_TIME: Duration = Duration::from_secs(3);

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = agent_process::build()?;
    let scratch = Scratch::new("bench-agent")?;
    let crowd = Crowd::start(options.processes)?;
    let agent = Agent::start(&program, scratch.path())?;
    eprintln!("measuring the agent among {} processes for {} s", options.processes, options.seconds);
    std::thread::sleep(SETTLING_TIME);
    let costs = measure(&agent, Duration::from_secs(options.seconds))?;
    agent.stop()?;
    drop(crowd);

    if options.json {
        let rows: Vec<Value> = costs.iter().map(Cost::to_json).collect();
        println!("{:#}", json!({ "processes": options.processes, "seconds": options.seconds, "costs": rows }));
    } else {
        print!("{}", table::render(&table_rows(&costs)));
    }
    if costs.iter().any(Cost::is_broken) {
        bail!("the agent takes more than its limits allow");
    }
    Ok(())
}

/// One thing the agent takes.
#[derive(Debug, PartialEq)]
struct Cost {
    name: &'static str,
    unit: &'static str,
    measured: f64,
    limit: f64,
}

impl Cost {
    /// Something unmeasurable is broken too.
    fn is_broken(&self) -> bool {
        self.measured.is_nan() || self.measured > self.limit
    }

    fn to_json(&self) -> Value {
        let Self { name, unit, measured, limit } = self;
        json!({ "name": name, "unit": unit, "measured": measured, "limit": limit, "within_limit": !self.is_broken() })
    }
}

fn table_rows(costs: &[Cost]) -> Vec<Vec<String>> {
    let header = ["cost", "measured", "limit", ""].map(str::to_owned).to_vec();
    let row = |cost: &Cost| {
        let verdict = if cost.is_broken() { "BROKEN" } else { "ok" };
        let value = |value: f64| format!("{value:.2} {}", cost.unit);
        vec![cost.name.to_owned(), value(cost.measured), value(cost.limit), verdict.to_owned()]
    };
    std::iter::once(header).chain(costs.iter().map(row)).collect()
}

/// What the agent says of itself, and what the kernel says of it, at one moment.
struct Reading {
    time: Instant,
    told_cpu_seconds: f64,
    told_resident_bytes: f64,
    told_map_bytes: f64,
    cpu_seconds: f64,
    resident_bytes: f64,
    map_bytes: f64,
}

impl Reading {
    fn take(agent: &Agent) -> Result<Self> {
        let health = agent.query("/v1/health")?;
        let told =
            |name: &str| health["cost"][name].as_f64().with_context(|| format!("/v1/health tells no cost.{name}"));
        let pid = agent.pid();
        Ok(Self {
            time: Instant::now(),
            told_cpu_seconds: told("cpu_seconds_total")?,
            told_resident_bytes: told("resident_bytes")?,
            told_map_bytes: told("map_bytes")?,
            cpu_seconds: cpu_seconds(&read(&format!("/proc/{pid}/stat"))?)?,
            resident_bytes: resident_bytes(&read(&format!("/proc/{pid}/status"))?)?,
            map_bytes: map_bytes(pid)?,
        })
    }
}

fn measure(agent: &Agent, period: Duration) -> Result<Vec<Cost>> {
    let before = Reading::take(agent)?;
    std::thread::sleep(period);
    let after = Reading::take(agent)?;
    Ok(costs(&before, &after, processors()?))
}

fn costs(before: &Reading, after: &Reading, processors: usize) -> Vec<Cost> {
    let seconds = after.time.duration_since(before.time).as_secs_f64();
    let cpu_percent = |spent: f64| 100.0 * spent / seconds;
    let memory = |name, bytes: f64, limit| Cost { name, unit: "MiB", measured: bytes / MEBIBYTE, limit };
    let cpu = |name, measured| Cost { name, unit: "% of a core", measured, limit: CPU_LIMIT_PERCENT };
    let map_limit = map_limit_mebibytes(processors);
    let resident = before.resident_bytes.max(after.resident_bytes);
    let told_resident = before.told_resident_bytes.max(after.told_resident_bytes);
    vec![
        memory("resident memory, by /proc/PID/status", resident, RESIDENT_LIMIT_MEBIBYTES),
        memory("resident memory, by /v1/health", told_resident, RESIDENT_LIMIT_MEBIBYTES),
        memory("kernel maps, by /proc/PID/fdinfo", before.map_bytes.max(after.map_bytes), map_limit),
        memory("kernel maps, by /v1/health", before.told_map_bytes.max(after.told_map_bytes), map_limit),
        cpu("CPU time, by /proc/PID/stat", cpu_percent(after.cpu_seconds - before.cpu_seconds)),
        cpu("CPU time, by /v1/health", cpu_percent(after.told_cpu_seconds - before.told_cpu_seconds)),
    ]
}

/// 8 MiB on up to two processors, 64 MiB on 64, and in a straight line between and beyond.
fn map_limit_mebibytes(processors: usize) -> f64 {
    8.0 + processors.saturating_sub(2) as f64 * (64.0 - 8.0) / (64.0 - 2.0)
}

/// Per-CPU maps have a value for each possible processor, online or not.
fn processors() -> Result<usize> {
    let file = "/sys/devices/system/cpu/possible";
    count_listed(read(file)?.trim()).with_context(|| format!("cannot understand {file}"))
}

/// How many numbers a list such as "0-3,8" names.
fn count_listed(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + (last + 1).checked_sub(first)?)
    })
}

/// User and system time in a process's stat line.
fn cpu_seconds(stat: &str) -> Result<f64> {
    let unexpected = "/proc/PID/stat has another form than expected";
    // The command, in parentheses, may hold anything, so fields are counted from its end: state is the first.
    let (_, fields) = stat.rsplit_once(") ").context(unexpected)?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| fields.get(field).and_then(|field| field.parse::<f64>().ok()).context(unexpected);
    // SAFETY: sysconf only looks up a number.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok((ticks(11)? + ticks(12)?) / ticks_per_second as f64)
}

/// VmRSS in a process's status.
fn resident_bytes(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/PID/status has no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS in /proc/PID/status")?;
    Ok(kibibytes * 1024.0)
}

/// The memory of all maps a process holds descriptors of, each map once.
fn map_bytes(pid: u32) -> Result<f64> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))? {
        // A descriptor may be closed while we look.
        let Ok(text) = fs::read_to_string(entry.with_context(|| directory.clone())?.path()) else { continue };
        maps.extend(map_memory(&text));
    }
    Ok(maps.values().sum())
}

/// The id and bytes of a map, in what fdinfo says of its descriptor.
fn map_memory(fdinfo: &str) -> Option<(u32, f64)> {
    let value = |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((value("map_id:")?.parse().ok()?, value("memlock:")?.parse().ok()?))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_understood() {
        let stat = "42 (a ) b) S 1 1 1 0 -1 4194560 9 0 0 0 250 150 0 0 20 0 1 0 1 1 1";
        assert_eq!(cpu_seconds(stat).unwrap(), 4.0);
        assert_eq!(resident_bytes("Name:\tmonitor\nVmRSS:\t    2048 kB\n").unwrap(), 2.0 * MEBIBYTE);
        assert_eq!(map_memory("pos:\t0\nmap_type:\t6\nmemlock:\t4480\nmap_id:\t7\nfrozen:\t0\n"), Some((7, 4480.0)));
        assert_eq!(map_memory("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(count_listed("0-3,8"), Some(5));
        assert_eq!(count_listed("3-0"), None);
    }

    #[test]
    fn the_map_limit_grows_with_processors_as_promised() {
        assert_eq!(map_limit_mebibytes(1), 8.0);
        assert_eq!(map_limit_mebibytes(2), 8.0);
        assert_eq!(map_limit_mebibytes(64), 64.0);
    }

    #[test]
    fn a_limit_breaks_when_passed_and_when_nothing_was_measured() {
        let cost = |measured| Cost { name: "CPU time", unit: "%", measured, limit: 0.5 };
        assert!(!cost(0.5).is_broken());
        assert!(cost(0.51).is_broken());
        assert!(cost(f64::NAN).is_broken());
        assert_eq!(table_rows(&[cost(0.51)])[1], ["CPU time", "0.51 %", "0.50 %", "BROKEN"]);
    }

    #[test]
    fn cpu_time_is_per_core_and_memory_is_the_larger_reading() {
        let reading = |time, cpu_seconds, bytes| Reading {
            time,
            told_cpu_seconds: cpu_seconds,
            told_resident_bytes: bytes,
            told_map_bytes: bytes,
            cpu_seconds,
            resident_bytes: bytes,
            map_bytes: bytes,
        };
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let costs = costs(&reading(start, 1.0, 9.0 * MEBIBYTE), &reading(end, 1.1, MEBIBYTE), 2);
        assert_eq!(costs[0].measured, 9.0);
        assert!((costs[4].measured - 1.0).abs() < 1e-9 && costs[4].is_broken());
        assert!(costs[2].is_broken() && costs[2].limit == 8.0);
    }
}
