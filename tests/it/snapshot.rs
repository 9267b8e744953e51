//! One snapshot, taken whole: sums over processes, trees and cgroups fit each other and the host.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{Agent, Machine, Workload, expect, json};

/// Counters of every source that add up.
const COUNTERS: [&str; 5] = [
    "page_faults.user_total",
    "page_faults.kernel_total",
    "address_space.mmap_calls_total",
    "address_space.unmapped_bytes_total",
    "block_io.write_bytes_total",
];

fn sum(subjects: impl IntoIterator<Item = impl AsRef<Value>>, counter: &str) -> Result<u64> {
    subjects.into_iter().map(|subject| json::count(subject.as_ref(), counter)).sum()
}

/// Lets slices of values and of references be summed alike.
struct Subject<'a>(&'a Value);

impl AsRef<Value> for Subject<'_> {
    fn as_ref(&self) -> &Value {
        self.0
    }
}

#[test]
fn processes_trees_cgroups_and_the_host_add_up() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run("faults user-write 10000 1")?;
    workload.run("spawn 20 sums")?;
    agent.settle()?;
    let snapshot = agent.get("/v1/snapshot")?;
    expect::exactly("folded away", json::count(&snapshot, "folded_processes_total")?, 0)?;
    let (processes, trees) = (json::list(&snapshot, "processes")?, json::list(&snapshot, "trees")?);
    let cgroups = json::list(&snapshot, "cgroups")?;
    let root = cgroups.iter().find(|cgroup| cgroup["path"] == "/").context("no root cgroup")?;
    let mut by_tree: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for process in processes {
        by_tree.entry(json::count(process, "tree")?).or_default().push(process);
    }
    for counter in COUNTERS {
        let of_processes = sum(processes.iter().map(Subject), counter)?;
        ensure!(of_processes > 0 || counter.starts_with("block_io"), "{counter}: nothing to compare");
        expect::exactly(&format!("{counter} of trees"), sum(trees.iter().map(Subject), counter)?, of_processes)?;
        for tree in trees {
            let members = by_tree.get(&json::count(tree, "pid")?).map_or(&[][..], Vec::as_slice);
            let of_members = sum(members.iter().copied().map(Subject), counter)?;
            expect::exactly(&format!("{counter} of tree {}", tree["pid"]), json::count(tree, counter)?, of_members)?;
        }
        // What could be charged to nobody is only in the host's.
        let host = json::count(&snapshot["host"], counter)?;
        expect::between(&format!("{counter} of the root cgroup"), of_processes, json::count(root, counter)?, host)?;
    }
    agent.stop()
}

#[test]
fn a_parent_cgroup_has_at_least_what_its_children_have() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let parent = tests::Cgroup::new("roll-up")?;
    let children = [parent.child("a")?, parent.child("b")?];
    let mut workloads = [Workload::start()?, Workload::start()?];
    for (workload, child) in workloads.iter_mut().zip(&children) {
        child.add(workload.pid())?;
        workload.run("faults user-write 5000 1")?;
        workload.run("maps 10 4096")?;
    }
    agent.settle()?;
    let cgroup = |path: &str| agent.cgroup(path)?.with_context(|| format!("{path} is not listed"));
    let whole = cgroup(&parent.path())?;
    let parts = [cgroup(&children[0].path())?, cgroup(&children[1].path())?];
    for counter in COUNTERS {
        let of_parts = sum(parts.iter().map(Subject), counter)?;
        expect::exactly(counter, json::count(&whole, counter)?, of_parts)?;
    }
    agent.stop()
}

#[test]
fn children_belong_to_the_tree_of_their_parent() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let children = workload.run("children 3")?;
    agent.settle()?;
    let tree = json::count(&agent.process(workload.pid())?, "tree")?;
    for row in json::list(&children, "pids")? {
        let pid = row[0].as_u64().context("no pid")?;
        expect::exactly("tree of a child", json::count(&agent.process(u32::try_from(pid)?)?, "tree")?, tree)?;
    }
    let in_tree = agent.get(&format!("/v1/processes?tree={tree}&limit=100000"))?;
    let in_tree: Vec<u64> =
        json::list(&in_tree, "processes")?.iter().map(|p| json::count(p, "pid")).collect::<Result<_>>()?;
    ensure!(in_tree.contains(&u64::from(workload.pid())), "process {} is not in its tree", workload.pid());
    workload.run("release")?;
    agent.stop()
}

#[test]
fn a_source_that_is_switched_off_is_told_as_null_and_not_as_zero() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "block_io.enabled=false"])?;
    let workload = Workload::start()?;
    agent.settle()?;
    let process = agent.process(workload.pid())?;
    expect::exactly("reads", json::at(&process, "block_io.read_ops_total")?, &Value::Null)?;
    expect::exactly("state", json::text(&agent.coverage("block_io")?, "state")?, "disabled")?;
    ensure!(json::count(&process, "page_faults.user_total")? > 0, "the other sources suffer");
    agent.stop()
}

#[test]
fn health_tells_what_the_agent_costs() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    agent.settle()?;
    let health = agent.get("/v1/health")?;
    expect::exactly("pid", json::count(&health, "pid")?, u64::from(agent.pid()))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    let told = json::count(&health, "cost.resident_bytes")? / 1024;
    expect::between("resident KiB", resident / 2, told, resident * 2)?;
    ensure!(json::count(&health, "cost.map_bytes")? > 0, "no map memory in {health}");
    ensure!(json::number(&health, "cost.cpu_seconds_total")? > 0.0, "no processor time in {health}");
    ensure!(!json::list(&health, "cost.programs")?.is_empty(), "no programs in {health}");
    for source in ["page_fault", "address_space", "block_io", "lifecycle", "resident"] {
        let coverage = json::at(&health, &format!("coverage.{source}"))?;
        expect::exactly(source, json::text(coverage, "state")?, "live")?;
        ensure!(coverage["rung"].is_string() && coverage["refused"].is_array(), "no rung in {coverage}");
    }
    agent.stop()
}

#[test]
fn kernel_programs_are_timed_in_windows_and_not_between_them() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "cost.every=5s", "--set", "cost.window=500ms"])?;
    let mut workload = Workload::start()?;
    let runs = || -> Result<u64> {
        let health = agent.get("/v1/health")?;
        json::list(&health, "cost.programs")?.iter().map(|program| json::count(program, "measured_runs")).sum()
    };
    let (mut grew, mut stood, mut before) = (0, 0, runs()?);
    let until = Instant::now() + Duration::from_secs(16);
    while Instant::now() < until {
        workload.run("faults user-write 100 1")?;
        agent.settle()?;
        let now = runs()?;
        *(if now > before { &mut grew } else { &mut stood }) += 1;
        before = now;
    }
    ensure!(
        grew > 0 && stood > grew,
        "the times of programs grew between {grew} snapshots, and stood still between {stood}"
    );
    let health = agent.get("/v1/health")?;
    for program in json::list(&health, "cost.programs")? {
        let (runs, seconds) = (json::count(program, "measured_runs")?, json::number(program, "measured_seconds")?);
        let Some(mean) = program["mean_ns"].as_f64() else {
            expect::exactly("runs without a mean", runs, 0)?;
            continue;
        };
        // Of a run some nanoseconds to, where a processor is emulated or was taken away, milliseconds.
        ensure!(runs > 0 && mean > 1.0 && mean < 1e8, "{program}");
        ensure!((seconds - mean * runs as f64 / 1e9).abs() <= seconds / 100.0 + 1e-6, "{program}");
    }
    agent.stop()
}
