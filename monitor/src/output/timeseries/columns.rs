//! The columns: names and units of a training loop's resource log, one row a snapshot. Pure.
//!
//! `_percent` and `_pct` are 0–100, `_mb` is 2^20 bytes, `_mbps` is 2^20 bytes per second. A cell is empty where nothing is
//! known.

use crate::{
    gpu::Gpu,
    model::{
        resources::{
            busiest_tree, counted, cpu, disks, full, io_wait_ratio, load, memory, memory_ratio, memory_total, some,
        },
        snapshot::Snapshot,
        usage::CpuShares,
    },
    source::Source,
};
use std::{borrow::Cow, collections::BTreeSet, io, str, time::SystemTime};

const MB: f64 = (1 << 20) as f64;

/// Which columns there are: those of every host, and some for each GPU that was ever seen.
#[derive(Debug)]
pub(super) struct Columns {
    /// The GPU that always has columns comes first in them.
    more_gpus: BTreeSet<u32>,
}

/// The GPU whose columns are there also where there is no GPU.
const FIRST_GPU: u32 = 0;

type OfTime = (&'static str, fn(&Snapshot, SystemTime) -> String);
type OfSnapshot = (&'static str, fn(&Snapshot) -> String);
type OfGpu = (&'static str, fn(&Gpu) -> String);

/// What every row begins with; [`time_of`] reads it back.
const BEGIN: &[OfTime] = &[
    ("step", |s, _| s.step().to_string()),
    ("timestamp", |_, time| humantime::format_rfc3339_millis(time).to_string()),
];

/// What of the first GPU stands before the host's columns.
const GPU_BEGIN: &[OfGpu] =
    &[("util", |gpu| percent(gpu.utilization_ratio)), ("memory_pct", |gpu| percent(gpu.memory.ratio()))];

const HOST: &[OfSnapshot] = &[
    ("cpu_percent", |s| percent(cpu(s, CpuShares::busy))),
    ("memory_percent", |s| percent(memory_ratio(s))),
    ("io_read_rate_mbps", |s| megabytes(disks(s, |disk| disk.read_bytes))),
    ("io_write_rate_mbps", |s| megabytes(disks(s, |disk| disk.write_bytes))),
    ("io_wait_pct", |s| percent(io_wait_ratio(s))),
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
    ("busiest_tree", |s| busiest_tree(s).map(|(tree, _)| text(&tree.command)).unwrap_or_default()),
    ("busiest_tree_pid", |s| busiest_tree(s).map(|(tree, _)| tree.root.tgid.0.to_string()).unwrap_or_default()),
    ("busiest_tree_cpu_percent", |s| percent(busiest_tree(s).map(|(_, cpu)| cpu))),
    ("busiest_tree_memory_mb", |s| {
        megabytes(busiest_tree(s).and_then(|(tree, _)| Some(tree.usage?.resident_bytes? as f64)))
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
        self.line(BEGIN.iter().map(|(name, _)| Cow::Borrowed(*name)).collect(), plain, of_gpu)
    }

    /// The line of a snapshot that was taken at `time`.
    pub(super) fn row(&self, snapshot: &Snapshot, time: SystemTime) -> io::Result<Vec<u8>> {
        let plain = |columns: &[OfSnapshot]| columns.iter().map(|(_, cell)| cell(snapshot).into()).collect::<Vec<_>>();
        let of_gpu = |index: u32, columns: &[OfGpu]| {
            let gpu = snapshot.gpus.iter().find(|gpu| gpu.index == index);
            columns.iter().map(|(_, cell)| gpu.map(|gpu| cell(gpu)).unwrap_or_default().into()).collect::<Vec<_>>()
        };
        self.line(BEGIN.iter().map(|(_, cell)| cell(snapshot, time).into()).collect(), plain, of_gpu)
    }

    /// One line, its cells in the order of the columns.
    fn line<'a>(
        &self,
        begin: Vec<Cow<'a, str>>,
        plain: impl Fn(&[OfSnapshot]) -> Vec<Cow<'a, str>>,
        of_gpu: impl Fn(u32, &[OfGpu]) -> Vec<Cow<'a, str>>,
    ) -> io::Result<Vec<u8>> {
        let first = [begin, of_gpu(FIRST_GPU, GPU_BEGIN), plain(HOST), of_gpu(FIRST_GPU, GPU_END)];
        let more = self.more_gpus.iter().flat_map(|index| [of_gpu(*index, GPU_BEGIN), of_gpu(*index, GPU_END)]);
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(first.into_iter().chain(more).flatten().map(|cell| cell.into_owned()))?;
        writer.into_inner().map_err(csv::IntoInnerError::into_error)
    }
}

/// When a row was written, from its beginning; none where it is no row.
pub(super) fn time_of(row: &[u8]) -> Option<SystemTime> {
    let cell = row.split(|byte| *byte == b',').nth(1)?;
    humantime::parse_rfc3339(str::from_utf8(cell).ok()?).ok()
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

/// The labels of the last mark, as a JSON object.
fn labels(snapshot: &Snapshot) -> Option<String> {
    serde_json::to_string(snapshot.mark.as_ref()?.labels.as_ref()?).ok()
}
