//! Whom to charge: a task's process and cgroup.

use crate::fields::{self, Kernel};
use aya_ebpf::{cty::c_void, helpers::generated::bpf_probe_read_kernel};
use monitor_common::{Owner, record::Command};

/// The process and cgroup of a task.
///
/// # Safety
/// `task` must be a `task_struct`.
#[inline(always)]
pub unsafe fn of(task: Kernel) -> Owner {
    // SAFETY: a task and what its fields point to.
    unsafe {
        Owner {
            cgroup: cgroup_id(cgroup(task)),
            start_ns: task.follow(&fields::TASK_GROUP_LEADER).read(&fields::TASK_START_BOOTTIME),
            tgid: task.read(&fields::TASK_TGID),
            reserved: 0,
        }
    }
}

/// The process and cgroup of the running task.
#[inline(always)]
pub fn current() -> Owner {
    // SAFETY: the running task is one.
    unsafe { of(Kernel::current_task()) }
}

/// kernfs id of a cgroup.
///
/// # Safety
/// `cgroup` must be a `struct cgroup`.
#[inline(always)]
pub unsafe fn cgroup_id(cgroup: Kernel) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { cgroup.follow(&fields::CGROUP_KN).read(&fields::KERNFS_NODE_ID) }
}

/// A task's cgroup: in the memory controller's hierarchy where that is cgroup v1, else in cgroup v2. The ids that the
/// kernel's own helper gives are cgroup v2's on every host.
#[inline(always)]
unsafe fn cgroup(task: Kernel) -> Kernel {
    // SAFETY: the caller's task, and what its fields point to.
    unsafe {
        let set = task.follow(&fields::TASK_CGROUPS);
        if fields::CSS_SET_MEMORY.load() != fields::ABSENT {
            set.follow(&fields::CSS_SET_MEMORY).follow(&fields::CSS_CGROUP)
        } else {
            set.follow(&fields::CSS_SET_DFL_CGRP)
        }
    }
}

/// Copies a task's name into a record.
///
/// # Safety
/// `task` must be a `task_struct`, `to` must be writable.
#[inline(always)]
pub unsafe fn copy_command(task: Kernel, to: *mut Command) {
    let from = (task.0 + u64::from(fields::TASK_COMM.load())) as *const c_void;
    // SAFETY: the helper checks `from`; `to` holds as many bytes as are asked for. On failure it is filled with zeroes.
    unsafe { bpf_probe_read_kernel(to.cast(), size_of::<Command>() as u32, from) };
}

/// Whether a task is the first of its process.
///
/// # Safety
/// `task` must be a `task_struct`.
#[inline(always)]
pub unsafe fn leads(task: Kernel) -> bool {
    // SAFETY: the caller's task.
    unsafe { task.read::<u32>(&fields::TASK_PID) == task.read::<u32>(&fields::TASK_TGID) }
}

/// Whether no thread of a task's process is left.
///
/// # Safety
/// `task` must be a `task_struct`.
#[inline(always)]
pub unsafe fn is_last(task: Kernel) -> bool {
    // SAFETY: a task, and what its fields point to.
    unsafe { task.follow(&fields::TASK_SIGNAL).read::<u32>(&fields::SIGNAL_LIVE) == 0 }
}
