//! redis-benchmark against a private redis-server: many small requests over loopback, all in memory.
//!
//! The server runs on, and its own count of commands says how fast they go. Started anew for each run, the halves of a pair would
//! differ by where its memory lies as well. The client is started anew for each run of [`prepare`], as the agent counts only
//! connections that were accepted while it was there.

use super::{
    background::{self, Background},
    workload::{Workload, require_program},
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The piece of work that is timed.
const REQUESTS: f64 = 100_000.0;
/// How long its pace is taken.
const WINDOW: Duration = Duration::from_secs(2);
/// More than are done before the client is ended.
const ENDLESS: &str = "2000000000";
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn prepare(directory: &Path) -> Result<Workload> {
    let mut server = Server::start(directory)?;
    Ok(Workload::new(move || {
        let _client = server.client()?;
        Ok(Duration::from_nanos((REQUESTS * server.commands.nanoseconds_each(WINDOW)?) as u64))
    }))
}

/// A server and its client, which run on until this is dropped.
pub(crate) struct Redis {
    _client: Background,
    server: Server,
}

impl Redis {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let mut server = Server::start(directory)?;
        Ok(Self { _client: server.client()?, server })
    }

    /// Nanoseconds from one request's answer to the next, over a while.
    pub(crate) fn nanoseconds_each(&mut self, window: Duration) -> Result<f64> {
        self.server.commands.nanoseconds_each(window)
    }
}

/// A server without a client.
struct Server {
    client: PathBuf,
    port: u16,
    commands: Commands,
    _server: Background,
}

impl Server {
    fn start(directory: &Path) -> Result<Self> {
        let server = require_program("redis-server", "redis-server")?;
        let client = require_program("redis-benchmark", "redis-tools")?;
        let port = background::free_port()?;
        let mut start = Command::new(server);
        start.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        start.args(["--daemonize", "no", "--dir"]).arg(directory);
        let server = Background::start(&mut start, libc::SIGTERM, || Commands::of(port).is_ok())?;
        Ok(Self { client, port, commands: Commands::of(port)?, _server: server })
    }

    /// Starts a client, and waits until it is under way.
    fn client(&mut self) -> Result<Background> {
        let mut benchmark = Command::new(&self.client);
        benchmark.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", "-n", ENDLESS, "-t", "get"]);
        let before = self.commands.done()?;
        let is_under_way = || self.commands.done().is_ok_and(|done| done > before + REQUESTS);
        Background::start(&mut benchmark, libc::SIGTERM, is_under_way)
    }
}

/// The server's count of the commands it has done.
struct Commands {
    connection: BufReader<TcpStream>,
}

impl Commands {
    /// Nanoseconds from one request's answer to the next, over a while.
    fn nanoseconds_each(&mut self, window: Duration) -> Result<f64> {
        let (before, begun) = (self.done()?, Instant::now());
        std::thread::sleep(window);
        let done = self.done()? - before;
        ensure!(done > 0.0, "redis-benchmark made no request for {window:?}");
        Ok(begun.elapsed().as_nanos() as f64 / done)
    }

    fn of(port: u16) -> Result<Self> {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to redis-server")?;
        connection.set_read_timeout(Some(PATIENCE)).context("set how long redis-server is waited for")?;
        Ok(Self { connection: BufReader::new(connection) })
    }

    /// Asked as a person would by telnet: the answer's length, the answer, an empty line.
    fn done(&mut self) -> Result<f64> {
        self.connection.get_mut().write_all(b"INFO stats\r\n").context("cannot ask redis-server")?;
        let mut head = String::new();
        self.connection.read_line(&mut head).context("redis-server does not answer")?;
        let length = head.trim_end().strip_prefix('$').and_then(|length| length.parse::<u64>().ok());
        let length = length.with_context(|| format!("redis-server answers {head:?}"))?;
        let mut answer = String::new();
        let end = "\r\n".len() as u64;
        self.connection.by_ref().take(length + end).read_to_string(&mut answer).context("redis-server's answer")?;
        commands(&answer).context("redis-server does not tell how many commands it has done")
    }
}

/// Of an answer to INFO.
fn commands(answer: &str) -> Option<f64> {
    answer.lines().find_map(|line| line.strip_prefix("total_commands_processed:"))?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn commands_are_found_among_the_statistics() {
        let answer =
            "# Stats\r\ntotal_connections_received:51\r\ntotal_commands_processed:172204\r\nexpired_keys:0\r\n";
        assert_eq!(commands(answer), Some(172_204.0));
        assert_eq!(commands("# Stats\r\n"), None);
    }
}
