//! How often a subject would have been killed at each limit that never changes.

use super::past::Interval;

/// The kills at every limit.
///
/// Use goes above a limit as often as there are intervals above it less those whose predecessor was above it, too. Both are
/// counts of numbers above the limit (of peaks, and of the smaller of two neighbours), which two sorted lists answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedLimits {
    peaks: Vec<u64>,
    smaller_of_two: Vec<u64>,
}

impl FixedLimits {
    /// Of intervals in order of time.
    pub fn of(intervals: &[Interval]) -> Self {
        let mut peaks: Vec<_> = intervals.iter().map(|interval| interval.peak_bytes).collect();
        let mut smaller_of_two: Vec<_> = peaks.windows(2).map(|pair| pair[0].min(pair[1])).collect();
        peaks.sort_unstable();
        smaller_of_two.sort_unstable();
        Self { peaks, smaller_of_two }
    }

    /// How often use went above a limit, in bytes, from below it. What is above it at the beginning has been below before.
    pub fn kills_at(&self, limit_bytes: u64) -> u64 {
        let above = |ordered: &[u64]| ordered.len() - ordered.partition_point(|&bytes| bytes <= limit_bytes);
        (above(&self.peaks) - above(&self.smaller_of_two)) as u64
    }

    /// The largest peak, in bytes: the least limit that nothing goes above.
    pub fn largest_bytes(&self) -> u64 {
        self.peaks.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(peaks: &[u64]) -> FixedLimits {
        let at = |(place, &peak_bytes): (usize, &u64)| Interval {
            end_seconds: place as f64,
            seconds: 1.0,
            peak_bytes,
            mean_bytes: 0,
        };
        FixedLimits::of(&peaks.iter().enumerate().map(at).collect::<Vec<_>>())
    }

    #[test]
    fn each_time_that_use_goes_above_the_limit_is_a_kill() {
        let fixed = of(&[5, 1, 3, 3, 2, 4, 4]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|limit| fixed.kills_at(limit)), [1, 2, 3, 2, 1, 0]);
        assert_eq!((fixed.largest_bytes(), of(&[]).kills_at(0)), (5, 0));
    }

    proptest! {
        #[test]
        fn it_is_what_counting_one_by_one_gives(peaks in prop::collection::vec(0u64..12, 0..60), limit in 0u64..13) {
            let (mut kills, mut was_above) = (0, false);
            for &peak in &peaks {
                kills += u64::from(peak > limit && !was_above);
                was_above = peak > limit;
            }
            prop_assert_eq!(of(&peaks).kills_at(limit), kills);
        }
    }
}
