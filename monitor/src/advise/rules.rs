//! The rules of the auto-tuning document: request and limit by the 95th percentile, the mean and the largest working set.

pub use super::guardrails::{Guardrails, Recommendation, quantity};

use super::{
    MEBIBYTE,
    guardrails::{Draft, percent},
    observed::Observed,
    past::{Interval, Kill},
    policy::{Follow, Settings},
    window::Window,
};

/// No request is smaller, whatever was observed.
const LEAST_REQUEST_BYTES: u64 = 64 * MEBIBYTE;

/// What a container should get by what was observed of it:
///
/// ```text
/// request = max(p95 · 1.20, mean · 1.50, 64 Mi)
/// limit   = max(max · 1.10, request · 1.50)
/// ```
///
/// each then rounded up to 16 Mi and clamped. The limit is made of the request as it was before that, as the document's example
/// has it, and never ends below the request.
pub fn recommend(observed: &Observed, guardrails: &Guardrails) -> Recommendation {
    draft(observed).recommendation(None, guardrails)
}

fn draft(observed: &Observed) -> Draft {
    let bases = [
        (percent(observed.ws_p95_bytes, 120), "p95-based with 20% headroom"),
        (percent(observed.ws_avg_bytes, 150), "mean-based with 50% headroom"),
        (LEAST_REQUEST_BYTES, "the least there is"),
    ];
    // Of equal ones the first.
    let (request_bytes, basis) = bases.into_iter().rev().max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    Draft::new(request_bytes, percent(observed.ws_max_bytes, 110).max(percent(request_bytes, 150)), basis)
}

/// The rules over two windows: of each statistic the larger counts. So growth is answered within minutes, by the short window, and
/// what is needed once in a while is not forgotten, by the long one.
pub(super) struct Rules {
    windows: [Window; 2],
}

impl Rules {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { windows: [settings.short_seconds, settings.long_seconds].map(Window::new) }
    }

    fn observed(&self) -> Option<Observed> {
        let [short, long] = &self.windows;
        let (short, long) = (short.observed()?, long.observed()?);
        Some(Observed {
            ws_avg_bytes: short.ws_avg_bytes.max(long.ws_avg_bytes),
            ws_p95_bytes: short.ws_p95_bytes.max(long.ws_p95_bytes),
            ws_max_bytes: short.ws_max_bytes.max(long.ws_max_bytes),
            window_seconds: short.window_seconds.max(long.window_seconds),
        })
    }
}

impl Follow for Rules {
    fn push(&mut self, interval: &Interval) {
        self.windows.iter_mut().for_each(|window| window.push(interval));
    }

    /// The document has no rule for kills.
    fn kill(&mut self, _: &Kill) {}

    fn draft(&self, _: bool, _: &Settings) -> Option<Draft> {
        Some(draft(&self.observed()?))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Sizes, *};
    use proptest::prelude::*;

    fn observed(avg: u64, p95: u64, max: u64) -> Observed {
        let [ws_avg_bytes, ws_p95_bytes, ws_max_bytes] = [avg, p95, max].map(|mebibytes| mebibytes * MEBIBYTE);
        Observed { ws_avg_bytes, ws_p95_bytes, ws_max_bytes, window_seconds: 6.0 * 3600.0 }
    }

    fn sizes(request: u64, limit: u64) -> Sizes {
        Sizes { request_bytes: request * MEBIBYTE, limit_bytes: limit * MEBIBYTE }
    }

    fn recommended(avg: u64, p95: u64, max: u64) -> Recommendation {
        recommend(&observed(avg, p95, max), &Guardrails::default())
    }

    #[test]
    fn the_documents_example_comes_out_to_the_digit() {
        let example = recommended(110, 180, 210);
        assert_eq!(example.raw, sizes(216, 324));
        assert_eq!(example.recommended, sizes(224, 336));
        assert_eq!(example.rationale, "p95-based with 20% headroom; rounded to 224Mi and 336Mi");
    }

    #[test]
    fn each_of_the_formulas_counts_where_it_is_the_largest() {
        let by_mean = recommended(170, 180, 210);
        assert_eq!(
            (by_mean.raw, by_mean.recommended),
            (Sizes { request_bytes: 255 * MEBIBYTE, limit_bytes: 255 * MEBIBYTE * 3 / 2 }, sizes(256, 384))
        );
        assert!(by_mean.rationale.starts_with("mean-based with 50% headroom;"));
        let by_peak = recommended(100, 110, 900);
        assert_eq!((by_peak.raw.limit_bytes, by_peak.recommended), (990 * MEBIBYTE, sizes(160, 992)));
        let small = recommended(1, 2, 3);
        assert_eq!((small.raw, small.recommended), (sizes(64, 96), sizes(64, 128)));
        assert_eq!(small.rationale, "the least there is; rounded to 64Mi and 96Mi; clamped to 64Mi and 128Mi");
    }

    #[test]
    fn what_is_too_much_is_clamped_and_the_limit_never_below_the_request() {
        assert_eq!(recommended(9000, 9000, 20_000).recommended, sizes(4096, 8192));
        let odd = Guardrails { request: 0..=4096 * MEBIBYTE, limit: 0..=1024 * MEBIBYTE };
        assert_eq!(recommend(&observed(1700, 1900, 2000), &odd).recommended, sizes(2560, 2560));
    }

    proptest! {
        #[test]
        fn whatever_was_observed_is_answered_within_the_guardrails(
            avg: u64, p95: u64, max: u64, low in 0..1u64 << 40, high in 0..1u64 << 40
        ) {
            let observed = Observed { ws_avg_bytes: avg, ws_p95_bytes: p95, ws_max_bytes: max, window_seconds: 1.0 };
            let guardrails = Guardrails { request: low.min(high)..=low.max(high), limit: low / 2..=high.max(low) };
            let Recommendation { raw, recommended, .. } = recommend(&observed, &guardrails);
            prop_assert!(guardrails.request.contains(&recommended.request_bytes));
            prop_assert!(recommended.limit_bytes >= recommended.request_bytes);
            prop_assert!(recommended.limit_bytes <= *guardrails.limit.end());
            prop_assert!(raw.request_bytes >= percent(p95, 120) && raw.limit_bytes >= percent(max, 110));
        }

        #[test]
        fn more_memory_in_use_is_never_answered_with_less(avg: u32, p95: u32, max: u32, more: u32) {
            let of = |avg: u64, p95: u64, max: u64| {
                let observed = Observed { ws_avg_bytes: avg, ws_p95_bytes: p95, ws_max_bytes: max, window_seconds: 1.0 };
                recommend(&observed, &Guardrails::default()).recommended
            };
            let [avg, p95, max, more] = [avg, p95, max, more].map(u64::from);
            let before = of(avg, p95, max);
            for after in [of(avg + more, p95, max), of(avg, p95 + more, max), of(avg, p95, max + more)] {
                prop_assert!(after.request_bytes >= before.request_bytes && after.limit_bytes >= before.limit_bytes);
            }
        }
    }
}
