//! Reading the page-fault slots where the programs write them: in memory shared with the kernel, without a system call.

use super::table::Table;
use monitor_common::{
    Owner,
    page_fault::{Slot, USER_KINDS},
};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One slot a CPU.
pub struct Slots(pub Table<Slot>);

/// How often a slot is looked at again while its owner is being changed. A change takes less than a microsecond, unless
/// the hypervisor takes the CPU away in the middle of it.
const TRIES: usize = 10_000;

impl Slots {
    /// Every CPU's owner and counts, each consistent in itself; none for a slot that never stood still.
    pub fn read(&self) -> Vec<Option<(Owner, [u64; USER_KINDS])>> {
        // SAFETY: slots of the table.
        self.0.entries().map(|slot| unsafe { read(slot) }).collect()
    }
}

/// # Safety
/// `slot` must be in memory that the kernel writes as `monitor_common::page_fault::Slot` says.
unsafe fn read(slot: *const Slot) -> Option<(Owner, [u64; USER_KINDS])> {
    // SAFETY: the field is aligned for it, and the kernel writes it as a whole.
    let sequence = unsafe { AtomicU64::from_ptr((&raw const (*slot).sequence).cast_mut()) };
    for attempt in 0..TRIES {
        let before = sequence.load(Ordering::Acquire);
        if before % 2 == 0 {
            // SAFETY: as above. The copy may be torn; the sequence tells.
            let (owner, counts) =
                unsafe { ((&raw const (*slot).owner).read_volatile(), (&raw const (*slot).counts).read_volatile()) };
            fence(Ordering::Acquire);
            if sequence.load(Ordering::Relaxed) == before {
                return Some((owner, counts));
            }
        }
        if attempt % 100 == 99 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
    None
}
