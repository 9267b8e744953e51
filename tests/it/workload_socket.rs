//! The workloads' socket: whoever comes, of whatever user, is told of its own process tree, may mark that, and nothing else.

use crate::socket::{Stranger, open_directory};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, http, json,
};

const STATS: &str = "/v1/stats";
const MARKS: &str = "/v1/marks";

/// A path for the socket, and the directory that holds it.
fn place() -> Result<(TempDir, PathBuf, String)> {
    let directory = open_directory()?;
    let path = directory.path().join("workloads.sock");
    let text = path.display().to_string();
    Ok((directory, path, text))
}

/// A workload in a cgroup of its own, which makes it the root of a tree.
struct Tenant {
    workload: Workload,
    _cgroup: Cgroup,
}

impl Tenant {
    fn new(mut workload: Workload, name: &str) -> Result<Self> {
        let cgroup = Cgroup::new(name)?;
        cgroup.add(workload.pid())?;
        workload.run("children 1")?;
        Ok(Self { workload, _cgroup: cgroup })
    }

    fn pid(&self) -> u32 {
        self.workload.pid()
    }

    /// Asks; status and document.
    fn ask(&mut self, socket: &Path, target: &str) -> Result<(u64, Value)> {
        self.send(&format!("ask {} {target}", socket.display()))
    }

    fn post(&mut self, socket: &Path, mark: &Value) -> Result<(u64, Value)> {
        self.send(&format!("ask {} {MARKS} {mark}", socket.display()))
    }

    fn send(&mut self, command: &str) -> Result<(u64, Value)> {
        let told = self.workload.run(command)?;
        let (status, body) = (json::count(&told, "status")?, json::text(&told, "body")?);
        let kind = if status < 300 { "application/json" } else { "application/problem+json" };
        expect::exactly(command, json::text(&told, "kind")?, kind)?;
        Ok((status, serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?))
    }

    /// It is refused, by a problem that says so in one line.
    fn is_refused(&mut self, socket: &Path, target: &str, status: u64, words: &str) -> Result<()> {
        let (told, problem) = self.ask(socket, target)?;
        expect::exactly(target, told, status).with_context(|| problem.to_string())?;
        let detail = json::text(&problem, "detail")?;
        ensure!(detail.contains(words) && detail.lines().count() == 1, "{target}: {detail}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.workload.run("release")?;
        self.workload.send("exit 0")?;
        self.workload.wait().map(|_| ())
    }
}

/// The mark of the tree with that root; none where there is no such tree.
fn mark_of(trees: &Value, root: u32) -> Result<Option<Value>> {
    let tree = json::list(trees, "trees")?.iter().find(|tree| tree["pid"] == root);
    Ok(tree.map(|tree| tree["mark"].clone()))
}

fn mark(step: u64, epoch: Option<u64>) -> Value {
    json!({"step": step, "epoch": epoch, "labels": null})
}

#[test]
fn a_stranger_is_told_of_its_own_tree_and_of_nothing_else() -> Result<()> {
    let _machine = Machine::claim()?;
    let (_directory, socket, path) = place()?;
    let agent = Agent::start(&["--workload-socket", &path])?;
    expect::exactly("mode", fs::metadata(&socket)?.mode() & 0o7777, 0o666)?;
    let stranger = Stranger::new()?;
    let mut one = Tenant::new(stranger.start()?, "one")?;
    let other = Tenant::new(stranger.start()?, "other")?;
    agent.settle()?;

    let (status, own) = one.ask(&socket, STATS)?;
    expect::exactly("status", status, 200).with_context(|| own.to_string())?;
    expect::exactly("tree", json::count(&own, "tree")?, u64::from(one.pid()))?;
    let pids = |stats: &Value| -> Result<Vec<u64>> {
        json::list(stats, "processes")?.iter().map(|process| json::count(process, "pid")).collect()
    };
    let all = pids(&own)?;
    ensure!(all.len() == 2 && all.contains(&u64::from(one.pid())), "processes of its tree: {all:?}");
    expect::exactly("total", json::count(&own, "total")?, 2)?;
    for pid in &all {
        let (status, same) = one.ask(&socket, &format!("{STATS}?pid={pid}"))?;
        expect::exactly("status", (status, pids(&same)?), (200, all.clone()))?;
    }
    // Whoever is not of its tree, whether there is such a process or not.
    for pid in [other.pid(), std::process::id(), agent.pid(), 1, 4_194_304] {
        one.is_refused(&socket, &format!("{STATS}?pid={pid}"), 403, "is not of the tree of who asks")?;
    }
    let main = agent.socket().display().to_string();
    for target in ["/", "/v1/health", "/v1/snapshot", "/v1/processes?pid=1", "/v1/trees", "/v1/events", "/metrics"] {
        one.is_refused(&socket, target, 403, &main)?;
    }
    one.is_refused(&socket, "/v1/nothing", 404, &main)?;

    // The other socket lets in nobody of these, even where its file would.
    fs::set_permissions(agent.socket(), Permissions::from_mode(0o666))?;
    one.is_refused(agent.socket(), STATS, 403, "may not read")?;
    let (status, _) = one.post(agent.socket(), &json!({"step": 1}))?;
    expect::exactly("a post to the other socket", status, 403)?;
    one.end()?;
    other.end()?;
    agent.stop()?;
    ensure!(!socket.exists(), "the socket is still there");
    expect::exactly("files left", fs::read_dir(socket.parent().context("no directory")?)?.count(), 0)
}

#[test]
fn root_is_nobody_special_and_who_has_just_begun_waits() -> Result<()> {
    let _machine = Machine::claim()?;
    let (_directory, socket, path) = place()?;
    // The agent waits for two ticks, so that a loop that stands still for one of them does no harm.
    let agent = Agent::start(&["--workload-socket", &path, "--tick", "1500ms"])?;
    let mut root = Tenant::new(Workload::start()?, "root")?;
    agent.settle()?;
    root.is_refused(&socket, &format!("{STATS}?pid=1"), 403, "is not of the tree of who asks")?;
    root.is_refused(&socket, "/v1/processes", 403, "only, to root")?;

    // As curl does: no snapshot has it when it asks.
    let short = Stranger::new()?.get(&socket, STATS)?;
    let printed = String::from_utf8_lossy(&short.stdout).into_owned();
    ensure!(printed.starts_with("200 application/json"), "{printed}{}", String::from_utf8_lossy(&short.stderr));

    // In a pid namespace of its own it does not know the pid that it has outside.
    let told = root.workload.run(&format!("ask-in-namespace {path} {STATS}"))?;
    let (head, body) = json::text(&told, "printed")?.split_once('\n').context("no body")?;
    expect::exactly("status", head, "200 application/json").with_context(|| body.to_owned())?;
    let stats: Value = serde_json::from_str(body)?;
    expect::exactly("tree", json::count(&stats, "tree")?, u64::from(root.pid()))?;
    let pids: Vec<_> = json::list(&stats, "processes")?.iter().map(|process| process["pid"].clone()).collect();
    ensure!(pids.contains(&told["pid"]), "{} is not among {pids:?}", told["pid"]);
    root.end()?;
    agent.stop()
}

#[test]
fn marks_are_of_the_tree_that_posts_them_and_of_no_other() -> Result<()> {
    let _machine = Machine::claim()?;
    let (directory, socket, path) = place()?;
    let record = directory.path().join("a.rec").display().to_string();
    let flags = ["--workload-socket", &path, "--record", &record, "--set", "exited.keep=10s"];
    let agent = Agent::start(&flags)?;
    let stranger = Stranger::new()?;
    let mut one = Tenant::new(stranger.start()?, "one")?;
    let mut other = Tenant::new(stranger.start()?, "other")?;
    agent.settle()?;
    expect::exactly("status", one.post(&socket, &json!({"step": 100, "epoch": 1}))?.0, 202)?;
    expect::exactly("status", other.post(&socket, &json!({"step": 7}))?.0, 202)?;
    agent.settle()?;
    let trees = agent.get("/v1/trees?limit=100000")?;
    expect::exactly("one's mark", mark_of(&trees, one.pid())?, Some(mark(100, Some(1))))?;
    expect::exactly("the other's", mark_of(&trees, other.pid())?, Some(mark(7, None)))?;
    let marked = json::list(&trees, "trees")?.iter().filter(|tree| !tree["mark"].is_null()).count();
    expect::exactly("trees with a mark", marked, 2)?;
    expect::exactly("the last", json::at(&agent.get("/v1/snapshot")?, "mark")?, &mark(7, None))?;

    // On from what that tree told, not from what was told last; and not for another tree.
    expect::exactly("status", one.post(&socket, &json!({"step": 101}))?.0, 202)?;
    let of_other = json!({"step": 0, "pid": other.pid()});
    let (status, problem) = one.post(&socket, &of_other)?;
    expect::exactly("a mark for another tree", status, 403).with_context(|| problem.to_string())?;
    agent.settle()?;
    let trees = agent.get("/v1/trees?limit=100000")?;
    expect::exactly("one's mark", mark_of(&trees, one.pid())?, Some(mark(101, Some(1))))?;
    expect::exactly("the other's", mark_of(&trees, other.pid())?, Some(mark(7, None)))?;
    expect::exactly("the last", json::at(&agent.get("/v1/snapshot")?, "mark")?, &mark(101, Some(1)))?;

    // Root may name any process of a tree, and who has just begun posts for the tree that it was born into.
    let answer = http::post(agent.socket(), MARKS, &json!({"step": 8, "pid": other.pid()}).to_string())?;
    expect::exactly("status", answer.status, 202)?;
    let answer = http::post(agent.socket(), MARKS, &json!({"step": 8, "pid": 4_194_304}).to_string())?;
    expect::exactly("a mark for nobody", answer.status, 404)?;
    let short = stranger.post(&socket, MARKS, r#"{"step": 3}"#)?;
    ensure!(short.stdout.starts_with(b"202 application/json"), "{}", String::from_utf8_lossy(&short.stdout));
    agent.settle()?;
    let trees = agent.get("/v1/trees?limit=100000")?;
    expect::exactly("the other's", mark_of(&trees, other.pid())?, Some(mark(8, None)))?;
    let ours = json::count(&agent.process(std::process::id())?, "tree")?;
    expect::exactly("ours", mark_of(&trees, u32::try_from(ours)?)?, Some(mark(3, None)))?;

    // It goes with its tree, and a recording tells the same.
    let gone = one.pid();
    one.end()?;
    wait_until("the tree to be forgotten", PATIENCE, || {
        let trees = agent.get("/v1/trees?limit=100000")?;
        Ok(mark_of(&trees, gone)?.is_none().then_some(()))
    })?;
    agent.settle()?;
    let other_pid = other.pid();
    agent.stop()?;
    let output = agent::run(&["query", "--from", &record, "/v1/trees?limit=100000"])?;
    let recorded: Value = serde_json::from_slice(&output.stdout)?;
    expect::exactly("the other's, recorded", mark_of(&recorded, other_pid)?, Some(mark(8, None)))?;
    expect::exactly("one's, recorded", mark_of(&recorded, gone)?, None)?;
    other.end()
}

#[test]
fn a_crowd_of_strangers_keeps_nobody_from_the_agents_own_socket() -> Result<()> {
    let _machine = Machine::claim()?;
    let (_directory, socket, path) = place()?;
    let agent = Agent::start(&["--workload-socket", &path])?;
    let crowd = (0..100).map(|_| UnixStream::connect(&socket)).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..10 {
        agent.get("/v1/health")?;
    }
    drop(crowd);
    wait_until("the crowd to be gone", PATIENCE, || {
        let answer = http::get(&socket, STATS);
        Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
    })?;
    agent.stop()
}

#[test]
fn where_it_cannot_be_the_agent_does_not_start_and_says_why() -> Result<()> {
    let _machine = Machine::claim()?;
    let (directory, socket, path) = place()?;
    let agent = Agent::start(&["--workload-socket", &path])?;
    let main = directory.path().join("second.sock").display().to_string();
    let refusal = |flags: &[&str], code: i32| -> Result<String> {
        let output = agent::run(&[&["run", "--quiet", "--for", "5s", "--socket", &main], flags].concat())?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        expect::exactly("exit code", output.status.code(), Some(code)).with_context(|| words.clone())?;
        expect::exactly("lines of its error", words.trim_end().lines().count(), 1).with_context(|| words.clone())?;
        Ok(words)
    };
    let words = refusal(&["--workload-socket", &path], 1)?;
    ensure!(words.contains(&format!("is served by pid {} (", agent.pid())), "{words}");
    ensure!(words.contains("--workload-socket"), "{words}");
    let words = refusal(&["--workload-socket", &main], 2)?;
    ensure!(words.contains("must be another path than socket"), "{words}");

    let unsafe_directory = directory.path().join("open");
    fs::create_dir(&unsafe_directory)?;
    fs::set_permissions(&unsafe_directory, Permissions::from_mode(0o777))?;
    let words = refusal(&["--workload-socket", &unsafe_directory.join("m.sock").display().to_string()], 1)?;
    ensure!(words.contains("others may put files of theirs into"), "{words}");

    agent.end_by(libc::SIGKILL)?;
    ensure!(socket.exists(), "no stale socket to try with");
    let agent = Agent::start(&["--workload-socket", &path])?;
    expect::exactly("status", http::get(&socket, "/v1/nothing")?.status, 404)?;
    agent.stop()
}

/// By sh(1), so not in the virtual machines.
#[cfg(not(feature = "vm"))]
#[test]
fn everybody_finds_it_whatever_the_umask() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = open_directory()?;
    let socket = directory.path().join("made/for/it/m.sock");
    let wrapper = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let agent = Agent::start_through(&wrapper, &["--workload-socket", &socket.display().to_string()])?;
    expect::exactly("mode", fs::metadata(&socket)?.mode() & 0o7777, 0o666)?;
    let answer = Stranger::new()?.get(&socket, "/v1/nothing")?;
    ensure!(answer.stdout.starts_with(b"404 "), "{}", String::from_utf8_lossy(&answer.stderr));
    agent.stop()
}
