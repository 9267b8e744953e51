//! The ladder of every source: which rungs there are, best first, and which of them this kernel can be asked for. Pure.

use super::support::{Facts, Presence};
use crate::{coverage::Refusal, source::Source};
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
    /// The beginning of a kernel function.
    FEntry(&'static str),
    /// The end of a kernel function.
    FExit(&'static str),
    /// A system call's tracepoint in the tracing file system.
    SyscallTracepoint(&'static str),
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
    /// Whether its programs read kernel fields by plain loads.
    pub direct: bool,
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
    }
}

const PAGE_FAULT: &[Rung] = &[
    Rung {
        name: "tp_btf",
        attachments: &[
            required("page_fault_user", Hook::TpBtf("page_fault_user")),
            required("page_fault_kernel", Hook::TpBtf("page_fault_kernel")),
            required("page_fault_moved", Hook::TpBtf("cgroup_attach_task")),
        ],
        direct: true,
    },
    Rung {
        name: "raw_tracepoint",
        attachments: &[
            required("page_fault_user_raw", Hook::RawTracepoint("page_fault_user")),
            required("page_fault_kernel_raw", Hook::RawTracepoint("page_fault_kernel")),
            required("page_fault_moved_raw", Hook::RawTracepoint("cgroup_attach_task")),
        ],
        direct: false,
    },
];

const ADDRESS_SPACE: &[Rung] = &[
    Rung {
        name: "fexit",
        attachments: &[
            required("address_space_mmap", Hook::FExit("__x64_sys_mmap")),
            required("address_space_munmap", Hook::FExit("__x64_sys_munmap")),
            required("address_space_mremap", Hook::FExit("__x64_sys_mremap")),
            required("address_space_brk", Hook::FExit("__x64_sys_brk")),
            required("address_space_brk_begin", Hook::FEntry("__x64_sys_brk")),
        ],
        direct: true,
    },
    Rung {
        name: "syscall_tracepoints",
        attachments: &[
            required("address_space_mmap_tp", Hook::SyscallTracepoint("sys_exit_mmap")),
            required("address_space_munmap_tp", Hook::SyscallTracepoint("sys_exit_munmap")),
            required("address_space_mremap_tp", Hook::SyscallTracepoint("sys_exit_mremap")),
            required("address_space_brk_tp", Hook::SyscallTracepoint("sys_exit_brk")),
            required("address_space_brk_begin_tp", Hook::SyscallTracepoint("sys_enter_brk")),
        ],
        direct: true,
    },
    Rung {
        name: "raw_syscalls",
        attachments: &[
            required("address_space_exit", Hook::TpBtf("sys_exit")),
            required("address_space_enter", Hook::TpBtf("sys_enter")),
        ],
        direct: true,
    },
];

const BLOCK_IO: &[Rung] = &[
    Rung {
        name: "block_io_start",
        attachments: &[
            required("block_io_submit", Hook::TpBtf("block_io_start")),
            required("block_io_issue", Hook::TpBtf("block_rq_issue")),
            optional("block_io_merge", Hook::TpBtf("block_rq_merge")),
            required("block_io_complete", Hook::TpBtf("block_rq_complete")),
        ],
        direct: true,
    },
    Rung {
        name: "block_rq_insert",
        attachments: &[
            required("block_io_insert", Hook::TpBtf("block_rq_insert")),
            required("block_io_first_issue", Hook::TpBtf("block_rq_issue")),
            optional("block_io_merge", Hook::TpBtf("block_rq_merge")),
            required("block_io_complete", Hook::TpBtf("block_rq_complete")),
        ],
        direct: true,
    },
];

const LIFECYCLE: &[Rung] = &[Rung {
    name: "tp_btf",
    attachments: &[
        required("lifecycle_fork", Hook::TpBtf("sched_process_fork")),
        required("lifecycle_exec", Hook::TpBtf("sched_process_exec")),
        required("lifecycle_exit", Hook::TpBtf("sched_process_exit")),
        optional("lifecycle_oom_victim", Hook::TpBtf("mark_victim")),
        optional("lifecycle_cgroup_made", Hook::TpBtf("cgroup_mkdir")),
        optional("lifecycle_cgroup_renamed", Hook::TpBtf("cgroup_rename")),
        optional("lifecycle_cgroup_removed", Hook::TpBtf("cgroup_rmdir")),
        optional("lifecycle_moved", Hook::TpBtf("cgroup_attach_task")),
    ],
    direct: true,
}];

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
    let mut plan = Plan { source, candidates: Vec::new(), refused: Vec::new(), disabled: wish.disabled };
    if wish.disabled {
        return plan;
    }
    for rung in ladder(source) {
        match refusal(rung, facts, wish) {
            Some(reason) => plan.refused.push(Refusal { rung: rung.name, reason }),
            None => plan.candidates.push(rung),
        }
    }
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
    if rung.direct && facts.task_helper == Presence::No {
        return Some("this kernel has no bpf_get_current_task_btf (Linux 5.11)".into());
    }
    rung.attachments
        .iter()
        .find(|a| a.required && facts.hook(a.hook) == Presence::No)
        .map(|a| format!("this kernel has no {}", a.hook))
}

/// Every hook of every ladder, to be looked for.
pub fn hooks() -> impl Iterator<Item = Hook> {
    Source::ALL.into_iter().flat_map(ladder).flat_map(|rung| rung.attachments).map(|attachment| attachment.hook)
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TpBtf(name) | Self::RawTracepoint(name) => write!(f, "tracepoint {name}"),
            Self::FEntry(name) | Self::FExit(name) => write!(f, "function {name}"),
            Self::SyscallTracepoint(name) => write!(f, "tracepoint syscalls:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { task_helper: Presence::Yes, ..Facts::default() }
    }

    #[test]
    fn what_could_not_be_told_is_tried_and_what_is_absent_is_not() {
        let mut facts = facts();
        assert_eq!(plan(Source::BlockIo, &facts, &Wish::default()).candidates.len(), 2);
        facts.hooks.insert(Hook::TpBtf("block_io_start"), Presence::No);
        let plan = plan(Source::BlockIo, &facts, &Wish::default());
        assert_eq!(plan.candidates[0].name, "block_rq_insert");
        assert_eq!(
            plan.refused,
            [Refusal { rung: "block_io_start", reason: "this kernel has no tracepoint block_io_start".into() }]
        );
    }

    #[test]
    fn an_optional_hook_refuses_nothing() {
        let mut facts = facts();
        facts.hooks.insert(Hook::TpBtf("mark_victim"), Presence::No);
        assert_eq!(plan(Source::Lifecycle, &facts, &Wish::default()).candidates.len(), 1);
    }

    #[test]
    fn the_wish_forces_a_rung_or_switches_a_source_off() {
        let forced = plan(Source::AddressSpace, &facts(), &Wish { rung: Some("raw_syscalls"), ..Wish::default() });
        assert_eq!(forced.candidates.iter().map(|r| r.name).collect::<Vec<_>>(), ["raw_syscalls"]);
        assert_eq!(forced.refused.len(), 2);
        let off = plan(Source::AddressSpace, &facts(), &Wish { disabled: true, ..Wish::default() });
        assert!(off.disabled && off.candidates.is_empty());
    }

    #[test]
    fn kernels_before_5_11_are_left_the_rungs_that_read_by_helper() {
        let facts = Facts { task_helper: Presence::No, ..Facts::default() };
        let plan = plan(Source::PageFault, &facts, &Wish::default());
        assert_eq!(plan.candidates.iter().map(|r| r.name).collect::<Vec<_>>(), ["raw_tracepoint"]);
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
