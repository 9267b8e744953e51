//! Offsets of kernel fields, set at load time from the running kernel's BTF, and how a field is read.
//!
//! Each static is named after its structure and field; `monitor/src/kernel/layout.rs` fills them by these names.

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_task, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
};

/// Offsets in `struct pt_regs`, which is ABI on x86-64 (arch/x86/include/uapi/asm/ptrace.h).
pub mod registers {
    use aya_ebpf::Global;
    /// Fourth argument of a system call.
    pub static R10: Global<u32> = Global::new(56);
    /// Third argument.
    pub static DX: Global<u32> = Global::new(96);
    /// Second argument.
    pub static SI: Global<u32> = Global::new(104);
    /// First argument.
    pub static DI: Global<u32> = Global::new(112);
    /// Number of the system call.
    pub static ORIG_AX: Global<u32> = Global::new(120);
}

/// The offset of a field that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(ABSENT);)*
    };
}

offsets! {
    /// `task_struct.tgid`
    TASK_TGID;
    /// `task_struct.pid`
    TASK_PID;
    /// `task_struct.flags`
    TASK_FLAGS;
    /// `task_struct.comm`
    TASK_COMM;
    /// `task_struct.group_leader`
    TASK_GROUP_LEADER;
    /// `task_struct.real_parent`
    TASK_REAL_PARENT;
    /// `task_struct.start_boottime`
    TASK_START_BOOTTIME;
    /// `task_struct.cgroups`
    TASK_CGROUPS;
    /// `task_struct.signal`
    TASK_SIGNAL;
    /// `task_struct.exit_code`
    TASK_EXIT_CODE;
    /// `task_struct.mm`
    TASK_MM;
    /// `task_struct.thread_info.status`
    TASK_STATUS;
    /// `task_struct.stack`; absent where a helper tells a task's registers.
    TASK_STACK;
    /// `signal_struct.live.counter`
    SIGNAL_LIVE;
    /// `signal_struct.flags`
    SIGNAL_FLAGS;
    /// `signal_struct.group_exit_code`
    SIGNAL_GROUP_EXIT_CODE;
    /// `mm_struct.brk`
    MM_BRK;
    /// `mm_struct.start_brk`
    MM_START_BRK;
    /// `mm_struct.context.ctx_id`
    MM_CTX_ID;
    /// `mm_struct.owner`; absent without the memory controller.
    MM_OWNER;
    /// `mm_struct.arg_start`
    MM_ARG_START;
    /// `mm_struct.arg_end`
    MM_ARG_END;
    /// Count of `mm_struct.rss_stat` for pages of files
    MM_FILE_PAGES;
    /// As before, anonymous pages
    MM_ANON_PAGES;
    /// As before, pages swapped out
    MM_SWAP_PAGES;
    /// As before, pages of shared memory
    MM_SHMEM_PAGES;
    /// `css_set.dfl_cgrp`
    CSS_SET_DFL_CGRP;
    /// `css_set.subsys[memory_cgrp_id]`; absent unless the memory controller is in a cgroup v1 hierarchy.
    CSS_SET_MEMORY;
    /// `cgroup_subsys_state.cgroup`
    CSS_CGROUP;
    /// `cgroup.kn`
    CGROUP_KN;
    /// `cgroup.root`
    CGROUP_ROOT;
    /// `cgroup_root.hierarchy_id`
    CGROUP_ROOT_HIERARCHY_ID;
    /// `kernfs_node.id`
    KERNFS_NODE_ID;
    /// `request.q`
    REQUEST_Q;
    /// `request.rq_disk`; before Linux 5.17
    REQUEST_RQ_DISK;
    /// `request.cmd_flags`
    REQUEST_CMD_FLAGS;
    /// `request.__data_len`
    REQUEST_DATA_LEN;
    /// `request.__sector`
    REQUEST_SECTOR;
    /// `request.start_time_ns`
    REQUEST_START_TIME_NS;
    /// `request.bio`
    REQUEST_BIO;
    /// `request_queue.disk`; since Linux 5.15
    QUEUE_DISK;
    /// `gendisk.major`
    DISK_MAJOR;
    /// `gendisk.first_minor`
    DISK_FIRST_MINOR;
    /// `bio.bi_opf`
    BIO_OPF;
    /// `bio.bi_blkg`; absent unless the I/O controller is in the cgroup v2 hierarchy.
    BIO_BLKG;
    /// `blkcg_gq.blkcg`
    BLKG_BLKCG;
    /// `blkcg.css.cgroup`
    BLKCG_CGROUP;
    /// `sock.__sk_common.skc_family`
    SOCK_FAMILY;
    /// `sock.__sk_common.skc_num`
    SOCK_NUM;
    /// `sock.sk_type`
    SOCK_TYPE;
    /// `sock.sk_bpf_storage`
    SOCK_BPF_STORAGE;
    /// `unix_sock.addr`; absent where Unix sockets are in a module.
    UNIX_SOCK_ADDR;
    /// `unix_address.refcnt.refs.counter`
    UNIX_ADDRESS_REFCNT;
}

/// 1 where the verifier knows the kernel's types, so that fields are read by plain loads; 0 where every field takes a
/// call of a helper (raw tracepoints, kernels before 5.11).
#[unsafe(no_mangle)]
pub static DIRECT: Global<u8> = Global::new(0);

/// Address of a kernel structure. Null is allowed: its fields read as zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernel(pub u64);

/// A value that was just read from a program's context. It keeps two branches that read different places there apart: the
/// compiler would join them to one read from a place that was computed, which the verifier does not allow.
#[inline(always)]
pub fn apart(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{value} = {value}", value = inout(reg) value) };
    value
}

/// The lower half of an address. The verifier refuses to calculate with an address, but not with a half of it.
#[inline(always)]
pub fn lower_half(address: u64) -> u32 {
    let lower: u64;
    // SAFETY: moves a register's lower half.
    unsafe { core::arch::asm!("w0 = w1", in("r1") address, lateout("r0") lower, options(pure, nomem, nostack)) };
    lower as u32
}

/// Bytes of a task's stack in the kernel (arch/x86/include/asm/page_64_types.h), and of the registers at its top.
const STACK_BYTES: u64 = 16 << 10;
const REGISTERS_BYTES: u64 = 168;

impl Kernel {
    /// The registers that the running task entered the kernel with: a `struct pt_regs`.
    #[inline(always)]
    pub fn entry_registers() -> Self {
        let task = Self::current_task();
        if TASK_STACK.load() != ABSENT {
            // SAFETY: the running task is one, and its stack is as deep as the kernel makes them all.
            Self(unsafe { task.read::<u64>(&TASK_STACK) } + (STACK_BYTES - REGISTERS_BYTES))
        } else {
            // SAFETY: the running task is one.
            Self(unsafe { bpf_task_pt_regs(task.0 as *mut _) } as u64)
        }
    }

    /// The running task.
    #[inline(always)]
    pub fn current_task() -> Self {
        if DIRECT.load() != 0 {
            // SAFETY: the helper has no preconditions.
            Self(unsafe { bpf_get_current_task_btf() } as u64)
        } else {
            // SAFETY: as above.
            Self(unsafe { bpf_get_current_task() })
        }
    }

    /// The running task, for programs that are only loaded where `DIRECT` holds: on the hottest paths even asking counts.
    #[inline(always)]
    pub fn typed_current_task() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task_btf() } as u64)
    }

    /// As [`Kernel::read`], for programs that are only loaded where `DIRECT` holds.
    ///
    /// # Safety
    /// As [`Kernel::read`].
    #[inline(always)]
    pub unsafe fn typed_read<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: the verifier turns it into a load that reads zero where the address is bad.
        unsafe { ((self.0 + u64::from(offset.load())) as *const T).read_volatile() }
    }

    /// A plain field.
    ///
    /// # Safety
    /// `self` must point to the structure that `offset` was taken from (the verifier or the helper catches a wrong
    /// address, not a wrong structure).
    #[inline(always)]
    pub unsafe fn read<T: Copy + Default>(self, offset: &Global<u32>) -> T {
        let address = (self.0 + u64::from(offset.load())) as *const T;
        if DIRECT.load() != 0 {
            // Volatile, so that the load stays as wide as the field: the verifier checks it against the kernel's types.
            // SAFETY: the verifier turns it into a load that reads zero where the address is bad.
            unsafe { address.read_volatile() }
        } else {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_kernel(address) }.unwrap_or_default()
        }
    }

    /// A field that points to another structure.
    ///
    /// # Safety
    /// As [`Kernel::read`].
    #[inline(always)]
    pub unsafe fn follow(self, offset: &Global<u32>) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { self.read(offset) })
    }
}
