//! The policies by name, and the one way to ask any of them.

use super::{
    Sizes,
    guardrails::{Draft, Guardrails, Recommendation},
    krr::Krr,
    past::{Interval, Kill, Past},
    peaks::Peaks,
    rules::Rules,
    vpa::Vpa,
};
use serde::{Deserialize, Serialize};

/// The seconds of a day.
pub(super) const DAY_SECONDS: f64 = 86_400.0;
/// A subject is watched so long before it is given sizes.
pub const FIRST_SECONDS: f64 = 900.0;

/// How request and limit are worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The auto-tuning document's rules.
    Rules,
    /// As Kubernetes' Vertical Pod Autoscaler recommends.
    Vpa,
    /// As Robusta's KRR recommends.
    Krr,
    /// By the peaks of intervals: aware of leaks, of kills and of how little is known at first.
    Peaks,
}

/// What a policy goes by beside the past.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Between which values all sizes must be.
    pub guardrails: Guardrails,
    /// The window that is there to be responsive.
    pub short_seconds: f64,
    /// The window that is there to be stable.
    pub long_seconds: f64,
    /// What the subject has now, where it has both.
    pub current: Option<Sizes>,
    /// What it was deployed with, where that is known: `vpa` keeps the proportion of limit to request. The same as `current` where nobody
    /// has changed it since.
    pub template: Option<Sizes>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guardrails: Guardrails::default(),
            short_seconds: 900.0,
            long_seconds: DAY_SECONDS,
            current: None,
            template: None,
        }
    }
}

impl Policy {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Rules, Self::Vpa, Self::Krr, Self::Peaks];

    /// As settings and tables have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Vpa => "vpa",
            Self::Krr => "krr",
            Self::Peaks => "peaks",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// What a subject with this past should get; nothing where nothing is known of it.
    pub fn recommend(self, past: &Past<'_>, settings: &Settings) -> Option<Recommendation> {
        let mut follower = self.follow(settings);
        let mut kills = past.kills.iter().peekable();
        for interval in past.intervals {
            while let Some(kill) = kills.next_if(|kill| kill.time_seconds < interval.end_seconds) {
                follower.kill(kill);
            }
            follower.push(interval);
        }
        kills.for_each(|kill| follower.kill(kill));
        follower.recommend(past.leak, settings)
    }

    /// To be told of a past piece by piece, and asked in between. The windows' lengths are those of now.
    pub fn follow(self, settings: &Settings) -> Follower {
        Follower(match self {
            Self::Rules => Box::new(Rules::new(settings)),
            Self::Vpa => Box::new(Vpa::default()),
            Self::Krr => Box::new(Krr::default()),
            Self::Peaks => Box::new(Peaks::new(settings)),
        })
    }
}

/// One policy beside one subject. What it says is what [`Policy::recommend`] says of the same past, without looking at all of it anew.
pub struct Follower(Box<dyn Follow>);

impl Follower {
    /// Takes an interval, later than those before.
    pub fn push(&mut self, interval: &Interval) {
        self.0.push(interval);
    }

    /// Takes a kill, not earlier than the intervals before.
    pub fn kill(&mut self, kill: &Kill) {
        self.0.kill(kill);
    }

    /// What the subject should get by all that was told; nothing where that is nothing. `leak` is what a detector says of it, where it leaks.
    pub fn recommend(&self, leak: Option<&str>, settings: &Settings) -> Option<Recommendation> {
        let draft = self.0.draft(leak.is_some(), settings)?;
        Some(draft.recommendation(leak.filter(|_| draft.is_kept), &settings.guardrails))
    }

    /// The same without its reason.
    pub fn sizes(&self, leaks: bool, settings: &Settings) -> Option<Sizes> {
        Some(self.0.draft(leaks, settings)?.sizes(&settings.guardrails))
    }
}

/// What each policy does.
pub(super) trait Follow: Send {
    /// Takes an interval, later than those before.
    fn push(&mut self, interval: &Interval);
    /// Takes a kill, not earlier than the intervals before.
    fn kill(&mut self, kill: &Kill);
    /// What its formulas give for a subject that leaks or does not.
    fn draft(&self, leaks: bool, settings: &Settings) -> Option<Draft>;
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::MEBIBYTE, *};
    use proptest::prelude::*;

    /// Some hours of any memory, at times that are minutes to hours apart, with kills in between.
    pub(in crate::advise) fn pasts() -> impl Strategy<Value = (Vec<Interval>, Vec<Kill>)> {
        let step = (1u32..200, 0u64..3000, 0u64..=100, prop::bool::weighted(0.1));
        prop::collection::vec(step, 1..120).prop_map(|steps| {
            let (mut intervals, mut kills, mut now) = (Vec::new(), Vec::new(), 1e6);
            for (minutes, mebibytes, share, is_killed) in steps {
                let seconds = f64::from(minutes) * 60.0;
                now += seconds;
                let peak_bytes = mebibytes * MEBIBYTE;
                intervals.push(Interval {
                    end_seconds: now,
                    seconds,
                    peak_bytes,
                    mean_bytes: peak_bytes * share / 100,
                });
                if is_killed {
                    kills.push(Kill { time_seconds: now, bytes: peak_bytes * 9 / 10 });
                }
            }
            (intervals, kills)
        })
    }

    pub(in crate::advise) fn any_policy() -> impl Strategy<Value = Policy> {
        prop::sample::select(&Policy::ALL[..])
    }

    fn any_sizes() -> impl Strategy<Value = Sizes> {
        (0u64..5000, 0u64..5000).prop_map(|(request, more)| Sizes {
            request_bytes: request * MEBIBYTE,
            limit_bytes: (request + more) * MEBIBYTE,
        })
    }

    /// Nothing is clamped.
    fn open() -> Settings {
        Settings { guardrails: Guardrails { request: 0..=u64::MAX, limit: 0..=u64::MAX }, ..Settings::default() }
    }

    #[test]
    fn names_read_back_and_of_nothing_nothing_is_said() {
        for policy in Policy::ALL {
            assert_eq!(Policy::named(policy.name()), Some(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.name());
            assert_eq!(policy.recommend(&Past::default(), &Settings::default()), None);
        }
        assert_eq!(Policy::named("best"), None);
    }

    #[test]
    fn the_rules_take_the_larger_of_what_is_recent_and_what_was_in_a_day() {
        let at = |minute: u32, mebibytes: u64| Interval {
            end_seconds: f64::from(minute) * 60.0,
            seconds: 60.0,
            peak_bytes: mebibytes * MEBIBYTE,
            mean_bytes: mebibytes * MEBIBYTE,
        };
        let told = |mebibytes: &dyn Fn(u32) -> u64| {
            let intervals: Vec<_> = (0..600).map(|minute| at(minute, mebibytes(minute))).collect();
            let past = Past { intervals: &intervals, ..Past::default() };
            Policy::Rules.recommend(&past, &open()).unwrap().raw
        };
        // Of ten hours these are neither in the 95th percentile nor much in the mean, but of a quarter of an hour they are all.
        let grown = told(&|minute| if minute < 585 { 200 } else { 1000 });
        assert_eq!(grown, Sizes { request_bytes: 1500 * MEBIBYTE, limit_bytes: 2250 * MEBIBYTE });
        let shrunk = told(&|minute| if minute < 585 { 1000 } else { 200 });
        assert_eq!(shrunk.limit_bytes, shrunk.request_bytes * 3 / 2);
        assert!(shrunk.request_bytes >= 1400 * MEBIBYTE, "what was there for most of the day is not forgotten at once");
    }

    proptest! {
        #[test]
        fn whoever_is_told_piece_by_piece_says_the_same(
            policy in any_policy(), (intervals, kills) in pasts(), current in prop::option::of(any_sizes()), leaks: bool
        ) {
            let settings = Settings { current, ..Settings::default() };
            let leak = leaks.then_some("leaks");
            let mut follower = policy.follow(&settings);
            for (place, interval) in intervals.iter().enumerate() {
                follower.push(interval);
                let until = interval.end_seconds;
                kills.iter().filter(|kill| kill.time_seconds == until).for_each(|kill| follower.kill(kill));
                let known = kills.partition_point(|kill| kill.time_seconds <= until);
                let past = Past { intervals: &intervals[..=place], kills: &kills[..known], leak };
                let anew = policy.recommend(&past, &settings);
                prop_assert_eq!(follower.sizes(leaks, &settings), anew.as_ref().map(|told| told.recommended));
                prop_assert_eq!(follower.recommend(leak, &settings), anew);
            }
        }

        #[test]
        fn every_policy_stays_within_the_guardrails_and_says_why_in_one_line(
            policy in any_policy(), (intervals, kills) in pasts(), current in prop::option::of(any_sizes()), leaks: bool,
            low in 0..1u64 << 33, high in 0..1u64 << 33
        ) {
            let guardrails = Guardrails { request: low.min(high)..=low.max(high), limit: low / 2..=high.max(low) };
            let settings = Settings { guardrails, current, ..Settings::default() };
            let past = Past { intervals: &intervals, kills: &kills, leak: leaks.then_some("leaks") };
            let Recommendation { raw, recommended, rationale } = policy.recommend(&past, &settings).unwrap();
            prop_assert!(settings.guardrails.request.contains(&recommended.request_bytes));
            prop_assert!(settings.guardrails.limit.contains(&recommended.limit_bytes));
            prop_assert!(recommended.limit_bytes >= recommended.request_bytes);
            prop_assert!(rationale.lines().count() == 1 && rationale.contains("; "), "{}", rationale);
            let told = Draft { raw, basis: "", is_kept: rationale.contains("kept at") }.sizes(&settings.guardrails);
            prop_assert_eq!(told, recommended);
        }

        #[test]
        fn no_limit_is_below_the_largest_peak_of_a_day_but_vpas(
            policy in any_policy().prop_filter("p90", |policy| *policy != Policy::Vpa), (intervals, kills) in pasts()
        ) {
            let past = Past { intervals: &intervals, kills: &kills, leak: None };
            let largest = past.last(DAY_SECONDS).iter().map(|interval| interval.peak_bytes).max().unwrap();
            let raw = policy.recommend(&past, &open()).unwrap().raw;
            prop_assert!(raw.limit_bytes >= largest && raw.limit_bytes >= raw.request_bytes);
        }

        #[test]
        fn twice_the_memory_is_never_answered_with_less(policy in any_policy(), (intervals, kills) in pasts()) {
            let doubled: Vec<_> = intervals
                .iter()
                .map(|one| Interval { peak_bytes: one.peak_bytes * 2, mean_bytes: one.mean_bytes * 2, ..*one })
                .collect();
            let kills_doubled: Vec<_> = kills.iter().map(|kill| Kill { bytes: kill.bytes * 2, ..*kill }).collect();
            let of = |intervals: &[Interval], kills: &[Kill]| {
                policy.recommend(&Past { intervals, kills, leak: None }, &Settings::default()).unwrap().recommended
            };
            let (before, after) = (of(&intervals, &kills), of(&doubled, &kills_doubled));
            prop_assert!(after.request_bytes >= before.request_bytes && after.limit_bytes >= before.limit_bytes);
        }

        #[test]
        fn a_last_interval_with_more_memory_is_never_answered_with_less(
            policy in any_policy(), (intervals, kills) in pasts(), more in 0u64..3000
        ) {
            let mut after = intervals.clone();
            let last = after.len() - 1;
            after[last].peak_bytes += more * MEBIBYTE;
            let of = |intervals: &[Interval]| {
                policy.recommend(&Past { intervals, kills: &kills, leak: None }, &open()).unwrap().raw
            };
            let (before, after) = (of(&intervals), of(&after));
            prop_assert!(after.request_bytes >= before.request_bytes && after.limit_bytes >= before.limit_bytes);
        }

        #[test]
        fn a_kill_is_never_answered_with_less_and_by_krr_and_peaks_with_a_quarter_more_at_least(
            policy in any_policy(), (intervals, mut kills) in pasts(), mebibytes in 1u64..5000
        ) {
            let now = intervals[intervals.len() - 1].end_seconds;
            let of = |kills: &[Kill]| policy.recommend(&Past { intervals: &intervals, kills, leak: None }, &open()).unwrap().raw;
            let before = of(&kills);
            kills.push(Kill { time_seconds: now, bytes: mebibytes * MEBIBYTE });
            let after = of(&kills);
            prop_assert!(after.request_bytes >= before.request_bytes && after.limit_bytes >= before.limit_bytes);
            let is_bound = matches!(policy, Policy::Krr | Policy::Peaks);
            prop_assert!(!is_bound || after.limit_bytes >= mebibytes * MEBIBYTE * 5 / 4);
        }
    }
}
