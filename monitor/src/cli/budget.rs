//! `monitor budget`: what servers' memory is made of, and what fits, for people.

use super::query::Asked;
use crate::{output, units::human_bytes};
use serde::Deserialize;
use std::process::ExitCode;

/// Show what a server's memory is made of (baseline, workers, requests in flight, margin) and what fits its limit: how many workers,
/// how many requests of each. Where it leaks, after how many requests to replace a worker; and what loading before the fork would save.
///
/// The baseline is the root process and what all share, each page once. A worker's own memory is the median of all workers, at rest. What a
/// request holds is fitted from memory and requests in flight of the last minutes, which takes a load that goes up and down;
/// all sums take the high end of its interval, and as many requests of each worker as one had in flight at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  monitor budget                                       of all servers of the running agent, the largest first
  monitor budget --pid $(pgrep -o gunicorn)            of the process tree that a process belongs to, server or not
  monitor budget --json | jq '.budgets[] | {command, most_workers, one_more_worker_bytes}'
  monitor budget --from load-test.rec --at=-5m         as it stood five minutes before a recording's end

To have requests fitted, record a load test whose concurrency changes every few seconds:
  sudo monitor record --for 5m load-test.rec")]
pub(super) struct Arguments {
    #[command(flatten)]
    asked: Asked,
    /// Show the process tree that this process belongs to, whether it is a server's or not.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print the answer of /v1/budget.
    #[arg(long)]
    json: bool,
}

/// What is shown of the answer.
#[derive(Debug, Deserialize)]
struct Answer {
    left_out: usize,
    budgets: Vec<Budget>,
}

#[derive(Debug, Default, Deserialize)]
struct Budget {
    tree: u32,
    command: String,
    workers: u64,
    limit_bytes: Option<u64>,
    limit_source: Option<String>,
    others_bytes: Option<u64>,
    baseline_bytes: Option<u64>,
    worker: Worker,
    per_request: Option<PerRequest>,
    one_more_worker_bytes: Option<u64>,
    most_workers: Option<u64>,
    most_threads_per_worker: Option<u64>,
    margin_bytes: Option<i64>,
    max_requests: Option<MaxRequests>,
    preload_saves_bytes: Option<u64>,
    remarks: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Worker {
    private_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    requests_peak: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct PerRequest {
    value_bytes: u64,
    low_bytes: u64,
    high_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct MaxRequests {
    requests: u64,
    jitter: u64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = arguments.pid.map_or_else(|| "/v1/budget".to_owned(), |pid| format!("/v1/budget?pid={pid}"));
    arguments.asked.print(&path, arguments.json, show)
}

fn show(answer: &Answer) -> String {
    let Answer { left_out, budgets } = answer;
    let mut text = budgets.iter().map(tell).collect::<Vec<_>>().join("\n");
    if budgets.is_empty() {
        text += "no server was seen: nothing of 8 MiB or more that serves requests, and nothing known with workers\n";
    }
    if *left_out > 0 {
        text += &format!("\n{left_out} more are left out, as there are too many: ask with --pid\n");
    }
    text
}

/// The table of one tree, what follows from it, and what is to be known.
fn tell(budget: &Budget) -> String {
    let mut text = format!("{} ({})\n", output::harmless(&budget.command), budget.tree);
    for (name, made_of, bytes) in rows(budget) {
        let bytes = bytes.map_or_else(|| "n/a".to_owned(), signed);
        text += &format!("  {name:<20} {bytes:>10}  {made_of}\n");
    }
    for line in advice(budget) {
        text += &format!("  {line}\n");
    }
    for remark in &budget.remarks {
        text += &format!("  ({})\n", output::harmless(remark));
    }
    text
}

/// What there is of memory, what that is made of, and how much.
fn rows(budget: &Budget) -> Vec<(&'static str, String, Option<i64>)> {
    let Budget { workers, worker, per_request, .. } = budget;
    let servers = (*workers).max(1);
    let mut rows = vec![("baseline", "root and what all share".to_owned(), whole(budget.baseline_bytes))];
    if *workers > 0 {
        let all = worker.private_bytes.map(|bytes| bytes.saturating_mul(*workers));
        rows.push(("workers", format!("{workers} x {}", told(worker.private_bytes)), whole(all)));
    }
    if let (Some(request), Some(most)) = (per_request, worker.requests_peak) {
        let high = human_bytes(request.high_bytes as f64);
        let all = request.high_bytes.saturating_mul(most).saturating_mul(servers);
        rows.push(("concurrent requests", format!("{servers} x {most} x {high}"), whole(Some(all))));
    }
    if budget.others_bytes != Some(0) {
        rows.push(("others", "below the same limit".to_owned(), whole(budget.others_bytes)));
    }
    let source = budget.limit_source.as_deref().map_or_else(String::new, |source| match source {
        "host" => ", the machine's memory".to_owned(),
        _ => format!(" ({})", output::harmless(source)),
    });
    rows.push(("safety margin", format!("of {}{source}", told(budget.limit_bytes)), budget.margin_bytes));
    rows
}

/// What follows, a line each.
fn advice(budget: &Budget) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(PerRequest { value_bytes, low_bytes, high_bytes }) = budget.per_request {
        let [value, low, high] = [value_bytes, low_bytes, high_bytes].map(|bytes| human_bytes(bytes as f64));
        lines.push(format!("a request in flight holds {value} ({low} to {high})"));
    }
    if let Some(shared) = budget.worker.shared_bytes.filter(|_| budget.workers > 0) {
        lines.push(format!("a worker shares {} with others, which the baseline has once", human_bytes(shared as f64)));
    }
    if let Some(bytes) = budget.one_more_worker_bytes {
        lines.push(format!("one more worker takes {}", human_bytes(bytes as f64)));
    }
    let workers = budget.most_workers.map(|most| format!("{most} workers like these"));
    let who = if budget.workers > 0 { "of each worker there is" } else { "at once" };
    let requests = budget.most_threads_per_worker.map(|most| format!("{most} requests {who} (threads)"));
    let fits: Vec<String> = workers.into_iter().chain(requests).collect();
    if !fits.is_empty() {
        lines.push(format!("it fits the limit with {}", fits.join(", or with ")));
    }
    if let Some(MaxRequests { requests, jitter }) = budget.max_requests {
        lines.push(format!(
            "it leaks: --max-requests {requests} --max-requests-jitter {jitter} keeps it below the limit"
        ));
    }
    if let Some(bytes) = budget.preload_saves_bytes {
        lines.push(format!("loading before the fork (--preload) saves {} at most", human_bytes(bytes as f64)));
    }
    lines
}

fn told(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "n/a".to_owned(), |bytes| human_bytes(bytes as f64))
}

fn whole(bytes: Option<u64>) -> Option<i64> {
    bytes.and_then(|bytes| i64::try_from(bytes).ok())
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", human_bytes(bytes.unsigned_abs() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget() -> Budget {
        Budget {
            tree: 4711,
            command: "gunicorn app:app\x1b[2J".to_owned(),
            workers: 2,
            limit_bytes: Some(512 * MIB),
            limit_source: Some("/system.slice/web.service".to_owned()),
            others_bytes: Some(12 * MIB),
            baseline_bytes: Some(60 * MIB),
            worker: Worker { private_bytes: Some(48 * MIB), shared_bytes: Some(14 * MIB), requests_peak: Some(4) },
            per_request: Some(PerRequest { value_bytes: 8 * MIB, low_bytes: 7 * MIB, high_bytes: 9 * MIB }),
            one_more_worker_bytes: Some(84 * MIB),
            most_workers: Some(5),
            most_threads_per_worker: Some(19),
            margin_bytes: Some(272 * MIB as i64),
            max_requests: Some(MaxRequests { requests: 1000, jitter: 50 }),
            preload_saves_bytes: Some(40 * MIB),
            remarks: vec!["one more process is too small to be a worker".to_owned()],
        }
    }

    #[test]
    fn a_budget_is_a_table_and_what_follows_from_it() {
        let expected = "\
gunicorn app:app?[2J (4711)
  baseline               60.0 MiB  root and what all share
  workers                96.0 MiB  2 x 48.0 MiB
  concurrent requests    72.0 MiB  2 x 4 x 9.0 MiB
  others                 12.0 MiB  below the same limit
  safety margin         272.0 MiB  of 512.0 MiB (/system.slice/web.service)
  a request in flight holds 8.0 MiB (7.0 MiB to 9.0 MiB)
  a worker shares 14.0 MiB with others, which the baseline has once
  one more worker takes 84.0 MiB
  it fits the limit with 5 workers like these, or with 19 requests of each worker there is (threads)
  it leaks: --max-requests 1000 --max-requests-jitter 50 keeps it below the limit
  loading before the fork (--preload) saves 40.0 MiB at most
  (one more process is too small to be a worker)
";
        assert_eq!(show(&Answer { left_out: 0, budgets: vec![budget()] }), expected);
    }

    #[test]
    fn what_is_not_known_is_not_shown_as_zero() {
        let unknown = Budget {
            tree: 7,
            command: "node".to_owned(),
            limit_bytes: Some(1024 * MIB),
            limit_source: Some("host".to_owned()),
            margin_bytes: Some(-(3 * MIB as i64)),
            others_bytes: Some(0),
            remarks: vec!["its processes are not read yet".to_owned()],
            ..Budget::default()
        };
        let expected = "\
node (7)
  baseline                    n/a  root and what all share
  safety margin          -3.0 MiB  of 1.0 GiB, the machine's memory
  (its processes are not read yet)

2 more are left out, as there are too many: ask with --pid
";
        assert_eq!(show(&Answer { left_out: 2, budgets: vec![unknown] }), expected);
        assert!(show(&Answer { left_out: 0, budgets: vec![] }).starts_with("no server was seen"));
    }
}
