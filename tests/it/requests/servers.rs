//! What clients asked real servers, and what nginx and Redis counted themselves; and programs of a shell that answer.
//!
//! They need `apt-get install --no-install-recommends nginx redis-server redis-tools gunicorn python3-uvicorn`.

use super::{Connection, Watched, tcp, tree, unix};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio, id},
    time::Duration,
};
use tests::{
    Agent, Machine, Server,
    clock::{PATIENCE, wait_until},
    expect, json,
    server::NGINX_BODY,
};

/// A loopback port that nobody listens at.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Asks once, and reads until the answer ends so.
fn ask(connection: &mut impl Connection, question: &str, end: &str) -> Result<String> {
    connection.write_all(question.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(end.as_bytes()) {
        match connection.read(&mut part)? {
            0 => bail!("the answer ends too early: {}", String::from_utf8_lossy(&answer)),
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    Ok(String::from_utf8(answer)?)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Requests over one connection.
const KEPT: u64 = 400;
/// Connections with one request each.
const SINGLE: u64 = 60;

/// Asks over one connection, then over one each, and gives how often.
fn ask_often<C: Connection>(connect: impl Fn() -> Result<C>, end: &str) -> Result<u64> {
    let mut kept = connect()?;
    for _ in 0..KEPT {
        ensure!(ask(&mut kept, GET, end)?.starts_with("HTTP/1.1 200 "), "not served");
    }
    for _ in 0..SINGLE {
        ask(&mut connect()?, GET, end)?;
    }
    Ok(KEPT + SINGLE)
}

fn listening<C>(what: &str, connect: impl Fn() -> Result<C>) -> Result<()> {
    wait_until(what, PATIENCE, || Ok(connect().ok())).map(drop)
}

#[test]
fn nginx_serves_as_many_as_its_log_says_and_its_clients_asked() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, port) = (Agent::start(&[])?, free_port()?);
    let server = Server::nginx(2, port)?;
    let socket = server.directory().join("socket");
    listening("nginx", || unix(&socket))?;
    let asked = ask_often(|| tcp(port), NGINX_BODY)? + ask_often(|| unix(&socket), NGINX_BODY)?;
    let logged = || Ok(fs::read_to_string(server.directory().join("log"))?.lines().count() as u64);
    wait_until("the log", PATIENCE, || logged().map(|lines| (lines >= asked).then_some(())))?;

    let told = tree(&agent, server.pid())?;
    expect::exactly("requests in the log", logged()?, asked)?;
    expect::exactly("requests", json::count(&told, "requests_total")?, asked)?;
    expect::exactly("connections", json::count(&told, "connections_total")?, 2 * (1 + SINGLE))?;
    expect::exactly("bytes received", json::count(&told, "received_bytes_total")?, asked * GET.len() as u64)?;
    expect::exactly("unanswered", json::count(&told, "unanswered_total")?, 0)?;
    expect::exactly("in flight", json::count(&told, "in_flight")?, 0)?;
    expect::exactly("lost", json::count(&agent.coverage("requests")?, "lost_total")?, 0)?;
    agent.stop()
}

#[test]
fn gunicorns_workers_serve_as_many_as_their_clients_asked() -> Result<()> {
    const END: &str = "0\r\n\r\n";
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let server = Server::gunicorn(2)?;
    let socket = server.directory().join("socket");
    listening("gunicorn", || ask(&mut unix(&socket)?, GET, END))?;
    let before = tree(&agent, server.pid())?;
    let asked = ask_often(|| unix(&socket), END)?;
    let after = tree(&agent, server.pid())?;
    expect::exactly("requests", json::grown(&before, &after, "requests_total")?, asked)?;
    agent.stop()
}

#[test]
fn redis_serves_as_many_as_it_counted_itself() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, port) = (Agent::start(&[])?, free_port()?);
    let server = Server::redis(port)?;
    let socket = server.directory().join("socket");
    listening("Redis", || unix(&socket))?;
    let processed = || -> Result<u64> {
        let answer = ask(&mut unix(&socket)?, "INFO stats\r\n", "\r\n\r\n")?;
        let line = answer.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        Ok(line.context("no count of commands")?.trim().parse()?)
    };
    let watched = Watched::new(&agent, server.pid())?;
    let processed_before = processed()?;
    for address in [["-s".to_owned(), socket.display().to_string()], ["-p".to_owned(), port.to_string()]] {
        let benchmark = ["-n", "10000", "-c", "20", "-t", "get", "-q"];
        let mut command = Command::new("/usr/bin/redis-benchmark");
        let status = command.args(address).args(benchmark).stdout(Stdio::null()).status();
        ensure!(status.context("apt-get install redis-tools")?.success(), "redis-benchmark failed");
    }
    let commands = processed()? - processed_before;
    ensure!(commands > 20_000, "redis-benchmark made only {commands} requests");
    // Of our own two questions the first was counted between, and the second one not yet. The benchmark asks for two settings at
    // once when it begins, twice in all: that is one turn each time.
    expect::exactly("requests", watched.grown("requests_total")?, commands + 1 - 2)?;
    expect::between("most in flight", 2, watched.grown("in_flight_peak")?, 20)?;
    agent.stop()
}

/// One process receives, and another one answers, as where a server starts a program for each connection.
fn answered_by_another(mut client: TcpStream, server: TcpStream) -> Result<u32> {
    client.write_all(&[1])?;
    (&server).read_exact(&mut [0])?;
    let child = Command::new("sh").args(["-c", "echo $$"]).stdout(OwnedFd::from(server)).spawn()?;
    let pid = child.id();
    let mut told = String::new();
    client.read_to_string(&mut told)?;
    expect::exactly("the answer", told.trim(), pid.to_string().as_str())?;
    expect::exactly("success", child.wait_with_output()?.status.success(), true)?;
    Ok(pid)
}

#[test]
fn a_request_counts_for_the_process_that_answers_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "exited.keep=30m"])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let watched = Watched::new(&agent, id())?;
    let pid = answered_by_another(tcp(port)?, listener.accept()?.0)?;
    expect::exactly("who received it", watched.told()?, (0, 1, 1, 0))?;
    let child = agent.process(pid)?;
    expect::exactly("who answered it", json::count(&child, "requests.requests_total")?, 1)?;
    expect::exactly("still in flight", json::count(&child, "requests.in_flight")?, 0)?;
    agent.stop()
}

/// Accounts of the kernel's, of which one is for what cannot be attributed.
const ACCOUNTS: usize = 16;

#[test]
fn processes_that_find_no_room_count_for_the_host_and_accounts_are_used_again() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", &format!("requests.owners={ACCOUNTS}"), "--set", "exited.keep=30m"])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let host = || json::count(&agent.get("/v1/snapshot")?, "host.requests.requests_total");
    agent.settle()?;
    let before = host()?;
    let lost = || json::count(&agent.coverage("requests")?, "lost.map_full");
    for round in 1..=3 {
        for _ in 0..ACCOUNTS / 2 {
            let pid = answered_by_another(tcp(port)?, listener.accept()?.0)?;
            agent.settle()?;
            expect::exactly("its requests", json::count(&agent.process(pid)?, "requests.requests_total")?, 1)?;
        }
        // Those that are gone are forgotten within a second.
        std::thread::sleep(Duration::from_millis(1500));
        agent.settle()?;
        expect::between("the host's", round * ACCOUNTS as u64 / 2, host()? - before, u64::MAX)?;
        expect::exactly("lost", lost()?, 0)?;
    }
    let (before, mut crowd) = (host()?, Vec::new());
    for _ in 0..2 * ACCOUNTS {
        let (mut client, server) = (tcp(port)?, listener.accept()?.0);
        // They wait for their client to close.
        let mut command = Command::new("sh");
        command.args(["-c", "read line; echo $line; read line"]).stdin(OwnedFd::from(server.try_clone()?));
        let child = command.stdout(OwnedFd::from(server)).spawn()?;
        ask(&mut client, "again\n", "again\n")?;
        crowd.push((child, client));
    }
    agent.settle()?;
    expect::between("the host's", 2 * ACCOUNTS as u64, host()? - before, u64::MAX)?;
    ensure!(lost()? > 0, "{ACCOUNTS} accounts had room for {}", 2 * ACCOUNTS);
    wait_until("its words", PATIENCE, || {
        Ok(agent.words().contains("requests: no room for another owner").then_some(()))
    })
    .with_context(|| format!("its log says: {}", agent.words()))?;
    for (mut child, client) in crowd {
        drop(client);
        child.wait()?;
    }
    agent.stop()
}
