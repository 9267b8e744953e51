//! Whether memory leaks: grows for good, with requests or with time, and goes on growing.
//!
//! It looks at the lower envelope: the least memory in stretches of five lengths (`window`), of which the longest window is a day.
//! Each window is judged by itself (`trend`). Growth is a leak when
//! - it is significant by a robust slope and its interval, and at least 4 MiB or 1 %;
//! - it is three times what the subject has ever given back in that window or a longer one, so that a collector's sawtooth, a batch or a
//!   daily cycle must first reach where it never was;
//! - it goes on in the last third of the window as it did before: caches that fill and logarithms slow down;
//! - no single step makes up a third of it;
//! - it is not the rate of requests that explains it;
//! - and no longer window shows that it is but the tail of a curve that flattens.
//!
//! A restart (counters that begin anew, or an OOM kill with memory falling by half) begins a new life, which inherits the verdict of the
//! one before until it is old enough to be judged itself.

mod trend;
mod window;

use super::{
    judge::{Point, REQUESTS_FLOOR},
    slope::Estimate,
};
use serde::Serialize;
use trend::{Course, Trend};
use window::{Block, LEVELS, Level};

/// Samples that a verdict needs.
const SAMPLES_MIN: u64 = 20;
/// Requests that a verdict needs, where they are counted.
const REQUESTS_MIN: f64 = 500.0;
/// The time that a verdict needs, where they are not.
const SECONDS_MIN: f64 = 600.0;
/// As long as this is long enough also where requests are counted but hardly come.
const SECONDS_ENOUGH: f64 = 3600.0;
/// A life that inherits a leak is judged by itself once it is so many times as old as the leak took to be found.
const PATIENCE: f64 = 1.5;

/// As little above what an earlier life reached is as good as that.
const REACHED_MARGIN: f64 = 0.02;

/// What becomes of a subject's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It grows for good.
    Leak,
    /// It grows, but only page cache and the like, or too briefly or too unsteadily to tell.
    Growing,
    /// It does not, or has ceased to, or follows the load.
    Stable,
    /// Too little is known.
    Insufficient,
}

impl Verdict {
    /// As JSON and tables have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Growing => "growing",
            Self::Stable => "stable",
            Self::Insufficient => "insufficient",
        }
    }
}

/// What decided a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Too few samples, requests or minutes.
    TooLittleData,
    /// No growth that matters.
    NoGrowth,
    /// Growth that has come to its end.
    Flattened,
    /// Growth that slows down.
    SlowingDown,
    /// Memory goes with the rate of requests.
    FollowsLoad,
    /// Growth less than three times what was given back before, or made of few steps.
    Unsteady,
    /// Growth of the working set alone.
    WorkingSetOnly,
    /// Steady growth.
    Steady,
    /// Growth after a restart, to where memory stood when it did not grow any more before.
    ReachedBefore,
    /// Steady growth before a restart, and too little after it to say otherwise.
    BeforeRestart,
}

/// How the leak detector stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LeakReport {
    /// The verdict.
    pub verdict: Verdict,
    /// What decided it.
    pub reason: Reason,
    /// How sure it is, 0–1.
    pub confidence: f64,
    /// When the verdict began.
    pub since: f64,
    /// How often the verdict became a leak.
    pub leaks_total: u64,
    /// Restarts that were seen.
    pub restarts_total: u64,
    /// The window that was decisive, in seconds.
    pub window_seconds: f64,
    /// Growth with requests; none where they are not counted or too few.
    pub bytes_per_1000_requests: Option<Estimate>,
    /// Growth with time.
    pub bytes_per_hour: Option<Estimate>,
    /// Growth with both at once, where requests came so unevenly that the two can be told apart.
    pub both: Option<Both>,
}

/// Memory as a sum: a · requests + b · time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Both {
    /// a, of a thousand requests.
    pub bytes_per_1000_requests: Estimate,
    /// b, of an hour.
    pub bytes_per_hour: Estimate,
}

/// The detector of one subject.
#[derive(Clone, Debug)]
pub struct Leak {
    levels: [Level; LEVELS],
    trends: [Trend; LEVELS],
    samples: u64,
    first: Option<Block>,
    last: Option<Block>,
    oom_kills: Option<u64>,
    counts_requests: bool,
    report: LeakReport,
    inherited: Option<Inherited>,
    /// Where memory stood at the end of an earlier life in which it did not grow any more.
    reached: Option<f64>,
    restarts_total: u64,
}

/// A leak of an earlier life.
#[derive(Clone, Copy, Debug)]
struct Inherited {
    report: LeakReport,
    /// How old that life was when it was found.
    age_seconds: f64,
}

impl Default for Leak {
    fn default() -> Self {
        let report = LeakReport {
            verdict: Verdict::Insufficient,
            reason: Reason::TooLittleData,
            confidence: 0.0,
            since: 0.0,
            leaks_total: 0,
            restarts_total: 0,
            window_seconds: 0.0,
            bytes_per_1000_requests: None,
            bytes_per_hour: None,
            both: None,
        };
        Self {
            levels: window::levels(),
            trends: Default::default(),
            samples: 0,
            first: None,
            last: None,
            oom_kills: None,
            counts_requests: false,
            report,
            inherited: None,
            reached: None,
            restarts_total: 0,
        }
    }
}

impl Leak {
    /// Takes a point, later than those before, and judges anew where enough has come together.
    pub fn push(&mut self, point: &Point) {
        let block = Block {
            time: point.time_seconds,
            requests: point.requests_total.unwrap_or_default() as f64,
            bytes: point.anon_bytes.unwrap_or(point.working_set_bytes) as f64,
            working_set: point.working_set_bytes as f64,
        };
        let killed = point.oom_kills_total > self.oom_kills && self.oom_kills.is_some();
        let fell = self.last.is_some_and(|last| block.bytes < last.bytes / 2.0);
        if self.last.is_some_and(|last| block.requests < last.requests) || killed && fell {
            self.restart(block.time);
        }
        if self.first.is_none() && self.inherited.is_none() {
            self.report.since = block.time;
        }
        self.oom_kills = point.oom_kills_total.or(self.oom_kills);
        self.counts_requests |= point.requests_total.is_some();
        self.samples += 1;
        self.first.get_or_insert(block);
        self.last = Some(block);
        self.levels.iter_mut().for_each(|level| level.push(block));
        if self.levels.iter().any(Level::is_due) {
            self.judge(Level::is_due);
        }
    }

    /// How it stands, by all that was pushed.
    pub fn report(&mut self) -> LeakReport {
        self.judge(Level::is_fresh);
        self.report
    }

    /// Restarts that were seen.
    pub(super) fn restarts_total(&self) -> u64 {
        self.restarts_total
    }

    fn restart(&mut self, time: f64) {
        let age_seconds = self.first.map_or(0.0, |first| self.report.since - first.time).max(SECONDS_MIN);
        let inherited = match (self.report.verdict, self.inherited) {
            (Verdict::Leak, None) => Some(Inherited { report: self.report, age_seconds }),
            (_, inherited) => inherited,
        };
        let LeakReport { verdict, since, leaks_total, .. } = self.report;
        let restarts_total = self.restarts_total + 1;
        let stood = self.last.filter(|_| verdict == Verdict::Stable).map(|last| last.bytes);
        let reached = [stood, self.reached].into_iter().flatten().reduce(f64::max);
        *self = Self { inherited, reached, restarts_total, ..Self::default() };
        self.report.leaks_total = leaks_total;
        self.report.since = time;
        if inherited.is_some() && verdict == Verdict::Leak {
            self.report = LeakReport { verdict, since, ..self.report };
        }
    }

    /// Looks at the levels that `choose` tells, the coarsest first, and puts all together.
    fn judge(&mut self, choose: impl Fn(&Level) -> bool) {
        let Some((first, last)) = self.first.zip(self.last) else { return };
        let is_leak = self.report.verdict == Verdict::Leak;
        let mut drawdown = 0.0;
        // Room for slopes, which is only filled where memory has grown.
        let mut scratch = Vec::new();
        for (level, trend) in self.levels.iter_mut().zip(&mut self.trends).rev() {
            if choose(level) {
                let blocks = level.look();
                *trend = Trend::of(blocks, self.counts_requests, drawdown, is_leak, &mut scratch);
            }
            drawdown = trend.drawdown.max(drawdown);
        }
        let report = self.conclude(first, last);
        let leaks_total = self.report.leaks_total + u64::from(report.verdict == Verdict::Leak && !is_leak);
        let since = if report.verdict == self.report.verdict { self.report.since } else { last.time };
        let restarts_total = self.restarts_total;
        self.report = LeakReport { since, leaks_total, restarts_total, ..report };
        if self.inherited.is_some_and(|inherited| last.time - first.time >= inherited.age_seconds * PATIENCE) {
            self.inherited = None;
        }
    }

    fn conclude(&self, first: Block, last: Block) -> LeakReport {
        let (age, requests) = (last.time - first.time, last.requests - first.requests);
        let enough =
            if self.counts_requests { requests >= REQUESTS_MIN || age >= SECONDS_ENOUGH } else { age >= SECONDS_MIN };
        let report = if self.samples < SAMPLES_MIN || !enough {
            self.told(Verdict::Insufficient, Reason::TooLittleData, None, age)
        } else {
            self.of_trends(age)
        };
        let reached = self.reached.is_some_and(|reached| last.bytes <= reached * (1.0 + REACHED_MARGIN));
        match self.inherited {
            None if reached && report.verdict == Verdict::Leak => LeakReport {
                verdict: Verdict::Growing,
                reason: Reason::ReachedBefore,
                confidence: report.confidence - 0.5,
                ..report
            },
            Some(inherited) if report.verdict != Verdict::Leak => {
                LeakReport { reason: Reason::BeforeRestart, ..inherited.report }
            }
            _ => report,
        }
    }

    /// The verdict of all windows together.
    fn of_trends(&self, age: f64) -> LeakReport {
        // The longest window in which growth is steady, unless a longer one knows better.
        let mut longer = None;
        for trend in self.trends.iter().rev().filter(|trend| trend.course != Course::Unknown) {
            match trend.course {
                Course::Steady if self.is_long_enough(trend) => {
                    let told = self.told(Verdict::Leak, Reason::Steady, Some(trend), age);
                    return told;
                }
                Course::SlowingDown | Course::Unsteady | Course::Steady => {
                    longer.get_or_insert(trend);
                    if trend.course == Course::SlowingDown {
                        break;
                    }
                }
                Course::Flattened | Course::FollowsLoad => {
                    longer = Some(trend);
                    break;
                }
                Course::Flat | Course::WorkingSet | Course::Unknown => {}
            }
        }
        let found = longer.or_else(|| self.trends.iter().rfind(|trend| trend.course != Course::Unknown));
        let (verdict, reason) = match found.map(|trend| trend.course) {
            Some(Course::SlowingDown) => (Verdict::Growing, Reason::SlowingDown),
            Some(Course::Unsteady | Course::Steady) => (Verdict::Growing, Reason::Unsteady),
            Some(Course::WorkingSet) => (Verdict::Growing, Reason::WorkingSetOnly),
            Some(Course::Flattened) => (Verdict::Stable, Reason::Flattened),
            Some(Course::FollowsLoad) => (Verdict::Stable, Reason::FollowsLoad),
            Some(Course::Flat | Course::Unknown) => (Verdict::Stable, Reason::NoGrowth),
            // Many samples in a few seconds are but a few blocks.
            None => (Verdict::Insufficient, Reason::TooLittleData),
        };
        self.told(verdict, reason, found, age)
    }

    /// Whether a window is long enough for a leak by itself.
    fn is_long_enough(&self, trend: &Trend) -> bool {
        trend.seconds >= SECONDS_MIN || self.counts_requests && trend.requests >= REQUESTS_MIN
    }

    fn told(&self, verdict: Verdict, reason: Reason, trend: Option<&Trend>, age: f64) -> LeakReport {
        let clarity = trend.map_or(0.0, |trend| trend.clarity);
        let confidence = match verdict {
            Verdict::Leak => 0.5 + clarity / 2.0,
            Verdict::Growing => clarity / 2.0,
            // An hour without growth is as sure as it gets.
            Verdict::Stable => 0.5 + (age / 3600.0).min(1.0) * (1.0 - clarity) / 2.0,
            Verdict::Insufficient => 0.0,
        };
        LeakReport {
            verdict,
            reason,
            confidence,
            since: 0.0,
            leaks_total: 0,
            restarts_total: 0,
            window_seconds: trend.map_or(0.0, |trend| trend.seconds),
            bytes_per_1000_requests: trend
                .filter(|trend| trend.requests >= REQUESTS_FLOOR)
                .and_then(|trend| trend.per_request)
                .map(|slope| slope.scaled(1000.0)),
            bytes_per_hour: trend.and_then(|trend| trend.per_second).map(|slope| slope.scaled(3600.0)),
            both: trend.filter(|trend| trend.requests >= REQUESTS_FLOOR).and_then(|trend| trend.both),
        }
    }
}

#[cfg(test)]
mod tests;
