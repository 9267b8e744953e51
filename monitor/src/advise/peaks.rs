//! Our own policy: request and limit by the peaks of intervals, with a margin for what was not seen yet.
//!
//! **The limit** is where the next day's largest peak is above with a chance of [`RISK`], by the method of peaks over a threshold
//! (Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4, with exponential tails): of the maxima of
//! quarter-hour blocks, the upper eighth are k exceedances over a threshold u with a mean excess β. They come at a rate of k in the time T
//! that was seen, so that in a horizon H (a day) the level x is exceeded k · H/T · e^(-(x - u)/β) times, and
//!
//! ```text
//! tail  = u + β · ln(k · H / (T · RISK))
//! limit = max(max(tail, largest · (1 + margin(T))) + 3 · rise, largest kill · 1.25)
//! ```
//!
//! Since the largest of k such exceedances is about u + β · ln k, the tail is above what was seen by β · ln(H / (T · RISK)), which becomes less
//! as the history grows. So does the margin for what blocks cannot tell: it falls from [`MARGIN_FIRST`] to [`MARGIN_LAST`] as
//! 1 / (1 + T / 6 h). The rise is what the largest peak rose by in the last half hour: a limit cannot follow sooner than the cool-down is over,
//! and what rose in one may rise in the next.
//!
//! **The request** is an upper quantile of the last day's interval peaks, and at least the limit / 1.5, so that no more than that is
//! promised beyond what is set aside.
//!
//! **Changes** are few as it changes what is there only for a reason (as stocks are kept by two levels, not one): where the limit no longer
//! has a small margin over the largest peak, or where the request is too small or too large by a good share. A limit that is
//! raised is raised by more than what counts as a change (`proposal`); otherwise use would reach it before it may be raised.
//!
//! **A leak** gets no larger limit, as more memory would only put off the end: it keeps what it has, and the finding is told instead.
//!
//! The numbers were set on one half of the corpus of `cargo xtask backtest`; whoever changes them looks at that half alone.

use super::{
    MEBIBYTE, Sizes,
    guardrails::{Draft, STEP_BYTES, percent},
    past::{Interval, Kill},
    policy::{DAY_SECONDS, FIRST_SECONDS, Follow, Settings},
    proposal::COOL_DOWN,
    window::{Highest, Window},
};
use std::collections::VecDeque;

/// How far ahead a limit looks.
const HORIZON_SECONDS: f64 = DAY_SECONDS;
/// Chance that the next horizon's largest peak is above the limit, where tails are exponential.
const RISK: f64 = 0.05;
/// Blocks are so long, in seconds.
const BLOCK_SECONDS: f64 = 900.0;
/// Fewer have no tail worth telling.
const BLOCKS_MIN: usize = 8;
/// Of the blocks, one in so many is an exceedance.
const BLOCKS_FOR_ONE: usize = 8;
/// The share of the largest peak that is kept free for what nobody has seen yet, at first: as much again.
const MARGIN_FIRST: f64 = 1.0;
/// The same after a long time.
const MARGIN_LAST: f64 = 0.15;
/// After so long it is half the way, in seconds.
const MARGIN_SECONDS: f64 = 6.0 * 3600.0;
/// A limit that is set has room for so many cool-downs of the present rise.
const RISES: u64 = 3;
/// With less room than this over the largest peak, in per cent of that, a limit is raised.
const ROOM_PERCENT: u64 = 105;
/// After a kill, in per cent of where that was.
const KILL_PERCENT: u64 = 125;
/// Quantile of the interval peaks, in per cent.
const REQUEST_RANK: usize = 95;
/// The limit is no more than this of the request, in per cent.
const LIMIT_PERCENT: u64 = 150;
/// A request that is less than this of what it should be, in per cent, is raised.
const LOW_PERCENT: u64 = 80;
/// One that is more than this of what it should be, in per cent, is lowered.
const HIGH_PERCENT: u64 = 130;
/// Maxima are those of so many of the long windows: a week, where that is a day.
const LONG_WINDOWS: f64 = 7.0;

const BY_FORMULA: &str = "p95 of peaks, limit for the largest of a day to come";
const BY_LIMIT: &str = "two thirds of a limit for the largest peak of a day to come";
const ENOUGH: &str = "what it has is enough and not too much";
const LEAKS: &str = "more memory would only put off its end";

/// What it keeps of a past.
pub(super) struct Peaks {
    begin_seconds: Option<f64>,
    now_seconds: f64,
    long: Window,
    largest: Highest,
    /// The largest, without what is younger than the cool-down.
    earlier: Highest,
    young: VecDeque<Interval>,
    kills: Highest,
    blocks: Blocks,
    /// What it gave first, before anything is known of leaks.
    first: Option<Sizes>,
}

impl Peaks {
    pub(super) fn new(settings: &Settings) -> Self {
        let memory_seconds = settings.long_seconds * LONG_WINDOWS;
        Self {
            begin_seconds: None,
            now_seconds: 0.0,
            long: Window::new(settings.long_seconds),
            largest: Highest::new(memory_seconds),
            earlier: Highest::new(memory_seconds),
            young: VecDeque::new(),
            kills: Highest::new(memory_seconds),
            blocks: Blocks::new(memory_seconds),
            first: None,
        }
    }

    fn age_seconds(&self) -> f64 {
        self.now_seconds - self.begin_seconds.unwrap_or(self.now_seconds)
    }

    /// What the largest peak rose by in one cool-down, in bytes. Of a younger past it is the rise of its second half, in proportion,
    /// but four times that at most.
    fn rise(&self) -> u64 {
        let cool_down = COOL_DOWN.as_secs_f64();
        let largest = self.largest.value().unwrap_or_default();
        if let Some(earlier) = self.earlier.value() {
            return largest.saturating_sub(earlier);
        }
        let half = self.age_seconds() / 2.0;
        let middle = self.now_seconds - half;
        let early = self.young.iter().take_while(|interval| interval.end_seconds <= middle);
        let earlier = early.map(|interval| interval.peak_bytes).max().unwrap_or(largest);
        (largest.saturating_sub(earlier) as f64 * cool_down / half.max(cool_down / 4.0)) as u64
    }

    /// The least that a limit may be without being raised, and what it is then raised to.
    fn levels(&self, largest: u64) -> (u64, u64) {
        let margin = MARGIN_LAST + (MARGIN_FIRST - MARGIN_LAST) / (1.0 + self.age_seconds() / MARGIN_SECONDS);
        let killed = self.kills.value().map_or(0, |bytes| percent(bytes, KILL_PERCENT));
        let rise = self.rise();
        let least = percent(largest, ROOM_PERCENT).saturating_add(rise).max(killed);
        let roomy = (largest as f64 * (1.0 + margin)) as u64;
        let tail = self.blocks.tail.map_or(0, |tail| tail.level(HORIZON_SECONDS, RISK) as u64);
        (least, roomy.max(tail).saturating_add(rise.saturating_mul(RISES)).max(killed))
    }

    /// By the formulas, whatever it has.
    fn target(&self) -> Option<(Draft, u64)> {
        let (least, limit) = self.levels(self.largest.value()?);
        let (by_rank, by_limit) = (self.long.peak_rank(REQUEST_RANK)?, request_for(limit));
        let request = by_rank.max(by_limit);
        let basis = if by_limit > by_rank { BY_LIMIT } else { BY_FORMULA };
        Some((Draft::new(request, limit.max(request), basis), least))
    }
}

impl Follow for Peaks {
    fn push(&mut self, interval: &Interval) {
        let Interval { end_seconds, peak_bytes, .. } = *interval;
        self.now_seconds = end_seconds;
        self.begin_seconds.get_or_insert(end_seconds - interval.seconds);
        self.long.push(interval);
        self.largest.push(end_seconds, peak_bytes);
        self.kills.forget(end_seconds);
        self.young.push_back(*interval);
        let young = end_seconds - COOL_DOWN.as_secs_f64();
        while let Some(old) = self.young.pop_front_if(|first| first.end_seconds <= young) {
            self.earlier.push(old.end_seconds, old.peak_bytes);
        }
        self.blocks.push(end_seconds, peak_bytes);
        if self.first.is_none() && self.age_seconds() >= FIRST_SECONDS {
            self.first = self.target().map(|(draft, _)| draft.raw);
        }
    }

    fn kill(&mut self, kill: &Kill) {
        self.kills.push(kill.time_seconds, kill.bytes);
    }

    fn draft(&self, leaks: bool, settings: &Settings) -> Option<Draft> {
        let (target, least) = self.target()?;
        if leaks {
            return Some(Draft::kept(settings.current.or(self.first).unwrap_or(target.raw), LEAKS));
        }
        let Some(current) = settings.current else { return Some(target) };
        let Sizes { request_bytes, limit_bytes } = target.raw;
        if current.limit_bytes < least {
            let limit_bytes = limit_bytes.max(beyond_doubt(current.limit_bytes));
            return Some(Draft::new(request_bytes.max(request_for(limit_bytes)), limit_bytes, target.basis));
        }
        let is_low = current.request_bytes < percent(request_bytes, LOW_PERCENT);
        let is_high = current.request_bytes > percent(request_bytes, HIGH_PERCENT);
        Some(if is_low || is_high { target } else { Draft::kept(current, ENOUGH) })
    }
}

/// The least that a limit may come with.
fn request_for(limit_bytes: u64) -> u64 {
    let least = (u128::from(limit_bytes) * 100).div_ceil(u128::from(LIMIT_PERCENT));
    u64::try_from(least).unwrap_or(u64::MAX)
}

/// So much more that it counts as a change.
fn beyond_doubt(bytes: u64) -> u64 {
    bytes.saturating_add((bytes / 5).min(64 * MEBIBYTE)).saturating_add(STEP_BYTES)
}

/// The largest peaks of blocks of time.
struct Blocks {
    seconds: f64,
    /// Number of the block that is not complete, and its largest.
    open: Option<(f64, u64)>,
    /// The same of those that are.
    maxima: VecDeque<(f64, u64)>,
    tail: Option<Tail>,
}

impl Blocks {
    fn new(seconds: f64) -> Self {
        Self { seconds, open: None, maxima: VecDeque::new(), tail: None }
    }

    fn push(&mut self, end_seconds: f64, peak_bytes: u64) {
        let block = (end_seconds / BLOCK_SECONDS).floor();
        match &mut self.open {
            Some((open, largest)) if *open == block => *largest = peak_bytes.max(*largest),
            open => {
                let Some(done) = open.replace((block, peak_bytes)) else { return };
                self.maxima.push_back(done);
                let begin = block - self.seconds / BLOCK_SECONDS;
                while self.maxima.pop_front_if(|(first, _)| *first < begin).is_some() {}
                let first = self.maxima.front().map_or(block, |(first, _)| *first);
                let maxima = self.maxima.iter().map(|(_, largest)| *largest).collect();
                self.tail = Tail::of(maxima, (block - first) * BLOCK_SECONDS);
            }
        }
    }
}

/// How the largest of the block maxima are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tail {
    /// What the exceedances are above of, in bytes.
    threshold: f64,
    /// How far above on average, in bytes.
    excess: f64,
    /// How many there are in a second.
    rate: f64,
}

impl Tail {
    /// Of the maxima of blocks, in any order, that make up so many seconds; none of too few.
    fn of(mut maxima: Vec<u64>, seconds: f64) -> Option<Self> {
        let (count, exceedances) = (maxima.len(), maxima.len() / BLOCKS_FOR_ONE);
        if count < BLOCKS_MIN {
            return None;
        }
        let (_, &mut threshold, above) = maxima.select_nth_unstable(count - 1 - exceedances);
        let excess = above.iter().map(|&value| (value - threshold) as f64).sum::<f64>() / exceedances as f64;
        Some(Self { threshold: threshold as f64, excess, rate: exceedances as f64 / seconds })
    }

    /// What is exceeded so many times in a horizon, in bytes.
    fn level(&self, horizon_seconds: f64, times: f64) -> f64 {
        self.threshold + self.excess * (self.rate * horizon_seconds / times).ln().max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            past::Past,
            policy::{Policy, tests::pasts},
            proposal::is_worth_it,
        },
        *,
    };
    use proptest::prelude::*;

    /// So many minutes, each an interval.
    fn minutes(count: u32, mebibytes: impl Fn(u32) -> u64) -> Vec<Interval> {
        let at = |minute: u32| {
            let bytes = mebibytes(minute) * MEBIBYTE;
            Interval { end_seconds: f64::from(minute + 1) * 60.0, seconds: 60.0, peak_bytes: bytes, mean_bytes: bytes }
        };
        (0..count).map(at).collect()
    }

    fn told(
        intervals: &[Interval],
        current: Option<Sizes>,
        leak: Option<&str>,
    ) -> super::super::guardrails::Recommendation {
        let past = Past { intervals, kills: &[], leak };
        Policy::Peaks.recommend(&past, &Settings { current, ..Settings::default() }).unwrap()
    }

    fn mebibytes(request: u64, limit: u64) -> Sizes {
        Sizes { request_bytes: request * MEBIBYTE, limit_bytes: limit * MEBIBYTE }
    }

    #[test]
    fn where_nothing_moves_the_margin_shrinks_with_time() {
        let limit = |days: u32| told(&minutes(days * 1440 + 15, |_| 1000), None, None).raw.limit_bytes / MEBIBYTE;
        // 1000 · (1.15 + 0.85 / (1 + T / 6 h)), where T is a quarter of an hour more than so many days.
        assert_eq!([0, 1, 6].map(limit), [1966, 1318, 1183]);
        let first = told(&minutes(15, |_| 1000), None, None);
        assert_eq!(
            first.rationale,
            "two thirds of a limit for the largest peak of a day to come; rounded to 1312Mi and 1968Mi"
        );
        let later = told(&minutes(1440, |_| 1000), None, None);
        assert_eq!(later.raw.request_bytes, 1000 * MEBIBYTE, "without swings the request is what is used");
        assert_eq!(
            later.rationale,
            "p95 of peaks, limit for the largest of a day to come; rounded to 1008Mi and 1328Mi"
        );
    }

    #[test]
    fn a_tail_is_the_threshold_and_the_mean_excess_times_a_logarithm() {
        // Of 16 blocks the largest two are exceedances, over the third: 40 and 20 above 100.
        let maxima = [100, 140, 120, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
        let tail = Tail::of(maxima.to_vec(), 16.0 * 900.0).unwrap();
        assert_eq!((tail.threshold, tail.excess, tail.rate), (100.0, 30.0, 2.0 / (16.0 * 900.0)));
        // 96 blocks are a day: 12 exceedances, so once in 20 days is a level that is exceeded 1 of 240 times.
        let level = 100.0 + 30.0 * 240f64.ln();
        assert!((tail.level(86_400.0, 0.05) - level).abs() < 1e-9);
        assert_eq!(tail.level(1.0, 1.0), 100.0, "never below the threshold");
        assert_eq!(Tail::of(vec![1; 7], 7.0 * 900.0), None);
    }

    #[test]
    fn spikes_that_are_spread_are_given_more_room_than_such_as_are_alike() {
        let spikes = |spread: u64| {
            let peak = move |minute: u32| {
                300 + if minute.is_multiple_of(60) { 200 + spread * u64::from(minute / 60 * 7 % 10) } else { 0 }
            };
            told(&minutes(1440, peak), None, None).raw.limit_bytes
        };
        assert_eq!(spikes(0).div_ceil(MEBIBYTE), 660, "by the margin of a day");
        let largest = 500 + 9 * 40;
        assert!(spikes(40) > largest * 140 * MEBIBYTE / 100, "{}", spikes(40) / MEBIBYTE);
    }

    #[test]
    fn what_rises_is_given_room_until_the_limit_may_be_raised_again() {
        // 2 MiB a minute: 60 in a cool-down.
        let rising = minutes(600, |minute| 400 + 2 * u64::from(minute));
        let mut peaks = Peaks::new(&Settings::default());
        rising.iter().for_each(|interval| peaks.push(interval));
        assert_eq!(peaks.rise(), 60 * MEBIBYTE);
        // Ten hours in, the margin is 0.15 + 0.85 · 6 / 16.
        let largest = f64::from(400 + 2 * 599);
        let limit = told(&rising, None, None).raw.limit_bytes / MEBIBYTE;
        assert_eq!(limit, (largest * (1.15 + 0.85 * 6.0 / 16.0)) as u64 + 3 * 60);
        let mut young = Peaks::new(&Settings::default());
        rising[..16].iter().for_each(|interval| young.push(interval));
        assert_eq!(young.rise(), 60 * MEBIBYTE, "16 MiB in the last eight minutes are as many in 30");
    }

    #[test]
    fn what_it_has_is_kept_until_there_is_a_reason_and_then_changed_by_enough() {
        let steady = minutes(1440, |_| 1000);
        let kept = told(&steady, Some(mebibytes(1000, 1056)), None);
        assert_eq!(
            (kept.recommended, &*kept.rationale),
            (mebibytes(1000, 1056), "what it has is enough and not too much; kept at 1000Mi and 1056Mi")
        );
        let formula = mebibytes(1008, 1328);
        assert_eq!(told(&steady, Some(mebibytes(1000, 1040)), None).recommended, formula, "too near the largest");
        assert_eq!(told(&steady, Some(mebibytes(1400, 2000)), None).recommended, formula, "too much");
        assert_eq!(told(&steady, Some(mebibytes(700, 2000)), None).recommended, formula, "too much of it borrowed");
        // By the formulas 200 · 1.18: 28 Mi more, which is not worth a change.
        let week = minutes(6 * 1440, |_| 200);
        let raised = told(&week, Some(mebibytes(200, 208)), None).recommended;
        assert_eq!(raised, mebibytes(208, 272));
        assert!(is_worth_it(Some(mebibytes(200, 208)), raised));
    }

    #[test]
    fn where_all_of_a_past_is_one_window_a_limit_still_looks_a_day_ahead() {
        let swings = minutes(1440, |minute| 300 + u64::from(minute * 7 % 100));
        let of = |long_seconds| {
            let past = Past { intervals: &swings, ..Past::default() };
            let settings = Settings { short_seconds: f64::INFINITY, long_seconds, ..Settings::default() };
            Policy::Peaks.recommend(&past, &settings).unwrap().raw
        };
        assert_eq!(of(f64::INFINITY), of(DAY_SECONDS * 2.0));
        assert!(of(f64::INFINITY).limit_bytes < 700 * MEBIBYTE, "{:?}", of(f64::INFINITY));
    }

    #[test]
    fn a_leak_keeps_what_it_has_or_what_it_was_given_first_and_is_named() {
        let leak = minutes(600, |minute| 400 + 2 * u64::from(minute));
        let current = mebibytes(480, 720);
        let kept = told(&leak, Some(current), Some("leaks 120 MiB per hour"));
        assert_eq!(kept.recommended, current);
        assert_eq!(
            kept.rationale,
            "leaks 120 MiB per hour; more memory would only put off its end; kept at 480Mi and 720Mi"
        );
        let first = told(&leak[..15], None, None).raw;
        let without = told(&leak, None, Some("leaks 120 MiB per hour"));
        assert_eq!(without.raw, first);
        assert!(told(&leak, None, None).raw.limit_bytes > first.limit_bytes * 2, "which is what it would get without");
    }

    proptest! {
        #[test]
        fn the_limit_is_no_more_than_half_as_much_again_as_the_request(
            (intervals, kills) in pasts(), leaks: bool, current in prop::option::of((1u64..2000, 0u64..2000))
        ) {
            let past = Past { intervals: &intervals, kills: &kills, leak: leaks.then_some("leaks") };
            let current = current.map(|(request, more)| mebibytes(request, request + more));
            let raw = Policy::Peaks.recommend(&past, &Settings { current, ..Settings::default() }).unwrap().raw;
            let is_kept = Some(raw) == current;
            prop_assert!(is_kept || raw.limit_bytes <= raw.request_bytes.saturating_mul(3).div_ceil(2));
        }

        #[test]
        fn a_limit_that_is_raised_comes_with_two_thirds_of_it_however_little_it_had(limit in 64u64..400) {
            // Of spikes that nearly fill it: what is more by formulas is less than what counts as a change.
            let week = minutes(6 * 1440, |minute| if minute.is_multiple_of(60) { limit } else { limit / 4 });
            let raw = told(&week, Some(mebibytes(limit, limit + 1)), None).raw;
            prop_assert!(raw.limit_bytes > (limit + 1) * MEBIBYTE && raw.request_bytes * 3 >= raw.limit_bytes * 2);
        }

        #[test]
        fn a_leak_is_given_no_larger_limit((intervals, kills) in pasts(), limit in 128u64..8192) {
            let current = Some(mebibytes(limit.min(4096), limit));
            let past = Past { intervals: &intervals, kills: &kills, leak: Some("leaks") };
            let told = Policy::Peaks.recommend(&past, &Settings { current, ..Settings::default() }).unwrap();
            prop_assert_eq!(Some(told.recommended), current);
        }
    }
}
