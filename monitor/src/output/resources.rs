//! The block of a training loop's resource log: GPUs, processors, memory, disks, and what is out of the ordinary, in the form of
//! the training document. Pure: text out of a snapshot.
//!
//! `MB` is 2^20 bytes. What is not known is `n/a`, never 0.

use super::text::fit;
use crate::{
    config::Thresholds,
    detect,
    gpu::Gpu,
    mark::Mark,
    model::{
        resources::{busiest_tree, cpu, disks, io_wait_ratio, memory, memory_ratio, memory_total},
        snapshot::Snapshot,
        usage::CpuShares,
    },
};

const MB: f64 = (1 << 20) as f64;
/// Stands where nothing is known.
const UNKNOWN: &str = "n/a";
/// Columns that a process's name may take: the kernel keeps 15 bytes of it.
const NAME_WIDTH: usize = 16;

/// The block of a snapshot, with alerts where there are any. Its lines end; none is empty but the one before the alerts.
pub(super) fn render(snapshot: &Snapshot, thresholds: &Thresholds) -> String {
    let mut lines = vec![head(snapshot)];
    lines.extend(gpus(snapshot));
    lines.extend([processors(snapshot), memory_line(snapshot), storage(snapshot)]);
    let alerts = detect::exceeded(snapshot, thresholds);
    if !alerts.is_empty() {
        lines.extend([String::new(), "[Resources] ⚠️ ALERTS:".to_owned()]);
        lines.extend(alerts.iter().map(|alert| format!("  - {alert}")));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Where the training loop is, by its last mark; without one the number of the tick. Then the time.
fn head(snapshot: &Snapshot) -> String {
    let time = humantime::format_rfc3339_seconds(snapshot.time.wall());
    let place = match snapshot.mark.as_deref() {
        Some(&Mark { step: Some(step), epoch: Some(epoch), .. }) => format!("Batch {step}: epoch {epoch}, {time}"),
        Some(&Mark { step: Some(step), .. }) => format!("Batch {step}: {time}"),
        Some(&Mark { epoch: Some(epoch), .. }) => format!("Epoch {epoch}: {time}"),
        _ => format!("Tick {}: {time}", snapshot.number),
    };
    format!("[Resources] {place}")
}

fn gpus(snapshot: &Snapshot) -> Vec<String> {
    if snapshot.gpus.is_empty() {
        return vec![format!("  GPU: {UNKNOWN}")];
    }
    snapshot.gpus.iter().map(|gpu| gpu_line(gpu)).collect()
}

fn gpu_line(gpu: &Gpu) -> String {
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    format!(
        "  GPU {}: {} util, {} MB ({}), {}",
        gpu.index,
        percent(gpu.utilization_ratio),
        of_all(bytes(gpu.memory.used_bytes), bytes(gpu.memory.total_bytes)),
        whole_percent(gpu.memory.ratio()),
        known(gpu.temperature_celsius, |celsius| format!("{celsius}°C")),
    )
}

/// Processors, and of them the process tree that uses them most, of which 100 % is one processor.
fn processors(snapshot: &Snapshot) -> String {
    let busiest = busiest_tree(snapshot);
    let name = busiest.map(|(tree, _)| format!(", {} {}", fit(&tree.command, NAME_WIDTH), tree.root.tgid));
    let all = percent(cpu(snapshot, CpuShares::busy));
    format!("  CPU: {all} (process: {}{})", percent(busiest.map(|(_, cpu)| cpu)), name.unwrap_or_default())
}

fn memory_line(snapshot: &Snapshot) -> String {
    let available = of_all(memory(snapshot, |memory| memory.available_bytes), memory_total(snapshot));
    format!("  Memory: {available} MB available ({} used)", whole_percent(memory_ratio(snapshot)))
}

fn storage(snapshot: &Snapshot) -> String {
    let rate = |bytes: Option<f64>| known(bytes, |bytes| format!("{:.1} MB/s", bytes / MB));
    let (read, written) =
        (rate(disks(snapshot, |disk| disk.read_bytes)), rate(disks(snapshot, |disk| disk.write_bytes)));
    format!("  I/O: Read {read}, Write {written}, Wait {}", percent(io_wait_ratio(snapshot)))
}

fn known<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), show)
}

fn percent(ratio: Option<f64>) -> String {
    known(ratio, |ratio| format!("{:.1}%", ratio * 100.0))
}

fn whole_percent(ratio: Option<f64>) -> String {
    known(ratio, |ratio| format!("{:.0}%", ratio * 100.0))
}

/// Some of all, in megabytes: "8192/16384".
fn of_all(some: Option<f64>, all: Option<f64>) -> String {
    let megabytes = |bytes| known(bytes, |bytes: f64| format!("{:.0}", bytes / MB));
    if some.or(all).is_none() { UNKNOWN.to_owned() } else { format!("{}/{}", megabytes(some), megabytes(all)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        gpu::GpuMemory,
        model::{
            snapshot::Tree,
            usage::{DiskRates, HostUsage, TreeUsage},
        },
        reading::{DiskReading, HostMemory, HostReading},
        serve::fixtures,
    };
    use std::sync::Arc;

    /// The machine of the training document.
    fn snapshot() -> Snapshot {
        let snapshot = fixtures::snapshot();
        let memory = GpuMemory { used_bytes: Some(8192 << 20), total_bytes: Some(16384 << 20) };
        let gpu = Gpu { utilization_ratio: Some(0.873), memory, temperature_celsius: Some(72), ..Gpu::default() };
        let memory = HostMemory { total_bytes: 16384 << 20, available_bytes: 8192 << 20, ..HostMemory::default() };
        let disk = |name: &str| DiskReading { name: name.to_owned(), ..DiskReading::default() };
        let rates = Some(DiskRates { read_bytes: 75.2 * MB, write_bytes: 6.3 * MB, ..DiskRates::default() });
        let cpu = CpuShares { user: 0.40, system: 0.052, iowait: 0.053, idle: 0.495, ..CpuShares::default() };
        // What goes through the volume is in the disk below it.
        let disks = vec![disk("nvme0n1"), disk("dm-0")];
        let reading = HostReading { memory: Some(memory), disks, ..HostReading::default() };
        let host = HostUsage { reading, cpu: Some(cpu), disks: vec![rates, rates], ..HostUsage::default() };
        let usage = Some(TreeUsage { cpu_per_second: Some(1.805), ..TreeUsage::default() });
        let tree = Tree { usage, ..(*snapshot.trees[0]).clone() };
        let mark = Mark { step: Some(50), ..Mark::default() };
        Snapshot {
            mark: Some(Arc::new(mark)),
            gpus: vec![Arc::new(gpu)],
            host_usage: Some(Arc::new(host)),
            trees: vec![Arc::new(tree)],
            ..snapshot
        }
    }

    /// The block, with the time, which is that of the machine the test runs on, as TIME.
    fn block(snapshot: &Snapshot) -> String {
        let text = render(snapshot, &Config::default().thresholds);
        let (head, rest) = text.split_once('\n').unwrap();
        let (place, time) = head.rsplit_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{head}");
        format!("{place} TIME\n{rest}")
    }

    #[test]
    fn it_has_the_documents_form() {
        let expected = "\
[Resources] Batch 50: TIME
  GPU 0: 87.3% util, 8192/16384 MB (50%), 72°C
  CPU: 45.2% (process: 180.5%, python3 10)
  Memory: 8192/16384 MB available (50% used)
  I/O: Read 75.2 MB/s, Write 6.3 MB/s, Wait 5.3%
";
        assert_eq!(block(&snapshot()), expected);
    }

    #[test]
    fn alerts_follow_in_a_block_of_their_own() {
        let mut snapshot = snapshot();
        let gpu = Gpu { utilization_ratio: Some(0.423), ..(*snapshot.gpus[0]).clone() };
        snapshot.gpus.push(Arc::new(Gpu { index: 1, ..gpu }));
        let mut host = (**snapshot.host_usage.as_ref().unwrap()).clone();
        host.reading.memory.as_mut().unwrap().available_bytes = 1294 << 20;
        snapshot.host_usage = Some(Arc::new(host));
        let expected = "\
[Resources] Batch 50: TIME
  GPU 0: 87.3% util, 8192/16384 MB (50%), 72°C
  GPU 1: 42.3% util, 8192/16384 MB (50%), 72°C
  CPU: 45.2% (process: 180.5%, python3 10)
  Memory: 1294/16384 MB available (92% used)
  I/O: Read 75.2 MB/s, Write 6.3 MB/s, Wait 5.3%

[Resources] ⚠️ ALERTS:
  - GPU 1 underutilized: 42.3% (threshold: 50%)
  - High memory usage: 92.1% (threshold: 90%)
";
        assert_eq!(block(&snapshot), expected);
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let nothing = Snapshot { gpus: Vec::new(), ..fixtures::snapshot() };
        let expected = "\
[Resources] Tick 72: TIME
  GPU: n/a
  CPU: n/a (process: n/a)
  Memory: n/a MB available (n/a used)
  I/O: Read n/a, Write n/a, Wait n/a
";
        assert_eq!(block(&nothing), expected);
        let lost = Gpu { index: 3, failure: Some("fell off the bus".to_owned()), ..Gpu::default() };
        assert_eq!(gpu_line(&lost), "  GPU 3: n/a util, n/a MB (n/a), n/a");
    }

    #[test]
    fn the_head_tells_what_the_mark_does() {
        let place = |step, epoch| {
            let mark = Some(Arc::new(Mark { step, epoch, ..Mark::default() }));
            block(&Snapshot { mark, ..snapshot() }).lines().next().unwrap().to_owned()
        };
        assert_eq!(place(Some(50), Some(2)), "[Resources] Batch 50: epoch 2, TIME");
        assert_eq!(place(None, Some(2)), "[Resources] Epoch 2: TIME");
        assert_eq!(place(None, None), "[Resources] Tick 72: TIME");
    }

    #[test]
    fn names_move_no_cursor() {
        let mut snapshot = snapshot();
        let tree = Tree { command: "a\x1b[2J\nb".to_owned(), ..(*snapshot.trees[0]).clone() };
        snapshot.trees[0] = Arc::new(tree);
        assert!(block(&snapshot).contains("(process: 180.5%, a?[2J?b 10)"), "{}", block(&snapshot));
    }
}
