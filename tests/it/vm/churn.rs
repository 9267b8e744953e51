//! Cgroups that come and go by the thousand.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, json,
};

const CGROUPS: u64 = 2000;
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
    for round in 0..3 {
        let command = format!("churn {} {CGROUPS} {PAGES} {rename}", directory.display());
        let faults =
            agent.cgroup(&parent.path())?.map_or(Ok(0), |told| json::count(&told, "page_faults.user_total"))?;
        let made = workload.run(&command)?;
        expect::exactly("cgroups", json::count(&made, "cgroups")?, CGROUPS)?;
        agent.settle()?;
        let told = agent.cgroup(&parent.path())?.context("the parent is not listed")?;
        let grown = json::count(&told, "page_faults.user_total")? - faults;
        ensure!(grown >= CGROUPS * PAGES, "round {round}: {grown} faults in {CGROUPS} cgroups of {PAGES} pages each");
        let unknown = agent.processes()?.iter().filter(|process| process["cgroup"].is_null()).count();
        expect::exactly("processes in a cgroup without a name", unknown, 0)?;
        let nameless =
            cgroups(&agent)?.iter().filter(|cgroup| cgroup["path"].as_str().is_none_or(str::is_empty)).count();
        expect::exactly("cgroups without a name", nameless, 0)?;
        wait_until("removed cgroups to be forgotten", PATIENCE + Duration::from_secs(10), || {
            Ok((cgroups(&agent)?.len() <= before + 2).then_some(()))
        })?;
        resident.push(json::count(&agent.get("/v1/health")?, "cost.resident_bytes")?);
    }
    expect::exactly("lost", json::count(&agent.coverage("page_fault")?, "lost_total")?, 0)?;
    // The first rounds make room, also for the events that are kept; the last one uses it again. What varies by a MiB is how
    // much of it the allocator gives back; a cgroup that is kept takes a KiB.
    ensure!(resident[2] < resident[1] + CGROUPS * 1024, "resident memory grows: {resident:?}");
    agent.stop()
}

fn cgroups(agent: &Agent) -> Result<Vec<Value>> {
    Ok(json::list(&agent.get("/v1/cgroups?limit=100000")?, "cgroups")?.clone())
}
