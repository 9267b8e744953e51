//! A low limit on open files: the agent runs, says once what it lacks, and takes nobody who lives for gone.

use anyhow::{Context, Result, ensure};
use std::{
    collections::HashSet,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};
use tests::{
    Agent, Machine, Workload,
    clock::{PATIENCE, slowness, wait_until},
    expect, json,
};

const CROWD: usize = 300;
/// The first leaves room for every kernel program (some 155 files are open then) and for fewer clients than the agent takes
/// (80) whatever else it keeps open; the second for a few programs only, so that it looks for processes.
const LIMITS: [u64; 2] = [200, 64];
/// A want is told to be over when none was met for this long.
const OVER_AFTER: Duration = Duration::from_secs(30);
/// Where no records tell of processes they are looked for every 5 s.
const THREE_SWEEPS: Duration = Duration::from_secs(16);

#[test]
fn an_agent_with_few_descriptors_takes_no_living_process_for_gone() -> Result<()> {
    let _machine = Machine::claim()?;
    let mut workload = Workload::start()?;
    let children = workload.run(&format!("children {CROWD}"))?;
    let pids: Vec<u64> = json::list(&children, "pids")?.iter().filter_map(|row| row[0].as_u64()).collect();
    expect::exactly("children", pids.len(), CROWD)?;
    for limit in LIMITS {
        let agent = Agent::start_limited(limit, &[])?;
        all_run(&agent, &pids)?;
        let polled = json::count(&agent.process(workload.pid())?, "memory.resident_bytes")?;
        ensure!(polled > 0, "nothing is polled");
        // As many clients as there is room for, and more: no descriptor is left.
        let clients: Vec<UnixStream> =
            (0..100).map(|_| UnixStream::connect(agent.socket())).collect::<Result<_, _>>()?;
        wait_until("the want to be told", PATIENCE, || {
            Ok((said(&agent, "no file descriptor is left") == 1).then_some(()))
        })
        .with_context(|| {
            format!("{limit} files may be open, {:?} are; it said: {}", agent.open_files(), agent.words())
        })?;
        let hold_until = Instant::now() + THREE_SWEEPS;
        while Instant::now() < hold_until {
            // Clients that ask nothing are sent away after 5 s: others come.
            let more: Vec<_> = (0..20).filter_map(|_| UnixStream::connect(agent.socket()).ok()).collect();
            std::thread::sleep(Duration::from_millis(500));
            drop(more);
        }
        drop(clients);
        wait_until("an answer", PATIENCE, || Ok(agent.get("/v1/health").ok()))?;
        all_run(&agent, &pids)?;
        wait_until("the want's end to be told", OVER_AFTER + PATIENCE * slowness(), || {
            Ok((said(&agent, "file descriptors are to be had again") == 1).then_some(()))
        })?;
        expect::exactly("times that the want was told", said(&agent, "no file descriptor is left"), 1)?;
        expect::exactly("times that the limit was told", said(&agent, "files may be open (RLIMIT_NOFILE"), 1)?;
        ensure!(agent.open_files()?.len() as u64 <= limit, "more files than allowed");
        agent.stop()?;
    }
    workload.run("release")?;
    workload.send("exit 0")?;
    workload.wait()?;
    Ok(())
}

/// All of these are told as running, and none as exited.
fn all_run(agent: &Agent, pids: &[u64]) -> Result<()> {
    let processes = agent.processes()?;
    let with_state = |state: &str| -> HashSet<u64> {
        processes
            .iter()
            .filter(|process| process["state"] == state)
            .filter_map(|process| process["pid"].as_u64())
            .collect()
    };
    let (running, exited) = (with_state("running"), with_state("exited"));
    let missing = pids.iter().filter(|pid| !running.contains(pid)).count();
    let gone = pids.iter().filter(|pid| exited.contains(pid)).count();
    ensure!(missing == 0 && gone == 0, "of {} living processes {missing} are not told, {gone} as exited", pids.len());
    Ok(())
}

/// How many lines of its log have these words.
fn said(agent: &Agent, words: &str) -> usize {
    agent.words().lines().filter(|line| line.contains(words)).count()
}
