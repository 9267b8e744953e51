//! `monitor findings`: what the detectors claim, for people.

use super::query::Asked;
use crate::{output, units::human_duration};
use serde::Deserialize;
use std::{process::ExitCode, time::Duration};

/// Show what the detectors claim, the worst first: which process trees and containers leak memory, how fast, and when they
/// will be at their limit.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  monitor findings                                     of the running agent
  monitor findings --all                               what may become something, too
  monitor findings --json | jq '.findings[].subject'   with all figures, and what they rest on
  monitor findings --from night.rec --at=-1h           as it stood an hour before a recording's end")]
pub(super) struct Arguments {
    #[command(flatten)]
    asked: Asked,
    /// Show notices, too: what may become something.
    #[arg(long)]
    all: bool,
    /// Print the answer of /v1/findings.
    #[arg(long, conflicts_with = "all")]
    json: bool,
}

/// What is shown of the answer.
#[derive(Debug, Deserialize)]
struct Answer {
    time_ns: u64,
    watched: usize,
    left_out: usize,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    detector: String,
    severity: String,
    since_ns: u64,
    summary: String,
    confidence: Option<f64>,
}

const NOTICE: &str = "notice";

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    arguments.asked.print("/v1/findings", arguments.json, |answer| show(answer, arguments.all))
}

fn show(answer: &Answer, all: bool) -> String {
    let Answer { time_ns, watched, left_out, findings } = answer;
    let (notices, told): (Vec<_>, Vec<_>) = findings.iter().partition(|finding| finding.severity == NOTICE);
    let shown = if all { findings.iter().collect() } else { told };
    let mut text = String::new();
    if !shown.is_empty() {
        text += &line("SEVERITY", "DETECTOR", "FOR", "SURE", "WHAT");
    }
    for Finding { detector, severity, since_ns, summary, confidence } in &shown {
        let age = human_duration(Duration::from_nanos(time_ns.saturating_sub(*since_ns)));
        let sure = confidence.map_or_else(String::new, |sure| format!("{:.0} %", sure * 100.0));
        text += &line(severity, detector, &age, &sure, &output::harmless(summary));
    }
    let subjects = if *watched == 1 { "process tree or container" } else { "process trees and containers" };
    let found = if shown.is_empty() { "nothing found: " } else { "" };
    text += &format!("{found}{watched} {subjects} watched");
    if *left_out > 0 {
        text += &format!(", {left_out} left out, as there are too many");
    }
    if !all && !notices.is_empty() {
        text += &format!("; with --all: {} that may become something", notices.len());
    }
    text.push('\n');
    text
}

fn line(severity: &str, detector: &str, age: &str, sure: &str, what: &str) -> String {
    format!("{severity:<9} {detector:<11} {age:>10} {sure:>5}  {what}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: &str, confidence: Option<f64>) -> Finding {
        let summary = format!("one that is a {severity}\x1b[2J");
        Finding { detector: "leak".into(), severity: severity.into(), since_ns: 1_000_000_000, summary, confidence }
    }

    fn answer(findings: Vec<Finding>, watched: usize, left_out: usize) -> Answer {
        Answer { time_ns: 73_500_000_000, watched, left_out, findings }
    }

    #[test]
    fn findings_are_a_line_each_and_notices_are_shown_on_demand() {
        let answer = answer(vec![finding("warning", Some(0.98)), finding("notice", None)], 12, 0);
        let head = "SEVERITY  DETECTOR           FOR  SURE  WHAT\n";
        let warning = "warning   leak            1m 12s  98 %  one that is a warning?[2J\n";
        let notice = "notice    leak            1m 12s        one that is a notice?[2J\n";
        let rest = "12 process trees and containers watched";
        assert_eq!(show(&answer, true), format!("{head}{warning}{notice}{rest}\n"));
        assert_eq!(show(&answer, false), format!("{head}{warning}{rest}; with --all: 1 that may become something\n"));
    }

    #[test]
    fn where_nothing_is_found_it_says_what_was_looked_at() {
        assert_eq!(show(&answer(vec![], 1, 0), false), "nothing found: 1 process tree or container watched\n");
        let crowded = "nothing found: 512 process trees and containers watched, 3 left out, as there are too many\n";
        assert_eq!(show(&answer(vec![], 512, 3), true), crowded);
    }
}
