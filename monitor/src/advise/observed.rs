//! What was observed of a container's working set.

use super::past::Past;
use serde::{Deserialize, Serialize};

/// Working sets over a window, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Their mean.
    pub ws_avg_bytes: u64,
    /// Their 95th percentile, by nearest rank.
    pub ws_p95_bytes: u64,
    /// The largest.
    pub ws_max_bytes: u64,
    /// From the first to the last.
    pub window_seconds: f64,
}

impl Observed {
    /// Of all values of a window, in any order; nothing where there are none. Puts them in order.
    pub fn of(values: &mut [u64], window_seconds: f64) -> Option<Self> {
        values.sort_unstable();
        let sum: u128 = values.iter().map(|&value| u128::from(value)).sum();
        Some(Self {
            ws_avg_bytes: (sum / values.len().max(1) as u128) as u64,
            ws_p95_bytes: nearest_rank(values, 95)?,
            ws_max_bytes: *values.last()?,
            window_seconds,
        })
    }
}

impl Observed {
    /// Of the last so many seconds of a past: of the peaks of its intervals, and the mean of their means.
    pub fn of_past(past: &Past<'_>, seconds: f64) -> Option<Self> {
        let intervals = past.last(seconds);
        let mut peaks: Vec<u64> = intervals.iter().map(|interval| interval.peak_bytes).collect();
        let (first, last) = (intervals.first()?, intervals.last()?);
        let of_peaks = Self::of(&mut peaks, last.end_seconds - (first.end_seconds - first.seconds))?;
        let sum: u128 = intervals.iter().map(|interval| u128::from(interval.mean_bytes)).sum();
        Some(Self { ws_avg_bytes: (sum / intervals.len() as u128) as u64, ..of_peaks })
    }
}

/// The smallest of some values, in order, that at least so many per cent of them do not exceed.
pub fn nearest_rank(ordered: &[u64], percent: usize) -> Option<u64> {
    let rank = (ordered.len() * percent).div_ceil(100).max(1);
    ordered.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_twenty_values_the_nineteenth_is_the_95th_percentile() {
        let mut values: Vec<u64> = (1..=20).rev().collect();
        let observed = Observed::of(&mut values, 300.0).unwrap();
        assert_eq!((observed.ws_avg_bytes, observed.ws_p95_bytes, observed.ws_max_bytes), (10, 19, 20));
        assert_eq!(Observed::of(&mut [7], 0.0).map(|one| one.ws_p95_bytes), Some(7));
        assert_eq!(Observed::of(&mut [], 0.0), None);
    }

    proptest! {
        #[test]
        fn at_least_95_of_a_hundred_values_do_not_exceed_it_and_of_any_smaller_value_fewer(
            mut values in prop::collection::vec(any::<u64>(), 1..200)
        ) {
            let observed = Observed::of(&mut values, 0.0).unwrap();
            let up_to = |most: u64| values.iter().filter(|&&value| value <= most).count() * 100;
            prop_assert!(up_to(observed.ws_p95_bytes) >= values.len() * 95);
            let below = values.iter().filter(|&&value| value < observed.ws_p95_bytes).max();
            prop_assert!(below.is_none_or(|&below| up_to(below) < values.len() * 95));
            prop_assert!(observed.ws_avg_bytes <= observed.ws_max_bytes && observed.ws_p95_bytes <= observed.ws_max_bytes);
        }
    }
}
