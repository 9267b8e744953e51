//! Ends, asked for and sudden: what must not stay behind.

use anyhow::{Result, ensure};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};
use tests::{
    Agent, Machine, Workload, agent,
    bpf::Census,
    clock::{PATIENCE, wait_until},
    expect,
};

/// What an agent has loaded, started under our eyes.
fn loaded_by_an_agent() -> Result<(Agent, Census)> {
    let before = Census::take()?;
    let agent = Agent::start(&[])?;
    let loaded = Census::take()?.without(&before);
    for (what, ids) in [("programs", &loaded.programs), ("maps", &loaded.maps), ("links", &loaded.links)] {
        ensure!(!ids.is_empty(), "no new {what}: nothing to see go");
    }
    Ok((agent, loaded))
}

/// The kernel frees some of it a little later.
fn all_gone(loaded: &Census) -> Result<()> {
    let mut left = loaded.clone();
    wait_until("programs, maps and links to go", PATIENCE, || {
        left = Census::take()?.and(loaded);
        Ok(left.is_empty().then_some(()))
    })
    .map_err(|error| error.context(format!("left: {left:?}")))
}

/// Mounts of the kinds that an agent has to do with: others may mount and unmount meanwhile.
fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let is_ours = |line: &&str| {
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        kind.is_some_and(|kind| ["bpf", "tracefs", "debugfs", "cgroup", "cgroup2"].contains(&kind))
    };
    Ok(text.lines().filter(is_ours).map(str::to_owned).collect())
}

#[test]
fn a_killed_agent_leaves_no_program_map_link_or_mount_behind() -> Result<()> {
    let _machine = Machine::claim()?;
    let mounts_before = mounts()?;
    let (agent, loaded) = loaded_by_an_agent()?;
    let status = agent.end_by(libc::SIGKILL)?;
    expect::exactly("status", status.signal(), Some(libc::SIGKILL))?;
    all_gone(&loaded)?;
    expect::exactly("mounts", mounts()?, mounts_before)
}

#[test]
fn asked_to_end_it_ends_well_and_takes_all_with_it() -> Result<()> {
    let _machine = Machine::claim()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (agent, loaded) = loaded_by_an_agent()?;
        let socket = agent.socket().to_owned();
        let status = agent.end_by(signal)?;
        expect::exactly("exit code", status.code(), Some(0))?;
        ensure!(!socket.exists(), "{} is still there after signal {signal}", socket.display());
        all_gone(&loaded)?;
    }
    Ok(())
}

#[test]
fn it_ends_in_time_under_load_and_while_it_is_followed() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.send("storm 0 5000 1")?;
    let _follower = tests::http::stream(agent.socket(), "/v1/events?follow=true")?;
    let start = Instant::now();
    agent.stop()?;
    ensure!(start.elapsed() < Duration::from_secs(10), "it took {:?} to end", start.elapsed());
    workload.receive().map(|_| ())
}

#[test]
fn given_a_time_it_ends_by_itself() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("monitor.sock");
    let socket = socket.to_string_lossy();
    let start = Instant::now();
    let output = agent::run(&["run", "--socket", &socket, "--quiet", "--for", "2s"])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    expect::between("seconds", 2, start.elapsed().as_secs(), 30)?;
    ensure!(!fs::exists(&*socket)?, "{socket} is still there");
    Ok(())
}

#[test]
fn a_shell_that_ends_the_whole_group_by_ctrl_c_ends_it_well() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, loaded) = loaded_by_an_agent()?;
    // Twice, as an impatient user presses it: the second must not break the first.
    agent.signal(libc::SIGINT)?;
    expect::exactly("exit code", agent.end_by(libc::SIGINT)?.code(), Some(0))?;
    all_gone(&loaded)
}
