//! The socket: who may connect, who owns it, and how it answers.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    io::BufRead,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;
use tests::{Agent, Machine, Workload, agent, expect, http, json, workload};

/// User and group of nobody in particular.
const NOBODY: u32 = 65534;

/// A copy of the workload's program, where everybody may run it.
pub(crate) struct Stranger {
    _directory: TempDir,
    program: PathBuf,
}

impl Stranger {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        let program = directory.path().join("workload");
        fs::copy(workload::binary()?, &program)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        Ok(Self { _directory: directory, program })
    }

    /// Asks the agent as nobody.
    pub(crate) fn get(&self, socket: &Path, target: &str) -> Result<Output> {
        let output = self.command().arg("get").arg(socket).arg(target).output();
        output.context("cannot run the workload as nobody")
    }

    /// Posts to the agent as nobody.
    pub(crate) fn post(&self, socket: &Path, target: &str, body: &str) -> Result<Output> {
        let output = self.command().arg("post").arg(socket).arg(target).arg(body).output();
        output.context("cannot run the workload as nobody")
    }

    /// A workload that is nobody's.
    pub(crate) fn start(&self) -> Result<Workload> {
        Workload::start_by(self.command())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    }
}

/// A directory that everybody may enter, for a socket whose own mode is what protects it.
pub(crate) fn open_directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?)
}

#[test]
fn the_socket_is_roots_and_its_groups_alone() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = open_directory()?;
    let agent = Agent::start_on(&directory.path().join("monitor.sock"), &[])?;
    let metadata = fs::metadata(agent.socket())?;
    expect::exactly("mode", metadata.mode() & 0o777, 0o660)?;
    expect::exactly("owner", metadata.uid(), 0)?;
    let stranger = Stranger::new()?;
    let refused = stranger.get(agent.socket(), "/v1/health")?;
    ensure!(!refused.status.success(), "nobody connected: {}", String::from_utf8_lossy(&refused.stdout));
    let words = String::from_utf8_lossy(&refused.stderr);
    ensure!(words.contains("Permission denied"), "{words}");
    let refused = stranger.post(agent.socket(), "/v1/marks", r#"{"step": 1}"#)?;
    ensure!(!refused.status.success(), "nobody posted: {}", String::from_utf8_lossy(&refused.stdout));

    // Even where somebody opened the file to all, the agent asks who it is.
    fs::set_permissions(agent.socket(), Permissions::from_mode(0o666))?;
    let mark = r#"{"step": 1}"#;
    for answer in [stranger.get(agent.socket(), "/v1/processes")?, stranger.post(agent.socket(), "/v1/marks", mark)?] {
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(answer.starts_with("403 application/problem+json"), "{answer}");
    }
    agent.settle()?;
    expect::exactly("the mark", json::at(&agent.get("/v1/snapshot")?, "mark")?, &Value::Null)?;
    agent.stop()
}

#[test]
fn the_configured_group_may_read() -> Result<()> {
    let _machine = Machine::claim()?;
    let groups = fs::read_to_string("/etc/group")?;
    let fields = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut named = fields.filter(|fields| fields.get(2) == Some(&"65534"));
    let group = named.next().context("no group has the number 65534: add nogroup to /etc/group")?[0].to_owned();
    let directory = open_directory()?;
    let agent = Agent::start_on(&directory.path().join("monitor.sock"), &["--socket-group", &group])?;
    expect::exactly("group", fs::metadata(agent.socket())?.gid(), NOBODY)?;
    let answer = Stranger::new()?.get(agent.socket(), "/v1/health")?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    ensure!(answer.starts_with("200 application/json"), "{answer}");
    agent.stop()
}

#[test]
fn a_second_agent_on_the_same_socket_names_the_first() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let socket = agent.socket().display().to_string();
    let second = agent::run(&["run", "--socket", &socket, "--quiet", "--for", "5s"])?;
    expect::exactly("exit code", second.status.code(), Some(1))?;
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(words.contains(&agent.pid().to_string()) && words.contains(&socket), "{words}");
    expect::exactly("lines of its error", words.trim_end().lines().count(), 1).context(words)?;
    agent.get("/v1/health").context("the first agent suffered")?;
    agent.stop()
}

#[test]
fn a_stale_socket_is_replaced_and_another_file_is_not() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale)?);
    ensure!(stale.exists(), "no stale socket to try with");
    Agent::start_on(&stale, &[])?.stop()?;

    let killed = directory.path().join("killed.sock");
    Agent::start_on(&killed, &[])?.end_by(libc::SIGKILL)?;
    Agent::start_on(&killed, &[])?.stop()?;

    let file = directory.path().join("letter.txt");
    fs::write(&file, "dear reader")?;
    let output = agent::run(&["run", "--socket", &file.to_string_lossy(), "--quiet", "--for", "5s"])?;
    ensure!(!output.status.success(), "it took a file for a socket");
    expect::exactly("the file", fs::read_to_string(&file)?.as_str(), "dear reader")
}

#[test]
fn wrong_questions_get_problems_for_answers() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let cases = [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/health", 405),
        ("GET", "/v1/processes?colour=red", 400),
        ("GET", "/v1/processes?limit=many", 400),
        ("GET", "/v1/processes?limit=100001", 400),
        ("GET", "/v1/processes?sort=beauty", 400),
    ];
    for (method, target, status) in cases {
        let answer = http::request(agent.socket(), method, target)?;
        expect::exactly(target, answer.status, status)?;
        let kind = answer.headers.get("content-type").map(String::as_str);
        expect::exactly(target, kind, Some("application/problem+json"))?;
        let problem: Value = serde_json::from_str(&answer.body)?;
        expect::exactly(target, json::count(&problem, "status")?, u64::from(status))?;
        ensure!(problem["title"].is_string(), "no title in {problem}");
    }
    agent.stop()
}

#[test]
fn lists_are_filtered_sorted_and_cut() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run("faults user-write 200000 1")?;
    agent.settle()?;
    let answer = agent.get("/v1/processes?sort=page_faults.user_total&limit=2")?;
    let processes = json::list(&answer, "processes")?;
    expect::exactly("processes", processes.len(), 2)?;
    let faults = |process: &Value| json::count(process, "page_faults.user_total");
    ensure!(faults(&processes[0])? >= faults(&processes[1])? && faults(&processes[0])? >= 200_000, "{processes:?}");
    expect::exactly("truncated", &answer["truncated"], &Value::Bool(true))?;
    ensure!(json::count(&answer, "total")? > 2, "{answer}");
    for list in ["trees", "cgroups", "block_devices"] {
        let answer = agent.get(&format!("/v1/{list}"))?;
        json::list(&answer, list)?;
        json::at(&answer, "coverage.page_fault.state")?;
    }
    agent.stop()
}

#[test]
fn events_are_followed_as_they_happen() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let follower = http::stream(agent.socket(), "/v1/events?follow=true")?;
    expect::exactly("status", follower.status, 200)?;
    let kind = follower.headers.get("content-type").map(String::as_str);
    expect::exactly("content type", kind, Some("application/x-ndjson"))?;
    workload.run("spawn 1 followed")?;
    let mut exits = 0;
    for line in follower.body.lines() {
        let event: Value = serde_json::from_str(&line?)?;
        ensure!(event["event"] != "lost", "a follower that reads at once lost events");
        let is_exec = event["event"] == "exec";
        if is_exec && event["command_line"].as_str().is_some_and(|c| c.ends_with("followed-0")) {
            exits += 1;
            break;
        }
    }
    expect::exactly("the followed process", exits, 1)?;
    agent.stop()
}

#[test]
fn query_prints_what_the_socket_answers() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let socket = agent.socket().display().to_string();
    let output = agent::run(&["query", "/v1/health", "--socket", &socket])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    let health: Value = serde_json::from_slice(&output.stdout)?;
    expect::exactly("pid", json::count(&health, "pid")?, u64::from(agent.pid()))?;
    let output = agent::run(&["query", "/v1/events", "--socket", &socket])?;
    for line in String::from_utf8(output.stdout)?.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("no JSON: {line}"))?;
    }
    let output = agent::run(&["query", "/v1/nothing", "--socket", &socket])?;
    expect::exactly("exit code", output.status.code(), Some(1))?;
    expect::exactly("its error's lines", String::from_utf8(output.stderr)?.trim_end().lines().count(), 1)?;
    agent.stop()?;
    let output = agent::run(&["query", "/v1/health", "--socket", &socket])?;
    expect::exactly("exit code without an agent", output.status.code(), Some(1))?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains(&socket), "the error does not name {socket}");
    Ok(())
}
