//! `cargo xtask scorecard`: how well leaks are told from innocent growth, on a corpus of generated lives (`corpus`) and of recorded
//! ones (`recorded`), beside two well-known rules (`rules`). The detectors are those of the built `monitor analyze`: they see what a user's file would show them.

mod corpus;
mod recorded;
mod rules;

use crate::{process, workspace};
use anyhow::{Context, Result, bail};
use corpus::Series;
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Series that one process judges.
const BATCH: usize = 16;
/// What the leak detector must reach on the kept half, in precision and in recall.
const BAR: f64 = 0.97;
const DETECTORS: [&str; 4] = ["leak", "regression", "slope of 1 h", "R² of 6 h"];

/// Count how well leaks are told from innocent growth: precision, recall, time to detect, false alarms
///
/// Some 400 lives of subjects are generated, the same each time, and judged by `monitor analyze`. One half is there to improve
/// detectors by; of the other one only the counts are shown, and it fails where the detector `leak` has less than 0.97 in either there.
/// Besides, those of real programs are judged that tests/corpus/record.py recorded, and it is told which it got wrong.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Judge with this `monitor` instead of building one
    #[arg(long, value_name = "PATH")]
    monitor: Option<PathBuf>,
    /// Only series of these families, by the beginning of their names
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let monitor = options.monitor.clone().map_or_else(build, Ok)?;
    let directory = workspace::target_directory()?.join("scorecard");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut parts = Parts::default();
    let mut batch = Vec::new();
    for series in corpus::all().chain(recorded::all()?).filter(|series| series.name.starts_with(&options.only)) {
        batch.push(series);
        if batch.len() == BATCH {
            judge(&monitor, &directory, &std::mem::take(&mut batch), &mut parts)?;
        }
    }
    judge(&monitor, &directory, &batch, &mut parts)?;
    let [tuning, kept, recorded] = &parts;
    print!("{}", table(&parts));
    tuning.wrong.iter().chain(&recorded.wrong).for_each(|line| println!("{line}"));
    let leak = &kept.scores[0];
    if options.only.is_empty() && (leak.precision() < BAR || leak.recall() < BAR) {
        bail!("the detector leak has less than {BAR} in precision or recall on the kept half");
    }
    Ok(())
}

/// In release mode: there are two million samples.
fn build() -> Result<PathBuf> {
    process::run(process::cargo().args(["build", "--release", "--package", "monitor"]))?;
    Ok(workspace::target_directory()?.join("release/monitor"))
}

/// What one detector says of one series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Opinion {
    /// Since when it says leak at the end; none where it does not.
    leaks_since: Option<f64>,
    /// How often it began to say leak.
    alarms: f64,
}

/// The counts of one detector.
#[derive(Default)]
struct Score {
    found: u32,
    missed: u32,
    false_alarms: u32,
    /// From a leak's beginning to the verdict, in seconds.
    times: Vec<f64>,
    /// Of innocent subjects.
    alarms: f64,
    days: f64,
}

/// The half to improve detectors by, the kept one, and what was recorded.
type Parts = [Part; 3];
const PARTS: [&str; 3] = ["tuning half", "kept half", "recorded from real programs"];

/// One part of the corpus.
#[derive(Default)]
struct Part {
    series: u32,
    leaks: u32,
    scores: [Score; DETECTORS.len()],
    /// Where the detector `leak` is wrong.
    wrong: Vec<String>,
}

fn judge(monitor: &Path, directory: &Path, batch: &[Series], parts: &mut Parts) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let files: Vec<_> = batch.iter().map(|series| directory.join(format!("{}.csv", series.name))).collect();
    batch.iter().zip(&files).try_for_each(|(series, file)| {
        fs::write(file, csv(series)).with_context(|| format!("cannot write {}", file.display()))
    })?;
    let text = process::output(Command::new(monitor).args(["analyze", "--json"]).args(&files))?;
    let json: Value = serde_json::from_str(&text).context("monitor analyze wrote something else than JSON")?;
    for series in batch {
        let subject =
            json["subjects"].as_array().into_iter().flatten().find(|subject| subject["subject"] == *series.name);
        let subject = subject.with_context(|| format!("monitor analyze says nothing of {}", series.name))?;
        let opinions = [of_leak(subject), of_regression(subject), rules::slope(series), rules::fit(series)];
        let part = if series.is_recorded { 2 } else { usize::from(series.is_kept()) };
        parts[part].count(series, &opinions, subject);
    }
    files.iter().try_for_each(|file| fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display())))
}

fn of_leak(subject: &Value) -> Opinion {
    let leaks = subject["verdict"] == "leak";
    let alarms = subject["detectors"]["leak"]["leaks_total"].as_f64().unwrap_or_default();
    Opinion { leaks_since: subject["since"].as_f64().filter(|_| leaks), alarms }
}

fn of_regression(subject: &Value) -> Opinion {
    let report = &subject["detectors"]["regression"];
    let alarms = report["leak_alerts_count"].as_f64().unwrap_or_default();
    Opinion { leaks_since: report["since"].as_f64().filter(|_| report["leaking"] == true), alarms }
}

fn csv(series: &Series) -> String {
    let mut text = "timestamp,subject,working_set_bytes,anon_bytes,requests_total,oom_kills_total\n".to_owned();
    let whole = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.0}"));
    for row in &series.rows {
        let kills = row.oom_kills.map_or_else(String::new, |kills| kills.to_string());
        let (anon, requests) = (whole(row.anon), whole(row.requests));
        let _ = writeln!(text, "{},{},{:.0},{anon},{requests},{kills}", row.time, series.name, row.working_set);
    }
    text
}

impl Part {
    fn count(&mut self, series: &Series, opinions: &[Opinion; DETECTORS.len()], subject: &Value) {
        self.series += 1;
        self.leaks += u32::from(series.leak_begins.is_some());
        for (score, opinion) in self.scores.iter_mut().zip(opinions) {
            score.count(series, *opinion);
        }
        if series.leak_begins.is_some() != opinions[0].leaks_since.is_some() {
            let (verdict, reason) = (&subject["verdict"], &subject["detectors"]["leak"]["reason"]);
            self.wrong.push(format!("{} is said to be {verdict}, because of {reason}", series.name));
        }
    }
}

impl Score {
    fn count(&mut self, series: &Series, opinion: Opinion) {
        match (series.leak_begins, opinion.leaks_since) {
            (Some(begin), Some(since)) => {
                self.found += 1;
                self.times.push((since - begin).max(0.0));
            }
            (Some(_), None) => self.missed += 1,
            (None, since) => {
                self.false_alarms += u32::from(since.is_some());
                self.alarms += opinion.alarms;
                self.days += series.days();
            }
        }
    }

    /// Of those it calls leaks, the share that are.
    fn precision(&self) -> f64 {
        share(self.found, self.false_alarms)
    }

    /// Of the leaks, the share that it calls so.
    fn recall(&self) -> f64 {
        share(self.found, self.missed)
    }

    fn median_minutes(&self) -> Option<f64> {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        Some(times.get(times.len() / 2)? / 60.0)
    }
}

/// One where there is nothing to be wrong about.
fn share(part: u32, rest: u32) -> f64 {
    if part + rest == 0 { 1.0 } else { f64::from(part) / f64::from(part + rest) }
}

fn table(parts: &Parts) -> String {
    let mut text = String::new();
    for (name, part) in PARTS.iter().zip(parts) {
        let _ = writeln!(text, "{name}: {} series, {} of them leak\n", part.series, part.leaks);
        text.push_str("| detector | precision | recall | median time to detect | false alarms per subject-day |\n|---|---|---|---|---|\n");
        for (detector, score) in DETECTORS.iter().zip(&part.scores) {
            let minutes = score.median_minutes().map_or_else(|| "-".to_owned(), |minutes| format!("{minutes:.0} min"));
            let alarms = if score.days > 0.0 { score.alarms / score.days } else { 0.0 };
            let (precision, recall) = (score.precision(), score.recall());
            let _ = writeln!(text, "| {detector} | {precision:.3} | {recall:.3} | {minutes} | {alarms:.2} |");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(leak_begins: Option<f64>) -> Series {
        let row = |time| corpus::Row { time, working_set: 1e6, anon: None, requests: Some(time), oom_kills: None };
        Series { name: "a".to_owned(), is_recorded: false, leak_begins, rows: vec![row(0.0), row(86_400.0)] }
    }

    #[test]
    fn precision_and_recall_count_what_is_wrong() {
        let mut score = Score::default();
        let (said, unsaid) =
            (Opinion { leaks_since: Some(700.0), alarms: 1.0 }, Opinion { leaks_since: None, alarms: 2.0 });
        score.count(&series(Some(100.0)), said);
        score.count(&series(Some(100.0)), said);
        score.count(&series(Some(100.0)), unsaid);
        score.count(&series(None), said);
        score.count(&series(None), unsaid);
        assert!((score.precision() - 2.0 / 3.0).abs() < 1e-9 && (score.recall() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!((score.median_minutes(), score.alarms, score.days), (Some(10.0), 3.0, 2.0));
    }

    #[test]
    fn what_is_not_known_is_empty_in_the_table() {
        assert_eq!(csv(&series(None)).lines().nth(1), Some("0,a,1000000,,0,"));
    }

    #[test]
    fn opinions_are_read_from_the_answer() {
        let subject = serde_json::json!({"verdict": "leak", "since": 5.0, "detectors": {
            "leak": {"leaks_total": 3}, "regression": {"leaking": false, "since": null, "leak_alerts_count": 1}}});
        assert_eq!(of_leak(&subject), Opinion { leaks_since: Some(5.0), alarms: 3.0 });
        assert_eq!(of_regression(&subject), Opinion { leaks_since: None, alarms: 1.0 });
    }
}
