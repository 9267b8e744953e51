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
    /// How many there are.
    pub const COUNT: usize = 5;
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

/// Requests of one key, as user space reads them off an [`Account`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Totals {
    /// The upper 48 bits of its [`Bucket`]s.
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

/// The number of an [`Account`] in its table, and which use of it this is: an account that is closed is opened again for
/// another key, while a request may still be in flight that was submitted for the old one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Series(pub u32);

/// Bits of a [`Series`] that tell one use of an account from the next.
const USE_BITS: u32 = 12;
/// How many accounts there can be.
pub const MOST_ACCOUNTS: u32 = 1 << (u32::BITS - USE_BITS);

impl Series {
    /// No account's: that use of the last one there can be does not come.
    pub const NONE: Self = Self(u32::MAX);

    /// The account of what cannot be attributed. User space opens these, and never closes them.
    #[inline(always)]
    pub const fn of_nobody(operation: u16) -> Self {
        Self::new(operation as u32, 0)
    }

    /// That use of an account.
    #[inline(always)]
    pub const fn new(account: u32, usage: u16) -> Self {
        Self(account << USE_BITS | usage as u32)
    }

    /// Whether it is one of [`Self::of_nobody`].
    #[inline(always)]
    pub const fn is_nobodys(self) -> bool {
        self.account() < operation::COUNT as u32
    }

    /// Number of the account.
    #[inline(always)]
    pub const fn account(self) -> u32 {
        self.0 >> USE_BITS
    }

    /// Which use of it.
    #[inline(always)]
    pub const fn usage(self) -> u16 {
        self.0 as u16 & ((1 << USE_BITS) - 1)
    }

    /// The use after this one, of the same account.
    pub const fn next(self) -> Self {
        Self::new(self.account(), (self.usage() + 1) % Self::NONE.usage())
    }
}

/// Key and requests of one key, in one cache line, in a table that user space reads where it is.
///
/// The kernel opens accounts and adds to them; user space closes them when their process has been gone for long enough.
/// What the key is never changes between the two, so a reader that sees a count sees whose it is.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Account {
    /// See [`Key::owner`].
    pub owner: Owner,
    /// See [`Key::device`].
    pub device: u32,
    /// See [`Key::operation`].
    pub operation: u16,
    /// See [`Series::usage`].
    pub usage: u16,
    /// See [`Totals::count`].
    pub count: u64,
    /// See [`Totals::bytes`].
    pub bytes: u64,
    /// See [`Totals::errors`].
    pub errors: u64,
    /// See [`Totals::wait_ns`].
    pub wait_ns: u64,
}

const _: () = assert!(size_of::<Account>() == 64);

impl Account {
    /// What it counts.
    #[inline(always)]
    pub const fn key(&self) -> Key {
        Key { owner: self.owner, device: self.device, operation: self.operation, reserved: 0 }
    }
}

/// What is known of a thread that submitted something: whom to charge, and where. Looking up process, cgroup and account
/// takes a dozen cache lines, this one.
///
/// It holds as long as the thread is the same, by address and start time, and no task was moved between cgroups.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Thread {
    /// Its address.
    pub address: u64,
    /// Low half of when it started, in nanoseconds.
    pub started: u32,
    /// Low half of the number of moves between cgroups when it was looked up.
    pub moves: u32,
    /// Its process and cgroup.
    pub owner: Owner,
    /// The device it used last.
    pub device: u32,
    /// Its accounts for that device, by operation; [`Series::NONE`] where they are not known.
    pub series: [Series; operation::COUNT],
}

const _: () = assert!(size_of::<Thread>() == 64);
/// How many threads of each CPU are known, as a power of two.
pub const THREADS_BITS: u32 = 6;

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

    /// A series where it stands in a bucket.
    #[inline(always)]
    pub const fn series_of(series: Series) -> u64 {
        (series.0 as u64) << SERIES_SHIFT
    }

    /// Its series, where it stands in a bucket.
    pub const fn series(self) -> u64 {
        self.0 >> SERIES_SHIFT << SERIES_SHIFT
    }

    /// Its series. Only the lower half of what buckets have room for is used.
    pub const fn whole_series(self) -> Series {
        Series((self.0 >> SERIES_SHIFT) as u32)
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
    /// Issue to completion, and in the same bucket submission to completion: spares a look-up where little queues.
    pub const DEVICE_AND_TOTAL: u16 = 3;
    /// As [`DEVICE_AND_TOTAL`], and [`QUEUE`] in the bucket that this code is above it: spares another where nothing queues.
    pub const ALL: u16 = 4;
    /// How many codes [`ALL`] stands for.
    pub const ALL_COUNT: u16 = 12;
}

/// A request in flight, in a table where it is found by its address. Drivers reuse theirs, so it stays in its place when
/// the request is done, until another one needs that.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// The request's address; 0 where there has never been one.
    pub address: u64,
    /// When it was submitted, monotonic nanoseconds; 0 when not in flight.
    pub submitted_ns: u64,
    /// When it was last handed to the driver; 0 before that.
    pub issued_ns: u64,
    /// See [`Owner::cgroup`], of who submitted.
    pub cgroup: u64,
    /// See [`Owner::start_ns`].
    pub start_ns: u64,
    /// See [`Owner::tgid`].
    pub tgid: u32,
    /// The account to charge; [`Series::NONE`] where that is still to be looked up.
    pub series: Series,
    /// Bytes it had when it was issued, merged ones included.
    pub length: u32,
    /// Bytes completed so far; drivers may complete in parts.
    pub bytes: u32,
    /// Low half of the request's own start time, which tells one use of it from the next; meaningless since Linux 6.5.
    pub born: u32,
    /// First error of any part, as the kernel gives it, cut: see [`Completion::status`]; 0 is none.
    pub status: i16,
    /// One of [`operation`].
    pub operation: u16,
}

const _: () = assert!(size_of::<Request>() == 64);

impl Request {
    /// Who submitted.
    #[inline(always)]
    pub const fn owner(&self) -> Owner {
        Owner { cgroup: self.cgroup, start_ns: self.start_ns, tgid: self.tgid, reserved: 0 }
    }
}

/// Places in the table of requests that one of them may have, as a power of two.
pub const WAYS_BITS: u32 = 2;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_tells_the_uses_of_an_account_apart_and_is_never_none() {
        let mut series = Series::new(MOST_ACCOUNTS - 1, 0);
        for usage in 0..Series::NONE.usage() {
            assert_eq!((series.account(), series.usage()), (MOST_ACCOUNTS - 1, usage));
            assert_ne!(series, Series::NONE);
            series = series.next();
        }
        assert_eq!(series, Series::new(MOST_ACCOUNTS - 1, 0));
    }

    #[test]
    fn a_bucket_gives_back_what_it_was_made_of() {
        let series = Bucket::series_of(Series::new(77, 5));
        let bucket = Bucket::new(series, latency::ALL + latency::ALL_COUNT - 1, crate::histogram::BUCKETS - 1);
        assert_eq!(bucket.series(), series);
        assert_eq!((bucket.kind(), bucket.bucket()), (15, crate::histogram::BUCKETS - 1));
    }
}
