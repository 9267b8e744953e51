//! Who waits for a slow disk, and who does not.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    disk, expect, json,
};

/// What the slow disk takes for each request.
const SLOW_SECONDS: f64 = 0.02;

/// A workload in a cgroup, and so a tree, of its own.
fn apart(name: &str) -> Result<(Cgroup, Workload)> {
    let (cgroup, workload) = (Cgroup::new(name)?, Workload::start()?);
    cgroup.add(workload.pid())?;
    Ok((cgroup, workload))
}

/// Alerts of I/O that go on, for who began a tree.
fn alert_of(agent: &Agent, pid: u32) -> Result<Option<Value>> {
    let answer = agent.get("/v1/alerts")?;
    let fits = |alert: &&Value| alert["rule"] == "io_bottleneck" && alert["subject"]["pid"] == pid;
    Ok(json::list(&answer, "alerts")?.iter().find(fits).cloned())
}

#[test]
fn the_disk_that_is_slow_and_who_waits_for_it_are_named_and_not_the_innocent_beside() -> Result<()> {
    let _machine = Machine::claim()?;
    // Until 5.14 Linux accounts for delays unasked.
    let delay_accounting = Path::new("/proc/sys/kernel/task_delayacct");
    if delay_accounting.exists() {
        fs::write(delay_accounting, "1").context("cannot have delays accounted for")?;
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).context("no name");
    let (slow, plain) = (disk::with_serial("slow")?, disk::with_serial("plain")?);
    let ((_victims, mut victim), (_crowds, mut crowd), (_others, mut innocent)) =
        (apart("victim")?, apart("crowd")?, apart("innocent")?);
    let agent = Agent::start(&["--set", "alerts.hold=2s", "--set", "alerts.log=false"])?;
    // One request at a time, while somebody else has many, and a third one reads a little from a disk that is not slow.
    victim.send(&format!("direct read {} 4000 4096", slow.display()))?;
    let mut go_on = || {
        innocent.run(&format!("direct read {} 5 4096", plain.display()))?;
        crowd.run(&format!("batch read {} 4096 4096", slow.display()))
    };
    let alert = wait_until("the alert", PATIENCE, || {
        go_on()?;
        alert_of(&agent, victim.pid())
    })?;
    let evidence = json::at(&alert, "evidence.io")?;
    expect::exactly("the device", json::text(evidence, "device")?, &name(&slow)?)?;
    let waiting: Vec<_> = json::list(evidence, "waiting")?.iter().map(|tree| tree["tree"].as_u64()).collect();
    expect::exactly("who waits", waiting, vec![Some(u64::from(victim.pid()))])?;
    let latency = json::number(evidence, "latency_seconds")?;
    ensure!(latency >= SLOW_SECONDS, "{latency} s a request, on a disk that takes {SLOW_SECONDS} s: {alert}");
    let delayed = json::list(evidence, "waiting")?[0]["delay_ratio"].as_f64();
    ensure!(delayed.is_some_and(|share| share > 0.5), "delays of who does nothing but wait: {delayed:?}");
    let noisy = wait_until("the noisy neighbour", PATIENCE, || {
        go_on()?;
        let alert = alert_of(&agent, victim.pid())?.context("the alert is over")?;
        Ok(alert["evidence"]["io"]["noisy"]["tree"].as_u64())
    })?;
    expect::exactly("who fills the queue", noisy, u64::from(crowd.pid()))?;
    ensure!(json::text(&alert, "summary")?.contains(&name(&slow)?), "the device is not named: {alert}");
    let answer = agent.get("/v1/alerts")?;
    let told = json::list(&answer, "alerts")?.iter().filter(|alert| alert["rule"] == "io_bottleneck");
    for alert in told {
        let words = alert.to_string();
        ensure!(!words.contains(&format!("\"tree\":{},", innocent.pid())), "the innocent one is named: {alert}");
        ensure!(alert["evidence"]["io"]["device"] != name(&plain)?, "a disk that is not slow is named: {alert}");
    }
    agent.stop()
}
