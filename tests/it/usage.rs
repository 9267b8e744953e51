//! What is polled: memory of cgroups, processes and trees, and the machine, against the kernel's own files.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::UdpSocket,
    path::Path,
    time::{Duration, Instant},
};
use tests::{
    Agent, Cgroup, Machine, Opened, Workload,
    clock::{PATIENCE, boot_ns, slowness, wait_until},
    expect, json, proc,
};

const MIB: u64 = 1 << 20;
/// Before rstat, memory.stat lacks what a processor has counted since its last 32 pages (`MEMCG_CHARGE_BATCH`): here of two.
const BATCHES: u64 = 2 * 32 * 4096;

/// A cgroup of the newest snapshot in which its memory is known.
fn cgroup(agent: &Agent, path: &str) -> Result<Value> {
    soon(path, || {
        let all = agent.get("/v1/cgroups?limit=100000")?;
        let found = json::list(&all, "cgroups")?.iter().find(|cgroup| cgroup["path"] == *path);
        Ok(found.filter(|cgroup| !cgroup["memory"].is_null()).cloned())
    })
}

/// Waits until something of the newest snapshot is so: what rests is looked at again a tick later.
fn soon<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_until(what, PATIENCE, look)
}

/// The agent's names, and where the kernel tells the same: a file, and a name in it.
type Names = [(&'static str, &'static str, Option<&'static str>)];

const V1: &Names = &[
    ("memory.current_bytes", "memory.usage_in_bytes", None),
    ("memory.peak_bytes", "memory.max_usage_in_bytes", None),
    ("memory.anon_bytes", "memory.stat", Some("total_rss")),
    ("memory.file_bytes", "memory.stat", Some("total_cache")),
    ("memory.kernel_bytes", "memory.kmem.usage_in_bytes", None),
    ("memory.events.max", "memory.failcnt", None),
    ("memory.events.oom_kill", "memory.oom_control", Some("oom_kill")),
];
const V2: &Names = &[
    ("memory.current_bytes", "memory.current", None),
    ("memory.anon_bytes", "memory.stat", Some("anon")),
    ("memory.file_bytes", "memory.stat", Some("file")),
    ("memory.slab_bytes", "memory.stat", Some("slab")),
    ("memory.events.max", "memory.events", Some("max")),
    ("memory.events.oom", "memory.events", Some("oom")),
    ("memory.events.oom_kill", "memory.events", Some("oom_kill")),
];

#[test]
fn memory_of_a_cgroup_is_what_its_files_say() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let outer = Cgroup::new("usage")?;
    let inner = outer.child("inner")?;
    outer.limit_memory(256 * MIB)?;
    let mut workload = Workload::start()?;
    inner.add(workload.pid())?;
    workload.run(&format!("hold {}", 32 * MIB))?;
    let version_2 = outer.hierarchy().version_2;
    for (of, name) in [(&outer, "outer"), (&inner, "inner")] {
        soon(&format!("the {name} cgroup's numbers"), || {
            let told = cgroup(&agent, &of.path())?;
            let agree = |(ours, file, name): &(&str, &str, Option<&str>)| {
                Ok(json::at(&told, ours)?.as_u64() == Some(of.read(file, *name)?))
            };
            let all = if version_2 { V2 } else { V1 }.iter().map(agree).collect::<Result<Vec<bool>>>()?;
            Ok(all.iter().all(|agree| *agree).then_some(()))
        })
        .with_context(|| format!("{}", cgroup(&agent, &of.path()).unwrap_or_default()["memory"]))?;
        let told = cgroup(&agent, &of.path())?;
        expect::exactly("limit", json::count(&told, "memory.limit_bytes")?, 256 * MIB)?;
        expect::exactly("who sets it", json::text(&told, "memory.limit_source")?, outer.path().as_str())?;
        let (anon, current) = (json::count(&told, "memory.anon_bytes")?, json::count(&told, "memory.current_bytes")?);
        ensure!(anon + BATCHES >= 32 * MIB && anon <= current, "{anon} anonymous bytes of {current}");
        let inactive = of.read("memory.stat", Some(if version_2 { "inactive_file" } else { "total_inactive_file" }))?;
        expect::exactly("working set", json::count(&told, "memory.working_set_bytes")?, current - inactive)?;
        ensure!(json::count(&told, "memory.peak_bytes")? >= current, "a peak below what is in use: {told}");
    }
    // A limit that changes above holds below at once, though nothing moves there.
    outer.limit_memory(200 * MIB)?;
    workload.run("faults user-write 10 1")?;
    soon("the new limit", || {
        let told = cgroup(&agent, &inner.path())?;
        Ok((json::count(&told, "memory.limit_bytes")? == 200 * MIB).then_some(()))
    })?;
    workload.send("exit 0")?;
    workload.wait()?;
    drop(inner);
    agent.stop()
}

#[test]
fn time_and_pressure_of_a_cgroup_are_what_its_files_say() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("time")?;
    let mut workload = Workload::start()?;
    group.add(workload.pid())?;
    workload.run("faults user-write 50000 1")?;
    if group.hierarchy().version_2 {
        // It rests now, so that these stand still.
        soon("the files' numbers", || {
            let told = cgroup(&agent, &group.path())?;
            let used = group.read("cpu.stat", Some("usage_usec"))? as f64 / 1e6;
            let pressure = fs::read_to_string(group.directory().join("cpu.pressure")).ok();
            let waited = pressure.as_deref().map(stalled).transpose()?;
            let agree = told["cpu"]["seconds_total"].as_f64() == Some(used)
                && told["cpu"]["pressure"]["some"]["seconds_total"].as_f64() == waited;
            Ok((agree && used > 0.0).then_some(()))
        })
        .with_context(|| format!("{}", cgroup(&agent, &group.path()).unwrap_or_default()["cpu"]))?;
    } else {
        // Only the memory controller has this cgroup.
        let told = cgroup(&agent, &group.path())?;
        expect::exactly("time", &told["cpu"]["seconds_total"], &Value::Null)?;
        // That does not make somebody who works there one who rests: no fault, no call, no I/O. It has done the same before, and so
        // touches no page for the first time, and rested until it is not looked at any more while nothing moves.
        let mut spinner = Workload::start()?;
        group.add(spinner.pid())?;
        spinner.run("spin 10")?;
        soon("it to rest", || {
            let told = agent.process(spinner.pid()).ok();
            Ok(told.and_then(|told| told["age_seconds"].as_f64()).filter(|age| *age > 3.0))
        })?;
        spinner.send("spin 600000")?;
        // A look at it is due after at most 8 ticks; its refresh in a quarter of a minute, on average.
        let mut ticks = BTreeSet::new();
        soon("who works to be seen", || {
            let answer = agent.get(&format!("/v1/processes?pid={}", spinner.pid()))?;
            ticks.insert(json::count(&answer, "time_ns")?);
            ensure!(ticks.len() <= 16, "who works is not seen within 16 ticks");
            Ok(answer["processes"][0]["cpu"]["per_second"].as_f64().filter(|cpus| *cpus > 0.2))
        })?;
    }
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

#[test]
fn what_is_idle_keeps_its_numbers_and_tells_their_age() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("idle")?;
    let mut workload = Workload::start()?;
    group.add(workload.pid())?;
    workload.run(&format!("hold {}", 8 * MIB))?;
    let age = |told: &Value| json::at(told, "age_seconds").and_then(|age| age.as_f64().context("no age"));
    let aged = soon("an idle cgroup's numbers to grow old", || {
        let told = cgroup(&agent, &group.path())?;
        Ok((age(&told)? > 2.0).then_some(told))
    })?;
    // Where only the memory controller has the cgroup, nobody tells of its CPU time.
    let told = aged["cpu"]["per_second"].as_f64();
    expect::exactly("CPU of an idle cgroup", told, group.hierarchy().version_2.then_some(0.0))?;
    ensure!(
        json::count(&aged, "memory.anon_bytes")? + BATCHES >= 8 * MIB,
        "an idle cgroup's memory is forgotten: {aged}"
    );
    // Unless it was just being refreshed.
    soon("an idle process's numbers to grow old", || Ok((age(&agent.process(workload.pid())?)? > 1.0).then_some(())))?;
    // One fault is enough to be looked at again.
    workload.run("faults user-write 1 1")?;
    soon("fresh numbers", || Ok((age(&cgroup(&agent, &group.path())?)? < 0.5).then_some(())))?;
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

#[test]
fn each_tick_has_its_own_peak_where_the_kernel_can_tell() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("peak")?;
    let resets = group.hierarchy().version_2 && {
        let file = fs::OpenOptions::new().write(true).open(group.directory().join("memory.peak"));
        file.is_ok_and(|mut file| std::io::Write::write_all(&mut file, b"reset\n").is_ok())
    };
    let mut workload = Workload::start()?;
    group.add(workload.pid())?;
    let mut highest = 0;
    let mut is_kernels = false;
    for _ in 0..2 {
        agent.settle()?;
        // Up and down within one tick: no sample of what is in use sees it.
        workload.run(&format!("allocate {}", 24 * MIB))?;
        let peak = soon("the tick's peak", || {
            let told = cgroup(&agent, &group.path())?;
            highest = highest.max(json::count(&told, "memory.peak_bytes").unwrap_or(0));
            is_kernels |= told["memory"]["peak_source"].as_str().is_some_and(|source| source.starts_with("memory."));
            let peak = told["memory"]["tick_peak_bytes"].as_u64();
            // The second time the kernel's own peak does not rise: only a peak of the tick's own tells.
            if resets { Ok(peak.filter(|peak| *peak >= 24 * MIB)) } else { Ok(Some(0)) }
        })?;
        if resets {
            ensure!(peak < 60 * MIB, "the tick's peak is {peak}");
            soon("the next tick's peak", || {
                let told = cgroup(&agent, &group.path())?;
                Ok(told["memory"]["tick_peak_bytes"].as_u64().filter(|peak| *peak < 20 * MIB))
            })?;
        }
    }
    // What was only seen now and then may have been seen halfway.
    ensure!(!is_kernels || highest >= 24 * MIB, "the peak is {highest}");
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

#[test]
fn memory_and_time_of_a_process_are_what_proc_says() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run(&format!("hold {}", 16 * MIB))?;
    workload.run("faults user-write 50000 1")?;
    let pid = workload.pid();
    soon("the process's numbers", || {
        let Ok(told) = agent.process(pid) else { return Ok(None) };
        let number = |name: &str| json::at(&told, name).map(|value| value.as_u64());
        let agree = [
            number("memory.anon_bytes")? == Some(proc::bytes(pid, "status", "RssAnon")?),
            number("memory.file_bytes")? == Some(proc::bytes(pid, "status", "RssFile")?),
            number("memory.shmem_bytes")? == Some(proc::bytes(pid, "status", "RssShmem")?),
            number("minor_faults_total")?.zip(number("major_faults_total")?).map(|(minor, major)| minor + major)
                == Some(proc::faults(pid)?),
            number("open_files")? == Some(proc::open_files(pid)?),
            told["cpu"]["seconds_total"].as_f64() == Some(proc::cpu_seconds(pid)?),
        ];
        Ok(agree.iter().all(|agree| *agree).then_some(()))
    })
    .with_context(|| format!("{}", agent.process(pid).unwrap_or_default()))?;
    // What is its own comes when the budget has room for it.
    soon("what is its own", || {
        let unique: u64 = ["Private_Clean", "Private_Dirty"]
            .iter()
            .map(|name| proc::bytes(pid, "smaps_rollup", name))
            .sum::<Result<u64>>()?;
        let told = json::count(&agent.process(pid)?, "memory.unique_bytes").unwrap_or(0);
        Ok((told.abs_diff(unique) < MIB).then_some(()))
    })?;
    let told = agent.process(pid)?;
    expect::exactly("threads", json::count(&told, "threads")?, 1)?;
    agent.stop()
}

#[test]
fn old_numbers_of_a_busy_process_say_how_old_they_are() -> Result<()> {
    const LOOKS: usize = 60;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run(&format!("hold {}", 4 * MIB))?;
    agent.settle()?;
    let mut stale = 0;
    for _ in 0..LOOKS {
        // Too little to be read in full for it.
        workload.run("hold 8192")?;
        let held = boot_ns();
        let anon = proc::bytes(workload.pid(), "status", "RssAnon")?;
        std::thread::sleep(Duration::from_millis(50));
        let answer = agent.get(&format!("/v1/processes?pid={}", workload.pid()))?;
        let told = &json::list(&answer, "processes")?[0];
        let age = json::number(told, "memory.age_seconds")?;
        if json::count(told, "memory.anon_bytes")? < anon {
            stale += 1;
            let read = json::count(&answer, "time_ns")? as f64 / 1e9 - age;
            ensure!(
                read < held as f64 / 1e9 + 0.01,
                "memory of {} s before now is told as {age} s old",
                held as f64 / 1e9 - read
            );
        }
        ensure!(json::number(told, "age_seconds")? >= age, "some numbers are older than the oldest: {told}");
        ensure!(json::number(told, "cpu.age_seconds")? <= age, "CPU time is read less often than memory: {told}");
    }
    ensure!(stale > LOOKS / 10, "memory was read in full all the time: nothing is compared");
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

#[test]
fn a_trees_workers_do_not_multiply_the_memory_they_share() -> Result<()> {
    const WORKERS: u64 = 4;
    let _machine = Machine::claim()?;
    // Splitting walks its pages for a five-hundredth of all time at most, which takes long where the processor is emulated.
    let held = if slowness() > 1 { 16 * MIB } else { 64 * MIB };
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    // A cgroup of its own makes it the root of a tree, once it is known there.
    let group = Cgroup::new("tree")?;
    group.add(workload.pid())?;
    workload.run(&format!("hold {held}"))?;
    workload.run(&format!("children {WORKERS}"))?;
    let tree = wait_until("the tree's shares", 4 * PATIENCE, || {
        let trees = agent.get("/v1/trees?limit=100000")?;
        let tree = json::list(&trees, "trees")?.iter().find(|tree| tree["pid"] == workload.pid()).cloned();
        // A worker that was made after another one was looked at makes that one's share smaller at its next turn.
        let is_split = |tree: &Value| tree["memory"]["split_processes"] == WORKERS + 1;
        let is_settled = |tree: &Value| tree["memory"]["shared_bytes"].as_u64() >= Some(held - 4 * MIB);
        Ok(tree.filter(|tree| is_split(tree) && is_settled(tree)))
    })?;
    expect::exactly("workers", json::count(&tree, "workers")?, WORKERS)?;
    let bytes = |name: &str| json::count(&tree, &format!("memory.{name}_bytes"));
    let (resident, shared, private) = (bytes("resident")?, bytes("shared")?, bytes("private")?);
    ensure!(resident >= (WORKERS + 1) * held, "resident {resident}: not each process's own added up");
    expect::between("shared and private", held, shared + private, held + 16 * MIB)?;
    workload.run("release")?;
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

#[test]
fn a_servers_stats_are_those_of_its_tree_and_cgroup_whoever_of_it_asks() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("stats")?;
    group.limit_memory(128 * MIB)?;
    let mut workload = Workload::start()?;
    group.add(workload.pid())?;
    workload.run(&format!("hold {}", 16 * MIB))?;
    let children = workload.run("children 2")?;
    let worker = json::list(&children, "pids")?[0][0].as_u64().context("no pid")?;
    let version_2 = group.hierarchy().version_2;
    let (usage, peak) = if version_2 {
        ("memory.current", "memory.peak")
    } else {
        ("memory.usage_in_bytes", "memory.max_usage_in_bytes")
    };
    let mb = |bytes: u64| bytes as f64 / MIB as f64;
    let stats = soon("the numbers of the cgroup's files", || {
        let Ok(stats) = agent.get(&format!("/v1/stats?pid={worker}")) else { return Ok(None) };
        let info = &stats["mem_info"];
        let agrees = info["usage_mb"].as_f64() == Some(mb(group.read(usage, None)?));
        Ok((agrees && json::list(&stats, "processes")?.len() == 3).then_some(stats))
    })?;
    expect::exactly("total", stats["mem_info"]["total_mb"].as_f64(), Some(128.0))?;
    if let Ok(peak) = group.read(peak, None) {
        expect::exactly("most", stats["mem_info"]["max_usage_mb"].as_f64(), Some(mb(peak)))?;
    }
    expect::exactly("cgroup", json::text(&stats, "mem_info_cgroup")?, group.path().as_str())?;
    expect::exactly("tree", json::count(&stats, "tree")?, u64::from(workload.pid()))?;
    expect::exactly("root", json::count(&stats, "root.pid")?, u64::from(workload.pid()))?;

    // Who gives no pid is known by its connection.
    let own = agent.get("/v1/stats")?;
    let pids: Vec<u64> = json::list(&own, "processes")?.iter().filter_map(|process| process["pid"].as_u64()).collect();
    ensure!(pids.contains(&u64::from(std::process::id())), "the test's own tree has {pids:?}");
    expect::exactly("nobody", agent.answer("/v1/stats?pid=4194304")?.status, 404)?;
    workload.run("release")?;
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}

/// Seconds for which somebody waited for each resource; of none where the kernel does not tell.
fn stalls() -> Result<BTreeMap<&'static str, f64>> {
    let read = |name| Some((name, fs::read_to_string(format!("/proc/pressure/{name}")).ok()?));
    let all = ["cpu", "memory", "io"].into_iter().filter_map(read);
    all.map(|(name, text)| Ok((name, stalled(&text)?))).collect()
}

/// The total of a file of pressure, in seconds.
fn stalled(text: &str) -> Result<f64> {
    let some = text.lines().find(|line| line.starts_with("some ")).context("no line some")?;
    let (_, total) = some.rsplit_once("total=").context("no total")?;
    Ok(total.parse::<f64>()? / 1e6)
}

/// Reads that each disk has done: the first field of /sys/block/*/stat.
fn reads() -> Result<BTreeMap<String, u64>> {
    let each = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        let text = fs::read_to_string(entry.path().join("stat"))?;
        let first = text.split_whitespace().next().context("an empty stat")?;
        Ok((entry.file_name().to_string_lossy().into_owned(), first.parse()?))
    };
    fs::read_dir("/sys/block")?.map(each).collect()
}

#[test]
fn the_machine_is_what_proc_says() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let statistics = |name: &str| -> Result<u64> {
        Ok(fs::read_to_string(format!("/sys/class/net/lo/statistics/{name}"))?.trim().parse()?)
    };
    // Something to be seen, and not of the agent.
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    UdpSocket::bind("127.0.0.1:0")?.send_to(&[0; 8192], receiver.local_addr()?)?;
    let loopback_before = statistics("rx_bytes")?;
    ensure!(loopback_before > 8192, "nothing was received by lo");
    let kib = |name: &str| -> Result<u64> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    let (stalls_before, reads_before) = (stalls()?, reads()?);
    let available_before = kib("MemAvailable:")?;
    agent.settle()?;
    let host = agent.get("/v1/host")?;
    let (stalls_after, reads_after) = (stalls()?, reads()?);
    for ((name, before), after) in stalls_before.iter().zip(stalls_after.values()) {
        let told = json::number(&host, &format!("pressure.{name}.some.seconds_total"))?;
        ensure!((*before..=*after).contains(&told), "{name}: {told} s of pressure, {before} before, {after} after");
    }
    let disks = json::list(&host, "disks")?;
    ensure!(!disks.is_empty(), "no disk is told of");
    for disk in disks {
        let (name, told) = (json::text(disk, "name")?, json::count(disk, "read_ops_total")?);
        let (before, after) = (reads_before.get(name).copied().unwrap_or(0), reads_after.get(name).copied());
        let after = after.with_context(|| format!("the kernel has no disk {name}"))?;
        ensure!((before..=after).contains(&told), "{name}: {told} reads, {before} before, {after} after");
    }
    expect::exactly("memory", json::count(&host, "memory.total_bytes")?, kib("MemTotal:")?)?;
    expect::exactly("swap", json::count(&host, "memory.swap_total_bytes")?, kib("SwapTotal:")?)?;
    let (available_after, told) = (kib("MemAvailable:")?, json::count(&host, "memory.available_bytes")?);
    // It goes up and down in between.
    let least = available_before.min(available_after) - 256 * MIB;
    expect::between("bytes available", least, told, available_before.max(available_after) + 256 * MIB)?;
    // Nothing is told of two ticks that come so soon one after the other that no time was counted.
    let cpu = soon("shares of the processors' time", || {
        Ok(Some(agent.get("/v1/host")?["cpu"].clone()).filter(|cpu| !cpu["idle_ratio"].is_null()))
    })?;
    let sum: f64 = ["user_ratio", "system_ratio", "iowait_ratio", "steal_ratio", "idle_ratio"]
        .iter()
        .filter_map(|name| cpu[name].as_f64())
        .sum();
    ensure!((sum - 1.0).abs() < 0.001, "shares of the processors' time add up to {sum}: {cpu}");
    let online = fs::read_to_string("/proc/stat")?.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    expect::exactly("processors", json::list(&host, "cpus")?.len(), online)?;
    let loopback = json::list(&host, "interfaces")?.iter().find(|interface| interface["name"] == "lo").cloned();
    let told = json::count(&loopback.context("no loopback interface")?, "received_bytes_total")?;
    let (before, after) = (loopback_before, statistics("rx_bytes")?);
    ensure!((before..=after).contains(&told), "{told} bytes received by lo, {before} before, {after} after");
    agent.stop()
}

/// The part of the polling that a file belongs to, by the names that the kernel gives it.
fn part(path: &Path) -> Option<&'static str> {
    let text = path.to_str()?;
    let of_process = text.strip_prefix("/proc/").and_then(|rest| rest.split_once('/')).map(|(_, file)| file);
    let of_cgroup = text.starts_with("/sys/fs/cgroup").then(|| path.file_name()?.to_str()).flatten();
    match (text, of_process.unwrap_or_default(), of_cgroup.unwrap_or_default()) {
        ("/proc/stat" | "/proc/loadavg" | "/proc/pressure/cpu", ..) => Some("cpu"),
        ("/proc/meminfo" | "/proc/pressure/memory", ..) => Some("memory"),
        ("/proc/diskstats" | "/proc/pressure/io", ..) => Some("io"),
        (_, "status" | "smaps_rollup", _) => Some("memory"),
        (_, "io" | "net/dev", _) => Some("io"),
        (_, _, "cpu.stat" | "cpu.pressure" | "cpuacct.usage") => Some("cpu"),
        (_, _, name) if name.starts_with("memory.") => Some("memory"),
        (_, _, name) if name.starts_with("io.") || name.starts_with("blkio.") => Some("io"),
        _ => None,
    }
}

const PARTS: [&str; 3] = ["cpu", "memory", "io"];

/// Parts whose files an agent opens or reads in a few ticks in which something happens, and those of the files it keeps open.
fn parts_read(agent: &Agent, workload: &mut Workload) -> Result<(BTreeSet<&'static str>, BTreeSet<&'static str>)> {
    agent.settle()?;
    let mut opened = Opened::by(agent.pid())?;
    for _ in 0..3 {
        workload.run(&format!("hold {MIB}"))?;
        agent.settle()?;
    }
    let read = opened.take()?;
    let kept = agent.open_files()?;
    Ok((read.iter().filter_map(|path| part(path)).collect(), kept.iter().filter_map(|path| part(path)).collect()))
}

#[test]
fn what_is_switched_off_is_null_and_no_file_of_it_is_opened_or_read() -> Result<()> {
    let _machine = Machine::claim()?;
    let mut workload = Workload::start()?;
    // The root of cgroup v2 has no files of memory.
    let group = Cgroup::new("parts")?;
    group.add(workload.pid())?;
    for off in [&[][..], &["cpu"], &["memory"], &["io"], &PARTS] {
        let settings: Vec<String> = off.iter().map(|part| format!("{part}_monitoring=false")).collect();
        let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
        let agent = Agent::start(&flags)?;
        let (read, kept) = parts_read(&agent, &mut workload)?;
        let on: BTreeSet<_> = PARTS.into_iter().filter(|part| !off.contains(part)).collect();
        expect::exactly(&format!("parts whose files were read without {off:?}"), &read, &on)?;
        ensure!(kept.is_subset(&on), "without {off:?} files of {kept:?} are kept open");
        ensure!(on.is_empty() || !on.contains("memory") || kept.contains("memory"), "no cgroup's memory is kept open");

        let (snapshot, process) = (agent.get("/v1/snapshot")?, agent.process(workload.pid())?);
        let host = &snapshot["host"];
        let told = |part: &str, value: &Value| {
            expect::exactly(&format!("{part} told without {off:?}"), !value.is_null(), on.contains(part))
        };
        told("cpu", &host["cpu"])?;
        told("memory", &host["memory"])?;
        told("io", &host["interfaces"])?;
        told("cpu", &process["cpu"])?;
        told("memory", &process["memory"])?;
        told("io", &process["storage"])?;
        let cgroups = json::list(&snapshot, "cgroups")?;
        let any = |part: &str| cgroups.iter().any(|cgroup| !cgroup[part].is_null());
        expect::exactly("memory of cgroups", any("memory"), on.contains("memory"))?;
        expect::exactly("CPU time of cgroups", any("cpu"), on.contains("cpu"))?;
        expect::exactly("their age", any("age_seconds"), !on.is_empty())?;
        agent.stop()?;
    }
    workload.send("exit 0")?;
    workload.wait()?;
    Ok(())
}

#[test]
fn what_rests_is_refreshed_within_half_a_minute_and_not_before() -> Result<()> {
    const REFRESH: f64 = 30.0;
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let group = Cgroup::new("refresh")?;
    let mut workload = Workload::start()?;
    group.add(workload.pid())?;
    workload.run(&format!("hold {}", 8 * MIB))?;
    agent.settle()?;
    agent.settle()?;
    let ages = || -> Result<[f64; 2]> {
        Ok([
            json::number(&agent.process(workload.pid())?, "age_seconds")?,
            json::number(&cgroup(&agent, &group.path())?, "age_seconds")?,
        ])
    };
    let (mut before, mut refreshes, mut oldest) = (ages()?, [0; 2], 0.0_f64);
    let begin = Instant::now();
    // A refresh that is due at the end may be a tick or two late; none may be later than its numbers are old.
    while begin.elapsed().as_secs_f64() < REFRESH + if refreshes.contains(&0) { 12.0 } else { 2.0 } {
        let now = ages()?;
        for (index, refreshed) in refreshes.iter_mut().enumerate() {
            *refreshed += usize::from(now[index] < before[index]);
            oldest = oldest.max(now[index]);
        }
        before = now;
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(oldest < REFRESH + 1.0 * f64::from(slowness()), "numbers are {oldest} s old");
    // The process may be seen coming to rest, or its shares be read; the cgroup's other refresh may come in the two seconds.
    ensure!(refreshes.iter().all(|&count| (1..=4).contains(&count)), "{refreshes:?} refreshes in {REFRESH} s");
    workload.send("exit 0")?;
    workload.wait()?;
    agent.stop()
}
