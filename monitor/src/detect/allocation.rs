//! What the kernel's events tell of growth: address space mapped, heap and resident memory, net of what was given back. They grow before
//! the envelope of memory in use shows it.
//!
//! Each is a cumulative counter; the slope is Theil and Sen's over up to 64 points, which are thinned out as time goes on.

use super::{
    judge::{Point, REQUESTS_FLOOR},
    slope::{self, Estimate},
};
use serde::Serialize;

/// Points kept of each counter.
const POINTS: usize = 64;
/// Fewer tell nothing.
const POINTS_MIN: usize = 20;
/// Less growth does not matter.
const BYTES_MIN: f64 = 4.0 * 1024.0 * 1024.0;
/// Below this share of the whole slope, growth in the last third has ended.
const ENDED: f64 = 0.25;

/// The detector of one subject.
#[derive(Clone, Debug, Default)]
pub struct Allocation {
    mapped: Track,
    heap: Track,
    resident: Track,
}

/// How it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AllocationReport {
    /// Address space: mmap, munmap, mremap.
    pub mapped: Option<Growth>,
    /// Heap: brk.
    pub heap: Option<Growth>,
    /// Resident memory.
    pub resident: Option<Growth>,
    /// Whether any of them grows.
    pub growing: bool,
    /// When the earliest of those that grow began to.
    pub since: Option<f64>,
}

/// How one counter grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// With time.
    pub bytes_per_second: Estimate,
    /// With requests; none where they are not counted, or none came.
    pub bytes_per_1000_requests: Option<Estimate>,
    /// Since when it grows for sure; none where it does not.
    pub since: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    time: f64,
    requests: Option<f64>,
    bytes: f64,
}

/// One counter: every `stride`-th of its points.
#[derive(Clone, Debug)]
struct Track {
    entries: Vec<Entry>,
    stride: u32,
    skipped: u32,
    since: Option<f64>,
}

impl Default for Track {
    fn default() -> Self {
        Self { entries: Vec::new(), stride: 1, skipped: 0, since: None }
    }
}

impl Allocation {
    /// Takes the counters of a point, as far as there are any.
    pub fn push(&mut self, point: &Point) {
        let tracks = [
            (&mut self.mapped, point.mapped_net_bytes),
            (&mut self.heap, point.heap_net_bytes),
            (&mut self.resident, point.resident_net_bytes),
        ];
        for (track, bytes) in tracks {
            if let Some(bytes) = bytes {
                let requests = point.requests_total.map(|requests| requests as f64);
                track.push(Entry { time: point.time_seconds, requests, bytes: bytes as f64 });
            }
        }
    }

    /// Forgets everything, as at a restart.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How it stands.
    pub fn report(&self) -> AllocationReport {
        let [mapped, heap, resident] = [&self.mapped, &self.heap, &self.resident].map(Track::growth);
        let since =
            [mapped, heap, resident].into_iter().flatten().filter_map(|growth| growth.since).min_by(f64::total_cmp);
        AllocationReport { mapped, heap, resident, growing: since.is_some(), since }
    }
}

impl Track {
    fn push(&mut self, entry: Entry) {
        self.skipped += 1;
        if self.skipped < self.stride {
            return;
        }
        self.skipped = 0;
        if self.entries.len() == POINTS {
            let mut keep = false;
            self.entries.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
        self.entries.push(entry);
        if self.entries.len().is_multiple_of(8) {
            self.since = self.grows().then(|| self.since.unwrap_or(entry.time));
        }
    }

    /// Whether it has grown enough, for sure, and still does.
    fn grows(&self) -> bool {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else { return false };
        if self.entries.len() < POINTS_MIN || last.bytes - first.bytes < BYTES_MIN {
            return false;
        }
        let points = self.points(|entry| Some(entry.time));
        let third = &points[points.len() - points.len() / 3..];
        let line = slope::line(&points, &mut Vec::new()).map(|line| line.slope);
        line.zip(slope::slope(third, &mut Vec::new()))
            .is_some_and(|(whole, late)| whole.low > 0.0 && late > ENDED * whole.value)
    }

    fn growth(&self) -> Option<Growth> {
        if self.entries.len() < POINTS_MIN {
            return None;
        }
        let served = |entry: Option<&Entry>| entry.and_then(|entry| entry.requests).unwrap_or_default();
        let is_enough = served(self.entries.last()) - served(self.entries.first()) >= REQUESTS_FLOOR;
        let line = |points: Vec<_>| slope::line(&points, &mut Vec::new()).map(|line| line.slope);
        Some(Growth {
            bytes_per_second: line(self.points(|entry| Some(entry.time)))?,
            bytes_per_1000_requests: is_enough
                .then(|| line(self.points(|entry| entry.requests)))
                .flatten()
                .map(|slope| slope.scaled(1000.0)),
            since: self.since,
        })
    }

    fn points(&self, x: impl Fn(&Entry) -> Option<f64>) -> Vec<(f64, f64)> {
        self.entries.iter().filter_map(|entry| Some((x(entry)?, entry.bytes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter over an hour, a point each second and ten requests in it.
    fn report(seconds: u32, bytes: impl Fn(f64) -> f64) -> AllocationReport {
        let mut allocation = Allocation::default();
        for second in 0..seconds {
            allocation.push(&Point {
                time_seconds: f64::from(second),
                requests_total: Some(u64::from(second) * 10),
                heap_net_bytes: Some(bytes(f64::from(second)) as i64),
                ..Point::default()
            });
        }
        allocation.report()
    }

    #[test]
    fn of_too_few_requests_nothing_is_said_per_request() {
        let per_request = |requests_each: u64| {
            let mut allocation = Allocation::default();
            for second in 0..50 {
                let point = Point {
                    time_seconds: second as f64,
                    heap_net_bytes: Some(second as i64 * 1000),
                    ..Point::default()
                };
                allocation.push(&Point { requests_total: Some(second * requests_each), ..point });
            }
            allocation.report().heap.unwrap().bytes_per_1000_requests.map(|growth| growth.value.round())
        };
        assert_eq!((per_request(2), per_request(4)), (None, Some(250_000.0)));
    }

    #[test]
    fn steady_growth_is_told_with_its_rates_and_its_beginning() {
        let report = report(3600, |second| second * 1e6);
        let heap = report.heap.unwrap();
        assert!((heap.bytes_per_second.value - 1e6).abs() < 1.0 && heap.bytes_per_second.low > 0.99e6, "{heap:?}");
        assert!((heap.bytes_per_1000_requests.unwrap().value - 1e8).abs() < 100.0);
        assert!(report.growing && report.since.unwrap() < 30.0, "{report:?}");
        assert_eq!((report.mapped, report.resident), (None, None));
    }

    #[test]
    fn what_is_given_back_or_comes_to_an_end_is_no_growth() {
        assert!(!report(3600, |second| (second % 60.0) * 1e6).growing);
        assert!(!report(3600, |second| second.min(1200.0) * 1e6).growing);
    }

    #[test]
    fn little_growth_and_few_points_are_none() {
        assert!(!report(3600, |second| second * 1000.0).growing);
        assert_eq!(report(19, |second| second * 1e6), AllocationReport::default());
    }

    #[test]
    fn the_earliest_of_several_counts() {
        let mut allocation = Allocation::default();
        for second in 0..2000 {
            let late = i64::from((second - 1000).max(0)) << 20;
            allocation.push(&Point {
                time_seconds: f64::from(second),
                heap_net_bytes: Some(late),
                resident_net_bytes: Some(i64::from(second) << 20),
                ..Point::default()
            });
        }
        let report = allocation.report();
        assert_eq!(report.since, report.resident.unwrap().since);
        assert!(report.heap.unwrap().since.is_none_or(|since| since > 1000.0));
    }
}
