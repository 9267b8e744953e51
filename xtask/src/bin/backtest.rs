//! What `cargo xtask backtest` runs: each policy of advice (`monitor::advise`) beside the corpus of the scorecard and what was recorded
//! besides, and the tables that README has.
//!
//! A program of its own, since it takes the agent's library to build.

#[path = "../scorecard/corpus.rs"]
#[expect(dead_code, reason = "the scorecard looks at more of a series")]
mod corpus;
#[path = "../scorecard/recorded.rs"]
mod recorded;

use anyhow::Result;
use clap::Parser;
use corpus::Series;
use monitor::advise::{
    backtest::{Backtest, front},
    fixed_limits::FixedLimits,
    life::{Life, intervals},
    past::Interval,
    policy::{Policy, Settings},
};
use std::{
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Prints what each policy would have cost the corpus.
#[derive(Parser)]
struct Arguments {
    /// Only series of these families, by the beginning of their names
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// A line for each series and policy
    #[arg(long)]
    all: bool,
}

/// A second of what was recorded counts as a minute: 13 minutes become 13 hours.
const TIME_SCALE: f64 = 60.0;
/// The scorecard's programs were kept small for the sake of the machine that they were recorded on: their bytes count so many times. Else most
/// would be below the least size that guardrails allow, and all policies alike.
const SIZE_SCALE: f64 = 8.0;
/// Ticks of generated lives are put together to intervals of this many seconds.
const INTERVAL_SECONDS: f64 = 60.0;
/// A ladder of fixed limits, in per cent of the largest peak.
const LADDER: [u64; 5] = [50, 75, 90, 95, 99];

/// For `recorded`, which is told where things are.
mod workspace {
    use std::path::Path;

    pub(crate) fn root() -> &'static Path {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        package.parent().unwrap_or(package)
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A life with all that is told of it.
struct Told {
    name: String,
    is_recorded: bool,
    leaks: bool,
    /// Whether it is of the half that nothing was tuned on.
    is_kept: bool,
    costs: [Backtest; Policy::ALL.len()],
    hours: f64,
    largest_bytes: u64,
    /// Kills at each rung of the ladder.
    ladder: [u64; LADDER.len()],
}

type Part = (&'static str, fn(&Told) -> bool);

/// What is added up.
const PARTS: [Part; 6] = [
    ("the half that was tuned on", |told| !told.is_kept),
    ("the half that was not", |told| told.is_kept),
    ("generated", |told| !told.is_recorded),
    ("recorded from real programs", |told| told.is_recorded),
    ("without those that leak", |told| !told.leaks),
    ("all of it", |_| true),
];

fn run(arguments: &Arguments) -> Result<()> {
    let sized = recorded::histories()?;
    let mut lives: Vec<(Series, f64)> = recorded::all()?.into_iter().map(|series| (series, SIZE_SCALE)).collect();
    lives.extend(sized.into_iter().chain(corpus::all()).chain(corpus::long()).map(|series| (series, 1.0)));
    lives.retain(|(series, _)| series.name.starts_with(&arguments.only));
    let told = in_parallel(&lives, |(series, size_scale)| tell(series, *size_scale));
    for (name, belongs) in PARTS {
        let part: Vec<_> = told.iter().filter(|told| belongs(told)).collect();
        print!("{}", table(name, &part));
    }
    print!("{}", histories(told.iter().filter(|told| told.is_recorded || arguments.all)));
    Ok(())
}

fn tell(series: &Series, size_scale: f64) -> Told {
    let intervals = if series.is_recorded {
        intervals(series.rows.iter().map(|row| (row.time, (row.working_set * size_scale) as u64)), TIME_SCALE)
    } else {
        by_the_minute(series)
    };
    let fixed = FixedLimits::of(&intervals);
    let largest_bytes = fixed.largest_bytes();
    let hours = intervals.iter().map(|interval| interval.seconds).sum::<f64>() / 3600.0;
    let life = Life::new(intervals, monitor::detect::Settings::default());
    Told {
        name: series.name.clone(),
        is_recorded: series.is_recorded,
        leaks: series.leak_begins.is_some(),
        is_kept: series.is_kept(),
        costs: Policy::ALL.map(|policy| Backtest::of(policy, &life, &Settings::default())),
        hours,
        largest_bytes,
        ladder: LADDER.map(|percent| fixed.kills_at(largest_bytes / 100 * percent)),
    }
}

/// The agent's own intervals: the largest and the mean of a minute's ticks.
fn by_the_minute(series: &Series) -> Vec<Interval> {
    let mut intervals = Vec::new();
    for minute in series.rows.chunk_by(|one, next| minute(one.time) == minute(next.time)) {
        let (sum, largest) = minute
            .iter()
            .fold((0.0, 0.0f64), |(sum, largest), row| (sum + row.working_set, largest.max(row.working_set)));
        let begin = minute.first().map_or(0.0, |row| (row.time / INTERVAL_SECONDS).floor() * INTERVAL_SECONDS);
        intervals.push(Interval {
            end_seconds: begin + INTERVAL_SECONDS,
            seconds: INTERVAL_SECONDS,
            peak_bytes: largest as u64,
            mean_bytes: (sum / minute.len() as f64) as u64,
        });
    }
    intervals
}

fn minute(seconds: f64) -> u64 {
    (seconds / INTERVAL_SECONDS) as u64
}

/// What a function says of each, by all processors, in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((place, item)) = {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    items.get(place).map(|item| (place, item))
                } {
                    let result = of(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

fn table(name: &str, part: &[&Told]) -> String {
    let sums = Policy::ALL.map(|policy| {
        let place = Policy::ALL.iter().position(|other| *other == policy).unwrap_or_default();
        (policy, part.iter().map(|told| told.costs[place]).sum::<Backtest>())
    });
    let (leaks, hours) =
        (part.iter().filter(|told| told.leaks).count(), part.iter().map(|told| told.hours).sum::<f64>());
    let mut text = format!("{name}: {} lives, {leaks} of them leak, {hours:.0} hours\n\n", part.len());
    text += "| policy | kills | wasted GiB·h | borrowed GiB·h | limit above use GiB·h | changes | on the front |\n|---|---|---|---|---|---|---|\n";
    let front = front(&sums);
    for (policy, costs) in &sums {
        text += &format!(
            "| `{}` | {} | {:.0} | {:.0} | {:.0} | {} | {} |\n",
            policy.name(),
            costs.kills,
            costs.wasted_gib_hours,
            costs.borrowed_gib_hours,
            costs.limit_headroom_gib_hours,
            costs.changes,
            if front.contains(policy) { "yes" } else { "no" },
        );
    }
    text + "\n"
}

/// Each by itself: kills at the ladder, and kills, wasted GiB · hours and changes by each policy.
fn histories<'a>(all: impl Iterator<Item = &'a Told>) -> String {
    let rungs: Vec<_> = LADDER.iter().map(|percent| format!("{percent} %")).collect();
    let policies: Vec<_> = Policy::ALL.iter().map(|policy| format!("`{}`", policy.name())).collect();
    let mut text = format!(
        "each by itself: kills at fixed limits in per cent of its largest peak; kills / wasted GiB·h / changes by policy\n\n\
         | life | hours | largest MiB | {} | {} |\n|{}\n",
        rungs.join(" | "),
        policies.join(" | "),
        "---|".repeat(3 + rungs.len() + policies.len()),
    );
    for told in all {
        let kills: Vec<_> = told.ladder.iter().map(u64::to_string).collect();
        let costs: Vec<_> = told
            .costs
            .iter()
            .map(|costs| format!("{} / {:.1} / {}", costs.kills, costs.wasted_gib_hours, costs.changes))
            .collect();
        let leaks = if told.leaks { " (leaks)" } else { "" };
        let largest = told.largest_bytes >> 20;
        text += &format!(
            "| {}{leaks} | {:.0} | {largest} | {} | {} |\n",
            told.name,
            told.hours,
            kills.join(" | "),
            costs.join(" | ")
        );
    }
    text
}
