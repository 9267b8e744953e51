//! When what rests is read again: every [`REFRESH`], each at a moment of its own, so that what was first read in one tick does
//! not fall due in one.

use crate::time::BootTime;
use std::time::Duration;

/// What rests is read again after this long at the latest.
pub(super) const REFRESH: Duration = Duration::from_secs(30);

/// The next moment after `now` at which what has this number is to be read again.
pub(super) fn next(number: u64, now: BootTime) -> BootTime {
    const PERIOD: u64 = REFRESH.as_nanos() as u64;
    // Multiplied by the golden ratio, numbers in a row come to lie evenly in the period (Knuth, 6.4).
    let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let phase = ((u128::from(hash) * u128::from(PERIOD)) >> 64) as u64;
    let since = (now.0 % PERIOD + PERIOD - phase) % PERIOD;
    BootTime(now.0 + PERIOD - since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_next_time_comes_within_the_period_and_then_in_step() {
        for number in [0, 1, 2, 77, u64::MAX] {
            let now = BootTime(1_000 * SECOND + 17);
            let (first, second) = (next(number, now), next(number, next(number, now)));
            assert!(first > now && first.since(now) <= REFRESH, "{number}: {first:?}");
            assert_eq!(second.since(first), REFRESH);
            assert_eq!(next(number, BootTime(first.0 + 5)), second, "a late tick does not shift it");
        }
    }

    #[test]
    fn what_is_read_in_one_tick_falls_due_evenly() {
        let mut seconds = [0_u32; 30];
        // Every fourth pid, as where threads take those between.
        for pid in (0..12_000).step_by(4) {
            seconds[(next(pid, BootTime(60 * SECOND)).0 / SECOND - 60) as usize % 30] += 1;
        }
        assert!(seconds.iter().all(|&due| (80..=120).contains(&due)), "{seconds:?}");
    }
}
