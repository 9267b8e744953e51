//! How much memory a request in flight holds, from points of requests in flight and memory.
//!
//! Memory goes up and down with requests, and may grow with time as well, by a leak or a cache that fills. So what grows steadily
//! is taken out of both first: of points of the same processes, the residuals of requests and of memory on their number in the
//! row have the same slope as both would have without the growth (Frisch, Waugh and Lovell). Their slope is the median of those
//! of all pairs. What does not fall when requests are done is not held by them.

use super::load::{Load, Point};
use crate::detect::{Estimate, line_apart, median};

/// Fewer points say nothing, and fewer of the same processes are left out.
const POINTS_MIN: usize = 16;
const SEGMENT_MIN: usize = 8;
/// Points whose requests in flight differ by less than this, growth taken out, tell of noise alone.
const APART: f64 = 0.5;
/// What is given back when requests are done is looked for in so many points after.
const NEAR: usize = 4;
/// What is given back when requests are done is at least so much of what they take.
const GIVEN_BACK: f64 = 0.5;
/// A process's memory is read anew once it has moved by so much; until then it is off by as much.
const READ_BYTES: f64 = (1 << 20) as f64;

/// Bytes that each request in flight holds, with the 95 % interval; else why that cannot be told.
pub(super) fn per_request(load: &Load) -> Result<Estimate, &'static str> {
    if load.points().all(|point| point.in_flight == 0) {
        return Err("no request was in flight at the end of any tick");
    }
    let points = without_growth(load);
    if points.len() < POINTS_MIN {
        return Err("too few ticks were seen with the same processes, and requests or memory moving");
    }
    let mut scratch = Vec::new();
    let line = line_apart(&points, APART, &mut scratch);
    let slope = line.ok_or("as many requests were in flight all the time")?.slope;
    if slope.low <= 0.0 {
        return Err(
            "memory does not go with requests in flight: they hold too little, or it is kept when they are done",
        );
    }
    let falls = fall(load, slope.value, &mut scratch).ok_or("requests in flight have only become more")?;
    if falls < GIVEN_BACK * slope.value {
        return Err("memory that rose with requests is kept when they are done");
    }
    let (least, most) = points.iter().fold((f64::MAX, f64::MIN), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
    let error = READ_BYTES / (most - least);
    Ok(Estimate { low: (slope.low - error).max(0.0), high: slope.high + error, ..slope })
}

/// Runs of points of the same processes that are long enough.
fn segments(load: &Load) -> Vec<Vec<Point>> {
    let points: Vec<Point> = load.points().copied().collect();
    let segments = points.chunk_by(|one, next| one.segment == next.segment);
    segments.filter(|segment| segment.len() >= SEGMENT_MIN).map(<[Point]>::to_vec).collect()
}

/// Points of requests in flight and memory, less what grows steadily in each segment, and each segment's mean.
fn without_growth(load: &Load) -> Vec<(f64, f64)> {
    let flat = |segment: &[Point], read: fn(&Point) -> f64| {
        let Trend { mean, growth } = Trend::of(segment, read);
        let middle = (segment.len() as f64 - 1.0) / 2.0;
        let flat = move |(at, point)| read(point) - mean - growth * (at as f64 - middle);
        segment.iter().enumerate().map(flat).collect::<Vec<_>>()
    };
    let of_segment = |segment: Vec<Point>| flat(&segment, in_flight).into_iter().zip(flat(&segment, anon));
    segments(load).into_iter().flat_map(of_segment).collect()
}

/// The median of what memory changed by for each request that was done, other growth taken out, within a few points after which
/// fewer were in flight; none where that never was.
fn fall(load: &Load, held: f64, slopes: &mut Vec<f64>) -> Option<f64> {
    slopes.clear();
    for segment in segments(load) {
        let growth = Trend::of(&segment, anon).growth - held * Trend::of(&segment, in_flight).growth;
        for (at, point) in segment.iter().enumerate() {
            let next = segment[at + 1..].iter().take(NEAR).zip(1..);
            let fewer = next.filter(|(later, _)| later.in_flight < point.in_flight);
            slopes.extend(fewer.map(|(later, steps)| {
                (anon(later) - anon(point) - growth * f64::from(steps)) / (in_flight(later) - in_flight(point))
            }));
        }
    }
    median(slopes)
}

fn in_flight(point: &Point) -> f64 {
    point.in_flight.into()
}

fn anon(point: &Point) -> f64 {
    point.anon_bytes as f64
}

/// The least-squares line of values one after the other.
struct Trend {
    mean: f64,
    /// From one to the next.
    growth: f64,
}

impl Trend {
    fn of(segment: &[Point], read: fn(&Point) -> f64) -> Self {
        let count = segment.len() as f64;
        let (mean, middle) = (segment.iter().map(read).sum::<f64>() / count, (count - 1.0) / 2.0);
        let place = |at: usize| at as f64 - middle;
        let product: f64 = segment.iter().enumerate().map(|(at, point)| place(at) * (read(point) - mean)).sum();
        let square: f64 = (0..segment.len()).map(|at| place(at).powi(2)).sum();
        Self { mean, growth: product / square }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: f64 = (1 << 20) as f64;

    /// A load that goes up and down, from 0 to 7.
    fn wave(tick: u32) -> u32 {
        [0, 3, 1, 5, 2, 7, 0, 4, 6, 1, 2, 0][(tick / 3 % 12) as usize]
    }

    /// Noise that is the same each time, -1 to 1.
    fn noise(tick: u32) -> f64 {
        ((f64::from(tick) * 12.9898).sin() * 43_758.545_3).fract()
    }

    fn fit(ticks: u32, point: impl Fn(u32) -> (u32, u32, f64)) -> Result<Estimate, &'static str> {
        let bytes = |mebibytes: f64| (mebibytes * MIB) as u64;
        per_request(&Load::of((0..ticks).map(point).map(|(segment, x, y)| (segment, x, bytes(y)))))
    }

    /// In mebibytes: the estimate and how far the interval goes.
    fn mib(estimate: Estimate) -> (f64, f64, f64) {
        (estimate.low / MIB, estimate.value / MIB, estimate.high / MIB)
    }

    #[test]
    fn what_requests_hold_is_told_with_at_least_the_error_of_reading() {
        let (low, value, high) = mib(fit(120, |t| (0, wave(t), 100.0 + 8.0 * f64::from(wave(t)))).unwrap());
        assert!((value - 8.0).abs() < 1e-3, "{value}");
        // Seven apart, growth taken out a little more or less.
        assert!((high - value - 1.0 / 7.0).abs() < 0.02 && (value - low - 1.0 / 7.0).abs() < 0.02, "{low} {high}");
    }

    #[test]
    fn a_leak_beside_it_does_not_count() {
        let leak = |t| (0, wave(t), 100.0 + 2.0 * f64::from(t) + 8.0 * f64::from(wave(t)) + noise(t));
        let (low, value, high) = mib(fit(120, leak).unwrap());
        assert!((value - 8.0).abs() < 0.2 && low < 8.0 && high > 8.0 && high - low < 1.0, "{low} {value} {high}");
        // Where load grows as steadily as memory, nobody can tell.
        assert!(fit(120, |t| (0, t / 10, 100.0 + 2.0 * f64::from(t) + 3.0 * noise(t))).is_err());
    }

    #[test]
    fn workers_that_are_replaced_begin_anew() {
        let level = |segment: u32| [100.0, 700.0, 60.0][segment as usize];
        let replaced = |t: u32| (t / 20, wave(t), level(t / 20) + 8.0 * f64::from(wave(t)));
        let (low, value, high) = mib(fit(60, replaced).unwrap());
        assert!((value - 8.0).abs() < 0.05 && low > 7.0 && high < 9.0, "{low} {value} {high}");
        let always = |t: u32| (t / 4, wave(t), 100.0 + 8.0 * f64::from(wave(t)));
        assert!(fit(120, always).unwrap_err().contains("too few ticks"));
    }

    #[test]
    fn what_is_kept_is_not_held() {
        // An allocator that gives nothing back.
        let most = |t: u32| (0..=t).map(wave).max().unwrap_or_default();
        let kept = fit(120, |t| (0, wave(t), 100.0 + 8.0 * f64::from(most(t))));
        assert!(kept.unwrap_err().contains("kept"), "{kept:?}");
        // What is loaded by the first request, which many more follow: also when some are done.
        let warm = |t: u32| (0, if t < 30 { 0 } else { 4 - t % 2 }, if t < 30 { 100.0 } else { 300.0 } + noise(t));
        let warmed = fit(60, warm);
        assert!(warmed.unwrap_err().contains("kept"), "{warmed:?}");
        let only_more = fit(60, |t| if t < 30 { (0, 0, 100.0 + noise(t)) } else { (0, 4, 300.0 + noise(t)) });
        assert!(only_more.unwrap_err().contains("only become more"), "{only_more:?}");
    }

    #[test]
    fn what_cannot_be_told_is_withheld() {
        let reason = |ticks, point: fn(u32) -> (u32, u32, f64)| fit(ticks, point).unwrap_err();
        assert!(reason(0, |_| (0, 0, 0.0)).contains("no request was in flight"));
        assert!(reason(120, |t| (0, 0, f64::from(t))).contains("no request was in flight"));
        assert!(reason(15, |t| (0, wave(t), f64::from(wave(t)))).contains("too few"));
        assert!(reason(120, |t| (0, 4, noise(t) + 3.0)).contains("as many requests"));
        assert!(reason(120, |t| (0, wave(t), noise(t) + 100.0)).contains("does not go with"));
    }

    proptest! {
        #[test]
        fn the_interval_has_what_requests_hold_in_it(
            held in 1.0f64..200.0, growth in 0.0f64..4.0, base in 10.0f64..500.0, noisy in 0.0f64..0.5,
            loads in prop::collection::vec(0u32..12, 60..200),
        ) {
            let point = |t: u32| {
                let x = loads[t as usize];
                (0, x, base + held * f64::from(x) + growth * f64::from(t) + noisy * noise(t))
            };
            let (low, value, high) = mib(fit(loads.len() as u32, point).unwrap());
            prop_assert!(low <= held && held <= high, "{} {} {} not {}", low, value, high, held);
            prop_assert!((value / held - 1.0).abs() < 0.2 + noisy / held);
        }
    }
}
