//! Cgroups that come and go by the thousand.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, json,
};

const CGROUPS: u64 = 1000;
/// Two after the first: one of them must be without growth.
const ROUNDS: usize = 3;
/// Pages that the one process of each touches.
const PAGES: u64 = 20;

#[test]
fn thousands_of_cgroups_leave_no_unknown_id_and_no_growth() -> Result<()> {
    let _machine = Machine::claim()?;
    let parent = Cgroup::new("churn")?;
    let agent = Agent::start(&["--tick", "500ms", "--set", "exited.keep=5s"])?;
    let mut workload = Workload::start()?;
    let directory = parent.hierarchy().root.join(parent.path().trim_start_matches('/'));
    let rename = if parent.hierarchy().version_2 { "keep-name" } else { "rename" };
    agent.settle()?;
    let before = cgroups(&agent)?.len();
    let mut resident = Vec::new();
    let mut time = Duration::ZERO;
    for round in 0..ROUNDS {
        let moments = agent.moments("lifecycle")?;
        let faults =
            agent.cgroup(&parent.path())?.map_or(Ok(0), |told| json::count(&told, "page_faults.user_total"))?;
        let start = Instant::now();
        let made = workload.run(&format!("churn {} {CGROUPS} {PAGES} {rename}", directory.display()))?;
        time += start.elapsed();
        expect::exactly("cgroups", json::count(&made, "cgroups")?, CGROUPS)?;
        agent.settle()?;
        let told = agent.cgroup(&parent.path())?.context("the parent is not listed")?;
        let grown = json::count(&told, "page_faults.user_total")? - faults;
        ensure!(grown >= CGROUPS * PAGES, "round {round}: {grown} faults in {CGROUPS} cgroups of {PAGES} pages each");
        let unknown = agent.processes()?.iter().filter(|process| process["cgroup"].is_null()).count();
        expect::exactly("processes in a cgroup without a name", unknown, 0)?;
        let cgroups_now = cgroups(&agent)?;
        let nameless = cgroups_now.iter().filter(|cgroup| cgroup["path"].as_str().is_none_or(str::is_empty)).count();
        expect::exactly("cgroups without a name", nameless, 0)?;
        // Made, moved into, left by exit and removed, and renamed where that can be: all of it was told.
        let told = agent.moments("lifecycle")?.since(&moments);
        let each = if rename == "rename" { 6 } else { 5 };
        ensure!(told.lost == 0 && told.seen >= each * CGROUPS, "{told:?} of {CGROUPS} cgroups, {each} moments each");
        wait_until("removed cgroups to be forgotten", PATIENCE, || {
            Ok((cgroups(&agent)?.len() <= before + 2).then_some(()))
        })?;
        resident.push(json::count(&agent.get("/v1/health")?, "cost.resident_bytes")?);
    }
    let (cgroups, each_minute) = (ROUNDS as f64 * CGROUPS as f64, 60.0 / time.as_secs_f64());
    ensure!(cgroups * each_minute >= 2000.0, "{cgroups} cgroups in {time:?}: that is no churn of 2,000 in a minute");
    expect::exactly("lost", json::count(&agent.coverage("page_fault")?, "lost_total")?, 0)?;
    // The allocator makes room in steps of megabytes, and gives it back when it likes. Cgroups that are kept would take a KiB
    // each in every round: one in which nothing grows shows that none are.
    let least = resident.windows(2).map(|rounds| rounds[1].saturating_sub(rounds[0])).min();
    ensure!(least < Some(CGROUPS * 256), "resident memory grows: {resident:?}");
    agent.stop()
}

fn cgroups(agent: &Agent) -> Result<Vec<Value>> {
    Ok(json::list(&agent.get("/v1/cgroups?limit=100000")?, "cgroups")?.clone())
}
