//! `monitor alerts`: what is out of the ordinary, for people; and a test of whom it is told.

use super::{query::Asked, settings, written};
use crate::{notify, output, units::human_duration};
use serde::Deserialize;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

/// Show what is, or was lately, out of the ordinary for long enough, the worst first: who waits for disks and who fills them,
/// whose memory is nearly used up, which GPUs idle and why, who leaks, whom the kernel killed.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  monitor alerts                                   of the running agent
  monitor alerts --json | jq '.alerts[].evidence'  with what they rest on
  monitor alerts --from night.rec --at=-1h         as it stood an hour before a recording's end
  monitor alerts test --config monitor.toml        tell everybody whom the settings name that this is a test

Thresholds, hold times, silences and sinks are settings: `monitor config` lists them, those of alerts begin with alert."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    asked: Asked,
    /// Print the answer of /v1/alerts.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Send one alert, and its end, through every sink that the settings name
    Test(settings::Source),
}

/// What is shown of the answer.
#[derive(Debug, Deserialize)]
struct Answer {
    time_ns: u64,
    left_out: usize,
    alerts: Vec<Alert>,
    sinks: Vec<Sink>,
}

#[derive(Debug, Deserialize)]
struct Alert {
    state: String,
    severity: String,
    since_ns: u64,
    resolved_ns: Option<u64>,
    summary: String,
    silenced: bool,
}

#[derive(Debug, Deserialize)]
struct Sink {
    name: String,
    dropped_total: u64,
    queued: u64,
    error: Option<String>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(Action::Test(settings)) = arguments.action {
        return test(settings);
    }
    arguments.asked.print("/v1/alerts", arguments.json, show)
}

/// Fails where a sink does.
fn test(settings: settings::Source) -> anyhow::Result<ExitCode> {
    let config = settings.load()?.config;
    notify::check(&config)?;
    let (mut text, mut failed) = (String::new(), false);
    for (name, result) in notify::test(&config)? {
        let told = match result {
            Ok(()) => "ok".to_owned(),
            Err(failure) => {
                failed = true;
                format!("FAILED: {}", output::harmless(&failure.reason))
            }
        };
        writeln!(text, "{name:<14} {told}")?;
    }
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(if failed { ExitCode::from(super::exit::FAILED) } else { ExitCode::SUCCESS })
}

fn show(answer: &Answer) -> String {
    let Answer { time_ns, left_out, alerts, sinks } = answer;
    let mut text = String::new();
    if !alerts.is_empty() {
        text += &line("STATE", "SEVERITY", "FOR", "WHAT");
    }
    for Alert { state, severity, since_ns, resolved_ns, summary, silenced } in alerts {
        let lasted = resolved_ns.unwrap_or(*time_ns).saturating_sub(*since_ns);
        let state = if *silenced { "silenced" } else { state };
        let lasted = human_duration(Duration::from_nanos(lasted));
        text += &line(state, severity, &lasted, &output::harmless(summary));
    }
    if !alerts.iter().any(|alert| alert.resolved_ns.is_none()) {
        text += "nothing is out of the ordinary now\n";
    }
    if *left_out > 0 {
        text += &format!("{left_out} more are left out, as there are too many\n");
    }
    for Sink { name, dropped_total, queued, error } in sinks {
        if let Some(error) = error {
            text += &format!("{name} is not told: {}; {queued} wait\n", output::harmless(error));
        }
        if *dropped_total > 0 {
            text += &format!("{name} was never told of {dropped_total}\n");
        }
    }
    text
}

fn line(state: &str, severity: &str, lasted: &str, what: &str) -> String {
    format!("{state:<9} {severity:<9} {lasted:>10}  {what}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(severity: &str, resolved_ns: Option<u64>, silenced: bool) -> Alert {
        let state = if resolved_ns.is_some() { "resolved" } else { "firing" };
        let summary = format!("a {severity}\x1b[2J");
        Alert {
            state: state.into(),
            severity: severity.into(),
            since_ns: 1_000_000_000,
            resolved_ns,
            summary,
            silenced,
        }
    }

    #[test]
    fn alerts_are_a_line_each_and_what_sinks_could_not_tell_is_told_here() {
        let alerts = vec![
            alert("critical", None, false),
            alert("warning", None, true),
            alert("warning", Some(11_000_000_000), false),
        ];
        let broken =
            Sink { name: "webhook".into(), dropped_total: 3, queued: 2, error: Some("connection refused".into()) };
        let fine = Sink { name: "log".into(), dropped_total: 0, queued: 0, error: None };
        let answer = Answer { time_ns: 73_500_000_000, left_out: 1, alerts, sinks: vec![fine, broken] };
        let expected = "\
STATE     SEVERITY         FOR  WHAT
firing    critical      1m 12s  a critical?[2J
silenced  warning       1m 12s  a warning?[2J
resolved  warning          10s  a warning?[2J
1 more are left out, as there are too many
webhook is not told: connection refused; 2 wait
webhook was never told of 3
";
        assert_eq!(show(&answer), expected);
    }

    #[test]
    fn where_all_is_well_it_says_so() {
        let nothing = Answer { time_ns: 0, left_out: 0, alerts: vec![], sinks: vec![] };
        assert_eq!(show(&nothing), "nothing is out of the ordinary now\n");
    }
}
