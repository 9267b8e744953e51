//! What the kernel programs share: how kernel memory is read, who is charged, how losses are counted and moments sent.
//!
//! Settings and field offsets are load-time constants: the verifier knows their values and drops the branches they rule
//! out. Offsets come from the running kernel's BTF, never from generated bindings, because they move with every kernel.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod counter;
pub mod fields;
pub mod owner;
pub mod ring;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use monitor_common::Health;

/// Makes two programs of one body: for a tracepoint whose arguments the verifier knows by type, and for the same one as a
/// raw tracepoint, whose arguments are plain numbers.
#[macro_export]
macro_rules! tracepoint {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $tracepoint:tt, |$ctx:ident| $body:expr) => {
        $(#[$doc])*
        #[aya_ebpf::macros::btf_tracepoint(function = $tracepoint)]
        pub fn $name($ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            $body
        }

        $(#[$doc])*
        #[aya_ebpf::macros::raw_tracepoint(tracepoint = $tracepoint)]
        pub fn $raw($ctx: aya_ebpf::programs::RawTracePointContext) -> i32 {
            $body
        }
    };
}

/// Losses of this object's source on each CPU.
#[map]
static HEALTH: PerCpuArray<Health> = PerCpuArray::with_max_entries(1, 0);

/// Counts one loss and tells whether it is the first of its kind on this CPU, which is worth a line in the log.
#[inline(always)]
pub fn lose(which: fn(&mut Health) -> &mut u64) -> bool {
    match HEALTH.get_ptr_mut(0) {
        Some(health) => {
            // SAFETY: the map's value for this CPU; a program interrupting this one can at worst lose a count of a loss.
            let count = which(unsafe { &mut *health });
            *count += 1;
            *count == 1
        }
        None => false,
    }
}

/// The kernel refuses a program that could reach this, so none can.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Which helpers the kernel lets the programs call depends on it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
