//! Leaks of real servers, found and not found, under real HTTP.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};
use tests::{
    Agent, Cgroup, Machine, Server,
    clock::{PATIENCE, wait_until},
    expect, http, json, proc,
};

/// What each request takes; Python and the allocator add less than a hundredth.
const REQUEST_BYTES: f64 = 100_000.0;

/// A server in a cgroup of its own, which makes it a process tree, and a client of it.
struct Served {
    server: Server,
    group: Cgroup,
    client: UnixStream,
}

impl Served {
    fn start(kind: &str) -> Result<Self> {
        let (server, group) = (Server::leaky(kind)?, Cgroup::new(kind)?);
        group.add(server.pid())?;
        let socket = server.directory().join("socket");
        let client = wait_until("the server to listen", PATIENCE, || Ok(UnixStream::connect(&socket).ok()))?;
        client.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { server, group, client })
    }

    /// Asks so many times over one connection.
    fn ask(&mut self, times: u64) -> Result<()> {
        let mut answer = Vec::new();
        for _ in 0..times {
            self.client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
            answer.clear();
            while !answer.ends_with(b"\r\n\r\nok") {
                let mut part = [0; 1024];
                match self.client.read(&mut part)? {
                    0 => bail!("the server has gone"),
                    length => answer.extend_from_slice(&part[..length]),
                }
            }
        }
        Ok(())
    }

    /// Asks so many times over so long.
    fn ask_over(&mut self, times: u64, time: Duration) -> Result<()> {
        const PARTS: u32 = 200;
        let mut next = Instant::now();
        for _ in 0..PARTS {
            self.ask(times / u64::from(PARTS))?;
            next += time / PARTS;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// The finding of this detector about this server's tree.
    fn found(&self, agent: &Agent, detector: &str) -> Result<Option<Value>> {
        let answer = agent.get("/v1/findings")?;
        let findings = json::list(&answer, "findings")?;
        let is_it =
            |finding: &&Value| finding["detector"] == detector && finding["subject"]["pid"] == self.server.pid();
        Ok(findings.iter().find(is_it).cloned())
    }
}

#[test]
fn a_server_that_keeps_100_kilobytes_a_request_is_found_within_1000_requests() -> Result<()> {
    const AT_ONCE: u64 = 4;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut served = Served::start("leaks")?;
    agent.settle()?;
    let anon_before = proc::bytes(served.server.pid(), "status", "RssAnon")?;
    let (mut requests, mut next) = (0, Instant::now());
    let finding = loop {
        ensure!(requests < 1000, "it was not found within {requests} requests: {}", agent.get("/v1/findings")?);
        // Forty requests a second.
        served.ask(AT_ONCE)?;
        requests += AT_ONCE;
        next += Duration::from_millis(100);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if requests % 40 == 0
            && let Some(finding) = served.found(&agent, "leak")?
        {
            break finding;
        }
    };
    let grown = proc::bytes(served.server.pid(), "status", "RssAnon")? - anon_before;
    let truth = grown as f64 / requests as f64 * 1000.0;
    let per_1000 = |name: &str| json::number(&finding, &format!("bytes_per_1000_requests.{name}"));
    let (low, value, high) = (per_1000("low")?, per_1000("value")?, per_1000("high")?);
    eprintln!(
        "found after {requests} requests: {value:.0} ({low:.0} to {high:.0}) bytes per 1000, in truth {truth:.0}"
    );
    for truth in [truth, REQUEST_BYTES * 1000.0] {
        ensure!((value / truth - 1.0).abs() < 0.1, "{value} bytes per 1000 requests, not {truth}");
    }
    ensure!(low <= value && value <= high, "{low} {value} {high}");
    expect::exactly("cgroup", json::text(&finding["subject"], "cgroup")?, served.group.path().as_str())?;
    ensure!(json::number(&finding, "seconds_to_limit.value")? > 0.0, "no time to the limit: {finding}");
    let asked = json::count(&finding, "evidence.requests_total")?;
    expect::between("requests when it was found", requests - 80, asked, requests)?;
    let seen = json::at(&finding, "evidence.requests")?;
    expect::exactly("counted by", json::text(seen, "counted_by")?, "turns")?;
    expect::exactly("turns seen", json::count(seen, "turns_total")?, asked)?;
    ensure!(
        json::count(seen, "connections_total")? > 0 && json::count(seen, "received_bytes_total")? > asked,
        "{seen}"
    );

    // Whoever loads its model anew says so, and the past is forgotten.
    let pid = served.server.pid();
    expect::exactly(
        "status",
        http::post(agent.socket(), "/v1/detectors/reset", &format!("{{\"pid\": {pid}}}"))?.status,
        202,
    )?;
    wait_until("it to be forgotten", PATIENCE, || Ok(served.found(&agent, "leak")?.is_none().then_some(())))?;
    agent.stop()
}

#[test]
fn servers_that_let_go_cache_or_collect_are_not_found_over_20000_requests() -> Result<()> {
    const REQUESTS: u64 = 20_000;
    const TIME: Duration = Duration::from_secs(24);
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--tick", "250ms"])?;
    // The one that leaks shows that there was time enough for the others to be found.
    let kinds = [("fixed", REQUESTS), ("cache", REQUESTS), ("sawtooth", REQUESTS), ("leaks", REQUESTS / 10)];
    let mut clients = Vec::new();
    for (kind, requests) in kinds {
        let mut served = Served::start(kind)?;
        let pid = served.server.pid();
        let thread = thread::spawn(move || served.ask_over(requests, TIME).map(|()| served));
        clients.push((kind, requests, pid, thread));
    }
    let mut found = BTreeSet::new();
    while clients.iter().any(|(.., thread)| !thread.is_finished()) {
        let answer = agent.get("/v1/findings")?;
        let leaks = json::list(&answer, "findings")?.iter().filter(|finding| finding["detector"] == "leak");
        let pids: Vec<&Value> = leaks.map(|finding| &finding["subject"]["pid"]).collect();
        found.extend(
            clients.iter().filter(|(_, _, pid, _)| pids.iter().any(|told| **told == *pid)).map(|client| client.0),
        );
        thread::sleep(Duration::from_millis(250));
    }
    for (kind, requests, pid, thread) in clients {
        let Ok(served) = thread.join() else { bail!("the client of {kind} panicked") };
        let _served = served.with_context(|| format!("the client of {kind}"))?;
        agent.settle()?;
        let told = json::count(&agent.process(pid)?, "requests.requests_total")?;
        expect::exactly(&format!("requests of {kind}"), told, requests)?;
    }
    expect::exactly("who was taken for a leak", found, BTreeSet::from(["leaks"]))?;
    agent.stop()
}
