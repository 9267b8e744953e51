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
use corpus::{Row, Series};
use monitor::advise::{
    backtest::{Backtest, front},
    fixed_limits::FixedLimits,
    life::{Life, intervals},
    past::Interval,
    policy::{Policy, Settings},
};
use std::{
    iter,
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
const PARTS: [Part; 8] = [
    ("the half that was tuned on", |told| !told.is_kept),
    ("the half that was not", |told| told.is_kept),
    ("the half that was not, without those that leak", |told| told.is_kept && !told.leaks),
    ("the half that was not, those that leak", |told| told.is_kept && told.leaks),
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
    let number = |row: &Row| (row.time / INTERVAL_SECONDS).floor();
    let interval = |rows: &[Row]| {
        let sum: f64 = rows.iter().map(|row| row.working_set).sum();
        Interval {
            end_seconds: (rows.first().map_or(0.0, number) + 1.0) * INTERVAL_SECONDS,
            seconds: INTERVAL_SECONDS,
            peak_bytes: rows.iter().map(|row| row.working_set).fold(0.0, f64::max) as u64,
            mean_bytes: (sum / rows.len() as f64) as u64,
        }
    };
    series.rows.chunk_by(|one, next| number(one) == number(next)).map(interval).collect()
}

/// What a function says of each, by all processors, in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let numbers = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for (place, item) in numbers.map_while(|place| Some((place, items.get(place)?))) {
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
    let sums: Vec<_> = Policy::ALL
        .into_iter()
        .enumerate()
        .map(|(place, policy)| (policy, part.iter().map(|told| told.costs[place]).sum::<Backtest>()))
        .collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rows: &[(f64, f64)]) -> Series {
        let row =
            |&(time, working_set): &(f64, f64)| Row { time, working_set, anon: None, requests: None, oom_kills: None };
        Series { name: "a".to_owned(), is_recorded: false, leak_begins: None, rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn a_minute_is_its_largest_tick_and_their_mean() {
        let minutes = by_the_minute(&series(&[(0.0, 10.0), (20.0, 40.0), (40.0, 10.0), (60.0, 5.0), (185.0, 7.0)]));
        let of = |end_seconds, peak_bytes, mean_bytes| Interval { end_seconds, seconds: 60.0, peak_bytes, mean_bytes };
        assert_eq!(minutes, [of(60.0, 40, 20), of(120.0, 5, 5), of(240.0, 7, 7)]);
    }

    #[test]
    fn whoever_is_done_first_the_order_is_kept() {
        let items: Vec<u64> = (0..100).collect();
        let squares = in_parallel(&items, |item| {
            thread::yield_now();
            item * item
        });
        assert_eq!(squares, items.iter().map(|item| item * item).collect::<Vec<_>>());
    }

    #[test]
    fn the_corpus_has_a_dozen_real_programs_and_all_kinds_of_generated_ones() {
        assert!(recorded::all().unwrap().len() + recorded::histories().unwrap().len() >= 12);
        let names: Vec<_> = corpus::long().map(|series| series.name).collect();
        assert!(
            ["deploys", "weeks", "rare-spikes"].iter().all(|family| names.iter().any(|name| name.starts_with(family)))
        );
    }

    #[test]
    fn tables_have_a_line_for_each_policy_and_each_life() {
        let told = tell(&series(&(0..120).map(|minute| (f64::from(minute) * 60.0, 5e8)).collect::<Vec<_>>()), 1.0);
        assert_eq!((told.hours, told.ladder), (2.0, [1; 5]));
        let sums = table("all", &[&told, &told]);
        assert!(sums.starts_with("all: 2 lives, 0 of them leak, 4 hours\n"), "{sums}");
        let rules = Backtest { kills: 0, changes: 0, ..told.costs[0] };
        assert_eq!(told.costs[0], rules, "nothing happens");
        assert!(sums.contains(&format!("| `rules` | 0 | {:.0} | 0 | ", rules.wasted_gib_hours * 2.0)), "{sums}");
        let each = histories([&told].into_iter());
        assert!(each.contains("\n| a | 2 | 476 | 1 | 1 | 1 | 1 | 1 | 0 / "), "{each}");
    }
}
