//! Memory that is nearly used up, that is waited for, and that is read from disks again and again.

use super::{
    evidence::{Evidence, MemoryEvidence, TreeMemory},
    io::{is_within, name, short},
    level::{Key, Level, Limits, Show, Told},
    rule::Rule,
};
use crate::{
    config::Thresholds,
    detect::{self, Against, Subject},
    model::{
        resources::{memory_ratio, memory_total},
        snapshot::{Cgroup, Snapshot, Tree},
        usage::Stalls,
    },
    units::{human_bytes, human_count},
};
use std::{cmp::Reverse, sync::Arc};

/// The largest trees, so many of them.
const MOST_TREES: usize = 3;
/// Faults that waited for a disk are a storm only where memory is waited for as well, for this share of the time: a program
/// that has just begun has many, too.
const STALLED: f64 = 0.05;

/// Shows how the machine and its cgroups stand.
pub(super) fn each(snapshot: &Snapshot, subjects: &[&Arc<Cgroup>], thresholds: &Thresholds, show: Show<'_>) {
    let usage = snapshot.host_usage.as_ref();
    let host = Whose::Host(snapshot);
    if let Some(value) = memory_ratio(snapshot) {
        pressure(&host, value, thresholds, show);
    }
    let stalls = usage.map(|usage| usage.stalls).unwrap_or_default();
    // The root's faults are everybody's.
    let root = snapshot.cgroup("/").and_then(|root| root.usage.as_ref());
    let major_faults = root.and_then(|usage| usage.stalls.major_faults);
    let of_host = Stalls { major_faults, ..stalls };
    stall(&host, &of_host, stalls.memory, thresholds, show);
    for cgroup in snapshot.cgroups.iter().filter(|cgroup| !cgroup.removed) {
        let Some(usage) = &cgroup.usage else { continue };
        let Some(memory) = &usage.reading.memory else { continue };
        // One without a limit of its own goes by that of one above.
        let limit = memory.limit_bytes.filter(|limit| *limit > 0);
        if let Some((limit, working_set)) = limit.zip(memory.working_set_bytes()) {
            pressure(&Whose::Cgroup(snapshot, cgroup), working_set as f64 / limit as f64, thresholds, show);
        }
    }
    for cgroup in subjects {
        if let Some(usage) = &cgroup.usage {
            let waits = usage.stalls.memory.or(stalls.memory);
            stall(&Whose::Cgroup(snapshot, cgroup), &usage.stalls, waits, thresholds, show);
        }
    }
}

/// Whose memory it is.
enum Whose<'a> {
    Host(&'a Snapshot),
    Cgroup(&'a Snapshot, &'a Arc<Cgroup>),
}

impl Whose<'_> {
    fn key(&self) -> Key {
        match self {
            Self::Host(_) => Key::Host,
            Self::Cgroup(_, cgroup) => Key::Cgroup(cgroup.id),
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Host(_) => Subject::Host,
            Self::Cgroup(_, cgroup) => detect::cgroup_subject(cgroup),
        }
    }

    fn has(&self, tree: &Tree) -> bool {
        match self {
            Self::Host(_) => true,
            Self::Cgroup(_, cgroup) => tree.cgroup_path.as_deref().is_some_and(|path| is_within(path, &cgroup.path)),
        }
    }

    fn evidence(&self) -> MemoryEvidence {
        let (Self::Host(snapshot) | Self::Cgroup(snapshot, _)) = self;
        let resident = |tree: &Tree| tree.usage.and_then(|usage| usage.resident_bytes);
        let mut largest: Vec<_> = snapshot
            .trees
            .iter()
            .filter(|tree| tree.running > 0 && self.has(tree))
            .filter_map(|tree| Some((resident(tree)?, tree)))
            .collect();
        largest.sort_by_key(|(bytes, tree)| (Reverse(*bytes), tree.root.tgid));
        let largest = largest
            .into_iter()
            .take(MOST_TREES)
            .map(|(resident_bytes, tree)| TreeMemory { name: name(tree), resident_bytes })
            .collect();
        let (working_set_bytes, limit_bytes, stalls) = match self {
            Self::Host(snapshot) => {
                let usage = snapshot.host_usage.as_ref();
                let used = usage.and_then(|usage| Some(usage.reading.memory?.used_bytes()));
                let stalls = usage.map(|usage| usage.stalls).unwrap_or_default();
                (used, memory_total(snapshot).map(|total| total as u64), stalls)
            }
            Self::Cgroup(_, cgroup) => {
                let usage = cgroup.usage.as_ref();
                let working_set = usage.and_then(|usage| usage.reading.memory.as_ref()?.working_set_bytes());
                let limit = usage.and_then(|usage| Some(usage.limit.as_ref()?.bytes));
                (working_set, limit, usage.map(|usage| usage.stalls).unwrap_or_default())
            }
        };
        MemoryEvidence {
            working_set_bytes,
            limit_bytes,
            stall_ratio: stalls.memory,
            full_stall_ratio: stalls.memory_full,
            major_faults_per_second: stalls.major_faults,
            largest,
        }
    }

    /// The alert's words: whose memory it is, what is wrong with it, and who has most of it.
    fn told(&self, what: &str, wrong: &str) -> Told {
        let (subject, evidence) = (self.subject(), self.evidence());
        let mut summary = match &subject {
            Subject::Host => format!("{what}: {wrong}"),
            other => format!("{what}: {}: {wrong}", other.name()),
        };
        if let Some(largest) = evidence.largest.first() {
            summary +=
                &format!("; largest: {} with {}", short(&largest.name), human_bytes(largest.resident_bytes as f64));
        }
        Told { subject, summary, evidence: Evidence::Memory(evidence) }
    }
}

fn pressure(whose: &Whose<'_>, value: f64, thresholds: &Thresholds, show: Show<'_>) {
    let (warning, critical) = (thresholds.memory_warning.min(thresholds.memory), Some(thresholds.memory));
    let limits = Limits::Above { warning, critical };
    show(Level { rule: Rule::MemoryPressure, key: whose.key(), value, limits }, &|level, mean| {
        let threshold = level.limits.judge(mean).and_then(|severity| level.limits.threshold(severity));
        let against = Against { ratio: mean, what: "", threshold: threshold.unwrap_or(warning) };
        let limit = match whose {
            Whose::Host(_) => String::new(),
            Whose::Cgroup(_, cgroup) => {
                let bytes = cgroup.usage.as_ref().and_then(|usage| usage.reading.memory.as_ref()?.limit_bytes);
                bytes.map_or_else(String::new, |bytes| format!(" of its limit of {}", human_bytes(bytes as f64)))
            }
        };
        whose.told("High memory usage", &format!("{against}{limit}"))
    });
}

/// How memory is waited for; `waits` is the share of the time, of the machine where nothing is known of a cgroup.
fn stall(whose: &Whose<'_>, stalls: &Stalls, waits: Option<f64>, thresholds: &Thresholds, show: Show<'_>) {
    let above = |warning| Limits::Above { warning, critical: None };
    if let Some(value) = stalls.memory {
        let threshold = thresholds.memory_stall;
        let level = Level { rule: Rule::MemoryStall, key: whose.key(), value, limits: above(threshold) };
        show(level, &|_, mean| {
            let against = Against { ratio: mean, what: " of the time some task waits for it", threshold };
            whose.told("Memory is short", &against.to_string())
        });
    }
    if let Some(faults) = stalls.major_faults {
        let threshold = thresholds.major_faults;
        let value = if waits.is_some_and(|share| share < STALLED) { 0.0 } else { faults };
        let level = Level { rule: Rule::Thrashing, key: whose.key(), value, limits: above(threshold) };
        show(level, &|_, mean| {
            let (mean, threshold) = (human_count(mean), human_count(threshold));
            whose.told("Thrashing", &format!("{mean} faults a second wait for a disk (threshold: {threshold})"))
        });
    }
}
