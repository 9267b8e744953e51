//! `cargo xtask bench turns`: what a load loses while the kernel programs are attached, which takes turns with not being
//! attached ten times a second: what a machine does by itself meanwhile, and is often more than what is sought, changes less
//! between two neighbours that are so near.

use super::{
    loopback::Loopback,
    scratch::Scratch,
    slowdown::{CONFIDENCE, GOAL_PERCENT, LIMIT_PERCENT, Redis},
    statistics::{median, median_absolute_deviation, median_interval},
};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

/// Measure what redis-benchmark loses while the kernel programs are attached, in turns of a tenth of a second
///
/// A server and its client run on, and the server's own count of commands says how fast they go while the programs are attached
/// and while they are not; or one thread is both ends of TCP connections, and its processor time is told. Connections are accepted
/// while the programs are attached, which count no others. The agent's own processor time is not in it: `bench agent` tells
/// that. Fails above 1 %.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Pairs of turns
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// What loses
    #[arg(long, value_enum, default_value_t = Load::Redis)]
    load: Load,
    /// Take the programs of one source only
    #[arg(long, value_name = "SOURCE")]
    only: Option<String>,
    /// Take empty programs for the same hooks: what these cost before anything is counted
    #[arg(long)]
    empty: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Load {
    /// redis-benchmark's GET against redis-server
    Redis,
    /// One thread that is both ends of TCP connections
    Loopback,
}

impl Load {
    const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis-benchmark",
            Self::Loopback => "a loopback round trip",
        }
    }

    /// Begins; then tells each time how many nanoseconds a request takes, over so long.
    fn start(self, directory: &Path) -> Result<Box<dyn FnMut(Duration) -> Result<f64>>> {
        Ok(match self {
            Self::Redis => {
                let mut redis = Redis::start(directory)?;
                Box::new(move |window| redis.nanoseconds_each(window))
            }
            Self::Loopback => {
                let mut loopback = Loopback::start()?;
                Box::new(move |window| loopback.nanoseconds_each(window))
            }
        })
    }
}

/// How long the pace is taken.
const WINDOW: Duration = Duration::from_millis(100);
/// After each change, until caches and branch predictors know what is run now.
const SETTLING_TIME: Duration = Duration::from_millis(20);

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut programs = Programs::load(options.only.as_deref(), options.empty)?;
    let scratch = Scratch::new("bench-turns")?;
    programs.set(true)?;
    let mut nanoseconds_each = options.load.start(scratch.path())?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..options.pairs {
        for attached in [pair % 2 == 0, pair % 2 != 0] {
            programs.set(attached)?;
            std::thread::sleep(SETTLING_TIME);
            let nanoseconds = nanoseconds_each(WINDOW)?;
            if attached { &mut with } else { &mut without }.push(nanoseconds);
        }
        if (pair + 1) % 50 == 0 {
            eprintln!("{}/{} pairs", pair + 1, options.pairs);
        }
    }
    let slowdowns: Vec<f64> = with.iter().zip(&without).map(|(with, without)| 100.0 * (with / without - 1.0)).collect();
    let (slowdown, interval) = (median(&slowdowns), median_interval(&slowdowns, CONFIDENCE));
    let (low, high) = interval.context("too few pairs: more of them tell")?;
    let deviation = median_absolute_deviation(&slowdowns);
    if options.json {
        let told = json!({
            "load": options.load.name(), "programs": programs.count, "empty": options.empty, "pairs": slowdowns.len(), "request_ns": median(&without),
            "slowdown_median_percent": slowdown, "slowdown_deviation_percent": deviation,
            "slowdown_interval_percent": [low, high], "limit_percent": LIMIT_PERCENT, "goal_percent": GOAL_PERCENT,
        });
        println!("{told:#}");
    } else {
        println!(
            "{} with {} {}programs attached: {slowdown:+.2} % by the median of {} pairs (95 %: {low:+.2} … {high:+.2}; deviation \
             {deviation:.2}) of {:.0} ns a request; limit {LIMIT_PERCENT} %, goal {GOAL_PERCENT} %",
            options.load.name(),
            programs.count,
            if options.empty { "empty " } else { "" },
            slowdowns.len(),
            median(&without),
        );
    }
    if slowdown > LIMIT_PERCENT { bail!("more than {LIMIT_PERCENT} %") } else { Ok(()) }
}

/// The program that has the kernel programs loaded. Ends with its standard input.
struct Programs {
    count: usize,
    child: Child,
    words: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Programs {
    fn load(only: Option<&str>, empty: bool) -> Result<Self> {
        let mut command = process::cargo();
        command.args(["bench", "--quiet", "--package", "tests", "--bench", "turns", "--"]);
        command.args(only.into_iter().flat_map(|source| ["--only", source])).args(empty.then_some("--empty"));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("cannot start cargo")?;
        let words = child.stdin.take().context("no standard input")?;
        let mut answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let first = answers.next().context("it cannot load the programs")??;
        let count = first.split(' ').next().and_then(|count| count.parse().ok());
        let count = count.with_context(|| format!("it says {first:?}"))?;
        Ok(Self { count, child, words, answers })
    }

    fn set(&mut self, attached: bool) -> Result<()> {
        writeln!(self.words, "{}", if attached { "attach" } else { "detach" }).context("it has ended")?;
        let answer = self.answers.next().context("it has ended")??;
        ensure!(answer.is_empty(), "it says {answer:?}");
        Ok(())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Fails only where it has ended; that it is gone matters for what is attached.
        let _ = writeln!(self.words, "detach");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
