//! The block of resources and alerts: when it comes, with which mark, and whether its numbers are those of /proc/meminfo and
//! /proc/stat.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fs, path::Path, thread::sleep, time::Duration};
use tests::{
    Agent, Machine,
    clock::{PATIENCE, wait_until},
    expect, http,
};

/// One block, as far as it is the same with and without GPUs.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Before the colon: "Batch 50".
    place: String,
    /// Behind it: "epoch 2, 2026-11-21T14:30:00Z".
    rest: String,
    cpu_percent: Option<f64>,
    available_mb: f64,
    total_mb: f64,
    used_percent: f64,
    wait_percent: Option<f64>,
    alerts: Vec<String>,
}

/// All whole blocks of an output, in their order. A line that is of no block is an error.
fn blocks(output: &Path) -> Result<Vec<Block>> {
    let text = fs::read_to_string(output)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut blocks: Vec<Block> = Vec::new();
    for line in text[..whole].lines().skip(1).filter(|line| !line.is_empty()) {
        read(line, &mut blocks).with_context(|| format!("not a line of a block: {line:?}"))?;
    }
    // The last one may be in the middle of being written.
    blocks.pop();
    Ok(blocks)
}

fn read(line: &str, blocks: &mut Vec<Block>) -> Result<()> {
    let percent = |text: &str| -> Result<Option<f64>> {
        let number = || text.strip_suffix('%').context("no percentage")?.parse().context("no number");
        if text == "n/a" { Ok(None) } else { number().map(Some) }
    };
    if let Some(head) = line.strip_prefix("[Resources] ").filter(|head| !head.contains("ALERTS")) {
        let (place, rest) = head.split_once(": ").context("no colon")?;
        blocks.push(Block { place: place.to_owned(), rest: rest.to_owned(), ..Block::default() });
        return Ok(());
    }
    let block = blocks.last_mut().context("before the first block")?;
    if line == "[Resources] ⚠️ ALERTS:" {
    } else if let Some(alert) = line.strip_prefix("  - ") {
        block.alerts.push(alert.to_owned());
    } else if let Some(cpu) = line.strip_prefix("  CPU: ") {
        let (all, process) = cpu.split_once(" (process: ").context("no process")?;
        let process = process.strip_suffix(')').context("no end")?;
        percent(process.split(',').next().unwrap_or_default())?;
        block.cpu_percent = percent(all)?;
    } else if let Some(memory) = line.strip_prefix("  Memory: ") {
        let (sizes, used) = memory.split_once(" MB available (").context("no size")?;
        let (available, total) = sizes.split_once('/').context("no total")?;
        (block.available_mb, block.total_mb) = (available.parse()?, total.parse()?);
        block.used_percent = percent(used.strip_suffix(" used)").context("no end")?)?.context("not known")?;
    } else if let Some(io) = line.strip_prefix("  I/O: Read ") {
        let (_, wait) = io.rsplit_once(", Wait ").context("no wait")?;
        ensure!(io.contains(", Write "), "no write");
        block.wait_percent = percent(wait)?;
    } else {
        ensure!(line == "  GPU: n/a", "unknown");
    }
    Ok(())
}

fn blocks_when(output: &Path, what: &str, fits: impl Fn(&[Block]) -> bool) -> Result<Vec<Block>> {
    wait_until(what, PATIENCE, || Ok(Some(blocks(output)?).filter(|blocks| fits(blocks))))
}

/// The number of the tick that a block without a mark is of.
fn tick(block: &Block) -> Result<u64> {
    let number = block.place.strip_prefix("Tick ").with_context(|| format!("a mark: {block:?}"))?;
    Ok(number.parse()?)
}

/// The numbers of the ticks that the blocks without a mark are of, in a text that has other lines too.
fn ticks(text: &str) -> Result<Vec<u64>> {
    let numbers = text.lines().filter_map(|line| line.strip_prefix("[Resources] Tick ")?.split(':').next());
    Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
}

/// Available and total memory, in MB of 2^20 bytes.
fn memory() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let mb = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    };
    Ok((mb("MemAvailable:")?, mb("MemTotal:")?))
}

/// Busy and all time of the processors since boot, in clock ticks. Idle is also who waits for a disk.
fn processors() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("an empty /proc/stat")?;
    // Guest time, behind the first eight, is in them already.
    let times: Vec<f64> = line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
    let all: f64 = times.iter().sum();
    Ok((all - times[3] - times[4], all))
}

#[test]
fn every_two_ticks_a_block_tells_what_proc_tells_with_the_mark() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("output");
    let settings = ["gpu_monitoring=false", "memory_threshold=0.01", "alert_io_bottleneck=false"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let agent = Agent::start_into(&output, &[&["--log-interval", "2"][..], &settings].concat())?;
    let before_mark = blocks_when(&output, "three blocks", |blocks| blocks.len() >= 3)?;
    let pairs = before_mark.iter().map(|block| Ok(tick(block)? / 2)).collect::<Result<Vec<_>>>()?;
    ensure!(pairs[0] >= 1 && pairs.is_sorted_by(|a, b| a < b), "more than one block in two ticks: {before_mark:?}");
    let answer = http::post(agent.socket(), "/v1/marks", &json!({"step": 50, "epoch": 2}).to_string())?;
    expect::exactly("status", answer.status, 202)?;
    agent.settle()?;

    // The machine may have stood still in a tick that is not shown; who reckons wrongly does so each time.
    let mut tries = 0;
    while !is_as_proc_tells(&output)? {
        tries += 1;
        ensure!(tries < 5, "not once of {tries} times were processors as busy as by /proc/stat");
    }
    agent.stop()
}

/// Ten blocks tell of memory what /proc/meminfo does. Whether they do of the processors what /proc/stat does.
fn is_as_proc_tells(output: &Path) -> Result<bool> {
    let (available_before, total) = memory()?;
    let (busy_before, all_before) = processors()?;
    let seen = blocks(output)?.len();
    let told = blocks_when(output, "ten blocks more", |blocks| blocks.len() >= seen + 10)?;
    let (busy_after, all_after) = processors()?;
    let (available_after, _) = memory()?;

    // Of the first two, ticks may have begun before the readings did.
    let told = &told[seen + 2..];
    for block in told {
        expect::exactly("place", block.place.as_str(), "Batch 50")?;
        ensure!(block.rest.starts_with("epoch 2, 20") && block.rest.ends_with('Z'), "{block:?}");
        ensure!((block.total_mb - total).abs() <= 1.0, "{total} MB in all: {block:?}");
        let used = (1.0 - block.available_mb / block.total_mb) * 100.0;
        ensure!((used - block.used_percent).abs() <= 1.0, "{used} % used: {block:?}");
        expect::exactly("alerts", block.alerts.len(), 1)?;
        ensure!(block.alerts[0].starts_with("High memory usage: "), "{block:?}");
        ensure!(block.alerts[0].ends_with("% (threshold: 1%)"), "{block:?}");
        ensure!(block.wait_percent.is_none_or(|wait| (0.0..=100.0).contains(&wait)), "{block:?}");
    }
    let available: Vec<f64> = told.iter().map(|block| block.available_mb).collect();
    println!("MB available: {available_before:.0} before, {available:?} told, {available_after:.0} after");
    let nearest = available.iter().map(|told| (told - available_before).abs().min((told - available_after).abs()));
    let nearest = nearest.fold(f64::INFINITY, f64::min);
    ensure!(nearest < total * 0.02, "none within {nearest} MB of /proc/meminfo");
    // A tick that follows at once, as after one that was late, is shorter than the kernel counts time.
    let cpu: Vec<f64> = told.iter().filter_map(|block| block.wait_percent.and(block.cpu_percent)).collect();
    ensure!(cpu.len() > told.len() / 2, "hardly any block knows of processors and of waiting: {told:?}");
    let busy = (busy_after - busy_before) / (all_after - all_before) * 100.0;
    println!("CPU: {busy:.1} % by /proc/stat over all of it, {cpu:?} told of its ticks");
    let (least, most) = cpu.iter().fold((100.0_f64, 0.0_f64), |(least, most), cpu| (least.min(*cpu), most.max(*cpu)));
    Ok(least - 10.0 <= busy && busy <= most + 10.0)
}

#[test]
fn a_log_has_tables_and_blocks_unless_one_is_asked_for() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("output");
    let agent = Agent::start_into(&output, &["--tick", "100ms"])?;
    // A slow machine may miss ticks, and shows the next; now and then it misses none of ten.
    let tens = wait_until("blocks of ten ticks each, and a table", PATIENCE, || {
        let text = fs::read_to_string(&output)?;
        let tens: Vec<u64> = ticks(&text)?.into_iter().map(|tick| tick / 10).collect();
        let has_neighbours = tens.windows(2).any(|pair| pair[1] == pair[0] + 1);
        Ok((has_neighbours && text.contains("TREES by page faults")).then_some(tens))
    })?;
    let how_to_ask = format!("curl --unix-socket {} ", agent.socket().display());
    let text = fs::read_to_string(&output)?;
    let first = text.lines().next().context("it says nothing")?;
    ensure!(first.contains(&how_to_ask), "it does not begin with how to ask it: {first}");
    agent.stop()?;
    ensure!(tens[0] >= 1 && tens.is_sorted_by(|a, b| a < b), "blocks are of these tens of ticks: {tens:?}");

    let flags = ["--set", "log_interval=0", "--set", "console_interval=200ms"];
    let agent = Agent::start_into(&output, &flags)?;
    let text = wait_until("a table", PATIENCE, || {
        Ok(Some(fs::read_to_string(&output)?).filter(|text| text.contains("TREES by page faults")))
    })?;
    agent.stop()?;
    ensure!(!text.contains("[Resources]"), "{text}");

    let agent = Agent::start_into(&output, &["--quiet", "--log-interval", "1"])?;
    sleep(Duration::from_millis(500));
    agent.settle()?;
    agent.stop()?;
    expect::exactly("with --quiet", fs::read_to_string(&output)?, String::new())
}
