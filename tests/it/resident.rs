//! Source `resident`, against what the workload touched and what /proc tells of it, within the error that the agent tells.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tests::{
    Agent, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, json, proc, workload,
};

const BYTES: u64 = 64 << 20;
/// 64 faults (TASK_RSS_EVENTS_THRESH of mm/memory.c), of which those on files map 16 pages each (fault_around_bytes).
const ERROR_OF_A_THREAD: u64 = 4 << 20;
/// Where khugepaged gathers 2 MiB of a program's code in one page, it takes them from whoever has them, until they are touched
/// again.
const HUGE_PAGE: i64 = 2 << 20;
/// Kinds, with their names in /proc/PID/status.
const KINDS: [(&str, &str); 3] = [("anon", "RssAnon"), ("file", "RssFile"), ("shmem", "RssShmem")];

/// What is told of a process.
pub(crate) fn told(agent: &Agent, pid: u32) -> Result<Value> {
    agent.settle()?;
    Ok(json::at(&agent.process(pid)?, "resident")?.clone())
}

pub(crate) fn bytes(told: &Value, kind: &str) -> Result<u64> {
    json::count(told, &format!("{kind}_bytes"))
}

/// How far what is told may be off. Before Linux 6.2 that depends on how many threads there are, which nobody counts: here one.
fn error(told: &Value) -> Result<u64> {
    match told["error_bytes"].as_u64() {
        Some(error) => Ok(error),
        None => {
            ensure!(proc::kernel_release()? < (6, 2), "no error is told: {told}");
            Ok(ERROR_OF_A_THREAD)
        }
    }
}

/// Every kind is what /proc says. The bound holds for what either reads: some kernels sum up all parts for /proc.
pub(crate) fn as_proc_says(told: &Value, pid: u32) -> Result<()> {
    let error = error(told)?;
    ensure!(error > 0 && error < BYTES / 8, "an error of {error} would prove nothing");
    for (kind, name) in KINDS.into_iter().chain([("swap", "VmSwap")]) {
        let (told, in_proc) = (bytes(told, kind)?, proc::bytes(pid, "status", name)?);
        expect::between(name, in_proc.saturating_sub(error), told, in_proc + error)?;
    }
    Ok(())
}

/// A kind changed by so much.
pub(crate) fn changed(kind: &str, before: &Value, after: &Value, change: i64) -> Result<()> {
    let (from, to) = (bytes(before, kind)? as i64, bytes(after, kind)? as i64);
    // Both readings may be off.
    let error = 2 * error(after)? as i64 + if kind == "file" { HUGE_PAGE } else { 0 };
    ensure!((to - from - change).abs() <= error, "{kind}: from {from} to {to}, which is no change of {change}");
    Ok(())
}

#[test]
fn what_is_touched_is_in_memory_by_kind_until_it_is_given_back() -> Result<()> {
    let _machine = Machine::claim()?;
    // Older than the agent, which must find what it has.
    let mut workload = Workload::start()?;
    workload.run(&format!("keep anon {BYTES}"))?;
    let agent = Agent::start(&[])?;
    let pid = workload.pid();
    as_proc_says(&told(&agent, pid)?, pid)?;
    for (kind, _) in KINDS {
        let before = told(&agent, pid)?;
        let kept = workload.run(&format!("keep {kind} {BYTES}"))?;
        let with = told(&agent, pid)?;
        as_proc_says(&with, pid).context(kind)?;
        changed(kind, &before, &with, BYTES as i64)?;
        for (other, _) in KINDS.into_iter().filter(|(other, _)| *other != kind) {
            changed(other, &before, &with, 0)?;
        }
        workload.run(&format!("give-back {} {BYTES}", json::count(&kept, "address")?))?;
        let without = told(&agent, pid)?;
        as_proc_says(&without, pid).context(kind)?;
        changed(kind, &with, &without, -(BYTES as i64))?;
    }
    agent.stop()
}

#[test]
fn another_program_begins_anew_and_an_end_leaves_nothing() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "exited.keep=30m"])?;
    let mut workload = Workload::start()?;
    let pid = workload.pid();
    workload.run(&format!("keep anon {BYTES}"))?;
    ensure!(bytes(&told(&agent, pid)?, "anon")? > BYTES / 2, "nothing was kept");
    workload.run(&format!("exec {} again", workload::binary()?.display()))?;
    let anew = told(&agent, pid)?;
    as_proc_says(&anew, pid)?;
    ensure!(bytes(&anew, "anon")? < BYTES / 4, "after exec it has what it had before: {anew}");
    workload.send("exit 0")?;
    workload.wait()?;
    let gone = told(&agent, pid)?;
    ensure!(KINDS.iter().all(|(kind, _)| gone[format!("{kind}_bytes")].is_null()), "it has gone: {gone}");
    agent.stop()
}

/// Lets go of a part of another process's memory.
pub(crate) fn page_out(pid: u32, address: u64, bytes: u64) -> Result<()> {
    let range = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes as usize };
    // SAFETY: a descriptor that is ours, and one range of another process's memory, which is only pointed to.
    let done = unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        ensure!(process >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        let process = OwnedFd::from_raw_fd(process);
        libc::syscall(libc::SYS_process_madvise, process.as_raw_fd(), &raw const range, 1, libc::MADV_PAGEOUT, 0)
    };
    ensure!(done >= 0, "process_madvise: {}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn what_somebody_else_reclaims_is_charged_to_whose_memory_it_was() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let pid = workload.pid();
    let kept = workload.run(&format!("keep file {BYTES}"))?;
    let (with, own) = (told(&agent, pid)?, told(&agent, std::process::id())?);
    page_out(pid, json::count(&kept, "address")?, BYTES)?;
    let left = proc::bytes(pid, "status", "RssFile")?;
    ensure!(left < BYTES / 2, "{left} bytes of the file are still there: nothing was reclaimed");
    let without = told(&agent, pid)?;
    as_proc_says(&without, pid)?;
    ensure!(bytes(&with, "file")? - bytes(&without, "file")? > BYTES / 2, "from {with} to {without}");
    changed("file", &own, &told(&agent, std::process::id())?, 0)?;
    agent.stop()
}

/// What came of a few faults is not in the kernel's whole for long; /proc may have it, and is asked once more when it rests.
#[test]
fn what_rests_is_what_proc_says_to_the_page() -> Result<()> {
    const PAGES: u64 = 4096 * 21;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let pid = workload.pid();
    for kind in ["anon", "shmem", "anon", "shmem"] {
        workload.run(&format!("keep {kind} {PAGES}"))?;
    }
    wait_until("what is in memory to be what /proc says", 2 * PATIENCE, || {
        let told = told(&agent, pid)?;
        let mut is_same = true;
        for (kind, name) in KINDS {
            is_same &= bytes(&told, kind)? == proc::bytes(pid, "status", name)?;
        }
        Ok(is_same.then_some(()))
    })?;
    agent.stop()
}

#[test]
fn trees_have_what_their_processes_have() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run(&format!("keep anon {BYTES}"))?;
    agent.settle()?;
    let snapshot = agent.get("/v1/snapshot")?;
    let tree = json::count(&agent.process(workload.pid())?, "tree")?;
    let of_tree = |list: &str, name: &'static str| -> Result<Vec<Value>> {
        Ok(json::list(&snapshot, list)?.iter().filter(|item| item[name] == tree).cloned().collect())
    };
    let sum = |items: &[Value]| items.iter().filter_map(|item| item["resident"]["anon_bytes"].as_u64()).sum::<u64>();
    let (trees, processes) = (of_tree("trees", "pid")?, of_tree("processes", "tree")?);
    expect::exactly("trees", trees.len(), 1)?;
    ensure!(sum(&processes) >= BYTES / 2, "its processes have nothing");
    expect::exactly("bytes", sum(&trees), sum(&processes))?;
    agent.stop()
}
