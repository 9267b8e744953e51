//! Source `lifecycle`: who was born, became another program, and died, against what the workload did and wait4(2) says.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::HashMap, os::unix::fs::symlink, time::Duration};
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, amount, slowness, wait_until},
    expect, json, proc, workload,
};

const SHORT_LIVES: u64 = 2000;
const SHORT_NS: u64 = 5_000_000;

fn all_faults(process: &Value) -> Result<u64> {
    Ok(json::count(process, "page_faults.user_total")? + json::count(process, "page_faults.kernel_total")?)
}

/// A list of lists of numbers in a workload's report.
fn rows(report: &Value, name: &str) -> Result<Vec<Vec<u64>>> {
    json::list(report, name)?
        .iter()
        .map(|row| row.as_array().into_iter().flatten().map(|n| n.as_u64().context("no number")).collect())
        .collect()
}

#[test]
fn two_thousand_processes_that_live_less_than_five_milliseconds_are_all_seen_whole() -> Result<()> {
    let _machine = Machine::claim()?;
    // On an emulated processor the last of them may end minutes after the first.
    // Other rings that mention them all the time make no difference: each is known by its birth.
    // The ring holds all of it, also while the agent stands still; another test is about the default size.
    let settings = ["exited.keep=30m", "address_space.large_call=4096", "lifecycle.ring_bytes=8MiB"];
    let agent = Agent::start(&settings.map(|setting| ["--set", setting]).concat())?;
    let mut workload = Workload::start()?;
    let lives = amount(SHORT_LIVES);
    let mark = format!("mark-{}", std::process::id());
    let made = rows(&workload.run(&format!("spawn {lives} {mark}"))?, "processes")?;
    let short = made.iter().filter(|row| row[3] < SHORT_NS * u64::from(slowness())).count();
    ensure!(short as u64 >= lives, "only {short} of {} lived short", made.len());
    agent.settle()?;
    let told: HashMap<String, Value> = agent
        .processes()?
        .into_iter()
        .filter(|p| p["parent_pid"] == workload.pid())
        .filter_map(|p| Some((p["command_line"].as_str()?.to_owned(), p)))
        .collect();
    let program = workload::binary()?.display().to_string();
    let parent = agent.process(workload.pid())?;
    for (i, row) in made.iter().enumerate() {
        let code = i as u64 % 200;
        let command_line = format!("{program} exit {code} {mark}-{i}");
        let process = told.get(&command_line).with_context(|| format!("not seen: {command_line}"))?;
        expect::exactly("pid", json::count(process, "pid")?, row[0])?;
        expect::exactly("wait status", row[1], code << 8)?;
        expect::exactly("exit code", json::count(process, "exit_code")?, code)?;
        expect::exactly("state", json::text(process, "state")?, "exited")?;
        expect::exactly("name", json::text(process, "command")?, "workload")?;
        expect::exactly("cgroup", &process["cgroup"], &parent["cgroup"])?;
        expect::exactly("tree", &process["tree"], &parent["tree"])?;
        // wait4(2) also counts pages that the kernel brought in itself to lay out the arguments, without a fault.
        expect::between(&format!("faults of {command_line}"), row[2] - 8, all_faults(process)?, row[2])?;
        ensure!(json::count(process, "address_space.mmap_calls_total")? > 0, "no mmap of {command_line}");
    }
    agent.stop()
}

#[test]
fn a_process_is_followed_through_fork_exec_and_exit() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let pid = workload.pid();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("another-name");
    symlink(workload::binary()?, &path)?;
    workload.run(&format!("exec {} its-argument", path.display()))?;
    agent.settle()?;
    let process = agent.process(pid)?;
    let command_line = format!("{} serve its-argument", path.display());
    expect::exactly("name", json::text(&process, "command")?, "another-name")?;
    expect::exactly("arguments", json::text(&process, "command_line")?, &command_line)?;
    expect::exactly("state", json::text(&process, "state")?, "running")?;
    expect::exactly("parent", json::count(&process, "parent_pid")?, u64::from(std::process::id()))?;
    workload.send("exit 7")?;
    expect::exactly("status", agent::ending(workload.wait()?), (Some(7), None))?;

    agent.event("its exit", |event| event["event"] == "exit" && event["pid"] == pid)?;
    let events = agent.events(|event| event["pid"] == pid)?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    let kinds: Vec<&str> = kinds.into_iter().filter(|kind| ["fork", "exec", "exit"].contains(kind)).collect();
    expect::exactly("its life", kinds.as_slice(), &["fork", "exec", "exec", "exit"])?;
    let find = |kind: &str| events.iter().rfind(|event| event["event"] == kind).context("no such event");
    expect::exactly("forked by", json::count(find("fork")?, "parent_pid")?, u64::from(std::process::id()))?;
    expect::exactly("arguments", json::text(find("exec")?, "command_line")?, &command_line)?;
    expect::exactly("exit code", json::count(find("exit")?, "exit_code")?, 7)?;
    expect::exactly("signal", &find("exit")?["signal"], &Value::Null)?;
    let starts: Vec<&Value> = events.iter().map(|event| &event["start_time_ns"]).collect();
    ensure!(starts.iter().all(|start| *start == &process["start_time_ns"]), "start times differ: {starts:?}");
    agent.stop()
}

/// The kernel keeps the first 256 bytes of an exec's arguments, each with a NUL behind it.
#[test]
fn of_long_arguments_the_beginning_is_kept_and_the_rest_said_to_be_there() -> Result<()> {
    const KEPT: usize = 256;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let (pid, directory) = (workload.pid(), tempfile::tempdir()?);
    let path = directory.path().join("x");
    symlink(workload::binary()?, &path)?;
    let whole = |argument: &str| format!("{} serve {argument}", path.display());
    // One that fills it to the last byte, one byte more, and far more.
    let fits = KEPT - 1 - whole("").len();
    for length in [fits, fits + 1, 4000] {
        let argument = "a".repeat(length);
        workload.run(&format!("exec {} {argument}", path.display()))?;
        let line = whole(&argument);
        // What is cut off by one byte is the last NUL, which is none of the words.
        let told = if length == fits { line } else { format!("{}…", &line[..KEPT]) };
        let is_told = |event: &Value| event["event"] == "exec" && event["pid"] == pid && event["command_line"] == *told;
        agent.event(&format!("arguments of {length} bytes"), is_told)?;
    }
    agent.stop()
}

#[test]
fn a_process_ended_by_a_signal_is_told_so() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run("faults user-write 5000 1")?;
    workload.signal(libc::SIGTERM)?;
    expect::exactly("status", agent::ending(workload.wait()?), (None, Some(libc::SIGTERM)))?;
    agent.settle()?;
    let process = agent.process(workload.pid())?;
    expect::exactly("state", json::text(&process, "state")?, "exited")?;
    expect::exactly("signal", json::count(&process, "exit_signal")?, libc::SIGTERM as u64)?;
    expect::exactly("exit code", &process["exit_code"], &Value::Null)?;
    expect::exactly("killed for memory", &process["oom_killed"], &Value::Bool(false))?;
    ensure!(all_faults(&process)? >= 5000, "its totals are not its final ones: {process}");
    agent.stop()
}

#[test]
fn a_pid_that_is_used_again_is_another_process() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let made = workload.run("reuse-pid 10000")?;
    agent.settle()?;
    let pid = json::count(&made, "pid")?;
    let mut told = agent.processes_with(u32::try_from(pid)?)?;
    told.sort_by_key(|process| process["start_time_ns"].as_u64());
    let faults: Vec<u64> = told.iter().map(all_faults).collect::<Result<_>>()?;
    let expected = [json::count(&made, "first_faults")?, json::count(&made, "second_faults")?];
    expect::exactly(&format!("processes with pid {pid}"), faults.len(), 2)?;
    // Newer kernels take a fault again that had to wait, and count it once.
    for (faults, expected) in faults.into_iter().zip(expected) {
        expect::within_a_thousandth(&format!("faults with pid {pid}"), faults, expected)?;
    }
    agent.stop()
}

#[test]
fn a_process_in_a_pid_namespace_is_told_by_its_pid_on_the_host() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let made = workload.run("in-namespace 10000")?;
    expect::exactly("pid inside", json::count(&made, "pid_inside")?, 1)?;
    agent.settle()?;
    let process = agent.process(u32::try_from(json::count(&made, "pid")?)?)?;
    expect::exactly("faults", all_faults(&process)?, json::count(&made, "faults")?)?;
    expect::exactly("parent", json::count(&process, "parent_pid")?, u64::from(workload.pid()))?;
    agent.stop()
}

#[test]
fn the_victim_of_a_cgroup_without_memory_is_named() -> Result<()> {
    let _machine = Machine::claim()?;
    let cgroup = Cgroup::new("oom")?;
    cgroup.limit_memory(32 << 20)?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    workload.send(&format!("allocate {}", 128 << 20))?;
    expect::exactly("status", agent::ending(workload.wait()?), (None, Some(libc::SIGKILL)))?;
    let pid = workload.pid();
    check_victim(&agent, pid, &cgroup.path())?;
    agent.settle()?;
    let process = agent.process(pid)?;
    expect::exactly("killed for memory", &process["oom_killed"], &Value::Bool(true))?;
    expect::exactly("signal", json::count(&process, "exit_signal")?, libc::SIGKILL as u64)?;
    // Some 8,192 pages fit.
    expect::between("faults until then", 7_000, all_faults(&process)?, 16_000)?;
    agent.stop()
}

/// A workload that was killed for want of memory is told: what it was, where, with what, and before its exit.
pub(crate) fn check_victim(agent: &Agent, pid: u32, cgroup: &str) -> Result<()> {
    let event = agent.event("the victim", |event| event["event"] == "oom_victim" && event["pid"] == pid)?;
    expect::exactly("its name", json::text(&event, "command")?, "workload")?;
    expect::exactly("its cgroup", json::text(&event, "cgroup")?, cgroup)?;
    let exit = agent.event("its exit", |event| event["event"] == "exit" && event["pid"] == pid)?;
    expect::exactly("cgroup it exited in", json::text(&exit, "cgroup")?, cgroup)?;
    let order = agent.events(|event| event["pid"] == pid)?;
    let order: Vec<&str> = order.iter().filter_map(|event| event["event"].as_str()).collect();
    let place = |kind: &str| order.iter().position(|event| *event == kind);
    ensure!(place("oom_victim") < place("exit"), "the exit is told before its cause: {order:?}");
    ensure!(json::count(&event, "time_ns")? <= json::count(&exit, "time_ns")?, "{event} is younger than {exit}");
    check_memory_when_killed(&event, pid)
}

/// What a victim had in memory, against the line of the kernel's log, which is of the same moment.
pub(crate) fn check_memory_when_killed(event: &Value, pid: u32) -> Result<()> {
    let apart = proc::counters_apart()?;
    let logged = proc::bytes_when_killed(pid)?;
    for (name, bytes) in ["anon_bytes", "file_bytes", "shmem_bytes"].into_iter().zip(logged) {
        let told = json::count(event, &format!("resident.{name}"))?;
        expect::between(&format!("{name} when it was killed"), bytes.saturating_sub(apart), told, bytes + apart)?;
    }
    ensure!(logged[0] > 8 << 20, "the victim had next to nothing: {logged:?}");
    Ok(())
}

#[test]
fn exited_processes_are_told_for_as_long_as_configured_then_folded_away() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "exited.keep=10s"])?;
    let mut workload = Workload::start()?;
    workload.run("faults user-write 10000 1")?;
    let pid = workload.pid();
    drop(workload);
    let exit = agent.event("its exit", |event| event["event"] == "exit" && event["pid"] == pid)?;
    agent.settle()?;
    ensure!(all_faults(&agent.process(pid)?)? >= 10_000, "final totals are missing");
    let before = agent.get("/v1/snapshot")?;
    let gone = wait_until("the process to be folded away", PATIENCE, || {
        let answer = agent.get(&format!("/v1/processes?pid={pid}"))?;
        Ok(json::list(&answer, "processes")?.is_empty().then_some(answer))
    })?;
    let after = agent.get("/v1/snapshot")?;
    ensure!(json::grown(&before, &after, "folded_processes_total")? > 0, "nothing was counted as folded");
    let fallen = json::fallen(&before["host"], &after["host"]);
    ensure!(fallen.is_empty(), "the host's totals fell: {fallen:?}");
    let time = Duration::from_nanos(json::grown(&exit, &gone, "time_ns")?);
    ensure!(time > Duration::from_secs(10), "gone {time:?} after its exit, not 10 s");
    agent.stop()
}

#[test]
fn no_more_exited_processes_are_kept_than_configured() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "exited.limit=10"])?;
    let mut workload = Workload::start()?;
    let made = rows(&workload.run("spawn 50 bounded")?, "processes")?;
    agent.settle()?;
    let snapshot = agent.get("/v1/snapshot")?;
    // Those of others that have just exited may be kept beside.
    let is_kept = |process: &&Value| process["parent_pid"] == workload.pid() && process["state"] == "exited";
    let exited = json::list(&snapshot, "processes")?.iter().filter(is_kept).count();
    ensure!(exited <= 10, "{exited} exited processes are kept, not 10");
    let folded = json::count(&snapshot, "folded_processes_total")?;
    ensure!(folded >= made.len() as u64 - 10, "{} exited, only {folded} were counted as folded", made.len());
    let faults: u64 = made.iter().map(|row| row[2] - 8).sum();
    ensure!(all_faults(&snapshot["host"])? >= faults, "the host lost what was folded away");
    agent.stop()
}
