//! The capacity of every map and ring, with its reason, and what they cost together.
//!
//! All hash maps are preallocated: their memory is spent at load, and no probe ever waits for an allocator.

use crate::{Owner, address_space, block_io, page_fault, requests, resident};

/// Processes (in a cgroup) that fault while the agent runs, live or exited for less than a harvest: 5,000 live ones on a
/// full node and a fork storm's second of dead ones.
pub const PAGE_FAULT_OWNERS: u32 = 8192;
/// As [`PAGE_FAULT_OWNERS`], for processes that map or unmap memory.
pub const ADDRESS_SPACE_OWNERS: u32 = 8192;
/// Live processes that have a heap.
pub const HEAPS: u32 = 8192;
/// Processes (in a cgroup) that do I/O, times the devices and operations they use.
pub const BLOCK_IO_KEYS: u32 = 4096;
/// Used buckets of all latency histograms: 16 to an octave, so some 100 of them for a key with many requests.
pub const BLOCK_IO_BUCKETS: u32 = 16384;
/// Requests that have a place, in flight or not: drivers allocate theirs once and reuse them, some hundreds a queue. Where
/// they are more, as with many NVMe queues, those that are done make way.
pub const BLOCK_IO_REQUESTS: u32 = 4096;
/// Places of requests that are being taken, at most one a CPU.
pub const BLOCK_IO_LOCKS: u32 = 256;
/// Requests in flight whose places were all taken by others in flight.
pub const BLOCK_IO_OVERFLOW: u32 = 1024;
/// Bios that ask to be durable, at a time, on kernels before 6.5.
pub const BLOCK_IO_DURABLE: u32 = 1024;
/// Processes (in a cgroup) that serve connections.
pub const REQUESTS_OWNERS: u32 = 1024;
/// Processes whose resident memory changes between two ticks; the others are known already.
pub const RESIDENT_OWNERS: u32 = 1536;

/// Bytes of the ring for mmap, munmap, mremap and brk moments: some 680 records.
pub const ADDRESS_SPACE_RING_BYTES: u32 = 64 << 10;
/// Bytes of the ring for slow and failed I/O: some 600 records.
pub const BLOCK_IO_RING_BYTES: u32 = 64 << 10;
/// Bytes of the ring for process and cgroup life: a process from fork to exit takes some 540 of them, and the ring is
/// drained every 250 ms at the latest, or when a quarter full.
pub const LIFECYCLE_RING_BYTES: u32 = 512 << 10;
/// Bytes of each source's ring for diagnostics: one page, as they are rare.
pub const LOG_RING_BYTES: u32 = 4 << 10;

/// Bytes of an element's head in the kernel's hash maps (`struct htab_elem`, Linux 5.10 to 7.3).
const HASH_HEAD_BYTES: u64 = 48;
/// Bytes of a hash bucket.
const HASH_BUCKET_BYTES: u64 = 16;
/// Pages of a ring besides its data.
const RING_OVERHEAD_BYTES: u64 = 3 * 4096;

/// Kernel memory of a preallocated hash map.
const fn hash_bytes(entries: u32, key: usize, value: usize) -> u64 {
    let entries = entries as u64;
    entries * (HASH_HEAD_BYTES + key as u64 + value as u64) + entries.next_power_of_two() * HASH_BUCKET_BYTES
}

/// Kernel memory of a preallocated per-CPU hash map.
const fn per_cpu_hash_bytes(entries: u32, key: usize, value: usize, cpus: u32) -> u64 {
    hash_bytes(entries, key, size_of::<u64>()) + entries as u64 * cpus as u64 * value as u64
}

const fn ring_bytes(bytes: u32) -> u64 {
    bytes as u64 + RING_OVERHEAD_BYTES
}

/// Kernel memory of all maps and rings of more than some pages on a machine with that many possible CPUs, in bytes.
pub const fn map_bytes(cpus: u32) -> u64 {
    let owner = size_of::<Owner>();
    per_cpu_hash_bytes(PAGE_FAULT_OWNERS, owner, size_of::<page_fault::Counts>(), cpus)
        + 2 * cpus as u64 * size_of::<page_fault::Slot>() as u64
        + hash_bytes(ADDRESS_SPACE_OWNERS, owner, size_of::<address_space::Totals>())
        + hash_bytes(HEAPS, size_of::<u64>(), size_of::<address_space::Heap>())
        + BLOCK_IO_KEYS as u64 * (size_of::<block_io::Account>() + size_of::<u32>()) as u64
        + hash_bytes(BLOCK_IO_KEYS, size_of::<block_io::Key>(), size_of::<u64>())
        + hash_bytes(BLOCK_IO_BUCKETS, size_of::<block_io::Bucket>(), size_of::<u64>())
        + BLOCK_IO_REQUESTS as u64 * size_of::<block_io::Request>() as u64
        + hash_bytes(BLOCK_IO_LOCKS, size_of::<u64>(), size_of::<u64>())
        + hash_bytes(BLOCK_IO_OVERFLOW, size_of::<u64>(), size_of::<block_io::Request>())
        + ((cpus as u64 * size_of::<block_io::Thread>() as u64) << block_io::THREADS_BITS)
        + hash_bytes(BLOCK_IO_DURABLE, size_of::<u64>(), size_of::<block_io::Submission>())
        + REQUESTS_OWNERS as u64 * (size_of::<requests::Account>() + size_of::<u32>()) as u64
        + hash_bytes(REQUESTS_OWNERS, owner, size_of::<u32>())
        + hash_bytes(RESIDENT_OWNERS, owner, size_of::<resident::Pages>())
        + ring_bytes(ADDRESS_SPACE_RING_BYTES)
        + ring_bytes(BLOCK_IO_RING_BYTES)
        + ring_bytes(LIFECYCLE_RING_BYTES)
        + 5 * ring_bytes(LOG_RING_BYTES)
}

// The promise to users: at most 8 MiB on two CPUs, 64 MiB on 64.
const _: () = assert!(map_bytes(2) <= 8 << 20);
const _: () = assert!(map_bytes(64) <= 64 << 20);
