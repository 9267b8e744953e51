//! When a recommendation is worth a change, and what of several wishes counts.

use super::{MEBIBYTE, Sizes};
use crate::time::BootTime;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// A change of this size or less, in bytes, is not worth it, unless it is more than [`LARGE_PERCENT`].
const LARGE_BYTES: u64 = 64 * MEBIBYTE;
/// Of the present value.
const LARGE_PERCENT: u64 = 20;
/// The same container is given another recommendation after this long at the earliest.
pub const COOL_DOWN: Duration = Duration::from_secs(30 * 60);

/// Whether going from one to the other is worth a change: request or limit changes by more than 20 % or more than 64 Mi. What
/// has neither yet is always given some.
pub fn is_worth_it(current: Option<Sizes>, recommended: Sizes) -> bool {
    current.is_none_or(|current| {
        is_large(current.request_bytes, recommended.request_bytes)
            || is_large(current.limit_bytes, recommended.limit_bytes)
    })
}

fn is_large(before: u64, after: u64) -> bool {
    let change = before.abs_diff(after);
    change > LARGE_BYTES || u128::from(change) * 100 > u128::from(before) * u128::from(LARGE_PERCENT)
}

/// When which container was last told to change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Proposals {
    last: HashMap<Arc<str>, BootTime>,
}

impl Proposals {
    /// Whether a change is proposed now: it is worth it, and none was in the last half an hour.
    pub fn propose(&mut self, container: &Arc<str>, current: Option<Sizes>, recommended: Sizes, now: BootTime) -> bool {
        let rests = self.last.get(container).is_some_and(|last| now.since(*last) < COOL_DOWN);
        let proposed = !rests && is_worth_it(current, recommended);
        if proposed {
            self.last.insert(Arc::clone(container), now);
        }
        proposed
    }

    /// Forgets what has rested long enough: a container that is gone must not be remembered for ever.
    pub fn forget(&mut self, now: BootTime) {
        self.last.retain(|_, last| now.since(*last) < COOL_DOWN);
    }
}

/// Who wants a container to have a request or a limit. Of several the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// A person, for this container.
    Override,
    /// What was enforced.
    Enforced,
    /// What is recommended.
    Recommended,
    /// The template that it was made of.
    Template,
}

/// What each wants, in bytes; nothing where it wants nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// See [`Wish::Override`].
    pub overridden: Option<u64>,
    /// See [`Wish::Enforced`].
    pub enforced: Option<u64>,
    /// See [`Wish::Recommended`].
    pub recommended: Option<u64>,
    /// See [`Wish::Template`].
    pub template: Option<u64>,
}

impl Wishes {
    /// The one that counts, and whose it is.
    pub fn effective(&self) -> Option<(u64, Wish)> {
        let Self { overridden, enforced, recommended, template } = *self;
        [
            (overridden, Wish::Override),
            (enforced, Wish::Enforced),
            (recommended, Wish::Recommended),
            (template, Wish::Template),
        ]
        .into_iter()
        .find_map(|(bytes, wish)| Some((bytes?, wish)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000_000_000;

    fn sizes(request: u64, limit: u64) -> Sizes {
        Sizes { request_bytes: request * MEBIBYTE, limit_bytes: limit * MEBIBYTE }
    }

    #[test]
    fn a_change_is_worth_it_above_a_fifth_or_64_mebibytes_of_either() {
        let worth = |before: (u64, u64), after: (u64, u64)| {
            is_worth_it(Some(sizes(before.0, before.1)), sizes(after.0, after.1))
        };
        assert!(!worth((256, 512), (256, 512)));
        assert!(!worth((160, 1024), (192, 1024)), "a fifth is not more than a fifth");
        assert!(worth((160, 1024), (193, 1024)));
        assert!(!worth((1024, 2048), (1088, 1984)), "64 Mi are not more than 64 Mi");
        assert!(worth((1024, 2048), (1024, 1983)));
        assert!(is_worth_it(None, sizes(64, 128)));
    }

    #[test]
    fn a_container_is_not_told_to_change_twice_in_half_an_hour() {
        let (mut proposals, one, other) = (Proposals::default(), Arc::from("one"), Arc::from("other"));
        let mut propose = |name: &Arc<str>, to: u64, minute: u64| {
            proposals.propose(name, Some(sizes(64, 128)), sizes(to, 2 * to), BootTime(minute * MINUTE))
        };
        assert!(!propose(&one, 64, 0), "nothing to change");
        assert!(propose(&one, 256, 1), "what was not proposed counts for nothing");
        assert!(!propose(&one, 512, 30));
        assert!(propose(&other, 512, 30), "another one is told for itself");
        assert!(propose(&one, 512, 31));
        proposals.forget(BootTime(60 * MINUTE));
        assert_eq!(proposals.last.keys().map(|name| &**name).collect::<Vec<_>>(), ["one"]);
    }

    #[test]
    fn a_person_goes_before_what_was_enforced_that_before_advice_and_that_before_the_template() {
        let mut wishes = Wishes { overridden: Some(1), enforced: Some(2), recommended: Some(3), template: Some(4) };
        assert_eq!(wishes.effective(), Some((1, Wish::Override)));
        wishes.overridden = None;
        assert_eq!(wishes.effective(), Some((2, Wish::Enforced)));
        wishes.enforced = None;
        assert_eq!(wishes.effective(), Some((3, Wish::Recommended)));
        wishes.recommended = None;
        assert_eq!(wishes.effective(), Some((4, Wish::Template)));
        assert_eq!(Wishes::default().effective(), None);
    }

    proptest! {
        #[test]
        fn what_was_accepted_is_not_proposed_again(before: u32, after: u32) {
            let after = sizes(u64::from(after), 2 * u64::from(after));
            prop_assert!(!is_worth_it(Some(after), after));
            let before = sizes(u64::from(before), 2 * u64::from(before));
            let (there, back) = (is_worth_it(Some(before), after), is_worth_it(Some(after), before));
            // By less than a fifth of the larger one, and by no more than 64 Mi, it is neither way.
            let change = before.request_bytes.abs_diff(after.request_bytes);
            prop_assert!(change <= LARGE_BYTES / 2 || (there && back), "{there} {back}");
        }

        #[test]
        fn in_any_half_an_hour_there_is_one_proposal_at_most(minutes in prop::collection::vec(0u64..20, 1..60)) {
            let (mut proposals, name, mut now, mut told) = (Proposals::default(), Arc::from("one"), 0, Vec::new());
            for (step, minute) in minutes.into_iter().enumerate() {
                now += minute;
                if proposals.propose(&name, None, sizes(64 + step as u64, 256), BootTime(now * MINUTE)) {
                    told.push(now);
                }
            }
            prop_assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{:?}", told);
        }
    }
}
