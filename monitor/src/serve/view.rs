//! Gives snapshots their JSON names: the contract with every client.
//!
//! Views borrow from the snapshot and are written straight into the answer.

use super::{
    cells::{self, Cells},
    fields::{ADDRESS_SPACE, BLOCK_IO, Group, Groups, Named, Number, PAGE_FAULTS, REQUESTS, RESIDENT},
    health::{CostView, CoverageView},
    usage::{self, HostView},
};
use crate::{
    coverage::State,
    gpu::GpuStanding,
    ids::{CgroupId, Tgid},
    mark::Mark,
    model::{
        container::{self, Container},
        snapshot::{BlockDevice, Cgroup, Process, ProcessState, Snapshot, Subject, Tree},
    },
    sample::Runtime,
    source::Source,
    time::BootTime,
};
use serde::Serialize;
use std::sync::Arc;

/// What must be known of a snapshot to show a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    live: [bool; Source::ALL.len()],
    cannot_tell: [&'static [&'static str]; Source::ALL.len()],
    error_bytes: [Option<u64>; Source::ALL.len()],
    has_rates: bool,
    hierarchy: &'static str,
    /// When the snapshot was taken.
    pub(super) time: BootTime,
}

impl Context {
    /// Of a snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let (mut live, mut cannot_tell) = ([false; Source::ALL.len()], [&[][..]; Source::ALL.len()]);
        let mut error_bytes = [None; Source::ALL.len()];
        for coverage in &snapshot.coverage.0 {
            error_bytes[coverage.source as usize] = coverage.error_bytes;
            live[coverage.source as usize] = coverage.state == State::Live;
            cannot_tell[coverage.source as usize] = coverage.cannot_tell;
        }
        Self {
            live,
            cannot_tell,
            error_bytes,
            has_rates: !snapshot.tick.is_zero(),
            hierarchy: snapshot.hierarchy,
            time: snapshot.time,
        }
    }

    /// Whether a source counts, and counts this number of its.
    pub(super) fn tells(&self, source: Source, number: &str) -> bool {
        self.live[source as usize] && !self.cannot_tell[source as usize].iter().any(|begin| number.starts_with(begin))
    }

    /// How long before the snapshot something was read.
    pub(super) fn age(&self, read_at: BootTime) -> Number {
        Number::Rate(self.time.since(read_at).as_secs_f64())
    }

    /// Whether something was read for this very snapshot.
    pub(super) fn is_now(&self, read_at: BootTime) -> bool {
        read_at == self.time
    }

    /// The file that the kernel tells a cgroup's peak by.
    pub(super) fn kernels_peak(&self) -> &'static str {
        if self.hierarchy == "v2" { "memory.peak" } else { "memory.max_usage_in_bytes" }
    }

    /// So many errors of one of a source's numbers of bytes.
    pub(super) fn error(&self, source: Source, errors: Number) -> Number {
        match (self.error_bytes[source as usize], errors) {
            (Some(bytes), Number::Count(errors)) => Number::Count(bytes.saturating_mul(errors)),
            _ => Number::Missing,
        }
    }

    /// The number, unless it is a rate and there was nothing to compare with yet.
    pub(super) const fn known(&self, number: Number) -> Number {
        match number {
            Number::Rate(_) if !self.has_rates => Number::Missing,
            number => number,
        }
    }
}

/// A kind of item that comes in lists.
pub(super) trait Listed: Send + Sync + Sized + 'static {
    /// The field that holds the list.
    const NAME: &'static str;
    /// The item's own numbers, besides its groups'.
    const NUMBERS: &'static [Named<Self>];
    /// What is polled of it.
    const CELLS: &'static [cells::Named<Self>] = &[];
    /// Its groups of counters.
    const GROUPS: &'static [&'static Group];

    /// All of a snapshot.
    fn all(snapshot: &Snapshot) -> &[Arc<Self>];
    /// What is counted of it.
    fn subject(&self) -> &Subject;
    /// Whether there is anything to list, for kinds that are no source's.
    fn standing(_snapshot: &Snapshot) -> Option<&GpuStanding> {
        None
    }

    /// Adds it to `out` as JSON.
    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()>;

    /// Its groups, ready to be written.
    fn groups(&self, context: Context) -> Groups<'_> {
        Groups { groups: Self::GROUPS, subject: self.subject(), context }
    }
}

const ALL_GROUPS: &[&Group] = &[&PAGE_FAULTS, &ADDRESS_SPACE, &BLOCK_IO, &REQUESTS];
/// Of processes, and what consists of processes.
const PROCESS_GROUPS: &[&Group] = &[&PAGE_FAULTS, &ADDRESS_SPACE, &BLOCK_IO, &REQUESTS, &RESIDENT];

/// The container, systemd unit and slice of a cgroup.
#[derive(Serialize)]
struct PlaceView<'a> {
    container: Option<ContainerView<'a>>,
    unit: Option<&'a str>,
    slice: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct ContainerView<'a> {
    id: &'a str,
    runtime: Option<&'static str>,
    name: Option<&'a str>,
    pod: Option<&'a str>,
    namespace: Option<&'a str>,
    pod_uid: Option<&'a str>,
    image: Option<&'a str>,
}

impl<'a> PlaceView<'a> {
    fn of(path: Option<&'a str>, container: Option<&'a Container>) -> Self {
        Self {
            container: container.map(ContainerView::of),
            unit: path.and_then(container::unit),
            slice: path.and_then(container::slice),
        }
    }
}

impl<'a> ContainerView<'a> {
    pub(super) fn of(container: &'a Container) -> Self {
        Self {
            id: &container.id,
            runtime: container.runtime.map(Runtime::name),
            name: container.name.as_deref(),
            pod: container.pod.as_deref(),
            namespace: container.namespace.as_deref(),
            pod_uid: container.pod_uid.as_deref(),
            image: container.image.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct ProcessView<'a> {
    pid: Tgid,
    parent_pid: Option<Tgid>,
    start_time_ns: u64,
    command: &'a str,
    command_line: &'a str,
    cgroup: Option<&'a str>,
    cgroup_id: Option<CgroupId>,
    #[serde(flatten)]
    place: PlaceView<'a>,
    tree: Tgid,
    state: &'static str,
    exit_code: Option<u8>,
    exit_signal: Option<u8>,
    oom_killed: bool,
    exited_time_ns: Option<BootTime>,
    gpu_memory_bytes: Option<u64>,
    #[serde(flatten)]
    cells: Cells<'a, Process>,
    #[serde(flatten)]
    groups: Groups<'a>,
}

impl Listed for Process {
    const NAME: &'static str = "processes";
    const NUMBERS: &'static [Named<Self>] = &[
        ("pid", |p| Number::Count(p.id.tgid.0.into())),
        ("parent_pid", |p| p.parent.map(|parent| parent.0.into()).into()),
        ("start_time_ns", |p| Number::Count(p.id.start_ns)),
        ("cgroup_id", |p| known_id(p.cgroup).map(|id| id.0).into()),
        ("tree", |p| Number::Count(p.tree.tgid.0.into())),
        ("gpu_memory_bytes", |p| p.subject.gpu_memory_bytes.into()),
        ("exited_time_ns", |p| End::of(p.state).time.map(|time| time.0).into()),
    ];
    const CELLS: &'static [cells::Named<Self>] = usage::PROCESS;
    const GROUPS: &'static [&'static Group] = PROCESS_GROUPS;

    fn all(snapshot: &Snapshot) -> &[Arc<Self>] {
        &snapshot.processes
    }

    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let end = End::of(self.state);
        let view = ProcessView {
            pid: self.id.tgid,
            parent_pid: self.parent,
            start_time_ns: self.id.start_ns,
            command: &self.command,
            command_line: &self.command_line,
            cgroup: self.cgroup_path.as_deref(),
            cgroup_id: known_id(self.cgroup),
            place: PlaceView::of(self.cgroup_path.as_deref(), self.container.as_deref()),
            tree: self.tree.tgid,
            state: if end.time.is_some() { "exited" } else { "running" },
            exit_code: end.code,
            exit_signal: end.signal,
            oom_killed: end.oom_killed,
            exited_time_ns: end.time,
            cells: Cells::new(Self::CELLS, self, &context),
            gpu_memory_bytes: self.subject.gpu_memory_bytes,
            groups: self.groups(context),
        };
        serde_json::to_writer(out, &view)
    }
}

/// How a process ended; nothing for one that runs.
#[derive(Default)]
struct End {
    time: Option<BootTime>,
    code: Option<u8>,
    signal: Option<u8>,
    oom_killed: bool,
}

impl End {
    fn of(state: ProcessState) -> Self {
        let ProcessState::Exited { time, wait_status, oom_killed } = state else { return Self::default() };
        // wait(2): exit code << 8 | signal, with 0x80 for a core dump.
        let signal = wait_status.map(|status| (status & 0x7f) as u8).filter(|&signal| signal != 0);
        let code = wait_status.filter(|_| signal.is_none()).map(|status| (status >> 8) as u8);
        Self { time: Some(time), code, signal, oom_killed }
    }
}

#[derive(Serialize)]
struct TreeView<'a> {
    pid: Tgid,
    start_time_ns: u64,
    command: &'a str,
    command_line: &'a str,
    cgroup: Option<&'a str>,
    cgroup_id: Option<CgroupId>,
    #[serde(flatten)]
    place: PlaceView<'a>,
    processes_running: u32,
    processes_exited_total: u64,
    mark: Option<&'a Mark>,
    gpu_memory_bytes: Option<u64>,
    #[serde(flatten)]
    cells: Cells<'a, Tree>,
    #[serde(flatten)]
    groups: Groups<'a>,
}

impl Listed for Tree {
    const NAME: &'static str = "trees";
    const NUMBERS: &'static [Named<Self>] = &[
        ("pid", |t| Number::Count(t.root.tgid.0.into())),
        ("start_time_ns", |t| Number::Count(t.root.start_ns)),
        ("cgroup_id", |t| known_id(t.cgroup).map(|id| id.0).into()),
        ("processes_running", |t| Number::Count(t.running.into())),
        ("processes_exited_total", |t| Number::Count(t.exited_total)),
        ("mark.step", |t| t.mark.as_ref().and_then(|mark| mark.step).into()),
        ("mark.epoch", |t| t.mark.as_ref().and_then(|mark| mark.epoch).into()),
        ("gpu_memory_bytes", |t| t.subject.gpu_memory_bytes.into()),
    ];
    const CELLS: &'static [cells::Named<Self>] = usage::TREE;
    const GROUPS: &'static [&'static Group] = PROCESS_GROUPS;

    fn all(snapshot: &Snapshot) -> &[Arc<Self>] {
        &snapshot.trees
    }

    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let view = TreeView {
            pid: self.root.tgid,
            start_time_ns: self.root.start_ns,
            command: &self.command,
            command_line: &self.command_line,
            cgroup: self.cgroup_path.as_deref(),
            cgroup_id: known_id(self.cgroup),
            place: PlaceView::of(self.cgroup_path.as_deref(), self.container.as_deref()),
            processes_running: self.running,
            processes_exited_total: self.exited_total,
            mark: self.mark.as_deref(),
            cells: Cells::new(Self::CELLS, self, &context),
            gpu_memory_bytes: self.subject.gpu_memory_bytes,
            groups: self.groups(context),
        };
        serde_json::to_writer(out, &view)
    }
}

#[derive(Serialize)]
struct CgroupView<'a> {
    path: &'a str,
    id: Option<CgroupId>,
    hierarchy: &'static str,
    #[serde(flatten)]
    place: PlaceView<'a>,
    removed: bool,
    processes_running: u32,
    gpu_memory_bytes: Option<u64>,
    #[serde(flatten)]
    cells: Cells<'a, Cgroup>,
    #[serde(flatten)]
    groups: Groups<'a>,
}

impl Listed for Cgroup {
    const NAME: &'static str = "cgroups";
    const NUMBERS: &'static [Named<Self>] = &[
        ("id", |c| known_id(c.id).map(|id| id.0).into()),
        ("processes_running", |c| Number::Count(c.running.into())),
        ("gpu_memory_bytes", |c| c.subject.gpu_memory_bytes.into()),
    ];
    const CELLS: &'static [cells::Named<Self>] = usage::CGROUP;
    const GROUPS: &'static [&'static Group] = ALL_GROUPS;

    fn all(snapshot: &Snapshot) -> &[Arc<Self>] {
        &snapshot.cgroups
    }

    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let view = CgroupView {
            path: &self.path,
            id: known_id(self.id),
            hierarchy: context.hierarchy,
            place: PlaceView::of(Some(&self.path), self.container.as_deref()),
            removed: self.removed,
            processes_running: self.running,
            cells: Cells::new(Self::CELLS, self, &context),
            gpu_memory_bytes: self.subject.gpu_memory_bytes,
            groups: self.groups(context),
        };
        serde_json::to_writer(out, &view)
    }
}

#[derive(Serialize)]
struct BlockDeviceView<'a> {
    name: &'a str,
    device: String,
    #[serde(flatten)]
    groups: Groups<'a>,
}

impl Listed for BlockDevice {
    const NAME: &'static str = "block_devices";
    const NUMBERS: &'static [Named<Self>] = &[];
    const GROUPS: &'static [&'static Group] = &[&BLOCK_IO];

    fn all(snapshot: &Snapshot) -> &[Arc<Self>] {
        &snapshot.block_devices
    }

    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let view = BlockDeviceView { name: &self.name, device: self.id.to_string(), groups: self.groups(context) };
        serde_json::to_writer(out, &view)
    }
}

/// What of a snapshot is not a list.
#[derive(Serialize)]
pub(super) struct SnapshotView<'a> {
    time_ns: BootTime,
    tick_seconds: f64,
    since_ns: BootTime,
    mark: Option<&'a Mark>,
    folded_processes_total: u64,
    host: WholeHostView<'a>,
    gpu: &'a GpuStanding,
    coverage: CoverageView<'a>,
    cost: CostView<'a>,
}

impl<'a> SnapshotView<'a> {
    /// Of a snapshot.
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        Self {
            time_ns: snapshot.time,
            tick_seconds: snapshot.tick.as_secs_f64(),
            since_ns: snapshot.since,
            mark: snapshot.mark.as_deref(),
            folded_processes_total: snapshot.folded_processes_total,
            host: WholeHostView::of(snapshot),
            gpu: &snapshot.gpu,
            coverage: CoverageView(&snapshot.coverage),
            cost: CostView::of(&snapshot.cost),
        }
    }
}

/// The machine: what it publishes of itself, and what is counted of it.
#[derive(Serialize)]
pub(super) struct WholeHostView<'a> {
    /// When it was so; none where it is part of what says that.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ns: Option<BootTime>,
    #[serde(flatten)]
    published: Option<HostView>,
    #[serde(flatten)]
    groups: Groups<'a>,
}

impl<'a> WholeHostView<'a> {
    /// Of a snapshot.
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let groups = Groups { groups: ALL_GROUPS, subject: &snapshot.host, context: Context::of(snapshot) };
        Self { time_ns: None, published: HostView::of(snapshot), groups }
    }

    /// The same, to stand by itself.
    pub(super) fn dated(self, snapshot: &Snapshot) -> Self {
        Self { time_ns: Some(snapshot.time), ..self }
    }
}

/// What every list answer tells besides the list.
#[derive(Serialize)]
pub(super) struct ListView<'a> {
    pub(super) time_ns: BootTime,
    /// Items that matched.
    pub(super) total: usize,
    /// Whether fewer than that are listed.
    pub(super) truncated: bool,
    /// Whether there is anything to list.
    #[serde(flatten)]
    pub(super) standing: Option<&'a GpuStanding>,
    pub(super) coverage: CoverageView<'a>,
}

/// 0 stands for an id that is not known.
fn known_id(id: CgroupId) -> Option<CgroupId> {
    (id.0 != 0).then_some(id)
}
