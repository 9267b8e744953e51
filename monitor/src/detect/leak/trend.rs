//! One window judged by itself: how its lower envelope goes.

use super::{Both, window::Block};
use crate::detect::slope::{self, Estimate, Line};

/// Fewer blocks tell nothing.
const BLOCKS_MIN: usize = 12;
/// Less growth does not matter, whatever it is.
const BYTES_MIN: f64 = 4.0 * 1024.0 * 1024.0;
/// Nor does a smaller share of what there is.
const SHARE_MIN: f64 = 0.01;
/// Below this share of the whole slope, growth in the last third has ended.
const ENDED: f64 = 0.25;
/// How many blocks to each side make the rate of requests at one.
const RATE_REACH: usize = 2;
/// What two variables leave unexplained must be less than this share of what one leaves, for the second to be believed.
const EXPLAINS: f64 = 0.5;
/// Two variables with a larger share in common (r²) cannot be told apart.
const IN_COMMON_MAX: f64 = 0.95;
/// The same where only a number depends on it, which comes with its interval, and no verdict.
const BOTH_IN_COMMON_MAX: f64 = 0.99;

/// How strict a window is judged: a leak that was found is not lost over a trifle.
struct Strictness {
    /// Growth to what was ever given back.
    drawdowns: f64,
    /// The slope of each third to that before it.
    keeps_up: f64,
    /// The largest single step's share of the growth.
    step: f64,
}

const STRICT: Strictness = Strictness { drawdowns: 3.0, keeps_up: 0.8, step: 1.0 / 3.0 };
const LENIENT: Strictness = Strictness { drawdowns: 2.0, keeps_up: 0.5, step: 0.5 };

/// How memory goes in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Course {
    /// Too few blocks.
    #[default]
    Unknown,
    /// No growth that matters.
    Flat,
    /// No growth but of the working set.
    WorkingSet,
    /// It went up, and does not any more.
    Flattened,
    /// It goes with the rate of requests.
    FollowsLoad,
    /// It goes up, slower and slower.
    SlowingDown,
    /// It goes up, but not more than it went down before, or in a few steps.
    Unsteady,
    /// It goes up.
    Steady,
}

/// What a window shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trend {
    /// How memory goes.
    pub(super) course: Course,
    /// The most that was given back: from a block to a later one.
    pub(super) drawdown: f64,
    /// How much of the growth is beyond doubt, 0–1.
    pub(super) clarity: f64,
    /// From its first block to its last.
    pub(super) seconds: f64,
    /// The same in requests.
    pub(super) requests: f64,
    /// Growth in bytes for each second.
    pub(super) per_second: Option<Estimate>,
    /// Growth in bytes for each request.
    pub(super) per_request: Option<Estimate>,
    /// Growth with both at once; none where they cannot be told apart, or there is none.
    pub(super) both: Option<Both>,
}

impl Both {
    /// The robust slope over each variable, of memory and of the variable, both less what goes with the other one by least
    /// squares. (Of lines by least squares that is the same as the fit of both: Frisch, Waugh and Lovell.)
    fn of(blocks: &[Block], scratch: &mut Vec<f64>) -> Option<Self> {
        let time = |block: &Block| block.time;
        let requests = |block: &Block| block.requests;
        let bytes = |block: &Block| block.bytes;
        let in_common = Squares::of(blocks.iter().map(|block| (time(block), requests(block))));
        if in_common.xy * in_common.xy > BOTH_IN_COMMON_MAX * in_common.xx * in_common.yy {
            return None;
        }
        let mut beside = |of: fn(&Block) -> f64, other: fn(&Block) -> f64| {
            let less_other = |value: fn(&Block) -> f64| {
                let squares = Squares::of(blocks.iter().map(|block| (other(block), value(block))));
                move |block: &Block| value(block) - squares.xy / squares.xx * other(block)
            };
            let (x, y) = (less_other(of), less_other(bytes));
            let points: Vec<_> = blocks.iter().map(|block| (x(block), y(block))).collect();
            slope::line(&points, scratch).map(|line| line.slope)
        };
        Some(Self {
            bytes_per_1000_requests: beside(requests, time)?.scaled(1000.0),
            bytes_per_hour: beside(time, requests)?.scaled(3600.0),
        })
    }
}

/// What memory grows with.
#[derive(Clone, Copy)]
enum Driver {
    Time,
    Requests,
}

impl Driver {
    const fn of(self, block: &Block) -> f64 {
        match self {
            Self::Time => block.time,
            Self::Requests => block.requests,
        }
    }
}

impl Trend {
    /// Of a window's blocks. `drawdown` is the most that longer windows have seen given back, `is_leak` whether a leak was found before.
    pub(super) fn of(
        blocks: &[Block],
        counts_requests: bool,
        drawdown: f64,
        is_leak: bool,
        scratch: &mut Vec<f64>,
    ) -> Self {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Self::default() };
        if blocks.len() < BLOCKS_MIN {
            return Self::default();
        }
        let mut trend = Self {
            course: Course::Flat,
            drawdown: given_back(blocks.iter().map(|block| block.bytes)),
            seconds: last.time - first.time,
            requests: last.requests - first.requests,
            ..Self::default()
        };
        let strict = if is_leak { LENIENT } else { STRICT };
        if risen(blocks, |block| block.bytes) >= enough(last.bytes) {
            trend.judge(blocks, counts_requests && trend.requests > 0.0, drawdown, &strict, scratch);
        }
        if trend.course == Course::Flat && risen(blocks, |block| block.working_set) >= enough(last.working_set) {
            trend.judge_working_set(blocks, &strict, scratch);
        }
        trend
    }

    fn judge(
        &mut self,
        blocks: &[Block],
        counts_requests: bool,
        drawdown: f64,
        strict: &Strictness,
        scratch: &mut Vec<f64>,
    ) {
        let by_time = Growth::with(Driver::Time, blocks, counts_requests, scratch);
        let by_requests = counts_requests.then(|| Growth::with(Driver::Requests, blocks, true, scratch)).flatten();
        self.per_second = by_time.as_ref().map(|growth| growth.line.slope);
        self.per_request = by_requests.as_ref().map(|growth| growth.line.slope);
        // What fits better is what drives it; requests, where both fit.
        let best = match (by_time, by_requests) {
            (Some(time), Some(requests)) if time.line.deviation < requests.line.deviation * 0.9 => Some(time),
            (time, requests) => requests.or(time),
        };
        let Some(growth) = best else { return };
        self.drawdown = growth.drawdown;
        self.course = growth.course(drawdown, strict, enough(blocks[blocks.len() - 1].bytes), scratch);
        self.clarity = growth.clarity(drawdown);
        if counts_requests && matches!(self.course, Course::Steady | Course::SlowingDown | Course::Unsteady) {
            self.both = Both::of(blocks, scratch);
        }
    }

    fn judge_working_set(&mut self, blocks: &[Block], strict: &Strictness, scratch: &mut Vec<f64>) {
        let points: Vec<_> = blocks.iter().map(|block| (block.time, block.working_set)).collect();
        let Some(growth) = Growth::new(points, scratch) else { return };
        let course = growth.course(0.0, strict, enough(blocks[blocks.len() - 1].working_set), scratch);
        if matches!(course, Course::Steady | Course::SlowingDown | Course::Unsteady) {
            self.course = Course::WorkingSet;
        }
    }
}

/// Growth along one variable, less what the rate of requests explains.
struct Growth {
    points: Vec<(f64, f64)>,
    line: Line,
    drawdown: f64,
    follows_load: bool,
}

impl Growth {
    fn new(points: Vec<(f64, f64)>, scratch: &mut Vec<f64>) -> Option<Self> {
        let line = slope::line(&points, scratch)?;
        let drawdown = given_back(points.iter().map(|(_, bytes)| *bytes));
        Some(Self { points, line, drawdown, follows_load: false })
    }

    fn with(driver: Driver, blocks: &[Block], counts_requests: bool, scratch: &mut Vec<f64>) -> Option<Self> {
        let mut points: Vec<_> = blocks.iter().map(|block| (driver.of(block), block.bytes)).collect();
        let mut follows_load = false;
        if counts_requests {
            let rates = Rates::of(blocks, scratch);
            let load = Load::of(driver, &points, &rates);
            follows_load = load.explains_all;
            for ((_, bytes), (_, rate)) in points.iter_mut().zip(&rates.points) {
                *bytes -= load.bytes_per_rate * rate;
            }
        }
        Some(Self { follows_load, ..Self::new(points, scratch)? })
    }

    /// Growth by the line, and no more than there was.
    fn rise(&self) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return 0.0 };
        (self.line.slope.value * (last.0 - first.0)).min(risen(&self.points, |point| point.1))
    }

    fn course(&self, drawdown: f64, strict: &Strictness, enough: f64, scratch: &mut Vec<f64>) -> Course {
        let rise = self.rise();
        if self.follows_load {
            return Course::FollowsLoad;
        }
        if rise < enough || self.line.slope.low <= 0.0 {
            return Course::Flat;
        }
        let Some([early, middle, late]) = self.thirds(scratch) else { return Course::Unsteady };
        if late <= ENDED * self.line.slope.value {
            return Course::Flattened;
        }
        let drawdown = drawdown.max(self.drawdown);
        if rise < drawdown {
            Course::Flat
        } else if slows_down(early, middle, late, strict.keeps_up) {
            Course::SlowingDown
        } else if rise < strict.drawdowns * drawdown || self.largest_step() > strict.step * rise {
            Course::Unsteady
        } else {
            Course::Steady
        }
    }

    /// The slopes of the three thirds of the way; none where one has too few blocks.
    fn thirds(&self, scratch: &mut Vec<f64>) -> Option<[f64; 3]> {
        let (start, end) = (self.points.first()?.0, self.points.last()?.0);
        let place = |share: f64| self.points.partition_point(|(x, _)| *x < start + (end - start) * share);
        let (one, two) = (place(1.0 / 3.0), place(2.0 / 3.0));
        let mut slope = |points: &[(f64, f64)]| slope::slope(points, scratch);
        Some([slope(&self.points[..one])?, slope(&self.points[one..two])?, slope(&self.points[two..])?])
    }

    /// The most that memory went up from a block to the next beyond what the line has there.
    fn largest_step(&self) -> f64 {
        let beyond = |pair: &[(f64, f64)]| pair[1].1 - pair[0].1 - self.line.slope.value * (pair[1].0 - pair[0].0);
        self.points.windows(2).map(beyond).fold(0.0, f64::max)
    }

    /// How narrow the interval is, and how much of the growth was never given back; each 0–1.
    fn clarity(&self, drawdown: f64) -> f64 {
        let (rise, slope) = (self.rise(), self.line.slope);
        if rise <= 0.0 || slope.value <= 0.0 {
            return 0.0;
        }
        (slope.low / slope.value).clamp(0.0, 1.0) * (1.0 - drawdown.max(self.drawdown) / rise).clamp(0.0, 1.0)
    }
}

/// What the rate of requests explains of memory, beside a growth.
#[derive(Default)]
struct Load {
    /// To be taken off, in bytes for each request a second.
    bytes_per_rate: f64,
    /// It explains memory as well as growth does, and growth adds nothing.
    explains_all: bool,
}

impl Load {
    /// By least squares of memory over the driver, over the rate, and over both.
    fn of(driver: Driver, points: &[(f64, f64)], rates: &Rates) -> Self {
        let over_driver = Squares::of(points.iter().copied());
        let over_rate = Squares::of(rates.points.iter().zip(points).map(|((_, rate), (_, bytes))| (*rate, *bytes)));
        let between = Squares::of(points.iter().zip(&rates.points).map(|((x, _), (_, rate))| (*x, *rate)));
        let (xx, rr, yy) = (over_driver.xx, over_rate.xx, over_driver.yy);
        let (xy, ry, xr) = (over_driver.xy, over_rate.xy, between.xy);
        if xx <= 0.0 || rr <= 0.0 || yy <= 0.0 {
            return Self::default();
        }
        let (left_by_x, left_by_rate) = (over_driver.left(), over_rate.left());
        let apart = xx * rr - xr * xr;
        let separable = apart > (1.0 - IN_COMMON_MAX) * xx * rr;
        let (growth, load) = ((xy * rr - ry * xr) / apart, (ry * xx - xy * xr) / apart);
        let left_by_both = if separable { yy - growth * xy - load * ry } else { f64::INFINITY };
        let explains = ry > 0.0 && left_by_rate < EXPLAINS * yy && left_by_rate <= left_by_x;
        if load > 0.0 && left_by_both < EXPLAINS * left_by_x.min(left_by_rate) {
            Self { bytes_per_rate: load, explains_all: false }
        } else if explains || Self::is_in_doubt(driver, points, rates, &over_driver) {
            Self { bytes_per_rate: 0.0, explains_all: true }
        } else {
            Self::default()
        }
    }

    /// Where the rate rises at least by as large a share as memory, memory may do no more than go with it, however badly the rate of a
    /// few requests is known: the load has the benefit of the doubt. Not where memory bends upwards as only the sum of the requests does.
    fn is_in_doubt(driver: Driver, points: &[(f64, f64)], rates: &Rates, over_driver: &Squares) -> bool {
        let bends = || {
            let over_time = Squares::of(rates.points.iter().zip(points).map(|((time, _), (_, bytes))| (*time, *bytes)));
            matches!(driver, Driver::Requests) && over_driver.left() < EXPLAINS * over_time.left()
        };
        rates.growth > 0.0 && over_driver.growth(points) <= rates.growth && !bends()
    }
}

/// Requests a second, by time.
struct Rates {
    points: Vec<(f64, f64)>,
    /// By which share of the first they rise; zero where that is not sure.
    growth: f64,
}

impl Rates {
    fn of(blocks: &[Block], scratch: &mut Vec<f64>) -> Self {
        let around = |i: usize| {
            let from = &blocks[i.saturating_sub(RATE_REACH)];
            let to = &blocks[(i + RATE_REACH).min(blocks.len() - 1)];
            (blocks[i].time, (to.requests - from.requests) / (to.time - from.time).max(f64::MIN_POSITIVE))
        };
        let points: Vec<_> = (0..blocks.len()).map(around).collect();
        let rises = slope::line(&points, scratch).is_some_and(|line| line.slope.low > 0.0);
        let growth = if rises { Squares::of(points.iter().copied()).growth(&points) } else { 0.0 };
        Self { points, growth }
    }
}

/// Mean squares and products of differences from the mean.
struct Squares {
    xx: f64,
    xy: f64,
    yy: f64,
    y_mean: f64,
}

impl Squares {
    fn of(points: impl Iterator<Item = (f64, f64)> + Clone) -> Self {
        let n = points.clone().count() as f64;
        let mean = |value: fn((f64, f64)) -> f64| points.clone().map(value).sum::<f64>() / n;
        let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        for (x, y) in points {
            let (dx, dy) = (x - x_mean, y - y_mean);
            xx += dx * dx / n;
            xy += dx * dy / n;
            yy += dy * dy / n;
        }
        Self { xx, xy, yy, y_mean }
    }

    /// What a line leaves unexplained of y.
    fn left(&self) -> f64 {
        (self.yy - self.xy * self.xy / self.xx).max(0.0)
    }

    /// By which share of its beginning the line rises over the points.
    fn growth(&self, points: &[(f64, f64)]) -> f64 {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return 0.0 };
        let rise = self.xy / self.xx * (last.0 - first.0);
        rise / (self.y_mean - rise / 2.0).max(f64::MIN_POSITIVE)
    }
}

/// Whether growth slows down and is not done with that: a warm-up's steep beginning before a steady growth is.
fn slows_down(early: f64, middle: f64, late: f64, keeps_up: f64) -> bool {
    let (first, second) = (early - middle, middle - late);
    late < keeps_up * middle || middle < keeps_up * early && second > 0.3 * first
}

/// Growth that matters where so much is in use.
fn enough(bytes: f64) -> f64 {
    BYTES_MIN.max(bytes * SHARE_MIN)
}

/// From the first eighth's middle to the last one's least.
fn risen<T>(items: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let part = (items.len() / 8).max(1);
    let mut first: Vec<f64> = items[..part].iter().map(&value).collect();
    let last = items[items.len() - part..].iter().map(value).fold(f64::INFINITY, f64::min);
    last - slope::median(&mut first).unwrap_or(last)
}

/// The most that was given back.
fn given_back(values: impl Iterator<Item = f64>) -> f64 {
    let (mut peak, mut most) = (f64::NEG_INFINITY, 0.0f64);
    for value in values {
        peak = peak.max(value);
        most = most.max(peak - value);
    }
    most
}
