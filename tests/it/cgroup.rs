//! Charging cgroups, the memory controller's, against /proc/PID/stat read while the process changes nothing.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Agent, Cgroup, LoopDevice, Machine, Workload, expect, json, proc};

const PAGES: u64 = 30_000;

fn told(agent: &Agent, cgroup: &Cgroup) -> Result<Value> {
    agent.cgroup(&cgroup.path())?.with_context(|| format!("{} is not listed", cgroup.path()))
}

fn all_faults(subject: &Value) -> Result<u64> {
    Ok(json::count(subject, "page_faults.user_total")? + json::count(subject, "page_faults.kernel_total")?)
}

/// Faults of a workload while it does something, by /proc.
fn run(workload: &mut Workload, command: &str) -> Result<u64> {
    let before = proc::faults(workload.pid())?;
    workload.run(command)?;
    Ok(proc::faults(workload.pid())? - before)
}

#[test]
fn a_process_that_moves_is_charged_to_each_cgroup_what_it_did_there() -> Result<()> {
    let _machine = Machine::claim()?;
    let parent = Cgroup::new("parent")?;
    let (first, second) = (parent.child("first")?, parent.child("second")?);
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    agent.settle()?;
    let before = all_faults(&agent.process(workload.pid())?)?;
    first.add(workload.pid())?;
    let in_first = run(&mut workload, &format!("faults user-write {PAGES} 1"))?;
    second.add(workload.pid())?;
    let in_second = run(&mut workload, &format!("faults user-write {} 1", 2 * PAGES))?;
    agent.settle()?;
    for (cgroup, faults, pages) in [(&first, in_first, PAGES), (&second, in_second, 2 * PAGES)] {
        let told = told(&agent, cgroup)?;
        expect::exactly(&cgroup.path(), all_faults(&told)?, faults)?;
        expect::within_a_thousandth(&cgroup.path(), all_faults(&told)?, pages)?;
        expect::exactly("id", json::count(&told, "id")?, cgroup.id()?)?;
        expect::exactly("hierarchy", json::text(&told, "hierarchy")?, cgroup.hierarchy().name())?;
    }
    expect::exactly("the parent", all_faults(&told(&agent, &parent)?)?, in_first + in_second)?;
    let process = agent.process(workload.pid())?;
    expect::exactly("the process, over all", all_faults(&process)? - before, in_first + in_second)?;
    expect::exactly("where it is", json::text(&process, "cgroup")?, &second.path())?;
    let running = |cgroup: &Cgroup| json::count(&told(&agent, cgroup)?, "processes_running");
    expect::exactly("processes", [running(&parent)?, running(&first)?, running(&second)?], [1, 0, 1])?;
    let below = agent.get(&format!("/v1/processes?cgroup={}", parent.path()))?;
    expect::exactly("processes below the parent", json::list(&below, "processes")?.len(), 1)?;
    agent.stop()
}

#[test]
fn address_space_and_block_io_are_charged_to_the_cgroup_too() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(8 << 20)?;
    let cgroup = Cgroup::new("all-sources")?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    let maps = workload.run("maps 50 8192")?;
    agent.settle()?;
    let after_maps = told(&agent, &cgroup)?;
    for name in ["mmap_file_calls_total", "mapped_file_bytes_total", "mremap_calls_total", "heap_grown_bytes_total"] {
        let name = format!("address_space.{name}");
        let made = json::count(&maps, name.trim_start_matches("address_space."))?;
        expect::exactly(&name, json::count(&after_maps, &name)?, made)?;
    }
    workload.run(&format!("direct write {} 200 4096", device.path().display()))?;
    agent.settle()?;
    let after_io = told(&agent, &cgroup)?;
    expect::exactly("writes", json::count(&after_io, "block_io.write_ops_total")?, 200)?;
    expect::exactly("bytes", json::count(&after_io, "block_io.write_bytes_total")?, 200 * 4096)?;
    agent.stop()
}

/// What is kept of a thread, so as not to be looked up for each call and each I/O, does not outlive its move.
#[test]
fn calls_and_io_after_a_move_are_the_new_cgroups() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(8 << 20)?;
    let (first, second) = (Cgroup::new("before-it-moves")?, Cgroup::new("after-it-moved")?);
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let mut made = Vec::new();
    for (cgroup, writes) in [(&first, 100), (&second, 200), (&first, 50)] {
        cgroup.add(workload.pid())?;
        workload.run(&format!("direct write {} {writes} 4096", device.path().display()))?;
        made.push(json::count(&workload.run(&format!("maps {writes} 8192"))?, "mmap_file_calls_total")?);
    }
    agent.settle()?;
    for (cgroup, writes, maps) in [(&first, 150, made[0] + made[2]), (&second, 200, made[1])] {
        let told = told(&agent, cgroup)?;
        expect::exactly(&cgroup.path(), json::count(&told, "block_io.write_ops_total")?, writes)?;
        expect::exactly(&cgroup.path(), json::count(&told, "address_space.mmap_file_calls_total")?, maps)?;
    }
    agent.stop()
}

#[test]
fn what_happens_to_cgroups_is_told_with_their_paths() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut cgroup = Cgroup::new("events")?;
    let (id, path) = (cgroup.id()?, cgroup.path());
    let expect_event = |kind: &str, path: &str| -> Result<()> {
        let event = agent.event(kind, |event| event["event"] == kind && event["id"] == id)?;
        expect::exactly(kind, json::text(&event, "path")?, path)
    };
    expect_event("cgroup_made", &path)?;

    let workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    let moved = agent.event("moved", |event| event["event"] == "moved" && event["pid"] == workload.pid())?;
    expect::exactly("moved to", json::text(&moved, "cgroup")?, &path)?;
    drop(workload);

    // Only version 1 has renaming at all.
    let renamed = cgroup.rename(&format!("monitor-test-{}-renamed", std::process::id()));
    if cgroup.hierarchy().version_2 {
        ensure!(renamed.is_err(), "version 2 renamed a cgroup, and the test does not know what to expect");
    } else {
        renamed?;
        expect_event("cgroup_renamed", &cgroup.path())?;
    }
    cgroup.remove()?;
    expect_event("cgroup_removed", &cgroup.path())?;
    agent.stop()
}

#[test]
fn a_cgroup_keeps_its_totals_when_its_processes_have_gone_and_it_too() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new("gone")?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    let faults = run(&mut workload, &format!("faults user-write {PAGES} 1"))?;
    drop(workload);
    cgroup.remove()?;
    agent.settle()?;
    let told = told(&agent, &cgroup)?;
    expect::within_a_thousandth("faults", all_faults(&told)?, faults)?;
    expect::exactly("removed", &told["removed"], &Value::Bool(true))?;
    expect::exactly("processes", json::count(&told, "processes_running")?, 0)?;
    agent.stop()
}
