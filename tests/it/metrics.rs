//! Metrics, judged by Prometheus: its linter, and a server of its own that scrapes the agent. Both are Debian's package
//! `prometheus`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, http, json,
};

const MIB: u64 = 1 << 20;
const LOCAL: (&str, &str) = ("Host", "localhost");

/// An agent that is scraped at an address of its own.
fn start(flags: &[&str]) -> Result<(Agent, SocketAddr)> {
    let address = free_address()?;
    let listen = format!("metrics.listen={address}");
    Ok((Agent::start(&[flags, &["--set", &listen]].concat())?, address))
}

/// Nobody else takes it so soon: the kernel goes through all free ports first.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A Prometheus server that scrapes one target every second.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Result<Self> {
        let (address, directory) = (free_address()?, tempfile::tempdir()?);
        let path = |name: &str| directory.path().join(name);
        let job = format!("{{job_name: monitor, static_configs: [{{targets: ['{target}']}}]}}");
        fs::write(path("prometheus.yml"), format!("global: {{scrape_interval: 1s}}\nscrape_configs: [{job}]\n"))?;
        let child = Command::new("prometheus")
            .arg("--config.file")
            .arg(path("prometheus.yml"))
            .arg("--storage.tsdb.path")
            .arg(path("data"))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log"))?)
            .spawn()
            .context("cannot start prometheus: install Debian's package prometheus")?;
        Ok(Self { child, address, directory })
    }

    fn get(&self, target: &str) -> Result<Value> {
        let answer = http::get_tcp(self.address, target, &[LOCAL])?;
        ensure!(answer.status == 200, "Prometheus answered {}: {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Values of a query's result, with their labels.
    fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(query)))?;
        let values = json::list(&answer, "data.result")?.iter().map(|result| {
            let value = result["value"][1].as_str().and_then(|value| value.parse().ok());
            Ok((result["metric"].clone(), value.with_context(|| format!("no value in {result}"))?))
        });
        values.collect()
    }

    /// The one value of a query, which it may take some scrapes to have.
    fn value(&self, query: &str) -> Result<f64> {
        let value = wait_until(query, PATIENCE, || {
            let ready = TcpStream::connect(self.address).is_ok();
            let found = if ready { self.query(query).unwrap_or_default() } else { Vec::new() };
            ensure!(found.len() < 2, "{query} gives {found:?}");
            Ok(found.first().map(|(_, value)| *value))
        });
        value.with_context(|| fs::read_to_string(self.directory.path().join("log")).unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(|_| ())) {
            eprintln!("cannot end Prometheus: {error}");
        }
    }
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Both are about the same. They are read anew until they are: one may have moved before the other was read.
fn near(what: &str, told: impl Fn() -> Result<f64>, true_value: impl Fn() -> Result<f64>, apart: f64) -> Result<()> {
    let mut last = (0.0, 0.0);
    let compared = wait_until(what, PATIENCE, || {
        last = (told()?, true_value()?);
        ensure!(last.1 > 0.0, "{what}: nothing to compare with");
        Ok(((last.0 / last.1 - 1.0).abs() <= apart).then_some(()))
    });
    println!("{what}: {} by Prometheus, {} otherwise", last.0, last.1);
    compared.with_context(|| format!("{} by Prometheus, {} otherwise", last.0, last.1))
}

#[test]
fn promtool_has_nothing_to_say_against_names_and_types() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, address) = start(&[])?;
    agent.settle()?;
    let answer = http::get_tcp(address, "/metrics", &[LOCAL, ("Accept", "text/plain")])?;
    expect::exactly("status", answer.status, 200)?;
    let kind = answer.headers.get("content-type").map(String::as_str);
    expect::exactly("content type", kind, Some("text/plain; version=0.0.4; charset=utf-8"))?;
    let mut linter = Command::new("promtool");
    linter.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut linter = linter.spawn().context("cannot start promtool: install Debian's package prometheus")?;
    linter.stdin.take().context("no pipe")?.write_all(answer.body.as_bytes())?;
    let output = linter.wait_with_output()?;
    let words = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && words.is_empty(), "promtool: {}", String::from_utf8_lossy(&words));
    ensure!(answer.body.lines().count() > 100, "hardly anything was judged:\n{}", answer.body);
    agent.stop()
}

#[test]
fn a_real_prometheus_has_what_the_agent_tells() -> Result<()> {
    let _machine = Machine::claim()?;
    let cgroup = Cgroup::new("a \"quoted\\name\" of ü")?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    let (agent, address) = start(&["--set", "metrics.top=50"])?;
    workload.run(&format!("hold {}", 96 * MIB))?;
    let prometheus = Prometheus::start(address)?;
    prometheus.value("up{job=\"monitor\"} == 1")?;

    let host = agent.get("/v1/host")?;
    let total = json::number(&host, "memory.total_bytes")?;
    expect::exactly("memory", prometheus.value("monitor_host_memory_total_bytes")?, total)?;
    let used = || json::number(&agent.get("/v1/host")?, "memory.used_bytes");
    near("used memory", || prometheus.value("monitor_host_memory_used_bytes"), used, 0.3)?;

    let of_cgroup = format!("{{cgroup={}}}", serde_json::to_string(&cgroup.path())?);
    // The workload touches all of what it holds, and has little else.
    let held = || prometheus.value(&format!("monitor_cgroup_memory_bytes{of_cgroup} > {}", 96 * MIB));
    let told = || {
        let cgroup = agent.cgroup(&cgroup.path())?.context("the cgroup is not listed")?;
        json::number(&cgroup, "memory.current_bytes")
    };
    near("memory of the cgroup", held, told, 0.05)?;
    expect::exactly("its processes", prometheus.value(&format!("monitor_cgroup_processes{of_cgroup}"))?, 1.0)?;
    let of_tree = format!("{{tree=\"{}\"}}", json::count(&agent.process(workload.pid())?, "tree")?);
    ensure!(prometheus.value(&format!("monitor_tree_resident_bytes{of_tree}"))? > (96 * MIB) as f64, "no tree");
    let command = wait_until("names of the tree", PATIENCE, || {
        Ok(Some(prometheus.query(&format!("monitor_tree_info{of_tree}"))?).filter(|found| !found.is_empty()))
    })?;
    ensure!(command.len() == 1 && command[0].0["command"].is_string(), "no names of the tree: {command:?}");

    let before = prometheus.value("monitor_host_page_faults_total{mode=\"user\"}")?;
    let made =
        json::count(&agent.measure(&mut workload, "faults user-write 200000 1")?.after, "page_faults.user_total")?;
    ensure!(made >= 200_000, "the workload faulted {made} times");
    let grown = format!("monitor_host_page_faults_total{{mode=\"user\"}} >= {}", before + 200_000.0);
    prometheus.value(&grown)?;
    agent.stop()
}

#[test]
fn the_few_and_the_others_sum_to_what_the_kernel_charges() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, address) = start(&["--set", "metrics.top=2"])?;
    let prometheus = Prometheus::start(address)?;
    let sum = || prometheus.value("sum(monitor_cgroup_memory_bytes)");
    sum()?;
    let series = prometheus.query("monitor_cgroup_memory_bytes")?;
    ensure!(series.len() <= 3, "more than two and the others: {series:?}");
    let cgroup = Cgroup::new("sum")?;
    near("memory of all cgroups", sum, || Ok(charged(&cgroup)? as f64), 0.2)?;
    let all = prometheus.value("count({job=\"monitor\"})")?;
    ensure!(all < 400.0, "{all} series");
    println!("{all} series");
    agent.stop()
}

/// Memory that the kernel charges to the root of the hierarchy; on cgroup v2 it keeps no such book, but one of each
/// cgroup below.
fn charged(any: &Cgroup) -> Result<u64> {
    let root = any.directory().parent().context("no root")?;
    let read = |path: &Path| Ok(fs::read_to_string(path)?.trim().parse::<u64>()?);
    if root.join("memory.usage_in_bytes").exists() {
        return read(&root.join("memory.usage_in_bytes"));
    }
    let files = fs::read_dir(root)?.filter_map(|entry| Some(entry.ok()?.path().join("memory.current")));
    files.filter(|file| file.exists()).map(|file| read(&file)).sum()
}

#[test]
fn at_the_address_there_is_nothing_else_and_only_for_this_machine() -> Result<()> {
    let _machine = Machine::claim()?;
    let (agent, address) = start(&[])?;
    let status =
        |target: &str, host: &str| Ok::<_, anyhow::Error>(http::get_tcp(address, target, &[("Host", host)])?.status);
    let told = [
        status("/metrics", &address.to_string())?,
        status("/metrics", "localhost:1")?,
        status("/metrics?x=1", "localhost")?,
        status("/", "localhost")?,
        status("/v1/processes", "localhost")?,
        status("/metrics", "rebound.example")?,
        status("/metrics", "localhost.rebound.example")?,
    ];
    expect::exactly("statuses", told, [200, 200, 400, 404, 404, 421, 421])?;
    expect::exactly("status without a host", http::get_tcp(address, "/metrics", &[])?.status, 421)?;
    let by_socket = agent.answer("/metrics")?;
    let kind = by_socket.headers.get("content-type").map(String::as_str);
    expect::exactly("type", kind, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"))?;
    ensure!(by_socket.body.ends_with("\n# EOF\n"), "no end: {}", by_socket.body);

    let listen = format!("metrics.listen={address}");
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("second.sock").to_string_lossy().into_owned();
    let second = agent::run(&["run", "--quiet", "--for", "1s", "--socket", &socket, "--set", &listen])?;
    let words = String::from_utf8_lossy(&second.stderr);
    expect::exactly("exit code", second.status.code(), Some(1))?;
    ensure!(words.contains(&format!("cannot listen at {address}")), "{words}");
    agent.stop()?;
    ensure!(TcpStream::connect(address).is_err(), "somebody still listens");
    Ok(())
}

#[test]
fn other_addresses_are_refused() -> Result<()> {
    for address in ["0.0.0.0:9117", "10.0.0.1:9117", "[::]:9117", "localhost:9117", "127.0.0.1", "127.0.0.1:0", "9117"]
    {
        let output = agent::run(&["config", "--set", &format!("metrics.listen={address}")])?;
        let words = String::from_utf8_lossy(&output.stderr);
        expect::exactly("exit code", output.status.code(), Some(2))?;
        ensure!(words.contains("metrics.listen") && words.contains("loopback"), "{words}");
    }
    Ok(())
}

#[test]
fn unless_it_is_told_to_the_agent_listens_nowhere_else() -> Result<()> {
    let _machine = Machine::claim()?;
    let (scraped, _) = start(&[])?;
    expect::exactly("TCP sockets of an agent that is scraped", tcp_sockets(scraped.pid())?, 1)?;
    scraped.stop()?;
    let agent = Agent::start(&[])?;
    expect::exactly("TCP sockets", tcp_sockets(agent.pid())?, 0)?;
    agent.stop()
}

/// A process's descriptors of TCP sockets, by the inodes in /proc/net/tcp.
fn tcp_sockets(pid: u32) -> Result<usize> {
    let tables = [fs::read_to_string("/proc/net/tcp")?, fs::read_to_string("/proc/net/tcp6").unwrap_or_default()];
    let inodes: Vec<u64> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| line.split_whitespace().nth(9)?.parse().ok())
        .collect();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let sockets = descriptors.filter_map(|entry| Some(fs::metadata(entry.ok()?.path()).ok()?.ino()));
    Ok(sockets.filter(|inode| inodes.contains(inode)).count())
}
