//! Alerts: what is out of the ordinary for long enough, told once, and taken back when it is over.
//!
//! Levels of each tick come from `io`, `memory`, `gpu`, and from the detectors' findings. [`Alerts`] keeps those that are,
//! or were lately, beyond their thresholds, and no others: what is in order costs a comparison a tick. Pure: time and data are
//! arguments. Whom it is told is for `notify`.

mod evidence;
mod gpu;
mod io;
mod level;
mod mean;
mod memory;
pub mod oom;
mod rule;
mod sink_status;
mod usual;

pub use evidence::{
    Cause, Causes, Deviation, Evidence, GpuEvidence, IoEvidence, MemoryEvidence, OomEvidence, TreeMemory, TreeName,
    TreeOnDevice,
};
pub use rule::Rule;
pub use sink_status::SinkStatus;
pub use usual::{Learned, Metric};

use crate::{
    config::{self, Thresholds},
    detect::{self, Findings, Severity, Subject},
    model::snapshot::{Process, ProcessState, Snapshot},
    pattern,
    time::BootTime,
};
use level::{Key, Level, Limits, Show, Told};
use mean::Mean;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};
use usual::Usual;

/// So many are kept in mind at most, of those that are or were lately beyond their thresholds.
const MOST: usize = 1024;

/// Something that has been out of the ordinary for long enough.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// What it is about.
    pub rule: Rule,
    /// Whether it goes on.
    pub state: State,
    /// How bad it is, or was at its worst.
    pub severity: Severity,
    /// Whom it is about.
    pub subject: Subject,
    /// Since when it is out of the ordinary.
    pub since: BootTime,
    /// When that had held for long enough.
    pub fired: BootTime,
    /// When it was over.
    pub resolved: Option<BootTime>,
    /// The level, on average over the time for which it must hold; none where a detector has no such number.
    pub value: Option<f64>,
    /// What that is compared with.
    pub threshold: Option<f64>,
    /// In one line.
    pub summary: String,
    /// Whether nobody is told, as the configuration says.
    pub silenced: bool,
    /// What it rests on.
    pub evidence: Evidence,
}

/// Whether an alert goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    Firing,
    /// It is over.
    Resolved,
}

impl State {
    /// Its name, as answers have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// How alerts stand after a tick.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// As of this moment.
    pub time: BootTime,
    /// Those that go on, the worst first, then the oldest; then those that were over lately, the latest first.
    pub alerts: Vec<Arc<Alert>>,
    /// What is out of the ordinary and left out, for want of room.
    pub left_out: usize,
}

/// What is out of the ordinary, and since when.
#[derive(Debug)]
pub struct Alerts {
    thresholds: Thresholds,
    settings: config::Alerts,
    tracked: HashMap<(Rule, Key), Tracked>,
    recent: io::Recent,
    idle: gpu::Idle,
    /// What is usual; none where that is not learned.
    usual: Option<Usual>,
    /// Those that were over lately, the latest last.
    over: Vec<Arc<Alert>>,
}

/// So many that are over are told of.
const MOST_OVER: usize = 64;

#[derive(Debug)]
struct Tracked {
    since: BootTime,
    mean: Mean,
    alert: Option<Arc<Alert>>,
    /// Not told anew before this, after it was over.
    quiet_until: BootTime,
    /// The snapshot that had it last.
    snapshot: u64,
}

impl Alerts {
    /// Nothing seen yet.
    pub fn new(thresholds: Thresholds, settings: config::Alerts) -> Self {
        let idle = gpu::Idle::new(settings.gpu_hold);
        let (tracked, recent, over) = (HashMap::new(), io::Recent::default(), Vec::new());
        let mut this = Self { thresholds, settings, tracked, recent, idle, usual: None, over };
        this.remember(Learned::default());
        this
    }

    /// Goes on with what was learned before, where anything is to be.
    pub fn remember(&mut self, learned: Learned) {
        let is_on = self.settings.enabled && Rule::Deviation.is_on(&self.thresholds);
        let (days, threshold) = (self.settings.learn_days, self.thresholds.deviation);
        self.usual = is_on.then(|| Usual::new(days, threshold, learned));
    }

    /// What was learned of what is usual; none where nothing is to be.
    pub fn learned(&self) -> Option<Learned> {
        self.usual.as_ref().map(Usual::learned)
    }

    /// Takes in a snapshot, of that time of the wall clock, and what the detectors claim after it. Tells how all stand, and which
    /// began, became worse or were over with it.
    pub fn take(
        &mut self,
        snapshot: &Snapshot,
        findings: &Findings,
        wall: SystemTime,
    ) -> (Arc<Standing>, Vec<Arc<Alert>>) {
        if !self.settings.enabled {
            return (Arc::new(Standing { time: snapshot.time, ..Standing::default() }), Vec::new());
        }
        let (mut recent, mut idle) = (std::mem::take(&mut self.recent), std::mem::take(&mut self.idle));
        let mut usual = self.usual.take();
        recent.take(snapshot);
        idle.take(snapshot);
        let thresholds = self.thresholds;
        let (mut news, mut left_out) = (Vec::new(), 0);
        let mut show = |level: Level, tell: &dyn Fn(&Level, f64) -> Told| {
            if level.rule.is_on(&thresholds) {
                left_out += usize::from(!self.judge(&level, tell, snapshot, &mut news));
            }
        };
        // Worked out once: it takes a look at every cgroup's path.
        let subjects: Vec<_> = detect::subject_cgroups(snapshot).collect();
        io::each(snapshot, &subjects, &recent, thresholds.io_wait, &mut show);
        memory::each(snapshot, &subjects, &thresholds, &mut show);
        gpu::each(snapshot, &idle, &thresholds, &mut show);
        each_leak(findings, &mut show);
        each_kill(snapshot, &mut show);
        if let Some(usual) = &mut usual {
            usual.each(snapshot, wall, &subjects, &mut show);
        }
        (self.recent, self.idle, self.usual) = (recent, idle, usual);
        self.end_others(snapshot, &mut news);
        (Arc::new(self.standing(snapshot.time, left_out)), news)
    }

    /// Judges a level. Whether there was room for it.
    fn judge(
        &mut self,
        level: &Level,
        tell: &dyn Fn(&Level, f64) -> Told,
        snapshot: &Snapshot,
        news: &mut Vec<Arc<Alert>>,
    ) -> bool {
        let (now, key) = (snapshot.time, (level.rule, level.key.clone()));
        let is_beyond = level.limits.judge(level.value).is_some();
        if !self.tracked.contains_key(&key) {
            if !is_beyond {
                return true;
            }
            if self.tracked.len() >= MOST {
                return false;
            }
            let (mean, quiet_until) = (Mean::new(self.hold(level.rule)), BootTime::default());
            let since = BootTime(now.0.saturating_sub(snapshot.tick.as_nanos() as u64));
            self.tracked.insert(key.clone(), Tracked { since, mean, alert: None, quiet_until, snapshot: 0 });
        }
        let hold = self.hold(level.rule);
        let Some(tracked) = self.tracked.get_mut(&key) else { return true };
        // One subject may be shown twice, as where two cgroups have no id: the first counts.
        if tracked.snapshot == snapshot.number && snapshot.number > 0 {
            return true;
        }
        tracked.snapshot = snapshot.number;
        tracked.mean.push(now, snapshot.tick, level.value);
        let mean = tracked.mean.value();
        let severity = level.limits.judge(mean);
        match (&tracked.alert, severity) {
            (None, None) if !is_beyond => {
                // It is kept in mind while it must not be told anew, and else forgotten.
                if now >= tracked.quiet_until {
                    self.tracked.remove(&key);
                } else {
                    tracked.since = now;
                    tracked.mean = Mean::new(hold);
                }
            }
            (None, Some(severity)) => {
                if now.since(tracked.since) >= hold && now >= tracked.quiet_until {
                    let Told { subject, summary, evidence } = tell(level, mean);
                    let silenced = is_silenced(&self.settings.silence, level.rule, &subject);
                    let alert = Arc::new(Alert {
                        rule: level.rule,
                        state: State::Firing,
                        severity,
                        subject,
                        since: tracked.since,
                        fired: now,
                        resolved: None,
                        value: level.limits.threshold(severity).map(|_| mean),
                        threshold: level.limits.threshold(severity),
                        summary,
                        silenced,
                        evidence,
                    });
                    news.push(Arc::clone(&alert));
                    tracked.alert = Some(alert);
                }
            }
            (Some(_), _) if level.limits.is_relieved(mean) => self.end(&key, now, news),
            (Some(alert), severity) => {
                let worst = severity.map_or(alert.severity, |severity| severity.min(alert.severity));
                let Told { subject, summary, evidence } = tell(level, mean);
                let threshold = level.limits.threshold(worst);
                let value = threshold.map(|_| mean);
                let is_worse = worst < alert.severity;
                let renewed =
                    Alert { severity: worst, subject, value, threshold, summary, evidence, ..(**alert).clone() };
                let renewed = Arc::new(renewed);
                if is_worse {
                    news.push(Arc::clone(&renewed));
                }
                tracked.alert = Some(renewed);
            }
            (None, None) => {}
        }
        true
    }

    /// How long something must hold.
    fn hold(&self, rule: Rule) -> Duration {
        match rule {
            Rule::GpuUnderutilization => self.settings.gpu_hold,
            Rule::Deviation => self.settings.deviation_hold,
            // Detectors have taken their time.
            Rule::Leak | Rule::GpuLost | Rule::OomKill => Duration::ZERO,
            _ => self.settings.hold,
        }
    }

    /// An alert is over.
    fn end(&mut self, key: &(Rule, Key), now: BootTime, news: &mut Vec<Arc<Alert>>) {
        let hold = self.hold(key.0);
        let Some(tracked) = self.tracked.get_mut(key) else { return };
        let Some(alert) = tracked.alert.take() else { return };
        let alert = Arc::new(Alert { state: State::Resolved, resolved: Some(now), ..(*alert).clone() });
        tracked.since = now;
        tracked.mean = Mean::new(hold);
        tracked.quiet_until = BootTime(now.0 + self.settings.cool_down.as_nanos() as u64);
        news.push(Arc::clone(&alert));
        if self.over.len() >= MOST_OVER {
            self.over.remove(0);
        }
        self.over.push(alert);
    }

    /// Ends what nothing was heard of in this snapshot: its subject has gone, or the reason for a claim has.
    fn end_others(&mut self, snapshot: &Snapshot, news: &mut Vec<Arc<Alert>>) {
        let mut gone: Vec<_> = self
            .tracked
            .iter()
            .filter(|(_, tracked)| tracked.snapshot != snapshot.number)
            .map(|(key, _)| key.clone())
            .collect();
        gone.sort();
        for key in gone {
            self.end(&key, snapshot.time, news);
            if self.tracked.get(&key).is_some_and(|tracked| snapshot.time >= tracked.quiet_until) {
                self.tracked.remove(&key);
            }
        }
    }

    fn standing(&self, time: BootTime, left_out: usize) -> Standing {
        let mut alerts: Vec<_> = self.tracked.iter().filter_map(|(key, t)| Some((key, t.alert.as_ref()?))).collect();
        alerts.sort_by(|(key, a), (other, b)| (a.severity, a.fired, key).cmp(&(b.severity, b.fired, other)));
        let firing = alerts.into_iter().map(|(_, alert)| Arc::clone(alert));
        Standing { time, alerts: firing.chain(self.over.iter().rev().cloned()).collect(), left_out }
    }
}

/// Whether a pattern fits: "RULE:SUBJECT", or the subject's name alone.
fn is_silenced(patterns: &[String], rule: Rule, subject: &Subject) -> bool {
    let name = subject.name();
    let whole = format!("{}:{name}", rule.name());
    patterns.iter().any(|pattern| pattern::fits(&name, pattern) || pattern::fits(&whole, pattern))
}

/// Shows who leaks. What the document's line claims is a finding and no alarm: it is wrong too often of what has just begun.
fn each_leak(findings: &Findings, show: Show<'_>) {
    for finding in findings.findings.iter().filter(|finding| finding.detector == "leak") {
        let key = match &finding.subject {
            Subject::Tree { root, .. } => Key::Tree(*root),
            Subject::Cgroup { id, .. } => Key::Cgroup(*id),
            Subject::Host | Subject::Gpu { .. } => Key::Host,
        };
        let limits = Limits::Judged(finding.severity);
        show(Level { rule: Rule::Leak, key, value: 1.0, limits }, &|_, _| Told {
            subject: finding.subject.clone(),
            summary: format!("Memory leak: {}", finding.summary),
            evidence: Evidence::Finding(finding.evidence.clone()),
        });
    }
}

/// Shows in which cgroups processes were killed for want of memory, for as long as those are told of.
fn each_kill(snapshot: &Snapshot, show: Show<'_>) {
    let is_victim = |process: &&Arc<Process>| matches!(process.state, ProcessState::Exited { oom_killed: true, .. });
    let mut victims = BTreeMap::<_, Vec<&Arc<Process>>>::new();
    for victim in snapshot.processes[snapshot.running().len()..].iter().filter(is_victim) {
        victims.entry(victim.cgroup).or_default().push(victim);
    }
    let ended = |process: &Process| match process.state {
        ProcessState::Exited { time, .. } => time,
        ProcessState::Running => BootTime::default(),
    };
    for (cgroup, victims) in victims {
        let Some(last) = victims.iter().max_by_key(|victim| ended(victim)) else { continue };
        let known = snapshot.cgroups.iter().find(|known| known.id == cgroup);
        let key = if cgroup.0 == 0 { Key::Host } else { Key::Cgroup(cgroup) };
        let limits = Limits::Judged(Severity::Critical);
        show(Level { rule: Rule::OomKill, key, value: victims.len() as f64, limits }, &|_, _| {
            let place = last.cgroup_path.as_ref().map(|path| format!(" in {path}")).unwrap_or_default();
            let (pid, command) = (last.id.tgid, last.command.clone());
            Told {
                subject: known.map_or(Subject::Host, |known| detect::cgroup_subject(known)),
                summary: format!("OOM kill: the kernel killed {command} ({pid}){place} for want of memory"),
                evidence: Evidence::Oom(OomEvidence { pid, command, kills: victims.len() as u64 }),
            }
        });
    }
}

#[cfg(test)]
mod tests;
