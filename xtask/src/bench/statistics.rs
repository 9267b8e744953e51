//! What a handful of noisy measurements say, without assuming how their noise is distributed.

/// The middle of sorted values; of an even number, the mean of the two in the middle. NaN for none.
fn median_of_sorted(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The median; NaN for none.
pub(crate) fn median(values: &[f64]) -> f64 {
    median_of_sorted(&sorted(values))
}

/// The median's distance to its values: half of them are nearer, half further. NaN for none.
pub(crate) fn median_absolute_deviation(values: &[f64]) -> f64 {
    let center = median(values);
    median(&values.iter().map(|value| (value - center).abs()).collect::<Vec<_>>())
}

/// The narrowest interval between two of the values, equally far from either end, that holds the true median with at least
/// this confidence. It follows from the sign test: each value is above the true median with probability one half.
/// None where there are too few values for that confidence.
pub(crate) fn median_interval(values: &[f64], confidence: f64) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    let count = sorted.len();
    let mut outside = 0.0;
    let mut narrowest = None;
    for cut in 0..count / 2 {
        // The true median lies outside the interval when at most `cut` values are on one of its sides.
        outside += 2.0 * probability_of_heads(count, cut);
        if 1.0 - outside < confidence {
            break;
        }
        narrowest = Some((sorted[cut], sorted[count - 1 - cut]));
    }
    narrowest
}

/// The probability of exactly this many heads in tosses of a fair coin.
fn probability_of_heads(tosses: usize, heads: usize) -> f64 {
    (0..heads)
        .fold(0.5_f64.powi(tosses as i32), |probability, done| probability * (tosses - done) as f64 / (done + 1) as f64)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_deviation_is_not_moved_by_one_wild_value() {
        assert_eq!(median_absolute_deviation(&[1.0, 2.0, 3.0, 4.0, 1000.0]), 1.0);
    }

    /// The ranks are those of published tables of the sign test's 95 % interval.
    #[test]
    fn the_interval_has_the_ranks_of_the_tables() {
        for (count, low, high) in [(6, 1, 6), (10, 2, 9), (12, 3, 10), (20, 6, 15)] {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            assert_eq!(median_interval(&values, 0.95), Some((f64::from(low), f64::from(high))), "{count} values");
        }
        assert_eq!(median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95), None);
    }

    #[test]
    fn coins_are_fair() {
        assert!((probability_of_heads(4, 2) - 0.375).abs() < 1e-12);
        let all: f64 = (0..=9).map(|heads| probability_of_heads(9, heads)).sum();
        assert!((all - 1.0).abs() < 1e-12);
    }
}
