//! Kubernetes Resource Recommender's simple strategy: the largest working set of two weeks and a buffer, as request and limit alike.
//!
//! ```text
//! request = limit = max(largest of 14 days · 1.15, limit of the largest kill in 14 days · 1.25)
//! ```
//!
//! Formula and numbers are those of robusta-dev/krr, `robusta_krr/strategies/simple.py`: `history_duration`, `memory_buffer_percentage`,
//! and with `--use_oomkill_data` `oom_memory_buffer_percentage`. Its least size is left to the guardrails, which hold for all policies.

use super::{
    guardrails::{Draft, percent},
    past::{Interval, Kill},
    policy::{DAY_SECONDS, Follow, Settings},
    window::Highest,
};

const HISTORY_SECONDS: f64 = 14.0 * DAY_SECONDS;
const BUFFER_PERCENT: u64 = 115;
const KILL_BUFFER_PERCENT: u64 = 125;

/// What it keeps of a past.
pub(super) struct Krr {
    peaks: Highest,
    kills: Highest,
}

impl Default for Krr {
    fn default() -> Self {
        Self { peaks: Highest::new(HISTORY_SECONDS), kills: Highest::new(HISTORY_SECONDS) }
    }
}

impl Follow for Krr {
    fn push(&mut self, interval: &Interval) {
        self.peaks.push(interval.end_seconds, interval.peak_bytes);
        self.kills.forget(interval.end_seconds);
    }

    fn kill(&mut self, kill: &Kill) {
        self.kills.push(kill.time_seconds, kill.bytes);
    }

    fn draft(&self, _: bool, _: &Settings) -> Option<Draft> {
        let by_peak = percent(self.peaks.value()?, BUFFER_PERCENT);
        let by_kill = self.kills.value().map_or(0, |bytes| percent(bytes, KILL_BUFFER_PERCENT));
        Some(if by_kill > by_peak {
            Draft::new(by_kill, by_kill, "kill-based with 25% headroom")
        } else {
            Draft::new(by_peak, by_peak, "max-based with 15% headroom")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{MEBIBYTE, past::Past, policy::Policy},
        *,
    };

    fn at(day: f64, mebibytes: u64) -> Interval {
        let bytes = mebibytes * MEBIBYTE;
        Interval { end_seconds: day * DAY_SECONDS, seconds: 60.0, peak_bytes: bytes, mean_bytes: bytes }
    }

    fn told(intervals: &[Interval], kills: &[Kill]) -> (u64, u64, String) {
        let past = Past { intervals, kills, leak: None };
        let told = Policy::Krr.recommend(&past, &Settings::default()).unwrap();
        let sizes = told.recommended;
        (sizes.request_bytes / MEBIBYTE, sizes.limit_bytes / MEBIBYTE, told.rationale)
    }

    #[test]
    fn it_is_the_largest_of_two_weeks_and_15_percent() {
        let intervals = [at(1.0, 900), at(2.0, 400), at(15.5, 300)];
        assert_eq!(
            told(&intervals[..2], &[]),
            (1040, 1040, "max-based with 15% headroom; rounded to 1040Mi and 1040Mi".to_owned())
        );
        // 400 Mi · 1.15 = 460 Mi, rounded up to 464.
        assert_eq!(told(&intervals, &[]).0, 464);
    }

    #[test]
    fn after_a_kill_it_is_125_percent_of_where_that_was_at_least() {
        let intervals = [at(1.0, 400), at(1.5, 410)];
        let kill = |day: f64, mebibytes: u64| Kill { time_seconds: day * DAY_SECONDS, bytes: mebibytes * MEBIBYTE };
        assert_eq!(
            told(&intervals, &[kill(1.2, 400)]),
            (512, 512, "kill-based with 25% headroom; rounded to 512Mi and 512Mi".to_owned())
        );
        assert_eq!(told(&intervals, &[kill(1.2, 300)]).0, 480, "its use since then counts where that is more");
        let later = [at(1.0, 400), at(16.0, 410)];
        assert_eq!(told(&later, &[kill(1.2, 400)]).0, 480, "a kill of more than two weeks ago is forgotten");
    }
}
