//! From cumulative counters to what was added since they were last read.
//!
//! The kernel's counters only grow while their key is in its map. A key that was harvested and comes back starts from
//! zero, here as there. So every count is taken exactly once, and sums over them never fall.

use crate::sample::{Counters, Harvest};
use monitor_common::{
    Owner, address_space,
    block_io::{self, Bucket, Key},
    page_fault,
};
use std::{collections::HashMap, hash::Hash};

/// The counters as last read.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    page_faults: HashMap<Owner, page_fault::Counts>,
    address_spaces: HashMap<Owner, address_space::Totals>,
    block_io: HashMap<Key, block_io::Totals>,
    block_latencies: HashMap<Bucket, u64>,
    /// Whose latencies a series is.
    series: HashMap<u64, Key>,
}

/// What was added to one owner's counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Addition {
    PageFaults(page_fault::Counts),
    AddressSpace(address_space::Totals),
    BlockIo(Key, block_io::Totals),
    /// So many requests with a latency in this bucket.
    BlockLatency(Key, Bucket, u64),
}

impl Ledger {
    /// Shows what is new in `counters`, and remembers it.
    pub(super) fn post(&mut self, counters: &Counters, mut show: impl FnMut(&Owner, Addition)) {
        for (owner, counts) in &counters.page_faults {
            if let Some(added) = post(&mut self.page_faults, owner, counts, counts_added) {
                show(owner, Addition::PageFaults(added));
            }
        }
        for (owner, totals) in &counters.address_spaces {
            if let Some(added) = post(&mut self.address_spaces, owner, totals, totals_added) {
                show(owner, Addition::AddressSpace(added));
            }
        }
        for (key, totals) in &counters.block_io {
            if let Some(added) = post(&mut self.block_io, key, totals, block_io_added) {
                self.series.entry(totals.series).or_insert(*key);
                show(&key.owner, Addition::BlockIo(*key, added));
            }
        }
        for (bucket, count) in &counters.block_latencies {
            if let Some(key) = self.series.get(&bucket.series())
                && let Some(added) =
                    post(&mut self.block_latencies, bucket, count, |now, before| now.saturating_sub(*before))
            {
                show(&key.owner, Addition::BlockLatency(*key, *bucket, added));
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
    }

    /// Whose latencies a bucket counts; none where its key has been forgotten.
    pub(super) fn key_of(&self, bucket: Bucket) -> Option<&Key> {
        self.series.get(&bucket.series())
    }
}

/// What is new under one key; none when nothing is.
fn post<K: Eq + Hash + Copy, V: PartialEq + Copy + Default>(
    last: &mut HashMap<K, V>,
    key: &K,
    now: &V,
    added: fn(&V, &V) -> V,
) -> Option<V> {
    let before = last.entry(*key).or_default();
    if before == now {
        return None;
    }
    let new = added(now, before);
    *before = *now;
    Some(new)
}

fn counts_added(now: &page_fault::Counts, before: &page_fault::Counts) -> page_fault::Counts {
    std::array::from_fn(|kind| now[kind].saturating_sub(before[kind]))
}

fn totals_added(now: &address_space::Totals, before: &address_space::Totals) -> address_space::Totals {
    macro_rules! subtract {
        ($($field:ident)*) => { address_space::Totals { $($field: now.$field.saturating_sub(before.$field)),* } };
    }
    subtract!(mmap_anonymous_calls mmap_file_calls mapped_anonymous_bytes mapped_file_bytes munmap_calls unmapped_bytes
        mremap_calls mremap_grown_bytes mremap_shrunk_bytes brk_calls heap_grown_bytes heap_shrunk_bytes failed_calls)
}

fn block_io_added(now: &block_io::Totals, before: &block_io::Totals) -> block_io::Totals {
    block_io::Totals {
        series: now.series,
        count: now.count.saturating_sub(before.count),
        bytes: now.bytes.saturating_sub(before.bytes),
        errors: now.errors.saturating_sub(before.errors),
        wait_ns: now.wait_ns.saturating_sub(before.wait_ns),
    }
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
    fn a_counter_that_falls_adds_nothing() {
        let mut ledger = Ledger::default();
        posted(&mut ledger, &faults(10));
        assert_eq!(posted(&mut ledger, &faults(4)), 0);
    }
}
