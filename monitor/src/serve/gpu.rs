//! GPUs as JSON.

use super::{
    fields::{Group, Named, Number},
    select::Selected,
    view::{Context, Listed},
};
use crate::{
    gpu::{Gpu, GpuMemory, GpuProcess, GpuStanding, MigInstance},
    model::snapshot::{Snapshot, Subject},
    time::BootTime,
};
use serde::Serialize;
use std::sync::{Arc, LazyLock};

/// Nothing is counted of a GPU: it has no groups to read from a subject.
static NOTHING: LazyLock<Subject> = LazyLock::new(Subject::default);

#[derive(Serialize)]
struct GpuView<'a> {
    index: u32,
    uuid: Option<&'a str>,
    name: Option<&'a str>,
    failure: Option<&'a str>,
    utilization_ratio: Option<f64>,
    memory_utilization_ratio: Option<f64>,
    #[serde(flatten)]
    memory: MemoryView,
    temperature_celsius: Option<u32>,
    power_watts: Option<f64>,
    power_limit_watts: Option<f64>,
    graphics_clock_hertz: Option<u64>,
    sm_clock_hertz: Option<u64>,
    memory_clock_hertz: Option<u64>,
    throttle_reasons: Option<&'a [&'static str]>,
    mig: Option<MigView<'a>>,
    processes: Option<&'a [GpuProcess]>,
    age_seconds: f64,
}

#[derive(Serialize)]
struct MemoryView {
    memory_used_bytes: Option<u64>,
    memory_total_bytes: Option<u64>,
    memory_ratio: Option<f64>,
}

#[derive(Serialize)]
struct MigView<'a> {
    instances: Vec<InstanceView<'a>>,
}

#[derive(Serialize)]
struct InstanceView<'a> {
    index: u32,
    uuid: Option<&'a str>,
    parent_uuid: Option<&'a str>,
    profile: Option<&'a str>,
    #[serde(flatten)]
    memory: MemoryView,
    processes: Option<&'a [GpuProcess]>,
}

impl From<GpuMemory> for MemoryView {
    fn from(memory: GpuMemory) -> Self {
        Self {
            memory_used_bytes: memory.used_bytes,
            memory_total_bytes: memory.total_bytes,
            memory_ratio: memory.ratio(),
        }
    }
}

impl<'a> InstanceView<'a> {
    fn of(instance: &'a MigInstance, parent: &'a Gpu) -> Self {
        Self {
            index: instance.index,
            uuid: instance.uuid.as_deref(),
            parent_uuid: parent.uuid.as_deref(),
            profile: instance.profile.as_deref(),
            memory: instance.memory.into(),
            processes: instance.processes.as_deref(),
        }
    }
}

impl Listed for Gpu {
    const NAME: &'static str = "gpus";
    const NUMBERS: &'static [Named<Self>] = &[
        ("index", |g| Number::Count(g.index.into())),
        ("utilization_ratio", |g| real(g.utilization_ratio)),
        ("memory_utilization_ratio", |g| real(g.memory_utilization_ratio)),
        ("memory_used_bytes", |g| g.memory.used_bytes.into()),
        ("memory_total_bytes", |g| g.memory.total_bytes.into()),
        ("memory_ratio", |g| real(g.memory.ratio())),
        ("temperature_celsius", |g| g.temperature_celsius.map(u64::from).into()),
        ("power_watts", |g| real(g.power_watts)),
        ("power_limit_watts", |g| real(g.power_limit_watts)),
        ("graphics_clock_hertz", |g| g.graphics_clock_hertz.into()),
        ("sm_clock_hertz", |g| g.sm_clock_hertz.into()),
        ("memory_clock_hertz", |g| g.memory_clock_hertz.into()),
    ];
    const GROUPS: &'static [&'static Group] = &[];

    fn all(snapshot: &Snapshot) -> &[Arc<Self>] {
        &snapshot.gpus
    }

    fn subject(&self) -> &Subject {
        &NOTHING
    }

    fn standing(snapshot: &Snapshot) -> Option<&GpuStanding> {
        Some(&snapshot.gpu)
    }

    fn write(&self, context: Context, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let mig = self.mig.as_ref().map(|instances| MigView {
            instances: instances.iter().map(|instance| InstanceView::of(instance, self)).collect(),
        });
        let view = GpuView {
            index: self.index,
            uuid: self.uuid.as_deref(),
            name: self.name.as_deref(),
            failure: self.failure.as_deref(),
            utilization_ratio: self.utilization_ratio,
            memory_utilization_ratio: self.memory_utilization_ratio,
            memory: self.memory.into(),
            temperature_celsius: self.temperature_celsius,
            power_watts: self.power_watts,
            power_limit_watts: self.power_limit_watts,
            graphics_clock_hertz: self.graphics_clock_hertz,
            sm_clock_hertz: self.sm_clock_hertz,
            memory_clock_hertz: self.memory_clock_hertz,
            throttle_reasons: self.throttle_reasons.as_deref(),
            mig,
            processes: self.processes.as_deref(),
            age_seconds: age_seconds(context.time, self.time),
        };
        serde_json::to_writer(out, &view)
    }
}

impl Selected for Gpu {}

fn real(value: Option<f64>) -> Number {
    value.map_or(Number::Missing, Number::Real)
}

/// To the millisecond: no reading is dated more exactly.
fn age_seconds(now: BootTime, then: BootTime) -> f64 {
    now.since(then).as_millis() as f64 / 1000.0
}
