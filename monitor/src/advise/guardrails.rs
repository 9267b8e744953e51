//! What holds for every policy: sizes are rounded up, clamped, and told with the reason in one line.

use super::{MEBIBYTE, Sizes};
use std::ops::RangeInclusive;

/// Request and limit are rounded up to multiples of this.
pub(super) const STEP_BYTES: u64 = 16 * MEBIBYTE;

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

/// What a policy says.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// By the formulas alone.
    pub raw: Sizes,
    /// Rounded up and clamped: what to set.
    pub recommended: Sizes,
    /// Why, in one line.
    pub rationale: String,
}

/// What a policy's formulas give, before anything is rounded or written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) raw: Sizes,
    /// Why these, in a few words.
    pub(super) basis: &'static str,
    /// They are what it has already: nothing is rounded.
    pub(super) is_kept: bool,
}

impl Draft {
    /// By formulas.
    pub(super) fn new(request_bytes: u64, limit_bytes: u64, basis: &'static str) -> Self {
        Self { raw: Sizes { request_bytes, limit_bytes }, basis, is_kept: false }
    }

    /// What it has already.
    pub(super) fn kept(current: Sizes, basis: &'static str) -> Self {
        Self { raw: current, basis, is_kept: true }
    }

    /// What to set. The limit never ends below the request.
    pub(super) fn sizes(&self, guardrails: &Guardrails) -> Sizes {
        clamped(self.rounded(), guardrails)
    }

    /// The same with its reason; `finding`, where there is one, comes first.
    pub(super) fn recommendation(&self, finding: Option<&str>, guardrails: &Guardrails) -> Recommendation {
        let (rounded, recommended) = (self.rounded(), self.sizes(guardrails));
        let pair = |sizes: Sizes| format!("{} and {}", quantity(sizes.request_bytes), quantity(sizes.limit_bytes));
        let finding = finding.map_or_else(String::new, |finding| format!("{finding}; "));
        let verb = if self.is_kept { "kept at" } else { "rounded to" };
        let mut rationale = format!("{finding}{}; {verb} {}", self.basis, pair(rounded));
        if recommended != rounded {
            rationale += &format!("; clamped to {}", pair(recommended));
        }
        Recommendation { raw: self.raw, recommended, rationale }
    }

    fn rounded(&self) -> Sizes {
        let Sizes { request_bytes, limit_bytes } = self.raw;
        if self.is_kept {
            return self.raw;
        }
        Sizes { request_bytes: rounded_up(request_bytes), limit_bytes: rounded_up(limit_bytes) }
    }
}

/// So many per cent of a size, rounded up to a whole byte.
pub(super) fn percent(bytes: u64, percent: u64) -> u64 {
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

    fn sizes(request: u64, limit: u64) -> Sizes {
        Sizes { request_bytes: request * MEBIBYTE, limit_bytes: limit * MEBIBYTE }
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

    #[test]
    fn what_it_has_is_clamped_but_not_rounded() {
        let kept = Draft::kept(sizes(100, 9000), "enough");
        let told = kept.recommendation(Some("leaks 1.0 MiB per hour"), &Guardrails::default());
        assert_eq!(told.recommended, sizes(100, 8192));
        assert_eq!(
            told.rationale,
            "leaks 1.0 MiB per hour; enough; kept at 100Mi and 9000Mi; clamped to 100Mi and 8Gi"
        );
    }

    proptest! {
        #[test]
        fn rounding_adds_less_than_a_step_and_never_takes(bytes in 0..u64::MAX - STEP_BYTES) {
            let rounded = rounded_up(bytes);
            prop_assert!(rounded >= bytes && rounded - bytes < STEP_BYTES && rounded.is_multiple_of(STEP_BYTES));
        }
    }
}
