//! Reads the task that runs it by field offsets, for the agent to compare with what it knows about itself. Run once at
//! start, never attached.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use monitor_common::self_check::Report;
use monitor_ebpf::{
    fields::{self, Kernel, registers},
    owner,
};

/// What was read.
#[map]
static REPORT: Array<Report> = Array::with_max_entries(1, 0);

/// Never attached: run by `BPF_PROG_TEST_RUN`, in the context of the process that asks for it.
#[raw_tracepoint]
pub fn self_check(_: RawTracePointContext) -> i32 {
    let Some(report) = REPORT.get_ptr_mut(0) else { return 0 };
    let task = Kernel::current_task();
    // SAFETY: the running task, and what its fields point to; a value of the map.
    unsafe {
        let memory = task.follow(&fields::TASK_MM);
        (*report).owner = owner::of(task);
        (*report).pid = task.read(&fields::TASK_PID);
        (*report).live_threads = task.follow(&fields::TASK_SIGNAL).read(&fields::SIGNAL_LIVE);
        (*report).helper_pid_tgid = bpf_get_current_pid_tgid();
        (*report).brk = memory.read(&fields::MM_BRK);
        (*report).arg_start = memory.read(&fields::MM_ARG_START);
        (*report).arg_end = memory.read(&fields::MM_ARG_END);
        (*report).system_call = Kernel::entry_registers().read(&registers::ORIG_AX);
        owner::copy_command(task, &raw mut (*report).command);
        (*report).complete = 1;
    }
    0
}
