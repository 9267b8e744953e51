//! One subject's judge: feeds all detectors that judge over time, and sums them up.

use super::{
    allocation::{Allocation, AllocationReport},
    leak::{Leak, LeakReport, Verdict},
    regression::{Regression, RegressionReport, Settings},
    slope::Estimate,
};
use serde::Serialize;

const HOUR_SECONDS: f64 = 3600.0;

/// What is said per request is withheld where fewer than so many were served in the time that it is taken of.
pub(super) const REQUESTS_FLOOR: f64 = 100.0;

/// Who counts a subject's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CountedBy {
    /// The kernel: turns from receive to send. Of pipelined requests, or those of HTTP/2, one turn may be several.
    Turns,
    /// The program, which posts them.
    Posts,
}

/// How much was seen of the requests that a subject has served: what a figure per request rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RequestCoverage {
    /// Who counts them.
    pub counted_by: CountedBy,
    /// Turns that were answered.
    pub turns_total: u64,
    /// Turns that ended without an answer.
    pub unanswered_total: u64,
    /// Accepted connections that something came over.
    pub connections_total: u64,
    /// Bytes received over them.
    pub received_bytes_total: u64,
    /// Bytes sent.
    pub sent_bytes_total: u64,
}

/// What is known of a subject at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// When, in seconds of any clock that only goes forward.
    pub time_seconds: f64,
    /// Memory that it cannot do without: in use, less the page cache that is given back first.
    pub working_set_bytes: u64,
    /// The most of it since the point before, where the kernel tells.
    pub peak_bytes: Option<u64>,
    /// Anonymous memory, with what of it is swapped out.
    pub anon_bytes: Option<u64>,
    /// The limit that counts.
    pub limit_bytes: Option<u64>,
    /// Requests that it has served.
    pub requests_total: Option<u64>,
    /// How much of them was seen; none where that is not known.
    pub requests: Option<RequestCoverage>,
    /// Processes of it that were killed for want of memory.
    pub oom_kills_total: Option<u64>,
    /// Address space mapped less what was unmapped, since some moment.
    pub mapped_net_bytes: Option<i64>,
    /// Heaps' growth less what was given back, since some moment.
    pub heap_net_bytes: Option<i64>,
    /// Growth of resident memory, since some moment.
    pub resident_net_bytes: Option<i64>,
}

/// The detectors of one subject.
#[derive(Clone, Debug)]
pub struct Judge {
    regression: Regression,
    leak: Leak,
    allocation: Allocation,
    last: Option<Point>,
    restarts_total: u64,
}

/// What becomes of a subject's memory, by all detectors. The verdict is the leak detector's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// How sure it is, 0–1.
    pub confidence: f64,
    /// Growth with requests; none where that is not known.
    pub bytes_per_1000_requests: Option<Estimate>,
    /// Growth with time.
    pub bytes_per_hour: Option<Estimate>,
    /// How long until the limit is reached; none without a limit, or without growth that is sure.
    pub seconds_to_limit: Option<Estimate>,
    /// When the verdict began, by the points' clock.
    pub since: f64,
    /// What figures per request rest on; none where that is not known.
    pub requests: Option<RequestCoverage>,
    /// What each detector says.
    pub detectors: Detectors,
}

/// What each detector says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detectors {
    /// The document's.
    pub regression: RegressionReport,
    /// By what the kernel's events tell.
    pub allocation: AllocationReport,
    /// By the lower envelope of memory.
    pub leak: LeakReport,
}

impl Judge {
    /// Nothing seen yet.
    pub fn new(regression: Settings) -> Self {
        Self {
            regression: Regression::new(regression),
            leak: Leak::default(),
            allocation: Allocation::default(),
            last: None,
            restarts_total: 0,
        }
    }

    /// Takes a point. One that is not later than the last is left out.
    pub fn push(&mut self, point: &Point) {
        if self.last.is_some_and(|last| point.time_seconds <= last.time_seconds) {
            return;
        }
        self.leak.push(point);
        let restarts_total = self.leak.restarts_total();
        if restarts_total > self.restarts_total {
            self.restarts_total = restarts_total;
            self.regression.reset();
            self.allocation.reset();
        }
        self.allocation.push(point);
        // Where requests are counted, a sample is one of what they did.
        let served = self.last.is_none_or(|last| last.requests_total != point.requests_total);
        if point.requests_total.is_none() || served {
            self.regression.record(point.requests_total, point.working_set_bytes, point.time_seconds);
            // The message is for whoever alerts; the report has what it says.
            let _ = self.regression.check_for_leak(point.time_seconds);
        }
        self.last = Some(*point);
    }

    /// How it stands.
    pub fn judgement(&mut self) -> Judgement {
        let leak = self.leak.report();
        Judgement {
            verdict: leak.verdict,
            confidence: leak.confidence,
            bytes_per_1000_requests: leak.bytes_per_1000_requests,
            bytes_per_hour: leak.bytes_per_hour,
            seconds_to_limit: self.seconds_to_limit(&leak),
            since: leak.since,
            requests: self.last.and_then(|last| last.requests),
            detectors: Detectors { regression: self.regression.report(), allocation: self.allocation.report(), leak },
        }
    }

    fn seconds_to_limit(&self, leak: &LeakReport) -> Option<Estimate> {
        let point = self.last?;
        let growth = leak.bytes_per_hour.filter(|growth| growth.low > 0.0)?;
        if !matches!(leak.verdict, Verdict::Leak | Verdict::Growing) {
            return None;
        }
        let left = point.limit_bytes?.saturating_sub(point.working_set_bytes) as f64 * HOUR_SECONDS;
        Some(Estimate { value: left / growth.value, low: left / growth.high, high: left / growth.low })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn leaking(seconds: u32) -> Judge {
        let mut judge = Judge::new(Settings::default());
        for second in 0..seconds {
            judge.push(&Point {
                time_seconds: f64::from(second),
                working_set_bytes: 100 * MIB + u64::from(second) * MIB,
                anon_bytes: Some(90 * MIB + u64::from(second) * MIB),
                limit_bytes: Some(1024 * MIB),
                requests_total: Some(u64::from(second) * 10),
                ..Point::default()
            });
        }
        judge
    }

    #[test]
    fn a_leak_is_told_with_its_rates_and_the_time_that_is_left() {
        let judgement = leaking(301).judgement();
        assert_eq!(judgement.verdict, Verdict::Leak, "{judgement:?}");
        let per_hour = judgement.bytes_per_hour.unwrap();
        assert!((per_hour.value / MIB as f64 - 3600.0).abs() < 1.0, "{per_hour:?}");
        assert!((judgement.bytes_per_1000_requests.unwrap().value / MIB as f64 - 100.0).abs() < 0.1);
        let left = judgement.seconds_to_limit.unwrap();
        assert!((left.value - 624.0).abs() < 1.0 && left.low <= left.value && left.value <= left.high, "{left:?}");
        assert!(judgement.since < 120.0 && judgement.confidence > 0.9);
        assert!(judgement.detectors.regression.leaking);
    }

    #[test]
    fn points_that_are_not_later_are_left_out() {
        let mut judge = leaking(100);
        let before = judge.judgement();
        judge.push(&Point { time_seconds: 99.0, working_set_bytes: 1, ..Point::default() });
        assert_eq!(judge.judgement(), before);
    }

    #[test]
    fn a_restart_begins_the_documents_detector_anew() {
        let mut judge = leaking(300);
        judge.push(&Point { time_seconds: 300.0, working_set_bytes: 5, requests_total: Some(1), ..Point::default() });
        let statistics = judge.judgement().detectors.regression.statistics;
        assert_eq!((statistics.sample_count, statistics.request_count), (1, 1));
    }

    #[test]
    fn the_documents_detector_takes_a_sample_only_when_requests_have_passed() {
        let mut judge = Judge::new(Settings::default());
        for second in 0..40u32 {
            let requests_total = Some(u64::from(second / 4));
            judge.push(&Point { time_seconds: f64::from(second), requests_total, ..Point::default() });
        }
        assert_eq!(judge.judgement().detectors.regression.statistics.sample_count, 10);
    }
}
