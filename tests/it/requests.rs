//! Source `requests`, against what clients asked, what nginx and Redis counted themselves, and a server of our own that knows
//! what is in flight.
//!
//! They need `apt-get install --no-install-recommends nginx redis-server redis-tools gunicorn python3-uvicorn`.

use crate::socket::open_directory;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    mem::size_of,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio, id},
    time::Duration,
};
use tests::{
    Agent, Cgroup, Machine, Server, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, http, json,
    server::NGINX_BODY,
};

const REQUESTS: &str = "/v1/requests";

/// A connection of either kind.
trait Connection: Read + Write {
    fn shut(&self, how: Shutdown) -> std::io::Result<()>;
    fn patient(self) -> Result<Self>
    where
        Self: Sized;
}

impl Connection for TcpStream {
    fn shut(&self, how: Shutdown) -> std::io::Result<()> {
        self.shutdown(how)
    }

    fn patient(self) -> Result<Self> {
        self.set_nodelay(true)?;
        self.set_read_timeout(Some(PATIENCE))?;
        Ok(self)
    }
}

impl Connection for UnixStream {
    fn shut(&self, how: Shutdown) -> std::io::Result<()> {
        self.shutdown(how)
    }

    fn patient(self) -> Result<Self> {
        self.set_read_timeout(Some(PATIENCE))?;
        Ok(self)
    }
}

/// A loopback port that nobody listens at.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn tcp(port: u16) -> Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.patient()
}

fn unix(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path)?.patient()
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

/// What the tree that begins with a process tells of requests.
fn tree(agent: &Agent, root: u32) -> Result<Value> {
    agent.settle()?;
    let trees = agent.get("/v1/trees?limit=100000")?;
    let tree = json::list(&trees, "trees")?.iter().find(|tree| tree["pid"] == root);
    Ok(json::at(tree.context("no such tree")?, "requests")?.clone())
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

/// What is told of a process.
struct Watched<'a> {
    agent: &'a Agent,
    pid: u32,
    before: Value,
}

impl<'a> Watched<'a> {
    fn new(agent: &'a Agent, pid: u32) -> Result<Self> {
        let mut this = Self { agent, pid, before: Value::Null };
        this.before = this.now()?;
        Ok(this)
    }

    fn now(&self) -> Result<Value> {
        self.agent.settle()?;
        Ok(json::at(&self.agent.process(self.pid)?, "requests")?.clone())
    }

    /// Growth of requests, unanswered ones and connections, and what is in flight now.
    fn told(&self) -> Result<(u64, u64, u64, u64)> {
        let now = self.now()?;
        let grown = |name: &str| json::grown(&self.before, &now, name);
        let in_flight = json::count(&now, "in_flight")?;
        Ok((grown("requests_total")?, grown("unanswered_total")?, grown("connections_total")?, in_flight))
    }

    fn grown(&self, name: &str) -> Result<u64> {
        json::grown(&self.before, &self.now()?, name)
    }
}

/// This process is the server and its clients: what it connects with must not count.
fn turns_of<C: Connection>(agent: &Agent, connect: impl Fn() -> Result<(C, C)>) -> Result<()> {
    const LENGTH: usize = 100;
    let watched = Watched::new(agent, id())?;
    let mut pairs = (0..6).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    expect::exactly("nothing was sent yet", watched.told()?, (0, 0, 0, 0))?;
    let mut buffer = [0; LENGTH];
    for (client, server) in &mut pairs {
        client.write_all(&[1; LENGTH])?;
        // In two parts, which are one request.
        server.read_exact(&mut buffer[..40])?;
        server.read_exact(&mut buffer[40..])?;
    }
    expect::exactly("received", watched.told()?, (0, 0, 6, 6))?;
    ensure!(
        watched.grown("in_flight_peak")? <= 6 && json::count(&watched.now()?, "in_flight_peak")? >= 6,
        "no peak of 6"
    );
    for (client, server) in &mut pairs[..4] {
        server.write_all(&[2; 30])?;
        server.write_all(&[2; 20])?;
        client.read_exact(&mut buffer[..50])?;
    }
    expect::exactly("four answered", watched.told()?, (4, 0, 6, 2))?;
    expect::exactly("bytes received", watched.grown("received_bytes_total")?, 6 * LENGTH as u64)?;
    expect::exactly("bytes sent", watched.grown("sent_bytes_total")?, 4 * 50)?;

    // Both clients close, and one of them waits for its answer still.
    for (client, server) in &mut pairs[4..] {
        client.shut(Shutdown::Write)?;
        expect::exactly("bytes", server.read(&mut buffer)?, 0)?;
    }
    expect::exactly("closed", watched.told()?, (4, 2, 6, 0))?;
    let (client, server) = &mut pairs[4];
    server.write_all(&[2; 50])?;
    client.read_exact(&mut buffer[..50])?;
    expect::exactly("answered all the same", watched.told()?, (5, 2, 6, 0))?;

    // The server speaks first, which is no answer; and to be asked again is a request each time.
    let (client, server) = &mut pairs[0];
    for round in 0..10 {
        if round > 0 {
            client.write_all(&[1])?;
            server.read_exact(&mut buffer[..1])?;
        }
        server.write_all(&[2])?;
        client.read_exact(&mut buffer[..1])?;
    }
    expect::exactly("again", watched.told()?, (5 + 9, 2, 6, 0))
}

#[test]
fn turns_over_tcp_are_told_by_where_they_are() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let connect = || Ok((tcp(port)?, listener.accept()?.0.patient()?));
    turns_of(&agent, connect)?;

    // What is reset has no answer, and what is only looked at was not received.
    let watched = Watched::new(&agent, id())?;
    let (mut client, server) = connect()?;
    client.write_all(&[1])?;
    let mut buffer = [0; 10];
    expect::exactly("bytes", server.peek(&mut buffer)?, 1)?;
    expect::exactly("looked at", watched.told()?, (0, 0, 0, 0))?;
    expect::exactly("bytes", (&server).read(&mut buffer)?, 1)?;
    expect::exactly("received", watched.told()?, (0, 0, 1, 1))?;
    drop(server);
    expect::exactly("closed", watched.told()?, (0, 1, 1, 0))?;
    agent.stop()
}

#[test]
fn turns_over_unix_sockets_are_told_by_where_they_are() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, directory) = (Agent::start(&[])?, tempfile::tempdir()?);
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    turns_of(&agent, || Ok((unix(&path)?, listener.accept()?.0.patient()?)))?;

    // A pair that nobody accepted, and a client that has a name itself.
    let watched = Watched::new(&agent, id())?;
    let (mut left, mut right) = UnixStream::pair()?;
    let mut byte = [1];
    for _ in 0..5 {
        left.write_all(&byte)?;
        right.read_exact(&mut byte)?;
        right.write_all(&byte)?;
        left.read_exact(&mut byte)?;
    }
    expect::exactly("a pair", watched.told()?, (0, 0, 0, 0))?;
    let mut client = named_client(&directory.path().join("client"), &path)?;
    let mut server = listener.accept()?.0;
    for _ in 0..5 {
        client.write_all(&byte)?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
    }
    expect::exactly("a client with a name", watched.told()?, (5, 0, 1, 0))?;
    agent.stop()
}

/// A client whose socket has an address of its own.
fn named_client(own: &Path, to: &Path) -> Result<UnixStream> {
    let address = |path: &Path| -> Result<libc::sockaddr_un> {
        let bytes = path.as_os_str().as_encoded_bytes();
        // SAFETY: all zeroes are an address without a path.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        ensure!(bytes.len() < address.sun_path.len(), "{} is too long", path.display());
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(address)
    };
    let (own, to, length) = (address(own)?, address(to)?, size_of::<libc::sockaddr_un>() as u32);
    // SAFETY: a new socket, and addresses of the length that is given.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        ensure!(socket >= 0, "no socket: {}", std::io::Error::last_os_error());
        let socket_owner = OwnedFd::from_raw_fd(socket);
        ensure!(libc::bind(socket, (&raw const own).cast(), length) == 0, "{}", std::io::Error::last_os_error());
        ensure!(libc::connect(socket, (&raw const to).cast(), length) == 0, "{}", std::io::Error::last_os_error());
        Ok(socket_owner.into())
    }
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
    ensure!(agent.words().contains("requests: no room for another owner"), "its log says: {}", agent.words());
    for (mut child, client) in crowd {
        drop(client);
        child.wait()?;
    }
    agent.stop()
}

/// What a program counts itself is exact, also where the kernel counts nothing, is told as it was posted, and stays its cgroup's.
#[test]
fn requests_that_a_program_counts_itself_are_exact_and_keep_their_labels() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = open_directory()?;
    let [socket, record] = ["workloads.sock", "a.rec"].map(|name| directory.path().join(name).display().to_string());
    let agent = Agent::start(&["--workload-socket", &socket, "--record", &record, "--set", "requests.enabled=false"])?;
    let mut workload = Workload::start()?;
    let cgroup = Cgroup::new("counts-itself")?;
    cgroup.add(workload.pid())?;
    workload.run("children 1")?;
    agent.settle()?;
    let mut posted = 0;
    for count in 1..=50 {
        let told = workload.run(&format!("ask {socket} {REQUESTS} {}", json!({"count": count})))?;
        expect::exactly("status", json::count(&told, "status")?, 202)?;
        posted += count;
    }
    let labelled = json!({"count": 7, "pid": workload.pid(), "labels": {"id": "r-1", "user": "ann"}});
    let answer = http::post(agent.socket(), REQUESTS, &labelled.to_string())?;
    expect::exactly("status", answer.status, 202)?;
    posted += 7;
    agent.settle()?;
    let pid = workload.pid();
    let process = agent.process(pid)?;
    expect::exactly("posted", json::count(&process, "requests.posted_total")?, posted)?;
    expect::exactly("turns", json::at(&process, "requests.requests_total")?, &Value::Null)?;
    let of_tree = tree(&agent, json::count(&process, "tree")? as u32)?;
    expect::exactly("posted of the tree", json::count(&of_tree, "posted_total")?, posted)?;
    let events = agent.events(|event| event["event"] == "requests" && event["pid"] == pid)?;
    let told: u64 = events.iter().filter_map(|event| event["count"].as_u64()).sum();
    expect::exactly("told as events", told, posted)?;
    let labels: Vec<_> = events.iter().map(|event| &event["labels"]).filter(|labels| !labels["id"].is_null()).collect();
    expect::exactly("with labels", labels, vec![&json!({"id": "r-1", "user": "ann"})])?;
    // Of another one's tree it may not.
    let other = json!({"count": 1, "pid": id()});
    let refused = workload.run(&format!("ask {socket} {REQUESTS} {other}"))?;
    expect::exactly("status", json::count(&refused, "status")?, 403)?;

    workload.run("release")?;
    workload.send("exit 0")?;
    workload.wait()?;
    agent.settle()?;
    let of_cgroup = agent.cgroup(&cgroup.path())?.context("the cgroup is not told")?;
    expect::exactly("posted in the cgroup", json::count(&of_cgroup, "requests.posted_total")?, posted)?;
    // What was taken is counted, however soon the agent ends.
    let last = json!({"count": 9, "pid": id()});
    expect::exactly("status", http::post(agent.socket(), REQUESTS, &last.to_string())?.status, 202)?;
    agent.stop()?;
    for (pid, posted) in [(pid, posted), (id(), 9)] {
        let output = agent::run(&["query", "--from", &record, &format!("/v1/processes?pid={pid}")])?;
        let recorded: Value = serde_json::from_slice(&output.stdout)?;
        let recorded = json::count(&recorded["processes"][0], "requests.posted_total")?;
        expect::exactly("posted, as recorded", recorded, posted)?;
    }
    Ok(())
}
