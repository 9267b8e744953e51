//! `cargo xtask bench slowdown`: what ordinary work loses while the agent runs at defaults. Every piece of work is done in
//! pairs, once with the agent and once without, close together in time and in alternating order, so that a machine that
//! grows warmer or busier weighs on both alike.

mod account;
mod background;
mod compiler;
mod postgres;
mod python;
mod redis;
mod workload;

use super::{
    agent_process::{self, Agent},
    scratch::Scratch,
    statistics::{median, median_absolute_deviation, median_interval},
    table,
};
use account::Account;
use anyhow::{Result, bail};
pub(super) use redis::Redis;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use workload::{Prepare, Workload};

/// Measure what redis, PostgreSQL, a Python loop and a compiler lose while the agent runs at defaults
///
/// Takes some ten minutes. A workload fails when the median of its pairs is more than 1 % slower with the agent; one whose
/// programs are missing is reported as not run, and fails too. Quiet the machine first: other load is noise. One more run tells
/// what the kernel's own clock says that the programs took, which no other load disturbs; it leaves out what they do to caches.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Pairs of runs of each workload
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only this workload: redis-benchmark, pgbench, "Python loop" or compile; all of them when left out
    #[arg(long, value_parser = WORKLOADS.map(|(name, _)| name))]
    workload: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) const LIMIT_PERCENT: f64 = 1.0;
pub(super) const GOAL_PERCENT: f64 = 0.3;
pub(super) const CONFIDENCE: f64 = 0.95;

/// Before every run, with the agent or without: attaching is over by then, so that a run pays for the agent's work and not
/// for its start, and the other half of the pair starts from the same idle machine.
const SETTLING_TIME: Duration = Duration::from_millis(700);

const WORKLOADS: [(&str, Prepare); 4] = [
    ("redis-benchmark", redis::prepare),
    ("pgbench", postgres::prepare),
    ("Python loop", python::prepare),
    ("compile", compiler::prepare),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let agent = agent_process::build()?;
    let results: Vec<Outcome> = WORKLOADS
        .iter()
        .filter(|(name, _)| options.workload.as_deref().is_none_or(|only| only == *name))
        .map(|(name, prepare)| Outcome { name, result: measure(name, *prepare, options.rounds, &agent) })
        .collect();
    if options.json {
        let rows: Vec<Value> = results.iter().map(Outcome::to_json).collect();
        println!("{:#}", json!({ "limit_percent": LIMIT_PERCENT, "goal_percent": GOAL_PERCENT, "workloads": rows }));
    } else {
        print_results(&results);
    }
    if results.iter().any(|outcome| !matches!(&outcome.result, Ok(pairs) if pairs.is_within_limit())) {
        bail!("not every workload was run and stayed within {LIMIT_PERCENT} %");
    }
    Ok(())
}

/// Prepares one workload, warms it up and runs its pairs. An error says why it could not be measured.
fn measure(name: &str, prepare: Prepare, rounds: u32, agent: &Path) -> Result<Pairs> {
    let scratch = Scratch::new("bench-slowdown")?;
    eprintln!("{name}: preparing");
    let mut workload = prepare(scratch.path())?;
    workload.run()?;
    let mut pairs = Pairs::default();
    for round in 0..rounds {
        let (without, with) = if round % 2 == 0 {
            let without = run_settled(&mut workload)?;
            (without, run_with_agent(&mut workload, agent, scratch.path())?)
        } else {
            let with = run_with_agent(&mut workload, agent, scratch.path())?;
            (run_settled(&mut workload)?, with)
        };
        pairs.without.push(without.as_secs_f64());
        pairs.with.push(with.as_secs_f64());
        eprintln!("{name}: {}/{rounds}: {without:.3?} without, {with:.3?} with the agent", round + 1);
    }
    pairs.account = Some(account::take(&mut workload, agent, scratch.path())?);
    Ok(pairs)
}

fn run_with_agent(workload: &mut Workload, agent: &Path, scratch: &Path) -> Result<Duration> {
    let agent = Agent::start(agent, scratch)?;
    let duration = run_settled(workload)?;
    agent.stop()?;
    Ok(duration)
}

fn run_settled(workload: &mut Workload) -> Result<Duration> {
    std::thread::sleep(SETTLING_TIME);
    workload.run()
}

/// What became of one workload.
struct Outcome {
    name: &'static str,
    result: Result<Pairs>,
}

/// Seconds of the runs without and with the agent; those at one index were made one after the other.
#[derive(Default)]
struct Pairs {
    without: Vec<f64>,
    with: Vec<f64>,
    /// Of one more run, once all pairs are done.
    account: Option<Account>,
}

impl Pairs {
    /// By how much longer each pair's run with the agent took, in per cent.
    fn slowdowns(&self) -> Vec<f64> {
        self.with.iter().zip(&self.without).map(|(with, without)| percent_more(*with, *without)).collect()
    }

    fn is_within_limit(&self) -> bool {
        median(&self.slowdowns()) <= LIMIT_PERCENT
    }

    /// Above the limit counts as broken even where the interval reaches below it: more rounds can clear it, hope cannot.
    fn verdict(&self) -> &'static str {
        let slowdown = median(&self.slowdowns());
        let could_be_within =
            median_interval(&self.slowdowns(), CONFIDENCE).is_none_or(|(low, _)| low <= LIMIT_PERCENT);
        if slowdown <= GOAL_PERCENT {
            "ok, within the goal"
        } else if slowdown <= LIMIT_PERCENT {
            "ok"
        } else if could_be_within {
            "BROKEN, or noise: more --rounds tell"
        } else {
            "BROKEN"
        }
    }
}

fn percent_more(value: f64, reference: f64) -> f64 {
    100.0 * (value / reference - 1.0)
}

impl Outcome {
    fn to_json(&self) -> Value {
        let pairs = match &self.result {
            Ok(pairs) => pairs,
            Err(reason) => return json!({ "name": self.name, "not_run": format!("{reason:#}") }),
        };
        let slowdowns = pairs.slowdowns();
        json!({
            "name": self.name,
            "without_seconds": pairs.without,
            "with_seconds": pairs.with,
            "slowdown_median_percent": median(&slowdowns),
            "slowdown_deviation_percent": median_absolute_deviation(&slowdowns),
            "slowdown_interval_percent": median_interval(&slowdowns, CONFIDENCE).map(|(low, high)| [low, high]),
            "slowdown_of_medians_percent": percent_more(median(&pairs.with), median(&pairs.without)),
            "programs_percent": pairs.account.as_ref().map(Account::programs_percent),
            "agent_percent": pairs.account.as_ref().map(Account::agent_percent),
            "within_limit": pairs.is_within_limit(),
        })
    }

    fn row(&self) -> Option<Vec<String>> {
        let pairs = self.result.as_ref().ok()?;
        let slowdowns = pairs.slowdowns();
        let interval = median_interval(&slowdowns, CONFIDENCE)
            .map_or_else(|| "too few rounds".to_owned(), |(low, high)| format!("{low:+.2} … {high:+.2}"));
        Some(vec![
            self.name.to_owned(),
            format!("{:.3} s", median(&pairs.without)),
            format!("{:.3} s", median(&pairs.with)),
            format!("{:+.2} %", percent_more(median(&pairs.with), median(&pairs.without))),
            format!("{:+.2} %", median(&slowdowns)),
            format!("{:.2}", median_absolute_deviation(&slowdowns)),
            interval,
            pairs.verdict().to_owned(),
        ])
    }
}

fn print_results(results: &[Outcome]) {
    let header =
        ["workload", "without", "with agent", "of medians", "median of pairs", "deviation", "95 % interval", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(results.iter().filter_map(Outcome::row));
    print!("{}", table::render(&rows));
    for outcome in results {
        if let Err(reason) = &outcome.result {
            println!("{}: NOT RUN: {reason:#}", outcome.name);
        }
        if let Ok(Pairs { account: Some(account), .. }) = &outcome.result {
            println!("{}: {account}", outcome.name);
        }
    }
    println!("slowdown: limit {LIMIT_PERCENT} %, goal {GOAL_PERCENT} %, by the median of pairs");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(with: &[f64]) -> Pairs {
        Pairs { without: vec![1.0; with.len()], with: with.to_vec(), account: None }
    }

    #[test]
    fn pairs_are_judged_by_the_median_of_their_ratios() {
        let quiet = pairs(&[1.001, 1.002, 1.0, 1.001, 1.5, 0.9]);
        assert!((median(&quiet.slowdowns()) - 0.1).abs() < 1e-9);
        assert_eq!(quiet.verdict(), "ok, within the goal");
        assert_eq!(pairs(&[1.005; 8]).verdict(), "ok");
        assert_eq!(pairs(&[1.02; 8]).verdict(), "BROKEN");
        assert_eq!(pairs(&[0.9, 0.9, 1.02, 1.03, 1.03, 1.04]).verdict(), "BROKEN, or noise: more --rounds tell");
    }

    #[test]
    fn what_was_not_run_is_never_within_the_limit() {
        assert!(!Pairs::default().is_within_limit());
        let outcome = Outcome { name: "pgbench", result: Err(anyhow::anyhow!("pgbench is missing")) };
        assert_eq!(outcome.to_json(), json!({ "name": "pgbench", "not_run": "pgbench is missing" }));
        assert!(outcome.row().is_none());
    }
}
