//! Sending a moment: reserve, fill, submit; a full ring is counted, never waited for.

use crate::lose;
use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    helpers::generated::bpf_ktime_get_boot_ns,
    maps::RingBuf,
};
use monitor_common::Header;

/// Sends one record, which `fill` writes in place.
///
/// User space drains every ring on a timer, so it is only woken when a ring is a quarter full.
#[inline(always)]
pub fn send<T: 'static>(ring: &RingBuf, fill: impl FnOnce(*mut T)) {
    let Some(mut entry) = ring.reserve::<T>(0) else {
        lose(|health| &mut health.ring_full);
        return;
    };
    fill(entry.as_mut_ptr());
    let wakeup = if ring.query(u64::from(BPF_RB_AVAIL_DATA)) * 4 >= ring.query(u64::from(BPF_RB_RING_SIZE)) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(wakeup));
}

/// The head of a record made now.
#[inline(always)]
pub fn header(kind: u32) -> Header {
    // SAFETY: the helper has no preconditions.
    Header { time_ns: unsafe { bpf_ktime_get_boot_ns() }, kind, reserved: 0 }
}
