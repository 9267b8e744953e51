//! Every rung of every source, forced in turn, tells the same of the same work in every column that it can fill.

use super::expected::Expected;
use crate::{
    block_io::{latencies_are_of_all, made_of, warm_workload},
    lifecycle::check_victim,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fs};
use tests::{
    Agent, Cgroup, LoopDevice, Machine, Workload,
    agent::{self, Measured},
    expect, json,
    proc::kernel_release,
};

/// What one rung told of some work: growth of every counter, by name; none where it cannot tell.
type Columns = BTreeMap<String, Option<u64>>;

/// One rung's account of some work.
struct Told {
    rung: String,
    /// Over all commands.
    columns: Columns,
    /// Command by command.
    measured: Vec<Measured>,
}

impl Told {
    /// Growth of a counter over all commands; none where the rung cannot tell.
    fn count(&self, name: &str) -> Option<u64> {
        self.columns.get(name).copied().flatten()
    }
}

/// Runs the same commands under each rung of a source that holds here.
fn under_each_rung(source: &str, group: &str, commands: &[String]) -> Result<Vec<Told>> {
    let expected = Expected::here()?;
    let mut all = Vec::new();
    for rung in expected.rungs(source)? {
        let (told, coverage) = under_rung(source, group, commands, rung)?;
        // But for what `measure` bears.
        let skipped = if kernel_release()?.0 >= 7 { json::count(&coverage, "lost.skipped_runs")? } else { 0 };
        let lost = json::count(&coverage, "lost_total")? - skipped;
        expect::exactly(rung, lost, 0).with_context(|| coverage.to_string())?;
        all.push(told);
    }
    ensure!(all.len() >= 2, "only {} rungs of {source} hold here: nothing to compare", all.len());
    Ok(all)
}

/// Runs commands under one rung: what it told, and its coverage.
fn under_rung(source: &str, group: &str, commands: &[String], rung: &str) -> Result<(Told, Value)> {
    let agent = Agent::start(&["--set", &format!("{source}.rung={rung}")])?;
    let coverage = agent.coverage(source)?;
    expect::exactly(source, &coverage["rung"], &Value::from(rung)).with_context(|| coverage.to_string())?;
    let mut workload = Workload::start()?;
    // Once unmeasured, so that none of its code is read from disk or faulted in while it counts.
    commands.iter().try_for_each(|command| workload.run(command).map(drop))?;
    let mut told = Told { rung: rung.to_owned(), columns: Columns::new(), measured: Vec::new() };
    for command in commands {
        let measured = agent.measure(&mut workload, command)?;
        let counters = json::at(&measured.after, group)?.as_object().context("no group of counters")?;
        for (name, value) in counters.iter().filter(|(name, value)| name.ends_with("_total") && !value.is_f64()) {
            let column = told.columns.entry(name.clone()).or_insert(value.is_u64().then_some(0));
            if let Some(sum) = column {
                *sum += measured.grown(&format!("{group}.{name}"))?;
            }
        }
        told.measured.push(measured);
    }
    let coverage = agent.coverage(source)?;
    agent.stop()?;
    Ok((told, coverage))
}

#[test]
fn page_faults_are_the_same_by_every_rung() -> Result<()> {
    let _machine = Machine::claim()?;
    let commands = [
        "faults user-write 20000 1",
        "faults kernel-write 20000 1",
        "faults user-read 20000 1",
        "faults user-copy 5000 1",
        "faults kernel-copy 5000 1",
        "faults kernel-read 5000 1",
        "faults user-fetch 2000 1",
    ];
    let told = under_each_rung("page_fault", "page_faults", &commands.map(str::to_owned))?;
    let (best, told_by_best) = (&told[0].columns, &told[0].rung);
    for told in &told {
        let (rung, count) = (&told.rung, |name: &str| told.count(name));
        let all = count("user_total").context("no user_total")? + count("kernel_total").context("no kernel_total")?;
        let proc_faults: u64 = told.measured.iter().map(|measured| measured.proc_faults).sum();
        if rung == "software_event" {
            // Each run, in either mode, may be off by one period; and the kernel leaves out faults, without a word, while a task that
            // reads a map is preempted on this CPU (`bpf_prog_active`), as the agent may be.
            expect::between(rung, proc_faults - proc_faults / 100, all, proc_faults + proc_faults / 200)?;
            for name in ["user_total", "kernel_total"] {
                let by_best = best[name].context("null")?;
                let counted = count(name).context("null")?;
                expect::between(name, by_best - by_best / 100, counted, by_best + by_best / 100)?;
            }
            let kinds = told.columns.iter().filter(|(name, _)| name.contains("present"));
            let (known, unknown): (Vec<_>, Vec<_>) = kinds.partition(|(_, value)| value.is_some());
            ensure!(known.is_empty() && unknown.len() == 10, "{rung} cannot know kinds, yet tells {known:?}");
        } else {
            expect::within_a_thousandth(rung, all, proc_faults)?;
            for (name, pages) in [
                ("user_write_not_present_total", 20_000),
                ("kernel_write_not_present_total", 20_000),
                // Half of them are of pages that are to be copied: those are read first.
                ("user_read_not_present_total", 30_000),
            ] {
                let counted = count(name).with_context(|| format!("{rung} does not tell {name}"))?;
                expect::within_a_thousandth(&format!("{name} by {rung}"), counted, pages)?;
            }
            for (name, counted) in &told.columns {
                let (counted, by_best) = (counted.context("null")?, best[name].context("null")?);
                let apart = counted.abs_diff(by_best);
                ensure!(apart <= 8 + by_best / 1000, "{name}: {counted} by {rung}, {by_best} by {}", told_by_best);
            }
        }
    }
    Ok(())
}

#[test]
fn address_space_is_the_same_by_every_rung() -> Result<()> {
    let _machine = Machine::claim()?;
    let commands = ["maps 200 4096", "maps 100 10000", "failures 50"].map(str::to_owned);
    let told = under_each_rung("address_space", "address_space", &commands)?;
    for Told { rung, columns, measured } in &told {
        expect::exactly(&format!("columns of {rung}"), columns, &told[0].columns)?;
        for measured in measured {
            for (name, value) in measured.made.as_object().context("no report")? {
                let grown = measured.grown(&format!("address_space.{name}"))?;
                expect::exactly(&format!("{name} by {rung}"), Some(grown), value.as_u64())?;
            }
        }
    }
    Ok(())
}

#[test]
fn calls_of_32_bit_programs_are_said_not_to_be_counted_and_are_not() -> Result<()> {
    let _machine = Machine::claim()?;
    for rung in Expected::here()?.rungs("address_space")? {
        let agent = Agent::start(&["--set", &format!("address_space.rung={rung}")])?;
        let mut workload = Workload::start()?;
        let measured = agent.measure(&mut workload, "compatible 500")?;
        expect::exactly("calls made", json::count(&measured.made, "calls")?, 500)?;
        for call in ["mmap_calls", "munmap_calls", "mremap_calls", "brk_calls", "failed_calls"] {
            let counted = measured.grown(&format!("address_space.{call}_total"))?;
            expect::exactly(&format!("{call} by {rung}"), counted, 0)?;
        }
        let caveats = agent.coverage("address_space")?["caveats"].to_string();
        ensure!(caveats.contains("32-bit"), "{rung} does not say so: {caveats}");
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn block_io_is_the_same_by_every_rung() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(32 << 20)?;
    let path = device.path().display().to_string();
    // Only a device with a cache of its own holds what is to be durable back; the kernel splits what is too long for it.
    fs::write(format!("/sys/block/{}/queue/write_cache", device.name()), "write back")
        .context("cannot set the cache")?;
    device.set_queue("max_sectors_kb", "128")?;
    device.set_queue("nomerges", "0")?;
    device.set_queue("scheduler", "mq-deadline")?;
    let commands = [
        format!("durable {path} 30 4096"),
        format!("durable {path} 3 2097152"),
        format!("direct read {path} 300 4096"),
        format!("direct write {path} 200 8192"),
        format!("flush {path} 20"),
        format!("discard {path} 20 65536"),
        // The kernel joins them: neighbours as they come, and requests that lie side by side already.
        format!("batch write {path} 32 4096"),
        format!("interleaved write {path} 32 4096"),
    ];
    let all = under_each_rung("block_io", "block_io", &commands)?;
    for told in &all {
        let made = [
            ("read_ops_total", 300),
            ("read_bytes_total", 300 * 4096),
            ("write_bytes_total", 30 * 4096 + 3 * 2097152 + 200 * 8192 + 2 * 32 * 4096),
            ("other_ops_total", 0),
            ("discard_ops_total", 20),
            ("discard_bytes_total", 20 * 65536),
            ("errors_total", 0),
        ];
        // The long ones are split at 128 KiB, and where the memory below them happens to be in two pieces; of the others at least
        // half are joined.
        let writes = told.count("write_ops_total").context("no writes")?;
        let (least, most) = (30 + 3 * 16 + 200 + 2, 30 + 3 * 20 + 200 + 2 * 16);
        expect::between(&format!("writes by {}", told.rung), least, writes, most)?;
        // Some kernels flush after each durable write, too.
        let flushes = told.count("flush_ops_total").context("no flushes")?;
        ensure!([20, 20 + 33].contains(&flushes), "{flushes} flushes by {}", told.rung);
        expect::exactly("flushes", Some(flushes), all[0].count("flush_ops_total"))?;
        let latencies = json::count(&told.measured[0].after, "block_io.write_latency.count")?;
        ensure!(latencies >= 30, "{latencies} latencies of 30 durable writes by {}", told.rung);
        for (name, value) in made {
            expect::exactly(&format!("{name} by {}", told.rung), told.count(name), Some(value))?;
        }
    }
    Ok(())
}

#[test]
fn what_is_joined_and_split_is_the_devices_own_count_by_every_rung() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(32 << 20)?;
    let path = device.path().display().to_string();
    device.set_queue("nomerges", "0")?;
    device.set_queue("scheduler", "mq-deadline")?;
    for rung in Expected::here()?.rungs("block_io")? {
        let agent = Agent::start(&["--set", &format!("block_io.rung={rung}")])?;
        let mut workload = warm_workload(&path)?;
        for command in [
            format!("batch write {path} 32 4096"),
            format!("interleaved read {path} 32 4096"),
            format!("direct write {path} 4 4194304"),
            format!("flush {path} 10"),
        ] {
            made_of(&agent, &device, &mut workload, &command).with_context(|| format!("by {rung}"))?;
        }
        expect::exactly("rung", json::text(&agent.coverage("block_io")?, "rung")?, rung)?;
        latencies_are_of_all(&agent, workload.pid()).with_context(|| format!("by {rung}"))?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn lives_and_cgroups_are_the_same_by_every_rung() -> Result<()> {
    let _machine = Machine::claim()?;
    for rung in Expected::here()?.rungs("lifecycle")? {
        let agent = Agent::start(&["--set", &format!("lifecycle.rung={rung}")])?;
        expect::exactly("rung", json::text(&agent.coverage("lifecycle")?, "rung")?, rung)?;
        let mut workload = Workload::start()?;
        let pid = workload.pid();
        let mut cgroup = Cgroup::new("rungs")?;
        let made_as = cgroup.path();
        if !cgroup.hierarchy().version_2 {
            cgroup.rename(&format!("monitor-test-renamed-{pid}"))?;
            let path = cgroup.path();
            agent.event("the new name", |event| event["event"] == "cgroup_renamed" && event["path"] == *path)?;
        }
        let path = cgroup.path();
        cgroup.add(pid)?;
        let made = workload.run("children 10")?;
        let children = json::list(&made, "pids")?.len();
        workload.run("release")?;
        cgroup.limit_memory(32 << 20)?;
        let mut victim = Workload::start()?;
        cgroup.add(victim.pid())?;
        victim.send(&format!("allocate {}", 128 << 20))?;
        expect::exactly("status", agent::ending(victim.wait()?), (None, Some(libc::SIGKILL)))?;
        check_victim(&agent, victim.pid(), &path).with_context(|| format!("by {rung}"))?;
        workload.send("exit 7")?;
        expect::exactly("status", agent::ending(workload.wait()?), (Some(7), None))?;
        cgroup.remove()?;
        let is_removal = |event: &Value| event["event"] == "cgroup_removed" && event["path"] == *path;
        agent.event("the cgroup's end", is_removal).with_context(|| format!("by {rung}"))?;
        let count = |kind: &str, fits: &dyn Fn(&Value) -> bool| -> Result<usize> {
            Ok(agent.events(|event| event["event"] == kind && fits(event))?.len())
        };
        let of_workload = |event: &Value| event["pid"] == pid;
        let of_children = |event: &Value| event["parent_pid"] == pid;
        expect::exactly(&format!("forks by {rung}"), count("fork", &of_children)?, children)?;
        expect::exactly(&format!("execs by {rung}"), count("exec", &of_workload)?, 1)?;
        expect::exactly(
            &format!("exits by {rung}"),
            count("exit", &|event| of_workload(event) && event["exit_code"] == 7)?,
            1,
        )?;
        expect::exactly(
            &format!("moves by {rung}"),
            count("moved", &|event| of_workload(event) && event["cgroup"] == *path)?,
            1,
        )?;
        expect::exactly(&format!("cgroups by {rung}"), count("cgroup_made", &|event| event["path"] == *made_as)?, 1)?;
        agent.stop()?;
    }
    Ok(())
}
