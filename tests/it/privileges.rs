//! Rights: what the agent does with those of the service and no more, what it says it lacks, and what it lays down.
//! Started by setpriv(1) of util-linux, so not in the virtual machines.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Agent, Machine, Workload, agent, expect, json, proc};

/// What `deploy/monitor.service` bounds it to, as setpriv spells them.
const FIVE: &str = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search,+syslog";
/// The same as the kernel does: numbers 2, 19, 34, 38 and 39 of include/uapi/linux/capability.h.
const FIVE_BITS: u64 = 1 << 2 | 1 << 19 | 1 << 34 | 1 << 38 | 1 << 39;

/// Root without the other capabilities, as the service is.
const AS_SERVICE: [&str; 4] = ["setpriv", "--bounding-set", FIVE, "--no-new-privs"];
/// Nobody, with those five.
const AS_NOBODY: [&str; 13] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
    "--bounding-set",
    FIVE,
    "--inh-caps",
    FIVE,
    "--ambient-caps",
    FIVE,
    "--no-new-privs",
];

/// The sets of all threads of a process, by their names in /proc/PID/status.
fn capabilities(pid: u32, set: &str) -> Result<Vec<u64>> {
    let threads = proc::of_threads(pid, "status")?;
    threads
        .iter()
        .map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
            Ok(u64::from_str_radix(line.with_context(|| format!("no {set}"))?.trim(), 16)?)
        })
        .collect()
}

/// Every source counts, and page faults are the workload's own and /proc's.
fn counts(agent: &Agent) -> Result<()> {
    for source in ["page_fault", "address_space", "block_io", "lifecycle", "requests", "resident"] {
        let coverage = agent.coverage(source)?;
        expect::exactly(source, json::text(&coverage, "state")?, "live").with_context(|| coverage.to_string())?;
    }
    let mut workload = Workload::start()?;
    workload.run("faults user-write 16 1")?;
    let measured = agent.measure(&mut workload, "faults user-write 20000 1")?;
    let grown = measured.grown("page_faults.user_total")? + measured.grown("page_faults.kernel_total")?;
    expect::within_a_thousandth("page faults", grown, measured.proc_faults)?;
    expect::within_a_thousandth("writes", measured.grown("page_faults.user_write_not_present_total")?, 20_000)
}

/// What the report says is lacking.
fn lacking(report: &Value) -> Result<Vec<&str>> {
    json::list(report, "facts.lacking_capabilities")?.iter().map(|lacking| json::text(lacking, "capability")).collect()
}

#[test]
fn with_the_services_five_capabilities_every_source_counts() -> Result<()> {
    let _machine = Machine::claim()?;
    for wrapper in [&AS_SERVICE[..], &AS_NOBODY] {
        let agent = Agent::start_through(wrapper, &[]).with_context(|| format!("{wrapper:?}"))?;
        expect::exactly("bounding set", capabilities(agent.pid(), "CapBnd")?[0], FIVE_BITS)?;
        counts(&agent).with_context(|| format!("{wrapper:?}"))?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn doctor_tells_what_is_lacking_and_what_that_costs() -> Result<()> {
    let _machine = Machine::claim()?;
    let report = |wrapper: &[&str]| -> Result<Value> {
        let output = agent::run_through(wrapper, &["doctor", "--json"])?;
        expect::exactly("exit code", output.status.code(), Some(0))?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    expect::exactly("lacking with all of root's", lacking(&report(&["env"])?)?, Vec::new())?;
    expect::exactly("lacking as a service", lacking(&report(&AS_SERVICE)?)?, vec!["CAP_SYS_ADMIN"])?;
    let two = ["setpriv", "--bounding-set", "-all,+bpf,+perfmon"];
    let all = vec!["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"];
    expect::exactly("lacking with two", lacking(&report(&two)?)?, all)?;
    let table = agent::run_through(&AS_SERVICE, &["doctor"])?;
    let table = String::from_utf8(table.stdout)?;
    ensure!(table.contains("CAP_SYS_ADMIN: run times of the kernel programs are not measured"), "{table}");
    Ok(())
}

#[test]
fn without_one_of_the_two_that_loading_takes_it_does_not_start_and_names_it() -> Result<()> {
    let _machine = Machine::claim()?;
    for (left, missing) in [("-all,+bpf", "CAP_PERFMON"), ("-all,+perfmon", "CAP_BPF")] {
        let output = agent::run_through(&["setpriv", "--bounding-set", left], &["doctor"])?;
        let words = String::from_utf8_lossy(&output.stderr);
        expect::exactly("exit code", output.status.code(), Some(1))?;
        ensure!(words.contains(missing), "it does not name {missing}: {words}");
    }
    Ok(())
}

#[test]
fn a_socket_that_may_not_be_given_to_its_group_is_an_error_that_says_how_it_may() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("monitor.sock");
    let socket = socket.to_string_lossy();
    let run = ["run", "--quiet", "--for", "1s", "--socket", &socket, "--socket-group", "65533"];
    let output = agent::run_through(&AS_SERVICE, &run)?;
    let words = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(1))?;
    ensure!(words.contains("group 65533: grant CAP_CHOWN"), "{words}");
    let output = agent::run_through(&[&AS_SERVICE[..], &["--groups", "65533"]].concat(), &run)?;
    expect::exactly("exit code of a member", output.status.code(), Some(0))
}

#[test]
fn told_to_it_lays_down_all_but_the_five_in_every_thread_and_goes_on_counting() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let kept = capabilities(agent.pid(), "CapEff")?;
    ensure!(kept.iter().all(|set| set & !FIVE_BITS != 0), "there is nothing to lay down: {kept:x?}");
    agent.stop()?;

    let agent = Agent::start(&["--set", "drop_capabilities=true"])?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let threads = capabilities(agent.pid(), set)?;
        ensure!(threads.len() >= 2, "only {} threads", threads.len());
        ensure!(threads.iter().all(|&set| set == FIVE_BITS), "{set} of its threads: {threads:x?}");
    }
    ensure!(capabilities(agent.pid(), "CapInh")?.iter().all(|&set| set == 0), "something is inheritable");
    counts(&agent)?;
    expect::exactly("lacking", lacking(&agent.get("/v1/doctor")?)?, vec!["CAP_SYS_ADMIN"])?;
    agent.stop()
}
