//! `monitor oom`: why the kernel killed processes, for people.

use super::query::Asked;
use crate::{output, units::human_bytes, units::human_duration};
use serde::Deserialize;
use std::{process::ExitCode, time::Duration};

/// Show why the kernel killed processes for want of memory, the latest first: whose limit was reached, who grew into it in the
/// ten minutes before, and whom it hit. The last 32 are kept; with oom.directory each in a file.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  monitor oom                                          of the running agent
  monitor oom --json | jq '.stories[0].points'         with the last ten minutes of the cgroup
  monitor oom --from night.rec                         of a recording
  sudo monitor run --set oom.directory=/var/lib/monitor/oom   keeps each in a file")]
pub(super) struct Arguments {
    #[command(flatten)]
    asked: Asked,
    /// Print the answer of /v1/oom.
    #[arg(long)]
    json: bool,
}

/// What is shown of the answer.
#[derive(Debug, Deserialize)]
struct Answer {
    time_ns: u64,
    stories: Vec<Story>,
}

#[derive(Debug, Deserialize)]
struct Story {
    time_ns: u64,
    container: Option<String>,
    summary: String,
    limit: Limit,
    culprit: Option<Member>,
    culprit_was_killed: bool,
    members: Vec<Member>,
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Limit {
    known_by: String,
}

#[derive(Debug, Deserialize)]
struct Member {
    pid: u32,
    command: String,
    oom_killed: bool,
    first_bytes: u64,
    last_bytes: Option<u64>,
    grown_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Point {
    time_ns: u64,
    current_bytes: u64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    arguments.asked.print("/v1/oom", arguments.json, show)
}

fn show(answer: &Answer) -> String {
    if answer.stories.is_empty() {
        return "the kernel killed nobody for want of memory since the agent started\n".to_owned();
    }
    answer.stories.iter().map(|story| tell(story, answer.time_ns)).collect::<Vec<_>>().join("\n")
}

fn tell(story: &Story, now: u64) -> String {
    let ago = human_duration(Duration::from_nanos(now.saturating_sub(story.time_ns)));
    let container = story.container.as_ref().map(|container| format!(", container {container}")).unwrap_or_default();
    let mut text = format!("{ago} ago{container}: {}\n", output::harmless(&story.summary));
    if story.limit.known_by == "tightest_limit" {
        text += "  (all had gone before the kernel's counters were read: the limit is the tightest there was)\n";
    }
    if let Some(culprit) = story.culprit.as_ref().filter(|_| !story.culprit_was_killed) {
        let name = output::harmless(&culprit.command);
        text += &format!("  the victim is not who grew: {name} ({}) lives on\n", culprit.pid);
    }
    if let [first, .., last] = story.points.as_slice() {
        let span = human_duration(Duration::from_nanos(last.time_ns.saturating_sub(first.time_ns)));
        let (from, to) = (human_bytes(first.current_bytes as f64), human_bytes(last.current_bytes as f64));
        text += &format!("  memory in use went from {from} to {to} within {span}\n");
    }
    text += &line("PID", "BEFORE", "LAST", "GREW BY", "WHO");
    for member in &story.members {
        let bytes = |bytes: u64| human_bytes(bytes as f64);
        let last = member.last_bytes.map_or_else(|| "n/a".to_owned(), bytes);
        let killed = if member.oom_killed { "  KILLED" } else { "" };
        let who = format!("{}{killed}", output::harmless(&member.command));
        text += &line(&member.pid.to_string(), &bytes(member.first_bytes), &last, &bytes(member.grown_bytes), &who);
    }
    text
}

fn line(pid: &str, before: &str, last: &str, grown: &str, who: &str) -> String {
    format!("  {pid:>8} {before:>11} {last:>11} {grown:>11}  {who}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_grew_and_who_was_hit_are_told_apart() {
        let member = |pid, command: &str, oom_killed, first_bytes, last_bytes, grown_bytes| Member {
            pid,
            command: command.to_owned(),
            oom_killed,
            first_bytes,
            last_bytes,
            grown_bytes,
        };
        let grower = || member(7, "leaky\x1b[2J", false, 1 << 20, Some(50 << 20), 49 << 20);
        let story = Story {
            time_ns: 10_000_000_000,
            container: Some("shop/web-0/nginx".to_owned()),
            summary: "the kernel killed big (8)".to_owned(),
            limit: Limit { known_by: "counter".to_owned() },
            culprit: Some(grower()),
            culprit_was_killed: false,
            members: vec![grower(), member(8, "big", true, 60 << 20, None, 0)],
            points: vec![
                Point { time_ns: 0, current_bytes: 61 << 20 },
                Point { time_ns: 10_000_000_000, current_bytes: 110 << 20 },
            ],
        };
        let expected = "\
1m 5s ago, container shop/web-0/nginx: the kernel killed big (8)
  the victim is not who grew: leaky?[2J (7) lives on
  memory in use went from 61.0 MiB to 110.0 MiB within 10s
       PID      BEFORE        LAST     GREW BY  WHO
         7     1.0 MiB    50.0 MiB    49.0 MiB  leaky?[2J
         8    60.0 MiB         n/a         0 B  big  KILLED
";
        assert_eq!(show(&Answer { time_ns: 75_000_000_000, stories: vec![story] }), expected);
        assert!(show(&Answer { time_ns: 0, stories: vec![] }).starts_with("the kernel killed nobody"));
    }
}
