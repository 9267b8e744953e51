//! What is polled, of real servers and containers, against readings that are not ours: psutil, free, the kernel's files.
//! They need `apt-get install --no-install-recommends python3-psutil procps gunicorn python3-uvicorn postgresql stress-ng`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tests::{
    Agent, Cgroup, Machine, Podman, Server,
    cgroup::Hierarchy,
    clock::{PATIENCE, wait_until},
    expect, json,
};

const MIB: u64 = 1 << 20;

/// Tells of a process and its descendants, by pid. What the kernel counts is read at once, so that it is of one time.
const PSUTIL: &str = "
import json, psutil, sys
root = psutil.Process(int(sys.argv[1]))
def told(process):
    memory, times = process.memory_full_info(), process.cpu_times()
    return {'resident': memory.rss, 'unique': memory.uss, 'proportional': memory.pss, 'threads': process.num_threads(),
            'open_files': process.num_fds(), 'cpu_seconds': times.user + times.system, 'parent': process.ppid()}
processes = {}
for process in [root] + root.children(recursive=True):
    try: processes[process.pid] = told(process)
    except psutil.NoSuchProcess: pass
print(json.dumps(processes))
";

/// What psutil says of a process and its descendants.
fn psutil(root: u32) -> Result<Vec<(u32, Value)>> {
    let output = Command::new("/usr/bin/python3").args(["-c", PSUTIL, &root.to_string()]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "apt-get install python3-psutil; {error}");
    let told: serde_json::Map<String, Value> = serde_json::from_slice(&output.stdout)?;
    told.into_iter().map(|(pid, told)| Ok((pid.parse()?, told))).collect()
}

/// The tree that begins with a process.
fn tree(agent: &Agent, root: u32) -> Result<Option<Value>> {
    let trees = agent.get("/v1/trees?limit=100000")?;
    Ok(json::list(&trees, "trees")?.iter().find(|tree| tree["pid"] == root).cloned())
}

/// Waits until the agent and psutil agree on a tree of `processes` at rest, and on each of them; gives the tree.
fn agreed(agent: &Agent, root: u32, processes: usize) -> Result<Value> {
    let mut apart = String::from("nothing was compared");
    // Splitting has a five-hundredth of all time, for everybody on the machine.
    let agreed = wait_until("what psutil says", 3 * PATIENCE, || {
        // Each look is one more process to be split.
        sleep(Duration::from_secs(1));
        let oracle = psutil(root)?;
        if oracle.len() != processes {
            apart = format!("{} processes, not {processes}", oracle.len());
            return Ok(None);
        }
        let Some(tree) = tree(agent, root)? else { return Ok(None) };
        if tree["processes_running"] != processes {
            apart = format!("{} processes told, not {processes}", tree["processes_running"]);
            return Ok(None);
        }
        let difference = difference(agent, &tree, &oracle)?;
        apart = difference.clone().unwrap_or_default();
        Ok(difference.is_none().then_some(tree))
    });
    agreed.with_context(|| apart)
}

/// The first thing that the two tell differently.
fn difference(agent: &Agent, tree: &Value, oracle: &[(u32, Value)]) -> Result<Option<String>> {
    let (mut unique, mut proportional) = (0, 0);
    for (pid, told) in oracle {
        let Ok(ours) = agent.process(*pid) else { return Ok(Some(format!("process {pid} is not told"))) };
        let theirs = |name: &str| json::count(told, name);
        // What is still filling is told as null.
        let ours = |name: &str| json::at(&ours, name).map(|value| value.as_u64().unwrap_or(0));
        let cpu_seconds = json::at(&agent.process(*pid)?, "cpu.seconds_total")?.as_f64().unwrap_or(0.0);
        let compared = [
            ("resident_bytes", ours("memory.resident_bytes")?, theirs("resident")?, 0),
            // Pages that others share come and go with them.
            ("unique_bytes", ours("memory.unique_bytes")?, theirs("unique")?, MIB),
            ("proportional_bytes", ours("memory.proportional_bytes")?, theirs("proportional")?, 2 * MIB),
            ("threads", ours("threads")?, theirs("threads")?, 0),
            ("open_files", ours("open_files")?, theirs("open_files")?, 0),
            ("parent_pid", ours("parent_pid")?, theirs("parent")?, 0),
            // In hundredths of a second, which is what the kernel's clock tick is.
            (
                "cpu",
                (cpu_seconds * 100.0).round() as u64,
                (json::number(told, "cpu_seconds")? * 100.0).round() as u64,
                1,
            ),
        ];
        for (name, ours, theirs, tolerance) in compared {
            if ours.abs_diff(theirs) > tolerance {
                return Ok(Some(format!("process {pid}: {name} is {ours}, psutil says {theirs}")));
            }
        }
        unique += theirs("unique")?;
        proportional += theirs("proportional")?;
    }
    let ours = |name: &str| json::at(tree, &format!("memory.{name}_bytes")).map(|value| value.as_u64().unwrap_or(0));
    let (private, shared) = (ours("private")?, ours("shared")?);
    let workers = oracle.len() as u64;
    if private.abs_diff(unique) > workers * MIB || (private + shared).abs_diff(proportional) > workers * 2 * MIB {
        let apart = format!("{private} private and {shared} shared, psutil says {unique} of {proportional}");
        return Ok(Some(format!("tree: {apart}")));
    }
    Ok(None)
}

#[test]
fn gunicorn_with_uvicorn_workers_is_what_psutil_says() -> Result<()> {
    const WORKERS: u32 = 2;
    let _machine = Machine::claim()?;
    is_what_psutil_says(Server::gunicorn(WORKERS)?, "gunicorn", WORKERS)
}

#[test]
fn uvicorn_with_workers_of_its_own_is_what_psutil_says() -> Result<()> {
    const WORKERS: u32 = 2;
    // multiprocessing has a child of its own, which cleans up after the others.
    const CHILDREN: u32 = WORKERS + 1;
    let _machine = Machine::claim()?;
    is_what_psutil_says(Server::uvicorn(WORKERS)?, "uvicorn", CHILDREN)
}

/// Waits until a server has all of its processes, and the memory of none changes; gives how many they are. What a process
/// shares with those that come up after the agent's first look at it is told anew at its next turn only, and that may take
/// minutes.
fn at_rest(server: &Server, is_whole: impl Fn(usize) -> bool) -> Result<usize> {
    // Some helpers are started a moment after the others.
    const REST: Duration = Duration::from_secs(3);
    // Pages of libraries that psutil's own interpreter maps as well come and go.
    const PASSING: u64 = MIB / 4;
    let mut seen: (Vec<(u32, u64)>, _) = (Vec::new(), Instant::now());
    wait_until("the server to be up and at rest", 3 * PATIENCE, || {
        sleep(Duration::from_secs(1));
        let told = psutil(server.pid())?;
        let now =
            told.iter().map(|(pid, told)| Ok((*pid, json::count(told, "unique")?))).collect::<Result<Vec<_>>>()?;
        let is_same = |(now, seen): (&(u32, u64), &(u32, u64))| now.0 == seen.0 && now.1.abs_diff(seen.1) <= PASSING;
        if now.len() != seen.0.len() || !now.iter().zip(&seen.0).all(is_same) {
            seen = (now, Instant::now());
        }
        let is_at_rest = is_whole(seen.0.len()) && seen.1.elapsed() >= REST;
        Ok(is_at_rest.then_some(seen.0.len()))
    })
}

/// A server with so many children, compared with psutil's account of it.
fn is_what_psutil_says(server: Server, rule: &str, children: u32) -> Result<()> {
    let processes = at_rest(&server, |processes| processes == children as usize + 1)?;
    let agent = Agent::start(&[])?;
    let tree = agreed(&agent, server.pid(), processes)?;
    expect::exactly("rule", json::text(&tree, "rule")?, rule)?;
    expect::exactly("workers", json::count(&tree, "workers")?, children.into())?;
    // What the workers share is the interpreter and its modules: not once for each of them.
    let bytes = |name: &str| json::count(&tree, &format!("memory.{name}_bytes"));
    let (resident, own) = (bytes("resident")?, bytes("private")? + bytes("shared")?);
    ensure!(own < resident, "{own} bytes of the tree, and its processes' resident memory is {resident}");
    drop(server);
    agent.stop()
}

/// How a client begins.
const PSQL: [&str; 4] = ["--no-psqlrc", "--quiet", "--username=postgres", "--dbname=postgres"];

/// A client that has run these statements, and stays connected until its input ends.
fn session(server: &Server, statements: &str) -> Result<Child> {
    let mut psql = Command::new("psql");
    psql.arg("--host").arg(server.directory()).args(PSQL);
    let child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.context("psql: apt-get install postgresql")?;
    let input = child.stdin.as_mut().context("no standard input")?;
    writeln!(input, "{statements}\n\\echo done")?;
    let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    ensure!(lines.map_while(Result::ok).any(|line| line == "done"), "psql ended before it was done");
    Ok(child)
}

#[test]
fn postgresql_is_what_psutil_says_and_its_buffers_count_once() -> Result<()> {
    let _machine = Machine::claim()?;
    let server = Server::postgresql()?;
    // Its socket is there before it takes sessions.
    let is_ready = || {
        let host = server.directory();
        let status = Command::new("psql").arg("--host").arg(host).args(PSQL).args(["--command", ""]).output()?.status;
        Ok(status.success().then_some(()))
    };
    wait_until("PostgreSQL to take sessions", PATIENCE, is_ready)?;
    // Two sessions that stay, and have the same pages of the buffers before them.
    let table = "create table numbers as select generate_series(1, 300000) as n;";
    let sum = "select sum(n) from numbers;";
    let mut sessions = [session(&server, &format!("{table} {sum}"))?, session(&server, sum)?];
    let processes = at_rest(&server, |processes| processes > 3)?;
    let agent = Agent::start(&[])?;
    let tree = agreed(&agent, server.pid(), processes)?;
    expect::exactly("rule", json::text(&tree, "rule")?, "postgres")?;
    expect::exactly("workers", json::count(&tree, "workers")? as usize, processes - 1)?;
    let bytes = |name: &str| json::count(&tree, &format!("memory.{name}_bytes"));
    let (resident, own) = (bytes("resident")?, bytes("private")? + bytes("shared")?);
    ensure!(own + 10 * MIB < resident, "{own} bytes of the tree, and its processes' resident memory is {resident}");
    for session in &mut sessions {
        drop(session.stdin.take());
        session.wait()?;
    }
    drop(server);
    agent.stop()
}

#[test]
fn a_cgroup_under_stress_is_what_its_files_say() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("stress")?;
    let flags = ["--vm", "1", "--vm-bytes", "96M", "--vm-keep", "--cpu", "1", "--timeout", "120"];
    let server = Server::stress(&group, &flags)?;
    let (file, name) = if group.hierarchy().version_2 { ("memory.stat", "anon") } else { ("memory.stat", "total_rss") };
    let told = wait_until("its memory", PATIENCE, || {
        let before = group.read(file, Some(name))?;
        agent.settle()?;
        let told = agent.cgroup(&group.path())?.context("the cgroup is not told")?;
        let after = group.read(file, Some(name))?;
        let anon = told["memory"]["anon_bytes"].as_u64().unwrap_or(0);
        // It goes on all the time: between two readings of the file, and a little beside.
        let (low, high) = (before.min(after), before.max(after));
        Ok((anon + 2 * MIB >= low && anon <= high + 2 * MIB && anon > 64 * MIB).then_some(told))
    })?;
    ensure!(json::count(&told, "processes_running")? >= 3, "processes of stress-ng: {told}");
    // Its processors' share, against psutil's reading of the same processes over a while.
    let spent = || -> Result<f64> {
        psutil(server.pid())?.iter().map(|(_, told)| json::number(told, "cpu_seconds")).sum::<Result<f64>>()
    };
    let of_tree = || -> Result<f64> {
        let processes = psutil(server.pid())?;
        processes.iter().map(|(pid, _)| json::number(&agent.process(*pid)?, "cpu.seconds_total")).sum()
    };
    // Psutil before and after each of the agent's, which may be a tick old beside.
    let around = || -> Result<[f64; 3]> {
        let before = spent()?;
        agent.settle()?;
        Ok([before, of_tree()?, spent()?])
    };
    let [began, first, begun] = around()?;
    sleep(Duration::from_secs(4));
    let [ended, last, over] = around()?;
    let (least, told, most) = (ended - begun, last - first, over - began);
    ensure!(
        told > 1.0 && told >= least - 1.0 && told <= most + 1.0,
        "{told} s of CPU told, {least} to {most} by psutil"
    );
    drop(server);
    agent.stop()
}

#[test]
fn the_machines_memory_is_what_free_says() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut apart = String::new();
    let agrees = || -> Result<Option<()>> {
        let before = free()?;
        agent.settle()?;
        let host = agent.get("/v1/host")?;
        let after = free()?;
        expect::exactly("total", json::count(&host, "memory.total_bytes")?, before.total)?;
        expect::exactly("swap", json::count(&host, "memory.swap_total_bytes")?, before.swap)?;
        let available = json::count(&host, "memory.available_bytes")?;
        let (least, most) = (before.available.min(after.available), before.available.max(after.available));
        apart = format!("{available} bytes available, {least} to {most} by free");
        Ok((available + 16 * MIB >= least && available <= most + 16 * MIB).then_some(()))
    };
    wait_until("what free says", PATIENCE, agrees).with_context(|| apart)?;
    agent.stop()
}

/// What free(1) says, in bytes.
struct Free {
    total: u64,
    available: u64,
    swap: u64,
}

fn free() -> Result<Free> {
    let output = Command::new("free").args(["--bytes", "--wide"]).output().context("apt-get install procps")?;
    let text = String::from_utf8(output.stdout)?;
    let numbers = |line: &str| -> Result<Vec<u64>> {
        let line = text.lines().find_map(|found| found.strip_prefix(line)).with_context(|| format!("no {line}"))?;
        Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let (memory, swap) = (numbers("Mem:")?, numbers("Swap:")?);
    Ok(Free { total: memory[0], available: memory[6], swap: swap[0] })
}

#[test]
fn a_containers_limit_and_memory_are_what_podman_and_the_files_say() -> Result<()> {
    let _machine = Machine::claim()?;
    let podman = Podman::new("parity")?;
    let agent = Agent::start(&[
        "--set",
        &format!("containers.storage={}", podman.storage().display()),
        "--set",
        &format!("containers.storage_run={}", podman.storage_run().display()),
    ])?;
    podman.start_with("limited", &["--memory=64m"])?;
    let limit: u64 = podman.inspect("limited", "{{.HostConfig.Memory}}")?.parse()?;
    expect::exactly("podman's limit", limit, 64 * MIB)?;
    // It is made before it has a limit of its own.
    let told = wait_until("the container's own limit", PATIENCE, || {
        let cgroups = agent.get("/v1/cgroups?container=limited")?;
        let is_own = |cgroup: &&Value| cgroup["memory"]["limit_source"] == cgroup["path"];
        Ok(json::list(&cgroups, "cgroups")?.iter().find(is_own).cloned())
    })?;
    expect::exactly("limit", json::count(&told, "memory.limit_bytes")?, limit)?;
    let source = json::text(&told, "memory.peak_source")?;
    ensure!(source == "memory.peak" || source == "memory.max_usage_in_bytes", "the peak's source is {source}");

    podman.execute("limited", &["busybox", "dd", "if=/dev/zero", "of=/dev/shm/kept", "bs=1M", "count=24"])?;
    let (hierarchy, path) = (Hierarchy::of_memory()?, json::text(&told, "path")?);
    let files = if hierarchy.version_2 {
        [("current", "memory.current", None), ("peak", "memory.peak", None), ("file", "memory.stat", Some("file"))]
    } else {
        [
            ("current", "memory.usage_in_bytes", None),
            ("peak", "memory.max_usage_in_bytes", None),
            ("file", "memory.stat", Some("total_cache")),
        ]
    };
    wait_until("what its files say", PATIENCE, || {
        let told = agent.cgroup(path)?.context("the container is not told")?;
        let agrees = |(ours, file, name): &(&str, &str, Option<&str>)| {
            let ours = json::count(&told, &format!("memory.{ours}_bytes"))?;
            Ok(ours == hierarchy.read(path, file, *name)? && ours >= 24 * MIB)
        };
        Ok(files.iter().map(agrees).collect::<Result<Vec<_>>>()?.iter().all(|agrees| *agrees).then_some(()))
    })?;
    agent.stop()
}
