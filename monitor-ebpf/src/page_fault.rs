//! Source `page_fault`: two tracepoints, by processor mode, or where they are not to be had perf's software event. Worst
//! case a million events a second and CPU.
//!
//! Nothing is sent; everything is counted here, by owner and kind, through one slot a CPU and program
//! (`monitor_common::page_fault::Slot` has the protocol). The common case is a few loads, a comparison and an addition.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::bpf_get_smp_processor_id,
    macros::{btf_tracepoint, map, perf_event, raw_tracepoint},
    maps::{Array, PerCpuHashMap},
    programs::{BtfTracePointContext, PerfEventContext, RawTracePointContext},
};
use aya_log_ebpf::warn;
use core::sync::atomic::{Ordering, compiler_fence};
use monitor_common::{
    Owner, limits,
    page_fault::{Counts, KERNEL_KINDS, KINDS, SOFTWARE_PERIOD, Slot, USER_KINDS, kernel_kind, user_kind},
};
use monitor_ebpf::{
    counter,
    fields::{self, Kernel},
    lose, owner,
};

/// Counts of every owner, one value a CPU.
#[map]
static PAGE_FAULTS: PerCpuHashMap<Owner, Counts> = PerCpuHashMap::with_max_entries(limits::PAGE_FAULT_OWNERS, 0);
/// One slot a CPU for faults in user mode. User space maps it into its memory; the loader sets the number of CPUs.
#[map]
static USER_SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The same for faults in kernel mode, which can interrupt the other program.
#[map]
static KERNEL_SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// How often any thread was moved between cgroups.
#[map]
static MOVES: Array<u64> = Array::with_max_entries(1, 0);
/// 1 where the kernel does not keep a program from interrupting itself (raw tracepoints before Linux 6.1).
#[unsafe(no_mangle)]
static GUARD: Global<u32> = Global::new(0);

/// `TP_PROTO(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    user::<true>(&ctx, ctx.arg(2))
}

/// As `page_fault_user`.
#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    kernel::<true>(&ctx, ctx.arg(2))
}

/// As `page_fault_user`.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault_user_raw(ctx: RawTracePointContext) -> i32 {
    user::<false>(&ctx, ctx.arg(2))
}

/// As `page_fault_user`.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn page_fault_kernel_raw(ctx: RawTracePointContext) -> i32 {
    kernel::<false>(&ctx, ctx.arg(2))
}

/// The perf event of page faults, once in [`SOFTWARE_PERIOD`] of them. What kind of access it was, the event does not tell:
/// all count as the first kind of their processor mode.
#[perf_event]
pub fn page_fault_software(ctx: PerfEventContext) -> u32 {
    // The registers of the fault are what the context begins with (struct bpf_perf_event_data).
    // SAFETY: within the context, and a plain load: the verifier knows these 8 bytes.
    let segment = unsafe { ctx.as_ptr().cast::<u64>().add(CODE_SEGMENT).read_volatile() };
    if segment & USER_PRIVILEGE == USER_PRIVILEGE {
        count::<0, USER_KINDS, false>(&ctx, &USER_SLOTS, 0, SOFTWARE_PERIOD);
    } else {
        count::<USER_KINDS, KERNEL_KINDS, false>(&ctx, &KERNEL_SLOTS, 0, SOFTWARE_PERIOD);
    }
    0
}

/// Index of `cs` in `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h), whose two lowest bits are the privilege level.
const CODE_SEGMENT: usize = 17;
const USER_PRIVILEGE: u64 = 3;

/// `TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`: some thread's owner
/// has changed, so no slot may rely on what it knows of its thread.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn page_fault_moved(_: BtfTracePointContext) -> i32 {
    moved()
}

/// As `page_fault_moved`.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
pub fn page_fault_moved_raw(_: RawTracePointContext) -> i32 {
    moved()
}

fn moved() -> i32 {
    if let Some(moves) = MOVES.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        unsafe { counter::add(moves, 1) };
    }
    0
}

#[inline(always)]
fn user<const TYPED: bool>(ctx: &impl EbpfContext, error_code: u64) -> i32 {
    count::<0, USER_KINDS, TYPED>(ctx, &USER_SLOTS, user_kind(error_code), 1)
}

#[inline(always)]
fn kernel<const TYPED: bool>(ctx: &impl EbpfContext, error_code: u64) -> i32 {
    count::<USER_KINDS, KERNEL_KINDS, TYPED>(ctx, &KERNEL_SLOTS, kernel_kind(error_code) - USER_KINDS, 1)
}

/// Counts `faults` faults. The calling program owns `LENGTH` counts in the map, from `FIRST` on; a `TYPED` one reads kernel
/// fields by plain loads.
#[inline(always)]
fn count<const FIRST: usize, const LENGTH: usize, const TYPED: bool>(
    ctx: &impl EbpfContext,
    slots: &Array<Slot>,
    kind: usize,
    faults: u64,
) -> i32 {
    // SAFETY: the helper has no preconditions.
    let Some(slot) = slots.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else { return 0 };
    // SAFETY: this CPU's slot; only this program writes it, and the kernel or the guard keeps it from nesting.
    let slot = unsafe { &mut *slot };
    let guarded = GUARD.load() != 0;
    if guarded {
        if slot.busy != 0 {
            lose(|health| &mut health.nested);
            return 0;
        }
        slot.busy = 1;
        compiler_fence(Ordering::SeqCst);
    }
    let task = if TYPED { Kernel::typed_current_task() } else { Kernel::current_task() };
    // SAFETY: the running task is one; a value of the map, read as a whole.
    let (started, moves) = unsafe {
        let offset = &fields::TASK_START_BOOTTIME;
        let started: u64 = if TYPED { task.typed_read(offset) } else { task.read(offset) };
        (started, MOVES.get_ptr(0).map_or(0, |moves| moves.read_volatile()))
    };
    if slot.thread != task.0 || slot.thread_start_ns != started || slot.moves != moves {
        // SAFETY: as above.
        let owner = unsafe { owner::of(task) };
        if slot.owner != owner {
            change_owner::<FIRST, LENGTH>(ctx, slot, &owner);
        }
        // An owner that found no room is looked for again at its next fault.
        slot.thread = if slot.owner == owner { task.0 } else { 0 };
        slot.thread_start_ns = started;
        slot.moves = moves;
    }
    if let Some(count) = slot.counts.get_mut(kind) {
        *count += faults;
    }
    if guarded {
        compiler_fence(Ordering::SeqCst);
        slot.busy = 0;
    }
    0
}

/// Stores the slot's counts away and loads those of `owner`.
#[inline(always)]
fn change_owner<const FIRST: usize, const LENGTH: usize>(ctx: &impl EbpfContext, slot: &mut Slot, owner: &Owner) {
    let sequence = &raw mut slot.sequence;
    // SAFETY: the slot's own field. Volatile and fenced: whoever reads the slot relies on the order of these writes.
    unsafe { sequence.write_volatile(slot.sequence + 1) };
    compiler_fence(Ordering::SeqCst);

    // No entry any more: the process has exited and its counts were harvested, slot and all.
    if let Some(stored) = PAGE_FAULTS.get_ptr_mut(slot.owner) {
        // SAFETY: this CPU's value in the map.
        let stored = unsafe { &mut *stored };
        copy(&slot.counts[..LENGTH], &mut stored[FIRST..FIRST + LENGTH]);
    }
    let stored = PAGE_FAULTS.get_ptr_mut(owner).or_else(|| {
        // Another CPU may have inserted it meanwhile, which is as good.
        let _ = PAGE_FAULTS.insert(owner, [0; KINDS], u64::from(BPF_NOEXIST));
        PAGE_FAULTS.get_ptr_mut(owner)
    });
    slot.owner = *owner;
    let stored = stored.or_else(|| {
        if lose(|health| &mut health.map_full) {
            warn!(ctx, "page_fault: no room for another owner, counting for nobody");
        }
        slot.owner = Owner::UNATTRIBUTED;
        PAGE_FAULTS.get_ptr_mut(Owner::UNATTRIBUTED)
    });
    if let Some(stored) = stored {
        // SAFETY: as above.
        let stored = unsafe { &*stored };
        copy(&stored[FIRST..FIRST + LENGTH], &mut slot.counts[..LENGTH]);
    }

    compiler_fence(Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { sequence.write_volatile(slot.sequence + 1) };
}

#[inline(always)]
fn copy(from: &[u64], to: &mut [u64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
