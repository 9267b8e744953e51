//! Source `resident`: what each process has in memory, by kind. Worst case a million changes a second and CPU, as one for each
//! page that is mapped or unmapped.
//!
//! Nothing is sent, and nothing is added up: the kernel counts already, and its latest counts are kept by process. It counts in
//! parts, one a CPU (before Linux 6.2 one a thread), and adds a part to the whole when that has 32 pages or more: the whole
//! is looked at, so that most changes end at a comparison. What a CPU saw last is kept in a slot.
//!
//! Pages are charged to whose address space they leave or enter, never to who runs: that may be whoever reclaims memory.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::bpf_probe_read_kernel,
    macros::{btf_tracepoint, map},
    maps::{LruHashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use monitor_common::{
    Owner, limits,
    resident::{ANON, FILE, KINDS, Pages, SHMEM, SWAP},
};
use monitor_ebpf::{
    fields::{self, Kernel},
    lose, owner,
};

/// Pages of every process, in whatever cgroup. Where there are too many, those go that have not changed for the longest time:
/// user space has read them by then.
#[map]
static RESIDENT: LruHashMap<Owner, Pages> = LruHashMap::with_max_entries(limits::RESIDENT_OWNERS, 0);
/// What each CPU saw last. Address space 0 is none.
#[map]
static SEEN: PerCpuArray<Pages> = PerCpuArray::with_max_entries(1, 0);

/// 1 where the verifier knows a counter's type: it cannot follow an array of `atomic_long_t`, as there was before Linux 6.2.
#[unsafe(no_mangle)]
static COUNTS_TYPED: Global<u32> = Global::new(0);

/// `TP_PROTO(struct mm_struct *mm, int member)`, and before Linux 6.2 `(…, long count)`
#[btf_tracepoint(function = "rss_stat")]
pub fn resident_changed(ctx: BtfTracePointContext) -> i32 {
    let (memory, kind): (Kernel, i32) = (Kernel(ctx.arg(0)), ctx.arg(1));
    let Some(seen) = SEEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: the tracepoint's address space, and this CPU's slot.
    unsafe {
        let space = memory.read::<u64>(&fields::MM_CTX_ID);
        let (now, before) = match kind as usize {
            FILE => (file(memory), (*seen).pages[FILE]),
            ANON => (anon(memory), (*seen).pages[ANON]),
            SWAP => (swap(memory), (*seen).pages[SWAP]),
            SHMEM => (shmem(memory), (*seen).pages[SHMEM]),
            _ => return 0,
        };
        if (*seen).space == space && before == now {
            return 0;
        }
        let pages = all(memory, space);
        // One that is not its owner's (yet, or any more) is of no interest, and looked at again.
        (*seen).space = if keep(memory, owner_of(memory), &pages) { space } else { 0 };
        (*seen).pages = pages.pages;
    }
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`: another program has an address space of its own,
/// and may be too small to be heard of for long.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn resident_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(0));
    // SAFETY: the tracepoint's task, and its address space.
    unsafe {
        let memory = task.follow(&fields::TASK_MM);
        if memory.0 != 0 {
            keep(memory, task, &all(memory, memory.read(&fields::MM_CTX_ID)));
        }
    }
    0
}

/// `struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }`: each task in turn, and null at the end.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub extern "C" fn resident_tasks(ctx: *mut c_void) -> i32 {
    // SAFETY: within the context, and a plain load: the verifier knows these 8 bytes.
    let task = Kernel(unsafe { ctx.cast::<u64>().add(1).read_volatile() });
    if task.0 != 0 {
        // SAFETY: the iterator's task, and its address space.
        unsafe {
            let memory = task.follow(&fields::TASK_MM);
            if memory.0 != 0 && owner::leads(task) {
                keep(memory, task, &all(memory, memory.read(&fields::MM_CTX_ID)));
            }
        }
    }
    0
}

const EBUSY: i32 = -16;

/// Whose an address space is: a child of vfork lives in its parent's.
///
/// # Safety
/// `memory` must be an `mm_struct`.
#[inline(always)]
unsafe fn owner_of(memory: Kernel) -> Kernel {
    // SAFETY: the caller's promise; the running task is one.
    unsafe {
        if fields::MM_OWNER.load() != fields::ABSENT {
            memory.follow(&fields::MM_OWNER)
        } else {
            Kernel::current_task()
        }
    }
}

/// Keeps the pages of a process, if that is its address space: while it execs there are two, at its end none. Tells whether
/// they are kept.
///
/// # Safety
/// `memory` must be an `mm_struct`, and `task` null or a task.
#[inline(always)]
unsafe fn keep(memory: Kernel, task: Kernel, pages: &Pages) -> bool {
    // Where its BTF says that a pointer may be null, the verifier wants to see that it is not.
    if task.0 == 0 {
        return false;
    }
    // SAFETY: the caller's promise; null reads as zeroes.
    unsafe {
        if task.follow(&fields::TASK_MM) != memory {
            return false;
        }
        let owner = Owner {
            cgroup: 0,
            start_ns: task.follow(&fields::TASK_GROUP_LEADER).read(&fields::TASK_START_BOOTTIME),
            tgid: task.read(&fields::TASK_TGID),
            reserved: 0,
        };
        match RESIDENT.get_ptr_mut(owner) {
            Some(kept) => {
                *kept = *pages;
                true
            }
            None => match RESIDENT.insert(owner, *pages, 0) {
                Ok(()) => true,
                // Another program is in the middle of the map on this CPU: the next change comes soon.
                Err(EBUSY) => false,
                Err(_) => {
                    lose(|health| &mut health.map_full);
                    false
                }
            },
        }
    }
}

/// All its counters.
///
/// # Safety
/// `memory` must be an `mm_struct`.
#[inline(always)]
unsafe fn all(memory: Kernel, space: u64) -> Pages {
    let mut pages = [0; KINDS];
    // SAFETY: the caller's promise.
    unsafe {
        pages[FILE] = file(memory);
        pages[ANON] = anon(memory);
        pages[SWAP] = swap(memory);
        pages[SHMEM] = shmem(memory);
    }
    Pages { space, pages }
}

/// One of its counters.
///
/// # Safety
/// `memory` must be an `mm_struct`, and `offset` that of a counter in it.
#[inline(always)]
unsafe fn count(memory: Kernel, offset: &Global<u32>) -> i64 {
    // SAFETY: the caller's promise; the helper checks the address.
    unsafe {
        if COUNTS_TYPED.load() != 0 {
            memory.read(offset)
        } else {
            bpf_probe_read_kernel((memory.0 + u64::from(offset.load())) as *const i64).unwrap_or_default()
        }
    }
}

#[inline(always)]
unsafe fn file(memory: Kernel) -> i64 {
    // SAFETY: the caller's address space.
    unsafe { count(memory, &fields::MM_FILE_PAGES) }
}

#[inline(always)]
unsafe fn anon(memory: Kernel) -> i64 {
    // SAFETY: the caller's address space.
    unsafe { count(memory, &fields::MM_ANON_PAGES) }
}

#[inline(always)]
unsafe fn swap(memory: Kernel) -> i64 {
    // SAFETY: the caller's address space.
    unsafe { count(memory, &fields::MM_SWAP_PAGES) }
}

#[inline(always)]
unsafe fn shmem(memory: Kernel) -> i64 {
    // SAFETY: the caller's address space.
    unsafe { count(memory, &fields::MM_SHMEM_PAGES) }
}
