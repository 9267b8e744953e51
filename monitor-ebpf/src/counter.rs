//! Adding to counters that several CPUs share.

/// Adds to a counter in a map, as one step for all CPUs.
///
/// # Safety
/// `counter` must point into a map's value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, n: u64) {
    // The one atomic instruction that every supported kernel's BPF knows: add, without fetching the result.
    // SAFETY: the caller's promise; the verifier checks the address.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {n}",
            counter = in(reg) counter,
            n = in(reg) n,
        );
    }
}
