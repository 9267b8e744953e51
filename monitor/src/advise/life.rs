//! A subject's recorded life: its intervals, and what the leak detector said of it at each moment.

use super::past::Interval;
use crate::{
    detect::{Judge, Judgement, Point, Settings, Verdict},
    units::human_bytes,
};

/// The detector is asked no more often, in seconds: its shortest windows that are long enough for a verdict are ten minutes, and
/// asking is what takes the time.
const ASKED_SECONDS: f64 = 300.0;

/// What is replayed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Life {
    intervals: Vec<Interval>,
    /// From which interval on the detector said what, in order.
    spells: Vec<(usize, Option<String>)>,
}

impl Life {
    /// Of intervals in order of time. The detector is shown their means, and at each moment only those until then. It is not told of kills: those of a
    /// backtest happen to each policy at other times, and memory goes on as recorded.
    pub fn new(intervals: Vec<Interval>, regression: Settings) -> Self {
        let (mut judge, mut spells) = (Judge::new(regression), Vec::new());
        let mut asked = f64::NEG_INFINITY;
        for (place, interval) in intervals.iter().enumerate() {
            judge.push(&Point {
                time_seconds: interval.end_seconds,
                working_set_bytes: interval.mean_bytes,
                ..Point::default()
            });
            if interval.end_seconds - asked < ASKED_SECONDS {
                continue;
            }
            asked = interval.end_seconds;
            let leaks = finding(&judge.judgement());
            let before = spells.last().and_then(|(_, said): &(usize, Option<String>)| said.as_ref());
            if before.is_some() != leaks.is_some() {
                spells.push((place, leaks));
            }
        }
        Self { intervals, spells }
    }

    /// Its intervals, in order of time.
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// What the detector said once it had seen the interval at `place`; nothing where it said of no leak.
    pub fn leak(&self, place: usize) -> Option<&str> {
        let spell = self.spells.partition_point(|(from, _)| *from <= place).checked_sub(1)?;
        self.spells[spell].1.as_deref()
    }
}

/// Each row, a time in seconds and a working set in bytes, as an interval since the row before; the first is of no length. A second
/// of the rows counts as `time_scale` seconds. Rows that are not later than the one before are left out.
pub fn intervals(rows: impl IntoIterator<Item = (f64, u64)>, time_scale: f64) -> Vec<Interval> {
    let mut intervals: Vec<Interval> = Vec::new();
    for (time_seconds, bytes) in rows {
        let end_seconds = time_seconds * time_scale;
        let last = intervals.last().map_or(end_seconds, |last| last.end_seconds);
        if intervals.is_empty() || end_seconds > last {
            intervals.push(Interval { end_seconds, seconds: end_seconds - last, peak_bytes: bytes, mean_bytes: bytes });
        }
    }
    intervals
}

fn finding(judgement: &Judgement) -> Option<String> {
    (judgement.verdict == Verdict::Leak).then(|| match judgement.bytes_per_hour {
        Some(growth) => format!("leaks {} per hour", human_bytes(growth.value)),
        None => "leaks".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// So many minutes, a row each.
    fn life(minutes: u32, mebibytes: impl Fn(u32) -> u64) -> Life {
        let rows = (0..minutes).map(|minute| (f64::from(minute), mebibytes(minute) * MIB));
        Life::new(intervals(rows, 60.0), Settings::default())
    }

    #[test]
    fn a_row_is_an_interval_since_the_one_before_by_the_scale() {
        let rows = [(100.0, 5), (101.0, 7), (101.0, 8), (103.5, 6)];
        let of = |end_seconds, seconds, bytes| Interval { end_seconds, seconds, peak_bytes: bytes, mean_bytes: bytes };
        assert_eq!(intervals(rows, 60.0), [of(6000.0, 0.0, 5), of(6060.0, 60.0, 7), of(6210.0, 150.0, 6)]);
        assert_eq!(intervals([], 1.0), []);
    }

    #[test]
    fn the_detector_says_leak_once_it_has_seen_enough_and_not_before() {
        let leaks = life(180, |minute| 200 + u64::from(minute));
        assert_eq!((leaks.leak(0), leaks.leak(9)), (None, None));
        assert_eq!(leaks.leak(179), Some("leaks 60.0 MiB per hour"));
        let flat = life(180, |_| 200);
        assert!((0..180).all(|place| flat.leak(place).is_none()));
    }

    #[test]
    fn what_comes_later_changes_nothing_that_was_said() {
        let ends = life(400, |minute| 200 + u64::from(minute.min(120)));
        let goes_on = life(120, |minute| 200 + u64::from(minute));
        assert!((0..120).all(|place| ends.leak(place) == goes_on.leak(place)));
        assert!(ends.leak(119).is_some() && ends.leak(399).is_none(), "growth that has ended is none");
    }
}
