//! The contract between the kernel programs and user space: keys, counters, ring records, histogram buckets, limits.
//!
//! Plain data only, without an allocator, without aya, without features: the same bytes are compiled for the kernel and
//! for user space. One file per source, of the same name as in `monitor-ebpf` and in `monitor/src/collect`.
//!
//! Everything here is fixed-width, explicitly padded and asserted in size, because the other side may be a committed
//! object that an older compiler built. Codes (kinds, operations) are plain integers: an unknown one is counted, never
//! trusted.
#![no_std]

pub mod address_space;
pub mod block_io;
pub mod health;
pub mod histogram;
pub mod lifecycle;
pub mod limits;
pub mod owner;
pub mod page_fault;
pub mod record;
pub mod requests;
pub mod resident;
pub mod self_check;

pub use health::Health;
pub use owner::Owner;
pub use record::Header;
