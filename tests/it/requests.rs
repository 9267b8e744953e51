//! Source `requests`, against a server of our own that knows what is in flight; real ones are in `servers`.

// Real servers, and a shell.
#[cfg(not(feature = "vm"))]
mod servers;

use crate::socket::open_directory;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    mem::size_of,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::id,
};
use tests::{Agent, Cgroup, Machine, Workload, agent, clock::PATIENCE, expect, http, json, proc::kernel_release};

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

fn tcp(port: u16) -> Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.patient()
}

fn unix(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path)?.patient()
}

/// What the tree that begins with a process tells of requests.
fn tree(agent: &Agent, root: u32) -> Result<Value> {
    agent.settle()?;
    let trees = agent.get("/v1/trees?limit=100000")?;
    let tree = json::list(&trees, "trees")?.iter().find(|tree| tree["pid"] == root);
    Ok(json::at(tree.context("no such tree")?, "requests")?.clone())
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

/// Whether this kernel can count requests. One that is known not to must say that it is too old for it.
fn are_counted(agent: &Agent) -> Result<bool> {
    #[cfg(feature = "vm")]
    if crate::vm::Expected::here()?.rungs("requests")?.is_empty() {
        let coverage = agent.coverage("requests")?;
        expect::exactly("requests", json::text(&coverage, "state")?, "unavailable")?;
        expect::exactly("too old for them", &coverage["too_old"], &json!(true))?;
        expect::exactly("of a process", &agent.process(id())?["requests"]["requests_total"], &Value::Null)?;
        return Ok(false);
    }
    expect::exactly("requests", json::text(&agent.coverage("requests")?, "state")?, "live")?;
    Ok(true)
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

/// Tests an agent, and another one where that fails and the kernel skipped runs of the programs meanwhile: see [`Agent::measure`].
fn undisturbed(test: impl Fn(&Agent) -> Result<()>) -> Result<()> {
    let _machine = Machine::claim()?;
    let mut tries = 5;
    loop {
        let agent = Agent::start(&[])?;
        if !are_counted(&agent)? {
            return agent.stop();
        }
        let Err(error) = test(&agent) else { return agent.stop() };
        let skipped = agent.coverage("requests").and_then(|told| json::count(&told, "lost.skipped_runs"));
        let is_disturbed = kernel_release()?.0 >= 7 && skipped.is_ok_and(|skipped| skipped > 0);
        tries -= 1;
        if !is_disturbed || tries == 0 {
            return Err(error);
        }
        eprintln!("made again, as the kernel skipped runs of the programs: {error:#}");
        agent.stop()?;
    }
}

#[test]
fn turns_over_tcp_are_told_by_where_they_are() -> Result<()> {
    undisturbed(over_tcp)
}

fn over_tcp(agent: &Agent) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let connect = || Ok((tcp(port)?, listener.accept()?.0.patient()?));
    turns_of(agent, connect)?;

    // What is reset has no answer, and what is only looked at was not received.
    let watched = Watched::new(agent, id())?;
    let (mut client, server) = connect()?;
    client.write_all(&[1])?;
    let mut buffer = [0; 10];
    expect::exactly("bytes", server.peek(&mut buffer)?, 1)?;
    expect::exactly("looked at", watched.told()?, (0, 0, 0, 0))?;
    expect::exactly("bytes", (&server).read(&mut buffer)?, 1)?;
    expect::exactly("received", watched.told()?, (0, 0, 1, 1))?;
    drop(server);
    expect::exactly("closed", watched.told()?, (0, 1, 1, 0))
}

#[test]
fn turns_over_unix_sockets_are_told_by_where_they_are() -> Result<()> {
    undisturbed(over_unix_sockets)
}

fn over_unix_sockets(agent: &Agent) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    turns_of(agent, || Ok((unix(&path)?, listener.accept()?.0.patient()?)))?;

    // A pair that nobody accepted, and a client that has a name itself.
    let watched = Watched::new(agent, id())?;
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
    expect::exactly("a client with a name", watched.told()?, (5, 0, 1, 0))
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
