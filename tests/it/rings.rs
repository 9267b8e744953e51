//! Rings that are too small: made = seen + lost, and totals stay exact. The agent is stopped while a ring is flooded, so
//! that it overflows for certain.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{
    Agent, LoopDevice, Machine, Workload,
    agent::Moments,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

/// Records of a flood: many times what a page holds.
const FLOOD: u64 = 2000;
/// A ring of one page holds less than that of any record.
const PAGE_OF_RECORDS: u64 = 128;

/// Floods a ring while the agent stands still; gives what was told and lost meanwhile, once it has caught up.
fn flood(agent: &Agent, source: &str, mut act: impl FnMut() -> Result<()>) -> Result<Moments> {
    agent.settle()?;
    let before = agent.moments(source)?;
    agent.freeze()?;
    let acted = act();
    agent.thaw()?;
    acted?;
    agent.settle()?;
    Ok(agent.moments(source)?.since(&before))
}

fn all_faults(subject: &Value) -> Result<u64> {
    Ok(json::count(subject, "page_faults.user_total")? + json::count(subject, "page_faults.kernel_total")?)
}

#[test]
fn a_flooded_lifecycle_ring_loses_moments_that_are_counted_and_no_total() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "lifecycle.ring_bytes=4096"])?;
    let (mut parent, mut survivor) = (Workload::start()?, Workload::start()?);
    agent.settle()?;
    let faults_before = all_faults(&agent.process(survivor.pid())?)?;
    let (forks_before, proc_before) = (proc::forks()?, proc::faults(survivor.pid())?);
    let told = flood(&agent, "lifecycle", || {
        parent.run(&format!("forks {FLOOD}"))?;
        survivor.run("faults user-write 50000 1").map(|_| ())
    })?;
    // One record for each fork and one for each exit; others may have forked, run programs and exited beside.
    let others = proc::forks()? - forks_before - FLOOD;
    expect::between("moments made", 2 * FLOOD, told.made(), 2 * FLOOD + 4 * others + 16)?;
    ensure!(told.lost >= 2 * FLOOD - PAGE_OF_RECORDS, "the ring was not flooded: {told:?}");
    let faults = all_faults(&agent.process(survivor.pid())?)? - faults_before;
    expect::exactly("faults of a survivor", faults, proc::faults(survivor.pid())? - proc_before)?;
    agent.stop()
}

#[test]
fn processes_whose_exit_was_lost_are_found_gone_with_their_totals() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "lifecycle.ring_bytes=4096"])?;
    let mut workload = Workload::start()?;
    let children = workload.run("children 20")?;
    let children: Vec<u64> = json::list(&children, "pids")?.iter().filter_map(|row| row[0].as_u64()).collect();
    expect::exactly("children", children.len(), 20)?;
    let mut released = Value::Null;
    flood(&agent, "lifecycle", || {
        workload.run("forks 200")?;
        released = workload.run("release")?;
        Ok(())
    })?;
    for row in json::list(&released, "processes")? {
        let (pid, faults) = (row[0].as_u64().context("no pid")?, row[1].as_u64().context("no faults")?);
        let process = wait_until("a lost exit to be repaired", PATIENCE, || {
            let process = agent.process(u32::try_from(pid)?)?;
            Ok((process["state"] == "exited").then_some(process))
        })?;
        expect::between("faults of a child", faults.saturating_sub(2), all_faults(&process)?, faults)?;
        expect::exactly("parent", json::count(&process, "parent_pid")?, u64::from(workload.pid()))?;
    }
    agent.stop()
}

#[test]
fn a_flooded_address_space_ring_loses_moments_that_are_counted_and_no_total() -> Result<()> {
    let _machine = Machine::claim()?;
    // So large that only failures are moments.
    let agent = Agent::start(&["--set", "address_space.ring_bytes=4096", "--set", "address_space.large_call=64GiB"])?;
    let mut workload = Workload::start()?;
    agent.settle()?;
    let (before, host_before) = (agent.process(workload.pid())?, agent.get("/v1/snapshot")?);
    let told = flood(&agent, "address_space", || workload.run(&format!("failures {FLOOD}")).map(|_| ()))?;
    let (after, host) = (agent.process(workload.pid())?, agent.get("/v1/snapshot")?);
    let failed = "address_space.failed_calls_total";
    expect::exactly(failed, json::grown(&before, &after, failed)?, 4 * FLOOD)?;
    let on_host = json::grown(&host_before["host"], &host["host"], failed)?;
    expect::between("moments made", 4 * FLOOD, told.made(), on_host)?;
    ensure!(told.lost >= 4 * FLOOD - PAGE_OF_RECORDS, "the ring was not flooded: {told:?}");
    let causes = agent.coverage("address_space")?;
    expect::exactly(
        "lost for a full ring",
        json::count(&causes, "lost.ring_full")?,
        json::count(&causes, "lost_total")?,
    )?;
    agent.stop()
}

#[test]
fn a_flooded_block_io_ring_loses_moments_that_are_counted_and_no_total() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(FLOOD * 2 * 4096)?;
    let agent = Agent::start(&["--set", "block_io.ring_bytes=4096", "--set", "block_io.slow=1us"])?;
    let mut workload = Workload::start()?;
    let path = device.path().display().to_string();
    workload.run(&format!("direct read {path} 1 4096"))?;
    agent.settle()?;
    let (before, process_before) = (all_io(&agent.get("/v1/snapshot")?)?, agent.process(workload.pid())?);
    let told = flood(&agent, "block_io", || workload.run(&format!("direct read {path} {FLOOD} 4096")).map(|_| ()))?;
    let on_host = all_io(&agent.get("/v1/snapshot")?)? - before;
    expect::between("moments made", FLOOD, told.made(), on_host)?;
    ensure!(told.lost >= FLOOD - PAGE_OF_RECORDS, "the ring was not flooded: {told:?}");
    let process = agent.process(workload.pid())?;
    expect::exactly("reads", json::grown(&process_before, &process, "block_io.read_ops_total")?, FLOOD)?;
    agent.stop()
}

/// Requests of the whole machine, of every operation.
fn all_io(snapshot: &Value) -> Result<u64> {
    let operations = ["read", "write", "flush", "discard", "other"];
    operations.iter().map(|o| json::count(snapshot, &format!("host.block_io.{o}_ops_total"))).sum()
}

#[test]
fn rings_of_the_default_size_lose_nothing_in_a_storm_of_forks() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    agent.settle()?;
    let mut lost = Vec::new();
    // Who is too slow loses each time; one whose processor is taken from it for a moment does not.
    while lost.len() < 3 && !lost.ends_with(&[0]) {
        let (before, forks_before) = (agent.moments("lifecycle")?, proc::forks()?);
        workload.run("forks 5000")?;
        agent.settle()?;
        let told = agent.moments("lifecycle")?.since(&before);
        let others = proc::forks()? - forks_before - 5000;
        expect::between("made", 10_000, told.made(), 10_000 + 4 * others + 16)?;
        lost.push(told.lost);
    }
    expect::exactly("lost", lost.last(), Some(&0)).with_context(|| format!("{lost:?}"))?;
    agent.stop()
}
