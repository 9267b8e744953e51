//! `monitor compare`: two recordings side by side, such as of a program before and after a change.

use super::{analyze::signed_bytes, samples, settings::Source, written};
use crate::{
    config::Regression,
    detect::{Estimate, Judge, Point, Verdict},
    output::{self, fit},
    units::human_bytes,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Memory at start-up is what there is before the first request; where none are counted, after so many seconds.
const START_SECONDS: f64 = 60.0;
/// Columns of a subject's name in the table.
const NAME_WIDTH: usize = 36;

/// Put the memory of two recordings side by side: at start-up, per request, and at its peak.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each is a recording, a directory of recordings, or a CSV file as `monitor analyze` takes it. Start-up is the working set before the
first request that is counted, or else a minute after the subject was first seen. Per 1,000 requests is its growth with them.

Examples:
  monitor compare before.rec after.rec
  monitor compare --json main.csv branch.csv | jq '.subjects[] | select(.b.peak_bytes > 1.1 * .a.peak_bytes)'")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// The one.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The other.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A subject in both.
#[derive(Debug, Serialize)]
struct Compared {
    subject: String,
    /// None where it is not in that recording.
    a: Option<Memory>,
    b: Option<Memory>,
}

/// What is told of a subject in one recording.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Memory {
    start_bytes: u64,
    bytes_per_1000_requests: Option<Estimate>,
    requests: Option<u64>,
    peak_bytes: u64,
    mean_bytes: u64,
    verdict: Verdict,
    seconds: f64,
}

/// A subject while its points come.
struct Seen {
    judge: Judge,
    first: Point,
    last: Point,
    start_bytes: u64,
    peak_bytes: u64,
    /// Bytes times seconds.
    sum: f64,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let regression = arguments.source.load()?.config.regression;
    let (a, b) = (read(&arguments.a, regression)?, read(&arguments.b, regression)?);
    let compared = compare(a, b);
    let text =
        if arguments.json { format!("{:#}\n", serde_json::json!({ "subjects": compared })) } else { table(&compared) };
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}

/// All subjects of a recording. A tree's pid says nothing in another recording: it is left out of the name unless two trees would
/// be the same then.
fn read(path: &Path, regression: Regression) -> anyhow::Result<BTreeMap<String, Memory>> {
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    samples::read(path, &mut |name, point, _| {
        if let Some(seen) = all.get_mut(name) {
            seen.push(point);
        } else {
            all.insert(name.to_owned(), Seen::new(point, regression));
        }
    })?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    all.keys().for_each(|name| *counts.entry(without_pid(name)).or_default() += 1);
    let renamed = all.into_iter().map(|(name, mut seen)| {
        let short = without_pid(&name);
        (if counts[&short] == 1 { short } else { name }, seen.memory())
    });
    Ok(renamed.collect())
}

/// "tree 812 postgres" is "tree postgres".
fn without_pid(name: &str) -> String {
    let rest = name.strip_prefix("tree ").and_then(|rest| rest.split_once(' '));
    match rest.filter(|(pid, _)| pid.parse::<u32>().is_ok()) {
        Some((_, command)) => format!("tree {command}"),
        None => name.to_owned(),
    }
}

impl Seen {
    fn new(point: &Point, regression: Regression) -> Self {
        let mut judge = Judge::new(regression);
        judge.push(point);
        let bytes = point.working_set_bytes;
        Self { judge, first: *point, last: *point, start_bytes: bytes, peak_bytes: bytes, sum: 0.0 }
    }

    fn push(&mut self, point: &Point) {
        if point.time_seconds <= self.last.time_seconds {
            return;
        }
        let bytes = point.working_set_bytes;
        let served = |point: &Point| point.requests_total.unwrap_or_default();
        let is_starting = match point.requests_total {
            Some(_) if served(point) > served(&self.first) => false,
            Some(served) if served > 0 => point.time_seconds - self.first.time_seconds <= START_SECONDS,
            Some(_) => true,
            None => point.time_seconds - self.first.time_seconds <= START_SECONDS,
        };
        if is_starting {
            self.start_bytes = bytes;
        }
        self.peak_bytes = self.peak_bytes.max(bytes).max(point.peak_bytes.unwrap_or_default());
        self.sum += bytes as f64 * (point.time_seconds - self.last.time_seconds);
        self.last = *point;
        self.judge.push(point);
    }

    fn memory(&mut self) -> Memory {
        let judgement = self.judge.judgement();
        let seconds = self.last.time_seconds - self.first.time_seconds;
        let served =
            self.last.requests_total.map(|last| last - self.first.requests_total.unwrap_or_default().min(last));
        Memory {
            start_bytes: self.start_bytes,
            bytes_per_1000_requests: judgement.bytes_per_1000_requests,
            requests: served,
            peak_bytes: self.peak_bytes,
            mean_bytes: if seconds > 0.0 { (self.sum / seconds) as u64 } else { self.start_bytes },
            verdict: judgement.verdict,
            seconds,
        }
    }
}

/// Those in both, then those in one alone.
fn compare(mut a: BTreeMap<String, Memory>, mut b: BTreeMap<String, Memory>) -> Vec<Compared> {
    let names: Vec<String> = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))).cloned().collect();
    let all = names.into_iter().map(|subject| {
        let (a, b) = (a.remove(&subject), b.remove(&subject));
        Compared { subject, a, b }
    });
    let (both, one): (Vec<_>, Vec<_>) = all.partition(|compared| compared.a.is_some() && compared.b.is_some());
    both.into_iter().chain(one).collect()
}

fn table(all: &[Compared]) -> String {
    let mut text = format!(
        "{:<NAME_WIDTH$}  {:>29}  {:>26}  {:>29}  VERDICT\n",
        "SUBJECT", "START-UP", "PER 1,000 REQUESTS", "PEAK"
    );
    for Compared { subject, a, b } in all {
        let pair = |of: fn(&Memory) -> u64| {
            let (a, b) = (a.as_ref().map(of), b.as_ref().map(of));
            let show = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| human_bytes(bytes as f64));
            format!("{} > {}{}", show(a), show(b), change(a, b))
        };
        let rate = |memory: &Option<Memory>| {
            let rate = memory.and_then(|memory| memory.bytes_per_1000_requests);
            rate.map_or_else(|| "-".to_owned(), |rate| signed_bytes(rate.value))
        };
        let verdict = |memory: &Option<Memory>| memory.map_or("-", |memory| memory.verdict.name());
        let _ = writeln!(
            text,
            "{:<NAME_WIDTH$}  {:>29}  {:>26}  {:>29}  {} > {}",
            fit(&output::harmless(subject), NAME_WIDTH),
            pair(|memory| memory.start_bytes),
            format!("{} > {}", rate(a), rate(b)),
            pair(|memory| memory.peak_bytes),
            verdict(a),
            verdict(b),
        );
    }
    text
}

/// By how much it changed: " +12%".
fn change(a: Option<u64>, b: Option<u64>) -> String {
    match a.zip(b) {
        Some((a, b)) if a > 0 => format!(" {:+.0}%", (b as f64 / a as f64 - 1.0) * 100.0),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MIB: u64 = 1 << 20;

    /// A server that starts at so many mebibytes, and after two minutes serves ten requests a second, each of which leaves so many
    /// bytes.
    fn server(name: &str, start: u64, leaves: u64) -> String {
        let mut text = "timestamp,subject,working_set_bytes,requests_total\n".to_owned();
        for second in 0..900_u64 {
            let served = second.saturating_sub(120) * 10;
            let bytes = start * MIB + served * leaves;
            let _ = writeln!(text, "{second},{name},{bytes},{served}");
        }
        text
    }

    fn compared(a: &str, b: &str) -> Vec<Compared> {
        let directory = tempfile::tempdir().unwrap();
        let subjects = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            read(&path, Regression::default()).unwrap()
        };
        compare(subjects("a.csv", a), subjects("b.csv", b))
    }

    #[test]
    fn a_program_before_and_after_a_change_is_told_by_start_up_growth_and_peak() {
        let all = compared(&server("tree 10 web", 100, 0), &server("tree 999 web", 150, 10_240));
        assert_eq!((all.len(), all[0].subject.as_str()), (1, "tree web"));
        let (a, b) = (all[0].a.unwrap(), all[0].b.unwrap());
        assert_eq!((a.start_bytes, b.start_bytes), (100 * MIB, 150 * MIB));
        assert_eq!((a.peak_bytes, b.peak_bytes), (100 * MIB, 150 * MIB + 7790 * 10_240));
        assert_eq!((a.requests, a.seconds), (Some(7790), 899.0));
        let growth = b.bytes_per_1000_requests.unwrap().value;
        assert!((growth / 10_240_000.0 - 1.0).abs() < 0.01, "{growth}");
        assert_eq!((a.verdict, b.verdict), (Verdict::Stable, Verdict::Leak));
        let text = table(&all);
        assert!(text.contains("100.0 MiB > 150.0 MiB +50%") && text.contains("stable > leak"), "{text}");
    }

    #[test]
    fn who_is_in_one_alone_comes_last_and_two_of_the_same_name_keep_their_pids() {
        let text = |names: &[&str]| {
            let rows = names.iter().map(|name| server(name, 10, 0).lines().skip(1).collect::<Vec<_>>().join("\n"));
            let rows = rows.collect::<Vec<_>>().join("\n");
            format!("timestamp,subject,working_set_bytes,requests_total\n{rows}\n")
        };
        let all = compared(&text(&["a", "tree 1 web", "tree 2 web"]), &text(&["tree 3 db", "a"]));
        let names: Vec<_> = all.iter().map(|one| one.subject.as_str()).collect();
        assert_eq!(names, ["a", "tree 1 web", "tree 2 web", "tree db"]);
        assert!(all[1].b.is_none() && all[3].a.is_none());
    }

    #[test]
    fn without_requests_start_up_is_the_first_minute() {
        let mut text = "timestamp,subject,working_set_bytes\n".to_owned();
        for second in 0..200_u64 {
            // It grows, and gives all of it back.
            let _ = writeln!(text, "{second},job,{}", (10 + second.min(150) % 150) * MIB);
        }
        let all = compared(&text, &text);
        let told = all[0].a.unwrap();
        assert_eq!((told.start_bytes, told.peak_bytes), (70 * MIB, 159 * MIB));
    }
}
