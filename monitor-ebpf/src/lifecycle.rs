//! Source `lifecycle`: fork, exec, exit and OOM kills of processes; cgroups made, renamed and removed, and processes moved
//! between them. Worst case some 10,000 events a second and machine.
//!
//! Nothing is counted; everything is sent, so that whatever lived for a millisecond still gets a name. Threads are left
//! out: a process begins with its first thread and ends with its last.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_probe_read_kernel_str, bpf_probe_read_user},
    },
    macros::map,
    maps::RingBuf,
};
use monitor_common::{
    lifecycle::{ARGUMENTS_BYTES, Cgroup, Exec, Exit, Fork, Moved, OomVictim, PATH_BYTES, UNKNOWN_PAGES, kind},
    limits,
    resident::{ANON, FILE, SHMEM, SWAP},
};
use monitor_ebpf::{
    fields::{self, Kernel},
    owner, ring, tracepoint,
};

/// All moments.
#[map]
static MOMENTS: RingBuf = RingBuf::with_byte_size(limits::LIFECYCLE_RING_BYTES, 0);
/// The cgroup hierarchy that processes are charged in: 0 is cgroup v2.
#[unsafe(no_mangle)]
static HIERARCHY_ID: Global<u32> = Global::new(0);
/// 1 where `sched_process_exit` says itself whether the process's last thread goes (Linux 6.16).
#[unsafe(no_mangle)]
static EXIT_TELLS_LAST: Global<u32> = Global::new(0);

/// `task_struct.flags` of a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `signal_struct.flags` of a process that ends as a whole.
const SIGNAL_GROUP_EXIT: u32 = 4;

tracepoint! {
    /// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`
    lifecycle_fork, lifecycle_fork_raw, "sched_process_fork", |ctx| fork(Kernel(ctx.arg(1)))
}
tracepoint! {
    /// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
    lifecycle_exec, lifecycle_exec_raw, "sched_process_exec", |ctx| exec(Kernel(ctx.arg(0)))
}
tracepoint! {
    /// `TP_PROTO(struct task_struct *p)`, since Linux 6.16 `(struct task_struct *p, bool group_dead)`
    lifecycle_exit, lifecycle_exit_raw, "sched_process_exit", |ctx| {
        let task = Kernel(ctx.arg(0));
        // The verifier knows how many arguments there are: the second is only looked at where it is.
        // SAFETY: a task.
        let last = if EXIT_TELLS_LAST.load() != 0 { ctx.arg::<u64>(1) & 1 != 0 } else { unsafe { owner::is_last(task) } };
        if last { exit(task) } else { 0 }
    }
}
tracepoint! {
    /// `TP_PROTO(struct task_struct *task, uid_t uid)`
    lifecycle_oom_victim, lifecycle_oom_victim_raw, "mark_victim", |ctx| oom_victim(Kernel(ctx.arg(0)))
}
tracepoint! {
    /// `TP_PROTO(struct cgroup *cgrp, const char *path)`
    lifecycle_cgroup_made, lifecycle_cgroup_made_raw, "cgroup_mkdir",
    |ctx| cgroup(Kernel(ctx.arg(0)), ctx.arg(1), kind::CGROUP_MADE)
}
tracepoint! {
    /// `TP_PROTO(struct cgroup *cgrp, const char *path)`
    lifecycle_cgroup_renamed, lifecycle_cgroup_renamed_raw, "cgroup_rename",
    |ctx| cgroup(Kernel(ctx.arg(0)), ctx.arg(1), kind::CGROUP_RENAMED)
}
tracepoint! {
    /// `TP_PROTO(struct cgroup *cgrp, const char *path)`
    lifecycle_cgroup_removed, lifecycle_cgroup_removed_raw, "cgroup_rmdir",
    |ctx| cgroup(Kernel(ctx.arg(0)), ctx.arg(1), kind::CGROUP_REMOVED)
}
tracepoint! {
    /// `TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`
    lifecycle_moved, lifecycle_moved_raw, "cgroup_attach_task", |ctx| moved(Kernel(ctx.arg(0)), Kernel(ctx.arg(2)))
}

#[inline(always)]
fn fork(child: Kernel) -> i32 {
    // SAFETY: tasks, and what their fields point to; the ring's reserved bytes.
    unsafe {
        if !owner::leads(child) {
            return 0;
        }
        let parent = child.follow(&fields::TASK_REAL_PARENT).follow(&fields::TASK_GROUP_LEADER);
        ring::send(&MOMENTS, |record: *mut Fork| {
            (*record).header = ring::header(kind::FORK);
            (*record).child = owner::of(child);
            (*record).parent_start_ns = parent.read(&fields::TASK_START_BOOTTIME);
            (*record).parent_tgid = parent.read(&fields::TASK_TGID);
            (*record).kernel_thread = u32::from(child.read::<u32>(&fields::TASK_FLAGS) & PF_KTHREAD != 0);
            owner::copy_command(child, &raw mut (*record).command);
        });
    }
    0
}

#[inline(always)]
fn exec(task: Kernel) -> i32 {
    // SAFETY: a task, and what its fields point to; the ring's reserved bytes.
    unsafe {
        let memory = task.follow(&fields::TASK_MM);
        let start: u64 = memory.read(&fields::MM_ARG_START);
        let bytes = memory.read::<u64>(&fields::MM_ARG_END).saturating_sub(start);
        ring::send(&MOMENTS, |record: *mut Exec| {
            (*record).header = ring::header(kind::EXEC);
            (*record).owner = owner::of(task);
            owner::copy_command(task, &raw mut (*record).command);
            let kept = if bytes < ARGUMENTS_BYTES as u64 { bytes as u32 } else { ARGUMENTS_BYTES as u32 };
            let arguments = (&raw mut (*record).arguments).cast::<c_void>();
            // The kernel has just written them, so they are in memory; a page that is not reads as a failure.
            let read = bpf_probe_read_user(arguments, kept, start as *const c_void);
            (*record).arguments_bytes = if read == 0 { bytes } else { 0 };
        });
    }
    0
}

#[inline(always)]
fn exit(task: Kernel) -> i32 {
    // SAFETY: a task, and what its fields point to; the ring's reserved bytes.
    unsafe {
        let signal = task.follow(&fields::TASK_SIGNAL);
        let leader = task.follow(&fields::TASK_GROUP_LEADER);
        let wait_status = if signal.read::<u32>(&fields::SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT != 0 {
            signal.read(&fields::SIGNAL_GROUP_EXIT_CODE)
        } else {
            leader.read(&fields::TASK_EXIT_CODE)
        };
        ring::send(&MOMENTS, |record: *mut Exit| {
            (*record).header = ring::header(kind::EXIT);
            (*record).owner = owner::of(task);
            (*record).wait_status = wait_status;
            (*record).reserved = 0;
            owner::copy_command(leader, &raw mut (*record).command);
        });
    }
    0
}

#[inline(always)]
fn oom_victim(task: Kernel) -> i32 {
    // SAFETY: a task, and its address space; the ring's reserved bytes.
    ring::send(&MOMENTS, |record: *mut OomVictim| unsafe {
        (*record).header = ring::header(kind::OOM_VICTIM);
        (*record).owner = owner::of(task);
        owner::copy_command(task, &raw mut (*record).command);
        let memory = task.follow(&fields::TASK_MM);
        (*record).pages[FILE] = pages(memory, &fields::MM_FILE_PAGES);
        (*record).pages[ANON] = pages(memory, &fields::MM_ANON_PAGES);
        (*record).pages[SWAP] = pages(memory, &fields::MM_SWAP_PAGES);
        (*record).pages[SHMEM] = pages(memory, &fields::MM_SHMEM_PAGES);
    });
    0
}

/// One of the counters of an address space, which the kernel's own line of the kill is made of. By the helper: the verifier cannot
/// follow an array of `atomic_long_t`, as there was before Linux 6.2.
///
/// # Safety
/// `memory` must be an `mm_struct`, and `offset` that of a counter in it.
#[inline(always)]
unsafe fn pages(memory: Kernel, offset: &Global<u32>) -> i64 {
    if offset.load() == fields::ABSENT {
        return UNKNOWN_PAGES;
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel((memory.0 + u64::from(offset.load())) as *const i64) } {
        // Kept in parts, so that they can seem to be a few less than none.
        Ok(pages) => pages.max(0),
        Err(_) => UNKNOWN_PAGES,
    }
}

#[inline(always)]
fn moved(to: Kernel, task: Kernel) -> i32 {
    // SAFETY: a cgroup, a task; the ring's reserved bytes.
    unsafe {
        if !ours(to) || !owner::leads(task) {
            return 0;
        }
        ring::send(&MOMENTS, |record: *mut Moved| {
            (*record).header = ring::header(kind::MOVED);
            (*record).owner = owner::of(task);
        });
    }
    0
}

#[inline(always)]
fn cgroup(cgroup: Kernel, path: u64, kind: u32) -> i32 {
    // SAFETY: a cgroup, a string; the ring's reserved bytes.
    unsafe {
        if !ours(cgroup) {
            return 0;
        }
        ring::send(&MOMENTS, |record: *mut Cgroup| {
            (*record).header = ring::header(kind);
            (*record).id = owner::cgroup_id(cgroup);
            let to = (&raw mut (*record).path).cast::<c_void>();
            let read = bpf_probe_read_kernel_str(to, PATH_BYTES as u32, path as *const c_void);
            (*record).path_bytes = if read > 0 { read as u64 } else { 0 };
        });
    }
    0
}

/// Whether a cgroup is in the hierarchy that processes are charged in: on hybrid hosts there are several.
#[inline(always)]
unsafe fn ours(cgroup: Kernel) -> bool {
    // SAFETY: the caller's cgroup.
    unsafe { cgroup.follow(&fields::CGROUP_ROOT).read::<u32>(&fields::CGROUP_ROOT_HIERARCHY_ID) == HIERARCHY_ID.load() }
}
