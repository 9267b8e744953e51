//! Memory that is swapped out, which takes a machine of one's own: whose it was, by the kernel's counters, by files and by /proc.

use crate::resident::{as_proc_says, bytes, changed, page_out, told};
use anyhow::{Result, ensure};
use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
    time::Duration,
};
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    disk::LoopDevice,
    json, proc,
};

const PAGE: usize = 4096;
const SWAP: u64 = 96 << 20;
const KEPT: u64 = 48 << 20;
/// What rests is read once in so long.
const REFRESHED_WITHIN: Duration = Duration::from_secs(30);

/// A device that is swapped to until it is dropped.
struct Swap(CString);

impl Swap {
    /// Writes what mkswap(8) writes: a version and the last page after the boot block, and a signature at the page's end.
    fn on(device: &Path) -> Result<Self> {
        let mut head = [0; PAGE];
        head[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
        head[1028..1032].copy_from_slice(&((SWAP / PAGE as u64) as u32 - 1).to_ne_bytes());
        head[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
        let file = OpenOptions::new().write(true).open(device)?;
        file.write_all_at(&head, 0)?;
        file.sync_all()?;
        let path = CString::new(device.as_os_str().as_bytes())?;
        // SAFETY: a path that ends with a NUL.
        ensure!(unsafe { libc::swapon(path.as_ptr(), 0) } == 0, "swapon: {}", io::Error::last_os_error());
        Ok(Self(path))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: a path that ends with a NUL.
        if unsafe { libc::swapoff(self.0.as_ptr()) } != 0 {
            eprintln!("swapoff: {}", io::Error::last_os_error());
        }
    }
}

#[test]
fn what_is_swapped_out_is_still_its_owners() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(SWAP)?;
    let _swap = Swap::on(&device.path())?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let group = Cgroup::new("swapped")?;
    group.add(workload.pid())?;
    let pid = workload.pid();
    let kept = workload.run(&format!("keep anon {KEPT}"))?;
    let with = told(&agent, pid)?;
    page_out(pid, json::count(&kept, "address")?, KEPT)?;
    let swapped = proc::bytes(pid, "status", "VmSwap")?;
    ensure!(swapped > KEPT / 2, "only {swapped} bytes were swapped out");

    let without = told(&agent, pid)?;
    as_proc_says(&without, pid)?;
    changed("swap", &with, &without, swapped as i64)?;
    ensure!(bytes(&with, "anon")? - bytes(&without, "anon")? > KEPT / 2, "from {with} to {without}");

    // By the cgroup's and the process's own files, too, from which the detectors take anonymous memory with swap.
    let process = agent.process(pid)?;
    ensure!(json::count(&process, "memory.swap_bytes")? > KEPT / 2, "{}", process["memory"]);
    // What is written out stays charged until somebody needs the room, so that by its use the cgroup rests: it is read within 30 s.
    wait_until("the cgroup's swap to be told", REFRESHED_WITHIN + PATIENCE, || {
        let cgroup = agent.cgroup(&group.path())?.unwrap_or_default();
        Ok((cgroup["memory"]["swap_bytes"].as_u64() > Some(KEPT / 2)).then_some(()))
    })?;
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}
