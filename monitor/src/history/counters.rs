//! Counters as what changed in them: keys get small numbers, and a changed value is written as its differences.
//!
//! Most keys do not move between two samples and cost nothing. Reading gives the changed entries only, in the order in
//! which they were read, with their full values: to the model an entry that has not changed is as good as none.

use crate::{
    raw::{self, Numbers, Record},
    sample::{Counters, Harvest},
};
use bytes::Bytes;
use monitor_common::{
    Owner, address_space,
    block_io::{self, Bucket, Key},
    page_fault, requests, resident,
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, hash::Hash};

/// What changed in one sample's counters.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Changes {
    page_faults: Changed<Owner>,
    address_spaces: Changed<Owner>,
    block_io: Changed<Key>,
    block_latencies: Changed<Bucket>,
    requests: Changed<Owner>,
    resident: Changed<Owner>,
}

/// What changed in one map.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Record", deserialize = "K: Record"))]
struct Changed<K> {
    /// Keys that had no number: they get the next free ones, in this order.
    #[serde(with = "raw::list")]
    opened: Vec<K>,
    /// For each changed entry its key's number, a mask of the words that changed, and for each of those the difference,
    /// signed by zigzag: all as LEB128.
    entries: Bytes,
}

impl<K> Default for Changed<K> {
    fn default() -> Self {
        Self { opened: Vec::new(), entries: Bytes::new() }
    }
}

/// The counters as last written, or as last read: both sides keep the same books.
#[derive(Debug, Default)]
pub(super) struct Books {
    page_faults: Book<Owner, page_fault::Counts>,
    address_spaces: Book<Owner, address_space::Totals>,
    block_io: Book<Key, block_io::Totals>,
    block_latencies: Book<Bucket, u64>,
    requests: Book<Owner, requests::Totals>,
    resident: Book<Owner, resident::Pages>,
}

impl Books {
    /// What changed since the counters written before.
    pub(super) fn write(&mut self, counters: &Counters) -> Changes {
        Changes {
            page_faults: self.page_faults.write(&counters.page_faults),
            address_spaces: self.address_spaces.write(&counters.address_spaces),
            block_io: self.block_io.write(&counters.block_io),
            block_latencies: self.block_latencies.write(&counters.block_latencies),
            requests: self.requests.write(&counters.requests),
            resident: self.resident.write(&counters.resident),
        }
    }

    /// The entries that changed; none where the changes do not fit the books.
    pub(super) fn read(&mut self, changes: &Changes) -> Option<Counters> {
        Some(Counters {
            page_faults: self.page_faults.read(&changes.page_faults)?,
            address_spaces: self.address_spaces.read(&changes.address_spaces)?,
            block_io: self.block_io.read(&changes.block_io)?,
            block_latencies: self.block_latencies.read(&changes.block_latencies)?,
            requests: self.requests.read(&changes.requests)?,
            resident: self.resident.read(&changes.resident)?,
        })
    }

    /// Frees the numbers of keys that the kernel forgot; should they come back, they start from zero.
    pub(super) fn forget(&mut self, harvest: &Harvest) {
        self.page_faults.forget(&harvest.page_faults);
        self.address_spaces.forget(&harvest.address_spaces);
        self.block_io.forget(&harvest.block_io);
        self.block_latencies.forget(&harvest.block_latencies);
        self.requests.forget(&harvest.requests);
        self.resident.forget(&harvest.resident);
    }
}

/// One map's entries by number. Numbers are given and freed in an order that both sides know.
#[derive(Debug)]
struct Book<K, V> {
    numbers: HashMap<K, u32>,
    entries: Vec<(K, V)>,
    free: Vec<u32>,
}

impl<K, V> Default for Book<K, V> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), entries: Vec::new(), free: Vec::new() }
    }
}

impl<K: Record + Eq + Hash, V: Numbers> Book<K, V> {
    fn write(&mut self, counters: &[(K, V)]) -> Changed<K> {
        let (mut opened, mut entries) = (Vec::new(), Vec::new());
        for (key, now) in counters {
            let number = match self.numbers.get(key) {
                Some(number) => *number,
                None if now.numbers().iter().all(|word| *word == 0) => continue,
                None => {
                    opened.push(*key);
                    self.open(*key)
                }
            };
            let (_, last) = &mut self.entries[number as usize];
            write_entry(number, last.numbers(), now.numbers(), &mut entries);
            *last = *now;
        }
        Changed { opened, entries: entries.into() }
    }

    fn read(&mut self, changed: &Changed<K>) -> Option<Vec<(K, V)>> {
        for key in &changed.opened {
            self.open(*key);
        }
        let (mut counters, mut rest) = (Vec::new(), &changed.entries[..]);
        while !rest.is_empty() {
            let entry = self.entries.get_mut(usize::try_from(read_varint(&mut rest)?).ok()?)?;
            read_entry(entry.1.numbers_mut(), &mut rest)?;
            counters.push(*entry);
        }
        Some(counters)
    }

    fn open(&mut self, key: K) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push((key, V::new_zeroed()));
            self.entries.len() as u32 - 1
        });
        self.entries[number as usize] = (key, V::new_zeroed());
        self.numbers.insert(key, number);
        number
    }

    fn forget(&mut self, keys: &[K]) {
        self.free.extend(keys.iter().filter_map(|key| self.numbers.remove(key)));
    }
}

/// Writes what changed in one entry, if anything did.
fn write_entry(number: u32, last: &[u64], now: &[u64], out: &mut Vec<u8>) {
    let differences = || last.iter().zip(now).map(|(last, now)| now.wrapping_sub(*last));
    let mask = differences().enumerate().filter(|(_, d)| *d != 0).fold(0, |mask, (word, _)| mask | 1 << word);
    if mask == 0 {
        return;
    }
    write_varint(number.into(), out);
    write_varint(mask, out);
    differences().filter(|d| *d != 0).for_each(|d| write_varint(zigzag(d), out));
}

fn read_entry(words: &mut [u64], rest: &mut &[u8]) -> Option<()> {
    let mask = read_varint(rest)?;
    if mask >> words.len() != 0 {
        return None;
    }
    for (word, value) in words.iter_mut().enumerate() {
        if mask & 1 << word != 0 {
            *value = value.wrapping_add(unzigzag(read_varint(rest)?));
        }
    }
    Some(())
}

/// Small for small differences of either sign.
const fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

const fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// LEB128: seven bits a byte, the low ones first, the top bit for more to follow.
fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(tgid: u32) -> Owner {
        Owner { tgid, ..Owner::default() }
    }

    /// What changed between two lists of entries, in the order of the later one.
    fn changed(before: &HashMap<Owner, [u64; 10]>, now: &[(Owner, [u64; 10])]) -> Vec<(Owner, [u64; 10])> {
        now.iter().filter(|(key, value)| before.get(key).copied().unwrap_or_default() != *value).copied().collect()
    }

    proptest! {
        #[test]
        fn reading_gives_what_changed_in_its_order(
            samples in prop::collection::vec(
                (prop::collection::btree_map(0u32..6, prop::array::uniform10(prop_oneof![Just(0), 0u64..9, any::<u64>()]), 0..6),
                 prop::collection::vec(0u32..6, 0..3)), 0..20)
        ) {
            let (mut writer, mut reader) = (Books::default(), Books::default());
            let mut before = HashMap::new();
            for (counts, forgotten) in samples {
                let page_faults: Vec<_> = counts.into_iter().map(|(tgid, counts)| (owner(tgid), counts)).rev().collect();
                let expected = changed(&before, &page_faults);
                before.extend(page_faults.iter().copied());
                let changes = writer.write(&Counters { page_faults, ..Counters::default() });
                let changes = rmp_serde::from_slice(&rmp_serde::to_vec_named(&changes).unwrap()).unwrap();
                prop_assert_eq!(reader.read(&changes).unwrap().page_faults, expected);
                let harvest = Harvest { page_faults: forgotten.into_iter().map(owner).collect(), ..Harvest::default() };
                before.retain(|key, _| !harvest.page_faults.contains(key));
                writer.forget(&harvest);
                reader.forget(&harvest);
            }
        }

        #[test]
        fn no_bytes_are_a_panic(entries: Vec<u8>, opened in 0u32..3) {
            let changed = Changed { opened: (0..opened).map(owner).collect(), entries: entries.into() };
            let _ = Books::default().read(&Changes { page_faults: changed, ..Changes::default() });
        }

        #[test]
        fn every_number_survives(value: u64) {
            let mut bytes = Vec::new();
            write_varint(zigzag(value), &mut bytes);
            let mut rest = &bytes[..];
            prop_assert_eq!(read_varint(&mut rest).map(unzigzag), Some(value));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn what_stands_still_costs_nothing_and_a_step_three_bytes() {
        let mut books = Books::default();
        let counters =
            |n| Counters { page_faults: vec![(owner(1), [n; 10]), (owner(2), [9; 10])], ..Counters::default() };
        books.write(&counters(5));
        assert!(books.write(&counters(5)).page_faults.entries.is_empty());
        let step = Counters { page_faults: vec![(owner(1), [5, 5, 5, 5, 5, 5, 6, 5, 5, 5])], ..Counters::default() };
        assert_eq!(books.write(&step).page_faults.entries.len(), 3);
    }
}
