//! Disks of known slowness, and who is charged for what is written back later.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, os::fd::AsRawFd, path::Path};
use tests::{Agent, Cgroup, Machine, Workload, disk, expect, json, proc};

const MS: u64 = 1_000_000;
/// What the slow disk takes for each request, and how many requests a second the throttled one serves.
const SLOW_MS: u64 = 20;
const THROTTLED_IOPS: u64 = 10;

#[test]
fn latency_on_a_disk_that_takes_20_ms_is_what_the_caller_measured() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    let path = disk::with_serial("slow")?.display().to_string();
    let made = workload.run(&format!("direct read {path} 40 4096"))?;
    agent.settle()?;
    let name = Path::new(&path).file_name().context("no name")?.to_string_lossy().into_owned();
    let device = agent.block_device(&name)?.context("the disk is not listed")?;
    let median = |latency: &str| json::count(&device, &format!("block_io.{latency}.p50_ns"));
    let (told, measured) = (median("read_latency")?, json::count(&made, "p50_ns")?);
    ensure!(told >= SLOW_MS * MS, "{told} ns, on a disk that takes {SLOW_MS} ms");
    expect::between("read latency", measured - measured / 10 - 2 * MS, told, measured + measured / 10 + 2 * MS)?;
    // Nobody else uses the disk, so nothing waits before it.
    ensure!(median("queue_latency")? < 5 * MS, "queued for {} ns", median("queue_latency")?);
    ensure!(median("device_latency")? >= SLOW_MS * MS, "only {} ns in the device", median("device_latency")?);
    agent.stop()
}

#[test]
fn on_a_throttled_disk_queue_and_device_time_are_told_apart() -> Result<()> {
    let _machine = Machine::claim()?;
    let path = disk::with_serial("throttled")?.display().to_string();
    let name = Path::new(&path).file_name().context("no name")?.to_string_lossy().into_owned();
    // A scheduler keeps what the disk's own short queue does not take.
    fs::write(format!("/sys/block/{name}/queue/scheduler"), "mq-deadline").context("cannot set the scheduler")?;
    let agent = Agent::start(&[])?;
    let alone = one_by_one(&agent, &path)?;
    let median = |told: &Value, latency: &str| json::count(told, &format!("block_io.{latency}.p50_ns"));
    let period = 1000 * MS / THROTTLED_IOPS;
    ensure!(median(&alone, "device_latency")? > period / 2, "the disk is not slow: {alone}");
    ensure!(median(&alone, "queue_latency")? < 5 * MS, "queued though alone: {alone}");

    // Twice as many at a time as the disk takes: the others wait in the scheduler.
    let mut crowd = (0..2 * DISK_QUEUE).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    crowd.iter_mut().try_for_each(|workload| workload.send(&format!("direct read {path} 3 4096")))?;
    let waited: Vec<Value> = crowd.iter_mut().map(Workload::receive).collect::<Result<_>>()?;
    agent.settle()?;
    let (mut queued, mut served) = (0, 0);
    for (workload, waited) in crowd.iter().zip(&waited) {
        let told = agent.process(workload.pid())?;
        let max = |latency: &str| json::count(&told, &format!("block_io.{latency}.max_ns"));
        let (queue, device, longest) = (max("queue_latency")?, max("device_latency")?, json::count(waited, "max_ns")?);
        queued += usize::from(queue > period);
        served += usize::from(device > period);
        // Both are parts of what the caller saw, and together they are that; a sixteenth for the width of a bucket.
        let whole = max("read_latency")?;
        expect::between("all that it waited", longest - longest / 10 - 2 * MS, whole, longest + longest / 16)?;
        ensure!(queue <= whole && device <= whole, "{queue} ns queued, {device} ns in the device of {whole}");
        // The disk has so many at a time and takes one each period: who waits longer waits elsewhere.
        let most = (DISK_QUEUE as u64 + 1) * period;
        ensure!(device <= most + most / 16, "{device} ns in the device, which are {} of its turns", device / period);
    }
    // Who finds a place each time by luck does not queue, or is served at once; of twice as many as there are places, some must.
    ensure!(queued >= DISK_QUEUE, "only {queued} of {} processes queued", crowd.len());
    ensure!(served >= DISK_QUEUE, "only {served} of {} processes waited for the device", crowd.len());
    agent.stop()
}

/// A driver that has no room for a request gives it back, and is handed it again later: it was submitted once, and it is the last
/// time that it is on its way to the device.
#[test]
fn requests_that_the_driver_gives_back_are_counted_once() -> Result<()> {
    const READS: u64 = 10;
    const TRACING: &str = "/sys/kernel/tracing";
    let _machine = Machine::claim()?;
    let path = disk::with_serial("cramped")?.display().to_string();
    let name = Path::new(&path).file_name().context("no name")?.to_string_lossy().into_owned();
    // What the disk does not take waits in a scheduler: the queue's own length is no more than the driver asks for.
    fs::write(format!("/sys/block/{name}/queue/scheduler"), "mq-deadline").context("cannot set the scheduler")?;
    let agent = Agent::start(&[])?;
    let mut crowd = (0..4).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    let event = format!("{TRACING}/events/block/block_rq_requeue/enable");
    fs::write(&event, "1").context("no events of requeued requests")?;
    let before = disk::Stat::of(&name)?;
    crowd.iter_mut().try_for_each(|workload| workload.send(&format!("direct read {path} {READS} 4096")))?;
    let waited: Vec<Value> = crowd.iter_mut().map(Workload::receive).collect::<Result<_>>()?;
    fs::write(&event, "0")?;
    let traced = fs::read_to_string(format!("{TRACING}/trace"))?;
    let requeued = traced.lines().filter(|line| line.contains("block_rq_requeue:")).count();
    ensure!(requeued > 10, "only {requeued} requests were given back:\n{traced}");
    expect::exactly("reads, by /sys", disk::Stat::of(&name)?.since(&before).read_ops, 4 * READS)?;
    // Since Linux 7.0 a program may be skipped, which is told as lost. An I/O whose completion was not seen is counted when its request
    // is used again; one whose submission was not seen is nobody's.
    let mut others = (0..4).map(|_| Workload::start()).collect::<Result<Vec<_>>>()?;
    others.iter_mut().try_for_each(|workload| workload.send(&format!("direct read {path} {READS} 4096")))?;
    others.iter_mut().try_for_each(|workload| workload.receive().map(drop))?;
    agent.settle()?;
    let lost = json::count(&agent.coverage("block_io")?, "lost_total")?;
    ensure!(lost == 0 || proc::kernel_release()?.0 >= 7 && lost < READS, "{lost} are lost");
    for (workload, waited) in crowd.iter().zip(&waited) {
        let told = agent.process(workload.pid())?;
        expect::between("reads", READS.saturating_sub(lost), json::count(&told, "block_io.read_ops_total")?, READS)?;
        // The longest: who begins first or ends last has the disk to itself for a while, so that the middle one may be of either kind.
        // Until its reader ran again, it may have taken a while, too; from its last issue alone it would be a quarter.
        let (all, measured) = (json::count(&told, "block_io.read_latency.max_ns")?, json::count(waited, "max_ns")?);
        expect::between("read latency", measured / 2, all, measured + measured / 16)?;
        // One is served at a time, the others wait; in the device each is for as long as that takes.
        let device = json::count(&told, "block_io.device_latency.p50_ns")?;
        expect::between("time in the device", SLOW_MS * MS, device, 2 * SLOW_MS * MS)?;
        ensure!(all > 2 * device, "{all} ns in all, {device} ns in the device: nothing waited");
    }
    agent.stop()
}

/// Requests that the throttled disk takes at a time (xtask gives it so short a queue).
const DISK_QUEUE: usize = 4;

fn one_by_one(agent: &Agent, path: &str) -> Result<Value> {
    let mut workload = Workload::start()?;
    workload.run(&format!("direct read {path} 15 4096"))?;
    agent.settle()?;
    agent.process(workload.pid())
}

#[test]
fn what_is_written_back_later_is_charged_to_the_cgroup_that_wrote_it() -> Result<()> {
    let _machine = Machine::claim()?;
    const BYTES: u64 = 8 << 20;
    let cgroup = Cgroup::new("writer")?;
    ensure!(cgroup.hierarchy().version_2, "only cgroup v2 keeps track of who made a page dirty");
    let agent = Agent::start(&[])?;
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    let file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    agent.settle()?;
    let written = |agent: &Agent, path: &str| -> Result<u64> {
        let told = agent.cgroup(path)?;
        told.map_or(Ok(0), |told| json::count(&told, "block_io.write_bytes_total"))
    };
    let before = (written(&agent, &cgroup.path())?, written(&agent, "/")?);
    workload.run(&format!("dirty {} {BYTES}", file.path().display()))?;
    // We are in another cgroup, and the pages are written by a worker of the kernel.
    // SAFETY: a descriptor that is open.
    ensure!(unsafe { libc::syncfs(file.as_file().as_raw_fd()) } == 0, "syncfs failed");
    agent.settle()?;
    let by_writer = written(&agent, &cgroup.path())? - before.0;
    let by_all = written(&agent, "/")? - before.1;
    // Beside the data only the file system's own blocks.
    expect::between("bytes charged to the writer", BYTES, by_writer, BYTES + BYTES / 8)?;
    expect::between("bytes of all", by_writer, by_all, BYTES + BYTES / 4)?;
    // The kernel's own account, by cgroup.
    let directory = cgroup.hierarchy().root.join(cgroup.path().trim_start_matches('/'));
    let kernel = io_stat(&directory)?;
    expect::between("bytes, by io.stat", kernel - kernel / 50, by_writer, kernel + kernel / 50)?;
    // Not in its process, though, which did not wait for it.
    let process = agent.process(workload.pid())?;
    expect::exactly("of its process", json::count(&process, "block_io.write_bytes_total")?, 0)?;

    // What it waits for itself is charged to it all the same.
    let path = file.path().display().to_string();
    let measured = agent.measure(&mut workload, &format!("buffered {path} {BYTES}"))?;
    let told = measured.grown("block_io.write_bytes_total")?;
    let of_cgroup = written(&agent, &cgroup.path())? - before.0 - by_writer;
    expect::between("bytes of the process", BYTES * 9 / 10, told, BYTES + BYTES / 8)?;
    let kernel = io_stat(&directory)? - kernel;
    expect::between("bytes of its cgroup", told.max(kernel - kernel / 50), of_cgroup, kernel + kernel / 50)?;
    agent.stop()
}

/// Bytes written, over all devices, in a cgroup's io.stat.
fn io_stat(directory: &Path) -> Result<u64> {
    let text = fs::read_to_string(directory.join("io.stat")).context("no io.stat: the io controller is not on")?;
    let fields = text.split_whitespace().filter_map(|field| field.strip_prefix("wbytes="));
    Ok(fields.filter_map(|bytes| bytes.parse::<u64>().ok()).sum())
}
