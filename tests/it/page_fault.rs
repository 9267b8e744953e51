//! Source `page_fault`, against the number of pages touched and /proc/PID/stat.
//!
//! /proc counts faults that were resolved, the agent those that were taken, in user and in kernel mode together. For a
//! workload that only touches memory of its own these are the same events.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{thread, time::Duration};
use tests::{Agent, Machine, Workload, agent::Measured, expect, json, proc};

/// How the workload faults, how often, and the counter that must tell.
const KINDS: [(&str, u64, &str); 7] = [
    ("user-read", 20_000, "user_read_not_present_total"),
    ("user-write", 20_000, "user_write_not_present_total"),
    ("user-copy", 20_000, "user_write_present_total"),
    ("user-fetch", 5_000, "user_fetch_not_present_total"),
    ("kernel-read", 20_000, "kernel_read_not_present_total"),
    ("kernel-write", 20_000, "kernel_write_not_present_total"),
    ("kernel-copy", 20_000, "kernel_write_present_total"),
];

fn all_faults(process: &Value) -> Result<u64> {
    Ok(json::count(process, "page_faults.user_total")? + json::count(process, "page_faults.kernel_total")?)
}

fn grown_faults(measured: &Measured) -> Result<u64> {
    Ok(measured.grown("page_faults.user_total")? + measured.grown("page_faults.kernel_total")?)
}

#[test]
fn faults_of_each_kind_are_as_many_as_the_workload_made_and_as_proc_has() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    for (access, pages, counter) in KINDS {
        // The first time also faults on the code that does it.
        workload.run(&format!("faults {access} 16 1"))?;
        let measured = agent.measure(&mut workload, &format!("faults {access} {pages} 1"))?;
        expect::within_a_thousandth(counter, measured.grown(&format!("page_faults.{counter}"))?, pages)?;
        expect::within_a_thousandth(
            &format!("all faults of {access}"),
            grown_faults(&measured)?,
            measured.proc_faults,
        )?;
    }
    agent.stop()
}

#[test]
fn the_kinds_add_up_to_the_totals() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    for (access, ..) in KINDS {
        workload.run(&format!("faults {access} 1000 1"))?;
    }
    agent.settle()?;
    let process = agent.process(workload.pid())?;
    for (total, prefix) in [("page_faults.user_total", "user_"), ("page_faults.kernel_total", "kernel_")] {
        let groups = json::at(&process, "page_faults")?.as_object().into_iter().flatten();
        let kinds = groups.filter(|(name, _)| name.starts_with(prefix) && name.contains("present"));
        let counts: Vec<u64> = kinds.filter_map(|(_, value)| value.as_u64()).collect();
        ensure!(counts.len() >= 4, "{process} has {} kinds of {prefix}", counts.len());
        expect::exactly(total, json::count(&process, total)?, counts.iter().sum())?;
    }
    agent.stop()
}

#[test]
fn faults_of_threads_are_their_processs() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let measured = agent.measure(&mut workload, "faults user-write 80000 4")?;
    expect::within_a_thousandth("faults of four threads", grown_faults(&measured)?, measured.proc_faults)?;
    expect::within_a_thousandth("their writes", measured.grown("page_faults.user_write_not_present_total")?, 80_000)?;
    agent.stop()
}

#[test]
fn a_process_older_than_the_agent_counts_from_the_agents_start() -> Result<()> {
    let _machine = Machine::claim()?;
    let mut workload = Workload::start()?;
    workload.run("faults user-write 50000 1")?;
    let agent = Agent::start(&[])?;
    workload.run("faults user-write 20000 1")?;
    agent.settle()?;
    let process = agent.process(workload.pid())?;
    expect::within_a_thousandth("faults since the agent started", all_faults(&process)?, 20_000)?;
    expect::exactly("its name", json::text(&process, "command")?, "workload")?;
    agent.stop()
}

#[test]
fn faults_per_second_are_of_the_right_size() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--tick", "500ms"])?;
    let mut workload = Workload::start()?;
    let pid = workload.pid();
    let of_workload = |snapshot: &Value| -> Result<Value> {
        let found = json::list(snapshot, "processes")?.iter().find(|process| process["pid"] == pid);
        Ok(found.context("the workload is not listed")?.clone())
    };
    agent.settle()?;
    workload.send("storm 0 5000 512")?;
    let (mut before, mut compared) = (agent.get("/v1/snapshot")?, 0);
    while workload.receive_soon(Duration::from_millis(20))?.is_none() {
        let now = agent.get("/v1/snapshot")?;
        let seconds = json::grown(&before, &now, "time_ns")? as f64 / 1e9;
        let (process_before, process) = (of_workload(&before)?, of_workload(&now)?);
        let mean = (all_faults(&process)? - all_faults(&process_before)?) as f64 / seconds;
        // One in between may have been missed.
        let follows = (json::number(&now, "tick_seconds")? - seconds).abs() < 1e-6;
        if follows && mean > 0.0 {
            let told = json::number(&process, "page_faults.per_second")?;
            ensure!((told / mean - 1.0).abs() < 0.01, "{told} faults/s told, {mean} by the totals of {seconds} s");
            compared += 1;
        }
        before = now;
    }
    ensure!(compared >= 3, "only {compared} snapshots were compared with the ones before");
    agent.stop()
}

#[test]
fn totals_of_two_processes_that_alternate_on_one_processor_never_fall_and_end_exact() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--tick", "100ms"])?;
    let mut storms = [Workload::start()?, Workload::start()?];
    for storm in &mut storms {
        storm.run("storm 0 1 1")?;
    }
    agent.settle()?;
    let mut last = [agent.process(storms[0].pid())?, agent.process(storms[1].pid())?];
    let start = last.clone();
    let proc_start = [proc::faults(storms[0].pid())?, proc::faults(storms[1].pid())?];
    for storm in &mut storms {
        storm.send("storm 0 8000 1")?;
    }
    let pids = [storms[0].pid(), storms[1].pid()];
    let (mut reads, mut changes) = (0, 0);
    let made: Vec<Result<Value>> = thread::scope(|scope| {
        let ends: Vec<_> = storms.iter_mut().map(|storm| scope.spawn(|| storm.receive())).collect();
        while !ends.iter().all(|end| end.is_finished()) {
            for (pid, last) in pids.iter().zip(&mut last) {
                let now = agent.process(*pid)?;
                let fallen = json::fallen(last, &now);
                ensure!(fallen.is_empty(), "of process {pid}: {}", fallen.join(", "));
                reads += 1;
                changes += u64::from(*last != now);
                *last = now;
            }
        }
        ends.into_iter().map(|end| end.join().map_err(|_| anyhow::anyhow!("a reader panicked"))).collect()
    })?;
    // Each read that found something new is a try; under emulation there are few.
    ensure!(changes > 20, "of {reads} reads {changes} found something new: nothing was tried");
    agent.settle()?;
    for ((made, pid), (before, proc_before)) in made.into_iter().zip(pids).zip(start.iter().zip(proc_start)) {
        let told = all_faults(&agent.process(pid)?)? - all_faults(before)?;
        expect::exactly("faults, as in /proc", told, proc::faults(pid)? - proc_before)?;
        expect::within_a_thousandth("faults, as made", told, json::count(&made?, "faults")?)?;
    }
    agent.stop()
}
