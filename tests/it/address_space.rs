//! Source `address_space`, against what the workload called, with which sizes.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Agent, Machine, Workload, agent::Measured, clock::boot_ns, expect, json, proc, workload};

const MIB: i64 = 1 << 20;

/// Every counter of the workload's report grew by exactly what the report says.
fn all_exact(measured: &Measured) -> Result<()> {
    let made = measured.made.as_object().context("no report")?;
    for (name, value) in made {
        let value = value.as_u64().context("no count")?;
        expect::exactly(name, measured.grown(&format!("address_space.{name}"))?, value)?;
    }
    Ok(())
}

#[test]
fn calls_bytes_and_kinds_are_exactly_the_workloads() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    // Also a size that is not a whole number of pages, and one that takes other paths in the kernel.
    for command in ["maps 500 4096", "maps 300 10000", "maps 50 5000000"] {
        all_exact(&agent.measure(&mut workload, command)?).context(command)?;
    }
    agent.stop()
}

#[test]
fn failed_calls_are_counted_as_calls_and_as_failures_without_bytes() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    all_exact(&agent.measure(&mut workload, "failures 300")?)?;
    agent.stop()
}

/// What brk did is the difference of two ends of a heap, and the agent has seen only the calls: it must know where heaps ended
/// when it came, and which are inherited or shared.
#[test]
fn heaps_older_than_the_agent_inherited_shared_and_new_ones_are_known_to_the_byte() -> Result<()> {
    const BYTES: u64 = 64 << 10;
    let _machine = Machine::claim()?;
    let mut old = Workload::start()?;
    ensure!(proc::heap_bytes(old.pid())? > 0, "the workload has no heap yet: nothing to be known");
    let agent = Agent::start(&[])?;
    let measured = agent.measure(&mut old, &format!("heaps {BYTES}"))?;
    let moved = |process: &Value| -> Result<(u64, u64)> {
        let count = |name: &str| json::count(process, &format!("address_space.heap_{name}_bytes_total"));
        Ok((count("grown")?, count("shrunk")?))
    };
    let (before, after) = (moved(&measured.before)?, moved(&measured.after)?);
    // It grew one part itself, and took back that and the three of the child that shares its heap.
    expect::exactly("its own heap", (after.0 - before.0, after.1 - before.1), (BYTES, 4 * BYTES))?;
    let child = |name: &str| moved(&agent.process(json::count(&measured.made, name)? as u32)?);
    expect::exactly("an inherited heap", child("forked")?, (2 * BYTES, 0))?;
    expect::exactly("a shared heap", child("sharing")?, (3 * BYTES, 0))?;

    // A process that the agent saw begin has told it all of its heap; one that becomes another program begins a new one.
    let mut new = Workload::start()?;
    agent.settle()?;
    let (grown, shrunk) = moved(&agent.process(new.pid())?)?;
    expect::exactly("heap of a new process", grown - shrunk, proc::heap_bytes(new.pid())?)?;
    let kept = grown - shrunk;
    new.run(&format!("exec {} again", workload::binary()?.display()))?;
    agent.settle()?;
    let (grown, shrunk) = moved(&agent.process(new.pid())?)?;
    expect::exactly("heap after exec", grown - shrunk, kept + proc::heap_bytes(new.pid())?)?;
    agent.stop()
}

/// The address-space events of a process since a moment: its start, in which libraries are mapped, is not of interest.
fn events(agent: &Agent, pid: u32, since_ns: u64) -> Result<Vec<Value>> {
    agent.events(|event| {
        event["event"] == "address_space" && event["pid"] == pid && event["time_ns"].as_u64() >= Some(since_ns)
    })
}

#[test]
fn each_large_call_is_told_with_its_place_and_size_and_small_ones_are_not() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "address_space.large_call=1MiB"])?;
    let mut workload = Workload::start()?;
    let ready = boot_ns();
    workload.run("maps 5 500000")?;
    let made = workload.run(&format!("large {}", 2 * MIB))?;
    agent.settle()?;
    let told = events(&agent, workload.pid(), ready)?;
    let expected = [
        ("mmap_anonymous", "mmap_anonymous", 2 * MIB),
        ("mmap_file", "mmap_file", 2 * MIB),
        ("mremap", "mremap", 2 * MIB),
        ("munmap", "munmap", 4 * MIB),
        ("munmap", "mmap_file", 2 * MIB),
        ("brk", "", 2 * MIB),
        ("brk", "brk", -2 * MIB),
    ];
    expect::exactly("large calls", told.len(), expected.len()).with_context(|| format!("{told:?}"))?;
    for (event, (call, address, bytes)) in told.iter().zip(expected) {
        expect::exactly("call", &event["call"], &Value::from(call))?;
        expect::exactly(call, &event["bytes"], &Value::from(bytes))?;
        expect::exactly("thread", &event["tid"], &Value::from(workload.pid()))?;
        expect::exactly("error", &event["error"], &Value::Null)?;
        let heap_end = json::count(&made, "brk")? + 2 * MIB as u64;
        let address = if address.is_empty() { heap_end } else { json::count(&made, address)? };
        expect::exactly(&format!("address of {call}"), json::count(event, "address")?, address)?;
    }
    agent.stop()
}

#[test]
fn each_failed_call_is_told_with_its_error() -> Result<()> {
    let _machine = Machine::claim()?;
    // So large that none is told for its size, by which others would use up the room for events.
    let agent = Agent::start(&["--set", "address_space.large_call=64GiB"])?;
    let mut workload = Workload::start()?;
    let ready = boot_ns();
    workload.run("failures 1")?;
    agent.settle()?;
    let told = events(&agent, workload.pid(), ready)?;
    let told: Vec<(&str, &str)> =
        told.iter().map(|e| Ok((json::text(e, "call")?, json::text(e, "error")?))).collect::<Result<_>>()?;
    let expected = [("mmap_anonymous", "EINVAL"), ("munmap", "EINVAL"), ("mremap", "EFAULT"), ("brk", "ENOMEM")];
    expect::exactly("failed calls", told.as_slice(), &expected)?;
    agent.stop()
}
