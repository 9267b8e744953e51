//! Source `lifecycle`: fork, exec, exit and OOM kills of processes; cgroups made, renamed and removed, and processes moved
//! between them. Worst case some 10,000 events a second and machine.
//!
//! Nothing is counted; everything is sent, so that whatever lived for a millisecond still gets a name. Threads are left
//! out: a process begins with its first thread and ends with its last.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user},
    macros::{btf_tracepoint, map},
    maps::RingBuf,
    programs::BtfTracePointContext,
};
use monitor_common::{
    lifecycle::{ARGUMENTS_BYTES, Cgroup, Exec, Exit, Fork, Moved, OomVictim, PATH_BYTES, kind},
    limits,
};
use monitor_ebpf::{
    fields::{self, Kernel},
    owner, ring,
};

/// All moments.
#[map]
static MOMENTS: RingBuf = RingBuf::with_byte_size(limits::LIFECYCLE_RING_BYTES, 0);
/// The cgroup hierarchy that processes are charged in: 0 is cgroup v2.
#[unsafe(no_mangle)]
static HIERARCHY_ID: Global<u32> = Global::new(0);
/// 1 where `sched_process_exit` says itself whether the process's last thread goes (Linux 6.16).
#[unsafe(no_mangle)]
static EXIT_TELLS_LAST: Global<u8> = Global::new(0);

/// `task_struct.flags` of a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `signal_struct.flags` of a process that ends as a whole.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`
#[btf_tracepoint(function = "sched_process_fork")]
pub fn lifecycle_fork(ctx: BtfTracePointContext) -> i32 {
    let child = Kernel(ctx.arg(1));
    // SAFETY: tasks, and what their fields point to; the ring's reserved bytes.
    unsafe {
        if !leads(child) {
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

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
pub fn lifecycle_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(0));
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

/// `TP_PROTO(struct task_struct *p)`, since Linux 6.16 `(struct task_struct *p, bool group_dead)`
#[btf_tracepoint(function = "sched_process_exit")]
pub fn lifecycle_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(0));
    // SAFETY: a task, and what its fields point to; the ring's reserved bytes.
    unsafe {
        let signal = task.follow(&fields::TASK_SIGNAL);
        let last = if EXIT_TELLS_LAST.load() != 0 {
            ctx.arg::<u64>(1) & 1 != 0
        } else {
            signal.read::<u32>(&fields::SIGNAL_LIVE) == 0
        };
        if !last {
            return 0;
        }
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

/// `TP_PROTO(struct task_struct *task, uid_t uid)`
#[btf_tracepoint(function = "mark_victim")]
pub fn lifecycle_oom_victim(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(0));
    // SAFETY: a task; the ring's reserved bytes.
    ring::send(&MOMENTS, |record: *mut OomVictim| unsafe {
        (*record).header = ring::header(kind::OOM_VICTIM);
        (*record).owner = owner::of(task);
        owner::copy_command(task, &raw mut (*record).command);
    });
    0
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn lifecycle_cgroup_made(ctx: BtfTracePointContext) -> i32 {
    cgroup(&ctx, kind::CGROUP_MADE)
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_rename")]
pub fn lifecycle_cgroup_renamed(ctx: BtfTracePointContext) -> i32 {
    cgroup(&ctx, kind::CGROUP_RENAMED)
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn lifecycle_cgroup_removed(ctx: BtfTracePointContext) -> i32 {
    cgroup(&ctx, kind::CGROUP_REMOVED)
}

/// `TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn lifecycle_moved(ctx: BtfTracePointContext) -> i32 {
    let task = Kernel(ctx.arg(2));
    // SAFETY: a cgroup, a task; the ring's reserved bytes.
    unsafe {
        if !ours(Kernel(ctx.arg(0))) || !leads(task) {
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
fn cgroup(ctx: &BtfTracePointContext, kind: u32) -> i32 {
    let (cgroup, path) = (Kernel(ctx.arg(0)), ctx.arg::<u64>(1));
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

/// Whether a task is the first of its process.
#[inline(always)]
unsafe fn leads(task: Kernel) -> bool {
    // SAFETY: the caller's task.
    unsafe { task.read::<u32>(&fields::TASK_PID) == task.read::<u32>(&fields::TASK_TGID) }
}
