//! Source `address_space`: mmap, munmap, mremap and brk with their results. Worst case some 100,000 calls a second and CPU.
//!
//! Counted here by owner; sent: calls that are large or failed. The counters are shared by all CPUs: the kernel lets one
//! thread at a time change an address space, so they are hardly ever contended.
//!
//! Three rungs see the same calls: fexit on the system-call functions, the tracing file system's tracepoints of the four
//! calls, and the raw tracepoints of every system call, filtered. All of them end in [`finished`], which finds the
//! arguments in the registers that the call left untouched. 32-bit callers are not counted.
//!
//! brk's result does not tell where the heap ended before. To look at it when it begins would put a probe into the way of
//! every system call of the machine on the rungs without fexit; so the ends of all heaps are kept instead: found once
//! by an iterator over all tasks, inherited at fork, moved by each brk. exec begins a new heap.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    EbpfContext, Global,
    bindings::BPF_NOEXIST,
    cty::c_void,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, fexit, map, tracepoint},
    maps::{HashMap, RingBuf},
    programs::{BtfTracePointContext, FExitContext, TracePointContext},
};
use aya_log_ebpf::warn;
use monitor_common::{
    Owner,
    address_space::{Call, Heap, Totals, call},
    limits,
};
use monitor_ebpf::{
    counter,
    fields::{self, Kernel, registers},
    lose, owner, ring,
};

/// What every owner did.
#[map]
static ADDRESS_SPACES: HashMap<Owner, Totals> = HashMap::with_max_entries(limits::ADDRESS_SPACE_OWNERS, 0);
/// The heaps of processes, by tgid of whom the kernel calls the address space's owner: a child of vfork moves its parent's.
#[map]
static HEAPS: HashMap<u32, Heap> = HashMap::with_max_entries(limits::HEAPS, 0);
/// Large and failed calls.
#[map]
static MOMENTS: RingBuf = RingBuf::with_byte_size(limits::ADDRESS_SPACE_RING_BYTES, 0);
/// From how many bytes on a call is sent.
#[unsafe(no_mangle)]
static LARGE_CALL_BYTES: Global<u64> = Global::new(1 << 20);

/// System-call numbers (arch/x86/entry/syscalls/syscall_64.tbl).
mod number {
    pub(super) const MMAP: u64 = 9;
    pub(super) const MUNMAP: u64 = 11;
    pub(super) const BRK: u64 = 12;
    pub(super) const MREMAP: u64 = 25;
}

const PAGE: u64 = 4096;
const MAP_ANONYMOUS: u64 = 0x20;
const MREMAP_DONTUNMAP: u64 = 4;
/// `thread_info.status` of a thread inside a 32-bit system call.
const TS_COMPAT: u32 = 2;

/// `long __x64_sys_mmap(const struct pt_regs *regs)`
#[fexit(function = "__x64_sys_mmap")]
pub fn address_space_mmap(ctx: FExitContext) -> i32 {
    returned(&ctx, number::MMAP)
}

/// `long __x64_sys_munmap(const struct pt_regs *regs)`
#[fexit(function = "__x64_sys_munmap")]
pub fn address_space_munmap(ctx: FExitContext) -> i32 {
    returned(&ctx, number::MUNMAP)
}

/// `long __x64_sys_mremap(const struct pt_regs *regs)`
#[fexit(function = "__x64_sys_mremap")]
pub fn address_space_mremap(ctx: FExitContext) -> i32 {
    returned(&ctx, number::MREMAP)
}

/// `long __x64_sys_brk(const struct pt_regs *regs)`
#[fexit(function = "__x64_sys_brk")]
pub fn address_space_brk(ctx: FExitContext) -> i32 {
    returned(&ctx, number::BRK)
}

/// The registers are not taken from the argument: on some kernels the verifier does not know its type.
#[inline(always)]
fn returned(ctx: &FExitContext, number: u64) -> i32 {
    finished(ctx, number, Kernel::entry_registers(), ctx.arg(1))
}

/// syscalls:sys_exit_mmap
#[tracepoint]
pub fn address_space_mmap_tp(ctx: TracePointContext) -> u32 {
    traced(&ctx, number::MMAP)
}

/// syscalls:sys_exit_munmap
#[tracepoint]
pub fn address_space_munmap_tp(ctx: TracePointContext) -> u32 {
    traced(&ctx, number::MUNMAP)
}

/// syscalls:sys_exit_mremap
#[tracepoint]
pub fn address_space_mremap_tp(ctx: TracePointContext) -> u32 {
    traced(&ctx, number::MREMAP)
}

/// syscalls:sys_exit_brk
#[tracepoint]
pub fn address_space_brk_tp(ctx: TracePointContext) -> u32 {
    traced(&ctx, number::BRK)
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`
#[btf_tracepoint(function = "sys_exit")]
pub fn address_space_exit(ctx: BtfTracePointContext) -> i32 {
    let registers = Kernel(ctx.arg(0));
    // SAFETY: the tracepoint's first argument is a pt_regs.
    let number = unsafe { registers.read(&registers::ORIG_AX) };
    match number {
        number::MMAP | number::MUNMAP | number::MREMAP | number::BRK if !compatible() => {
            finished(&ctx, number, registers, ctx.arg(1))
        }
        _ => 0,
    }
}

/// Whether the running thread is inside a 32-bit system call, whose numbers mean other calls.
fn compatible() -> bool {
    // SAFETY: the running task is one.
    unsafe { Kernel::current_task().read::<u32>(&fields::TASK_STATUS) & TS_COMPAT != 0 }
}

/// The return value stands at byte 16 of the tracepoint's context; the registers are where the kernel entered.
#[inline(always)]
fn traced(ctx: &TracePointContext, number: u64) -> u32 {
    // SAFETY: within the context, and a plain load: the verifier knows these 8 bytes.
    let result = unsafe { ctx.as_ptr().cast::<i64>().add(2).read_volatile() };
    finished(ctx, number, Kernel::entry_registers(), result);
    0
}

/// `struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }`: each task in turn, and null at the end.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub extern "C" fn address_space_heaps(ctx: *mut c_void) -> i32 {
    // SAFETY: within the context, and a plain load: the verifier knows these 8 bytes.
    let task = Kernel(unsafe { ctx.cast::<u64>().add(1).read_volatile() });
    if task.0 != 0 {
        // SAFETY: the iterator's task. A thread's heap is its process's, which may be known already.
        unsafe { remember(task.follow(&fields::TASK_MM), task, u64::from(BPF_NOEXIST)) };
    }
    0
}

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`
#[btf_tracepoint(function = "sched_process_fork")]
pub fn address_space_fork(ctx: BtfTracePointContext) -> i32 {
    let child = Kernel(ctx.arg(1));
    // SAFETY: tasks. A thread shares its process's address space, and so may a process.
    unsafe {
        let memory = child.follow(&fields::TASK_MM);
        if owner::leads(child) && memory != Kernel::current_task().follow(&fields::TASK_MM) {
            remember(memory, child, 0);
        }
    }
    0
}

/// `TP_PROTO(struct task_struct *p)`, and more on new kernels
#[btf_tracepoint(function = "sched_process_exit")]
pub fn address_space_end(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(0));
    // SAFETY: a task.
    unsafe {
        if owner::is_last(task) {
            let _ = HEAPS.remove(task.read::<u32>(&fields::TASK_TGID));
        }
    }
    0
}

/// Keeps where a heap ends, unless that is where it began.
///
/// # Safety
/// `memory` must be null or the `mm_struct` of `task`.
#[inline(always)]
unsafe fn remember(memory: Kernel, task: Kernel, flags: u64) {
    // SAFETY: the caller's promise; null reads as zeroes.
    unsafe {
        let end = memory.read(&fields::MM_BRK);
        if end != memory.read(&fields::MM_START_BRK) {
            keep(heap_owner(memory, task), Heap { space: memory.read(&fields::MM_CTX_ID), end }, flags);
        }
    }
}

/// Tells whether there is room for it, or an older one is kept, as `flags` may ask.
#[inline(always)]
fn keep(tgid: u32, heap: Heap, flags: u64) -> bool {
    const EEXIST: i32 = -17;
    let has_room = HEAPS.insert(tgid, heap, flags).map_or_else(|error| error == EEXIST, |()| true);
    if !has_room {
        lose(|health| &mut health.map_full);
    }
    has_room
}

/// Key of an address space in [`HEAPS`].
///
/// # Safety
/// `memory` must be the `mm_struct` of `task`.
#[inline(always)]
unsafe fn heap_owner(memory: Kernel, task: Kernel) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let owner = if fields::MM_OWNER.load() != fields::ABSENT { memory.follow(&fields::MM_OWNER) } else { task };
        owner.read(&fields::TASK_TGID)
    }
}

/// One call has returned.
#[inline(always)]
fn finished(ctx: &impl EbpfContext, number: u64, registers: Kernel, result: i64) -> i32 {
    let owner = owner::current();
    let Some(totals) = totals(ctx, &owner) else { return 0 };
    // SAFETY: registers of the call; `totals` is a value of the map.
    unsafe {
        match number {
            number::MMAP => mmap(&owner, totals, registers, result),
            number::MUNMAP => munmap(&owner, totals, registers, result),
            number::MREMAP => mremap(&owner, totals, registers, result),
            _ => brk(&owner, totals, registers, result),
        }
    }
    0
}

/// `void *mmap(addr, length, prot, flags, fd, offset)`
#[inline(always)]
unsafe fn mmap(owner: &Owner, totals: *mut Totals, registers: Kernel, result: i64) {
    // SAFETY: the caller's promises.
    unsafe {
        let bytes = pages(registers.read(&registers::SI));
        let anonymous = registers.read::<u64>(&registers::R10) & MAP_ANONYMOUS != 0;
        let (kind, calls, mapped) = if anonymous {
            (call::MMAP_ANONYMOUS, &raw mut (*totals).mmap_anonymous_calls, &raw mut (*totals).mapped_anonymous_bytes)
        } else {
            (call::MMAP_FILE, &raw mut (*totals).mmap_file_calls, &raw mut (*totals).mapped_file_bytes)
        };
        counter::add(calls, 1);
        if failed(result) {
            fail(owner, totals, kind, registers.read(&registers::DI), bytes, result);
        } else {
            counter::add(mapped, bytes);
            send_large(owner, kind, result as u64, bytes as i64);
        }
    }
}

/// `int munmap(addr, length)`
#[inline(always)]
unsafe fn munmap(owner: &Owner, totals: *mut Totals, registers: Kernel, result: i64) {
    // SAFETY: the caller's promises.
    unsafe {
        let (address, bytes) = (registers.read(&registers::DI), pages(registers.read(&registers::SI)));
        counter::add(&raw mut (*totals).munmap_calls, 1);
        if failed(result) {
            fail(owner, totals, call::MUNMAP, address, bytes, result);
        } else {
            counter::add(&raw mut (*totals).unmapped_bytes, bytes);
            send_large(owner, call::MUNMAP, address, bytes as i64);
        }
    }
}

/// `void *mremap(old_address, old_size, new_size, flags, new_address)`
#[inline(always)]
unsafe fn mremap(owner: &Owner, totals: *mut Totals, registers: Kernel, result: i64) {
    // SAFETY: the caller's promises.
    unsafe {
        let new = pages(registers.read(&registers::DX));
        // The old mapping stays where it was: everything at the new address comes on top.
        let duplicated = registers.read::<u64>(&registers::R10) & MREMAP_DONTUNMAP != 0;
        let old = if duplicated { 0 } else { pages(registers.read(&registers::SI)) };
        counter::add(&raw mut (*totals).mremap_calls, 1);
        if failed(result) {
            fail(owner, totals, call::MREMAP, registers.read(&registers::DI), new, result);
            return;
        }
        if new > old {
            counter::add(&raw mut (*totals).mremap_grown_bytes, new - old);
        } else {
            counter::add(&raw mut (*totals).mremap_shrunk_bytes, old - new);
        }
        send_large(owner, call::MREMAP, result as u64, new.wrapping_sub(old) as i64);
    }
}

/// `unsigned long brk(unsigned long end)`: answers with the heap's end, which is unchanged when it failed.
#[inline(always)]
unsafe fn brk(owner: &Owner, totals: *mut Totals, registers: Kernel, result: i64) {
    // SAFETY: the caller's promises; the running task is one, and its address space is there while it makes a call.
    unsafe {
        let (asked, end) = (registers.read::<u64>(&registers::DI), result as u64);
        counter::add(&raw mut (*totals).brk_calls, 1);
        let before = moved_heap(end);
        if asked != 0 && asked != end {
            let bytes = pages(asked).wrapping_sub(pages(before));
            fail(owner, totals, call::BRK, asked, bytes, -12 /* ENOMEM: brk keeps its reason to itself */);
            return;
        }
        let (before, end) = (pages(before), pages(end));
        if end > before {
            counter::add(&raw mut (*totals).heap_grown_bytes, end - before);
        } else if end < before {
            counter::add(&raw mut (*totals).heap_shrunk_bytes, before - end);
        }
        send_large(owner, call::BRK, end, end.wrapping_sub(before) as i64);
    }
}

/// Keeps where the running task's heap ends now, and tells where it ended before.
#[inline(always)]
unsafe fn moved_heap(end: u64) -> u64 {
    // SAFETY: the running task, its address space, and a value of the map.
    unsafe {
        let task = Kernel::current_task();
        let memory = task.follow(&fields::TASK_MM);
        let (tgid, space) = (heap_owner(memory, task), memory.read(&fields::MM_CTX_ID));
        match HEAPS.get_ptr_mut(tgid) {
            Some(heap) if (*heap).space == space => {
                let before = (*heap).end;
                (*heap).end = end;
                before
            }
            // It has not been moved since exec: what is kept, if anything, is the heap from before that.
            _ => {
                let start = memory.read(&fields::MM_START_BRK);
                // Where there is no room, nobody will know the next time where it was: then it has not moved, for all we know.
                if end == start || keep(tgid, Heap { space, end }, 0) { start } else { end }
            }
        }
    }
}

/// The owner's totals, made when this is its first call.
#[inline(always)]
fn totals(ctx: &impl EbpfContext, owner: &Owner) -> Option<*mut Totals> {
    ADDRESS_SPACES
        .get_ptr_mut(owner)
        .or_else(|| {
            let _ = ADDRESS_SPACES.insert(owner, EMPTY, u64::from(BPF_NOEXIST));
            ADDRESS_SPACES.get_ptr_mut(owner)
        })
        .or_else(|| {
            if lose(|health| &mut health.map_full) {
                warn!(ctx, "address_space: no room for another owner, counting for nobody");
            }
            ADDRESS_SPACES.get_ptr_mut(Owner::UNATTRIBUTED)
        })
}

static EMPTY: Totals = Totals {
    mmap_anonymous_calls: 0,
    mmap_file_calls: 0,
    mapped_anonymous_bytes: 0,
    mapped_file_bytes: 0,
    munmap_calls: 0,
    unmapped_bytes: 0,
    mremap_calls: 0,
    mremap_grown_bytes: 0,
    mremap_shrunk_bytes: 0,
    brk_calls: 0,
    heap_grown_bytes: 0,
    heap_shrunk_bytes: 0,
    failed_calls: 0,
};

/// As the kernel rounds lengths.
#[inline(always)]
fn pages(bytes: u64) -> u64 {
    bytes.wrapping_add(PAGE - 1) & !(PAGE - 1)
}

/// Errors are the last page of addresses.
#[inline(always)]
fn failed(result: i64) -> bool {
    (-4095..0).contains(&result)
}

#[inline(always)]
unsafe fn fail(owner: &Owner, totals: *mut Totals, kind: u32, address: u64, bytes: u64, result: i64) {
    // SAFETY: the caller's value of the map.
    unsafe { counter::add(&raw mut (*totals).failed_calls, 1) };
    send(owner, kind, address, bytes as i64, (-result) as u32);
}

#[inline(always)]
fn send_large(owner: &Owner, kind: u32, address: u64, bytes: i64) {
    if bytes.unsigned_abs() >= LARGE_CALL_BYTES.load() {
        send(owner, kind, address, bytes, 0);
    }
}

#[inline(never)]
fn send(owner: &Owner, kind: u32, address: u64, bytes: i64, errno: u32) {
    let tid = bpf_get_current_pid_tgid() as u32;
    ring::send(&MOMENTS, |record: *mut Call| {
        let call = Call { header: ring::header(kind), owner: *owner, tid, errno, address, bytes };
        // SAFETY: the ring's reserved bytes.
        unsafe { record.write(call) };
    });
}
