//! Processes and cgroups that vanish in the middle of being read: no word in the log, nothing kept.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, amount, slowness, wait_until},
    expect, json,
};

/// Rounds, and processes and cgroups in each: 10,000 in all. Where a processor is emulated there are fewer in each, but more rounds:
/// the allocator takes some thousand of them to find its size.
const ROUNDS: usize = 5;
const ROUNDS_EMULATED: usize = 6;
const EACH: u64 = 1000;
/// So many live at a time, for some 100 ms: about one tick.
const POOL: u64 = 50;

#[test]
fn ten_thousand_vanish_in_the_middle_of_every_read() -> Result<()> {
    let _machine = Machine::claim()?;
    let parent = Cgroup::new("vanish")?;
    let agent = Agent::start(&["--tick", "100ms", "--set", "exited.keep=500ms", "--set", "exited.limit=500"])?;
    let mut workload = Workload::start()?;
    let each = amount(EACH);
    let rounds = if slowness() > 1 { ROUNDS_EMULATED } else { ROUNDS };
    let told = || {
        Ok::<_, anyhow::Error>((
            ours(&agent, &parent, "processes", "cgroup")?,
            ours(&agent, &parent, "cgroups", "path")?,
        ))
    };
    agent.settle()?;
    let (told_before, files_before) = (told()?, lasting_files(&agent, &parent)?);
    let (mut resident, mut read, mut time) = (Vec::new(), 0, Duration::ZERO);
    for _ in 0..rounds {
        let start = Instant::now();
        workload.send(&format!("vanish {} {each} {POOL}", parent.directory().display()))?;
        let made = loop {
            // Those that were read, by its own account: else nothing could have vanished meanwhile.
            read += looked_at(&agent, &parent)?;
            if let Some(made) = workload.receive_soon(Duration::from_millis(100))? {
                break made;
            }
        };
        time += start.elapsed();
        expect::exactly("processes", json::count(&made, "processes")?, each)?;
        wait_until("all of them to be forgotten", PATIENCE, || Ok((told()? == told_before).then_some(())))?;
        resident.push(json::count(&agent.get("/v1/health")?, "cost.resident_bytes")?);
    }
    ensure!(read > each, "only {read} looks at living ones were told: nothing vanished in the middle");
    ensure!(time < Duration::from_secs(50) * slowness(), "{time:?} for {} of them", rounds as u64 * each);
    expect::exactly("complaints", agent.complaints(), Vec::new())?;
    let mut files = files_before.clone();
    wait_until("descriptors to be closed", PATIENCE, || {
        files = lasting_files(&agent, &parent)?;
        // Before, too, one may have been open that passes.
        let is_kept = |(name, count): (&String, &usize)| files_before.get(name).is_none_or(|before| count > before);
        Ok((!files.iter().any(is_kept)).then_some(()))
    })
    .with_context(|| format!("before: {files_before:?}, now: {files:?}"))?;
    // The allocator makes room in steps, and gives it back when it likes. What is kept of a process and its cgroup would take a KiB
    // and more in every round: one that grows by less shows that nothing is.
    let least = resident.windows(2).map(|rounds| rounds[1].saturating_sub(rounds[0])).min();
    ensure!(least < Some(each * 768), "resident memory grows: {resident:?}");
    drop(workload);
    agent.stop()
}

/// How many of what is told of are the test's own, by the path of their cgroup.
fn ours(agent: &Agent, parent: &Cgroup, list: &str, path: &str) -> Result<usize> {
    let below = format!("{}/", parent.path());
    let all = agent.get(&format!("/v1/{list}?limit=100000"))?;
    let is_ours = |item: &&Value| item[path].as_str().is_some_and(|path| path.starts_with(&below));
    Ok(json::list(&all, list)?.iter().filter(is_ours).count())
}

/// How many of the test's own processes are told with memory and storage, and cgroups with memory.
fn looked_at(agent: &Agent, parent: &Cgroup) -> Result<u64> {
    let below = format!("{}/", parent.path());
    let processes = agent.processes()?;
    let is_read = |process: &&Value| {
        let is_ours = process["cgroup"].as_str().is_some_and(|path| path.starts_with(&below));
        is_ours && !process["memory"]["anon_bytes"].is_null() && !process["storage"].is_null()
    };
    Ok(processes.iter().filter(is_read).count() as u64)
}

/// Descriptors that do not come and go: how many there are of each name at three looks in a row, as one look may meet a file
/// that is just being read.
fn lasting_files(agent: &Agent, parent: &Cgroup) -> Result<BTreeMap<String, usize>> {
    let mut lasting = files(agent, parent)?;
    for _ in 0..2 {
        sleep(Duration::from_millis(30));
        let now = files(agent, parent)?;
        lasting.retain(|name, count| {
            *count = (*count).min(now.get(name).copied().unwrap_or_default());
            *count > 0
        });
    }
    Ok(lasting)
}

/// Descriptors that do not depend on what others do on this machine. Those of stat files must be of living processes, and those
/// of other cgroups of cgroups that are there.
fn files(agent: &Agent, parent: &Cgroup) -> Result<BTreeMap<String, usize>> {
    let mut files = BTreeMap::new();
    for path in agent.open_files()? {
        let is_stat = path.starts_with("/proc") && path.ends_with("stat");
        let is_cgroup = path.starts_with("/sys/fs/cgroup") && !path.starts_with(parent.directory());
        let name = match path.display().to_string() {
            _ if (is_stat || is_cgroup) && path.exists() => continue,
            name if name.starts_with("socket:") => continue,
            name => name,
        };
        *files.entry(name).or_default() += 1;
    }
    Ok(files)
}
