//! Maps that are too small: what finds no room is counted for nobody, so that the host's totals stay exact, and told.

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, LoopDevice, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

/// More processes than the smallest map has room for.
const CROWD: usize = 24;
/// Pages that each of them touches.
const PAGES: u64 = 5_000;

#[test]
fn faults_of_processes_that_find_no_room_count_for_the_host() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "page_fault.owners=16", "--set", "address_space.owners=16"])?;
    let mut crowd = (0..CROWD).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    let machine_before = proc::all_faults()?;
    agent.settle()?;
    let host = |name: &str| json::count(&agent.get("/v1/snapshot")?, &format!("host.page_faults.{name}"));
    let (before, proc_before) = (host("user_total")? + host("kernel_total")?, faults(&crowd)?);
    for workload in &mut crowd {
        workload.run(&format!("faults user-write {PAGES} 1"))?;
    }
    agent.settle()?;
    let (grown, made) = (host("user_total")? + host("kernel_total")? - before, faults(&crowd)? - proc_before);
    // Others fault beside, and a few faults that the kernel could not resolve are not in its count.
    let most = (proc::all_faults()? - machine_before) * 101 / 100;
    expect::between("faults of the host", made, grown, most)?;

    let lost = json::count(&agent.coverage("page_fault")?, "lost.map_full")?;
    ensure!(lost > 0, "the map of 16 had room for {CROWD}");
    let of_each = |workload: &Workload| json::count(&agent.process(workload.pid())?, "page_faults.user_total");
    let attributed = crowd.iter().map(of_each).sum::<Result<u64>>()?;
    ensure!(attributed < made, "all {made} faults were attributed, {attributed} of them to the crowd");
    // The kernel program says so itself, once.
    wait_until("its words", PATIENCE, || {
        Ok(agent.words().contains("page_fault: no room for another owner").then_some(()))
    })
    .with_context(|| format!("its log says: {}", agent.words()))?;
    agent.stop()
}

#[test]
fn heaps_that_find_no_room_are_not_guessed() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "address_space.owners=16", "--set", "kernel_log=off"])?;
    let grown = || json::count(&agent.get("/v1/snapshot")?, "host.address_space.heap_grown_bytes_total");
    let mut crowd = (0..CROWD).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    agent.settle()?;
    let before = grown()?;
    for workload in &mut crowd {
        workload.run("maps 10 4096")?;
    }
    agent.settle()?;
    // A heap that is taken for new at each call would count its 132 KiB each time, and some of the crowd are not kept.
    let made = CROWD as u64 * 10 * 4096;
    expect::between("growth of all heaps", 0, grown()? - before, made * 2)?;
    ensure!(json::count(&agent.coverage("address_space")?, "lost.map_full")? > 0, "the map of 16 had room for all");
    // The kernel program would say so, if it were let.
    ensure!(!agent.words().contains("no room for another owner"), "its log says: {}", agent.words());
    agent.stop()
}

#[test]
fn io_of_processes_that_find_no_room_counts_for_the_host() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(16 << 20)?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&["--set", "block_io.owners=16"])?;
    agent.settle()?;
    let host = || json::count(&agent.get("/v1/snapshot")?, "host.block_io.read_ops_total");
    let (before, kernel_before) = (host()?, device.stat()?);
    let mut crowd = (0..CROWD).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    for workload in &mut crowd {
        workload.run(&format!("direct read {path} 50 4096"))?;
    }
    agent.settle()?;
    let made = device.stat()?.since(&kernel_before).read_ops;
    let grown = host()? - before;
    ensure!(made >= CROWD as u64 * 50 && grown >= made, "{grown} reads of the host, {made} of one of its devices");
    ensure!(json::count(&agent.coverage("block_io")?, "lost.map_full")? > 0, "the map of 16 had room for all");
    agent.stop()
}

/// Accounts of the kernel's that are not for what cannot be attributed, in the test below.
const ACCOUNTS: usize = 64 - 5;

#[test]
fn accounts_of_processes_that_are_gone_are_used_again_and_stay_exact() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(16 << 20)?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&["--set", "block_io.owners=64"])?;
    let mut told = 0;
    for _ in 0..4 {
        let mut pids = Vec::new();
        // Fewer at a time than there is room for, and many more in all. Each reads its own number of blocks.
        for blocks in 1..=ACCOUNTS / 3 {
            let mut workload = Workload::start()?;
            workload.run(&format!("direct read {path} {blocks} 4096"))?;
            pids.push((workload.pid(), blocks as u64));
        }
        agent.settle()?;
        for (pid, blocks) in pids {
            // A workload's own start may read from another disk.
            let reads = json::count(&agent.process(pid)?, "block_io.read_ops_total")?;
            ensure!(reads >= blocks, "process {pid} made {blocks} reads, and {reads} are told");
            told += blocks;
        }
        // Those that are gone are forgotten within a second.
        std::thread::sleep(std::time::Duration::from_millis(1500));
    }
    let of_device = agent.block_device(device.name())?.context("the device is not listed")?;
    expect::exactly("reads of the device", json::count(&of_device, "block_io.read_ops_total")?, told)?;
    expect::exactly("lost", json::count(&agent.coverage("block_io")?, "lost.map_full")?, 0)?;
    agent.stop()
}

/// Far fewer have room at once than live between two ticks: who has gone makes room within a second.
#[test]
fn who_has_gone_makes_room_whatever_the_tick() -> Result<()> {
    let _machine = Machine::claim()?;
    // Those of four rounds do not fit.
    const EACH: usize = 40;
    let owners = ["page_fault.owners=128", "address_space.owners=128"].map(|owners| ["--set", owners]).concat();
    let agent = Agent::start(&[&["--tick", "1h"][..], &owners].concat())?;
    for _ in 0..10 {
        let mut crowd = (0..EACH).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
        crowd.iter_mut().try_for_each(|workload| workload.run("faults user-write 10 1").map(drop))?;
        drop(crowd);
        std::thread::sleep(std::time::Duration::from_millis(1500));
    }
    // Coverage is as old as the last snapshot; the kernel programs say so themselves.
    ensure!(!agent.words().contains("no room for another owner"), "its log says: {}", agent.words());
    agent.stop()
}

fn faults(crowd: &[Workload]) -> Result<u64> {
    crowd.iter().map(|workload| proc::faults(workload.pid())).sum()
}
