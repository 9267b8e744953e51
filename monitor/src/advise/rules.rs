//! The rules of the auto-tuning document: request and limit by the 95th percentile, the mean and the largest working set.

use super::{MEBIBYTE, Sizes, observed::Observed};
use std::ops::RangeInclusive;

/// Request and limit are rounded up to multiples of this.
const STEP_BYTES: u64 = 16 * MEBIBYTE;
/// No request is smaller, whatever was observed.
const LEAST_REQUEST_BYTES: u64 = 64 * MEBIBYTE;

/// Between which values request and limit must be, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guardrails {
    /// The request.
    pub request: RangeInclusive<u64>,
    /// The limit.
    pub limit: RangeInclusive<u64>,
}

impl Default for Guardrails {
    fn default() -> Self {
        Self { request: 64 * MEBIBYTE..=4096 * MEBIBYTE, limit: 128 * MEBIBYTE..=8192 * MEBIBYTE }
    }
}

/// What the rules say.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// By the formulas alone.
    pub raw: Sizes,
    /// Rounded up and clamped: what to set.
    pub recommended: Sizes,
    /// Why, in one line.
    pub rationale: String,
}

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
    let bases = [
        (percent(observed.ws_p95_bytes, 120), "p95-based with 20% headroom"),
        (percent(observed.ws_avg_bytes, 150), "mean-based with 50% headroom"),
        (LEAST_REQUEST_BYTES, "the least there is"),
    ];
    // Of equal ones the first.
    let (request_bytes, basis) = bases.into_iter().rev().max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    let limit_bytes = percent(observed.ws_max_bytes, 110).max(percent(request_bytes, 150));
    let raw = Sizes { request_bytes, limit_bytes };
    let rounded = Sizes { request_bytes: rounded_up(request_bytes), limit_bytes: rounded_up(limit_bytes) };
    let recommended = clamped(rounded, guardrails);
    let mut rationale =
        format!("{basis}; rounded to {} and {}", quantity(rounded.request_bytes), quantity(rounded.limit_bytes));
    if recommended != rounded {
        let (request, limit) = (quantity(recommended.request_bytes), quantity(recommended.limit_bytes));
        rationale += &format!("; clamped to {request} and {limit}");
    }
    Recommendation { raw, recommended, rationale }
}

/// So many per cent of a size, rounded up to a whole byte.
fn percent(bytes: u64, percent: u64) -> u64 {
    let share = (u128::from(bytes) * u128::from(percent)).div_ceil(100);
    u64::try_from(share).unwrap_or(u64::MAX)
}

fn rounded_up(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(STEP_BYTES).unwrap_or(u64::MAX - u64::MAX % STEP_BYTES)
}

fn clamped(sizes: Sizes, guardrails: &Guardrails) -> Sizes {
    let clamp = |bytes: u64, range: &RangeInclusive<u64>| bytes.min(*range.end()).max(*range.start());
    let request_bytes = clamp(sizes.request_bytes, &guardrails.request);
    Sizes { request_bytes, limit_bytes: clamp(sizes.limit_bytes, &guardrails.limit).max(request_bytes) }
}

/// A size as Kubernetes writes it: "216Mi", exact in the largest unit that divides it.
pub fn quantity(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "Ki", "Mi", "Gi", "Ti"];
    // Up to gibibytes people think in mebibytes: 1.5Gi is 1536Mi, but 4096Mi is 4Gi.
    let unit = if bytes == 0 { 0 } else { (bytes.trailing_zeros() as usize / 10).min(UNITS.len() - 1) };
    format!("{}{}", bytes >> (10 * unit), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn sizes_are_written_as_kubernetes_reads_them() {
        let written = [
            (0, "0"),
            (1000, "1000"),
            (216 << 20, "216Mi"),
            (1536 << 20, "1536Mi"),
            (4 << 30, "4Gi"),
            (1 << 50, "1024Ti"),
        ];
        for (bytes, text) in written {
            assert_eq!(quantity(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn rounding_adds_less_than_a_step_and_never_takes(bytes in 0..u64::MAX - STEP_BYTES) {
            let rounded = rounded_up(bytes);
            prop_assert!(rounded >= bytes && rounded - bytes < STEP_BYTES && rounded.is_multiple_of(STEP_BYTES));
        }

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
