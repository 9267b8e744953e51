//! Reading whole hash maps with few system calls, and deleting what has been harvested.

use super::syscall;
use aya::maps::{Map, MapData};
use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A hash map of the kernel's, with keys `K` and values `V`; per-CPU maps have one value for each possible CPU.
pub struct HashMap<K, V> {
    map: MapData,
    cpus: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    types: PhantomData<(K, V)>,
}

/// Entries that one system call reads, at first; more when a single bucket holds more.
const BATCH: usize = 512;

impl<K, V> HashMap<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    /// Takes over a map with one value an entry.
    pub fn shared(map: MapData) -> Self {
        Self::new(map, 1)
    }

    /// Takes over a map with a value for each of `cpus` possible CPUs.
    pub fn per_cpu(map: MapData, cpus: usize) -> Self {
        Self::new(map, cpus)
    }

    fn new(map: MapData, cpus: usize) -> Self {
        // Per-CPU values are laid out in steps of eight bytes, and all of ours are multiples of it.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut this = Self { map, cpus, keys: Vec::new(), values: Vec::new(), types: PhantomData };
        this.make_room(BATCH);
        this
    }

    fn make_room(&mut self, entries: usize) {
        self.keys.resize(entries * size_of::<K>(), 0);
        self.values.resize(entries * self.value_size(), 0);
    }

    fn value_size(&self) -> usize {
        size_of::<V>() * self.cpus
    }

    /// Shows every entry: its key and its values, one for each possible CPU or just one. Entries that are inserted or
    /// deleted meanwhile may or may not be among them.
    pub fn for_each(&mut self, mut show: impl FnMut(&K, &[V])) -> io::Result<()> {
        let mut from = None;
        let value_size = self.value_size();
        let mut values = vec![V::new_zeroed(); self.cpus];
        loop {
            let batch =
                syscall::lookup_batch(self.map.fd().as_fd(), from, &mut self.keys, size_of::<K>(), &mut self.values);
            let batch = match batch {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.make_room(2 * self.keys.len() / size_of::<K>());
                    continue;
                }
                other => other?,
            };
            let entries = self.keys.chunks_exact(size_of::<K>()).zip(self.values.chunks_exact(value_size));
            for (key, bytes) in entries.take(batch.entries) {
                // Copied out, because the buffers are aligned for bytes only.
                let Ok(key) = K::read_from_bytes(key) else { continue };
                values.as_mut_bytes().copy_from_slice(bytes);
                show(&key, &values);
            }
            from = batch.next;
            if from.is_none() {
                return Ok(());
            }
        }
    }

    /// All entries of a map with one value an entry.
    pub fn read(&mut self) -> io::Result<Vec<(K, V)>> {
        let mut read = Vec::new();
        self.for_each(|key, values| read.extend(values.first().map(|value| (*key, *value))))?;
        Ok(read)
    }

    /// Inserts a key with zeroes for its values.
    pub fn insert_zero(&self, key: &K) -> io::Result<()> {
        syscall::update(self.map.fd().as_fd(), key.as_bytes(), &vec![0; self.value_size()])
    }

    /// Deletes entries; those that are not there are passed over.
    pub fn delete(&self, keys: &[K]) -> io::Result<()> {
        syscall::delete_batch(self.map.fd().as_fd(), keys.as_bytes(), size_of::<K>())
    }
}

impl<K, V> AsFd for HashMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// The data of a map of one of the kinds that the programs have.
macro_rules! data_of_kind {
    ($map:expr) => {
        match $map {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::PerCpuHashMap(data)
            | Map::Queue(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data) => Some(data),
            _ => None,
        }
    };
}

/// Takes a map's descriptor out of aya's typed wrappers.
pub fn data(map: Map) -> Option<MapData> {
    data_of_kind!(map)
}

/// As [`data`], of a map that stays where it is.
pub fn data_of(map: &Map) -> Option<&MapData> {
    data_of_kind!(map)
}

/// Kernel memory of a map, in bytes, as the kernel itself accounts for it.
pub fn memory_bytes(map: BorrowedFd<'_>) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    Ok(info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok()).unwrap_or_default())
}
