//! The MemoryLeakDetector of the model server's document, word for word: a line by least squares through the last samples of memory
//! against requests, and a threshold on its slope.
//!
//! There, each sample is one request; here several may have passed between two. Subjects that count no requests have the same
//! line against time, which is told but alerts nobody.

pub use crate::config::Regression as Settings;

use serde::Serialize;
use std::collections::VecDeque;

const MB: f64 = 1024.0 * 1024.0;
const HOUR_SECONDS: f64 = 3600.0;
/// Samples that a check needs.
const SAMPLES_MIN: usize = 20;
/// From one alert that is counted to the next.
const COOL_DOWN_SECONDS: f64 = 300.0;

/// The detector of one subject.
#[derive(Clone, Debug)]
pub struct Regression {
    settings: Settings,
    samples_min: usize,
    samples: VecDeque<Sample>,
    request_count: u64,
    baseline_bytes: Option<u64>,
    last_alert_seconds: Option<f64>,
    alerts_count: u64,
    max_growth_seen: f64,
    /// The threshold is exceeded since then.
    leaking_since: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    requests: Option<u64>,
    bytes: u64,
    time_seconds: f64,
}

/// What it tells, by the document's names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Samples in the window.
    pub sample_count: usize,
    /// Requests, by the last sample.
    pub request_count: u64,
    /// All else; none before the first sample.
    #[serde(flatten)]
    pub values: Option<Values>,
}

/// Statistics of a window that is not empty. MB are 1024 × 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Values {
    /// Memory in the last sample.
    pub current_rss_mb: f64,
    /// Memory in the first sample ever; none where that was nothing.
    pub baseline_rss_mb: Option<f64>,
    /// The least in the window.
    pub min_rss_mb: f64,
    /// The most in the window.
    pub max_rss_mb: f64,
    /// The mean of the window.
    pub avg_rss_mb: f64,
    /// The line's slope.
    pub growth_rate_mb_per_1k_requests: f64,
    /// The steepest that a check has seen.
    pub max_growth_rate_seen_mb_per_1k: f64,
    /// Alerts, one in five minutes at most.
    pub leak_alerts_count: u64,
    /// The threshold.
    pub threshold_mb_per_1k: f64,
    /// The slope against time, which the document does not have.
    pub growth_rate_mb_per_hour: f64,
}

/// How it stands: the statistics, and whether the last check found a leak.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegressionReport {
    /// By the document's names.
    #[serde(flatten)]
    pub statistics: Statistics,
    /// Whether growth exceeds the threshold.
    pub leaking: bool,
    /// Since when it does.
    pub since: Option<f64>,
}

impl Regression {
    /// Nothing seen yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            samples_min: SAMPLES_MIN,
            samples: VecDeque::new(),
            request_count: 0,
            baseline_bytes: None,
            last_alert_seconds: None,
            alerts_count: 0,
            max_growth_seen: 0.0,
            leaking_since: None,
        }
    }

    /// As [`Self::new`], with checks from another number of samples on.
    #[must_use]
    pub fn with_samples_min(mut self, samples_min: usize) -> Self {
        self.samples_min = samples_min;
        self
    }

    /// Takes a sample: how many requests there were until now, none where nobody counts them, and memory.
    pub fn record(&mut self, requests_total: Option<u64>, bytes: u64, time_seconds: f64) {
        self.request_count = requests_total.unwrap_or(self.request_count);
        self.baseline_bytes.get_or_insert(bytes);
        while self.samples.len() >= (self.settings.window as usize).max(1) {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { requests: requests_total, bytes, time_seconds });
    }

    /// Whether memory grows too fast; says how fast, in the document's words. Counts an alert unless one was counted in the last
    /// five minutes.
    pub fn check_for_leak(&mut self, now_seconds: f64) -> Option<String> {
        let last = *self.samples.back()?;
        if !self.settings.enabled || self.samples.len() < self.samples_min {
            return None;
        }
        let growth = self.growth_per_1k();
        self.max_growth_seen = self.max_growth_seen.max(growth);
        let threshold = self.settings.threshold_mb_per_1k;
        if growth <= threshold {
            self.leaking_since = None;
            return None;
        }
        self.leaking_since.get_or_insert(now_seconds);
        if self.last_alert_seconds.is_none_or(|last| now_seconds - last > COOL_DOWN_SECONDS) {
            self.alerts_count += 1;
            self.last_alert_seconds = Some(now_seconds);
        }
        Some(format!(
            "Potential memory leak detected: Memory growing at {growth:.1} MB per 1000 requests (threshold: {threshold:.1} MB). \
             Current RSS: {:.1} MB, Baseline: {:.1} MB",
            mb(last.bytes),
            mb(self.baseline_bytes.unwrap_or_default()),
        ))
    }

    /// Forgets all but when it last alerted, as after a model was loaded anew.
    pub fn reset(&mut self) {
        let last_alert_seconds = self.last_alert_seconds;
        *self = Self { last_alert_seconds, ..Self::new(self.settings).with_samples_min(self.samples_min) };
    }

    /// What it knows.
    pub fn statistics(&self) -> Statistics {
        let rss = || self.samples.iter().map(|sample| mb(sample.bytes));
        let values = self.samples.back().map(|last| Values {
            current_rss_mb: mb(last.bytes),
            baseline_rss_mb: self.baseline_bytes.filter(|bytes| *bytes > 0).map(mb),
            min_rss_mb: rss().fold(f64::INFINITY, f64::min),
            max_rss_mb: rss().fold(0.0, f64::max),
            avg_rss_mb: rss().sum::<f64>() / self.samples.len() as f64,
            growth_rate_mb_per_1k_requests: self.growth_per_1k(),
            max_growth_rate_seen_mb_per_1k: self.max_growth_seen,
            leak_alerts_count: self.alerts_count,
            threshold_mb_per_1k: self.settings.threshold_mb_per_1k,
            growth_rate_mb_per_hour: self.slope(|sample| Some(sample.time_seconds)) * HOUR_SECONDS / MB,
        });
        Statistics { sample_count: self.samples.len(), request_count: self.request_count, values }
    }

    /// How it stands.
    pub fn report(&self) -> RegressionReport {
        let since = self.leaking_since;
        RegressionReport { statistics: self.statistics(), leaking: since.is_some(), since }
    }

    /// In MB per 1,000 requests.
    fn growth_per_1k(&self) -> f64 {
        self.slope(|sample| sample.requests.map(|requests| requests as f64)) * 1000.0 / MB
    }

    /// Least squares, in bytes for each unit of x: Σ(xi - x̄)(yi - ȳ) / Σ(xi - x̄)². Zero where x does not move.
    fn slope(&self, x: impl Fn(&Sample) -> Option<f64>) -> f64 {
        let points = || self.samples.iter().filter_map(|sample| Some((x(sample)?, sample.bytes as f64)));
        let n = points().count() as f64;
        if n < 2.0 {
            return 0.0;
        }
        let (x_mean, y_mean) = (points().map(|(x, _)| x).sum::<f64>() / n, points().map(|(_, y)| y).sum::<f64>() / n);
        let numerator: f64 = points().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
        let denominator: f64 = points().map(|(x, _)| (x - x_mean).powi(2)).sum();
        if denominator == 0.0 { 0.0 } else { numerator / denominator }
    }
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / MB
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 100 << 20;

    /// The document's settings in its own tests.
    fn detector(window: u32, threshold_mb_per_1k: f64, samples_min: usize) -> Regression {
        Regression::new(Settings { window, threshold_mb_per_1k, ..Settings::default() }).with_samples_min(samples_min)
    }

    /// Each sample is one request, and a second.
    fn fill(detector: &mut Regression, count: u64, bytes: impl Fn(u64) -> u64) {
        (0..count).for_each(|i| detector.record(Some(i + 1), bytes(i), i as f64));
    }

    #[test]
    fn detects_linear_leak() {
        let mut detector = detector(50, 10.0, 10);
        fill(&mut detector, 50, |i| BASE + i * 100 * 1024);
        let message = detector.check_for_leak(50.0).unwrap();
        assert_eq!(
            message,
            "Potential memory leak detected: Memory growing at 97.7 MB per 1000 requests (threshold: 10.0 MB). \
             Current RSS: 104.8 MB, Baseline: 100.0 MB"
        );
    }

    #[test]
    fn no_false_positive_stable_memory() {
        let mut detector = detector(50, 10.0, 10);
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % (2 * 102_400)
        };
        (0..50).for_each(|i| detector.record(Some(i + 1), BASE - 102_400 + random(), i as f64));
        assert_eq!(detector.check_for_leak(50.0), None);
        assert!(!detector.report().leaking);
    }

    #[test]
    fn statistics_have_the_documents_names_and_values() {
        let mut detector = Regression::new(Settings::default());
        fill(&mut detector, 30, |i| BASE + i * 1024);
        assert_eq!(detector.check_for_leak(30.0), None);
        let json = serde_json::to_value(detector.statistics()).unwrap();
        let expected = [
            ("sample_count", 30.0),
            ("request_count", 30.0),
            ("current_rss_mb", 100.0 + 29.0 / 1024.0),
            ("baseline_rss_mb", 100.0),
            ("min_rss_mb", 100.0),
            ("max_rss_mb", 100.0 + 29.0 / 1024.0),
            ("avg_rss_mb", 100.0 + 14.5 / 1024.0),
            ("growth_rate_mb_per_1k_requests", 1000.0 / 1024.0),
            ("max_growth_rate_seen_mb_per_1k", 1000.0 / 1024.0),
            ("leak_alerts_count", 0.0),
            ("threshold_mb_per_1k", 50.0),
            ("growth_rate_mb_per_hour", 3600.0 / 1024.0),
        ];
        for (name, value) in expected {
            assert!((json[name].as_f64().unwrap() - value).abs() < 1e-6, "{name}: {} not {value}", json[name]);
        }
        assert_eq!(json.as_object().unwrap().len(), expected.len());
    }

    #[test]
    fn before_the_first_sample_there_are_counts_only() {
        let json = serde_json::to_value(Regression::new(Settings::default()).statistics()).unwrap();
        assert_eq!(json, serde_json::json!({"sample_count": 0, "request_count": 0}));
    }

    #[test]
    fn nineteen_samples_are_too_few_and_at_the_threshold_there_is_no_leak() {
        let mut detector = Regression::new(Settings::default());
        fill(&mut detector, 19, |i| BASE + i * 1_000_000);
        assert_eq!(detector.check_for_leak(19.0), None);
        detector.record(Some(20), BASE + 19_000_000, 20.0);
        assert!(detector.check_for_leak(20.0).is_some());
        let mut at = self::detector(100, 1000.0, 20);
        fill(&mut at, 30, |i| BASE + (i << 20));
        assert_eq!(at.check_for_leak(30.0), None, "1 MiB a request is 1,000 MB for 1,000: not more");
    }

    #[test]
    fn only_the_window_counts_but_the_baseline_stays() {
        let mut detector = detector(10, 50.0, 5);
        fill(&mut detector, 100, |i| if i < 50 { BASE + (i << 20) } else { 2 * BASE });
        let values = detector.statistics().values.unwrap();
        assert_eq!((values.min_rss_mb, values.growth_rate_mb_per_1k_requests), (200.0, 0.0));
        assert_eq!(values.baseline_rss_mb, Some(100.0));
        assert_eq!((detector.statistics().sample_count, detector.statistics().request_count), (10, 100));
    }

    #[test]
    fn several_requests_between_two_samples_are_counted() {
        let mut detector = Regression::new(Settings::default());
        (0..30u64).for_each(|i| detector.record(Some(1_000_000 + i * 500), BASE + (i << 20), i as f64));
        let growth = detector.statistics().values.unwrap().growth_rate_mb_per_1k_requests;
        assert!((growth - 2.0).abs() < 1e-6, "{growth}");
    }

    #[test]
    fn without_requests_there_is_growth_per_hour_and_no_alert() {
        let mut detector = Regression::new(Settings::default());
        (0..30u64).for_each(|i| detector.record(None, BASE + (i << 20), i as f64));
        assert_eq!(detector.check_for_leak(30.0), None);
        let values = detector.statistics().values.unwrap();
        assert!((values.growth_rate_mb_per_hour - 3600.0).abs() < 1e-6);
        assert_eq!(values.growth_rate_mb_per_1k_requests, 0.0);
    }

    #[test]
    fn an_alert_is_counted_once_in_five_minutes() {
        let mut detector = Regression::new(Settings::default());
        fill(&mut detector, 30, |i| BASE + (i << 20));
        for (time, alerts) in [(30.0, 1), (330.0, 1), (331.0, 2), (400.0, 2)] {
            assert!(detector.check_for_leak(time).is_some());
            assert_eq!(detector.statistics().values.unwrap().leak_alerts_count, alerts, "at {time}");
        }
        assert_eq!(detector.report().since, Some(30.0));
    }

    #[test]
    fn a_reset_forgets_all_but_the_cool_down() {
        let mut detector = Regression::new(Settings::default());
        fill(&mut detector, 30, |i| BASE + (i << 20));
        assert!(detector.check_for_leak(30.0).is_some());
        detector.reset();
        assert_eq!(detector.statistics(), Statistics { sample_count: 0, request_count: 0, values: None });
        fill(&mut detector, 30, |i| BASE + BASE + (i << 20));
        assert!(detector.check_for_leak(100.0).is_some());
        let values = detector.statistics().values.unwrap();
        assert_eq!((values.leak_alerts_count, values.baseline_rss_mb), (0, Some(200.0)));
    }

    #[test]
    fn one_that_is_switched_off_finds_nothing() {
        let mut detector = Regression::new(Settings { enabled: false, ..Settings::default() });
        fill(&mut detector, 30, |i| BASE + (i << 20));
        assert_eq!(detector.check_for_leak(30.0), None);
        assert_eq!(detector.statistics().sample_count, 30);
    }
}
