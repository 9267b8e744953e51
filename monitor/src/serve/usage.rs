//! JSON names of what is polled: of processes, trees and cgroups as tables, of the machine as one document.

use super::{
    cells::{Cell, Named},
    fields::Number,
    view::Context,
};
use crate::{
    model::{
        snapshot::{Cgroup, Process, Snapshot, Tree},
        usage::{CgroupUsage, CpuShares, DiskRates, HostUsage, InterfaceRates, ProcessUsage, TreeShares, TreeUsage},
    },
    reading::{DiskReading, InterfaceReading, IoReading, MemoryReading, Pressure, Resident, Stall},
    time::BootTime,
};
use serde::Serialize;

/// What /proc tells of a process.
pub(super) static PROCESS: &[Named<Process>] = &[
    ("cpu.seconds_total", |p, _| process(p, |u| real(u.reading.cpu_ns.map(seconds)))),
    ("cpu.per_second", |p, _| process(p, |u| rate(u.cpu_per_second))),
    ("cpu.age_seconds", |p, c| process(p, |u| age(c, u.reading.cpu_ns.and(Some(u.time))))),
    ("memory.resident_bytes", |p, _| resident(p, Resident::total_bytes)),
    ("memory.anon_bytes", |p, _| resident(p, |r| r.anon_bytes)),
    ("memory.file_bytes", |p, _| resident(p, |r| r.file_bytes)),
    ("memory.shmem_bytes", |p, _| resident(p, |r| r.shmem_bytes)),
    ("memory.swap_bytes", |p, _| resident(p, |r| r.swap_bytes)),
    ("memory.proportional_bytes", |p, _| process(p, |u| u.reading.shares.map(|s| s.proportional_bytes).into())),
    ("memory.unique_bytes", |p, _| process(p, |u| u.reading.shares.map(|s| s.unique_bytes).into())),
    ("memory.age_seconds", |p, c| process(p, |u| age(c, u.reading.resident.and(u.full_time)))),
    ("memory.split_age_seconds", |p, c| process(p, |u| age(c, u.reading.shares.and(u.shares_time)))),
    ("threads", |p, _| process(p, |u| Number::Count(u.reading.threads.into()))),
    ("open_files", |p, _| process(p, |u| u.reading.open_files.map(u64::from).into())),
    ("minor_faults_total", |p, _| process(p, |u| Number::Count(u.reading.minor_faults))),
    ("major_faults_total", |p, _| process(p, |u| Number::Count(u.reading.major_faults))),
    ("io_delay_seconds_total", |p, _| process(p, |u| real(u.reading.io_delay_ns.map(seconds)))),
    ("io_delay_ratio", |p, _| process(p, |u| rate(u.io_delay_ratio))),
    ("storage.read_bytes_total", |p, _| process(p, |u| u.reading.storage.map(|s| s.read_bytes).into())),
    ("storage.write_bytes_total", |p, _| process(p, |u| u.reading.storage.map(|s| s.write_bytes).into())),
    ("age_seconds", |p, c| process(p, |u| c.age(u.oldest_time()))),
];

/// Sums over a tree's running processes; its CPU time is also that of those that were in it before.
pub(super) static TREE: &[Named<Tree>] = &[
    ("rule", |t, _| Cell::Text(t.rule)),
    ("workers", |t, _| Number::Count(t.running.saturating_sub(1).into()).into()),
    ("cpu.seconds_total", |t, _| tree(t, |u| real(u.cpu_ns.map(seconds)))),
    ("cpu.per_second", |t, _| tree(t, |u| rate(u.cpu_per_second))),
    ("memory.resident_bytes", |t, _| tree(t, |u| u.resident_bytes.into())),
    ("memory.anon_bytes", |t, _| tree(t, |u| u.anon_bytes.into())),
    ("memory.swap_bytes", |t, _| tree(t, |u| u.swap_bytes.into())),
    ("memory.private_bytes", |t, _| shares(t, |s| s.private_bytes)),
    ("memory.shared_bytes", |t, _| shares(t, |s| s.shared_bytes)),
    ("memory.split_processes", |t, _| shares(t, |s| s.processes.into())),
    ("threads", |t, _| tree(t, |u| Number::Count(u.threads))),
    ("io_delay_ratio", |t, _| tree(t, |u| rate(u.io_delay_ratio))),
    ("age_seconds", |t, c| tree(t, |u| age(c, u.oldest_time))),
];

/// What a cgroup's files tell.
pub(super) static CGROUP: &[Named<Cgroup>] = &[
    ("memory.limit_bytes", |c, _| memory(c, |u, _| u.limit.as_ref().map(|limit| limit.bytes))),
    ("memory.limit_source", |c, _| {
        let limit = c.usage.as_ref().filter(|usage| usage.reading.memory.is_some()).and_then(|u| u.limit.as_ref());
        Cell::Text(limit.map(|limit| limit.source.as_deref().unwrap_or("host")))
    }),
    ("memory.current_bytes", |c, _| memory(c, |_, m| Some(m.current_bytes))),
    ("memory.peak_bytes", |c, _| memory(c, |u, _| u.peak.map(|peak| peak.bytes))),
    ("memory.peak_source", |c, context| {
        let source = |by_kernel| if by_kernel { context.kernels_peak() } else { "observed" };
        Cell::Text(c.usage.as_ref().and_then(|usage| usage.peak).map(|peak| source(peak.by_kernel)))
    }),
    ("memory.tick_peak_bytes", |c, context| {
        // While it is idle nothing is charged to it: what is in use is the peak.
        memory(c, |u, m| if context.is_now(u.time) { m.tick_peak_bytes } else { Some(m.current_bytes) })
    }),
    ("memory.working_set_bytes", |c, _| memory(c, |_, m| m.working_set_bytes())),
    ("memory.anon_bytes", |c, _| memory(c, |_, m| m.anon_bytes)),
    ("memory.file_bytes", |c, _| memory(c, |_, m| m.file_bytes)),
    ("memory.kernel_bytes", |c, _| memory(c, |_, m| m.kernel_bytes)),
    ("memory.slab_bytes", |c, _| memory(c, |_, m| m.slab_bytes)),
    ("memory.swap_bytes", |c, _| memory(c, |_, m| m.swap_bytes)),
    ("memory.events.low", |c, _| memory(c, |_, m| m.events.low)),
    ("memory.events.high", |c, _| memory(c, |_, m| m.events.high)),
    ("memory.events.max", |c, _| memory(c, |_, m| m.events.max)),
    ("memory.events.oom", |c, _| memory(c, |_, m| m.events.oom)),
    ("memory.events.oom_kill", |c, _| memory(c, |_, m| m.events.oom_kill)),
    ("memory.pressure.some.avg10_ratio", |c, _| some(memory_pressure(c), |s| s.avg10_ratio)),
    ("memory.pressure.some.avg60_ratio", |c, _| some(memory_pressure(c), |s| s.avg60_ratio)),
    ("memory.pressure.some.avg300_ratio", |c, _| some(memory_pressure(c), |s| s.avg300_ratio)),
    ("memory.pressure.some.seconds_total", |c, _| some(memory_pressure(c), total_seconds)),
    ("memory.pressure.full.avg10_ratio", |c, _| full(memory_pressure(c), |s| s.avg10_ratio)),
    ("memory.pressure.full.avg60_ratio", |c, _| full(memory_pressure(c), |s| s.avg60_ratio)),
    ("memory.pressure.full.avg300_ratio", |c, _| full(memory_pressure(c), |s| s.avg300_ratio)),
    ("memory.pressure.full.seconds_total", |c, _| full(memory_pressure(c), total_seconds)),
    ("cpu.seconds_total", |c, _| cgroup(c, |u| real(u.reading.cpu_usage_ns.map(seconds)))),
    ("cpu.per_second", |c, _| cgroup(c, |u| rate(u.cpu_per_second))),
    ("cpu.throttled_periods_total", |c, _| cgroup(c, |u| u.reading.throttled.map(|t| t.periods).into())),
    ("cpu.throttled_seconds_total", |c, _| cgroup(c, |u| real(u.reading.throttled.map(|t| seconds(t.time_ns))))),
    ("cpu.pressure.some.avg10_ratio", |c, _| some(cpu_pressure(c), |s| s.avg10_ratio)),
    ("cpu.pressure.some.avg60_ratio", |c, _| some(cpu_pressure(c), |s| s.avg60_ratio)),
    ("cpu.pressure.some.avg300_ratio", |c, _| some(cpu_pressure(c), |s| s.avg300_ratio)),
    ("cpu.pressure.some.seconds_total", |c, _| some(cpu_pressure(c), total_seconds)),
    ("cpu.pressure.full.avg10_ratio", |c, _| full(cpu_pressure(c), |s| s.avg10_ratio)),
    ("cpu.pressure.full.avg60_ratio", |c, _| full(cpu_pressure(c), |s| s.avg60_ratio)),
    ("cpu.pressure.full.avg300_ratio", |c, _| full(cpu_pressure(c), |s| s.avg300_ratio)),
    ("cpu.pressure.full.seconds_total", |c, _| full(cpu_pressure(c), total_seconds)),
    ("io.read_bytes_total", |c, _| io(c, |io| io.read_bytes)),
    ("io.write_bytes_total", |c, _| io(c, |io| io.write_bytes)),
    ("io.read_ops_total", |c, _| io(c, |io| io.read_ops)),
    ("io.write_ops_total", |c, _| io(c, |io| io.write_ops)),
    ("io.pressure.some.avg10_ratio", |c, _| some(io_pressure(c), |s| s.avg10_ratio)),
    ("io.pressure.some.avg60_ratio", |c, _| some(io_pressure(c), |s| s.avg60_ratio)),
    ("io.pressure.some.avg300_ratio", |c, _| some(io_pressure(c), |s| s.avg300_ratio)),
    ("io.pressure.some.seconds_total", |c, _| some(io_pressure(c), total_seconds)),
    ("io.pressure.full.avg10_ratio", |c, _| full(io_pressure(c), |s| s.avg10_ratio)),
    ("io.pressure.full.avg60_ratio", |c, _| full(io_pressure(c), |s| s.avg60_ratio)),
    ("io.pressure.full.avg300_ratio", |c, _| full(io_pressure(c), |s| s.avg300_ratio)),
    ("io.pressure.full.seconds_total", |c, _| full(io_pressure(c), total_seconds)),
    ("age_seconds", |c, context| cgroup(c, |u| context.age(u.time))),
];

fn process(process: &Process, read: impl Fn(&ProcessUsage) -> Number) -> Cell<'static> {
    process.usage.as_ref().map_or(Number::Missing, |usage| read(usage)).into()
}

fn resident(of: &Process, read: impl Fn(&Resident) -> u64) -> Cell<'static> {
    process(of, |usage| usage.reading.resident.as_ref().map(&read).into())
}

fn tree(tree: &Tree, read: impl Fn(&TreeUsage) -> Number) -> Cell<'static> {
    tree.usage.as_ref().map_or(Number::Missing, read).into()
}

fn shares(of: &Tree, read: impl Fn(&TreeShares) -> u64) -> Cell<'static> {
    tree(of, |usage| usage.shares.as_ref().map(&read).into())
}

fn cgroup(cgroup: &Cgroup, read: impl Fn(&CgroupUsage) -> Number) -> Cell<'static> {
    cgroup.usage.as_ref().map_or(Number::Missing, |usage| read(usage)).into()
}

fn memory(of: &Cgroup, read: impl Fn(&CgroupUsage, &MemoryReading) -> Option<u64>) -> Cell<'static> {
    cgroup(of, |usage| usage.reading.memory.as_ref().and_then(|memory| read(usage, memory)).into())
}

/// Over all devices; the kernel lists none before their first I/O.
fn io(of: &Cgroup, read: impl Fn(&IoReading) -> u64) -> Cell<'static> {
    cgroup(of, |usage| usage.reading.io.as_ref().map(|devices| devices.iter().map(&read).sum()).into())
}

fn memory_pressure(cgroup: &Cgroup) -> Option<Pressure> {
    cgroup.usage.as_ref()?.reading.pressure.memory
}

fn cpu_pressure(cgroup: &Cgroup) -> Option<Pressure> {
    cgroup.usage.as_ref()?.reading.pressure.cpu
}

fn io_pressure(cgroup: &Cgroup) -> Option<Pressure> {
    cgroup.usage.as_ref()?.reading.pressure.io
}

fn some(pressure: Option<Pressure>, read: fn(&Stall) -> f64) -> Cell<'static> {
    rate(pressure.map(|pressure| read(&pressure.some))).into()
}

fn full(pressure: Option<Pressure>, read: fn(&Stall) -> f64) -> Cell<'static> {
    rate(pressure.and_then(|pressure| pressure.full).map(|stall| read(&stall))).into()
}

fn total_seconds(stall: &Stall) -> f64 {
    stall.total_us as f64 / 1e6
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn rate(value: Option<f64>) -> Number {
    value.map_or(Number::Missing, Number::Rate)
}

fn age(context: &Context, read_at: Option<BootTime>) -> Number {
    read_at.map_or(Number::Missing, |time| context.age(time))
}

fn real(value: Option<f64>) -> Number {
    value.map_or(Number::Missing, Number::Real)
}

/// The machine, as it publishes itself.
#[derive(Serialize)]
pub(super) struct HostView {
    cpu: Option<SharesView>,
    cpus: Option<Vec<ProcessorView>>,
    load: Option<LoadView>,
    memory: Option<MemoryView>,
    pressure: PressuresView,
    disks: Option<Vec<DiskView>>,
    interfaces: Option<Vec<InterfaceView>>,
}

#[derive(Serialize)]
struct SharesView {
    busy_ratio: Number,
    user_ratio: Number,
    system_ratio: Number,
    iowait_ratio: Number,
    steal_ratio: Number,
    idle_ratio: Number,
}

#[derive(Serialize)]
struct ProcessorView {
    cpu: u32,
    #[serde(flatten)]
    shares: Option<SharesView>,
}

#[derive(Serialize)]
struct LoadView {
    one_minute: f64,
    five_minutes: f64,
    fifteen_minutes: f64,
}

#[derive(Serialize)]
struct MemoryView {
    total_bytes: u64,
    used_bytes: u64,
    used_ratio: Number,
    available_bytes: u64,
    free_bytes: u64,
    anon_bytes: u64,
    buffers_bytes: u64,
    cached_bytes: u64,
    shmem_bytes: u64,
    slab_bytes: u64,
    dirty_bytes: u64,
    swap_total_bytes: u64,
    swap_used_bytes: u64,
}

#[derive(Serialize)]
struct PressuresView {
    cpu: Option<PressureView>,
    memory: Option<PressureView>,
    io: Option<PressureView>,
}

#[derive(Serialize)]
struct PressureView {
    some: StallView,
    full: Option<StallView>,
}

#[derive(Serialize)]
struct StallView {
    avg10_ratio: Number,
    avg60_ratio: Number,
    avg300_ratio: Number,
    seconds_total: f64,
}

#[derive(Serialize)]
struct DiskView {
    name: String,
    utilization_ratio: Number,
    read_bytes_per_second: Number,
    write_bytes_per_second: Number,
    ops_per_second: Number,
    in_flight: u64,
    read_ops_total: u64,
    read_bytes_total: u64,
    write_ops_total: u64,
    write_bytes_total: u64,
    busy_seconds_total: f64,
    wait_seconds_total: f64,
}

#[derive(Serialize)]
struct InterfaceView {
    name: String,
    received_bytes_per_second: Number,
    sent_bytes_per_second: Number,
    received_bytes_total: u64,
    received_packets_total: u64,
    received_bad_packets_total: u64,
    sent_bytes_total: u64,
    sent_packets_total: u64,
    sent_bad_packets_total: u64,
}

impl HostView {
    /// Of a snapshot; none where nothing of it is polled.
    pub(super) fn of(snapshot: &Snapshot) -> Option<Self> {
        snapshot.host_usage.as_deref().map(Self::from)
    }
}

impl From<&HostUsage> for HostView {
    fn from(usage: &HostUsage) -> Self {
        let reading = &usage.reading;
        let processor =
            |&(cpu, shares): &(u32, Option<CpuShares>)| ProcessorView { cpu, shares: shares.map(SharesView::from) };
        let disks = reading.disks.iter().zip(&usage.disks);
        let interfaces = reading.interfaces.iter().zip(&usage.interfaces);
        Self {
            cpu: usage.cpu.map(SharesView::from),
            cpus: list(usage.cpus.iter().map(processor)),
            load: reading.load.map(|[one_minute, five_minutes, fifteen_minutes]| LoadView {
                one_minute,
                five_minutes,
                fifteen_minutes,
            }),
            memory: reading.memory.map(|memory| MemoryView {
                total_bytes: memory.total_bytes,
                used_bytes: memory.used_bytes(),
                used_ratio: Number::Rate(memory.used_bytes() as f64 / memory.total_bytes.max(1) as f64),
                available_bytes: memory.available_bytes,
                free_bytes: memory.free_bytes,
                anon_bytes: memory.anon_bytes,
                buffers_bytes: memory.buffers_bytes,
                cached_bytes: memory.cached_bytes,
                shmem_bytes: memory.shmem_bytes,
                slab_bytes: memory.slab_bytes,
                dirty_bytes: memory.dirty_bytes,
                swap_total_bytes: memory.swap_total_bytes,
                swap_used_bytes: memory.swap_total_bytes.saturating_sub(memory.swap_free_bytes),
            }),
            pressure: PressuresView {
                cpu: reading.pressure.cpu.map(PressureView::from),
                memory: reading.pressure.memory.map(PressureView::from),
                io: reading.pressure.io.map(PressureView::from),
            },
            disks: list(disks.map(|(disk, rates)| DiskView::of(disk, |read| rate(rates.as_ref().map(read))))),
            interfaces: list(interfaces.map(|(i, rates)| InterfaceView::of(i, |read| rate(rates.as_ref().map(read))))),
        }
    }
}

/// A list that is empty was not read.
fn list<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    Some(items.collect::<Vec<T>>()).filter(|list| !list.is_empty())
}

impl DiskView {
    fn of(disk: &DiskReading, rate: impl Fn(fn(&DiskRates) -> f64) -> Number) -> Self {
        Self {
            name: disk.name.clone(),
            utilization_ratio: rate(|r| r.utilization),
            read_bytes_per_second: rate(|r| r.read_bytes),
            write_bytes_per_second: rate(|r| r.write_bytes),
            ops_per_second: rate(|r| r.ops),
            in_flight: disk.in_flight,
            read_ops_total: disk.read_ops,
            read_bytes_total: disk.read_bytes,
            write_ops_total: disk.write_ops,
            write_bytes_total: disk.write_bytes,
            busy_seconds_total: seconds(disk.busy_ns),
            wait_seconds_total: seconds(disk.wait_ns),
        }
    }
}

impl InterfaceView {
    fn of(interface: &InterfaceReading, rate: impl Fn(fn(&InterfaceRates) -> f64) -> Number) -> Self {
        Self {
            name: interface.name.clone(),
            received_bytes_per_second: rate(|r| r.received_bytes),
            sent_bytes_per_second: rate(|r| r.sent_bytes),
            received_bytes_total: interface.received_bytes,
            received_packets_total: interface.received_packets,
            received_bad_packets_total: interface.received_bad,
            sent_bytes_total: interface.sent_bytes,
            sent_packets_total: interface.sent_packets,
            sent_bad_packets_total: interface.sent_bad,
        }
    }
}

impl From<CpuShares> for SharesView {
    fn from(shares: CpuShares) -> Self {
        Self {
            busy_ratio: Number::Rate(shares.busy()),
            user_ratio: Number::Rate(shares.user),
            system_ratio: Number::Rate(shares.system),
            iowait_ratio: Number::Rate(shares.iowait),
            steal_ratio: Number::Rate(shares.steal),
            idle_ratio: Number::Rate(shares.idle),
        }
    }
}

impl From<Pressure> for PressureView {
    fn from(pressure: Pressure) -> Self {
        Self { some: pressure.some.into(), full: pressure.full.map(StallView::from) }
    }
}

impl From<Stall> for StallView {
    fn from(stall: Stall) -> Self {
        Self {
            avg10_ratio: Number::Rate(stall.avg10_ratio),
            avg60_ratio: Number::Rate(stall.avg60_ratio),
            avg300_ratio: Number::Rate(stall.avg300_ratio),
            seconds_total: total_seconds(&stall),
        }
    }
}
