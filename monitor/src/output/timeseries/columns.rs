//! The columns: names and units of a training loop's resource log, one row a snapshot. Pure.
//!
//! `_percent` and `_pct` are 0–100, `_mb` is 2^20 bytes, `_mbps` is 2^20 bytes per second. A cell is empty where nothing is
//! known.

use crate::{
    gpu::Gpu,
    model::{
        snapshot::{Snapshot, Tree},
        totals::Rates,
        usage::{CpuShares, DiskRates},
    },
    reading::{HostMemory, HostReading, Pressure},
    source::Source,
};
use std::{borrow::Cow, collections::BTreeSet, io, sync::Arc};

const MB: f64 = (1 << 20) as f64;

/// Which columns there are: those of every host, and some for each GPU that was ever seen.
#[derive(Debug)]
pub(super) struct Columns {
    /// The GPU that always has columns comes first in them.
    more_gpus: BTreeSet<u32>,
}

/// The GPU whose columns are there also where there is no GPU.
const FIRST_GPU: u32 = 0;

type OfSnapshot = (&'static str, fn(&Snapshot) -> String);
type OfGpu = (&'static str, fn(&Gpu) -> String);

const BEGIN: &[OfSnapshot] = &[
    ("step", |s| s.step().to_string()),
    ("timestamp", |s| humantime::format_rfc3339_millis(s.time.wall()).to_string()),
];

/// What of the first GPU stands before the host's columns.
const GPU_BEGIN: &[OfGpu] =
    &[("util", |gpu| percent(gpu.utilization_ratio)), ("memory_pct", |gpu| percent(gpu.memory.ratio()))];

const HOST: &[OfSnapshot] = &[
    ("cpu_percent", |s| percent(cpu(s, CpuShares::busy))),
    ("memory_percent", |s| percent(memory(s, |m| m.used_bytes()).zip(memory_total(s)).map(|(used, all)| used / all))),
    ("io_read_rate_mbps", |s| megabytes(disks(s, |disk| disk.read_bytes))),
    ("io_write_rate_mbps", |s| megabytes(disks(s, |disk| disk.write_bytes))),
    ("io_wait_pct", |s| percent(cpu(s, |shares| shares.iowait))),
    ("cpu_user_percent", |s| percent(cpu(s, |shares| shares.user))),
    ("cpu_system_percent", |s| percent(cpu(s, |shares| shares.system))),
    ("load_1m", |s| number(load(s, 0))),
    ("load_5m", |s| number(load(s, 1))),
    ("load_15m", |s| number(load(s, 2))),
    ("memory_system_mb", |s| megabytes(memory_total(s))),
    ("memory_available_mb", |s| megabytes(memory(s, |m| m.available_bytes))),
    ("swap_used_mb", |s| megabytes(memory(s, |m| m.swap_total_bytes.saturating_sub(m.swap_free_bytes)))),
    ("psi_cpu_some_pct", |s| percent(some(s, |host| host.pressure.cpu))),
    ("psi_memory_some_pct", |s| percent(some(s, |host| host.pressure.memory))),
    ("psi_memory_full_pct", |s| percent(full(s, |host| host.pressure.memory))),
    ("psi_io_some_pct", |s| percent(some(s, |host| host.pressure.io))),
    ("psi_io_full_pct", |s| percent(full(s, |host| host.pressure.io))),
    ("page_faults_per_second", |s| number(counted(s, Source::PageFault, |rates| rates.page_faults))),
    ("memory_mapped_rate_mbps", |s| megabytes(counted(s, Source::AddressSpace, |rates| rates.mapped_bytes))),
    ("busiest_tree", |s| busiest_tree(s).map(|tree| text(&tree.command)).unwrap_or_default()),
    ("busiest_tree_pid", |s| busiest_tree(s).map(|tree| tree.root.tgid.0.to_string()).unwrap_or_default()),
    ("busiest_tree_cpu_percent", |s| percent(busiest_tree(s).and_then(|tree| tree.usage?.cpu_per_second))),
    ("busiest_tree_memory_mb", |s| {
        megabytes(busiest_tree(s).and_then(|tree| Some(tree.usage?.resident_bytes? as f64)))
    }),
    ("epoch", |s| s.mark.as_ref().and_then(|mark| mark.epoch).map(|epoch| epoch.to_string()).unwrap_or_default()),
    ("labels", |s| labels(s).map(|labels| text(&labels)).unwrap_or_default()),
];

const GPU_END: &[OfGpu] = &[
    ("memory_used_mb", |gpu| megabytes(gpu.memory.used_bytes.map(|bytes| bytes as f64))),
    ("memory_total_mb", |gpu| megabytes(gpu.memory.total_bytes.map(|bytes| bytes as f64))),
    ("temp_c", |gpu| number(gpu.temperature_celsius.map(f64::from))),
    ("power_w", |gpu| number(gpu.power_watts)),
];

impl Columns {
    /// Those of a host that may have one GPU.
    pub(super) const fn new() -> Self {
        Self { more_gpus: BTreeSet::new() }
    }

    /// Makes room for GPUs not seen before. Columns of one that goes stay, and are empty.
    pub(super) fn widen(&mut self, snapshot: &Snapshot) {
        self.more_gpus.extend(snapshot.gpus.iter().map(|gpu| gpu.index).filter(|index| *index != FIRST_GPU));
    }

    /// The line of their names.
    pub(super) fn header(&self) -> io::Result<Vec<u8>> {
        let plain = |columns: &[OfSnapshot]| columns.iter().map(|(name, _)| Cow::Borrowed(*name)).collect::<Vec<_>>();
        let of_gpu = |index: u32, columns: &[OfGpu]| {
            columns.iter().map(|(name, _)| Cow::Owned(format!("gpu_{index}_{name}"))).collect::<Vec<_>>()
        };
        self.line(plain, of_gpu)
    }

    /// The line of a snapshot.
    pub(super) fn row(&self, snapshot: &Snapshot) -> io::Result<Vec<u8>> {
        let plain = |columns: &[OfSnapshot]| columns.iter().map(|(_, cell)| cell(snapshot).into()).collect::<Vec<_>>();
        let of_gpu = |index: u32, columns: &[OfGpu]| {
            let gpu = snapshot.gpus.iter().find(|gpu| gpu.index == index);
            columns.iter().map(|(_, cell)| gpu.map(|gpu| cell(gpu)).unwrap_or_default().into()).collect::<Vec<_>>()
        };
        self.line(plain, of_gpu)
    }

    /// One line, its cells in the order of the columns.
    fn line<'a>(
        &self,
        plain: impl Fn(&[OfSnapshot]) -> Vec<Cow<'a, str>>,
        of_gpu: impl Fn(u32, &[OfGpu]) -> Vec<Cow<'a, str>>,
    ) -> io::Result<Vec<u8>> {
        let first = [plain(BEGIN), of_gpu(FIRST_GPU, GPU_BEGIN), plain(HOST), of_gpu(FIRST_GPU, GPU_END)];
        let more = self.more_gpus.iter().flat_map(|index| [of_gpu(*index, GPU_BEGIN), of_gpu(*index, GPU_END)]);
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(first.into_iter().chain(more).flatten().map(|cell| cell.into_owned()))?;
        writer.into_inner().map_err(csv::IntoInnerError::into_error)
    }
}

/// A number to three decimals; nothing for what is not known.
fn number(value: Option<f64>) -> String {
    let value = value.filter(|value| value.is_finite());
    // Adding zero turns a negative zero into zero.
    value.map(|value| ((value * 1000.0).round() / 1000.0 + 0.0).to_string()).unwrap_or_default()
}

fn percent(ratio: Option<f64>) -> String {
    number(ratio.map(|ratio| ratio * 100.0))
}

fn megabytes(bytes: Option<f64>) -> String {
    number(bytes.map(|bytes| bytes / MB))
}

/// Text that no spreadsheet takes for a formula (OWASP, "CSV injection"), and that stays on one line.
fn text(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.trim_start().starts_with(['=', '+', '-', '@']) { format!("'{line}") } else { line }
}

fn host(snapshot: &Snapshot) -> Option<&HostReading> {
    snapshot.host_usage.as_ref().map(|usage| &usage.reading)
}

fn cpu(snapshot: &Snapshot, share: impl Fn(&CpuShares) -> f64) -> Option<f64> {
    snapshot.host_usage.as_ref()?.cpu.as_ref().map(share)
}

fn memory(snapshot: &Snapshot, bytes: impl Fn(&HostMemory) -> u64) -> Option<f64> {
    host(snapshot)?.memory.as_ref().map(|memory| bytes(memory) as f64)
}

fn memory_total(snapshot: &Snapshot) -> Option<f64> {
    memory(snapshot, |memory| memory.total_bytes).filter(|total| *total > 0.0)
}

fn load(snapshot: &Snapshot, place: usize) -> Option<f64> {
    host(snapshot)?.load.map(|load| load[place])
}

/// Of the last 10 s, at least one task waited.
fn some(snapshot: &Snapshot, of: impl Fn(&HostReading) -> Option<Pressure>) -> Option<f64> {
    of(host(snapshot)?).map(|pressure| pressure.some.avg10_ratio)
}

/// Of the last 10 s, all tasks waited.
fn full(snapshot: &Snapshot, of: impl Fn(&HostReading) -> Option<Pressure>) -> Option<f64> {
    of(host(snapshot)?).and_then(|pressure| Some(pressure.full?.avg10_ratio))
}

/// The sum over disks that are no other disk's: what goes through a volume or a loop device is in the disk below it, too.
fn disks(snapshot: &Snapshot, rate: impl Fn(&DiskRates) -> f64) -> Option<f64> {
    const STACKED: [&str; 6] = ["dm-", "md", "loop", "ram", "zram", "drbd"];
    let usage = snapshot.host_usage.as_ref()?;
    let own = |name: &str| !STACKED.iter().any(|stacked| name.starts_with(stacked));
    let disks = usage.reading.disks.iter().zip(&usage.disks).filter(|(disk, _)| own(&disk.name));
    disks.filter_map(|(_, rates)| rates.as_ref().map(&rate)).reduce(|sum, rate| sum + rate)
}

/// A rate of a source that counts, over a tick that was.
fn counted(snapshot: &Snapshot, source: Source, rate: impl Fn(&Rates) -> f64) -> Option<f64> {
    (snapshot.coverage.is_live(source) && !snapshot.tick.is_zero()).then(|| rate(&snapshot.host.rates))
}

/// The labels of the last mark, as a JSON object.
fn labels(snapshot: &Snapshot) -> Option<String> {
    serde_json::to_string(snapshot.mark.as_ref()?.labels.as_ref()?).ok()
}

/// The tree that uses most CPU.
pub(super) fn busiest_tree(snapshot: &Snapshot) -> Option<&Arc<Tree>> {
    let cpu = |tree: &Tree| tree.usage.and_then(|usage| usage.cpu_per_second).filter(|cpu| *cpu > 0.0);
    let busy = snapshot.trees.iter().filter_map(|tree| Some((cpu(tree)?, tree)));
    busy.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, tree)| tree)
}
