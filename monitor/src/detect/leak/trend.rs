//! One window judged by itself: how its lower envelope goes.

use super::window::Block;
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
/// What the rate leaves unexplained must be less than this share, where it cannot be told apart from growth.
const IN_DOUBT: f64 = 0.2;
/// Two variables with a larger share in common (r²) cannot be told apart.
const IN_COMMON_MAX: f64 = 0.95;

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
        by_requests: bool,
        drawdown: f64,
        strict: &Strictness,
        scratch: &mut Vec<f64>,
    ) {
        let by_time = Growth::with(Driver::Time, blocks, by_requests, scratch);
        let by_requests = by_requests.then(|| Growth::with(Driver::Requests, blocks, true, scratch)).flatten();
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
            let rates = rates(blocks);
            let load = Load::of(driver, &points, &rates);
            follows_load = load.explains_all;
            for ((_, bytes), rate) in points.iter_mut().zip(&rates) {
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
    /// By least squares of y over x, over the rate, and over both.
    fn of(driver: Driver, points: &[(f64, f64)], rates: &[f64]) -> Self {
        let n = points.len() as f64;
        let mean = |value: &dyn Fn(usize) -> f64| (0..points.len()).map(value).sum::<f64>() / n;
        let (x, y) = (mean(&|i| points[i].0), mean(&|i| points[i].1));
        let r = mean(&|i| rates[i]);
        let of = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| mean(&|i| a(i) * b(i));
        let (dx, dy, dr) = (|i: usize| points[i].0 - x, |i: usize| points[i].1 - y, |i: usize| rates[i] - r);
        let (xx, rr, yy) = (of(&dx, &dx), of(&dr, &dr), of(&dy, &dy));
        let (xy, ry, xr) = (of(&dx, &dy), of(&dr, &dy), of(&dx, &dr));
        if xx <= 0.0 || rr <= 0.0 || yy <= 0.0 {
            return Self::default();
        }
        let (left_by_x, left_by_rate) = (yy - xy * xy / xx, yy - ry * ry / rr);
        let apart = xx * rr - xr * xr;
        let separable = apart > (1.0 - IN_COMMON_MAX) * xx * rr;
        let (growth, load) =
            if separable { ((xy * rr - ry * xr) / apart, (ry * xx - xy * xr) / apart) } else { (0.0, 0.0) };
        let left_by_both = if separable { yy - growth * xy - load * ry } else { f64::INFINITY };
        let rate_explains = ry > 0.0 && left_by_rate < EXPLAINS * yy;
        // Where both go up together nobody can tell which it is: the load has the benefit of the doubt. With time it may go up
        // exactly alike; with requests, whose rate it is, it cannot, and what fits much better is believed.
        let is_beaten = matches!(driver, Driver::Requests) && left_by_x < EXPLAINS * left_by_rate;
        let in_doubt = !separable && left_by_rate < IN_DOUBT * yy && !is_beaten;
        if load > 0.0 && left_by_both < EXPLAINS * left_by_x.min(left_by_rate) {
            Self { bytes_per_rate: load, explains_all: false }
        } else if rate_explains && (in_doubt || left_by_rate <= left_by_x) {
            Self { bytes_per_rate: 0.0, explains_all: true }
        } else {
            Self::default()
        }
    }
}

/// Requests a second around each block.
fn rates(blocks: &[Block]) -> Vec<f64> {
    let around = |i: usize| {
        let (from, to) = (&blocks[i.saturating_sub(RATE_REACH)], &blocks[(i + RATE_REACH).min(blocks.len() - 1)]);
        (to.requests - from.requests) / (to.time - from.time).max(f64::MIN_POSITIVE)
    };
    (0..blocks.len()).map(around).collect()
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
