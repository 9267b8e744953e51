//! The mean of a level over the time for which it must hold.

use crate::time::BootTime;
use std::{collections::VecDeque, time::Duration};

/// Parts that the time is divided into: what has become too old goes by parts.
const PARTS: u32 = 32;

/// A level's mean over the last while.
#[derive(Debug)]
pub(super) struct Mean {
    hold: Duration,
    parts: VecDeque<Part>,
}

/// A part of the time: when it ended, how long it was, and the sum of value times seconds.
#[derive(Clone, Copy, Debug)]
struct Part {
    end: BootTime,
    seconds: f64,
    integral: f64,
}

impl Mean {
    pub(super) const fn new(hold: Duration) -> Self {
        Self { hold, parts: VecDeque::new() }
    }

    /// The level was `value` for the time `tick` until `now`.
    pub(super) fn push(&mut self, now: BootTime, tick: Duration, value: f64) {
        // A first tick has no length, and counts all the same.
        let seconds = tick.as_secs_f64().max(1e-9);
        while self.parts.front().is_some_and(|part| now.since(part.end) >= self.hold) {
            self.parts.pop_front();
        }
        let longest = self.hold.as_secs_f64() / f64::from(PARTS);
        match self.parts.back_mut().filter(|part| part.seconds + seconds <= longest) {
            Some(part) => {
                part.end = now;
                part.seconds += seconds;
                part.integral += value * seconds;
            }
            None => self.parts.push_back(Part { end: now, seconds, integral: value * seconds }),
        }
    }

    /// The mean of what is known of the last while.
    pub(super) fn value(&self) -> f64 {
        let (integral, seconds) =
            self.parts.iter().fold((0.0, 0.0), |(i, s), part| (i + part.integral, s + part.seconds));
        if seconds > 0.0 { integral / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn mean(hold: u64, tick_ms: u64, values: &[f64]) -> f64 {
        let mut mean = Mean::new(Duration::from_secs(hold));
        for (number, value) in values.iter().enumerate() {
            let now = BootTime((number as u64 + 1) * tick_ms * 1_000_000);
            mean.push(now, Duration::from_millis(tick_ms), *value);
        }
        assert!(mean.parts.len() <= PARTS as usize + 2, "{} parts", mean.parts.len());
        mean.value()
    }

    #[test]
    fn it_is_of_the_last_while_and_of_nothing_before() {
        assert_eq!(mean(10, 1000, &[1.0; 10]), 1.0);
        let mut values = vec![1.0; 10];
        values.extend([0.0; 5]);
        assert_eq!(mean(10, 1000, &values), 0.5);
        values.extend([0.0; 5]);
        assert_eq!(mean(10, 1000, &values), 0.0);
    }

    #[test]
    fn short_ticks_are_gathered_in_parts() {
        let mut values = vec![0.0; 600];
        values.extend([1.0; 300]);
        let mean = mean(60, 100, &values);
        assert!((0.48..=0.52).contains(&mean), "{mean}");
    }

    #[test]
    fn without_a_time_to_hold_the_last_value_counts() {
        assert_eq!(mean(0, 1000, &[0.0, 0.0, 0.7]), 0.7);
    }

    #[test]
    fn long_ticks_weigh_more() {
        let mut mean = Mean::new(Duration::from_secs(100));
        mean.push(BootTime(SECOND), Duration::from_secs(1), 1.0);
        mean.push(BootTime(4 * SECOND), Duration::from_secs(3), 0.0);
        assert_eq!(mean.value(), 0.25);
    }
}
