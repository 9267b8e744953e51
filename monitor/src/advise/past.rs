//! What was observed of a subject's working set: all that a policy may look at.

use crate::detect::Point;
use serde::{Deserialize, Serialize};

/// Memory over a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When it ended, in seconds of any clock that only goes forward.
    pub end_seconds: f64,
    /// How long it was; zero of a single sample.
    pub seconds: f64,
    /// The largest working set in it: of its samples, and between them where the kernel tells of peaks.
    pub peak_bytes: u64,
    /// The mean of its samples.
    pub mean_bytes: u64,
}

impl Interval {
    /// Its mean, as detectors take it.
    pub fn point(&self) -> Point {
        Point { time_seconds: self.end_seconds, working_set_bytes: self.mean_bytes, ..Point::default() }
    }
}

/// The kernel killed a process of it for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// When, by the same clock.
    pub time_seconds: f64,
    /// What was in use then, at least: the limit that was reached.
    pub bytes: u64,
}

/// What is known of a subject at a moment: what comes later is in none of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past<'a> {
    /// In order of time.
    pub intervals: &'a [Interval],
    /// In order of time.
    pub kills: &'a [Kill],
    /// What a detector says of it, where it leaks.
    pub leak: Option<&'a str>,
}

impl<'a> Past<'a> {
    /// The last moment that is known; none where nothing is.
    pub fn now_seconds(&self) -> Option<f64> {
        self.intervals.last().map(|last| last.end_seconds)
    }

    /// The intervals that ended in the last so many seconds.
    pub fn last(&self, seconds: f64) -> &'a [Interval] {
        let begin = self.now_seconds().unwrap_or_default() - seconds;
        let first = self.intervals.partition_point(|interval| interval.end_seconds <= begin);
        &self.intervals[first..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_while_is_of_what_ended_in_it() {
        let at = |end_seconds| Interval { end_seconds, seconds: 60.0, peak_bytes: 1, mean_bytes: 1 };
        let intervals = [60.0, 120.0, 180.0].map(at);
        let past = Past { intervals: &intervals, ..Past::default() };
        assert_eq!((past.now_seconds(), past.last(60.0).len(), past.last(61.0).len()), (Some(180.0), 1, 2));
        assert_eq!((Past::default().now_seconds(), Past::default().last(60.0)), (None, &[][..]));
    }
}
