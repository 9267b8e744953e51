//! The table of requests in flight: each has its place by its address, so that it is found with one cache line.
//!
//! Drivers reuse their requests, so nearly all that are submitted find the place that they had before. A place is taken
//! under a lock that nobody waits for; where it cannot be had, or all places a request may have are taken by others in
//! flight, it goes to a small hash map until it is done.

use crate::{LOCKS, OVERFLOW, REQUESTS};
use aya_ebpf::bindings::BPF_NOEXIST;
use monitor_common::{
    block_io::{Request, WAYS_BITS},
    limits,
};
use monitor_ebpf::fields::{self, Kernel};

const WAYS: u32 = 1 << WAYS_BITS;
const _: () = assert!(limits::BLOCK_IO_REQUESTS.is_power_of_two());
const SETS_BITS: u32 = limits::BLOCK_IO_REQUESTS.ilog2() - WAYS_BITS;

/// Where the first of a request's places is.
#[inline(always)]
fn set_of(address: u64) -> u32 {
    (fields::lower_half(address) >> 8 & ((1 << SETS_BITS) - 1)) * WAYS
}

/// Set in the address of an entry that is in the hash map; requests are aligned.
pub(crate) const IN_OVERFLOW: u64 = 1;

/// The entry of a request that was submitted and is not done.
#[inline(always)]
pub(crate) fn in_flight(request: Kernel) -> Option<*mut Request> {
    // SAFETY: a value of one of the maps.
    find(request).filter(|&entry| unsafe { (*entry).submitted_ns != 0 })
}

/// The entry of a request, of this use of it or, where it has kept its place, of the last one.
#[inline(always)]
pub(crate) fn find(request: Kernel) -> Option<*mut Request> {
    let first = set_of(request.0);
    for way in 0..WAYS {
        // SAFETY: a value of the map.
        match REQUESTS.get_ptr_mut(first + way) {
            Some(entry) if unsafe { (*entry).address } == request.0 => return Some(entry),
            _ => {}
        }
    }
    OVERFLOW.get_ptr_mut(request.0)
}

/// Keeps a request that has no entry. Whether there was room.
#[inline(always)]
pub(crate) fn keep(entry: &Request) -> bool {
    let first = set_of(entry.address);
    if LOCKS.insert(first, 0, u64::from(BPF_NOEXIST)).is_ok() {
        let mut taken = false;
        for way in 0..WAYS {
            let Some(place) = REQUESTS.get_ptr_mut(first + way) else { continue };
            // SAFETY: a value of the map. Whoever had this place is done; should it be submitted again in this very moment,
            // the later of both writes wins, and the other request is one whose submission was not seen.
            unsafe {
                if !taken && (*place).submitted_ns == 0 {
                    *place = *entry;
                    taken = true;
                }
            }
        }
        let _ = LOCKS.remove(first);
        if taken {
            return true;
        }
    }
    OVERFLOW.insert(entry.address, Request { address: entry.address + IN_OVERFLOW, ..*entry }, 0).is_ok()
}

/// A request is done, or has become part of another one: its place may become another's.
///
/// # Safety
/// `entry` must be from [`in_flight`], and not be used any more.
#[inline(always)]
pub(crate) unsafe fn done(entry: *mut Request) {
    // SAFETY: a value of one of the maps.
    unsafe {
        (*entry).submitted_ns = 0;
        let address = (*entry).address;
        if address & IN_OVERFLOW != 0 {
            let _ = OVERFLOW.remove(address & !IN_OVERFLOW);
        }
    }
}
