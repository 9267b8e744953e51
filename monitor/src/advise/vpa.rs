//! Kubernetes' Vertical Pod Autoscaler: the 90th percentile of daily peaks in a histogram that forgets, and a margin.
//!
//! ```text
//! request = p90 of the histogram · 1.15
//! limit   = request · (limit / request of what was deployed)
//! ```
//!
//! Structure and numbers are those of kubernetes/autoscaler, vertical-pod-autoscaler/pkg/recommender: `model/aggregations_config.go`
//! (24 h of half-life, buckets from 10 MB to 1 TB of which each is 5 % wider), `model/container.go` (one peak for each day from the first
//! sample on; after a kill the day's peak is what was in use and 20 % or 100 MiB more, whichever is larger), `util/histogram.go` (a
//! percentile is its bucket's end) and the target's flags (0.9 and 0.15). Its least size is left to the guardrails, which hold for all
//! policies.

use super::{
    MEBIBYTE,
    guardrails::{Draft, percent},
    past::{Interval, Kill},
    policy::{DAY_SECONDS, Follow, Settings},
};

const HALF_LIFE_SECONDS: f64 = DAY_SECONDS;
const FIRST_BUCKET_BYTES: f64 = 1e7;
const BUCKET_GROWTH: f64 = 1.05;
/// Those up to 1 TB, and one for all above.
const BUCKETS: usize = 176;
const PERCENTILE: f64 = 0.9;
const MARGIN: f64 = 1.15;
const KILL_PERCENT: u64 = 120;
const KILL_BYTES: u64 = 100 * MEBIBYTE;
/// Weights double with each half-life; before they become too large, all are made smaller.
const DOUBLINGS_MAX: f64 = 100.0;

/// What it keeps of a past.
#[derive(Default)]
pub(super) struct Vpa {
    histogram: Histogram,
    day_ends_seconds: Option<f64>,
    /// The day's largest of what was used, and of what is taken to have been needed where it was killed.
    used_bytes: u64,
    needed_bytes: u64,
}

impl Vpa {
    fn sample(&mut self, time_seconds: f64, bytes: u64) -> bool {
        let end = *self.day_ends_seconds.get_or_insert(time_seconds);
        if time_seconds >= end {
            let days = ((time_seconds - end) / DAY_SECONDS).floor() + 1.0;
            let end = end + days * DAY_SECONDS;
            self.day_ends_seconds = Some(end);
            (self.used_bytes, self.needed_bytes) = (0, 0);
            self.histogram.add(end, bytes, 1.0);
            return true;
        }
        let before = self.used_bytes.max(self.needed_bytes);
        let is_more = before != 0 && bytes > before;
        if is_more {
            self.histogram.add(end, before, -1.0);
            self.histogram.add(end, bytes, 1.0);
        }
        is_more
    }
}

impl Follow for Vpa {
    fn push(&mut self, interval: &Interval) {
        if self.sample(interval.end_seconds, interval.peak_bytes) {
            self.used_bytes = interval.peak_bytes;
        }
    }

    fn kill(&mut self, kill: &Kill) {
        // Not of what it was taken to need before, so that kills in a row do not drive each other up.
        let used = kill.bytes.max(self.used_bytes);
        let needed = used.saturating_add(KILL_BYTES).max(percent(used, KILL_PERCENT));
        if self.sample(kill.time_seconds, needed) {
            self.needed_bytes = needed;
        }
    }

    fn draft(&self, _: bool, settings: &Settings) -> Option<Draft> {
        let request_bytes = self.histogram.percentile(PERCENTILE)? * MARGIN;
        let proportion = settings
            .template
            .filter(|template| template.request_bytes > 0)
            .map_or(1.0, |template| template.limit_bytes as f64 / template.request_bytes as f64);
        let limit_bytes = request_bytes * proportion;
        Some(Draft::new(request_bytes as u64, limit_bytes as u64, "p90 of daily peaks with 15% headroom"))
    }
}

/// Weights of daily peaks, of which each counts half as much as one of a day later.
#[derive(Default)]
struct Histogram {
    /// By bucket; empty before the first.
    weights: Vec<f64>,
    /// Where a weight is 1.
    reference_seconds: f64,
}

impl Histogram {
    fn add(&mut self, time_seconds: f64, bytes: u64, times: f64) {
        if self.weights.is_empty() {
            self.weights = vec![0.0; BUCKETS];
            self.reference_seconds = time_seconds;
        }
        let mut doublings = (time_seconds - self.reference_seconds) / HALF_LIFE_SECONDS;
        if doublings > DOUBLINGS_MAX {
            let shrink = (-doublings).exp2();
            self.weights.iter_mut().for_each(|weight| *weight *= shrink);
            self.reference_seconds = time_seconds;
            doublings = 0.0;
        }
        let weight = &mut self.weights[bucket(bytes)];
        *weight = (*weight + times * doublings.exp2()).max(0.0);
    }

    /// The end of the bucket that so large a share of all weight is reached in; none where there is no weight.
    fn percentile(&self, share: f64) -> Option<f64> {
        let total: f64 = self.weights.iter().sum();
        let mut sum = 0.0;
        let found = self.weights.iter().position(|weight| {
            sum += weight;
            *weight > 0.0 && sum >= share * total
        })?;
        Some(bucket_begin((found + 1).min(BUCKETS - 1)))
    }
}

fn bucket(bytes: u64) -> usize {
    let place = (bytes as f64 * (BUCKET_GROWTH - 1.0) / FIRST_BUCKET_BYTES + 1.0).ln() / BUCKET_GROWTH.ln();
    (place as usize).min(BUCKETS - 1)
}

fn bucket_begin(bucket: usize) -> f64 {
    FIRST_BUCKET_BYTES * (BUCKET_GROWTH.powi(bucket as i32) - 1.0) / (BUCKET_GROWTH - 1.0)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Sizes, past::Past, policy::Policy},
        *,
    };

    const HOUR: f64 = 3600.0;

    fn at(hour: f64, bytes: u64) -> Interval {
        Interval { end_seconds: hour * HOUR, seconds: 60.0, peak_bytes: bytes, mean_bytes: bytes }
    }

    /// The request by the formulas, in bytes.
    fn raw(intervals: &[Interval], kills: &[Kill]) -> u64 {
        let past = Past { intervals, kills, leak: None };
        Policy::Vpa.recommend(&past, &Settings::default()).unwrap().raw.request_bytes
    }

    /// What becomes of a peak of so many bytes where only that one counts: buckets begin at 10 MB · (1.05ⁿ - 1) / 0.05.
    fn alone(bytes: u64) -> u64 {
        let mut begins = (0..).map(|n| 1e7 * (1.05f64.powi(n) - 1.0) / 0.05);
        (begins.find(|begin| *begin > bytes as f64).unwrap() * 1.15) as u64
    }

    #[test]
    fn one_peak_is_told_by_its_buckets_end_and_15_percent() {
        // The first bucket ends at 10 MB, the second at 20.5, the third at 31.525.
        for (bytes, end) in [(1, 10_000_000), (15_000_000, 20_500_000), (25_000_000, 31_525_000)] {
            let told = raw(&[at(1.0, bytes)], &[]);
            assert!(told.abs_diff(end * 115 / 100) <= 1, "{told}");
            assert!(told.abs_diff(alone(bytes)) <= 1);
        }
    }

    #[test]
    fn of_a_day_only_the_peak_counts_and_days_are_forgotten_by_half_each() {
        let (low, high) = (100_000_000, 500_000_000);
        let day = [at(0.0, low), at(5.0, high), at(23.0, low)];
        assert_eq!(raw(&day, &[]), alone(high));
        // A high day weighs 1, then low ones 2, 4, 8: 1 of 15 is below a tenth.
        let days = |count: u32| -> Vec<_> {
            (0..count).map(|n| at(f64::from(n) * 24.0, if n == 0 { high } else { low })).collect()
        };
        assert_eq!(raw(&days(3), &[]), alone(high));
        assert_eq!(raw(&days(4), &[]), alone(low));
    }

    #[test]
    fn after_a_kill_it_needs_a_fifth_or_100_mebibytes_more() {
        let small = [at(0.0, 200 << 20), at(1.0, 210 << 20)];
        let kill = |hour: f64, mebibytes: u64| Kill { time_seconds: hour * HOUR, bytes: mebibytes << 20 };
        assert_eq!(raw(&small, &[kill(1.0, 250)]), alone(350 << 20));
        assert_eq!(raw(&small, &[kill(1.0, 1000)]), alone(1200 << 20));
        assert_eq!(raw(&small, &[kill(1.0, 250), kill(1.1, 250)]), alone(350 << 20), "the second adds nothing");
        assert_eq!(raw(&small, &[kill(1.0, 100)]), alone(310 << 20), "what was used counts where it is more");
    }

    #[test]
    fn the_limit_keeps_its_proportion_to_the_request() {
        let intervals = [at(0.0, 500 << 20)];
        let past = Past { intervals: &intervals, ..Past::default() };
        let template = Some(Sizes { request_bytes: 200 << 20, limit_bytes: 300 << 20 });
        let Sizes { request_bytes, limit_bytes } =
            Policy::Vpa.recommend(&past, &Settings { template, ..Settings::default() }).unwrap().raw;
        assert!(limit_bytes.abs_diff(request_bytes * 3 / 2) <= 2);
        let alike = Policy::Vpa.recommend(&past, &Settings::default()).unwrap();
        assert_eq!(alike.raw.limit_bytes, alike.raw.request_bytes);
        assert!(
            alike.rationale.starts_with("p90 of daily peaks with 15% headroom; rounded to "),
            "{}",
            alike.rationale
        );
    }

    #[test]
    fn years_do_not_overflow_it() {
        let years: Vec<_> = (0..2000).map(|day| at(f64::from(day) * 24.0, 100_000_000)).collect();
        assert_eq!(raw(&years, &[]), alone(100_000_000));
    }
}
