//! From cumulative counters to what was added since they were last read.
//!
//! The kernel's counters only grow while their key is in its map. A key that was harvested and comes back starts from
//! zero, here as there. So every count is taken exactly once, and sums over them never fall.

use crate::{
    raw::{self, Numbers},
    sample::{Counters, Harvest},
};
use monitor_common::{
    Owner, address_space,
    block_io::{self, Bucket, Key},
    page_fault, requests, resident,
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, hash::Hash};

/// The counters as last read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Ledger {
    #[serde(with = "raw::map")]
    page_faults: HashMap<Owner, page_fault::Counts>,
    #[serde(with = "raw::map")]
    address_spaces: HashMap<Owner, address_space::Totals>,
    #[serde(with = "raw::map")]
    block_io: HashMap<Key, block_io::Totals>,
    #[serde(with = "raw::map")]
    block_latencies: HashMap<Bucket, u64>,
    /// Whose latencies a series is.
    #[serde(with = "raw::map")]
    series: HashMap<u64, Key>,
    #[serde(with = "raw::map")]
    requests: HashMap<Owner, requests::Totals>,
    /// No counters, but what was last told: told again, it is nothing new.
    #[serde(with = "raw::map")]
    resident: HashMap<Owner, resident::Pages>,
}

/// What was added to one owner's counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Addition {
    PageFaults(page_fault::Counts),
    AddressSpace(address_space::Totals),
    BlockIo(Key, block_io::Totals),
    /// So many requests with a latency in this bucket.
    BlockLatency(Key, Bucket, u64),
    /// With the most that were ever in flight, which does not add up.
    Requests(requests::Totals),
    /// So many requests that their server counted itself.
    Posted(u64),
    /// By how many bytes what is in memory changed, by kind: no counter, so nothing that is posted here.
    Resident([i64; resident::KINDS]),
}

impl Ledger {
    /// Shows what is new in `counters`, and remembers it.
    pub(super) fn post(&mut self, counters: &Counters, mut show: impl FnMut(&Owner, Addition)) {
        for (owner, counts) in &counters.page_faults {
            if let Some(added) = post(&mut self.page_faults, owner, counts) {
                show(owner, Addition::PageFaults(added));
            }
        }
        for (owner, totals) in &counters.address_spaces {
            if let Some(added) = post(&mut self.address_spaces, owner, totals) {
                show(owner, Addition::AddressSpace(added));
            }
        }
        for (key, totals) in &counters.block_io {
            if let Some(added) = post(&mut self.block_io, key, totals) {
                self.series.entry(totals.series).or_insert(*key);
                show(&key.owner, Addition::BlockIo(*key, added));
            }
        }
        for (bucket, count) in &counters.block_latencies {
            if let Some(key) = self.series.get(&bucket.series())
                && let Some(added) = post(&mut self.block_latencies, bucket, count)
            {
                show(&key.owner, Addition::BlockLatency(*key, *bucket, added));
            }
        }
        for (owner, totals) in &counters.requests {
            if let Some(added) = post(&mut self.requests, owner, totals) {
                show(owner, Addition::Requests(requests::Totals { peak: totals.peak, ..added }));
            }
        }
    }

    /// Shows what is in memory of those for whom it is other than when it was last told, and remembers it.
    pub(super) fn retell(&mut self, counters: &Counters, mut show: impl FnMut(&Owner, &resident::Pages)) {
        for (owner, pages) in &counters.resident {
            if self.resident.insert(*owner, *pages) != Some(*pages) {
                show(owner, pages);
            }
        }
    }

    /// Those of whom it was told what is in memory.
    pub(super) fn told_resident(&self) -> impl Iterator<Item = &Owner> {
        self.resident.keys()
    }

    /// What is still in flight of those whose keys are harvested, and never will end: as ended without an answer.
    pub(super) fn give_up(&self, harvest: &Harvest, mut show: impl FnMut(&Owner, Addition)) {
        for owner in &harvest.requests {
            let unanswered = self.requests.get(owner).map_or(0, requests::Totals::in_flight);
            if unanswered > 0 {
                show(owner, Addition::Requests(requests::Totals { unanswered, ..Default::default() }));
            }
        }
    }

    /// Forgets keys that the kernel forgets.
    pub(super) fn forget(&mut self, harvest: &Harvest) {
        for owner in &harvest.page_faults {
            self.page_faults.remove(owner);
        }
        for owner in &harvest.address_spaces {
            self.address_spaces.remove(owner);
        }
        for key in &harvest.block_io {
            if let Some(totals) = self.block_io.remove(key) {
                self.series.remove(&totals.series);
            }
        }
        for bucket in &harvest.block_latencies {
            self.block_latencies.remove(bucket);
        }
        for owner in &harvest.requests {
            self.requests.remove(owner);
        }
        for owner in &harvest.resident {
            self.resident.remove(owner);
        }
    }

    /// Whose latencies a bucket counts; none where its key has been forgotten.
    pub(super) fn key_of(&self, bucket: Bucket) -> Option<&Key> {
        self.series.get(&bucket.series())
    }
}

/// What is new under one key; none when nothing is.
///
/// Each number is remembered at its highest: a read that fell short, as of a slot that never stood still, adds nothing, and
/// what it missed is added by the next one, once.
fn post<K: Eq + Hash + Copy, V: Numbers>(last: &mut HashMap<K, V>, key: &K, now: &V) -> Option<V> {
    let before = last.entry(*key).or_insert_with(V::new_zeroed);
    let mut added = V::new_zeroed();
    let mut any = false;
    for ((added, before), now) in added.numbers_mut().iter_mut().zip(before.numbers_mut()).zip(now.numbers()) {
        *added = now.saturating_sub(*before);
        *before = (*before).max(*now);
        any |= *added != 0;
    }
    any.then_some(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(n: u64) -> Counters {
        let mut counts = [0; page_fault::KINDS];
        counts[2] = n;
        Counters { page_faults: vec![(Owner { tgid: 9, ..Owner::default() }, counts)], ..Counters::default() }
    }

    fn posted(ledger: &mut Ledger, counters: &Counters) -> u64 {
        let mut sum = 0;
        ledger.post(counters, |_, addition| match addition {
            Addition::PageFaults(counts) => sum += counts[2],
            _ => unreachable!(),
        });
        sum
    }

    #[test]
    fn every_count_is_taken_once_also_across_a_harvest() {
        let mut ledger = Ledger::default();
        assert_eq!(posted(&mut ledger, &faults(10)), 10);
        assert_eq!(posted(&mut ledger, &faults(10)), 0);
        assert_eq!(posted(&mut ledger, &faults(17)), 7);
        let owner = Owner { tgid: 9, ..Owner::default() };
        ledger.forget(&Harvest { page_faults: vec![owner], ..Harvest::default() });
        assert_eq!(posted(&mut ledger, &faults(3)), 3);
    }

    #[test]
    fn turns_in_flight_end_with_their_key() {
        let (mut ledger, owner) = (Ledger::default(), Owner { tgid: 9, ..Owner::default() });
        let counters = |begun, answered| {
            let totals = requests::Totals { begun, answered, peak: 3, ..Default::default() };
            Counters { requests: vec![(owner, totals)], ..Counters::default() }
        };
        let mut shown = Vec::new();
        ledger.post(&counters(5, 3), |_, addition| shown.push(addition));
        ledger.post(&counters(6, 5), |_, addition| shown.push(addition));
        let harvest = Harvest { requests: vec![owner], ..Harvest::default() };
        ledger.give_up(&harvest, |_, addition| shown.push(addition));
        let added = |begun, answered, unanswered, peak| {
            Addition::Requests(requests::Totals { begun, answered, unanswered, peak, ..Default::default() })
        };
        assert_eq!(shown, [added(5, 3, 0, 3), added(1, 2, 0, 3), added(0, 0, 1, 0)]);
        ledger.forget(&harvest);
        ledger.give_up(&harvest, |_, addition| unreachable!("{addition:?}"));
    }

    #[test]
    fn a_read_that_falls_short_is_made_up_for_once() {
        let mut ledger = Ledger::default();
        posted(&mut ledger, &faults(10));
        assert_eq!(posted(&mut ledger, &faults(4)), 0);
        assert_eq!(posted(&mut ledger, &faults(12)), 2);
    }
}
