//! The ladder of every source: which rungs there are, best first, and which of them this kernel can be asked for. Pure.

use super::support::{Facts, Presence};
use crate::{coverage::Refusal, source::Source};
use monitor_common::page_fault::SOFTWARE_PERIOD;
use serde::Serialize;
use std::fmt;

/// A place in the kernel where a program can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// A tracepoint whose arguments the verifier knows by type.
    TpBtf(&'static str),
    /// A tracepoint with plain numbers for arguments.
    RawTracepoint(&'static str),
    /// The end of a kernel function.
    FExit(&'static str),
    /// A system call's tracepoint in the tracing file system.
    SyscallTracepoint(&'static str),
    /// An iterator over what the kernel has of a kind: the program runs once for each when it is attached, and no more.
    Iterator(&'static str),
    /// The perf event of page faults, on every CPU.
    PageFaults {
        /// It comes once in so many faults.
        period: u64,
    },
}

impl Hook {
    /// Name of its tracepoint or function.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::TpBtf(name) | Self::RawTracepoint(name) | Self::FExit(name) | Self::SyscallTracepoint(name) => {
                Some(name)
            }
            Self::Iterator(_) | Self::PageFaults { .. } => None,
        }
    }
}

/// How programs read kernel fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By a call for each: the verifier knows no types.
    Helper,
    /// By plain loads, or by calls where the kernel has no typed running task or registers (before 5.11 and 5.15).
    LoadOrHelper,
    /// By plain loads only.
    Load,
}

/// A program and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    /// The program's name in its object.
    pub program: &'static str,
    /// Where it goes.
    pub hook: Hook,
    /// Whether the rung is no good without it.
    pub required: bool,
}

/// One way to attach a source.
#[derive(Clone, Copy, Debug)]
pub struct Rung {
    /// Its name, in configuration and coverage.
    pub name: &'static str,
    /// Its programs.
    pub attachments: &'static [Attachment],
    /// How they read kernel fields.
    pub access: Access,
    /// Numbers of its source that it cannot tell, by how their names begin.
    pub cannot_tell: &'static [&'static str],
    /// What else its numbers leave out, for people.
    pub caveats: &'static [&'static str],
}

impl Rung {
    /// A rung that tells everything.
    const fn new(name: &'static str, access: Access, attachments: &'static [Attachment]) -> Self {
        Self { name, attachments, access, cannot_tell: &[], caveats: &[] }
    }

    /// Whether its programs read kernel fields by plain loads on this kernel.
    pub fn is_direct(&self, facts: &Facts) -> bool {
        match self.access {
            Access::Helper => false,
            Access::LoadOrHelper => facts.has_typed_helpers(),
            Access::Load => true,
        }
    }
}

const fn required(program: &'static str, hook: Hook) -> Attachment {
    Attachment { program, hook, required: true }
}

const fn optional(program: &'static str, hook: Hook) -> Attachment {
    Attachment { program, hook, required: false }
}

/// The rungs of a source, best first.
pub const fn ladder(source: Source) -> &'static [Rung] {
    match source {
        Source::PageFault => PAGE_FAULT,
        Source::AddressSpace => ADDRESS_SPACE,
        Source::BlockIo => BLOCK_IO,
        Source::Lifecycle => LIFECYCLE,
        Source::Requests => REQUESTS,
        Source::Resident => RESIDENT,
    }
}

const PAGE_FAULT: &[Rung] = &[
    Rung::new(
        "tp_btf",
        Access::Load,
        &[
            required("page_fault_user", Hook::TpBtf("page_fault_user")),
            required("page_fault_kernel", Hook::TpBtf("page_fault_kernel")),
            required("page_fault_moved", Hook::TpBtf("cgroup_attach_task")),
        ],
    ),
    Rung::new(
        "raw_tracepoint",
        Access::Helper,
        &[
            required("page_fault_user_raw", Hook::RawTracepoint("page_fault_user")),
            required("page_fault_kernel_raw", Hook::RawTracepoint("page_fault_kernel")),
            required("page_fault_moved_raw", Hook::RawTracepoint("cgroup_attach_task")),
        ],
    ),
    Rung {
        cannot_tell: &["user_read", "user_write", "user_fetch", "kernel_read", "kernel_write"],
        caveats: &[
            "counted by sixteens: a process's faults are estimates",
            "faults are missed while a task that reads a BPF map is preempted on their processor",
            "faults on a processor that comes on line later are not counted",
        ],
        ..Rung::new(
            "software_event",
            Access::Helper,
            &[
                required("page_fault_software", Hook::PageFaults { period: SOFTWARE_PERIOD }),
                required("page_fault_moved_raw", Hook::RawTracepoint("cgroup_attach_task")),
            ],
        )
    },
];

/// The kernel lets an event's program run 100,000 times a second by default; so no storm goes beyond that.
const _: () = assert!(SOFTWARE_PERIOD * 100_000 > 1_000_000);

/// Some calls are made in a way that no rung looks at.
const ONLY_64_BIT: &[&str] = &["calls of 32-bit programs are not counted"];

// In this order: between the iterator and the calls' own programs no heap is made or moved unseen, so that no end is ever
// guessed.
const ADDRESS_SPACE_FORK: Attachment = required("address_space_fork", Hook::TpBtf("sched_process_fork"));
const ADDRESS_SPACE_END: Attachment = required("address_space_end", Hook::TpBtf("sched_process_exit"));
const ADDRESS_SPACE_HEAPS: Attachment = required("address_space_heaps", Hook::Iterator("task"));

const ADDRESS_SPACE: &[Rung] = &[
    Rung {
        caveats: ONLY_64_BIT,
        ..Rung::new(
            "fexit",
            Access::LoadOrHelper,
            &[
                ADDRESS_SPACE_FORK,
                ADDRESS_SPACE_END,
                ADDRESS_SPACE_HEAPS,
                required("address_space_mmap", Hook::FExit("__x64_sys_mmap")),
                required("address_space_munmap", Hook::FExit("__x64_sys_munmap")),
                required("address_space_mremap", Hook::FExit("__x64_sys_mremap")),
                required("address_space_brk", Hook::FExit("__x64_sys_brk")),
            ],
        )
    },
    Rung {
        caveats: ONLY_64_BIT,
        ..Rung::new(
            "syscall_tracepoints",
            Access::LoadOrHelper,
            &[
                ADDRESS_SPACE_FORK,
                ADDRESS_SPACE_END,
                ADDRESS_SPACE_HEAPS,
                required("address_space_mmap_tp", Hook::SyscallTracepoint("sys_exit_mmap")),
                required("address_space_munmap_tp", Hook::SyscallTracepoint("sys_exit_munmap")),
                required("address_space_mremap_tp", Hook::SyscallTracepoint("sys_exit_mremap")),
                required("address_space_brk_tp", Hook::SyscallTracepoint("sys_exit_brk")),
            ],
        )
    },
    Rung {
        caveats: ONLY_64_BIT,
        ..Rung::new(
            "raw_syscalls",
            Access::LoadOrHelper,
            &[
                ADDRESS_SPACE_FORK,
                ADDRESS_SPACE_END,
                ADDRESS_SPACE_HEAPS,
                required("address_space_exit", Hook::TpBtf("sys_exit")),
            ],
        )
    },
];

const BLOCK_IO: &[Rung] = &[
    Rung::new(
        "block_io_start",
        Access::LoadOrHelper,
        &[
            required("block_io_moved", Hook::TpBtf("cgroup_attach_task")),
            required("block_io_submit", Hook::TpBtf("block_io_start")),
            required("block_io_issue", Hook::TpBtf("block_rq_issue")),
            optional("block_io_merge", Hook::TpBtf("block_rq_merge")),
            required("block_io_complete", Hook::TpBtf("block_rq_complete")),
        ],
    ),
    Rung::new(
        "block_rq_insert",
        Access::LoadOrHelper,
        &[
            required("block_io_bio", Hook::TpBtf("block_bio_queue")),
            optional("block_io_split", Hook::TpBtf("block_split")),
            required("block_io_bio_done", Hook::TpBtf("block_bio_complete")),
            required("block_io_insert", Hook::TpBtf("block_rq_insert")),
            required("block_io_first_issue", Hook::TpBtf("block_rq_issue")),
            optional("block_io_merge", Hook::TpBtf("block_rq_merge")),
            required("block_io_complete", Hook::TpBtf("block_rq_complete")),
        ],
    ),
    Rung::new(
        "raw_tracepoint",
        Access::Helper,
        &[
            required("block_io_bio_raw", Hook::RawTracepoint("block_bio_queue")),
            optional("block_io_split_raw", Hook::RawTracepoint("block_split")),
            required("block_io_bio_done_raw", Hook::RawTracepoint("block_bio_complete")),
            required("block_io_insert_raw", Hook::RawTracepoint("block_rq_insert")),
            required("block_io_first_issue_raw", Hook::RawTracepoint("block_rq_issue")),
            optional("block_io_merge_raw", Hook::RawTracepoint("block_rq_merge")),
            required("block_io_complete_raw", Hook::RawTracepoint("block_rq_complete")),
        ],
    ),
];

const LIFECYCLE: &[Rung] = &[
    Rung::new(
        "tp_btf",
        Access::LoadOrHelper,
        &[
            required("lifecycle_fork", Hook::TpBtf("sched_process_fork")),
            required("lifecycle_exec", Hook::TpBtf("sched_process_exec")),
            required("lifecycle_exit", Hook::TpBtf("sched_process_exit")),
            optional("lifecycle_oom_victim", Hook::TpBtf("mark_victim")),
            optional("lifecycle_cgroup_made", Hook::TpBtf("cgroup_mkdir")),
            optional("lifecycle_cgroup_renamed", Hook::TpBtf("cgroup_rename")),
            optional("lifecycle_cgroup_removed", Hook::TpBtf("cgroup_rmdir")),
            optional("lifecycle_moved", Hook::TpBtf("cgroup_attach_task")),
        ],
    ),
    Rung::new(
        "raw_tracepoint",
        Access::Helper,
        &[
            required("lifecycle_fork_raw", Hook::RawTracepoint("sched_process_fork")),
            required("lifecycle_exec_raw", Hook::RawTracepoint("sched_process_exec")),
            required("lifecycle_exit_raw", Hook::RawTracepoint("sched_process_exit")),
            optional("lifecycle_oom_victim_raw", Hook::RawTracepoint("mark_victim")),
            optional("lifecycle_cgroup_made_raw", Hook::RawTracepoint("cgroup_mkdir")),
            optional("lifecycle_cgroup_renamed_raw", Hook::RawTracepoint("cgroup_rename")),
            optional("lifecycle_cgroup_removed_raw", Hook::RawTracepoint("cgroup_rmdir")),
            optional("lifecycle_moved_raw", Hook::RawTracepoint("cgroup_attach_task")),
        ],
    ),
];

const REQUESTS: &[Rung] = &[Rung {
    caveats: &[
        "requests that come together, as with pipelining and HTTP/2, count as one",
        "TCP connections that are older than the agent are not counted",
    ],
    ..Rung::new(
        "tp_btf",
        Access::Load,
        &[
            required("requests_state", Hook::TpBtf("inet_sock_set_state")),
            required("requests_received", Hook::TpBtf("sock_recv_length")),
            required("requests_sent", Hook::TpBtf("sock_send_length")),
        ],
    )
}];

const RESIDENT: &[Rung] = &[Rung::new(
    "tp_btf",
    Access::LoadOrHelper,
    &[
        required("resident_changed", Hook::TpBtf("rss_stat")),
        required("resident_exec", Hook::TpBtf("sched_process_exec")),
        // Those that were there before, and do not change.
        required("resident_tasks", Hook::Iterator("task")),
    ],
)];

/// What to try for one source, and what not to.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which.
    pub source: Source,
    /// Rungs to try, in this order, until one attaches.
    pub candidates: Vec<&'static Rung>,
    /// Rungs not to try, and why.
    pub refused: Vec<Refusal>,
    /// Whether the configuration switched the source off.
    pub disabled: bool,
    /// Whether nothing is to be tried because the kernel is older than any that has the source.
    pub too_old: bool,
}

/// What the configuration says of a source.
#[derive(Clone, Debug, Default)]
pub struct Wish<'a> {
    /// Switched off.
    pub disabled: bool,
    /// Only this rung.
    pub rung: Option<&'a str>,
}

/// Turns facts and wish into a plan.
pub fn plan(source: Source, facts: &Facts, wish: &Wish<'_>) -> Plan {
    let mut plan =
        Plan { source, candidates: Vec::new(), refused: Vec::new(), disabled: wish.disabled, too_old: false };
    if wish.disabled {
        return plan;
    }
    let (since, this) = (source.since(), facts.kernel_version);
    for rung in ladder(source) {
        match refusal(rung, facts, wish) {
            Some(reason) if this < since => {
                let reason = format!(
                    "{reason}; {source} takes Linux {}.{}, and this is {}",
                    since.0, since.1, facts.kernel_release
                );
                plan.refused.push(Refusal { rung: rung.name, reason });
            }
            Some(reason) => plan.refused.push(Refusal { rung: rung.name, reason }),
            None => plan.candidates.push(rung),
        }
    }
    plan.too_old = plan.candidates.is_empty() && this < since;
    plan
}

/// Why a rung is not worth a try. What could not be told is worth one.
fn refusal(rung: &Rung, facts: &Facts, wish: &Wish<'_>) -> Option<String> {
    if wish.rung.is_some_and(|wanted| wanted != rung.name) {
        return Some("the configuration asks for another rung".into());
    }
    if let Some(reason) = &facts.fields_missing {
        return Some(reason.clone());
    }
    if rung.access == Access::Load && facts.task_helper == Presence::No {
        return Some("this kernel has no bpf_get_current_task_btf (Linux 5.11)".into());
    }
    let reads_entry = |hook| matches!(hook, Hook::FExit(_) | Hook::SyscallTracepoint(_));
    if facts.entry_registers == Presence::No && rung.attachments.iter().any(|a| reads_entry(a.hook)) {
        return Some("the registers of a system call are not found on this kernel".into());
    }
    if facts.rss.is_none() && rung.attachments.iter().any(|a| a.hook == Hook::TpBtf("rss_stat")) {
        return Some("this kernel's counters of resident memory have no form that this version knows".into());
    }
    rung.attachments.iter().filter(|a| a.required).find_map(|a| unusable(a.hook, facts))
}

/// Why a hook is not to be used, as far as that can be told.
pub fn unusable(hook: Hook, facts: &Facts) -> Option<String> {
    if let Some(arguments) = facts.changed.get(&hook) {
        return Some(format!("this kernel's {hook} has the arguments ({arguments}), which this version does not know"));
    }
    if let (Hook::SyscallTracepoint(_), Err(reason)) = (hook, &facts.tracefs) {
        return Some(format!("{hook} needs the tracing file system: {reason}"));
    }
    (facts.hook(hook) == Presence::No).then(|| format!("this kernel has no {hook}"))
}

/// Every hook of every ladder, to be looked for.
pub fn hooks() -> impl Iterator<Item = Hook> {
    Source::ALL.into_iter().flat_map(ladder).flat_map(|rung| rung.attachments).map(|attachment| attachment.hook)
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TpBtf(name) => write!(f, "tracepoint {name}"),
            Self::RawTracepoint(name) => write!(f, "raw tracepoint {name}"),
            Self::FExit(name) => write!(f, "end of function {name}"),
            Self::SyscallTracepoint(name) => write!(f, "tracepoint syscalls:{name}"),
            Self::Iterator(kind) => write!(f, "iterator {kind}"),
            Self::PageFaults { .. } => f.write_str("perf event page-faults"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kernel_version: (6, 18),
            task_helper: Presence::Yes,
            registers_helper: Presence::Yes,
            ..Facts::default()
        }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.candidates.iter().map(|rung| rung.name).collect()
    }

    #[test]
    fn what_could_not_be_told_is_tried_and_what_is_absent_is_not() {
        let mut facts = facts();
        assert_eq!(plan(Source::BlockIo, &facts, &Wish::default()).candidates.len(), 3);
        facts.hooks.insert(Hook::TpBtf("block_io_start"), Presence::No);
        let plan = plan(Source::BlockIo, &facts, &Wish::default());
        assert_eq!(names(&plan), ["block_rq_insert", "raw_tracepoint"]);
        assert_eq!(
            plan.refused,
            [Refusal { rung: "block_io_start", reason: "this kernel has no tracepoint block_io_start".into() }]
        );
    }

    #[test]
    fn an_optional_hook_refuses_nothing() {
        let mut facts = facts();
        facts.hooks.insert(Hook::TpBtf("mark_victim"), Presence::No);
        assert_eq!(names(&plan(Source::Lifecycle, &facts, &Wish::default())), ["tp_btf", "raw_tracepoint"]);
    }

    #[test]
    fn a_hook_whose_arguments_changed_is_refused_with_them() {
        let mut facts = facts();
        facts.changed.insert(Hook::TpBtf("sched_process_exit"), "int, int".into());
        let plan = plan(Source::Lifecycle, &facts, &Wish::default());
        assert_eq!(names(&plan), ["raw_tracepoint"]);
        assert!(plan.refused[0].reason.contains("sched_process_exit has the arguments (int, int)"));
    }

    #[test]
    fn the_wish_forces_a_rung_or_switches_a_source_off() {
        let forced = plan(Source::AddressSpace, &facts(), &Wish { rung: Some("raw_syscalls"), ..Wish::default() });
        assert_eq!(names(&forced), ["raw_syscalls"]);
        assert_eq!(forced.refused.len(), 2);
        let off = plan(Source::AddressSpace, &facts(), &Wish { disabled: true, ..Wish::default() });
        assert!(off.disabled && off.candidates.is_empty());
    }

    #[test]
    fn kernels_before_5_11_are_left_the_rungs_that_read_by_helper() {
        let facts = Facts { task_helper: Presence::No, registers_helper: Presence::No, ..Facts::default() };
        let plan_of = |source| plan(source, &facts, &Wish::default());
        assert_eq!(names(&plan_of(Source::PageFault)), ["raw_tracepoint", "software_event"]);
        let plan = plan_of(Source::Lifecycle);
        assert_eq!(names(&plan), ["tp_btf", "raw_tracepoint"]);
        assert!(!plan.candidates[0].is_direct(&facts));
    }

    #[test]
    fn a_kernel_that_is_too_old_for_a_source_is_told_which_it_takes() {
        let mut facts = Facts { kernel_version: (6, 1), kernel_release: "6.1.0-56".to_owned(), ..facts() };
        facts.hooks.insert(Hook::TpBtf("sock_recv_length"), Presence::No);
        let old = plan(Source::Requests, &facts, &Wish::default());
        assert!(old.too_old && old.candidates.is_empty());
        assert_eq!(
            old.refused[0].reason,
            "this kernel has no tracepoint sock_recv_length; requests takes Linux 6.3, and this is 6.1.0-56"
        );
        // Where it should be there, that it is not is a fault; and a distribution may have brought it to an older kernel.
        facts.kernel_version = (6, 18);
        assert!(!plan(Source::Requests, &facts, &Wish::default()).too_old);
        facts = Facts { kernel_version: (5, 14), ..self::facts() };
        assert_eq!(names(&plan(Source::Requests, &facts, &Wish::default())), ["tp_btf"]);
    }

    #[test]
    fn programs_are_named_after_their_source() {
        for source in Source::ALL {
            for attachment in ladder(source).iter().flat_map(|rung| rung.attachments) {
                assert!(attachment.program.starts_with(source.name()), "{}", attachment.program);
            }
        }
    }
}
