//! Robust slopes: Theil and Sen's median of all pairwise slopes, with an interval that knows that neighbours are alike.

use serde::Serialize;

/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.959_964;
/// Neighbours that are more alike than this leave hardly any information, and the estimate of how alike they are is itself poor.
const CORRELATION_MAX: f64 = 0.8;
/// Fewer points have no slope worth telling.
const POINTS_MIN: usize = 3;

/// A number with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The best guess.
    pub value: f64,
    /// It is hardly less than this.
    pub low: f64,
    /// It is hardly more than this.
    pub high: f64,
}

impl Estimate {
    /// The same in another unit; `factor` is positive.
    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// A line through points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    /// Its slope.
    pub(crate) slope: Estimate,
    /// How far points are from it: the median of the distances.
    pub(super) deviation: f64,
}

/// The median of the slopes of all pairs; none where no two points differ in x.
///
/// `scratch` is room for the slopes, so that nothing is allocated.
pub(super) fn slope(points: &[(f64, f64)], scratch: &mut Vec<f64>) -> Option<f64> {
    slope_apart(points, 0.0, scratch)
}

fn slope_apart(points: &[(f64, f64)], apart: f64, scratch: &mut Vec<f64>) -> Option<f64> {
    pairs(points, apart, scratch);
    (points.len() >= POINTS_MIN).then(|| median(scratch)).flatten()
}

/// The line by Theil and Sen. Its interval is Sen's, by the variance of Kendall's S, widened by how alike the neighbouring
/// residuals are (as n(1-r)/(1+r) independent points would have it).
pub(super) fn line(points: &[(f64, f64)], scratch: &mut Vec<f64>) -> Option<Line> {
    line_apart(points, 0.0, scratch)
}

/// The same by pairs that are so far apart in x at least: of nearer ones, where x is not quite known, the slope is noise.
pub(crate) fn line_apart(points: &[(f64, f64)], apart: f64, scratch: &mut Vec<f64>) -> Option<Line> {
    let value = slope_apart(points, apart, scratch)?;
    let (n, pairs) = (points.len() as f64, scratch.len());
    let mut residuals: Vec<f64> = points.iter().map(|(x, y)| y - value * x).collect();
    let middle = median(&mut residuals.clone())?;
    residuals.iter_mut().for_each(|residual| *residual -= middle);
    let correlation = correlation(&residuals).clamp(0.0, CORRELATION_MAX);
    let spread = (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0 * (1.0 + correlation) / (1.0 - correlation)).sqrt() * Z;
    let rank = |rank: f64| (rank.max(0.0) as usize).min(pairs - 1);
    let (low, high) = ((pairs as f64 - spread) / 2.0, (pairs as f64 + spread) / 2.0);
    // Too few points to tell the sign: the interval is all that was seen, and zero.
    let unknown = low < 0.0;
    let mut at = |place| *scratch.select_nth_unstable_by(place, f64::total_cmp).1;
    let (low, high) = (at(rank(low.floor())), at(rank(high.ceil())));
    let slope = if unknown {
        Estimate { value, low: low.min(0.0), high: high.max(0.0) }
    } else {
        Estimate { value, low: low.min(value), high: high.max(value) }
    };
    residuals.iter_mut().for_each(|residual| *residual = residual.abs());
    Some(Line { slope, deviation: median(&mut residuals)? })
}

/// Fills `slopes` with those of all pairs that differ in x, by `apart` at least.
fn pairs(points: &[(f64, f64)], apart: f64, slopes: &mut Vec<f64>) {
    slopes.clear();
    for (i, (x, y)) in points.iter().enumerate() {
        let later = points[i + 1..].iter().filter(|(other, _)| other != x && (other - x).abs() >= apart);
        slopes.extend(later.map(|(later_x, later_y)| (later_y - y) / (later_x - x)));
    }
}

/// The middle value; none of none. Reorders.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// How alike neighbours are: autocorrelation at lag 1.
fn correlation(values: &[f64]) -> f64 {
    let square: f64 = values.iter().map(|value| value * value).sum();
    let product: f64 = values.windows(2).map(|pair| pair[0] * pair[1]).sum();
    if square > 0.0 { product / square } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: u32, y: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..count).map(|i| (f64::from(i), y(f64::from(i)))).collect()
    }

    /// Noise that is the same each time, -1 to 1.
    fn noise(x: f64) -> f64 {
        ((x * 12.9898).sin() * 43_758.545_3).fract()
    }

    #[test]
    fn a_straight_line_has_its_slope_and_next_to_no_interval() {
        let line = line(&points(30, |x| 5.0 + 2.0 * x), &mut Vec::new()).unwrap();
        assert!((line.slope.value - 2.0).abs() < 1e-9 && line.slope.high - line.slope.low < 1e-9, "{line:?}");
        assert!(line.deviation < 1e-9);
    }

    #[test]
    fn a_quarter_of_wild_points_does_not_move_it() {
        let wild = points(40, |x| if x % 4.0 == 1.0 { 1e6 } else { 3.0 * x + noise(x) });
        let slope = slope(&wild, &mut Vec::new()).unwrap();
        assert!((slope - 3.0).abs() < 0.5, "{slope}");
    }

    #[test]
    fn the_interval_has_the_slope_in_it_and_zero_where_there_is_only_noise() {
        let rising = line(&points(60, |x| x * 0.05 + noise(x)), &mut Vec::new()).unwrap().slope;
        assert!(rising.low < 0.05 && rising.high > 0.05 && rising.low > 0.0, "{rising:?}");
        let flat = line(&points(60, noise), &mut Vec::new()).unwrap().slope;
        assert!(flat.low < 0.0 && flat.high > 0.0, "{flat:?}");
    }

    #[test]
    fn neighbours_that_are_alike_widen_it() {
        let white = line(&points(60, |x| x * 0.05 + noise(x)), &mut Vec::new()).unwrap().slope;
        let alike = line(&points(60, |x| x * 0.05 + (x / 5.0).sin()), &mut Vec::new()).unwrap().slope;
        assert!(alike.high - alike.low > white.high - white.low, "{alike:?} {white:?}");
    }

    #[test]
    fn pairs_that_are_too_near_have_no_say() {
        let near = points(60, |x| 3.0 * (x / 30.0).floor());
        let place = |(x, y): (f64, f64)| ((x / 30.0).floor() + 0.01 * noise(x), y + noise(x + 0.5));
        let near: Vec<_> = near.into_iter().map(place).collect();
        let slope = line_apart(&near, 0.5, &mut Vec::new()).unwrap().slope;
        assert!((slope.value - 3.0).abs() < 0.3 && slope.low > 2.0 && slope.high < 4.0, "{slope:?}");
        let all = line(&near, &mut Vec::new()).unwrap().slope;
        assert!(all.high - all.low > 2.0 * (slope.high - slope.low), "{all:?}");
        assert!(line_apart(&near, 2.0, &mut Vec::new()).is_none());
    }

    #[test]
    fn few_points_or_one_place_tell_nothing() {
        assert_eq!(slope(&points(2, |x| x), &mut Vec::new()), None);
        assert_eq!(slope(&[(1.0, 1.0); 5], &mut Vec::new()), None);
        let few = line(&points(3, |x| x), &mut Vec::new()).unwrap().slope;
        assert_eq!((few.value, few.low), (1.0, 0.0));
    }
}
