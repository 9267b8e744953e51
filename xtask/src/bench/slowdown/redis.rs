//! redis-benchmark against a private redis-server: many small requests over loopback, all in memory.

use super::{
    server::{self, Server},
    workload::{Workload, require_program},
};
use anyhow::Result;
use std::{
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
};

/// Some three seconds of work.
const REQUESTS: &str = "200000";

pub(crate) fn prepare(directory: &Path) -> Result<Workload> {
    let server = require_program("redis-server", "redis-server")?;
    let client = require_program("redis-benchmark", "redis-tools")?;
    let port = server::free_port()?;
    let mut start = Command::new(server);
    start.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    start.args(["--daemonize", "no", "--dir"]).arg(directory);
    let answers = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    let server = Server::start(&mut start, libc::SIGTERM, answers)?;

    let mut benchmark = Command::new(client);
    benchmark.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "-n", REQUESTS, "-t", "set,get"]);
    Ok(Workload::with_server(benchmark, server))
}
