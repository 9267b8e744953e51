//! The story as people and programs read it.

use super::{
    super::analyze::{FailOn, signed_bytes, subject_json},
    command::Ended,
    story::{Judged, Told},
};
use crate::{
    coverage::State,
    detect::{Estimate, Verdict},
    output::fit,
    source::Source,
    units::{human_bytes, human_count, human_duration, human_seconds, show_duration},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    ffi::OsString,
    fmt::Write as _,
    os::unix::process::ExitStatusExt as _,
    time::{Duration, SystemTime},
};

/// Trees that are told of by name in the text, at most: those that grow.
const MOST_TREES: usize = 5;
/// Columns of what is cut.
const WIDTH: usize = 72;
const UNKNOWN: &str = "unknown";

/// What ran, how it ended, and its story.
pub(super) struct Run {
    pub(super) command: Vec<OsString>,
    pub(super) pid: u32,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
    pub(super) ended: Ended,
    pub(super) tick: Duration,
    pub(super) fail_on: Option<FailOn>,
    pub(super) told: Told,
}

/// The run as JSON. Numbers that the agent tells, too, have the names that they have there.
#[derive(Serialize)]
struct RunView {
    command: Vec<String>,
    pid: u32,
    start_time: String,
    duration_seconds: f64,
    exit_code: Option<i32>,
    exit_signal: Option<i32>,
    tick_seconds: f64,
    memory: MemoryView,
    page_faults: PageFaultsView,
    address_space: AddressSpaceView,
    block_io: BlockIoView,
    requests: RequestsView,
    processes: ProcessesView,
    verdict: &'static str,
    fail_on: Option<&'static str>,
    failed: bool,
    trees: Vec<Value>,
    trees_left_out: u64,
    coverage: Vec<CoverageView>,
}

#[derive(Serialize)]
struct MemoryView {
    peak_bytes: Option<u64>,
    last_bytes: Option<u64>,
    samples_total: u64,
    max_rss_bytes: u64,
}

#[derive(Serialize)]
struct PageFaultsView {
    total: Option<u64>,
}

#[derive(Serialize)]
struct AddressSpaceView {
    mapped_bytes_total: Option<u64>,
    heap_grown_bytes_total: Option<u64>,
}

#[derive(Serialize)]
struct BlockIoView {
    read_bytes_total: Option<u64>,
    write_bytes_total: Option<u64>,
    wait_seconds_total: Option<f64>,
}

#[derive(Serialize)]
struct RequestsView {
    requests_total: Option<u64>,
}

#[derive(Serialize)]
struct ProcessesView {
    total: Option<u64>,
    running: Option<u64>,
    oom_kills_total: Option<u64>,
}

#[derive(Serialize)]
struct CoverageView {
    source: &'static str,
    state: &'static str,
    lost_total: u64,
}

impl Run {
    /// Whether the gate found what it was to fail on.
    pub(super) fn failed(&self) -> bool {
        self.fail_on.is_some_and(|on| self.told.judged.iter().any(|judged| on.fails(judged.judgement.verdict)))
    }

    /// The exit code of a command that ended so: its own, or 128 and the signal.
    pub(super) fn code(&self) -> u8 {
        let status = self.ended.status;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
        u8::try_from(code).unwrap_or(u8::MAX)
    }

    /// For programs.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let Self { ended, told, .. } = self;
        let (counts, known) = (&told.counts, |source, number| told.known(source, number));
        let view = RunView {
            command: self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            pid: self.pid,
            start_time: jiff::Timestamp::try_from(self.start)
                .map_or_else(|_| String::new(), |time| format!("{time:.3}")),
            duration_seconds: rounded(self.duration.as_secs_f64()),
            exit_code: ended.status.code(),
            exit_signal: ended.status.signal(),
            tick_seconds: self.tick.as_secs_f64(),
            memory: MemoryView {
                peak_bytes: told.memory.map(|memory| memory.peak_bytes),
                last_bytes: told.memory.map(|memory| memory.last_bytes),
                samples_total: told.memory.map_or(0, |memory| memory.samples),
                max_rss_bytes: ended.max_rss_bytes,
            },
            page_faults: PageFaultsView { total: known(Source::PageFault, counts.page_faults) },
            address_space: AddressSpaceView {
                mapped_bytes_total: known(Source::AddressSpace, counts.mapped_bytes),
                heap_grown_bytes_total: known(Source::AddressSpace, counts.heap_grown_bytes),
            },
            block_io: BlockIoView {
                read_bytes_total: known(Source::BlockIo, counts.read_bytes),
                write_bytes_total: known(Source::BlockIo, counts.write_bytes),
                wait_seconds_total: known(Source::BlockIo, counts.wait_ns).map(|ns| rounded(ns as f64 / 1e9)),
            },
            requests: RequestsView { requests_total: known(Source::Requests, counts.requests) },
            processes: ProcessesView {
                total: known(Source::Lifecycle, counts.processes),
                running: known(Source::Lifecycle, counts.running),
                oom_kills_total: known(Source::Lifecycle, told.oom_kills),
            },
            verdict: told.verdict().name(),
            fail_on: self.fail_on.map(FailOn::name),
            failed: self.failed(),
            trees: told
                .judged
                .iter()
                .map(|Judged { name, judgement }| subject_json(&(name, judgement.clone(), true)))
                .collect::<serde_json::Result<_>>()?,
            trees_left_out: told.trees_left_out,
            coverage: told
                .coverage
                .0
                .iter()
                .map(|source| CoverageView {
                    source: source.source.name(),
                    state: source.state.name(),
                    lost_total: source.lost_total,
                })
                .collect(),
        };
        Ok(format!("{:#}\n", serde_json::to_value(view)?))
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("monitor: {} {} after {}\n", self.called(), self.end(), time(self.duration));
        let mut line = |name: &str, what: &str| {
            let _ = writeln!(text, "  {name:<12} {what}");
        };
        line("memory", &self.memory());
        line(
            "",
            &format!(
                "max RSS {}, of the largest process that was waited for",
                human_bytes(self.ended.max_rss_bytes as f64)
            ),
        );
        let told = &self.told;
        let counts = &told.counts;
        let shown = |source, number: u64, show: fn(f64) -> String| {
            told.known(source, number).map_or_else(|| UNKNOWN.to_owned(), |number| show(number as f64))
        };
        line("page faults", &shown(Source::PageFault, counts.page_faults, exact));
        line(
            "mapped",
            &format!(
                "{}, heap grown by {}",
                shown(Source::AddressSpace, counts.mapped_bytes, human_bytes),
                shown(Source::AddressSpace, counts.heap_grown_bytes, human_bytes)
            ),
        );
        line(
            "block I/O",
            &format!(
                "read {}, written {}, waited {}",
                shown(Source::BlockIo, counts.read_bytes, human_bytes),
                shown(Source::BlockIo, counts.write_bytes, human_bytes),
                shown(Source::BlockIo, counts.wait_ns, |ns| human_seconds(ns / 1e9)),
            ),
        );
        line("requests", &format!("{} answered", shown(Source::Requests, counts.requests, exact)));
        line("processes", &self.processes());
        line("verdict", &self.verdict());
        for Judged { name, judgement } in self.growing().take(MOST_TREES) {
            line("", &format!("{}: {}", judgement.verdict.name(), fit(name, WIDTH)));
        }
        let lacking = self.lacking();
        if !lacking.is_empty() {
            line("not told", &lacking.join(", "));
        }
        if let Some(on) = self.fail_on {
            let result = if self.failed() { "found" } else { "passed" };
            line("gate", &format!("{result}: --fail-on {}", on.name()));
        }
        text
    }

    fn called(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
        fit(&words.join(" "), WIDTH)
    }

    fn end(&self) -> String {
        let status = self.ended.status;
        match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with {code}"),
            (_, Some(signal)) => format!("was ended by signal {signal}"),
            _ => "ended".to_owned(),
        }
    }

    fn memory(&self) -> String {
        let tick = show_duration(self.tick);
        match self.told.memory {
            Some(memory) => format!(
                "peak {} of all processes, {} at last (looked at every {tick})",
                human_bytes(memory.peak_bytes as f64),
                human_bytes(memory.last_bytes as f64),
            ),
            None => format!("not looked at, as it took less than {tick}"),
        }
    }

    fn processes(&self) -> String {
        let Told { counts, oom_kills, .. } = &self.told;
        let Some(made) = self.told.known(Source::Lifecycle, counts.processes) else { return UNKNOWN.to_owned() };
        let mut text = format!("{made}, the command's own among them");
        if counts.running > 0 {
            let _ = write!(text, "; {} still running", counts.running);
        }
        if *oom_kills > 0 {
            let _ = write!(text, "; {oom_kills} killed for want of memory");
        }
        text
    }

    fn verdict(&self) -> String {
        let Some(Judged { judgement, .. }) = self.told.judged.first() else {
            return format!("{}: no tick found it running", Verdict::Insufficient.name());
        };
        let mut text = judgement.verdict.name().to_owned();
        if judgement.verdict == Verdict::Insufficient {
            return text + ": it takes 20 ticks, 13 seconds, and 500 requests or without any 10 minutes";
        }
        let _ = write!(text, ", {:.0} % sure", judgement.confidence * 100.0);
        let mut rate = |growth: Option<Estimate>, per: &str| {
            if let Some(growth) = growth {
                let _ = write!(text, ", {} {per}", signed_bytes(growth.value));
            }
        };
        rate(judgement.bytes_per_1000_requests, "per 1,000 requests");
        rate(judgement.bytes_per_hour, "per hour");
        if let Some(left) = judgement.seconds_to_limit.and_then(|left| Duration::try_from_secs_f64(left.value).ok()) {
            let _ = write!(text, "; at its limit in {}", human_duration(left));
        }
        text
    }

    /// The trees that grow.
    fn growing(&self) -> impl Iterator<Item = &Judged> {
        let grows = |judged: &&Judged| matches!(judged.judgement.verdict, Verdict::Leak | Verdict::Growing);
        self.told.judged.iter().filter(grows)
    }

    /// What the numbers leave out.
    fn lacking(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        for source in &self.told.coverage.0 {
            if source.state != State::Live {
                lacking.push(format!("{} ({})", source.source.name(), source.state.name()));
            } else if source.lost_total > 0 {
                lacking.push(format!("{} has lost {}", source.source.name(), source.lost_total));
            }
        }
        if self.told.trees_left_out > 0 {
            lacking.push(format!("{} process trees left out, as there are too many", self.told.trees_left_out));
        }
        lacking
    }
}

/// A count, in full up to a hundred thousand.
fn exact(count: f64) -> String {
    if count < 1e5 { format!("{count:.0}") } else { human_count(count) }
}

/// Less than a minute with a fraction.
fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 { human_seconds(seconds) } else { human_duration(duration) }
}

/// To the microsecond.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::exec::story::{Counts, Memory},
        detect::{Judge, Point, Settings},
        serve::fixtures,
    };
    use std::{process::ExitStatus, time::UNIX_EPOCH};

    /// A run whose tree has leaked for so many seconds.
    fn run(wait_status: i32, seconds: u32, fail_on: Option<FailOn>) -> Run {
        let mut judge = Judge::new(Settings::default());
        for second in 0..seconds {
            judge.push(&Point {
                time_seconds: 1.8e9 + f64::from(second),
                working_set_bytes: (100 + u64::from(second)) << 20,
                requests_total: Some(u64::from(second) * 10),
                limit_bytes: Some(1 << 30),
                ..Point::default()
            });
        }
        let judged = Judged { name: "tree 17 sh\x1b[2J soak.sh".to_owned(), judgement: judge.judgement() };
        let counts = Counts { page_faults: 81_234, read_bytes: 3 << 20, processes: 7, running: 2, ..Counts::default() };
        Run {
            command: ["sh", "soak\n.sh"].map(OsString::from).into(),
            pid: 17,
            start: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            duration: Duration::from_millis(301_500),
            ended: Ended { status: ExitStatus::from_raw(wait_status), max_rss_bytes: 123 << 20 },
            tick: Duration::from_secs(1),
            fail_on,
            told: Told {
                memory: Some(Memory { samples: 300, peak_bytes: 399 << 20, last_bytes: 398 << 20 }),
                counts,
                oom_kills: 1,
                judged: vec![judged],
                trees_left_out: 0,
                coverage: fixtures::snapshot().coverage,
            },
        }
    }

    #[test]
    fn a_story_fits_a_screen_and_says_what_it_does_not_know() {
        let text = run(0, 300, Some(FailOn::Leak)).text();
        let expected = "\
monitor: sh soak?.sh ended with 0 after 5m 1s
  memory       peak 399.0 MiB of all processes, 398.0 MiB at last (looked at every 1s)
               max RSS 123.0 MiB, of the largest process that was waited for
  page faults  81234
  mapped       unknown, heap grown by unknown
  block I/O    read 3.0 MiB, written 0 B, waited 0 us
  requests     0 answered
  processes    7, the command's own among them; 2 still running; 1 killed for want of memory
  verdict      leak, 100 % sure, +100.0 MiB per 1,000 requests, +3.5 GiB per hour; at its limit in 10m 25s
               leak: tree 17 sh?[2J soak.sh
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("address_space (unavailable)"), "{text}");
        assert!(text.ends_with("  gate         found: --fail-on leak\n"), "{text}");
    }

    #[test]
    fn what_was_too_short_to_be_looked_at_says_so() {
        let mut run = run(0, 0, Some(FailOn::Growing));
        (run.told.memory, run.told.judged) = (None, Vec::new());
        let text = run.text();
        assert!(text.contains("  memory       not looked at, as it took less than 1s\n"), "{text}");
        assert!(text.contains("insufficient: no tick found it running\n") && text.contains("passed"), "{text}");
        assert!(!run.failed());
    }

    #[test]
    fn codes_are_the_commands_or_tell_the_signal() {
        let code = |wait_status| run(wait_status, 0, None).code();
        assert_eq!([code(0), code(3 << 8), code(9), code(15 | 0x80)], [0, 3, 137, 143]);
        assert!(run(0, 300, None).text().contains("ended with 0"));
        assert!(run(9, 0, None).text().contains("was ended by signal 9"));
    }

    #[test]
    fn a_gate_finds_what_it_names() {
        let failed = |seconds, fail_on| run(0, seconds, fail_on).failed();
        assert!(failed(300, Some(FailOn::Leak)) && failed(300, Some(FailOn::Growing)));
        assert!(!failed(300, None) && !failed(10, Some(FailOn::Growing)));
    }

    #[test]
    fn programs_read_the_names_that_the_agent_has() {
        let told: Value = serde_json::from_str(&run(9, 300, Some(FailOn::Leak)).json().unwrap()).unwrap();
        assert_eq!((&told["exit_code"], &told["exit_signal"]), (&Value::Null, &9.into()));
        assert_eq!(told["start_time"], "2027-01-15T08:00:00.000Z");
        assert_eq!(told["memory"]["peak_bytes"], 399 << 20);
        assert_eq!(told["page_faults"]["total"], 81_234);
        assert_eq!(told["address_space"]["mapped_bytes_total"], Value::Null);
        assert_eq!((&told["failed"], &told["verdict"]), (&true.into(), &"leak".into()));
        let tree = &told["trees"][0];
        assert!(tree["bytes_per_hour"]["low"].is_number(), "{tree}");
        assert!(tree["since"].as_str().unwrap().starts_with("2027-01-15T08:0"), "{tree}");
    }
}
