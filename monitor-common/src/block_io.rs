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

/// Key of a cell: requests alike in owner, device, operation and both latencies.
///
/// Queue and device time are kept as one joint, sparse histogram, so that a completion costs one look-up for counts,
/// bytes, errors and three latency distributions: the total is the sum of the two, within a bucket's width.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellKey {
    /// Who submitted.
    pub owner: Owner,
    /// Device number as the kernel has it: major << 20 | minor.
    pub device: u32,
    /// One of [`operation`].
    pub operation: u16,
    /// Always 0.
    pub reserved: u16,
    /// Histogram bucket of the time from submission to issue; [`NO_BUCKET`] when the cells were full.
    pub queue_bucket: u16,
    /// Histogram bucket of the time from issue to completion; [`NO_BUCKET`] when the cells were full.
    pub device_bucket: u16,
    /// Always 0.
    pub reserved2: u32,
}

/// Bucket of an I/O counted without its latency.
pub const NO_BUCKET: u16 = u16::MAX;

const _: () = assert!(size_of::<CellKey>() == 40);

/// What is counted of the requests of one cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cell {
    /// Requests completed, failed ones too.
    pub count: u64,
    /// Bytes transferred, or discarded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time from submission to completion, summed, in nanoseconds.
    pub wait_ns: u64,
}

const _: () = assert!(size_of::<Cell>() == 32);

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
}

const _: () = assert!(size_of::<Request>() == 56);

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
    /// See [`CellKey::device`].
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
