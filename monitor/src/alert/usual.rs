//! What is usual for somebody at this time of day, learned, and how far it is from that.
//!
//! Level and spread of each metric are learned for each hour of the day from the means of single minutes: the level is their
//! exponentially weighted mean, the spread their mean absolute deviation from it, times √(π/2), which makes it the standard
//! deviation of what is normally distributed. A minute counts as [`CLIP`] spreads away from the level at most (as in Huber's
//! estimator), so that an outage does not become usual by itself, while what stays different is usual after a day or two.
//! Between the middles of two hours both are interpolated. Nothing is judged before both hours were seen on enough days.

use super::{
    evidence::{Deviation, Evidence},
    level::{Key, Level, Limits, Show, Told},
    rule::Rule,
};
use crate::{
    detect::{self, Subject},
    model::{
        resources,
        snapshot::{Cgroup, Snapshot},
    },
    units::{human_bytes, human_count},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    f64::consts::FRAC_PI_2,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What is learned of: means of so long.
const INTERVAL: Duration = Duration::from_secs(60);
/// Hours of a day.
const HOURS: usize = 24;
/// What an hour of a day learned is worth half after so many minutes of it: three days.
const HALF_LIFE: f64 = 180.0;
/// A minute counts as so many spreads away at most.
const CLIP: f64 = 3.0;
/// So many minutes count whole: their spread is not known yet.
const UNCLIPPED: f64 = 30.0;
/// A spread is at least this share of the level: what differs by less is of no interest.
const LEAST_SHARE: f64 = 0.05;
/// So many thresholds away is as far as it gets: what is far away for a short while must not outweigh what is not.
const FARTHEST: f64 = 2.0;
/// So many are learned of at most.
const MOST: usize = 256;
/// Who is not seen for so long is forgotten.
const FORGET: Duration = Duration::from_secs(14 * 24 * 3600);
/// Of what is written to a file; what another version wrote is learned anew.
const VERSION: u32 = 1;

/// What is learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Processors in use.
    Cpus,
    /// Working set, or the machine's memory that is not available, in bytes.
    MemoryBytes,
    /// Share of the time in which some task waited for a disk, 0–1.
    IoWaitRatio,
    /// Bytes read from and written to block devices, per second.
    IoBytesPerSecond,
    /// Page faults per second.
    PageFaultsPerSecond,
    /// Requests answered per second.
    RequestsPerSecond,
    /// Share of the time in which a GPU worked, 0–1.
    GpuUtilizationRatio,
    /// Memory in use on a GPU, in bytes.
    GpuMemoryBytes,
}

impl Metric {
    const ALL: [Self; 8] = [
        Self::Cpus,
        Self::MemoryBytes,
        Self::IoWaitRatio,
        Self::IoBytesPerSecond,
        Self::PageFaultsPerSecond,
        Self::RequestsPerSecond,
        Self::GpuUtilizationRatio,
        Self::GpuMemoryBytes,
    ];

    /// No spread is smaller: differences of this size say nothing, however steady it was before.
    const fn least_spread(self) -> f64 {
        const MEBIBYTE: f64 = 1_048_576.0;
        match self {
            Self::Cpus | Self::GpuUtilizationRatio => 0.05,
            Self::MemoryBytes | Self::GpuMemoryBytes => 16.0 * MEBIBYTE,
            Self::IoWaitRatio => 0.02,
            Self::IoBytesPerSecond => MEBIBYTE,
            Self::PageFaultsPerSecond => 500.0,
            Self::RequestsPerSecond => 2.0,
        }
    }

    /// What it is, before a value.
    const fn words(self) -> &'static str {
        match self {
            Self::Cpus => "CPUs in use",
            Self::MemoryBytes => "memory",
            Self::IoWaitRatio => "waiting for disks",
            Self::IoBytesPerSecond => "I/O per second",
            Self::PageFaultsPerSecond => "page faults per second",
            Self::RequestsPerSecond => "requests per second",
            Self::GpuUtilizationRatio => "GPU utilisation",
            Self::GpuMemoryBytes => "GPU memory",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Cpus => format!("{value:.2}"),
            Self::IoWaitRatio | Self::GpuUtilizationRatio => format!("{:.1}%", value * 100.0),
            Self::MemoryBytes | Self::IoBytesPerSecond | Self::GpuMemoryBytes => human_bytes(value),
            Self::PageFaultsPerSecond | Self::RequestsPerSecond => human_count(value),
        }
    }
}

/// What was learned, and the minute that goes on.
#[derive(Debug)]
pub(super) struct Usual {
    days: u32,
    threshold: f64,
    learned: Learned,
    minutes: HashMap<Key, Minute>,
}

/// What was learned of everybody, as it is written to a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    version: u32,
    subjects: HashMap<Arc<str>, Habits>,
}

/// What was learned of somebody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Habits {
    /// The last day on which it was seen, from 1970 on.
    day: u64,
    metrics: HashMap<Metric, Box<[Hour; HOURS]>>,
}

/// What was learned of a metric in one hour of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hour {
    level: f64,
    spread: f64,
    /// Minutes that it was seen.
    minutes: f64,
    /// Days on which it was.
    days: u32,
    /// The last of them.
    day: u64,
}

/// What is gathered of somebody until the minute is over, and what the last one said.
#[derive(Debug, Default)]
struct Minute {
    seconds: f64,
    sums: [Option<f64>; Metric::ALL.len()],
    seen: [Option<Seen>; Metric::ALL.len()],
    /// The snapshot that had it last.
    snapshot: u64,
}

/// How the last whole minute was.
#[derive(Clone, Copy, Debug)]
struct Seen {
    value: f64,
    level: f64,
    spread: f64,
    days: u32,
}

impl Seen {
    /// How many spreads it was away from its level.
    fn distance(&self) -> f64 {
        (self.value - self.level).abs() / self.spread
    }
}

impl Hour {
    /// On how many days before that one it was seen.
    fn days_before(&self, day: u64) -> u32 {
        self.days - u32::from(self.days > 0 && self.day == day)
    }

    /// Takes in the mean of a minute of that day.
    fn learn(&mut self, value: f64, day: u64) {
        if self.days == 0 || day > self.day {
            (self.day, self.days) = (day, self.days.saturating_add(1));
        }
        self.minutes += 1.0;
        // At first all minutes count the same.
        let share = (1.0 / self.minutes).max(1.0 - (-std::f64::consts::LN_2 / HALF_LIFE).exp());
        let most = if self.minutes <= UNCLIPPED { f64::INFINITY } else { CLIP * self.spread };
        let away = (value - self.level).clamp(-most, most);
        self.level += share * away;
        self.spread += share * (away.abs() * FRAC_PI_2.sqrt() - self.spread);
    }
}

/// Level and spread at a moment of a day, and the days before it that they are known by; none where those are fewer than `days`.
fn expected(hours: &[Hour; HOURS], metric: Metric, (day, of_day): (u64, Duration), days: u32) -> Option<Seen> {
    let at = of_day.as_secs_f64() / 3600.0 - 0.5;
    let before = at.rem_euclid(HOURS as f64);
    let (first, share) = (&hours[before as usize % HOURS], before.fract());
    let second = &hours[(before as usize + 1) % HOURS];
    let known_by = first.days_before(day).min(second.days_before(day));
    let between = |a: f64, b: f64| a + (b - a) * share;
    let level = between(first.level, second.level);
    let least = metric.least_spread().max(level.abs() * LEAST_SHARE);
    let spread = between(first.spread, second.spread).max(least);
    (known_by >= days).then_some(Seen { value: level, level, spread, days: known_by })
}

impl Usual {
    /// Goes on with what was learned before.
    pub(super) fn new(days: u32, threshold: f64, learned: Learned) -> Self {
        let learned = Some(learned).filter(|learned| learned.version == VERSION).unwrap_or_default();
        Self { days, threshold, learned, minutes: HashMap::new() }
    }

    /// What was learned until now.
    pub(super) fn learned(&self) -> Learned {
        Learned { version: VERSION, ..self.learned.clone() }
    }

    /// Learns from a snapshot, and shows how far everybody is from what is usual.
    pub(super) fn each(&mut self, snapshot: &Snapshot, wall: SystemTime, subjects: &[&Arc<Cgroup>], show: Show<'_>) {
        self.one(snapshot, wall, Key::Host, &of_host(snapshot), &|| Subject::Host, show);
        for cgroup in subjects {
            let subject = || detect::cgroup_subject(cgroup);
            self.one(snapshot, wall, Key::Cgroup(cgroup.id), &of_cgroup(cgroup), &subject, show);
        }
        for gpu in &snapshot.gpus {
            let key = Key::Gpu(gpu.uuid.clone().unwrap_or_else(|| gpu.index.to_string()));
            let values = [
                (Metric::GpuUtilizationRatio, gpu.utilization_ratio),
                (Metric::GpuMemoryBytes, gpu.memory.used_bytes.map(|bytes| bytes as f64)),
            ];
            let subject = || Subject::Gpu { index: gpu.index, uuid: gpu.uuid.clone() };
            self.one(snapshot, wall, key, &values, &subject, show);
        }
        self.minutes.retain(|_, minute| minute.snapshot == snapshot.number);
    }

    fn one(
        &mut self,
        snapshot: &Snapshot,
        wall: SystemTime,
        key: Key,
        values: &[(Metric, Option<f64>)],
        subject: &dyn Fn() -> Subject,
        show: Show<'_>,
    ) {
        let minute = self.minutes.entry(key.clone()).or_default();
        let seconds = snapshot.tick.as_secs_f64();
        minute.snapshot = snapshot.number;
        minute.seconds += seconds;
        for (metric, value) in values {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                *minute.sums[*metric as usize].get_or_insert(0.0) += value * seconds;
            }
        }
        if minute.seconds >= INTERVAL.as_secs_f64() {
            let whole = std::mem::take(&mut minute.seconds);
            let sums = std::mem::take(&mut minute.sums);
            let seen = self.end_minute(&subject().label(), sums.map(|sum| Some(sum? / whole)), wall);
            if let Some(minute) = self.minutes.get_mut(&key) {
                minute.seen = seen;
            }
        }
        let Some(minute) = self.minutes.get(&key) else { return };
        for (metric, seen) in Metric::ALL.into_iter().zip(minute.seen) {
            let Some(seen) = seen else { continue };
            let limits = Limits::Above { warning: self.threshold, critical: None };
            let value = seen.distance().min(FARTHEST * self.threshold);
            let key = Key::Metric(metric, Box::new(key.clone()));
            show(Level { rule: Rule::Deviation, key, value, limits }, &|_, mean| told(subject(), metric, &seen, mean));
        }
    }

    /// Judges the means of a minute by what was learned until then, and learns from them.
    fn end_minute(
        &mut self,
        label: &str,
        means: [Option<f64>; Metric::ALL.len()],
        wall: SystemTime,
    ) -> [Option<Seen>; Metric::ALL.len()] {
        const DAY: u64 = 24 * 3600;
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A minute is of the time when most of it was.
        let middle = wall.saturating_sub(INTERVAL / 2);
        let (day, of_day) = (middle.as_secs() / DAY, Duration::from_secs(middle.as_secs() % DAY));
        let nothing = [None; Metric::ALL.len()];
        if !self.learned.subjects.contains_key(label) {
            let last = day.saturating_sub(FORGET.as_secs() / DAY);
            self.learned.subjects.retain(|_, habits| habits.day >= last);
            if self.learned.subjects.len() >= MOST {
                return nothing;
            }
        }
        let habits = self.learned.subjects.entry(label.into()).or_default();
        habits.day = day;
        let mut all = nothing;
        for ((metric, mean), seen) in Metric::ALL.into_iter().zip(means).zip(&mut all) {
            let Some(value) = mean else { continue };
            let hours = habits.metrics.entry(metric).or_default();
            *seen = expected(hours, metric, (day, of_day), self.days).map(|usual| Seen { value, ..usual });
            hours[(of_day.as_secs() / 3600) as usize % HOURS].learn(value, day);
        }
        all
    }
}

fn of_host(snapshot: &Snapshot) -> [(Metric, Option<f64>); 6] {
    let rates = &snapshot.host.rates;
    let cpus = snapshot.host_usage.as_ref().map(|usage| usage.cpus.len() as f64);
    let in_use = resources::cpu(snapshot, |shares| shares.user + shares.system);
    let stalled = snapshot.host_usage.as_ref().and_then(|usage| usage.stalls.io);
    [
        (Metric::Cpus, in_use.zip(cpus).map(|(share, cpus)| share * cpus)),
        (Metric::MemoryBytes, resources::memory(snapshot, crate::reading::HostMemory::used_bytes)),
        (Metric::IoWaitRatio, stalled.or_else(|| resources::io_wait_ratio(snapshot))),
        (Metric::IoBytesPerSecond, Some(rates.read_bytes + rates.write_bytes)),
        (Metric::PageFaultsPerSecond, Some(rates.page_faults)),
        (Metric::RequestsPerSecond, Some(rates.requests)),
    ]
}

fn of_cgroup(cgroup: &Cgroup) -> [(Metric, Option<f64>); 6] {
    let (rates, usage) = (&cgroup.subject.rates, cgroup.usage.as_ref());
    let working_set = usage.and_then(|usage| usage.reading.memory.as_ref()?.working_set_bytes());
    [
        (Metric::Cpus, usage.and_then(|usage| usage.cpu_per_second)),
        (Metric::MemoryBytes, working_set.map(|bytes| bytes as f64)),
        (Metric::IoWaitRatio, usage.and_then(|usage| usage.stalls.io)),
        (Metric::IoBytesPerSecond, Some(rates.read_bytes + rates.write_bytes)),
        (Metric::PageFaultsPerSecond, Some(rates.page_faults)),
        (Metric::RequestsPerSecond, Some(rates.requests)),
    ]
}

fn told(subject: Subject, metric: Metric, seen: &Seen, mean: f64) -> Told {
    let Seen { value, level, spread, days } = *seen;
    let [now, usual, give] = [value, level, spread].map(|value| metric.show(value));
    let what = match &subject {
        Subject::Host => metric.words().to_owned(),
        other => format!("{}: {}", other.name(), metric.words()),
    };
    let summary =
        format!("Unusual: {what}: {now}, at this time of day usually {usual} ± {give} ({mean:.1} times that away)");
    Told { subject, summary, evidence: Evidence::Deviation(Deviation { metric, value, level, spread, days }) }
}

#[cfg(test)]
mod tests;
