//! Series of block devices, disks, network interfaces and GPUs. They are counted by the device's own name, so that a
//! counter that is told of only for a while still tells the truth; none is summed into others.

use super::{
    super::{fields::Number, view::Context},
    openmetrics::{Exposition, Kind},
    seconds,
};
use crate::{
    gpu::Gpu,
    model::{
        snapshot::{BlockDevice, Snapshot},
        totals::{BlockIo, Operation},
        usage::HostUsage,
    },
    reading::{DiskReading, InterfaceReading},
    source::Source,
};
use monitor_common::block_io::operation::{DISCARD, FLUSH, OTHER, READ, WRITE};
use std::cmp::Reverse;

/// A number of one kind of item: the family's name, what it is, help, and how it is read.
type Named<T> = (&'static str, Kind, &'static str, fn(&T) -> Number);

static DISK: &[Named<DiskReading>] = &[
    ("monitor_disk_read_bytes", Kind::Counter, "Bytes read since boot.", |d| d.read_bytes.into()),
    ("monitor_disk_written_bytes", Kind::Counter, "Bytes written since boot.", |d| d.write_bytes.into()),
    ("monitor_disk_busy_seconds", Kind::Counter, "Time with a request under way, since boot.", |d| {
        seconds(d.busy_ns).into()
    }),
    ("monitor_disk_requests_in_flight", Kind::Gauge, "Requests under way.", |d| d.in_flight.into()),
];

static INTERFACE: &[Named<InterfaceReading>] = &[
    ("monitor_interface_received_bytes", Kind::Counter, "Bytes received.", |i| i.received_bytes.into()),
    ("monitor_interface_sent_bytes", Kind::Counter, "Bytes sent.", |i| i.sent_bytes.into()),
    ("monitor_interface_received_bad_packets", Kind::Counter, "Packets received in error, or dropped.", |i| {
        i.received_bad.into()
    }),
    ("monitor_interface_sent_bad_packets", Kind::Counter, "Packets not sent: errors and drops.", |i| i.sent_bad.into()),
];

/// The operations, by their numbers.
static OPERATIONS: [(u16, &str); 5] =
    [(READ, "read"), (WRITE, "write"), (FLUSH, "flush"), (DISCARD, "discard"), (OTHER, "other")];

static OPERATION: &[Named<Operation>] = &[
    ("monitor_block_requests", Kind::Counter, "Requests completed, failed ones too.", |o| o.count.into()),
    ("monitor_block_bytes", Kind::Counter, "Bytes of these requests.", |o| o.bytes.into()),
    ("monitor_block_failed_requests", Kind::Counter, "Requests that failed.", |o| o.errors.into()),
    ("monitor_block_wait_seconds", Kind::Counter, "Time from submission to completion, summed over requests.", |o| {
        seconds(o.wait_ns).into()
    }),
];

static GPU: &[Named<Gpu>] = &[
    ("monitor_gpu_up", Kind::Gauge, "Whether the GPU answers: 1 or 0.", |g| u64::from(g.failure.is_none()).into()),
    ("monitor_gpu_utilization_ratio", Kind::Gauge, "Share of the time in which any kernel ran.", |g| {
        real(g.utilization_ratio)
    }),
    ("monitor_gpu_memory_utilization_ratio", Kind::Gauge, "Share of the time in which its memory was in use.", |g| {
        real(g.memory_utilization_ratio)
    }),
    ("monitor_gpu_memory_used_bytes", Kind::Gauge, "Memory allocated.", |g| g.memory.used_bytes.into()),
    ("monitor_gpu_memory_total_bytes", Kind::Gauge, "Memory there is.", |g| g.memory.total_bytes.into()),
    ("monitor_gpu_temperature_celsius", Kind::Gauge, "Temperature of the chip.", |g| {
        g.temperature_celsius.map(u64::from).into()
    }),
    ("monitor_gpu_power_watts", Kind::Gauge, "What it draws.", |g| real(g.power_watts)),
    ("monitor_gpu_power_limit_watts", Kind::Gauge, "The most it may draw.", |g| real(g.power_limit_watts)),
    ("monitor_gpu_sm_clock_hertz", Kind::Gauge, "Clock of its multiprocessors.", |g| g.sm_clock_hertz.into()),
    ("monitor_gpu_memory_clock_hertz", Kind::Gauge, "Clock of its memory.", |g| g.memory_clock_hertz.into()),
];

/// All of them, at most `top` of each kind but GPUs, which are few. Returns how many were left out, by kind.
pub(super) fn write(
    to: &mut Exposition,
    snapshot: &Snapshot,
    context: &Context,
    top: usize,
) -> Vec<(&'static str, usize)> {
    let mut left_out = Vec::new();
    if context.tells(Source::BlockIo, "read_ops_total") {
        left_out.push(("block_device", block_devices(to, snapshot, top)));
    }
    if let Some(usage) = &snapshot.host_usage {
        left_out.push(("disk", disks(to, usage, top)));
        left_out.push(("interface", interfaces(to, usage, top)));
    }
    gpus(to, snapshot);
    left_out
}

/// By the kernel programs' count, those with the most requests.
fn block_devices(to: &mut Exposition, snapshot: &Snapshot, top: usize) -> usize {
    let requests = |device: &BlockDevice| device.subject.totals.block_io.as_deref().map_or(0, BlockIo::count);
    let (chosen, left_out) = largest(snapshot.block_devices.iter().map(|device| &**device), top, requests);
    let operations = || {
        chosen.iter().flat_map(|device| {
            let io = device.subject.totals.block_io.as_deref();
            OPERATIONS.iter().filter_map(move |&(operation, name)| {
                Some((device.name.as_str(), device.id.to_string(), name, &io?.operations[usize::from(operation)]))
            })
        })
    };
    for (name, kind, help, read) in OPERATION {
        let mut family = to.family(name, *kind, help);
        for (device, number, operation, counts) in operations() {
            // Two devices may have had the same name, one after the other.
            family.add(&[("device", device), ("number", &number), ("operation", operation)], read(counts));
        }
    }
    left_out
}

/// By the kernel's own count, those that were busy for longest.
fn disks(to: &mut Exposition, usage: &HostUsage, top: usize) -> usize {
    let (chosen, left_out) = largest(usage.reading.disks.iter(), top, |disk| disk.busy_ns);
    table(to, DISK, "disk", &chosen, |disk| disk.name.clone());
    left_out
}

fn interfaces(to: &mut Exposition, usage: &HostUsage, top: usize) -> usize {
    let moved = |interface: &InterfaceReading| interface.received_bytes.saturating_add(interface.sent_bytes);
    let (chosen, left_out) = largest(usage.reading.interfaces.iter(), top, moved);
    table(to, INTERFACE, "interface", &chosen, |interface| interface.name.clone());
    left_out
}

fn gpus(to: &mut Exposition, snapshot: &Snapshot) {
    let gpus: Vec<&Gpu> = snapshot.gpus.iter().map(|gpu| &**gpu).collect();
    table(to, GPU, "gpu", &gpus, |gpu| gpu.index.to_string());
    let mut info = to.family("monitor_gpu", Kind::Info, "Names of GPUs.");
    for gpu in &gpus {
        let (uuid, name) = (gpu.uuid.as_deref().unwrap_or_default(), gpu.name.as_deref().unwrap_or_default());
        info.tell(&[("gpu", &gpu.index.to_string()), ("uuid", uuid), ("name", name)]);
    }
    instances(to, &gpus);
}

/// Memory of MIG instances; it is in their GPUs' too.
fn instances(to: &mut Exposition, gpus: &[&Gpu]) {
    let instances = || gpus.iter().flat_map(|gpu| gpu.mig.iter().flatten().map(move |instance| (gpu.index, instance)));
    let mut used =
        to.family("monitor_gpu_instance_memory_used_bytes", Kind::Gauge, "Memory allocated of a MIG instance.");
    for (gpu, instance) in instances() {
        used.add(&[("gpu", &gpu.to_string()), ("instance", &instance.index.to_string())], instance.memory.used_bytes);
    }
    let mut total = to.family("monitor_gpu_instance_memory_total_bytes", Kind::Gauge, "Memory of a MIG instance.");
    for (gpu, instance) in instances() {
        total.add(&[("gpu", &gpu.to_string()), ("instance", &instance.index.to_string())], instance.memory.total_bytes);
    }
}

/// A family of each number, with a sample of each item.
fn table<T>(
    to: &mut Exposition,
    table: &'static [Named<T>],
    label: &'static str,
    items: &[&T],
    name_of: impl Fn(&T) -> String,
) {
    for (name, kind, help, read) in table {
        let mut family = to.family(name, *kind, help);
        for item in items {
            family.add(&[(label, &name_of(item))], read(item));
        }
    }
}

/// The `top` largest, and how many are left.
fn largest<'a, T>(items: impl Iterator<Item = &'a T>, top: usize, size: impl Fn(&T) -> u64) -> (Vec<&'a T>, usize) {
    let mut items: Vec<_> = items.collect();
    items.sort_by_key(|item| Reverse(size(item)));
    let left_out = items.len().saturating_sub(top);
    items.truncate(top);
    (items, left_out)
}

fn real(value: Option<f64>) -> Number {
    value.map_or(Number::Missing, Number::Real)
}
