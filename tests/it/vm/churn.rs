//! Cgroups that come and go by the thousand.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::BufRead,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, http, json,
};

const CGROUPS: u64 = 1000;
/// So many are made before their ends are waited for: who follows events may be a thousand behind.
const AT_ONCE: u64 = 100;
/// Three after the first: one of them must be without growth.
const ROUNDS: usize = 4;
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
    let ends = Ends::follow(&agent, workload.pid())?;
    let below = format!("{}/made-", parent.path());
    let before = cgroups(&agent)?.len();
    let (mut resident, mut maps) = (Vec::new(), Vec::new());
    let mut time = Duration::ZERO;
    for round in 0..ROUNDS {
        let moments = agent.moments("lifecycle")?;
        let faults =
            agent.cgroup(&parent.path())?.map_or(Ok(0), |told| json::count(&told, "page_faults.user_total"))?;
        let mut faults_made = 0;
        for _ in 0..CGROUPS / AT_ONCE {
            let start = Instant::now();
            let made = workload.run(&format!("churn {} {AT_ONCE} {PAGES} {rename}", directory.display()))?;
            time += start.elapsed();
            expect::exactly("cgroups", json::count(&made, "cgroups")?, AT_ONCE)?;
            faults_made += json::count(&made, "faults")?;
            // Every one of them was in a cgroup of its own when it ended, by name, however short that one lived.
            let told = ends.next(AT_ONCE as usize)?;
            let there: BTreeSet<_> = told.iter().flatten().filter(|path| path.starts_with(&below)).collect();
            expect::exactly("cgroups in which a child ended", there.len() as u64, AT_ONCE)?;
        }
        agent.settle()?;
        let told = agent.cgroup(&parent.path())?.context("the parent is not listed")?;
        let grown = json::count(&told, "page_faults.user_total")? - faults;
        // Each touched its pages there; what it did before it came there is not in it.
        expect::between(&format!("faults of round {round}"), CGROUPS * PAGES, grown, faults_made)?;
        let unknown = agent.processes()?.iter().filter(|process| process["cgroup"].is_null()).count();
        expect::exactly("processes in a cgroup without a name", unknown, 0)?;
        let unknown = cgroups(&agent)?.iter().filter(|cgroup| !cgroup["path"].is_string()).count();
        expect::exactly("cgroups without a name", unknown, 0)?;
        // Made, moved into, left by exit and removed, and renamed where that can be: all of it was told.
        let told = agent.moments("lifecycle")?.since(&moments);
        let each = if rename == "rename" { 6 } else { 5 };
        ensure!(told.lost == 0 && told.seen >= each * CGROUPS, "{told:?} of {CGROUPS} cgroups, {each} moments each");
        wait_until("removed cgroups to be forgotten", PATIENCE, || {
            Ok((cgroups(&agent)?.len() <= before + 2).then_some(()))
        })?;
        let health = agent.get("/v1/health")?;
        resident.push(json::count(&health, "cost.resident_bytes")?);
        maps.push(json::count(&health, "cost.map_bytes")?);
    }
    let (cgroups, each_minute) = (ROUNDS as f64 * CGROUPS as f64, 60.0 / time.as_secs_f64());
    ensure!(cgroups * each_minute >= 2000.0, "{cgroups} cgroups in {time:?}: that is no churn of 2,000 in a minute");
    expect::exactly("lost", json::count(&agent.coverage("page_fault")?, "lost_total")?, 0)?;
    // The allocator makes room in steps, and gives it back when it likes. Cgroups that are kept would take a KiB each in every
    // round: one that grows by less shows that none are.
    let least = resident.windows(2).map(|rounds| rounds[1].saturating_sub(rounds[0])).min();
    ensure!(least < Some(CGROUPS * 768), "resident memory grows: {resident:?}");
    ensure!(maps.last() <= maps.get(1), "the kernel's maps grow: {maps:?}");
    agent.stop()
}

/// The cgroups in which children of a process end, as the agent tells it live. Its log is too short for all of them.
struct Ends(mpsc::Receiver<Result<Option<String>>>);

impl Ends {
    fn follow(agent: &Agent, parent: u32) -> Result<Self> {
        let follower = http::stream(agent.socket(), "/v1/events?follow=true")?;
        expect::exactly("status", follower.status, 200)?;
        let (send, ends) = mpsc::channel();
        thread::spawn(move || {
            let mut children = BTreeSet::new();
            for line in follower.body.lines() {
                let end = line.map_err(Into::into).and_then(|line| end_of_child(&line, parent, &mut children));
                // Nobody listens any more when the test is over.
                if end.transpose().is_some_and(|end| send.send(end).is_err()) {
                    break;
                }
            }
        });
        Ok(Self(ends))
    }

    /// The next ones.
    fn next(&self, count: usize) -> Result<Vec<Option<String>>> {
        (0..count).map(|_| self.0.recv_timeout(PATIENCE).context("the end of a child is not told")?).collect()
    }
}

/// The cgroup of a child whose end an event tells.
fn end_of_child(line: &str, parent: u32, children: &mut BTreeSet<Option<u64>>) -> Result<Option<Option<String>>> {
    let event: Value = serde_json::from_str(line)?;
    let pid = event["pid"].as_u64();
    match event["event"].as_str() {
        Some("fork") if event["parent_pid"] == parent => {
            children.insert(pid);
            Ok(None)
        }
        Some("exit") if children.remove(&pid) => Ok(Some(event["cgroup"].as_str().map(str::to_owned))),
        Some("lost") => bail!("who follows events was too slow: {event}"),
        _ => Ok(None),
    }
}

fn cgroups(agent: &Agent) -> Result<Vec<Value>> {
    Ok(json::list(&agent.get("/v1/cgroups?limit=100000")?, "cgroups")?.clone())
}
