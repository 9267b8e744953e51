//! How the agent itself stands, as JSON: whether all is well, what counts and what was lost, and what it costs.

use crate::{
    cost::{Cost, ProgramCost},
    coverage::{Coverage, Loss, MissingProgram, Refusal, SourceCoverage, State},
    gpu::GpuStanding,
    history::{Identity, Told},
    model::snapshot::Snapshot,
    time::BootTime,
};
use serde::{Serialize, Serializer};
use std::time::Duration;

/// Whether all is well, and what it costs.
#[derive(Serialize)]
pub(super) struct HealthView<'a> {
    status: &'static str,
    reasons: Vec<String>,
    #[serde(flatten)]
    agent: Identity,
    uptime_seconds: f64,
    time_ns: BootTime,
    recording: Option<Told>,
    cost: CostView<'a>,
    gpu: &'a GpuStanding,
    coverage: CoverageView<'a>,
}

impl<'a> HealthView<'a> {
    /// Of the last snapshot of an agent, seen at `now`.
    pub(super) fn of(snapshot: &'a Snapshot, now: BootTime, agent: Identity, recording: Option<Told>) -> Self {
        let mut reasons = reasons(snapshot, now);
        reasons.extend(recording.iter().flat_map(Told::reasons));
        Self {
            status: if reasons.is_empty() { "ok" } else { "degraded" },
            reasons,
            agent,
            uptime_seconds: now.since(snapshot.since).as_secs_f64(),
            time_ns: snapshot.time,
            recording,
            cost: CostView::of(&snapshot.cost),
            gpu: &snapshot.gpu,
            coverage: CoverageView(&snapshot.coverage),
        }
    }
}

impl HealthView<'_> {
    /// The agent's version.
    pub(super) fn version(&self) -> &str {
        &self.agent.version
    }

    /// Whether the agent does all it should.
    pub(super) const fn is_well(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Why the agent does not do all it should.
fn reasons(snapshot: &Snapshot, now: BootTime) -> Vec<String> {
    /// A snapshot this many ticks old is late.
    const LATE_TICKS: u32 = 5;
    let mut reasons: Vec<_> = snapshot.coverage.0.iter().filter_map(reason).collect();
    if let (true, Some(reason)) = (snapshot.gpu.failing, &snapshot.gpu.reason) {
        reasons.push(format!("gpu: {reason}"));
    }
    let age = now.since(snapshot.time);
    if age > (LATE_TICKS * snapshot.tick).max(Duration::from_secs(5)) && !snapshot.tick.is_zero() {
        reasons.push(format!("the last snapshot is {} s old", age.as_secs()));
    }
    reasons
}

fn reason(source: &SourceCoverage) -> Option<String> {
    let name = source.source;
    if source.too_old {
        return None;
    }
    if source.state == State::Unavailable {
        let why: Vec<_> = source.refused.iter().map(|r| format!("{}: {}", r.rung, r.reason)).collect();
        return Some(format!("{name} is unavailable ({})", why.join("; ")));
    }
    (source.lost_total > 0).then(|| format!("{name} has lost {}", source.lost_total))
}

/// The sources by name.
pub(super) struct CoverageView<'a>(pub(super) &'a Coverage);

#[derive(Serialize)]
struct SourceView<'a> {
    state: State,
    rung: Option<&'static str>,
    refused: &'a [Refusal],
    too_old: bool,
    error_bytes: Option<u64>,
    missing: &'a [MissingProgram],
    cannot_tell: &'static [&'static str],
    caveats: &'static [&'static str],
    seen_total: u64,
    lost_total: u64,
    lost: Loss,
}

impl Serialize for CoverageView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.0.iter().map(|s| {
            let view = SourceView {
                state: s.state,
                rung: s.rung,
                refused: &s.refused,
                too_old: s.too_old,
                error_bytes: s.error_bytes,
                missing: &s.missing,
                cannot_tell: s.cannot_tell,
                caveats: s.caveats,
                seen_total: s.seen_total,
                lost_total: s.lost_total,
                lost: s.lost,
            };
            (s.source.name(), view)
        }))
    }
}

#[derive(Serialize)]
pub(super) struct CostView<'a> {
    cpu_seconds_total: f64,
    cpu_ratio: Option<f64>,
    resident_bytes: u64,
    map_bytes: u64,
    programs: Vec<ProgramView<'a>>,
}

#[derive(Serialize)]
struct ProgramView<'a> {
    name: &'a str,
    measured_runs: u64,
    measured_seconds: f64,
    mean_ns: Option<f64>,
}

impl<'a> CostView<'a> {
    pub(super) fn of(cost: &'a Cost) -> Self {
        Self {
            cpu_seconds_total: cost.cpu_seconds_total,
            cpu_ratio: cost.cpu_ratio,
            resident_bytes: cost.resident_bytes,
            map_bytes: cost.map_bytes,
            programs: cost.programs.iter().map(ProgramView::of).collect(),
        }
    }
}

impl<'a> ProgramView<'a> {
    fn of(program: &'a ProgramCost) -> Self {
        let runs = program.measured_runs;
        Self {
            name: &program.name,
            measured_runs: runs,
            measured_seconds: program.measured_seconds,
            mean_ns: (runs > 0).then(|| program.measured_seconds * 1e9 / runs as f64),
        }
    }
}
