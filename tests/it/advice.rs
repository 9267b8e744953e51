//! Advice: what the agent says of a program whose memory is known, after it was killed itself, and of limits that kill for real.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

const MIB: u64 = 1 << 20;

/// A workload in a cgroup, and so a tree, of its own.
fn apart() -> Result<(Cgroup, Workload)> {
    let (cgroup, workload) = (Cgroup::new("advised")?, Workload::start()?);
    cgroup.add(workload.pid())?;
    Ok((cgroup, workload))
}

/// What is said of the tree that a workload began.
fn advice(agent: &Agent, pid: u32) -> Result<Option<Value>> {
    let answer = agent.get("/v1/recommendations")?;
    let name = format!("tree {pid} ");
    let is_meant = |one: &&Value| one["subject"].as_str().is_some_and(|subject| subject.starts_with(&name));
    Ok(json::list(&answer, "recommendations")?.iter().find(is_meant).cloned())
}

#[test]
fn a_history_outlives_the_agents_sudden_end_but_for_the_last_interval() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let path = format!("advice.directory={}", directory.path().join("history").display());
    let flags = ["--set", &path, "--set", "advice.interval=1s", "--tick", "200ms"];
    let (_cgroup, mut workload) = apart()?;
    let pid = workload.pid();
    let agent = Agent::start(&flags)?;
    let kept = workload.run(&format!("keep anon {}", 96 * MIB))?;
    wait_until("all of it in a snapshot", PATIENCE, || {
        let told = agent.process(pid).and_then(|told| json::count(&told, "memory.resident_bytes")).unwrap_or(0);
        Ok((told >= 96 * MIB).then_some(()))
    })?;
    wait_until("it in the history", PATIENCE, || advice(&agent, pid))?;
    workload.run(&format!("give-back {} {}", json::count(&kept, "address")?, 96 * MIB))?;
    let most = proc::bytes(pid, "status", "VmHWM")?;
    let seen = |told: &Value| json::number(told, "observed.window_seconds");
    let before = wait_until("ten seconds of it", PATIENCE, || {
        let told = advice(&agent, pid)?.context("it has gone")?;
        Ok((seen(&told)? >= 10.0).then_some(told))
    })?;
    let max = json::count(&before, "observed.ws_max_bytes")?;
    expect::between("its largest", most * 98 / 100, max, most * 102 / 100)?;
    let event = agent.event("the recommendation", |event| {
        event["event"] == "recommendation" && event["subject"] == before["subject"]
    })?;
    expect::exactly("the event's request", &event["request_bytes"], &before["recommended"]["request_bytes"])?;
    // By the command, by the files alone.
    let from = directory.path().join("history").to_string_lossy().into_owned();
    let filed = || -> Result<Option<Value>> {
        let output = agent::run(&["recommend", "--format", "json", "--from", &from, "--set", "advice.interval=1s"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout)?;
        let is_meant = |one: &&Value| one["subject"] == before["subject"];
        Ok(json::list(&told, "recommendations")?.iter().find(is_meant).cloned())
    };
    // A disk may be slow, and what waits for it goes with the agent.
    wait_until("all but the last interval in the files", PATIENCE, || {
        let told = filed()?.map(|told| seen(&told)).transpose()?;
        Ok((told >= Some(seen(&before)? - 1.0)).then_some(()))
    })?;
    agent.end_by(libc::SIGKILL)?;

    let agent = Agent::start(&flags)?;
    let after = wait_until("it again", PATIENCE, || advice(&agent, pid))?;
    ensure!(seen(&after)? >= seen(&before)? - 1.0, "{} s are left of {} s", seen(&after)?, seen(&before)?);
    // Nothing of it has been as large since the agent was started again.
    expect::exactly("its largest", json::count(&after, "observed.ws_max_bytes")?, max)?;
    agent.stop()?;
    expect::exactly("its largest", json::count(&filed()?.context("not in the files")?, "observed.ws_max_bytes")?, max)
}

#[test]
fn two_recordings_side_by_side_tell_how_much_larger_one_was() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let paths = ["before.rec", "after.rec"].map(|name| directory.path().join(name).to_string_lossy().into_owned());
    let mut peaks = Vec::new();
    for (path, mebibytes) in paths.iter().zip([16, 64]) {
        let agent = Agent::start(&["--record", path])?;
        let (_cgroup, mut workload) = apart()?;
        let pid = workload.pid();
        workload.run(&format!("hold {}", mebibytes * MIB))?;
        let peak = proc::bytes(pid, "status", "VmHWM")?;
        wait_until("all of it in a snapshot", PATIENCE, || {
            let told = agent.process(pid).and_then(|told| json::count(&told, "memory.resident_bytes")).unwrap_or(0);
            Ok((told.abs_diff(peak) < MIB).then_some(()))
        })?;
        peaks.push(peak);
        agent.stop()?;
    }
    let output = agent::run(&["compare", "--json", &paths[0], &paths[1]])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let is_workload = |one: &&Value| one["subject"] == "tree workload serve";
    let told = json::list(&told, "subjects")?.iter().find(is_workload).with_context(|| format!("{told}"))?;
    for (side, peak) in ["a", "b"].into_iter().zip(peaks) {
        let told = json::count(told, &format!("{side}.peak_bytes"))?;
        ensure!(told.abs_diff(peak) < MIB, "{side}: {told} bytes are told, {peak} were there");
    }
    Ok(())
}

/// What a limit does is known of every limit, by what was used without one: it kills where the peak is above it.
#[test]
fn a_limit_below_the_peak_that_was_seen_kills_and_one_above_it_does_not() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "advice.interval=1s", "--tick", "200ms"])?;
    let (_cgroup, mut workload) = apart()?;
    workload.run(&format!("keep anon {}", 64 * MIB))?;
    let told = wait_until("its peak", PATIENCE, || {
        let told = advice(&agent, workload.pid())?;
        Ok(told.filter(|told| told["observed"]["ws_max_bytes"].as_u64().is_some_and(|bytes| bytes >= 64 * MIB)))
    })?;
    let peak = json::count(&told, "observed.ws_max_bytes")?;
    for (limit, killed) in [(peak * 3 / 4, true), (peak * 5 / 4, false)] {
        let cgroup = Cgroup::new("limited")?;
        cgroup.limit_memory(limit)?;
        let mut again = Workload::start()?;
        cgroup.add(again.pid())?;
        again.send(&format!("keep anon {}", 64 * MIB))?;
        let was_killed =
            if killed { agent::ending(again.wait()?) == (None, Some(libc::SIGKILL)) } else { again.receive().is_err() };
        expect::exactly(&format!("whether {limit} of {peak} bytes kill"), was_killed, killed)?;
    }
    agent.stop()
}
