//! What a window that slides over intervals holds. Each step costs next to nothing, however long the window is, so that a policy may be
//! asked at every interval of weeks.

use super::{
    observed::{Observed, nearest_rank},
    past::Interval,
};
use std::collections::VecDeque;

/// The intervals that ended in the last while, with their peaks in order.
#[derive(Clone, Debug)]
pub(super) struct Window {
    seconds: f64,
    intervals: VecDeque<Interval>,
    ordered_peaks: Vec<u64>,
    sum_of_means: u128,
}

impl Window {
    /// So long, in seconds. Empty.
    pub(super) fn new(seconds: f64) -> Self {
        Self { seconds, intervals: VecDeque::new(), ordered_peaks: Vec::new(), sum_of_means: 0 }
    }

    /// Takes an interval, later than those before, and lets go of those that ended too long before it.
    pub(super) fn push(&mut self, interval: &Interval) {
        let begin = interval.end_seconds - self.seconds;
        self.sum_of_means += u128::from(interval.mean_bytes);
        self.ordered_peaks.insert(self.place(interval.peak_bytes), interval.peak_bytes);
        self.intervals.push_back(*interval);
        while let Some(first) = self.intervals.front().copied().filter(|first| first.end_seconds <= begin) {
            self.sum_of_means -= u128::from(first.mean_bytes);
            self.ordered_peaks.remove(self.place(first.peak_bytes));
            self.intervals.pop_front();
        }
    }

    /// The smallest peak that at least so many per cent of them do not exceed; none of none.
    pub(super) fn peak_rank(&self, percent: usize) -> Option<u64> {
        nearest_rank(&self.ordered_peaks, percent)
    }

    /// The 95th percentile and the largest of the peaks, and the mean of the means; none of none.
    pub(super) fn observed(&self) -> Option<Observed> {
        let (first, last) = (self.intervals.front()?, self.intervals.back()?);
        Some(Observed {
            ws_avg_bytes: (self.sum_of_means / self.intervals.len() as u128) as u64,
            ws_p95_bytes: self.peak_rank(95)?,
            ws_max_bytes: *self.ordered_peaks.last()?,
            window_seconds: last.end_seconds - first.end_seconds,
        })
    }

    fn place(&self, peak_bytes: u64) -> usize {
        self.ordered_peaks.partition_point(|&peak| peak < peak_bytes)
    }
}

/// The largest value of the last while.
#[derive(Clone, Debug)]
pub(super) struct Highest {
    seconds: f64,
    /// Times and values: later ones are smaller, as what is not above a later one will never be the largest again.
    falling: VecDeque<(f64, u64)>,
}

impl Highest {
    /// So long, in seconds. Empty.
    pub(super) fn new(seconds: f64) -> Self {
        Self { seconds, falling: VecDeque::new() }
    }

    /// Takes a value, not earlier than those before.
    pub(super) fn push(&mut self, time_seconds: f64, value: u64) {
        while self.falling.back().is_some_and(|(_, last)| *last <= value) {
            self.falling.pop_back();
        }
        self.falling.push_back((time_seconds, value));
        self.forget(time_seconds);
    }

    /// Lets go of what is too old at a moment.
    pub(super) fn forget(&mut self, now_seconds: f64) {
        while self.falling.front().is_some_and(|(time, _)| *time <= now_seconds - self.seconds) {
            self.falling.pop_front();
        }
    }

    /// The largest; none of none.
    pub(super) fn value(&self) -> Option<u64> {
        self.falling.front().map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::past::Past, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_that_slides_tells_what_one_looked_at_anew_does(
            steps in prop::collection::vec((1u32..100, 0u64..50, 0u64..50), 1..80), seconds in 1u32..400
        ) {
            let (mut window, mut highest) = (Window::new(f64::from(seconds)), Highest::new(f64::from(seconds)));
            let (mut now, mut intervals) = (0.0, Vec::new());
            for (step, peak_bytes, mean_bytes) in steps {
                now += f64::from(step);
                intervals.push(Interval { end_seconds: now, seconds: f64::from(step), peak_bytes, mean_bytes });
                window.push(&intervals[intervals.len() - 1]);
                highest.push(now, peak_bytes);
                let past = Past { intervals: &intervals, ..Past::default() };
                let last = past.last(f64::from(seconds));
                let mut peaks: Vec<_> = last.iter().map(|interval| interval.peak_bytes).collect();
                let span = last[last.len() - 1].end_seconds - last[0].end_seconds;
                let mean = last.iter().map(|interval| interval.mean_bytes).sum::<u64>() / last.len() as u64;
                let expected = Observed { ws_avg_bytes: mean, ..Observed::of(&mut peaks, span).unwrap() };
                prop_assert_eq!(window.observed(), Some(expected));
                prop_assert_eq!(highest.value(), peaks.last().copied());
            }
        }
    }
}
