//! Empty programs on the hooks of the others: what a hook itself costs, for `cargo xtask bench probes`. Never used by the
//! agent.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FExitContext, RawTracePointContext, TracePointContext},
};
use monitor_ebpf as _;

/// On any BTF tracepoint: the loader names it.
#[btf_tracepoint(function = "page_fault_user")]
pub fn empty_tp_btf(_: BtfTracePointContext) -> i32 {
    0
}

/// On any tracepoint of the tracing file system: the loader names it.
#[tracepoint]
pub fn empty_tracepoint(_: TracePointContext) -> u32 {
    0
}

/// On any tracepoint without its types: the loader names it.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn empty_raw_tracepoint(_: RawTracePointContext) -> i32 {
    0
}

/// On the end of any function: the loader names it.
#[fexit(function = "__x64_sys_munmap")]
pub fn empty_fexit(_: FExitContext) -> i32 {
    0
}
