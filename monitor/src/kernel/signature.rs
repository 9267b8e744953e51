//! Arguments of every kernel function and tracepoint that a program is attached to, as the kernels known so far have them.
//!
//! A new kernel may reorder or drop arguments; a program that reads the wrong one counts nonsense. So a hook whose
//! arguments are in no row here is not used, and says so. The matrix of kernels checks that each has the row it should have.

use super::{btf::Types, plan::Hook};
use std::collections::BTreeMap;

/// Arguments that one hook has on some kernels.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// Tracepoint or function.
    pub name: &'static str,
    /// Types of its arguments, as [`Types`] spells them.
    pub arguments: &'static [&'static str],
    /// The kernels that have it so, for people.
    pub kernels: &'static str,
}

const fn row(name: &'static str, arguments: &'static [&'static str], kernels: &'static str) -> Signature {
    Signature { name, arguments, kernels }
}

const PAGE_FAULT: &[&str] = &["long unsigned int", "struct pt_regs *", "long unsigned int"];
const SYSTEM_CALL: &[&str] = &["const struct pt_regs *"];
const TASK: &str = "struct task_struct *";
const REQUEST: &str = "struct request *";
const TRANSFER: &[&str] = &["struct sock *", "int", "int"];
const CGROUP: &[&str] = &["struct cgroup *", "const char *"];
const ALL: &str = "5.10 …";

/// The table.
pub const SIGNATURES: &[Signature] = &[
    row("page_fault_user", PAGE_FAULT, ALL),
    row("page_fault_kernel", PAGE_FAULT, ALL),
    row("__x64_sys_mmap", SYSTEM_CALL, ALL),
    row("__x64_sys_munmap", SYSTEM_CALL, ALL),
    row("__x64_sys_mremap", SYSTEM_CALL, ALL),
    row("__x64_sys_brk", SYSTEM_CALL, ALL),
    row("sys_exit", &["struct pt_regs *", "long int"], ALL),
    row("block_io_start", &[REQUEST], "6.5 …"),
    row("block_bio_queue", &["struct request_queue *", "struct bio *"], "5.10"),
    row("block_bio_queue", &["struct bio *"], "5.11 …"),
    row("block_split", &["struct request_queue *", "struct bio *", "unsigned int"], "5.10"),
    row("block_split", &["struct bio *", "unsigned int"], "5.11 …"),
    row("block_bio_complete", &["struct request_queue *", "struct bio *"], ALL),
    row("block_rq_insert", &[REQUEST], "5.11 …, and Debian's 5.10"),
    row("block_rq_issue", &[REQUEST], "5.11 …, and Debian's 5.10"),
    row("block_rq_merge", &[REQUEST], "5.11 …, and Debian's 5.10"),
    row("block_rq_complete", &[REQUEST, "int", "unsigned int"], "5.10 … 5.15"),
    row("block_rq_complete", &[REQUEST, "blk_status_t", "unsigned int"], "5.16 …"),
    row("sched_process_fork", &[TASK, TASK], ALL),
    row("sched_process_exec", &[TASK, "pid_t", "struct linux_binprm *"], ALL),
    row("sched_process_exit", &[TASK], "5.10 … 6.15"),
    row("sched_process_exit", &[TASK, "bool"], "6.16 …"),
    row("mark_victim", &[TASK, "uid_t"], "6.8 …, and Debian's older ones"),
    row("cgroup_mkdir", CGROUP, ALL),
    row("cgroup_rename", CGROUP, ALL),
    row("cgroup_rmdir", CGROUP, ALL),
    row("rss_stat", &["struct mm_struct *", "int", "long int"], "5.10 … 6.1"),
    row("rss_stat", &["struct mm_struct *", "int"], "6.2 …"),
    row("inet_sock_set_state", &["const struct sock *", "const int", "const int"], ALL),
    row("sock_recv_length", TRANSFER, "6.3 …"),
    row("sock_send_length", TRANSFER, "6.3 …"),
    row("cgroup_attach_task", &["struct cgroup *", "const char *", TASK, "bool"], ALL),
];

/// The arguments that this kernel's hook has, where it has any.
pub fn arguments(types: &Types, hook: Hook) -> Option<Vec<String>> {
    match hook {
        Hook::TpBtf(name) | Hook::RawTracepoint(name) => types.tracepoint_arguments(name),
        Hook::FExit(name) => types.function_arguments(name),
        // The tracing file system's are ABI, and so are perf's.
        Hook::SyscallTracepoint(_) | Hook::Iterator(_) | Hook::PageFaults { .. } => None,
    }
}

/// Arguments that this kernel has for what has several rows in the table, by name.
pub fn variants(types: &Types) -> BTreeMap<&'static str, String> {
    let several = |name| SIGNATURES.iter().filter(|signature| signature.name == name).count() > 1;
    let hooks = super::plan::hooks().filter(|hook| hook.name().is_some_and(several));
    hooks.filter_map(|hook| Some((hook.name()?, arguments(types, hook)?.join(", ")))).collect()
}

/// Whether a hook with these arguments is one the programs were written for.
pub fn is_known(hook: Hook, arguments: &[String]) -> bool {
    // The tracing file system's hooks are ABI, and perf's events have no arguments.
    let (Hook::TpBtf(name) | Hook::RawTracepoint(name) | Hook::FExit(name)) = hook else {
        return true;
    };
    SIGNATURES.iter().any(|signature| signature.name == name && signature.arguments == arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::plan;

    #[test]
    fn every_hook_of_every_ladder_is_in_the_table() {
        for hook in plan::hooks() {
            let Some(name) = hook.name() else { continue };
            if !matches!(hook, Hook::SyscallTracepoint(_)) {
                assert!(SIGNATURES.iter().any(|signature| signature.name == name), "no signature of {hook}");
            }
        }
    }

    #[test]
    fn this_kernels_hooks_are_all_known() {
        let types = Types::running().expect("this test needs a kernel that shows its BTF");
        for hook in plan::hooks() {
            if let Some(arguments) = arguments(&types, hook) {
                assert!(is_known(hook, &arguments), "{hook} has the arguments ({})", arguments.join(", "));
            }
        }
    }

    #[test]
    fn changed_arguments_are_not_known() {
        let old = ["int".to_owned()];
        assert!(!is_known(Hook::TpBtf("mark_victim"), &old));
        assert!(is_known(Hook::SyscallTracepoint("sys_exit_brk"), &[]));
    }
}
