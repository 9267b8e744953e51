//! `monitor analyze`: whose memory leaks, by tables of samples or by recordings. One pass; what is kept of a subject is bounded.

mod subjects;

use super::{exit, samples, settings::Source, written};
use crate::{
    detect::{Judgement, Verdict},
    output::fit,
    units::{human_bytes, human_duration},
};
use clap::ValueEnum;
use serde_json::Value;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use subjects::Subjects;

/// Columns of a subject's name in the table.
const NAME_WIDTH: usize = 44;

/// Judge whose memory leaks, by CSV files of samples or by recordings.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A CSV file has a header with timestamp, subject and working_set_bytes, in any order, and where known anon_bytes (with swap),
limit_bytes, requests_total and oom_kills_total. Times are seconds or such as 2026-11-21T14:30:00Z, and go forward.
Verdicts: leak, growing (but not for sure a leak), stable, insufficient (fewer than 20 samples, 500 requests or 10 minutes).

Examples:
  monitor analyze night.rec                            each container and process tree of a recording
  monitor analyze /var/lib/monitor                     the same, of a directory of recordings
  monitor analyze --fail-on leak soak-test.csv         in CI: exits with 4 where something leaks
  monitor analyze --json soak-test.csv | jq '.subjects[] | select(.verdict == \"leak\")'")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// CSV files, recordings, or directories of recordings.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Exit with 4 where a subject leaks, or with "growing" where it grows at all.
    #[arg(long, value_name = "VERDICT")]
    fail_on: Option<FailOn>,
}

/// What fails a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FailOn {
    Leak,
    Growing,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut subjects = Subjects::new(arguments.source.load()?.config.regression);
    arguments.files.iter().try_for_each(|path| read(path, &mut subjects))?;
    if subjects.left_out > 0 {
        log::warn!("{} samples were not later than those before of their subject, and are left out", subjects.left_out);
    }
    let judged: Vec<_> = subjects.judged().collect();
    let failed = judged.iter().any(|(_, judgement, _)| arguments.fail_on.is_some_and(|on| on.fails(judgement.verdict)));
    let text = if arguments.json { json(&judged)? } else { table(&judged) };
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(if failed { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}

/// A subject's name, how it stands, and whether times are those of a calendar.
pub(super) type Judged<'a> = (&'a str, Judgement, bool);

impl FailOn {
    /// As the flag takes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Growing => "growing",
        }
    }

    /// Whether a verdict is what it names, or worse.
    pub(super) fn fails(self, verdict: Verdict) -> bool {
        verdict == Verdict::Leak || self == Self::Growing && verdict == Verdict::Growing
    }
}

fn read(path: &Path, subjects: &mut Subjects) -> anyhow::Result<()> {
    samples::read(path, &mut |name, point, calendar| subjects.push(name, point, calendar))
}

fn json(judged: &[Judged<'_>]) -> anyhow::Result<String> {
    let list = judged.iter().map(subject_json).collect::<serde_json::Result<Vec<_>>>()?;
    Ok(format!("{:#}\n", serde_json::json!({ "subjects": list })))
}

/// A subject with all that is said of it.
pub(super) fn subject_json((name, judgement, calendar): &Judged<'_>) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(judgement)?;
    if *calendar {
        show_times(&mut value);
    }
    let mut fields = serde_json::Map::new();
    fields.insert("subject".to_owned(), (*name).into());
    if let Value::Object(rest) = value {
        fields.extend(rest);
    }
    Ok(Value::from(fields))
}

/// Writes the times, wherever they are, as a calendar has them.
fn show_times(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value.as_f64() {
            Some(seconds) if name == "since" => *value = samples::show_time(seconds).into(),
            _ => show_times(value),
        }
    }
}

fn table(judged: &[Judged<'_>]) -> String {
    let mut text = format!(
        "{:<NAME_WIDTH$}  {:<12} {:>4}  {:>14}  {:>14}  {:>12}  SINCE\n",
        "SUBJECT", "VERDICT", "SURE", "PER HOUR", "PER 1,000 REQ.", "FULL IN"
    );
    for (name, judgement, calendar) in judged {
        let rate = |estimate: Option<crate::detect::Estimate>| {
            estimate.map_or_else(|| "-".to_owned(), |estimate| signed_bytes(estimate.value))
        };
        let left = judgement.seconds_to_limit.and_then(|left| Duration::try_from_secs_f64(left.value).ok());
        let since = if *calendar { samples::show_time(judgement.since) } else { judgement.since.to_string() };
        let _ = writeln!(
            text,
            "{:<NAME_WIDTH$}  {:<12} {:>3.0}%  {:>14}  {:>14}  {:>12}  {since}",
            fit(name, NAME_WIDTH),
            judgement.verdict.name(),
            judgement.confidence * 100.0,
            rate(judgement.bytes_per_hour),
            rate(judgement.bytes_per_1000_requests),
            left.map_or_else(|| "-".to_owned(), human_duration),
        );
    }
    text
}

pub(super) fn signed_bytes(bytes: f64) -> String {
    format!("{}{}", if bytes < 0.0 { "-" } else { "+" }, human_bytes(bytes.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What is said of a table, as JSON and as text.
    fn analyzed(table_text: &str) -> (Value, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        fs::write(&path, table_text).unwrap();
        let mut subjects = Subjects::new(crate::config::Regression::default());
        read(&path, &mut subjects).unwrap();
        let judged: Vec<_> = subjects.judged().collect();
        (serde_json::from_str(&json(&judged).unwrap()).unwrap(), table(&judged))
    }

    /// A server that leaks a MiB a second and one that does not, for five minutes.
    fn two(time: impl Fn(u32) -> String) -> String {
        let mut text = "requests_total,subject,timestamp,working_set_bytes,limit_bytes\n".to_owned();
        for second in 0..300u32 {
            let bytes = (100 + u64::from(second)) << 20;
            let _ = writeln!(text, "{},leaks,{},{bytes},1073741824", second * 10, time(second));
            let _ = writeln!(text, ",stays,{},{},", time(second), 100 << 20);
        }
        text
    }

    #[test]
    fn subjects_are_told_with_verdicts_rates_and_detectors() {
        let (json, text) = analyzed(&two(|second| second.to_string()));
        let [leaks, stays] = [0, 1].map(|i| &json["subjects"][i]);
        assert_eq!((&leaks["subject"], &leaks["verdict"]), (&"leaks".into(), &"leak".into()));
        assert_eq!((&stays["subject"], &stays["verdict"]), (&"stays".into(), &"insufficient".into()));
        let hourly = leaks["bytes_per_hour"]["value"].as_f64().unwrap() / f64::from(1 << 20);
        assert!((hourly - 3600.0).abs() < 1.0, "{leaks:#}");
        assert!(leaks["since"].as_f64().unwrap() < 120.0 && leaks["seconds_to_limit"]["low"].is_number());
        assert_eq!(leaks["detectors"]["regression"]["leaking"], true);
        assert_eq!(stays["detectors"]["regression"]["sample_count"], 100);
        assert!(stays["seconds_to_limit"].is_null() && stays["detectors"]["allocation"]["growing"] == false);
        let line = text.lines().find(|line| line.starts_with("leaks ")).unwrap();
        assert!(line.contains(" leak ") && line.contains("+3.5 GiB"), "{line}");
    }

    #[test]
    fn times_of_a_calendar_are_told_as_such() {
        let (json, _) = analyzed(&two(|second| format!("2026-11-21T14:{:02}:{:02}Z", second / 60, second % 60)));
        let leak = &json["subjects"][0];
        let since = leak["since"].as_str().unwrap();
        assert!(since.starts_with("2026-11-21T14:0") && since.ends_with('Z'), "{since}");
        assert!(leak["detectors"]["regression"]["since"].is_string());
    }

    #[test]
    fn growing_fails_only_where_that_is_asked() {
        assert!(FailOn::Leak.fails(Verdict::Leak) && FailOn::Growing.fails(Verdict::Leak));
        assert!(!FailOn::Leak.fails(Verdict::Growing) && FailOn::Growing.fails(Verdict::Growing));
        assert!(!FailOn::Growing.fails(Verdict::Stable) && !FailOn::Growing.fails(Verdict::Insufficient));
    }
}
