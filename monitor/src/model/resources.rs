//! The numbers of a training loop's resource log, worked out of a snapshot. Here alone, so that the CSV, the block and the
//! alerts agree. Pure.
//!
//! Ratios are 0–1, rates are per second over the last tick. What is not known is none, never zero.

use super::{
    snapshot::{Snapshot, Tree},
    totals::Rates,
    usage::{CpuShares, DiskRates},
};
use crate::{
    reading::{HostMemory, HostReading, Pressure},
    source::Source,
};
use std::sync::Arc;

/// Kinds of disks whose I/O is that of the disks below them once more.
const STACKED: [&str; 6] = ["dm-", "md", "loop", "ram", "zram", "drbd"];

/// A share of the processors' time, all of them together.
pub fn cpu(snapshot: &Snapshot, share: impl Fn(&CpuShares) -> f64) -> Option<f64> {
    snapshot.host_usage.as_ref()?.cpu.as_ref().map(share)
}

/// Share of the processors' time in which they were idle while something waited for a disk.
pub fn io_wait_ratio(snapshot: &Snapshot) -> Option<f64> {
    cpu(snapshot, |shares| shares.iowait)
}

/// Load average over 1, 5 or 15 minutes, by its place in this order.
pub fn load(snapshot: &Snapshot, place: usize) -> Option<f64> {
    host(snapshot)?.load.map(|load| load[place])
}

/// Some of the machine's memory, in bytes.
pub fn memory(snapshot: &Snapshot, bytes: impl Fn(&HostMemory) -> u64) -> Option<f64> {
    host(snapshot)?.memory.as_ref().map(|memory| bytes(memory) as f64)
}

/// All of the machine's memory, in bytes.
pub fn memory_total(snapshot: &Snapshot) -> Option<f64> {
    memory(snapshot, |memory| memory.total_bytes).filter(|total| *total > 0.0)
}

/// What is not available of the machine's memory, to all of it.
pub fn memory_ratio(snapshot: &Snapshot) -> Option<f64> {
    let used = memory(snapshot, HostMemory::used_bytes)?;
    memory_total(snapshot).map(|total| used / total)
}

/// Of the last 10 s, the share in which at least one task waited.
pub fn some(snapshot: &Snapshot, of: impl Fn(&HostReading) -> Option<Pressure>) -> Option<f64> {
    of(host(snapshot)?).map(|pressure| pressure.some.avg10_ratio)
}

/// Of the last 10 s, the share in which all tasks waited.
pub fn full(snapshot: &Snapshot, of: impl Fn(&HostReading) -> Option<Pressure>) -> Option<f64> {
    of(host(snapshot)?).and_then(|pressure| Some(pressure.full?.avg10_ratio))
}

/// The sum over disks that are no other disk's: what goes through a volume or a loop device is in the disk below it, too.
pub fn disks(snapshot: &Snapshot, rate: impl Fn(&DiskRates) -> f64) -> Option<f64> {
    let usage = snapshot.host_usage.as_ref()?;
    let own = |name: &str| !STACKED.iter().any(|stacked| name.starts_with(stacked));
    let disks = usage.reading.disks.iter().zip(&usage.disks).filter(|(disk, _)| own(&disk.name));
    disks.filter_map(|(_, rates)| rates.as_ref().map(&rate)).reduce(|sum, rate| sum + rate)
}

/// A rate of a source that counts, over a tick that was.
pub fn counted(snapshot: &Snapshot, source: Source, rate: impl Fn(&Rates) -> f64) -> Option<f64> {
    (snapshot.coverage.is_live(source) && !snapshot.tick.is_zero()).then(|| rate(&snapshot.host.rates))
}

/// The tree that uses most CPU, with the CPUs it uses: 1 is one whole processor. None where all stand still.
pub fn busiest_tree(snapshot: &Snapshot) -> Option<(&Arc<Tree>, f64)> {
    let cpu = |tree: &Tree| tree.usage.and_then(|usage| usage.cpu_per_second).filter(|cpu| *cpu > 0.0);
    let busy = snapshot.trees.iter().filter_map(|tree| Some((tree, cpu(tree)?)));
    busy.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

fn host(snapshot: &Snapshot) -> Option<&HostReading> {
    snapshot.host_usage.as_ref().map(|usage| &usage.reading)
}
