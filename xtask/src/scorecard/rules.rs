//! Two rules that are in wide use, to compare with: what a line by least squares through the last hours comes to.

use super::{Opinion, corpus::Series};
use std::collections::VecDeque;

const HOUR: f64 = 3600.0;
/// More growth than this share in an hour is a leak, by the first rule.
const HOURLY_SHARE: f64 = 0.02;
/// A line that explains this share of the variance, and rises by a hundredth, is a leak, by the second rule.
const EXPLAINED: f64 = 0.8;
const SHARE_MIN: f64 = 0.01;

/// The last hour's slope in percent of its mean.
pub(super) fn slope(series: &Series) -> Opinion {
    watch(series, HOUR, |line| line.slope * HOUR > HOURLY_SHARE * line.mean)
}

/// The fit (R²) of a rising line through the last six hours.
pub(super) fn fit(series: &Series) -> Opinion {
    watch(series, 6.0 * HOUR, |line| {
        line.slope > 0.0 && line.explained >= EXPLAINED && line.slope * line.seconds > SHARE_MIN * line.mean
    })
}

/// A line through a window.
struct Line {
    slope: f64,
    mean: f64,
    /// R².
    explained: f64,
    seconds: f64,
}

/// Asks a rule at each sample once a sixth of the window is full.
fn watch(series: &Series, window: f64, rule: impl Fn(&Line) -> bool) -> Opinion {
    let (mut sums, mut points, mut opinion) = (Sums::default(), VecDeque::new(), Opinion::default());
    for row in &series.rows {
        let point = (row.time, row.working_set);
        points.push_back(point);
        sums.add(point, 1.0);
        while let Some(&first) = points.front().filter(|first| row.time - first.0 > window) {
            sums.add(first, -1.0);
            points.pop_front();
        }
        let seconds = row.time - points.front().map_or(row.time, |first| first.0);
        let leaks = seconds >= window / 6.0 && rule(&sums.line(seconds));
        opinion.alarms += f64::from(u8::from(leaks && opinion.leaks_since.is_none()));
        opinion.leaks_since = leaks.then(|| opinion.leaks_since.unwrap_or(row.time));
    }
    opinion
}

/// Sums that a line needs. Sizes are counted in MiB so that squares keep their digits.
#[derive(Default)]
struct Sums {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Sums {
    fn add(&mut self, (x, bytes): (f64, f64), sign: f64) {
        let y = bytes / f64::from(1 << 20);
        self.n += sign;
        self.x += sign * x;
        self.y += sign * y;
        self.xx += sign * x * x;
        self.xy += sign * x * y;
        self.yy += sign * y * y;
    }

    fn line(&self, seconds: f64) -> Line {
        let (x, y) = (self.x / self.n, self.y / self.n);
        let (xx, xy, yy) = (self.xx / self.n - x * x, self.xy / self.n - x * y, self.yy / self.n - y * y);
        let explained = if xx * yy > 0.0 { xy * xy / (xx * yy) } else { 0.0 };
        Line { slope: if xx > 0.0 { xy / xx } else { 0.0 }, mean: y, explained, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::corpus::Row, *};

    fn series(megabytes: impl Fn(f64) -> f64) -> Series {
        let row = |i: u32| {
            let time = f64::from(i) * 10.0;
            Row { time, working_set: megabytes(time) * 1e6, anon: None, requests: None, oom_kills: None }
        };
        Series { name: String::new(), is_recorded: false, leak_begins: None, rows: (0..3600).map(row).collect() }
    }

    #[test]
    fn both_see_a_line_and_neither_sees_none() {
        let rising = series(|time| 100.0 + time / HOUR * 10.0);
        let flat = series(|_| 100.0);
        assert!(slope(&rising).leaks_since.is_some_and(|since| since <= HOUR / 6.0 + 10.0), "{:?}", slope(&rising));
        assert!(fit(&rising).leaks_since.is_some_and(|since| since <= HOUR + 10.0));
        assert_eq!((slope(&flat), fit(&flat)), (Opinion::default(), Opinion::default()));
    }

    #[test]
    fn a_window_forgets() {
        let ended = series(|time| 100.0 + time.min(2.0 * HOUR) / HOUR * 10.0);
        assert_eq!(slope(&ended), Opinion { leaks_since: None, alarms: 1.0 });
    }
}
