//! `cargo xtask bench scale`: what a tick costs on a full node, by how much of it is busy and by how much merely exists.

use super::{
    agent_process::{self, Agent},
    population::Population,
    scratch::Scratch,
    table,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Measure what a tick costs on a full node: 5,000 processes in 1,000 cgroups, by how many of them are busy
///
/// Prints the curve over what is busy, and what a quarter of it costs where nothing else exists. Fails above its limits: 60 ms of
/// one core for a tick of which 5 % is busy, 40 MiB resident, and twice the cost for four times as much that merely exists.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Cgroups around the agent
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    cgroups: u32,
    /// Processes in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    processes: u32,
    /// Seconds to measure each point of the curve for
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure this agent instead of a release build
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How much is busy, in thousandths of all cgroups: the points of the curve.
const CURVE: [u32; 5] = [0, 10, 25, 50, 100];
/// The point that the limits are for.
const LIMITED: u32 = 50;
const TICK_LIMIT_MILLISECONDS: f64 = 60.0;
const RESIDENT_LIMIT_MEBIBYTES: f64 = 40.0;
/// A population smaller by this factor, with as many busy, is compared with.
const SMALLER: u32 = 4;
const EXISTENCE_LIMIT: f64 = 2.0;

/// After a start everything is read once, in full and on a budget; after a change of what is busy what rests is looked at less
/// and less often.
const STARTING_TIME: Duration = Duration::from_secs(20);
const SETTLING_TIME: Duration = Duration::from_secs(12);

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = options.program.clone().map_or_else(agent_process::build, Ok)?;
    let scratch = Scratch::new("bench-scale")?;
    let points = |cgroups: u32, busy: &[u32]| -> Result<Vec<Point>> {
        eprintln!("starting {} processes in {cgroups} cgroups", cgroups * options.processes);
        let mut population = Population::start(cgroups as usize, options.processes as usize)?;
        let agent = Agent::start(&program, scratch.path())?;
        std::thread::sleep(STARTING_TIME);
        let mut measured = Vec::new();
        for &busy in busy {
            eprintln!("measuring {} s with {busy} of them busy", options.seconds);
            population.set_busy(busy as usize)?;
            std::thread::sleep(SETTLING_TIME);
            measured.push(Point::measure(&agent, cgroups, busy, options)?);
        }
        agent.stop()?;
        Ok(measured)
    };
    let curve = points(options.cgroups, &CURVE.map(|share| options.cgroups * share / 1000))?;
    let limited = CURVE.iter().position(|&share| share == LIMITED).and_then(|index| curve.get(index));
    let limited = limited.context("the curve has no such point")?;
    let smaller = points(options.cgroups / SMALLER, &[limited.busy])?.remove(0);

    let line = Line::through(&curve);
    let existence = limited.tick_milliseconds / smaller.tick_milliseconds;
    if options.json {
        let rows: Vec<Value> = curve.iter().chain([&smaller]).map(Point::to_json).collect();
        println!(
            "{:#}",
            json!({ "points": rows, "milliseconds_per_busy_process": line.slope, "milliseconds_at_rest": line.start,
                    "r_squared": line.r_squared, "existence_ratio": existence })
        );
    } else {
        print!("{}", table::render(&rows(&curve, &smaller)));
        println!(
            "\na tick: {:.2} ms and {:.3} ms for each busy process (r² {:.3}); with {SMALLER} times as much that merely exists, {existence:.2} \
             times as much",
            line.start, line.slope, line.r_squared
        );
    }
    let resident = curve.iter().map(|point| point.resident_mebibytes).fold(0.0, f64::max);
    let is_kept = limited.tick_milliseconds <= TICK_LIMIT_MILLISECONDS
        && resident <= RESIDENT_LIMIT_MEBIBYTES
        && existence <= EXISTENCE_LIMIT;
    if !is_kept {
        bail!(
            "more than the limits allow: {:.1} ms a tick (limit {TICK_LIMIT_MILLISECONDS}), {resident:.1} MiB resident (limit \
             {RESIDENT_LIMIT_MEBIBYTES}), {existence:.2} times as much for what merely exists (limit {EXISTENCE_LIMIT})",
            limited.tick_milliseconds
        );
    }
    Ok(())
}

/// One point of the curve.
#[derive(Debug)]
struct Point {
    cgroups: u32,
    processes: u32,
    /// Of the cgroups.
    busy: u32,
    busy_processes: u32,
    tick_milliseconds: f64,
    resident_mebibytes: f64,
}

impl Point {
    fn measure(agent: &Agent, cgroups: u32, busy: u32, options: &Options) -> Result<Self> {
        let (start, before) = (Instant::now(), cpu_seconds(agent.pid())?);
        std::thread::sleep(Duration::from_secs(options.seconds));
        let spent = cpu_seconds(agent.pid())? - before;
        // A tick is a second at defaults.
        let ticks = start.elapsed().as_secs_f64();
        Ok(Self {
            cgroups,
            processes: cgroups * options.processes,
            busy,
            busy_processes: busy * options.processes,
            tick_milliseconds: 1000.0 * spent / ticks,
            resident_mebibytes: resident_mebibytes(agent.pid())?,
        })
    }

    fn to_json(&self) -> Value {
        json!({ "cgroups": self.cgroups, "processes": self.processes, "busy_cgroups": self.busy,
                "busy_processes": self.busy_processes, "tick_milliseconds": self.tick_milliseconds,
                "resident_mebibytes": self.resident_mebibytes })
    }
}

/// Least squares over what is busy.
#[derive(Debug, PartialEq)]
struct Line {
    /// Milliseconds with nothing busy.
    start: f64,
    /// Milliseconds for each busy process.
    slope: f64,
    /// Share of the variance that it explains.
    r_squared: f64,
}

impl Line {
    fn through(points: &[Point]) -> Self {
        let count = points.len() as f64;
        let mean = |value: &dyn Fn(&Point) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (x, y) = (|p: &Point| f64::from(p.busy_processes), |p: &Point| p.tick_milliseconds);
        let (mean_x, mean_y) = (mean(&x), mean(&y));
        let covariance = mean(&|p| (x(p) - mean_x) * (y(p) - mean_y));
        let (variance_x, variance_y) = (mean(&|p| (x(p) - mean_x).powi(2)), mean(&|p| (y(p) - mean_y).powi(2)));
        let slope = covariance / variance_x;
        Self { start: mean_y - slope * mean_x, slope, r_squared: covariance * covariance / (variance_x * variance_y) }
    }
}

fn rows(curve: &[Point], smaller: &Point) -> Vec<Vec<String>> {
    let header = ["", "cgroups", "processes", "busy", "a tick", "resident"].map(str::to_owned).to_vec();
    let row = |name: &str, p: &Point| {
        let counts = [p.cgroups, p.processes, p.busy_processes].map(|count| count.to_string());
        let costs = [format!("{:.1} ms", p.tick_milliseconds), format!("{:.1} MiB", p.resident_mebibytes)];
        [name.to_owned()].into_iter().chain(counts).chain(costs).collect()
    };
    let rest = curve.iter().map(|point| row("by what is busy", point));
    std::iter::once(header).chain(rest).chain([row("less that exists", smaller)]).collect()
}

/// Processor time of all threads, in the kernel's nanoseconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let directory = format!("/proc/{pid}/task");
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))? {
        let file = task?.path().join("schedstat");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let on_processor = text.split(' ').next().and_then(|field| field.parse::<f64>().ok());
        nanoseconds += on_processor.with_context(|| format!("{} has another form", file.display()))?;
    }
    Ok(nanoseconds / 1e9)
}

fn resident_mebibytes(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let pages: f64 = text.split(' ').nth(1).context("/proc/PID/statm has another form")?.parse()?;
    Ok(pages * 4096.0 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_finds_slope_and_start() {
        let point = |busy_processes, tick_milliseconds| Point {
            cgroups: 0,
            processes: 0,
            busy: 0,
            busy_processes,
            tick_milliseconds,
            resident_mebibytes: 0.0,
        };
        let line = Line::through(&[point(0, 4.0), point(100, 6.0), point(200, 8.0)]);
        assert!(
            (line.start - 4.0).abs() < 1e-9 && (line.slope - 0.02).abs() < 1e-9 && (line.r_squared - 1.0).abs() < 1e-9
        );
    }
}
