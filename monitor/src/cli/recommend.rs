//! `monitor recommend`: what memory everybody should get, by the agent's own history or by files; and what each policy would have
//! cost.

mod yaml;

use super::{query, samples, settings::Source, written};
use crate::{
    advise::{
        Current,
        advisor::{Advice, Recommendations, Terms, parse_named},
        backtest::{self, Backtest},
        guardrails::quantity,
        histories::Histories,
        life::{self, Life},
        past::{Interval, Kill, Past},
        policy::Policy,
    },
    config::Config,
    detect::{Judge, Verdict},
    history::pages,
    output::{self, fit},
    time::BootTime,
    units::{human_bytes, human_duration},
};
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

/// Columns of a subject's name in the table.
const NAME_WIDTH: usize = 40;

/// Show what memory request and limit each container, service and process tree should get, and why: by what the running agent has
/// seen, or by files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Policies:
  rules   request = max(p95 * 1.20, mean * 1.50, 64Mi), limit = max(max * 1.10, request * 1.50)
  vpa     as Kubernetes' Vertical Pod Autoscaler: 90th percentile of daily peaks, the latest first, and 15 %
  krr     as Robusta's KRR: the largest and 15 %; after a kill 25 % more than the limit was
  peaks   by the peaks of intervals and how they vary; one that leaks gets no larger limit, but is told to leak
All are rounded up to 16Mi and kept within advice.request_min and such (`monitor config`). A change is proposed where it is more
than 20 % or 64Mi, and no two within half an hour.

A FILE is a table as `monitor analyze` takes it (each row one value, all of it the window), a recording, or a directory of
histories (advice.directory).

Examples:
  monitor recommend                                          by what the running agent has seen
  monitor recommend --policy peaks --format yaml             as a part of a manifest's status
  monitor recommend --from soak-test.csv --current web=256Mi:512Mi
  monitor recommend --backtest --from /var/lib/monitor/history   what each policy would have cost: kills, waste, changes")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// The agent's socket [default: /run/monitor/monitor.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "from")]
    socket: Option<PathBuf>,
    /// Go by these files instead of asking the agent.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
    /// How it is worked out [default: advice.policy]
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    policy: Option<Policy>,
    /// What a subject has now, such as web=256Mi:512Mi; may be repeated.
    #[arg(long, value_name = "SUBJECT=REQUEST:LIMIT", value_parser = named)]
    current: Vec<(String, Current)>,
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Replay what is known through all policies, and show what each would have cost.
    #[arg(long, conflicts_with = "socket", conflicts_with = "policy")]
    backtest: bool,
    /// A second of a table counts as so many: its rows were taken in time-lapse.
    #[arg(long, value_name = "N", default_value_t = 1.0, requires = "from", value_parser = scale)]
    time_scale: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table.
    Text,
    /// As /v1/recommendations has it.
    Json,
    /// As a manifest's status has it.
    Yaml,
}

fn policy(text: &str) -> Result<Policy, String> {
    Policy::named(text).ok_or_else(|| format!("it takes {}", Policy::ALL.map(Policy::name).join(", ")))
}

fn named(text: &str) -> Result<(String, Current), String> {
    let (name, sizes) = parse_named(text)
        .ok_or("it takes SUBJECT=REQUEST:LIMIT, such as web=256Mi:512Mi, the limit not below the request")?;
    let current = Current { request_bytes: Some(sizes.request_bytes), limit_bytes: Some(sizes.limit_bytes) };
    Ok((name, current))
}

fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse().ok().filter(|scale: &f64| (1e-3..=1e6).contains(scale));
    scale.ok_or_else(|| "it takes a number such as 60".to_owned())
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.source.clone().load()?.config;
    if let Some(socket) = &arguments.socket {
        config.socket.clone_from(socket);
    }
    let terms = Terms::of(&config.advice)?;
    let text = if arguments.backtest {
        backtested(&arguments, &config, terms)?
    } else {
        let mut all = match arguments.from.as_slice() {
            [] => asked(&config.socket, arguments.policy)?,
            files => by_files(files, &arguments, &config, terms)?,
        };
        for advice in &mut all.recommendations {
            if let Some(current) = current_of(&arguments.current, &advice.subject) {
                advice.set_current(current);
            }
        }
        match arguments.format {
            Format::Text => table(&all),
            Format::Json => serde_json::to_string_pretty(&all)? + "\n",
            Format::Yaml => yaml::status(&all.recommendations),
        }
    };
    written(io::stdout().write_all(text.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the flags say that a subject has: by all of its name, or a container's alone.
fn current_of(given: &[(String, Current)], subject: &str) -> Option<Current> {
    let is_meant = |name: &str| name == subject || subject.split_once(' ').is_some_and(|(_, short)| short == name);
    given.iter().find(|(name, _)| is_meant(name)).map(|(_, current)| *current)
}

/// What the agent says.
fn asked(socket: &Path, policy: Option<Policy>) -> anyhow::Result<Recommendations> {
    let path = policy.map_or_else(String::new, |policy| format!("?policy={}", policy.name()));
    let path = format!("/v1/recommendations{path}").parse().context("a path of our own")?;
    query::asked_agent(socket, &path)
}

/// Everybody in the files, with what they say.
#[derive(Default)]
struct Known {
    lives: BTreeMap<Arc<str>, Seen>,
}

#[derive(Default)]
struct Seen {
    intervals: Vec<Interval>,
    kills: Vec<Kill>,
    rows: Vec<(f64, u64)>,
    oom_kills_total: Option<u64>,
    limit_bytes: Option<u64>,
}

impl Known {
    fn read(files: &[PathBuf], config: &Config, time_scale: f64) -> anyhow::Result<Self> {
        let mut known = Self::default();
        for path in files {
            if pages::is_history(path) {
                known.read_history(path, config)?;
            } else {
                samples::read(path, &mut |name, point, _| {
                    let seen = known.lives.entry(name.into()).or_default();
                    let bytes =
                        point.peak_bytes.map_or(point.working_set_bytes, |peak| peak.max(point.working_set_bytes));
                    seen.rows.push((point.time_seconds, bytes));
                    if point.oom_kills_total.zip(seen.oom_kills_total).is_some_and(|(now, before)| now > before) {
                        let bytes = point.limit_bytes.unwrap_or(bytes);
                        seen.kills.push(Kill { time_seconds: point.time_seconds * time_scale, bytes });
                    }
                    seen.oom_kills_total = point.oom_kills_total;
                    seen.limit_bytes = point.limit_bytes;
                })?;
            }
        }
        for seen in known.lives.values_mut().filter(|seen| !seen.rows.is_empty()) {
            seen.intervals = life::intervals(std::mem::take(&mut seen.rows), time_scale);
        }
        if known.lives.is_empty() {
            bail!("there is nothing in the files: name others by --from");
        }
        Ok(known)
    }

    fn read_history(&mut self, path: &Path, config: &Config) -> anyhow::Result<()> {
        // All that is there.
        let keep = Duration::from_secs(366 * 24 * 3600);
        let mut histories = Histories::new(config.advice.interval, keep);
        let remarks = pages::read(path, |page, names| histories.put(page, names))?;
        remarks.iter().for_each(|remark| log::warn!("{remark}"));
        for name in histories.names() {
            let (intervals, kills) = histories.past(name);
            let seen = self.lives.entry(Arc::clone(name)).or_default();
            (seen.intervals, seen.kills) = (intervals, kills);
        }
        Ok(())
    }
}

fn by_files(
    files: &[PathBuf],
    arguments: &Arguments,
    config: &Config,
    terms: Terms,
) -> anyhow::Result<Recommendations> {
    let known = Known::read(files, config, arguments.time_scale)?;
    // Histories go on, and have their windows; of a table all is one.
    let terms = if files.iter().all(|path| pages::is_history(path)) { terms } else { terms.of_whole_pasts() };
    let policy = arguments.policy.unwrap_or_else(|| terms.policy());
    let mut recommendations = Vec::new();
    for (name, Seen { intervals, kills, limit_bytes, .. }) in &known.lives {
        let leak = leak(intervals, config);
        let past = Past { intervals, kills, leak: leak.as_deref() };
        let told = limit_bytes.map(|limit| Current { request_bytes: None, limit_bytes: Some(limit) });
        let current = current_of(&arguments.current, name).or(told);
        recommendations.extend(terms.advice(policy, name, &past, current, None));
    }
    Ok(Recommendations { time_ns: BootTime::now(), policy, recommendations, left_out: 0 })
}

/// What the detector says of all of it.
fn leak(intervals: &[Interval], config: &Config) -> Option<String> {
    let mut judge = Judge::new(config.regression);
    intervals.iter().for_each(|interval| judge.push(&interval.point()));
    let judgement = judge.judgement();
    let rate = judgement.bytes_per_hour.map(|rate| format!(" {} per hour", human_bytes(rate.value)));
    (judgement.verdict == Verdict::Leak).then(|| format!("leaks{}", rate.unwrap_or_default()))
}

fn backtested(arguments: &Arguments, config: &Config, terms: Terms) -> anyhow::Result<String> {
    let files = match (arguments.from.as_slice(), &config.advice.directory) {
        ([], Some(directory)) => &[PathBuf::from(directory)][..],
        ([], None) => bail!(
            "there is nothing to replay: name files by --from, or the directory where the agent keeps its history by \
             --set advice.directory=DIR"
        ),
        (files, _) => files,
    };
    let known = Known::read(files, config, arguments.time_scale)?;
    let mut told: Vec<_> = Policy::ALL.map(|policy| (policy, Backtest::default())).into();
    for (name, seen) in known.lives {
        let settings = terms.settings(&name, current_of(&arguments.current, &name));
        let life = Life::new(seen.intervals, config.regression);
        for (policy, costs) in &mut told {
            *costs += Backtest::of(*policy, &life, &settings);
        }
    }
    if arguments.format == Format::Text {
        return Ok(backtest::table(&told));
    }
    let front = backtest::front(&told);
    let all = told.iter().map(|(policy, costs)| {
        let mut value = serde_json::to_value(costs)?;
        (value["policy"], value["on_front"]) = (json!(policy), json!(front.contains(policy)));
        Ok(value)
    });
    let all = all.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(format!("{:#}\n", json!({ "policies": all })))
}

fn table(all: &Recommendations) -> String {
    if all.recommendations.is_empty() {
        return "nothing to advise yet: an interval of a minute must have ended (advice.interval), and what is smaller than 16 MiB \
                and no container or service is left alone\n"
            .to_owned();
    }
    let mut text = format!(
        "{:<NAME_WIDTH$}  {:>17}  {:>17}  {:>9} {:>9} {:>9} {:>8}  WHY\n",
        "SUBJECT", "REQUEST", "LIMIT", "MEAN", "P95", "MAX", "SEEN FOR"
    );
    for advice in &all.recommendations {
        let Advice { subject, current, observed, recommended, effective, proposed, rationale, .. } = advice;
        let current = current.unwrap_or_default();
        let change = |now: Option<u64>, then: u64, wished: u64| {
            let then = if wished == then { quantity(then) } else { format!("{}!", quantity(wished)) };
            now.map_or_else(|| then.clone(), |now| format!("{} > {then}", quantity(now)))
        };
        let window = Duration::try_from_secs_f64(observed.window_seconds).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:<NAME_WIDTH$}  {:>17}  {:>17}  {:>9} {:>9} {:>9} {:>8}  {}{rationale}",
            fit(&output::harmless(subject), NAME_WIDTH),
            change(current.request_bytes, recommended.request_bytes, effective.request.bytes),
            change(current.limit_bytes, recommended.limit_bytes, effective.limit.bytes),
            human_bytes(observed.ws_avg_bytes as f64),
            human_bytes(observed.ws_p95_bytes as f64),
            human_bytes(observed.ws_max_bytes as f64),
            human_duration(window).split(' ').next().unwrap_or_default(),
            if *proposed { "" } else { "(no change) " },
        );
    }
    if all.left_out > 0 {
        text += "more are left out, as there are too many\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::MEBIBYTE;
    use std::fs;

    /// What is said of a table of so many mebibytes, a row a minute.
    fn recommended(rows: &[u64], flags: &[&str]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        let mut text = "timestamp,subject,working_set_bytes\n".to_owned();
        for (minute, mebibytes) in rows.iter().enumerate() {
            let _ = writeln!(text, "{},function,{}", minute * 60, mebibytes * MEBIBYTE);
        }
        fs::write(&path, text).unwrap();
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let line = [&["recommend", "--from", path.to_str().unwrap()], flags].concat();
        let arguments = <Line as clap::Parser>::parse_from(line).arguments;
        let config = Config::default();
        let terms = Terms::of(&config.advice).unwrap();
        if arguments.backtest {
            return backtested(&arguments, &config, terms).unwrap();
        }
        let all = by_files(&arguments.from.clone(), &arguments, &config, terms).unwrap();
        match arguments.format {
            Format::Text => table(&all),
            Format::Json => serde_json::to_value(&all).unwrap().to_string(),
            Format::Yaml => yaml::status(&all.recommendations),
        }
    }

    /// Six hours whose mean is 110, whose 95th percentile is 180, and whose largest is 210.
    fn example() -> Vec<u64> {
        let mut rows = vec![100; 361];
        rows[340..].fill(180);
        rows[359] = 210;
        let missing = 110 * 361 - rows.iter().sum::<u64>();
        (0..missing as usize / 20).for_each(|place| rows[place] += 20);
        let left = 110 * 361 - rows.iter().sum::<u64>();
        rows[339] += left;
        rows
    }

    #[test]
    fn the_documents_example_is_reproduced_to_the_digit() {
        let expected = "\
containers:
- name: function
  current:
    request: 256Mi
    limit: 512Mi
  observed:
    ws_avg: 110Mi
    ws_p95: 180Mi
    ws_max: 210Mi
    window: 6h
  recommended:
    request: 216Mi
    limit: 324Mi
  rationale: \"p95-based with 20% headroom; rounded to 224Mi and 336Mi\"
";
        assert_eq!(recommended(&example(), &["--current", "function=256Mi:512Mi", "--format", "yaml"]), expected);
    }

    #[test]
    fn as_json_all_numbers_are_bytes_and_a_change_that_is_small_is_not_proposed() {
        let of = |flags: &[&str]| -> serde_json::Value {
            let text = recommended(&example(), &[flags, &["--format", "json"]].concat());
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["recommendations"][0].clone()
        };
        let told = of(&["--current", "function=256Mi:512Mi"]);
        assert_eq!(told["raw"], json!({ "request_bytes": 216 * MEBIBYTE, "limit_bytes": 324 * MEBIBYTE }));
        assert_eq!(told["recommended"], json!({ "request_bytes": 224 * MEBIBYTE, "limit_bytes": 336 * MEBIBYTE }));
        assert_eq!(told["observed"]["ws_p95_bytes"], 180 * MEBIBYTE);
        assert_eq!((&told["observed"]["window_seconds"], &told["proposed"]), (&json!(21600.0), &json!(true)));
        assert_eq!(told["effective"]["limit"], json!({ "bytes": 336 * MEBIBYTE, "source": "recommended" }));
        assert_eq!(of(&["--current", "function=240Mi:352Mi"])["proposed"], false);
        assert_eq!(of(&[])["current"], json!(null));
    }

    #[test]
    fn the_table_shows_from_what_to_what() {
        let text = recommended(&example(), &["--current", "function=256Mi:512Mi"]);
        let line = text.lines().nth(1).unwrap();
        assert!(
            line.starts_with("function ") && line.contains("256Mi > 224Mi") && line.contains("512Mi > 336Mi"),
            "{text}"
        );
        assert!(line.ends_with("p95-based with 20% headroom; rounded to 224Mi and 336Mi"), "{text}");
    }

    #[test]
    fn a_backtest_tells_what_each_policy_would_have_cost() {
        let text = recommended(&example(), &["--backtest"]);
        let names: Vec<_> = text.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["rules", "vpa", "krr", "peaks"]);
        let json: serde_json::Value =
            serde_json::from_str(&recommended(&example(), &["--backtest", "--format", "json"])).unwrap();
        assert!(json["policies"][0]["wasted_gib_hours"].as_f64().unwrap() > 0.0, "{json}");
    }
}
