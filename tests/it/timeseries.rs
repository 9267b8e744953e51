//! CSV of every tick, read by Python's csv module; the oracles are /proc/meminfo and the machine's own counters.

use anyhow::{Context, Error, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};
use tests::{
    Agent, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    disk::SmallDisk,
    expect, proc,
};

/// What the training document's file begins with.
const BEGIN: &str = "step,timestamp,gpu_0_util,gpu_0_memory_pct,cpu_percent,memory_percent,io_read_rate_mbps,";
/// Prints a file's whole lines as a list of objects; fails where a row has another number of cells than the header. The
/// last line may be in the middle of being written.
const READ: &str = "import csv, datetime, io, json, sys
text = open(sys.argv[1], newline='').read()
rows = list(csv.DictReader(io.StringIO(text[:text.rfind('\\n') + 1], newline=''), strict=True))
assert all(None not in row and None not in row.values() for row in rows), 'a torn row'
for row in rows: datetime.datetime.strptime(row['timestamp'], '%Y-%m-%dT%H:%M:%S.%fZ')
print(json.dumps(rows))";

/// Rows of a file, as Python reads them.
fn rows(path: &Path) -> Result<Vec<Value>> {
    let output = Command::new("python3").arg("-c").arg(READ).arg(path).stdin(Stdio::null()).output();
    let output = output.context("these tests need python3: install it")?;
    ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn rows_when(path: &Path, what: &str, fits: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    wait_until(what, PATIENCE, || Ok(if path.exists() { Some(rows(path)?).filter(|rows| fits(rows)) } else { None }))
}

fn cell<'a>(row: &'a Value, column: &str) -> Result<&'a str> {
    row[column].as_str().with_context(|| format!("no {column}"))
}

fn number(row: &Value, column: &str) -> Result<f64> {
    let cell = cell(row, column)?;
    cell.parse().with_context(|| format!("{column} is {cell:?}"))
}

/// A row's time, in seconds of its day.
fn time(row: &Value) -> Result<f64> {
    let (_, time) = cell(row, "timestamp")?.split_once('T').context("no time")?;
    let parts = time.trim_end_matches('Z').split(':').map(str::parse::<f64>);
    Ok(parts.collect::<Result<Vec<_>, _>>()?.into_iter().fold(0.0, |sum, part| sum * 60.0 + part))
}

/// Seconds from one row to another, which may be of the next day.
fn seconds(from: &Value, to: &Value) -> Result<f64> {
    Ok((time(to)? - time(from)?).rem_euclid(86400.0))
}

/// Used memory in percent, as psutil has it, and all of it in MB.
fn memory() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    Ok(((total - available) / total * 100.0, total / 1024.0))
}

#[test]
fn every_tick_is_a_row_that_other_programs_read() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let logs = directory.path().join("deep/logs");
    let file = logs.join("epoch_0.csv");
    let agent = Agent::start(&["--csv", &logs.to_string_lossy(), "--set", "gpu_monitoring=false"])?;
    let mut workload = Workload::start()?;
    rows_when(&file, "three rows", |rows| rows.len() >= 3)?;
    let (before, total) = memory()?;
    // Python, which reads rows, would fault beside.
    let written = || Ok::<_, Error>(fs::read_to_string(&file)?.matches('\n').count() - 1);
    let seen = written()?;
    for _ in 0..5 {
        workload.run("faults user-write 20000 1")?;
    }
    // The first of two rows more may be of a tick that began before the end.
    let end = written()? + 2;
    agent.settle()?;
    let told = rows_when(&file, "two rows more", |rows| rows.len() >= end)?;
    let (after, _) = memory()?;
    agent.stop()?;

    let text = fs::read_to_string(&file)?;
    ensure!(text.starts_with(BEGIN) && text.matches("step,").count() == 1, "it begins {text:.200}");
    ensure!(text.ends_with('\n'), "the last line is torn");
    // A tick that follows at once, as after one that was late, is shorter than the kernel counts time.
    let known = told.iter().filter(|row| row["cpu_percent"] != "").count();
    ensure!(known > told.len() / 2, "hardly any row knows of processors: {told:?}");
    for (row, step) in told.iter().zip(1_u64..) {
        expect::exactly("step", cell(row, "step")?, step.to_string().as_str())?;
        expect::exactly("a GPU that is not there", cell(row, "gpu_0_util")?, "")?;
        ensure!(row["cpu_percent"] == "" || (0.0..=100.0).contains(&number(row, "cpu_percent")?), "{row}");
        expect::between("all memory", total as u64, number(row, "memory_system_mb")?.round() as u64, total as u64 + 1)?;
    }
    let row = &told[seen];
    let used = number(row, "memory_percent")?;
    println!("memory: {before:.2} % before, {used:.2} % told, {after:.2} % after");
    ensure!(before.min(after) - 1.0 <= used && used <= before.max(after) + 1.0, "{before} {used} {after}");
    let of_tick = |pair: &[Value]| Ok(number(&pair[1], "page_faults_per_second")? * seconds(&pair[0], &pair[1])?);
    let faults: f64 = told[seen - 1..end].windows(2).map(of_tick).sum::<Result<_>>()?;
    println!("page faults: 100000 made, {faults:.0} told");
    // Others fault beside, and times are told in milliseconds.
    ensure!(faults >= 95_000.0, "{faults} page faults are told");
    Ok(())
}

#[test]
fn a_killed_agents_file_has_whole_lines_and_the_next_agent_goes_on_with_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (logs, file) = (directory.path().to_string_lossy(), directory.path().join("epoch_0.csv"));
    let flags = ["--csv", &logs, "--tick", "100ms"];
    let mut kept = 0;
    for _ in 0..3 {
        let agent = Agent::start(&flags)?;
        let seen = rows_when(&file, "rows of this agent", |rows| rows.len() >= kept + 4)?.len();
        agent.end_by(libc::SIGKILL)?;
        ensure!(fs::read_to_string(&file)?.ends_with('\n'), "the last line is torn");
        kept = rows(&file)?.len();
        ensure!(kept >= seen, "{kept} rows of {seen}");
        // As a crash of the machine may leave it.
        fs::OpenOptions::new().append(true).open(&file)?.write_all(b"12345,2026-11-")?;
    }
    let agent = Agent::start(&flags)?;
    rows_when(&file, "rows of the last agent", |rows| rows.len() > kept)?;
    agent.stop()?;
    let text = fs::read_to_string(&file)?;
    ensure!(text.ends_with('\n') && !text.contains("12345,2026-11-\n") && text.matches("step,").count() == 1, "{text}");
    println!("{} rows of four agents, three of them killed", rows(&file)?.len());
    Ok(())
}

#[test]
fn without_csv_there_is_no_thread_and_no_file_for_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let logs = directory.path().join("logs");
    let path = logs.to_string_lossy();
    for (flags, is_written) in [
        (&["--set", &format!("timeseries_path={path}")][..], false),
        (&["--csv", &path, "--set", "export_timeseries=true"], true),
    ] {
        let agent = Agent::start(flags)?;
        agent.settle()?;
        let names = proc::of_threads(agent.pid(), "comm")?;
        expect::exactly("a thread that writes", names.iter().any(|name| name.trim() == "csv"), is_written)?;
        expect::exactly("a directory", logs.exists(), is_written)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn files_that_are_old_make_room_for_the_next_without_a_gap() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let logs = directory.path().to_string_lossy();
    let agent = Agent::start(&["--csv", &logs, "--tick", "100ms", "--set", "csv.max_age=1s"])?;
    let file = |number: u32| directory.path().join(format!("epoch_0.{number}.csv"));
    wait_until("three old files", PATIENCE, || Ok(file(3).exists().then_some(())))?;
    agent.stop()?;
    let mut before = None;
    for path in (1..=3).map(file) {
        ensure!(fs::read_to_string(&path)?.ends_with('\n'), "the last line is torn");
        let rows = rows(&path)?;
        let age = seconds(rows.first().context("no row")?, rows.last().context("no row")?)?;
        println!("{}: {} rows, {age:.3} s from the first to the last", path.display(), rows.len());
        ensure!(age < 1.0, "{} holds {age} s", path.display());
        for row in &rows {
            let step = number(row, "step")?;
            ensure!(before.is_none_or(|before| step == before + 1.0), "step {step} after {before:?}");
            before = Some(step);
        }
    }
    Ok(())
}

#[test]
fn a_full_disk_leaves_rows_out_and_not_the_agent() -> Result<()> {
    let _machine = Machine::claim()?;
    let disk = SmallDisk::new(1 << 20)?;
    let agent = Agent::start(&["--csv", &disk.path().to_string_lossy(), "--tick", "100ms"])?;
    let file = disk.path().join("epoch_0.csv");
    rows_when(&file, "rows", |rows| rows.len() > 2)?;
    let filler = disk.path().join("filler");
    ensure!(fs::write(&filler, vec![1; 2 << 20]).is_err(), "the disk is larger than it should be");
    wait_until("the agent to notice", PATIENCE, || Ok(agent.words().contains("are left out until").then_some(())))?;
    sleep(Duration::from_millis(500));
    agent.settle()?;
    let before = rows(&file)?;
    fs::remove_file(&filler)?;
    let after = rows_when(&file, "rows to come again", |rows| rows.len() > before.len() + 2)?;
    agent.settle()?;
    let words = agent.words();
    agent.stop()?;
    // While it fills up, a row or two may still find a block that was set aside for others.
    let full = words.matches("No space left on device").count();
    ensure!((1..=2).contains(&full), "the full disk is told {full} times: {words}");
    expect::exactly("lines about its end", words.matches("are written to").count(), full)?;
    let step = |row: &Value| number(row, "step");
    let gap = step(&after[before.len()])? - step(&before[before.len() - 1])?;
    println!("{gap} steps from the last row before the gap to the first after it");
    ensure!(gap > 1.0, "no row was left out");
    Ok(())
}

#[test]
fn a_place_that_cannot_be_written_is_told_at_the_start() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let place = directory.path().join("a-file");
    fs::write(&place, "kept")?;
    let socket = directory.path().join("m.sock");
    let (socket, csv) = (socket.to_string_lossy(), place.to_string_lossy());
    let output = agent::run(&["run", "--quiet", "--for", "1s", "--socket", &socket, "--csv", &csv])?;
    let told = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(1))?;
    ensure!(told.contains("cannot write CSV files to") && told.contains("--csv"), "it says: {told}");
    expect::exactly("the file in the way", fs::read_to_string(&place)?, "kept".to_owned())
}
