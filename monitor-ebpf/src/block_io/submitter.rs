//! Whom to charge: the running task, or for what a kernel thread writes back the cgroup that dirtied the pages.

use crate::{MOVES, THREADS};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use monitor_common::{
    Owner,
    block_io::{Series, THREADS_BITS, Thread, operation},
};
use monitor_ebpf::{
    fields::{self, Kernel},
    owner,
};

/// Tasks are some kilobytes apart.
const THREAD_SHIFT: u32 = 12;
/// `task_struct.flags` of a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What is known of the running thread.
#[inline(always)]
pub(crate) unsafe fn thread(task: Kernel) -> Option<*mut Thread> {
    // SAFETY: the caller's task; this CPU's entry, which only this program writes, and the kernel keeps it from nesting.
    unsafe {
        let hash = fields::lower_half(task.0) >> THREAD_SHIFT & ((1 << THREADS_BITS) - 1);
        let thread = THREADS.get_ptr_mut(bpf_get_smp_processor_id() << THREADS_BITS | hash)?;
        let started = task.read::<u64>(&fields::TASK_START_BOOTTIME) as u32;
        let moves = MOVES.get_ptr(0).map_or(0, |moves| moves.read_volatile() as u32);
        if (*thread).address != task.0 || (*thread).started != started || (*thread).moves != moves {
            *thread = Thread {
                address: task.0,
                started,
                moves,
                owner: owner::of(task),
                device: 0,
                series: [Series::NONE; operation::COUNT],
            };
        }
        Some(thread)
    }
}

/// Who submits a request: the running task.
#[inline(always)]
pub(crate) unsafe fn submitter(request: Kernel) -> Owner {
    // SAFETY: the caller's request.
    unsafe { charged(request.follow(&fields::REQUEST_BIO)) }
}

/// The running task, which submits a bio. What a kernel thread writes back is charged to the cgroup that dirtied the pages,
/// where the kernel keeps track of that (cgroup v2).
#[inline(always)]
pub(crate) unsafe fn charged(bio: Kernel) -> Owner {
    // SAFETY: the running task, the caller's bio, and what their fields point to.
    unsafe {
        let task = Kernel::current_task();
        let mut owner = owner::of(task);
        if fields::BIO_BLKG.load() != fields::ABSENT && is_kernel_thread(task) {
            let group = bio.follow(&fields::BIO_BLKG).follow(&fields::BLKG_BLKCG);
            let cgroup = owner::cgroup_id(group.follow(&fields::BLKCG_CGROUP));
            if cgroup != 0 {
                owner.cgroup = cgroup;
            }
        }
        owner
    }
}

#[inline(always)]
pub(crate) unsafe fn is_kernel_thread(task: Kernel) -> bool {
    // SAFETY: the caller's task.
    unsafe { task.read::<u32>(&fields::TASK_FLAGS) & PF_KTHREAD != 0 }
}
