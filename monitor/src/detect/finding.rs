//! A detector's claim, with what it takes to check it.

use super::{
    allocation::AllocationReport,
    judge::{Judgement, Point, RequestCoverage},
    leak::{LeakReport, Verdict},
    regression::RegressionReport,
    slope::Estimate,
};
use crate::{
    ids::{CgroupId, ProcessKey},
    model::container::Container,
    time::BootTime,
    units::human_bytes,
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// Less time than this to the limit is critical.
const CRITICAL_SECONDS: f64 = 3600.0;

/// Whom a finding or an alert is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The machine.
    Host,
    /// A GPU.
    Gpu {
        /// Its number.
        index: u32,
        /// Its name for good.
        uuid: Option<String>,
    },
    /// A process tree.
    Tree {
        /// Its root.
        root: ProcessKey,
        /// The root's arguments, or its name where it has none.
        command: String,
        /// Path of the root's cgroup.
        cgroup: Option<Arc<str>>,
        /// The container that the root is in.
        container: Option<Arc<Container>>,
    },
    /// A cgroup.
    Cgroup {
        /// Which.
        id: CgroupId,
        /// Its path.
        path: Arc<str>,
        /// The container that it is in.
        container: Option<Arc<Container>>,
    },
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The limit is less than an hour away.
    Critical,
    /// It goes on.
    Warning,
    /// It may become something: told to who asks, and no alarm.
    Notice,
}

impl Severity {
    /// Its name, as answers have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

/// What a detector claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Who claims it.
    pub detector: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Whom it is about.
    pub subject: Subject,
    /// Since when it is claimed.
    pub since: BootTime,
    /// In one line.
    pub summary: String,
    /// How sure it is, 0–1; none where the detector does not say.
    pub confidence: Option<f64>,
    /// Growth with requests.
    pub bytes_per_1000_requests: Option<Estimate>,
    /// Growth with time.
    pub bytes_per_hour: Option<Estimate>,
    /// Until the limit is reached.
    pub seconds_to_limit: Option<Estimate>,
    /// What the claim rests on.
    pub evidence: Evidence,
}

/// What a claim rests on: the last numbers, and the detector's own account.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Of these numbers' moment.
    pub time_ns: BootTime,
    /// Memory in use, less the page cache that is given back first.
    pub working_set_bytes: u64,
    /// Anonymous memory, swapped out or not.
    pub anon_bytes: Option<u64>,
    /// The limit that counts.
    pub limit_bytes: Option<u64>,
    /// Requests served.
    pub requests_total: Option<u64>,
    /// What figures per request rest on; none where that is not known.
    pub requests: Option<RequestCoverage>,
    /// What the detector says.
    #[serde(flatten)]
    pub account: Account,
}

/// A detector's own account.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Account {
    /// By the lower envelope of memory.
    Leak(LeakReport),
    /// By the document's line.
    Regression(RegressionReport),
    /// By the kernel's events.
    Allocation(AllocationReport),
}

/// What all detectors claim of one subject.
pub(super) fn findings(subject: &Subject, judgement: &Judgement, point: &Point, time: BootTime) -> Vec<Finding> {
    let Judgement { bytes_per_1000_requests, bytes_per_hour, seconds_to_limit, .. } = *judgement;
    let finding = |detector, severity, since, summary, account| Finding {
        detector,
        severity,
        subject: subject.clone(),
        since: boot_time(since),
        summary,
        confidence: None,
        bytes_per_1000_requests,
        bytes_per_hour,
        seconds_to_limit,
        evidence: Evidence {
            time_ns: time,
            working_set_bytes: point.working_set_bytes,
            anon_bytes: point.anon_bytes,
            limit_bytes: point.limit_bytes,
            requests_total: point.requests_total,
            requests: point.requests,
            account,
        },
    };
    let mut found = Vec::new();
    let leak = judgement.detectors.leak;
    if leak.verdict == Verdict::Leak {
        let is_soon = seconds_to_limit.is_some_and(|left| left.value < CRITICAL_SECONDS);
        let severity = if is_soon { Severity::Critical } else { Severity::Warning };
        let summary = summary(subject, judgement);
        let claim = finding("leak", severity, leak.since, summary, Account::Leak(leak));
        found.push(Finding { confidence: Some(judgement.confidence), ..claim });
    }
    let regression = &judgement.detectors.regression;
    if let (true, Some(values)) = (regression.leaking, regression.statistics.values) {
        let summary = format!(
            "{} grows by {:.1} MB per 1000 requests (threshold: {:.1} MB)",
            subject.name(),
            values.growth_rate_mb_per_1k_requests,
            values.threshold_mb_per_1k
        );
        let since = regression.since.unwrap_or(point.time_seconds);
        let account = Account::Regression(regression.clone());
        found.push(finding("regression", Severity::Warning, since, summary, account));
    }
    let allocation = judgement.detectors.allocation;
    if let (true, Some(since)) = (allocation.growing, allocation.since) {
        let summary = format!("{} goes on allocating more than it gives back", subject.name());
        found.push(finding("allocation", Severity::Notice, since, summary, Account::Allocation(allocation)));
    }
    found
}

/// A point's time is that of the boot clock.
fn boot_time(seconds: f64) -> BootTime {
    BootTime((seconds * 1e9) as u64)
}

fn summary(subject: &Subject, judgement: &Judgement) -> String {
    let mut words = format!("{} leaks", subject.name());
    if let Some(growth) = judgement.bytes_per_1000_requests.filter(|growth| growth.low > 0.0) {
        words += &format!(" {} per 1000 requests", human_bytes(growth.value));
    } else if let Some(growth) = judgement.bytes_per_hour {
        words += &format!(" {} per hour", human_bytes(growth.value));
    }
    if let Some(left) = judgement.seconds_to_limit {
        let most = |seconds: f64| Duration::try_from_secs_f64(seconds.round()).unwrap_or(Duration::MAX);
        words += &format!("; at its limit in {}", rough(most(left.value)));
        if left.high.is_finite() {
            words += &format!(" ({} to {})", rough(most(left.low)), rough(most(left.high)));
        }
    }
    words
}

/// A duration in its largest unit, and the next.
fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let step = match seconds {
        0..60 => 1,
        60..3600 => 60,
        3600..86_400 => 600,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds / step * step)).to_string()
}

impl Subject {
    /// As people call it.
    pub fn name(&self) -> String {
        match self {
            Self::Tree { root, command, container, .. } => {
                let place = container.as_ref().map(|container| format!(" in container {}", container.label()));
                format!("{} ({}){}", shortened(command), root.tgid, place.unwrap_or_default())
            }
            Self::Cgroup { container: Some(container), .. } => format!("container {}", container.label()),
            Self::Cgroup { path, .. } => format!("cgroup {path}"),
            Self::Host => "the machine".to_owned(),
            Self::Gpu { index, .. } => format!("GPU {index}"),
        }
    }

    /// As tables call it: the same after a container was started anew under its name.
    pub fn label(&self) -> String {
        match self {
            Self::Tree { root, command, .. } => format!("tree {} {}", root.tgid, shortened(command)),
            Self::Cgroup { .. } | Self::Host | Self::Gpu { .. } => self.name(),
        }
    }
}

/// Enough of a command line to know it by, without the directory of its program.
pub(crate) fn shortened(command: &str) -> String {
    const MOST: usize = 48;
    let program = command.split(' ').next().unwrap_or_default();
    let command = &command[program.rfind('/').map_or(0, |slash| slash + 1)..];
    match command.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_called_by_its_program_without_directories() {
        assert_eq!(shortened("/usr/bin/python3 /srv/app.py"), "python3 /srv/app.py");
        assert_eq!(shortened("nginx: worker process /etc"), "nginx: worker process /etc");
        assert_eq!(shortened(&format!("/bin/{}", "x".repeat(50))), format!("{}…", "x".repeat(48)));
        assert_eq!(shortened(""), "");
    }

    #[test]
    fn times_are_told_as_roughly_as_they_are_known() {
        let told = [(59, "59s"), (3599, "59m"), (5432, "1h 30m"), (100_000, "1day 3h")];
        for (seconds, words) in told {
            assert_eq!(rough(Duration::from_secs(seconds)), words);
        }
    }
}
