//! Kernel records in recordings: serde writes the bytes that they are (x86-64's order), and reads back exactly as many.
//!
//! `#[serde(with = "raw")]` is for one record, [`list`] for a `Vec`, [`map`] for a `HashMap`.

use serde::{
    Deserializer, Serializer,
    de::{Error, Visitor},
};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A record, or a key or a value of a map.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy> Record for T {}

/// Counters that are nothing but 64-bit numbers.
pub trait Numbers: Record {
    /// The numbers.
    fn numbers(&self) -> &[u64] {
        <[u64]>::ref_from_bytes(self.as_bytes()).unwrap_or_default()
    }

    /// The numbers, to be changed.
    fn numbers_mut(&mut self) -> &mut [u64] {
        <[u64]>::mut_from_bytes(self.as_mut_bytes()).unwrap_or_default()
    }
}

impl Numbers for monitor_common::page_fault::Counts {}
impl Numbers for monitor_common::address_space::Totals {}
impl Numbers for monitor_common::block_io::Totals {}
impl Numbers for monitor_common::requests::Totals {}
impl Numbers for monitor_common::resident::Pages {}
impl Numbers for u64 {}

/// Writes one record.
pub fn serialize<T: Record, S: Serializer>(record: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(record.as_bytes())
}

/// Reads one record.
pub fn deserialize<'de, T: Record, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_bytes(Bytes("one record", |bytes: &[u8]| T::read_from_bytes(bytes).ok()))
}

/// Records one behind the other.
pub mod list {
    use super::*;

    /// Writes them.
    pub fn serialize<T: Record, S: Serializer>(records: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(records.as_bytes())
    }

    /// Reads them.
    pub fn deserialize<'de, T: Record, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_bytes(Bytes("records", |bytes: &[u8]| {
            bytes.chunks(size_of::<T>()).map(|record| T::read_from_bytes(record).ok()).collect()
        }))
    }
}

/// Keys and values, in no order.
pub mod map {
    use super::*;
    use std::{collections::HashMap, hash::Hash};

    /// Writes them.
    pub fn serialize<K: Record, V: Record, S: Serializer>(
        map: &HashMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(map.len() * (size_of::<K>() + size_of::<V>()));
        for (key, value) in map {
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(value.as_bytes());
        }
        serializer.serialize_bytes(&bytes)
    }

    /// Reads them.
    pub fn deserialize<'de, K: Record + Eq + Hash, V: Record, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<HashMap<K, V>, D::Error> {
        deserializer.deserialize_bytes(Bytes("keys with values", |bytes: &[u8]| {
            let entries = bytes.chunks(size_of::<K>() + size_of::<V>());
            entries
                .map(|entry| {
                    let (key, value) = K::read_from_prefix(entry).ok()?;
                    Some((key, V::read_from_bytes(value).ok()?))
                })
                .collect()
        }))
    }
}

/// Takes bytes, under a name for errors, by a function that may refuse them.
struct Bytes<F>(&'static str, F);

impl<'de, T, F: FnOnce(&[u8]) -> Option<T>> Visitor<'de> for Bytes<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bytes of {}", self.0)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
        (self.1)(bytes).ok_or_else(|| E::custom(format!("{} bytes are not the size of {}", bytes.len(), self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::{Owner, page_fault};
    use serde::{Deserialize, Serialize};
    use std::collections::HashMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct All {
        #[serde(with = "super")]
        one: Owner,
        #[serde(with = "list")]
        many: Vec<Owner>,
        #[serde(with = "map")]
        counted: HashMap<Owner, page_fault::Counts>,
    }

    #[test]
    fn what_is_written_reads_back_and_what_is_cut_does_not() {
        let owner = |tgid| Owner { tgid, cgroup: 7, start_ns: 1 << 40, reserved: 0 };
        let counted = HashMap::from([(owner(1), [1; 10]), (owner(2), [u64::MAX; 10])]);
        let all = All { one: owner(3), many: vec![owner(4), owner(5)], counted };
        let bytes = rmp_serde::to_vec_named(&all).unwrap();
        assert_eq!(rmp_serde::from_slice::<All>(&bytes).unwrap(), all);

        #[derive(Serialize)]
        struct Cut {
            one: bytes::Bytes,
            many: bytes::Bytes,
            counted: bytes::Bytes,
        }
        for (one, many, counted) in [(23, 48, 104), (24, 47, 104), (24, 48, 103)] {
            let zeros = |length| bytes::Bytes::from(vec![0; length]);
            let cut = Cut { one: zeros(one), many: zeros(many), counted: zeros(counted) };
            let bytes = rmp_serde::to_vec_named(&cut).unwrap();
            assert!(rmp_serde::from_slice::<All>(&bytes).is_err(), "{one} {many} {counted}");
        }
    }
}
