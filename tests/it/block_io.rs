//! Source `block_io`, against what the workload read and wrote and what /sys/block counts.
//!
//! On a loop device that only the workload uses, the agent's totals must equal the kernel's, whatever it split or joined.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{fs, io::Write, thread};
use tests::{
    Agent, LoopDevice, Machine, Workload,
    agent::{Measured, TRIES},
    bpf::Statistics,
    clock::{PATIENCE, amount, wait_until},
    disk::{self, Stat},
    expect, json,
    proc::kernel_release,
};

const MIB: u64 = 1 << 20;
/// Blocks of a run; they lie a block apart.
const BLOCKS: u64 = 500;
/// Blocks of a run on a disk: so many that what the workload's own start read from it is no more than noise.
const DISK_BLOCKS: u64 = 2000;
/// More requests than any queue has: after so many, each of them was used again.
const REUSE_BLOCKS: u64 = 2000;
/// Blocks of a run while the machine is busy: so many that completions interrupt everything else that goes on.
const BUSY_BLOCKS: u64 = 20_000;
const BLOCK_BYTES: u64 = 4096;
/// At most one of so many completions is not seen, where some are not.
const UNSEEN_PART: u64 = 20;

/// What a process's counters grew by.
fn grown(measured: &Measured) -> Result<Stat> {
    Ok(Stat::told(&measured.after)?.since(&Stat::told(&measured.before)?))
}

/// What the agent has of a device; nothing where it has not seen any of its I/O.
fn of_device(agent: &Agent, name: &str) -> Result<Stat> {
    agent.block_device(name)?.map_or(Ok(Stat::default()), |device| Stat::told(&device))
}

/// What the agent says it has lost. Since Linux 7.0 a program can be preempted by a task that needs it, too, and then the kernel
/// skips it for that one: of a request to which that happens one end may stay unknown. Nothing else is lost there.
fn lost(agent: &Agent) -> Result<u64> {
    let coverage = agent.coverage("block_io")?;
    let count = |cause: &str| json::count(&coverage, &format!("lost.{cause}"));
    if kernel_release()?.0 >= 7 {
        for cause in ["ring_full", "map_full", "undecodable"] {
            expect::exactly(cause, count(cause)?, 0)?;
        }
        expect::between("requests of which one end is unknown", 0, count("unmatched")?, count("skipped_runs")?)?;
    }
    json::count(&coverage, "lost_total")
}

/// A device and its counters before, in /sys/block and in the agent.
struct Watched<'a> {
    agent: &'a Agent,
    device: &'a LoopDevice,
    kernel: Stat,
    told: Stat,
    lost: u64,
}

impl<'a> Watched<'a> {
    fn start(agent: &'a Agent, device: &'a LoopDevice) -> Result<Self> {
        agent.settle()?;
        let lost = lost(agent)?;
        Ok(Self { agent, device, kernel: device.stat()?, told: of_device(agent, device.name())?, lost })
    }

    /// Both grew by the same, but for what the agent says it has lost; gives by how much, and how many were lost.
    fn same_growth(self) -> Result<(Stat, u64)> {
        self.agent.settle()?;
        let lost = lost(self.agent)? - self.lost;
        let mut kernel = self.device.stat()?.since(&self.kernel);
        // The kernel also counts a flush as a write of nothing.
        kernel.write_ops -= kernel.flush_ops;
        let told = of_device(self.agent, self.device.name())?.since(&self.told);
        let name = self.device.name();
        ensure!(told.is_but_for(&kernel, lost), "{name}: the agent tells {told:?} and {lost} lost, /sys {kernel:?}");
        // What was lost while the count of this device is whole was another one's: a completion that was not seen. A program that
        // is preempted may leave a process short, and its device not.
        let is_elsewhere = told == kernel && kernel_release()?.0 < 7;
        Ok((kernel, if is_elsewhere { 0 } else { lost }))
    }
}

/// A workload that has run its code once, so that none of it is read from a disk any more.
pub(crate) fn warm_workload(path: &str) -> Result<Workload> {
    let mut workload = Workload::start()?;
    for command in ["direct read {} 1 4096", "batch read {} 1 4096", "flush {} 1"] {
        workload.run(&command.replace("{}", path))?;
    }
    Ok(workload)
}

/// As [`Agent::measure`], and then lets the disk's requests be used again by somebody else.
///
/// Some kernels run no program at all while an interrupt hits certain tasks (seen on a guest of a hypervisor that hides
/// its own agent's process: of 10,000 completions up to 90 were shown to no BPF program, while perf counted all). The agent finds that out,
/// and counts the I/O, when the request is used again; it tells how many completions it did not see, which are few.
fn measure_all(
    agent: &Agent,
    workload: &mut Workload,
    operation: &str,
    blocks: u64,
    path: &str,
) -> Result<(Measured, u64)> {
    let lost_before = lost(agent)?;
    let mut measured = agent.measure(workload, &format!("direct {operation} {path} {blocks} {BLOCK_BYTES}"))?;
    // Each processor goes on with the requests that it used last.
    for processor in 0..thread::available_parallelism()?.get() {
        let mut somebody = Workload::start()?;
        somebody.run(&format!("pin {processor}"))?;
        somebody.run(&format!("direct read {path} {REUSE_BLOCKS} {BLOCK_BYTES}"))?;
    }
    agent.settle()?;
    measured.after = agent.process(workload.pid())?;
    let unseen = lost(agent)? - lost_before;
    expect::between("completions that were not seen", 0, unseen, blocks / UNSEEN_PART)?;
    Ok((measured, unseen))
}

#[test]
fn direct_io_on_a_disk_is_exact_and_its_latency_is_below_what_the_caller_saw() -> Result<()> {
    let _machine = Machine::claim()?;
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    file.write_all(&vec![1; (2 * DISK_BLOCKS * BLOCK_BYTES) as usize])?;
    file.as_file().sync_all()?;
    let (path, disk) = (file.path().display().to_string(), disk::disk_of(file.path())?);
    let agent = Agent::start(&[])?;
    let mut workload = warm_workload(&path)?;
    for (operation, latency) in [("read", "read_latency"), ("write", "write_latency")] {
        let kernel_before = Stat::of(&disk)?;
        agent.settle()?;
        let device_before = of_device(&agent, &disk)?;
        let (measured, unseen) = measure_all(&agent, &mut workload, operation, DISK_BLOCKS, &path)?;
        let device = of_device(&agent, &disk)?.since(&device_before);
        let kernel = Stat::of(&disk)?.since(&kernel_before);
        expect::exactly(operation, grown(&measured)?, only(operation, DISK_BLOCKS, DISK_BLOCKS * BLOCK_BYTES))?;
        let ops = |stat: Stat| if operation == "read" { stat.read_ops } else { stat.write_ops };
        expect::between(&format!("{operation}s of {disk}"), DISK_BLOCKS, ops(device), ops(kernel))?;
        plausible_latency(&measured, latency, unseen)?;
    }
    agent.stop()
}

#[test]
fn direct_io_on_a_busy_machine_is_exact_and_unseen_completions_are_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let blocks = amount(BUSY_BLOCKS);
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    file.write_all(&vec![1; (2 * blocks * BLOCK_BYTES) as usize])?;
    file.as_file().sync_all()?;
    let path = file.path().display().to_string();
    let agent = Agent::start(&["--tick", "100ms"])?;
    let mut workload = warm_workload(&path)?;
    let mut busy = [Workload::start()?, Workload::start()?];
    agent.settle()?;
    busy[0].send(&format!("forks {}", amount(15_000)))?;
    busy[1].send(&format!("storm 1 {} 16", amount(4000)))?;
    let (measured, unseen) = measure_all(&agent, &mut workload, "write", blocks, &path)?;
    busy.iter_mut().try_for_each(|workload| workload.receive().map(|_| ()))?;
    let told = grown(&measured)?;
    expect::exactly(&format!("writes, {unseen} unseen"), told, only("write", blocks, blocks * BLOCK_BYTES))?;
    let timed = measured.grown("block_io.write_latency.count")?;
    expect::between("writes with a latency", blocks - unseen, timed, blocks)?;
    agent.stop()
}

fn only(operation: &str, ops: u64, bytes: u64) -> Stat {
    match operation {
        "read" => Stat { read_ops: ops, read_bytes: bytes, ..Stat::default() },
        _ => Stat { write_ops: ops, write_bytes: bytes, ..Stat::default() },
    }
}

/// The device answered within the time the workload waited, and took a good part of it.
fn plausible_latency(measured: &Measured, name: &str, unseen: u64) -> Result<()> {
    let told = json::at(&measured.after, &format!("block_io.{name}"))?;
    let timed = measured.grown(&format!("block_io.{name}.count"))?;
    expect::between(name, DISK_BLOCKS - unseen, timed, DISK_BLOCKS)?;
    let waited = |quantile: &str| json::count(&measured.made, quantile);
    // The device is most of the shortest wait. Of a longer one the workload may have stood in line for a processor, which took
    // the completion at once. A sixteenth for the width of a histogram's buckets.
    let least = waited("min_ns")? / 2;
    expect::between(name, least, json::count(told, "p50_ns")?, waited("p50_ns")? * 17 / 16)?;
    // What it did before it measured, to load its program or by a flush, may have taken longer.
    let earlier = json::at(&measured.before, &format!("block_io.{name}"))?["max_ns"].as_u64().unwrap_or(0);
    let most = (waited("max_ns")? * 17 / 16).max(earlier);
    expect::between(name, least, json::count(told, "max_ns")?, most)?;
    let order = ["p50_ns", "p90_ns", "p99_ns", "max_ns"].map(|quantile| told[quantile].as_u64());
    ensure!(order.is_sorted(), "{name} is not in order: {told}");
    let growth = json::number(&measured.after, "block_io.wait_seconds_total")?
        - json::number(&measured.before, "block_io.wait_seconds_total")?;
    let waited_seconds = waited("wait_ns")? as f64 / 1e9;
    ensure!(growth > 0.0 && growth < waited_seconds, "{growth} s of waiting told, {waited_seconds} s waited");
    Ok(())
}

#[test]
fn every_operation_on_a_device_is_exact_by_process_and_by_device() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(16 * MIB)?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workload = warm_workload(&path)?;
    let runs = [
        (format!("direct read {path} {BLOCKS} 4096"), only("read", BLOCKS, BLOCKS * 4096)),
        (format!("direct write {path} 100 16384"), only("write", 100, 100 * 16384)),
        (format!("flush {path} 30"), Stat { flush_ops: 30, ..Stat::default() }),
        (format!("discard {path} 40 65536"), Stat { discard_ops: 40, discard_bytes: 40 * 65536, ..Stat::default() }),
    ];
    for (command, expected) in runs {
        expect::exactly(&command, made_of(&agent, &device, &mut workload, &command)?, expected)?;
    }
    latencies_are_of_all(&agent, workload.pid())?;
    agent.stop()
}

/// Each operation of a process has its time in the queue and in the device, but for what is told as lost.
pub(crate) fn latencies_are_of_all(agent: &Agent, pid: u32) -> Result<()> {
    let (process, lost) = (agent.process(pid)?, lost(agent)?);
    let operations = ["read", "write", "flush", "discard", "other"];
    let counts = operations.iter().map(|o| json::count(&process, &format!("block_io.{o}_ops_total")));
    let all: u64 = counts.sum::<Result<_>>()?;
    for latency in ["queue_latency", "device_latency"] {
        let count = json::count(&process, &format!("block_io.{latency}.count"))?;
        expect::between(latency, all - lost, count, all)?;
    }
    Ok(())
}

/// What a command makes of a device that nobody else uses, by the device as by the process. Made again where a request is told
/// as lost.
pub(crate) fn made_of(agent: &Agent, device: &LoopDevice, workload: &mut Workload, command: &str) -> Result<Stat> {
    for _ in 0..TRIES {
        let watched = Watched::start(agent, device)?;
        let before = Stat::told(&agent.process(workload.pid())?)?;
        workload.run(command)?;
        let (by_kernel, lost) = watched.same_growth()?;
        if lost == 0 {
            let told = Stat::told(&agent.process(workload.pid())?)?.since(&before);
            expect::exactly(command, told, by_kernel)?;
            return Ok(told);
        }
    }
    bail!("{command}: requests were lost in each of {TRIES} tries")
}

#[test]
fn joined_and_split_requests_are_counted_as_the_device_got_them() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(32 * MIB)?;
    // Older kernels join nothing on a loop device by themselves.
    device.set_queue("nomerges", "0")?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workload = warm_workload(&path)?;
    for operation in ["read", "write"] {
        let joined = made_of(&agent, &device, &mut workload, &format!("batch {operation} {path} 32 4096"))?;
        expect::exactly("joined", joined.read_bytes + joined.write_bytes, 32 * 4096)?;
        ensure!(joined.read_ops + joined.write_ops < 32, "nothing was joined: {joined:?}");

        let split = made_of(&agent, &device, &mut workload, &format!("direct {operation} {path} 4 {}", 4 * MIB))?;
        expect::exactly("split", split.read_bytes + split.write_bytes, 16 * MIB)?;
        ensure!(split.read_ops + split.write_ops > 4, "nothing was split: {split:?}");
    }
    agent.stop()
}

/// Runs of one of the agent's programs, while the kernel counts them.
fn runs(agent: &Agent, program: &str) -> Result<u64> {
    let health = agent.get("/v1/health")?;
    let told = json::list(&health, "cost.programs")?.iter().find(|told| told["name"] == program).cloned();
    json::count(&told.with_context(|| format!("no program {program}"))?, "measured_runs")
}

/// A request that was joined to another one vanishes: it must leave the count of the kernel's, and nothing behind in the agent's.
#[test]
fn a_request_that_is_joined_to_another_one_is_counted_with_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(32 * MIB)?;
    device.set_queue("nomerges", "0")?;
    // Without a scheduler requests wait for each other only on their way to the queue.
    device.set_queue("scheduler", "mq-deadline")?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workload = warm_workload(&path)?;
    let _counted = Statistics::start()?;
    let merge =
        if agent.coverage("block_io")?["rung"] == "raw_tracepoint" { "block_io_merge_raw" } else { "block_io_merge" };
    let before = runs(&agent, merge)?;
    for operation in ["read", "write"].repeat(10) {
        let joined = made_of(&agent, &device, &mut workload, &format!("interleaved {operation} {path} 16 4096"))?;
        expect::exactly("joined", joined.read_bytes + joined.write_bytes, 16 * 4096)?;
    }
    agent.settle()?;
    // Older kernels join each block to the request of its neighbour at once: there is none to vanish.
    let vanished = runs(&agent, merge)? - before;
    ensure!(vanished > 0 || kernel_release()? < (5, 16), "no request was joined to another one");
    agent.stop()
}

#[test]
fn what_goes_through_the_page_cache_is_the_writers_when_it_waits_for_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(16 * MIB)?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workload = warm_workload(&path)?;
    let told = made_of(&agent, &device, &mut workload, &format!("buffered {path} {}", 8 * MIB))?;
    expect::exactly("bytes", told.write_bytes, 8 * MIB)?;
    agent.stop()
}

#[test]
fn each_of_several_submitters_is_charged_its_own_whoever_issues() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(16 * MIB)?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workloads = [warm_workload(&path)?, warm_workload(&path)?, warm_workload(&path)?];
    let sizes = [4096, 8192, 12288];
    let told = |workload: &Workload| Stat::told(&agent.process(workload.pid())?);
    for scheduler in ["none", "mq-deadline"] {
        device.set_queue("scheduler", scheduler)?;
        // A request that is merged from those of several is charged to the first.
        device.set_queue("nomerges", "2")?;
        let watched = Watched::start(&agent, &device)?;
        let before: Vec<Stat> = workloads.iter().map(told).collect::<Result<_>>()?;
        for (workload, bytes) in workloads.iter_mut().zip(sizes) {
            workload.send(&format!("direct write {path} {BLOCKS} {bytes}"))?;
        }
        for workload in &mut workloads {
            workload.receive()?;
        }
        let (_, lost) = watched.same_growth()?;
        // A few completions that are not seen; or where a program is preempted in the middle, over which emulated processors
        // take long.
        let bearable = if kernel_release()?.0 >= 7 { 3 * BLOCKS / 10 } else { 3 * BLOCKS / UNSEEN_PART };
        expect::between("lost requests", 0, lost, bearable)?;
        let mut missing = 0;
        for ((workload, before), bytes) in workloads.iter().zip(&before).zip(sizes) {
            let (told, made) = (told(workload)?.since(before), only("write", BLOCKS, BLOCKS * bytes));
            ensure!(told.is_but_for(&made, lost), "{scheduler}: {told:?} and {lost} lost of {made:?}");
            missing += made.write_ops - told.write_ops;
        }
        expect::between("requests that are missing", 0, missing, lost)?;
    }
    agent.stop()
}

#[test]
fn failed_requests_are_counted_as_errors_without_bytes_and_each_is_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = disk::FaultyDisk::new()?;
    let path = device.path().display().to_string();
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    workload.run(&format!("direct read {path} 1 {BLOCK_BYTES}"))?;
    let measured = agent.measure(&mut workload, &format!("direct read {path} 20 {BLOCK_BYTES}"))?;
    expect::exactly("failures of the workload", json::count(&measured.made, "failed")?, 20)?;
    expect::exactly("errors", measured.grown("block_io.errors_total")?, 20)?;
    expect::exactly("requests", grown(&measured)?, only("read", 20, 0))?;
    let told = failed(&agent, workload.pid())?;
    // Before them there is that of the read that warmed the workload up, and those of measurements that were made again.
    let most = if kernel_release()?.0 >= 7 { 1 + 20 * u64::from(TRIES) } else { 21 };
    expect::between("events", 21, told.len() as u64, most)?;
    for (i, event) in told[told.len() - 20..].iter().enumerate() {
        expect::exactly("device", json::text(event, "device")?, device.name())?;
        expect::exactly("operation", json::text(event, "operation")?, "read")?;
        expect::exactly("sector", json::count(event, "sector")?, i as u64 * 2 * BLOCK_BYTES / 512)?;
        ensure!(!json::text(event, "error")?.is_empty(), "no error in {event}");
    }
    agent.stop()
}

fn failed(agent: &Agent, pid: u32) -> Result<Vec<Value>> {
    agent.events(|event| event["event"] == "block_io" && event["pid"] == pid && !event["error"].is_null())
}

#[test]
fn each_slow_request_is_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(MIB)?;
    let agent = Agent::start(&["--set", "block_io.slow=1us"])?;
    let mut workload = Workload::start()?;
    workload.run(&format!("direct write {} 50 8192", device.path().display()))?;
    let of_workload = |event: &Value| {
        event["event"] == "block_io" && event["pid"] == workload.pid() && event["device"] == device.name()
    };
    let told = wait_until("fifty slow requests", PATIENCE, || {
        let told = agent.events(of_workload)?;
        Ok((told.len() >= 50).then_some(told))
    })?;
    expect::exactly("events", told.len(), 50)?;
    for event in &told {
        expect::exactly("bytes", json::count(event, "bytes")?, 8192)?;
        expect::exactly("operation", json::text(event, "operation")?, "write")?;
        ensure!(json::count(event, "queue_ns")? + json::count(event, "device_ns")? >= 1000, "not slow: {event}");
    }
    agent.stop()
}

#[test]
fn a_device_is_told_by_its_name_and_number() -> Result<()> {
    let _machine = Machine::claim()?;
    let device = LoopDevice::new(MIB)?;
    let agent = Agent::start(&[])?;
    Workload::start()?.run(&format!("direct read {} 1 4096", device.path().display()))?;
    agent.settle()?;
    let told = agent.block_device(device.name())?.context("the device is not listed")?;
    let number = fs::read_to_string(format!("/sys/block/{}/dev", device.name()))?;
    expect::exactly("device", json::text(&told, "device")?, number.trim())?;
    agent.stop()
}
