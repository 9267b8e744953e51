//! Which kernel fields the programs read, and where the running kernel has them.
//!
//! One table: each row names a load-time constant of `monitor-ebpf/src/fields.rs` and the field it stands for.

use super::{
    btf::Types,
    support::{CgroupHierarchy, Facts, Presence},
};

/// Tells the programs that the running kernel has no such field.
pub const ABSENT: u32 = u32::MAX;

/// A load-time constant of the kernel programs.
pub type Constant = (&'static str, u32);

struct Field {
    constant: &'static str,
    structure: &'static str,
    path: &'static str,
    required: bool,
}

const fn field(constant: &'static str, structure: &'static str, path: &'static str) -> Field {
    Field { constant, structure, path, required: true }
}

const fn optional(constant: &'static str, structure: &'static str, path: &'static str) -> Field {
    Field { constant, structure, path, required: false }
}

const FIELDS: &[Field] = &[
    field("TASK_TGID", "task_struct", "tgid"),
    field("TASK_PID", "task_struct", "pid"),
    field("TASK_FLAGS", "task_struct", "flags"),
    field("TASK_COMM", "task_struct", "comm"),
    field("TASK_GROUP_LEADER", "task_struct", "group_leader"),
    field("TASK_REAL_PARENT", "task_struct", "real_parent"),
    field("TASK_START_BOOTTIME", "task_struct", "start_boottime"),
    field("TASK_CGROUPS", "task_struct", "cgroups"),
    field("TASK_SIGNAL", "task_struct", "signal"),
    field("TASK_EXIT_CODE", "task_struct", "exit_code"),
    field("TASK_MM", "task_struct", "mm"),
    field("TASK_STATUS", "task_struct", "thread_info.status"),
    field("SIGNAL_LIVE", "signal_struct", "live.counter"),
    field("SIGNAL_FLAGS", "signal_struct", "flags"),
    field("SIGNAL_GROUP_EXIT_CODE", "signal_struct", "group_exit_code"),
    field("MM_BRK", "mm_struct", "brk"),
    field("MM_START_BRK", "mm_struct", "start_brk"),
    field("MM_CTX_ID", "mm_struct", "context.ctx_id"),
    optional("MM_OWNER", "mm_struct", "owner"),
    field("MM_ARG_START", "mm_struct", "arg_start"),
    field("MM_ARG_END", "mm_struct", "arg_end"),
    field("CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp"),
    field("CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
    field("CGROUP_KN", "cgroup", "kn"),
    field("CGROUP_ROOT", "cgroup", "root"),
    field("CGROUP_ROOT_HIERARCHY_ID", "cgroup_root", "hierarchy_id"),
    field("KERNFS_NODE_ID", "kernfs_node", "id"),
    field("REQUEST_Q", "request", "q"),
    optional("REQUEST_RQ_DISK", "request", "rq_disk"),
    field("REQUEST_CMD_FLAGS", "request", "cmd_flags"),
    field("REQUEST_DATA_LEN", "request", "__data_len"),
    field("REQUEST_SECTOR", "request", "__sector"),
    field("REQUEST_START_TIME_NS", "request", "start_time_ns"),
    field("REQUEST_BIO", "request", "bio"),
    field("BIO_OPF", "bio", "bi_opf"),
    optional("QUEUE_DISK", "request_queue", "disk"),
    field("DISK_MAJOR", "gendisk", "major"),
    field("DISK_FIRST_MINOR", "gendisk", "first_minor"),
    optional("SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    optional("SOCK_NUM", "sock", "__sk_common.skc_num"),
    optional("SOCK_TYPE", "sock", "sk_type"),
    optional("SOCK_BPF_STORAGE", "sock", "sk_bpf_storage"),
    optional("UNIX_SOCK_ADDR", "unix_sock", "addr"),
    optional("UNIX_ADDRESS_REFCNT", "unix_address", "refcnt.refs.counter"),
];

/// Fields of the chain from a bio to the cgroup it is charged to: only where that cgroup is in the right hierarchy.
const BIO_CGROUP: &[Field] = &[
    optional("BIO_BLKG", "bio", "bi_blkg"),
    optional("BLKG_BLKCG", "blkcg_gq", "blkcg"),
    optional("BLKCG_CGROUP", "blkcg", "css.cgroup"),
];

/// How the kernel counts resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RssCounters {
    /// Offset of the first counter in `struct mm_struct`, of pages of files.
    first: u32,
    /// From one to the next, in the order of `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES`.
    step: u32,
    /// Whether each CPU has a part of them, since Linux 6.2; before, each thread has.
    pub by_cpu: bool,
}

impl RssCounters {
    /// Those of this kernel; none where they have neither form.
    pub fn find(types: &Types) -> Option<Self> {
        if let Some(first) = types.offset("mm_struct", "rss_stat.count") {
            return Some(Self { first, step: size_of::<i64>() as u32, by_cpu: false });
        }
        let first = types.offset("mm_struct", "rss_stat")? + types.offset("percpu_counter", "count")?;
        Some(Self { first, step: types.size("percpu_counter")?, by_cpu: true })
    }

    fn constants(self) -> impl Iterator<Item = Constant> {
        let names = ["MM_FILE_PAGES", "MM_ANON_PAGES", "MM_SWAP_PAGES", "MM_SHMEM_PAGES"];
        let counters = names.into_iter().zip(0..).map(move |(name, place)| (name, self.first + place * self.step));
        counters.chain([("COUNTS_TYPED", self.by_cpu.into())])
    }
}

/// A field that the programs cannot do without is not there.
#[derive(Debug, thiserror::Error)]
#[error("this kernel's type information has no field {structure}.{path}")]
pub struct MissingField {
    structure: &'static str,
    path: &'static str,
}

/// The load-time constants that hold for this kernel.
pub fn constants(types: &Types, facts: &Facts) -> Result<Vec<Constant>, MissingField> {
    let mut constants = Vec::with_capacity(FIELDS.len() + BIO_CGROUP.len() + 1);
    for field in FIELDS {
        constants.push((field.constant, find(types, field)?));
    }
    // Writeback is charged to a bio's cgroup on cgroup v2 only; on other hosts that cgroup is in a hierarchy of its own.
    if facts.io_on_v2 && matches!(facts.cgroup, CgroupHierarchy::V2 { .. }) {
        for field in BIO_CGROUP {
            constants.push((field.constant, find(types, field)?));
        }
        if constants.iter().rev().take(BIO_CGROUP.len()).any(|&(_, offset)| offset == ABSENT) {
            constants.retain(|(name, _)| *name != "BIO_BLKG");
        }
    }
    let bit = |name| types.enum_value("req_flag_bits", name).map(|bit| 1 << bit);
    let (Some(before), Some(after)) = (bit("__REQ_PREFLUSH"), bit("__REQ_FUA")) else {
        return Err(MissingField { structure: "req_flag_bits", path: "__REQ_PREFLUSH" });
    };
    constants.push(("DURABLE_FLAGS", before | after));
    let arguments = |tracepoint| types.tracepoint_arguments(tracepoint).map_or(0, |arguments| arguments.len());
    constants.extend([
        ("HIERARCHY_ID", facts.cgroup.id()),
        // Before Linux 6.1 nothing keeps a raw tracepoint's program from interrupting itself.
        ("GUARD", u32::from(facts.kernel_version < (6, 1))),
        ("EXIT_TELLS_LAST", u32::from(arguments("sched_process_exit") >= 2)),
        ("BIO_IS_SECOND", u32::from(arguments("block_bio_queue") >= 2)),
    ]);
    constants.extend(facts.rss.into_iter().flat_map(RssCounters::constants));
    // Where no helper tells the registers that a task entered the kernel with: they are at the top of its stack.
    if facts.registers_helper == Presence::No {
        constants.push(("TASK_STACK", find(types, &field("TASK_STACK", "task_struct", "stack"))?));
    }
    if let CgroupHierarchy::V1 { .. } = facts.cgroup {
        let memory = types.enum_value("cgroup_subsys_id", "memory_cgrp_id");
        let subsystems = types.offset("css_set", "subsys");
        let (Some(memory), Some(subsystems)) = (memory, subsystems) else {
            return Err(MissingField { structure: "css_set", path: "subsys[memory_cgrp_id]" });
        };
        constants.push(("CSS_SET_MEMORY", subsystems + memory * size_of::<u64>() as u32));
    }
    Ok(constants)
}

fn find(types: &Types, field: &Field) -> Result<u32, MissingField> {
    match types.offset(field.structure, field.path) {
        Some(offset) => Ok(offset),
        None if field.required => Err(MissingField { structure: field.structure, path: field.path }),
        None => Ok(ABSENT),
    }
}
