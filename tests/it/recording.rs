//! Recordings: what the agent answered while it recorded is what its recording answers later, and a recording survives
//! the agent's sudden end, a full disk and damage. The oracle is the live agent's own answer, and the workload's count.

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tests::{
    Agent, Machine, Workload, agent,
    clock::{PATIENCE, boot_ns, slowness, wait_until},
    disk::SmallDisk,
    expect, json, proc,
};

/// A live answer that a recording should give again.
struct Kept {
    target: String,
    body: String,
}

impl Kept {
    fn ask(agent: &Agent, target: &str) -> Result<Self> {
        let answer = agent.answer(target)?;
        expect::exactly(target, answer.status, 200)?;
        Ok(Self { target: target.to_owned(), body: answer.body })
    }

    /// The moment it was given for, as `--at` takes it. Clocks are read one after the other, so it is a little later.
    fn at(&self) -> Result<String> {
        let time_ns = json::count(&serde_json::from_str(&self.body)?, "time_ns")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let wall = now - Duration::from_nanos(boot_ns() - time_ns) + Duration::from_millis(1);
        Ok(format!("@{}.{:09}", wall.as_secs(), wall.subsec_nanos()))
    }
}

/// Asks a recording. Its remarks come beside the answer.
fn asked(from: &Path, more: &[&str]) -> Result<(String, String)> {
    let from = from.to_string_lossy();
    let output = agent::run(&[&["query", "--from", &from][..], more].concat())?;
    let remarks = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{more:?} of {from} ended with {}: {remarks}", output.status);
    let answer = String::from_utf8(output.stdout)?;
    Ok((answer.strip_suffix('\n').unwrap_or(&answer).to_owned(), remarks))
}

fn snapshot_of(from: &Path) -> Result<(Value, String)> {
    let (answer, remarks) = asked(from, &["/v1/snapshot"])?;
    Ok((serde_json::from_str(&answer)?, remarks))
}

fn recording_in(directory: &TempDir) -> (PathBuf, String) {
    let path = directory.path().join("a.rec");
    (path.clone(), path.to_string_lossy().into_owned())
}

/// How often something is recorded of which snapshots were lost.
const TRIES: usize = 3;
/// Events of which a recording has none.
const CONCLUDED: [&str; 2] = ["alert", "recommendation"];

#[test]
fn a_recording_answers_as_the_agent_did() -> Result<()> {
    let _machine = Machine::claim()?;
    for form in ["a.rec", "segments/"] {
        undisturbed(|path| answers_as_the_agent_did(&path.join(form)))?;
    }
    Ok(())
}

/// How many snapshots a recording lacks: a disk that is busy for seconds keeps it waiting until some are given up.
fn lost_samples(agent: &Agent) -> Result<u64> {
    json::count(&agent.get("/v1/health")?, "recording.lost_samples_total")
}

/// Does it in a directory of its own, and again where snapshots were lost, which `does` tells.
fn undisturbed(does: impl Fn(&Path) -> Result<u64>) -> Result<()> {
    for _ in 0..TRIES {
        if does(tempfile::tempdir()?.path())? == 0 {
            return Ok(());
        }
    }
    bail!("the recording lost snapshots in each of {TRIES} tries")
}

fn answers_as_the_agent_did(path: &Path) -> Result<u64> {
    let agent = Agent::start(&["--record", &path.to_string_lossy(), "--set", "exited.keep=1s"])?;
    let mut workload = Workload::start()?;
    let mut kept = Vec::new();
    for round in 1..=4 {
        workload.run("faults user-write 1000 1")?;
        workload.run("maps 10 4096")?;
        workload.run(&format!("spawn 30 round-{round}"))?;
        agent.settle()?;
        for target in [
            "/v1/snapshot",
            "/v1/processes?sort=page_faults.user_total&limit=7",
            "/v1/cgroups?sort=address_space.mmap_calls_total",
            "/v1/trees",
            "/v1/block_devices",
            "/v1/host",
            "/v1/gpus",
            &format!("/v1/stats?pid={}", workload.pid()),
        ] {
            kept.push(Kept::ask(&agent, target)?);
        }
    }
    let (pid, told) = (workload.pid(), agent.process(workload.pid())?);
    let doctor = agent.answer("/v1/doctor")?.body;
    let events = agent.answer("/v1/events")?.body;
    agent.settle()?;
    let moments = kept.iter().map(Kept::at).collect::<Result<Vec<_>>>()?;
    let lost = lost_samples(&agent)?;
    agent.stop()?;
    if lost > 0 {
        return Ok(lost);
    }

    for (kept, at) in kept.iter().zip(&moments) {
        let (body, remarks) = asked(path, &["--at", at, &kept.target])?;
        ensure!(body == kept.body, "{} at {at}:\n{body}\nwas\n{}", kept.target, kept.body);
        expect::exactly("remarks", remarks.as_str(), "")?;
    }
    expect::exactly("doctor", asked(path, &["/v1/doctor"])?.0, doctor)?;
    let again = asked(path, &["/v1/events"])?.0;
    let again: std::collections::HashSet<_> = again.lines().collect();
    let happened = |line: &&str| !CONCLUDED.iter().any(|kind| line.contains(&format!("\"event\":\"{kind}\"")));
    ensure!(again.iter().all(happened), "what was concluded is recorded");
    let missing: Vec<_> = events.lines().filter(happened).filter(|line| !again.contains(line)).collect();
    ensure!(!events.is_empty() && missing.is_empty(), "events are missing: {missing:?}");
    let (end, _) = asked(path, &[&format!("/v1/processes?pid={pid}")])?;
    let end: Value = serde_json::from_str(&end)?;
    let faults = json::count(&json::list(&end, "processes")?[0], "page_faults.user_total")?;
    ensure!(faults >= 4000 && faults >= json::count(&told, "page_faults.user_total")?, "{faults} faults at the end");
    Ok(0)
}

#[test]
fn a_killed_agents_recording_ends_with_its_last_snapshot() -> Result<()> {
    let _machine = Machine::claim()?;
    undisturbed(|directory| ends_with_its_last_snapshot(&directory.join("a.rec")))
}

fn ends_with_its_last_snapshot(path: &Path) -> Result<u64> {
    let agent = Agent::start(&["--record", &path.to_string_lossy()])?;
    let mut workload = Workload::start()?;
    workload.run("spawn 50 killed")?;
    agent.settle()?;
    let last = Kept::ask(&agent, "/v1/snapshot")?;
    let wanted = json::count(&serde_json::from_str(&last.body)?, "time_ns")?;
    agent.settle()?;
    let lost = lost_samples(&agent)?;
    if lost > 0 {
        return Ok(lost);
    }
    wait_until("the snapshot to be recorded", PATIENCE, || {
        Ok((json::count(&snapshot_of(path)?.0, "time_ns")? >= wanted).then_some(()))
    })?;
    let at = last.at()?;
    agent.end_by(libc::SIGKILL)?;
    expect::exactly("snapshot before the end", asked(path, &["--at", &at, "/v1/snapshot"])?.0, last.body)?;
    let (health, _) = asked(path, &["/v1/health"])?;
    let health: Value = serde_json::from_str(&health)?;
    // A request of any disk may have been lost, which is told.
    let mut reasons = json::list(&health, "reasons")?.iter();
    ensure!(reasons.all(|reason| reason.to_string().contains(" has lost ")), "{health}");
    Ok(0)
}

#[test]
fn a_torn_end_and_damage_are_told_and_the_rest_is_read() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (path, name) = recording_in(&directory);
    let agent = Agent::start(&["--record", &name])?;
    agent.settle()?;
    let middle = fs::metadata(&path)?.len();
    for _ in 0..3 {
        agent.settle()?;
    }
    agent.stop()?;
    let end = json::count(&snapshot_of(&path)?.0, "time_ns")?;

    let file = fs::File::options().write(true).open(&path)?;
    let length = file.metadata()?.len();
    file.set_len(length - 3)?;
    let (torn, remarks) = snapshot_of(&path)?;
    ensure!(json::count(&torn, "time_ns")? < end, "the torn snapshot is still told");
    ensure!(remarks.contains("ends with a torn frame") && remarks.lines().count() == 1, "remarks: {remarks}");

    file.write_all_at(b"damage", middle + 50)?;
    let (damaged, remarks) = snapshot_of(&path)?;
    ensure!(json::count(&damaged, "time_ns")? < json::count(&torn, "time_ns")?, "{damaged}");
    ensure!(remarks.contains("is damaged at byte"), "remarks: {remarks}");

    file.write_all_at(b"?", 0)?;
    let output = agent::run(&["query", "--from", &name, "/v1/snapshot"])?;
    let words = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(1))?;
    ensure!(words.contains("is no recording of monitor") && words.lines().count() == 1, "it says: {words}");
    Ok(())
}

#[test]
fn the_record_command_says_where_and_how_much_and_keeps_it_private() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (path, name) = recording_in(&directory);
    let socket = directory.path().join("m.sock");
    // Starting counts, too.
    let time = format!("{}s", 10 + slowness());
    let flags = ["--for", &time, "--tick", "100ms", "--socket", &socket.to_string_lossy()];
    let output = agent::run(&[&["record"], &flags[..], &[&name]].concat())?;
    let words = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(0))?;
    ensure!(output.stdout.is_empty(), "it shows something: {}", String::from_utf8_lossy(&output.stdout));
    ensure!(words.contains(&format!("recording to {name}")) && words.contains("recorded "), "it says: {words}");
    expect::exactly("mode", fs::metadata(&path)?.permissions().mode() & 0o777, 0o600)?;
    let (begin, _) = asked(&path, &["--at=-1s", "/v1/snapshot"])?;
    let (begin, end): (Value, Value) = (serde_json::from_str(&begin)?, snapshot_of(&path)?.0);
    let apart = json::count(&end, "time_ns")? - json::count(&begin, "time_ns")?;
    let most = 2_500_000_000 * u64::from(slowness());
    expect::between("nanoseconds between the end and a second before", 1_000_000_000, apart, most)
}

#[test]
fn what_makes_no_sense_of_a_recording_is_one_line() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (_, name) = recording_in(&directory);
    let agent = Agent::start(&["--record", &name])?;
    agent.settle()?;
    agent.stop()?;
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--from", &name, "/v1/events?follow=true"], 1, "a recording does not go on"),
        (&["--from", &name, "--at=-1h", "/v1/trees"], 1, "begins later, at 20"),
        (&["--from", &name, "--at", "noon", "/v1/trees"], 2, "it takes a time such as"),
        (&["--from", "/nowhere/a.rec", "/v1/trees"], 1, "cannot read /nowhere/a.rec"),
    ];
    for (arguments, code, words) in cases {
        let output = agent::run(&[&["query"], arguments].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        expect::exactly(words, output.status.code(), Some(code))?;
        ensure!(told.contains(words) && (code == 2 || told.lines().count() == 1), "{arguments:?}: {told}");
    }
    let file = directory.path().join("diary");
    fs::write(&file, "dear diary")?;
    let socket = directory.path().join("m.sock");
    let (socket, file) = (socket.to_string_lossy(), file.to_string_lossy());
    let output = agent::run(&["run", "--quiet", "--for", "2s", "--socket", &socket, "--record", &file])?;
    let told = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(1))?;
    ensure!(told.contains("diary is no recording") && told.lines().count() == 1, "it says: {told}");
    expect::exactly("the diary", fs::read_to_string(&*file)?, "dear diary".to_owned())
}

#[test]
fn without_a_recording_there_is_no_thread_for_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    for is_recorded in [false, true] {
        let (_, name) = recording_in(&directory);
        let flags = ["--record", &name];
        let agent = Agent::start(if is_recorded { &flags } else { &[] })?;
        let names = proc::of_threads(agent.pid(), "comm")?;
        expect::exactly("a thread that records", names.iter().any(|name| name.trim() == "recorder"), is_recorded)?;
        let health = agent.get("/v1/health")?;
        expect::exactly("health tells of a recording", json::at(&health, "recording")?.is_object(), is_recorded)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_full_disk_stops_the_recording_and_not_the_agent() -> Result<()> {
    let _machine = Machine::claim()?;
    let disk = SmallDisk::new(8 << 20)?;
    let records = disk.path().join("records/");
    let agent = Agent::start(&["--record", &format!("{}/", records.display())])?;
    agent.settle()?;
    let filler = disk.path().join("filler");
    ensure!(fs::write(&filler, vec![1; 16 << 20]).is_err(), "the disk is larger than it should be");
    let stopped = wait_until("the agent to notice", PATIENCE, || {
        let health = agent.get("/v1/health")?;
        Ok(json::at(&health, "recording.stopped")?.is_string().then_some(health))
    })?;
    expect::exactly("status", json::text(&stopped, "status")?, "degraded")?;
    ensure!(stopped["reasons"].to_string().contains("No space left on device"), "it says {}", stopped["reasons"]);
    agent.settle()?;
    fs::remove_file(&filler)?;
    // It is tried again every 30 s.
    let again = wait_until("the recording to go on", 2 * PATIENCE, || {
        let health = agent.get("/v1/health")?;
        Ok(json::at(&health, "recording.stopped")?.is_null().then_some(health))
    })?;
    ensure!(json::count(&again, "recording.lost_samples_total")? > 0, "no loss is told: {again}");
    let words = agent.words();
    expect::exactly("lines about the disk", words.matches("recording has stopped").count(), 1)?;
    // What came while it was opened again may be lost, too.
    let kept = wait_until("a moment that is recorded", PATIENCE, || {
        let lost_before = lost_samples(&agent)?;
        agent.settle()?;
        let kept = Kept::ask(&agent, "/v1/snapshot")?;
        agent.settle()?;
        Ok((lost_samples(&agent)? == lost_before).then_some(kept))
    })?;
    let at = kept.at()?;
    agent.stop()?;
    let (body, _) = asked(&records, &["--at", &at, &kept.target])?;
    ensure!(body == kept.body, "after the gap:\n{body}\nwas\n{}", kept.body);
    Ok(())
}
