//! Memory budgets of real servers, against what the kernel's books say once there is one more worker, or more requests.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread::{self, sleep},
    time::Duration,
};
use tests::{
    Agent, Cgroup, Machine, Server, agent,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

const MIB: u64 = 1 << 20;
/// Until memory is split into own and shared, which is done on a budget of time that the machine's large processes use up first.
const SPLITTING: Duration = PATIENCE.saturating_mul(4);
/// What each worker loads.
const LOADED: u64 = 40 * MIB;
/// What each request holds.
const HELD: u64 = 8 * MIB;

/// The budget of a process's tree.
fn budget(agent: &Agent, pid: u32) -> Result<Value> {
    let answer = agent.get(&format!("/v1/budget?pid={pid}"))?;
    json::list(&answer, "budgets")?.first().cloned().context("no budget")
}

/// What a server and its children have in memory, each page once, when there are so many that have loaded all.
fn proportional(server: &Server, workers: usize) -> Result<u64> {
    let bytes = |pid: u32| proc::bytes(pid, "smaps_rollup", "Pss");
    let mut last = 0;
    wait_until("all workers to have loaded", PATIENCE, || {
        let children = proc::children(server.pid())?;
        let resident = children.iter().map(|pid| proc::bytes(*pid, "status", "VmRSS").unwrap_or(0));
        let ready = resident.filter(|resident| *resident > LOADED).count() == workers && children.len() == workers;
        // One that has just been forked goes on for a while.
        sleep(Duration::from_millis(200));
        let all = children.into_iter().chain([server.pid()]).map(bytes).sum::<Result<u64>>();
        let now = if ready { all? } else { 0 };
        let is_still = now > 0 && now.abs_diff(last) < MIB / 16;
        last = now;
        Ok(is_still.then_some(now))
    })
}

/// The budget of a gunicorn, once all that it has loaded was read.
fn settled(agent: &Agent, server: &Server, workers: u64) -> Result<Value> {
    wait_until("the budget of a server at rest", SPLITTING, || {
        let told = budget(agent, server.pid())?;
        let private = told["worker"]["private_bytes"].as_u64().unwrap_or(0);
        let is_whole = json::list(&told, "remarks")?.iter().all(|remark| !remark.to_string().contains("processes"));
        Ok((told["workers"] == workers && private > LOADED && is_whole).then_some(told))
    })
    .with_context(|| format!("{}", budget(agent, server.pid()).unwrap_or_default()))
}

/// By how much an estimate is off, as a share of the truth.
fn error(told: u64, truth: u64) -> f64 {
    told.abs_diff(truth) as f64 / truth as f64
}

#[test]
fn one_more_worker_takes_what_the_budget_says_and_preloading_saves_no_more() -> Result<()> {
    const WORKERS: u32 = 2;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let server = Server::gunicorn_loading(WORKERS, LOADED, &[])?;
    let before = proportional(&server, WORKERS as usize)?;
    let told = settled(&agent, &server, WORKERS.into())?;
    let listed = agent.get("/v1/budget")?;
    let is_listed = json::list(&listed, "budgets")?.iter().any(|budget| budget["tree"] == server.pid());
    expect::exactly("whether it is listed", is_listed, true)?;

    let private = json::count(&told, "worker.private_bytes")?;
    let whole = json::count(&told, "baseline_bytes")? + u64::from(WORKERS) * private;
    ensure!(error(whole, before) < 0.1, "{whole} bytes in all, {before} by smaps_rollup: {told}");

    server.signal(libc::SIGTTIN)?;
    let after = proportional(&server, WORKERS as usize + 1)?;
    let (one_more, truth) = (json::count(&told, "one_more_worker_bytes")?, after - before);
    eprintln!("one more worker: {one_more} bytes, in truth {truth}: {:.2} % off", error(one_more, truth) * 100.0);
    ensure!(error(one_more, truth) < 0.1, "one more worker takes {truth} bytes, not {one_more}: {told}");
    let again = settled(&agent, &server, u64::from(WORKERS) + 1)?;
    let fixed = |told: &Value| json::count(told, "baseline_bytes");
    let moved = fixed(&again)?.abs_diff(fixed(&told)?);
    ensure!(moved < 4 * MIB, "the baseline went by {moved} bytes from {told} to {again}");

    let limit = json::count(&told, "limit_bytes")? - json::count(&told, "others_bytes")? - fixed(&told)?;
    expect::exactly("workers that fit", json::count(&told, "most_workers")?, limit / one_more)?;
    let command = agent::run(&["budget", "--socket", &agent.socket().to_string_lossy()])?;
    let text = String::from_utf8(command.stdout)?;
    let line = format!("({})", server.pid());
    ensure!(text.contains(&line) && text.contains("safety margin"), "{text}");
    drop(server);

    let bound = json::count(&told, "preload_saves_bytes")?;
    let preloading = Server::gunicorn_loading(WORKERS, LOADED, &["--preload"])?;
    let saved = before - proportional(&preloading, WORKERS as usize)?;
    eprintln!("preloading: {bound} bytes at most, in truth {saved}");
    ensure!(saved <= bound + MIB && bound <= saved + saved / 5, "it saves {saved} bytes, and {bound} at most: {told}");
    let nothing = wait_until("the budget of the one that preloads", SPLITTING, || {
        let told = budget(&agent, preloading.pid())?;
        let is_known = told["workers"] == WORKERS && told["worker"]["private_bytes"].is_u64();
        Ok(is_known.then(|| told["preload_saves_bytes"].as_u64().unwrap_or(0)))
    })?;
    ensure!(nothing < 4 * MIB, "who preloads is told to save {nothing} bytes by it");
    drop(preloading);
    agent.stop()
}

/// Asks so many times at once, for so long, and waits for the answers. Whether all came.
fn hold(socket: &Path, requests: usize, time: Duration) -> bool {
    let question = format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", time.as_millis());
    let ask = |_| -> Result<UnixStream> {
        let mut connection = UnixStream::connect(socket)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(question.as_bytes())?;
        Ok(connection)
    };
    // Where the server is killed meanwhile, there is nothing to connect to.
    let connections: Vec<_> = (0..requests).filter_map(|at| ask(at).ok()).collect();
    if requests == 0 {
        sleep(time);
    }
    let mut answered = 0;
    for mut connection in connections {
        let mut answer = Vec::new();
        // One that is killed resets its connections.
        let _ = connection.read_to_end(&mut answer);
        answered += usize::from(answer.ends_with(b"ok"));
    }
    answered == requests
}

#[test]
fn what_requests_hold_is_fitted_and_as_many_as_are_told_fit() -> Result<()> {
    const LIMIT: u64 = 160 * MIB;
    const LEVELS: [usize; 18] = [0, 3, 1, 6, 2, 8, 0, 5, 1, 7, 3, 4, 0, 8, 2, 6, 1, 5];
    let (level, _machine) = (Duration::from_millis(600), Machine::claim()?);
    let directory = tempfile::tempdir()?;
    let recording = directory.path().join("load.rec");
    let agent = Agent::start(&["--record", &recording.to_string_lossy()])?;
    let (group, server) = (Cgroup::new("budget")?, Server::holding(HELD)?);
    group.add(server.pid())?;
    group.limit_memory(LIMIT)?;
    let socket = server.directory().join("socket");
    wait_until("the server to listen", PATIENCE, || Ok(UnixStream::connect(&socket).ok()))?;
    for requests in LEVELS.into_iter().cycle().take(2 * LEVELS.len()) {
        ensure!(hold(&socket, requests, level), "not all of {requests} were answered");
    }
    let most = 8;
    let anon = || proc::bytes(server.pid(), "status", "RssAnon");
    let rest = anon()?;
    // So long that there is a moment at which all of them hold it, however slowly they begin.
    let (held, answered) = thread::scope(|scope| {
        let client = scope.spawn(|| hold(&socket, most as usize, PATIENCE / 6));
        let mut held = anon();
        while !client.is_finished() {
            sleep(Duration::from_millis(20));
            held = held.and_then(|held| Ok(anon()?.max(held)));
        }
        (held, client.join())
    });
    ensure!(matches!(answered, Ok(true)), "not all were answered");
    let truth = held?.saturating_sub(rest) / most;
    agent.settle()?;
    let told = budget(&agent, server.pid())?;
    let of = |told: &Value, name: &str| json::count(told, &format!("per_request.{name}_bytes"));
    let (low, value, high) = (of(&told, "low")?, of(&told, "value")?, of(&told, "high")?);
    eprintln!(
        "a request holds {value} bytes ({low} to {high}), in truth {truth}: {:.2} % off",
        error(value, truth) * 100.0
    );
    expect::between("what a request holds", low, truth, high)?;
    ensure!(error(value, HELD) < 0.05 && high - low < HELD / 4, "{told}");
    expect::exactly("most requests at once", json::count(&told, "concurrent_requests_peak")?, most)?;
    expect::exactly("limit", json::count(&told, "limit_bytes")?, LIMIT)?;
    expect::exactly("whose", json::text(&told, "limit_source")?, group.path().as_str())?;
    let told = wait_until("what it has at rest", SPLITTING, || {
        let proportional = proc::bytes(server.pid(), "smaps_rollup", "Pss")?;
        let told = budget(&agent, server.pid())?;
        let baseline = told["baseline_bytes"].as_u64().unwrap_or(0);
        Ok((error(baseline, proportional) < 0.1).then_some(told))
    })
    .with_context(|| format!("{}", budget(&agent, server.pid()).unwrap_or_default()))?;
    agent.stop()?;

    // A recording answers alike.
    let path = format!("/v1/budget?pid={}", server.pid());
    let output = agent::run(&["query", "--from", &recording.to_string_lossy(), &path])?;
    let error_text = String::from_utf8_lossy(&output.stderr);
    let again: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {error_text}"))?;
    let again = &json::list(&again, "budgets")?[0];
    expect::between("what a request holds, by a recording", of(again, "low")?, truth, of(again, "high")?)?;

    // As many as are told fit; a third more does not.
    let fits = json::count(&told, "most_threads_per_worker")? as usize;
    eprintln!("{fits} requests fit {LIMIT} bytes");
    ensure!(hold(&socket, fits, 3 * level), "{fits} requests do not fit: {told}");
    // So long that they are in flight at once however slowly they begin; the end of the server ends the wait.
    let (too_many, long) = (fits + fits / 3, PATIENCE / 3);
    ensure!(!hold(&socket, too_many, long), "{too_many} requests fit, too: {told}");
    drop(server);
    Ok(())
}
