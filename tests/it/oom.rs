//! Why the kernel killed: whose limit, who grew, and whom it hit; also when all of them have gone at once.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

const MIB: u64 = 1 << 20;

/// The story of a victim.
fn story(agent: &Agent, victim: u32) -> Result<Value> {
    wait_until("the story", PATIENCE, || {
        let answer = agent.get("/v1/oom")?;
        let fits =
            |story: &&Value| story["victims"].as_array().is_some_and(|all| all.iter().any(|v| v["pid"] == victim));
        Ok(json::list(&answer, "stories")?.iter().find(fits).cloned())
    })
}

#[test]
fn the_limit_that_was_reached_and_who_grew_into_it_are_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let (pod, stories) = (Cgroup::new("pod")?, tempfile::tempdir()?);
    let container = pod.child("main")?;
    pod.limit_memory(48 * MIB)?;
    let directory = format!("oom.directory={}", stories.path().display());
    let agent = Agent::start(&["--set", &directory, "--set", "oom.keep=2"])?;
    let mut workload = Workload::start()?;
    container.add(workload.pid())?;
    agent.settle()?;
    workload.send(&format!("allocate {}", 128 * MIB))?;
    expect::exactly("status", agent::ending(workload.wait()?), (None, Some(libc::SIGKILL)))?;
    let story = story(&agent, workload.pid())?;
    expect::exactly("its cgroup", json::text(&story, "cgroup")?, &container.path())?;
    expect::exactly("the limit", json::text(&story, "limit.cgroup")?, &pod.path())?;
    // On cgroup v1 it is the limit of memory and swap together that is reached, where nothing is counted.
    let known_by = if pod.hierarchy().version_2 { "counter" } else { "use" };
    expect::exactly("how it is known", json::text(&story, "limit.known_by")?, known_by)?;
    expect::exactly("bytes of the limit", json::count(&story, "limit.bytes")?, 48 * MIB)?;
    expect::exactly("who grew", json::count(&story, "culprit.pid")?, u64::from(workload.pid()))?;
    expect::exactly("whether it was killed", &story["culprit_was_killed"], &Value::Bool(true))?;
    // As of the kill, not of the last look.
    let logged = proc::bytes_when_killed(workload.pid())?.iter().sum::<u64>();
    let last = json::count(&story, "culprit.last_bytes")?;
    let apart = 3 * proc::counters_apart()?;
    expect::between("what it had at last", logged.saturating_sub(apart), last, logged + apart)?;
    let grown = json::count(&story, "culprit.grown_bytes")?;
    expect::between("how much it grew", 32 * MIB, grown, 64 * MIB)?;
    let alert = json::list(&agent.get("/v1/alerts")?, "alerts")?.iter().find(|a| a["rule"] == "oom_kill").cloned();
    let summary = alert.context("no alert of the kill")?["summary"].to_string();
    ensure!(summary.contains(&format!("({})", workload.pid())), "another victim: {summary}");
    let file = wait_until("its file", PATIENCE, || {
        let files = fs::read_dir(stories.path())?.flatten().map(|entry| entry.path());
        Ok(files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "json")))
    })?;
    let written: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    expect::exactly("the file's story", &written["summary"], &story["summary"])?;
    agent.stop()
}

/// The kernel kills who has most, or who is spared least, and not who grew.
#[test]
fn a_victim_that_had_not_grown_is_told_apart_from_who_had() -> Result<()> {
    let _machine = Machine::claim()?;
    let cgroup = Cgroup::new("shared")?;
    cgroup.limit_memory(96 * MIB)?;
    let (mut large, mut leaky) = (Workload::start()?, Workload::start()?);
    cgroup.add(large.pid())?;
    cgroup.add(leaky.pid())?;
    // Where what a victim had is freed slowly, as on an emulated processor, the kernel would go on to the next one. Root may be
    // without the right to spare anybody; there it is quick.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", leaky.pid()), "-1000");
    large.run(&format!("keep anon {}", 56 * MIB))?;
    leaky.run(&format!("keep anon {}", 10 * MIB))?;
    // Both are there before the agent, so that what they have is no growth.
    let agent = Agent::start(&[])?;
    agent.settle()?;
    leaky.send(&format!("allocate {}", 48 * MIB))?;
    expect::exactly("status", agent::ending(large.wait()?), (None, Some(libc::SIGKILL)))?;
    let story = story(&agent, large.pid())?;
    expect::exactly("who grew", json::count(&story, "culprit.pid")?, u64::from(leaky.pid()))?;
    expect::exactly("whether it was killed", &story["culprit_was_killed"], &Value::Bool(false))?;
    expect::exactly("the limit", json::text(&story, "limit.cgroup")?, &cgroup.path())?;
    let victim = &json::list(&story, "victims")?[0];
    ensure!(json::count(victim, "grown_bytes")? < 8 * MIB, "the victim grew: {victim}");
    expect::between("what the victim had", 50 * MIB, json::count(victim, "last_bytes")?, 64 * MIB)?;
    agent.stop()
}

#[test]
fn the_story_is_whole_though_the_cgroup_is_removed_at_once() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "exited.keep=10s"])?;
    let cgroup = Cgroup::new("shortlived")?;
    cgroup.limit_memory(32 * MIB)?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    workload.run(&format!("keep anon {}", 16 * MIB))?;
    agent.settle()?;
    let (pid, path) = (workload.pid(), cgroup.path());
    workload.send(&format!("allocate {}", 64 * MIB))?;
    workload.wait()?;
    drop(cgroup);
    let told = story(&agent, pid)?;
    expect::exactly("the limit", json::text(&told, "limit.cgroup")?, &path)?;
    expect::exactly("bytes of the limit", json::count(&told, "limit.bytes")?, 32 * MIB)?;
    expect::exactly("who grew", json::count(&told, "culprit.pid")?, u64::from(pid))?;
    wait_until("the cgroup to be forgotten", PATIENCE, || Ok(agent.cgroup(&path)?.is_none().then_some(())))?;
    expect::exactly("the story later", &story(&agent, pid)?["summary"], &told["summary"])?;
    agent.stop()
}
