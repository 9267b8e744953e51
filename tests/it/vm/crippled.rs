//! Hosts that lack something: the agent starts, says what, and serves the rest. Each test has a virtual machine of its kind.

use super::expected::{Expected, SOURCES};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use tests::{Agent, Machine, Workload, agent, expect, json};

fn doctor() -> Result<(Option<i32>, Value)> {
    let output = agent::run(&["doctor", "--json"])?;
    Ok((output.status.code(), serde_json::from_slice(&output.stdout).context("doctor prints no JSON")?))
}

/// Every source is attached by its best rung, or by none where the kernel has none for it.
fn best_rungs(agent: &Agent, expected: &Expected) -> Result<()> {
    for source in SOURCES {
        let (told, best) = (agent.coverage(source)?["rung"].clone(), expected.rungs(source)?.first().copied());
        expect::exactly(source, told, best.into())?;
    }
    Ok(())
}

/// Counters of a workload are exact, whatever else is missing.
fn counts(agent: &Agent) -> Result<()> {
    let mut workload = Workload::start()?;
    let measured = agent.measure(&mut workload, "maps 100 4096")?;
    let calls = "address_space.mmap_calls_total";
    expect::exactly(calls, measured.grown(calls)?, json::count(&measured.made, "mmap_calls_total")?)?;
    let measured = agent.measure(&mut workload, "faults user-write 20000 1")?;
    expect::within_a_thousandth("faults", measured.grown("page_faults.user_total")?, 20_000)
}

/// `bare`: booted with psi=0, no tracing file system mounted and none to be made.
#[test]
fn bare_without_pressure_information_and_tracefs() -> Result<()> {
    let _machine = Machine::claim()?;
    ensure!(!Path::new("/proc/pressure").exists() || std::fs::read("/proc/pressure/memory").is_err(), "PSI is on");
    ensure!(!Path::new("/sys/kernel/tracing/events").exists(), "tracefs is mounted");
    let (expected, (code, report)) = (Expected::here()?, doctor()?);
    expect::exactly("exit code of doctor", code, Some(0))?;
    let reason = json::at(&report, "facts.tracefs.Err")?.as_str().context("no reason")?;
    ensure!(!reason.is_empty(), "it does not say why there is no tracefs");
    let reason = json::at(&report, "facts.pressure.Err")?.as_str().context("no reason")?;
    ensure!(reason.contains("/proc/pressure/memory"), "it does not say why there is no pressure: {reason}");
    let agent = Agent::start(&[])?;
    ensure!(agent.words().contains(reason), "the agent does not say so: {}", agent.words());
    best_rungs(&agent, &expected)?;
    counts(&agent)?;
    let host = agent.get("/v1/host")?;
    expect::exactly("pressure", json::at(&host, "pressure.memory")?, &Value::Null)?;
    agent.stop()?;

    let agent = Agent::start(&["--set", "address_space.rung=syscall_tracepoints"])?;
    let coverage = agent.coverage("address_space")?;
    expect::exactly("address_space by tracefs", json::text(&coverage, "state")?, "unavailable")?;
    ensure!(coverage["refused"].to_string().contains("trac"), "it does not say why: {coverage}");
    let health = agent.get("/v1/health")?;
    expect::exactly("health", json::text(&health, "status")?, "degraded")?;
    agent.stop()
}

/// `no-btf`: a kernel that does not show its types in sysfs.
#[test]
fn no_btf_in_sysfs() -> Result<()> {
    let _machine = Machine::claim()?;
    ensure!(!Path::new("/sys/kernel/btf/vmlinux").exists(), "the types are shown");
    let (expected, (code, report)) = (Expected::here()?, doctor()?);
    let agent = Agent::start(&[])?;
    if expected.has("btf_by_system_call")? {
        expect::exactly("exit code of doctor", code, Some(0))?;
        best_rungs(&agent, &expected)?;
        counts(&agent)?;
        return agent.stop();
    }
    expect::exactly("exit code of doctor", code, Some(3))?;
    let reason = json::text(&report, "facts.fields_missing")?;
    ensure!(reason.contains("/sys/kernel/btf/vmlinux"), "it does not name what is missing: {reason}");
    ensure!(agent.words().contains("monitor doctor"), "it does not say where to look: {}", agent.words());
    for source in SOURCES {
        let coverage = agent.coverage(source)?;
        expect::exactly(source, json::text(&coverage, "state")?, "unavailable")?;
        ensure!(!json::list(&coverage, "refused")?.is_empty(), "{source} is refused for no reason");
    }
    expect::exactly("health", json::text(&agent.get("/v1/health")?, "status")?, "degraded")?;
    // What needs no program is there: processes that begin and end are found in /proc, with their names.
    let workload = Workload::start()?;
    let pid = workload.pid();
    let found = |agent: &Agent| -> Result<Option<Value>> { Ok(agent.processes_with(pid)?.pop()) };
    let process = tests::clock::wait_until("a new process", tests::clock::PATIENCE, || found(&agent))?;
    expect::exactly("its name", json::text(&process, "command")?, "workload")?;
    expect::exactly("its faults", json::at(&process, "page_faults.user_total")?, &Value::Null)?;
    drop(workload);
    tests::clock::wait_until("its end", tests::clock::PATIENCE, || {
        Ok(found(&agent)?.filter(|process| process["state"] == "exited"))
    })?;
    // And so is what files tell, of the machine and of its cgroups.
    let host = agent.get("/v1/host")?;
    ensure!(json::count(&host, "memory.total_bytes")? > 64 << 20, "no memory is told: {host}");
    ensure!(!json::at(&host, "pressure.memory")?.is_null(), "no pressure is told: {host}");
    let cgroup = tests::Cgroup::new("without-types")?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    workload.run(&format!("hold {}", 8 << 20))?;
    tests::clock::wait_until("the memory of a cgroup", tests::clock::PATIENCE, || {
        let told = agent.cgroup(&cgroup.path())?;
        Ok(told.filter(|told| told["memory"]["current_bytes"].as_u64() >= Some(8 << 20)))
    })?;
    agent.stop()
}
