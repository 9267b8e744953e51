//! Source `block_io`: requests to block devices, by submitter, device and operation, with their latencies.

use crate::{Header, Owner};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Code of an operation.
pub mod operation {
    /// Data from the device.
    pub const READ: u16 = 0;
    /// Data to the device.
    pub const WRITE: u16 = 1;
    /// Make the device's cache durable.
    pub const FLUSH: u16 = 2;
    /// Tell the device that a range is not needed any more; secure erase as well.
    pub const DISCARD: u16 = 3;
    /// Anything else: write zeroes, zone management, passed-through commands.
    pub const OTHER: u16 = 4;
}

/// What requests are counted by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// Who submitted.
    pub owner: Owner,
    /// Device number as the kernel has it: major << 20 | minor.
    pub device: u32,
    /// One of [`operation`].
    pub operation: u16,
    /// Always 0.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Key>() == 32);

/// Requests of one key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Totals {
    /// A number drawn when the key was first seen; the upper 48 bits of its [`Bucket`]s.
    pub series: u64,
    /// Requests completed, failed ones too.
    pub count: u64,
    /// Bytes transferred, or discarded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time from submission to completion, summed, in nanoseconds.
    pub wait_ns: u64,
}

const _: () = assert!(size_of::<Totals>() == 40);

/// Key of one used bucket of a latency histogram: series, [`latency`] kind and histogram bucket, in one number, as that
/// is what the kernel hashes fastest. The value is a count.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bucket(pub u64);

/// Bits of a [`Bucket`] below its series.
const SERIES_SHIFT: u32 = 16;
/// Bits of a histogram bucket.
const BUCKET_BITS: u32 = 12;

const _: () = assert!(crate::histogram::BUCKETS < 1 << BUCKET_BITS);

impl Bucket {
    /// The bucket of a kind of latency of a series.
    #[inline(always)]
    pub const fn new(series: u64, kind: u16, bucket: u16) -> Self {
        Self(series | ((kind as u64) << BUCKET_BITS) | bucket as u64)
    }

    /// A series from random bits.
    #[inline(always)]
    pub const fn series_of(random: u64) -> u64 {
        random & !((1 << SERIES_SHIFT) - 1)
    }

    /// Its series.
    pub const fn series(self) -> u64 {
        Self::series_of(self.0)
    }

    /// One of [`latency`].
    pub const fn kind(self) -> u16 {
        (self.0 >> BUCKET_BITS) as u16 & 0xf
    }

    /// Its histogram bucket.
    pub const fn bucket(self) -> u16 {
        self.0 as u16 & ((1 << BUCKET_BITS) - 1)
    }
}

/// Code of a latency.
pub mod latency {
    /// Submission to issue.
    pub const QUEUE: u16 = 0;
    /// Issue to completion.
    pub const DEVICE: u16 = 1;
    /// Submission to completion.
    pub const TOTAL: u16 = 2;
    /// Issue to completion, and in the same bucket submission to completion: spares a look-up where nothing queues.
    pub const DEVICE_AND_TOTAL: u16 = 3;
}

/// A request in flight, kept in the kernel under its address. Drivers reuse theirs, so the entry stays when the request
/// is done and only the first use of each ever inserts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// Who submitted.
    pub owner: Owner,
    /// When it was submitted, monotonic nanoseconds; 0 when not in flight.
    pub submitted_ns: u64,
    /// When it was last handed to the driver; 0 before that.
    pub issued_ns: u64,
    /// Bytes completed so far; drivers may complete in parts.
    pub bytes: u64,
    /// First error of any part, as the kernel gives it; 0 is none.
    pub status: u32,
    /// One of [`operation`].
    pub operation: u16,
    /// Always 0.
    pub reserved: u16,
    /// Bytes it had when it was issued, merged ones included.
    pub length: u32,
    /// Low half of the request's own start time, which tells one use of it from the next; meaningless since Linux 6.5.
    pub born: u32,
}

const _: () = assert!(size_of::<Request>() == 64);

/// Who submitted something, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Submission {
    /// Who submitted.
    pub owner: Owner,
    /// When, monotonic nanoseconds.
    pub submitted_ns: u64,
}

const _: () = assert!(size_of::<Submission>() == 32);

/// Kind of the only ring record of this source.
pub const SLOW_OR_FAILED: u32 = 1;

/// Ring record: a request that took long or failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Completion {
    /// When it completed.
    pub header: Header,
    /// Who submitted.
    pub owner: Owner,
    /// From submission to issue, in nanoseconds.
    pub queue_ns: u64,
    /// From issue to completion, in nanoseconds.
    pub device_ns: u64,
    /// Bytes transferred.
    pub bytes: u64,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// See [`Key::device`].
    pub device: u32,
    /// One of [`operation`].
    pub operation: u16,
    /// Always 0.
    pub reserved: u16,
    /// The kernel's status: a `blk_status_t`, or before Linux 5.16 a negative errno as u32; 0 is success.
    pub status: u32,
    /// Always 0.
    pub reserved2: u32,
}

const _: () = assert!(size_of::<Completion>() == 88);
