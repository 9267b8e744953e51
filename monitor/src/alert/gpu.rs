//! GPUs that have little to do though somebody holds their memory, and why; that are full, hot, slowed down, or lost.

use super::{
    evidence::{Cause, Causes, Evidence, GpuEvidence, TreeName},
    io::{name, short, waits},
    level::{Key, Level, Limits, Show, Told},
    rule::Rule,
};
use crate::{
    config::Thresholds,
    detect::{Against, Severity, Subject},
    gpu::{Gpu, GpuProcess},
    model::snapshot::{Snapshot, Tree},
    units::human_bytes,
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Whoever is held up for this share of a GPU's idle time keeps its work from it.
const HELD_UP: f64 = 0.2;
/// A tree that uses so many processors is at work.
const AT_WORK: f64 = 0.5;
/// What lets a clock be low without anything being wrong.
const HARMLESS: [&str; 3] = ["gpu_idle", "applications_clocks_setting", "display_clock_setting"];

/// What the holders of GPUs were held up by, while those were idle.
#[derive(Debug, Default)]
pub(super) struct Idle {
    over: Duration,
    gpus: HashMap<u32, Weighed>,
}

/// Shares, weighed by how idle the GPU was; the latest count most.
#[derive(Clone, Copy, Debug, Default)]
struct Weighed {
    idle: f64,
    causes: Causes,
}

impl Idle {
    /// Causes are told of about as long as a GPU must be idle.
    pub(super) fn new(over: Duration) -> Self {
        Self { over, gpus: HashMap::new() }
    }

    /// Takes in a tick.
    pub(super) fn take(&mut self, snapshot: &Snapshot) {
        let over = self.over.as_secs_f64().max(f64::MIN_POSITIVE);
        let old = (-snapshot.tick.as_secs_f64() / over).exp();
        self.gpus.retain(|index, _| snapshot.gpus.iter().any(|gpu| gpu.index == *index));
        for gpu in &snapshot.gpus {
            let Some((utilization, tree)) = gpu.utilization_ratio.zip(holder(snapshot, gpu)) else { continue };
            let idle = (1.0 - utilization) * (1.0 - old);
            let now = causes(snapshot, tree);
            let seen = self.gpus.entry(gpu.index).or_default();
            seen.idle = seen.idle * old + idle;
            for (sum, new) in [
                (&mut seen.causes.block_io, now.block_io),
                (&mut seen.causes.memory, now.memory),
                (&mut seen.causes.cpu_throttling, now.cpu_throttling),
                (&mut seen.causes.cpus, now.cpus),
            ] {
                *sum = *sum * old + new * idle;
            }
        }
    }

    fn causes(&self, gpu: &Gpu) -> Option<Causes> {
        let Weighed { idle, causes } = self.gpus.get(&gpu.index).filter(|seen| seen.idle > 0.0)?;
        Some(Causes {
            block_io: causes.block_io / idle,
            memory: causes.memory / idle,
            cpu_throttling: causes.cpu_throttling / idle,
            cpus: causes.cpus / idle,
        })
    }
}

/// What held a tree up in this tick, and how busy it was.
fn causes(snapshot: &Snapshot, tree: &Tree) -> Causes {
    let cgroup = tree.cgroup_path.as_deref().and_then(|path| snapshot.cgroup(path)?.usage.as_ref());
    let stalls = cgroup.map(|usage| usage.stalls).unwrap_or_default();
    let host = snapshot.host_usage.as_ref().map(|usage| usage.stalls).unwrap_or_default();
    Causes {
        // What the cgroup waits for may be somebody else's in it; what it waits for itself is its own.
        block_io: waits(snapshot, tree),
        memory: stalls.memory.or(host.memory).unwrap_or_default(),
        cpu_throttling: stalls.throttled.unwrap_or_default().min(1.0),
        cpus: tree.usage.and_then(|usage| usage.cpu_per_second).unwrap_or_default(),
    }
}

/// What keeps a GPU's work from it.
fn cause(causes: &Causes) -> Cause {
    let held_up = [
        (causes.block_io, Cause::BlockIo),
        (causes.memory, Cause::Memory),
        (causes.cpu_throttling, Cause::CpuThrottling),
    ];
    let most = held_up.into_iter().max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(share, _)| *share >= HELD_UP);
    match most {
        Some((_, cause)) => cause,
        None if causes.cpus >= AT_WORK => Cause::Cpu,
        None => Cause::NothingToDo,
    }
}

/// The tree that holds most of a GPU's memory.
fn holder<'a>(snapshot: &'a Snapshot, gpu: &Gpu) -> Option<&'a Arc<Tree>> {
    let largest = gpu.processes.as_ref()?.iter().max_by_key(|process: &&GpuProcess| process.memory_bytes)?;
    let root = snapshot.running_with(largest.pid)?.tree;
    snapshot.trees.iter().find(|tree| tree.root.key() == root.key())
}

/// Shows how GPUs stand.
pub(super) fn each(snapshot: &Snapshot, idle: &Idle, thresholds: &Thresholds, show: Show<'_>) {
    if let (true, Some(reason)) = (snapshot.gpu.failing && snapshot.gpus.is_empty(), &snapshot.gpu.reason) {
        let level =
            Level { rule: Rule::GpuLost, key: Key::Host, value: 1.0, limits: Limits::Judged(Severity::Critical) };
        show(level, &|_, _| Told {
            subject: Subject::Host,
            summary: format!("GPU driver lost: {reason}"),
            evidence: Evidence::Gpu(GpuEvidence::default()),
        });
    }
    for gpu in &snapshot.gpus {
        each_of(snapshot, gpu, idle, thresholds, show);
    }
}

fn each_of(snapshot: &Snapshot, gpu: &Gpu, idle: &Idle, thresholds: &Thresholds, show: Show<'_>) {
    let name = format!("GPU {}", gpu.index);
    let key = Key::Gpu(gpu.uuid.clone().unwrap_or_else(|| gpu.index.to_string()));
    let subject = || Subject::Gpu { index: gpu.index, uuid: gpu.uuid.clone() };
    let told = |summary: String, evidence: GpuEvidence| Told {
        subject: subject(),
        summary,
        evidence: Evidence::Gpu(evidence),
    };
    let above = |warning| Limits::Above { warning, critical: None };
    let level = |rule, value, limits| Level { rule, key: key.clone(), value, limits };
    if let Some(failure) = &gpu.failure {
        show(level(Rule::GpuLost, 1.0, Limits::Judged(Severity::Critical)), &|_, _| {
            told(format!("{name} lost: {failure}"), GpuEvidence::default())
        });
        return;
    }
    if let (Some(value), Some(tree)) = (gpu.utilization_ratio, holder(snapshot, gpu)) {
        let threshold = thresholds.gpu_util;
        show(level(Rule::GpuUnderutilization, value, Limits::Below { warning: threshold }), &|_, mean| {
            let causes = idle.causes(gpu);
            let cause = causes.as_ref().map(cause);
            let holder = self::name(tree);
            let why = causes.zip(cause).map(|(causes, cause)| format!(": {}", words(&holder, cause, &causes)));
            let against = Against { ratio: mean, what: "", threshold };
            let evidence = GpuEvidence { holder: Some(holder), cause, causes, ..evidence(gpu) };
            told(format!("{name} underutilized: {against}{}", why.unwrap_or_default()), evidence)
        });
    }
    if let Some(value) = gpu.memory.ratio() {
        let threshold = thresholds.gpu_memory;
        show(level(Rule::GpuMemory, value, above(threshold)), &|_, mean| {
            let against = Against { ratio: mean, what: "", threshold };
            let total = gpu.memory.total_bytes.unwrap_or_default();
            let holder = holder(snapshot, gpu).map(|tree| self::name(tree));
            let by = holder.as_ref().map(|holder| format!(", most of it held by {}", short(holder)));
            let summary = format!(
                "{name} memory nearly full: {against} of {}{}",
                human_bytes(total as f64),
                by.unwrap_or_default()
            );
            told(summary, GpuEvidence { holder, ..evidence(gpu) })
        });
    }
    if let Some(celsius) = gpu.temperature_celsius {
        let threshold = f64::from(thresholds.gpu_temp);
        show(level(Rule::GpuTemperature, f64::from(celsius), above(threshold)), &|_, mean| {
            told(format!("{name} temperature high: {mean:.0}°C (threshold: {threshold}°C)"), evidence(gpu))
        });
    }
    if let Some(reasons) = &gpu.throttle_reasons {
        let wrong: Vec<_> = reasons.iter().copied().filter(|reason| !HARMLESS.contains(reason)).collect();
        let value = if wrong.is_empty() { 0.0 } else { 1.0 };
        // For half of the time and more.
        show(level(Rule::GpuThrottling, value, above(0.5)), &|_, mean| {
            let time = mean * 100.0;
            told(format!("{name} slowed down {time:.0}% of the time: {}", wrong.join(", ")), evidence(gpu))
        });
    }
}

fn words(holder: &TreeName, cause: Cause, causes: &Causes) -> String {
    let percent = |share: f64| format!("{:.0}% of its idle time", share.min(1.0) * 100.0);
    let holder = short(holder);
    match cause {
        Cause::BlockIo => format!("{holder} waits for disks {}", percent(causes.block_io)),
        Cause::Memory => format!("{holder} waits for the machine's memory {}", percent(causes.memory)),
        Cause::CpuThrottling => format!("{holder} is held back by its CPU limit {}", percent(causes.cpu_throttling)),
        Cause::Cpu => format!("{holder} is at work on {:.1} CPUs meanwhile", causes.cpus),
        Cause::NothingToDo => format!("{holder} gives it nothing to do"),
    }
}

fn evidence(gpu: &Gpu) -> GpuEvidence {
    GpuEvidence {
        utilization_ratio: gpu.utilization_ratio,
        memory_used_bytes: gpu.memory.used_bytes,
        memory_total_bytes: gpu.memory.total_bytes,
        temperature_celsius: gpu.temperature_celsius,
        throttle_reasons: gpu.throttle_reasons.clone(),
        ..GpuEvidence::default()
    }
}
