//! Findings as JSON.

use super::view::ContainerView;
use crate::{
    detect::{Estimate, Evidence, Finding, Findings, Severity, Subject, Watching},
    ids::Tgid,
    time::BootTime,
};
use serde::Serialize;

/// All findings.
#[derive(Serialize)]
pub(super) struct FindingsView<'a> {
    time_ns: BootTime,
    #[serde(flatten)]
    watching: Watching,
    findings: Vec<FindingView<'a>>,
}

#[derive(Serialize)]
struct FindingView<'a> {
    detector: &'static str,
    severity: Severity,
    subject: SubjectView<'a>,
    since_ns: BootTime,
    summary: &'a str,
    confidence: Option<f64>,
    bytes_per_1000_requests: Option<Estimate>,
    bytes_per_hour: Option<Estimate>,
    seconds_to_limit: Option<Estimate>,
    evidence: &'a Evidence,
}

#[derive(Serialize)]
pub(super) struct SubjectView<'a> {
    kind: &'static str,
    pid: Option<Tgid>,
    tree: Option<Tgid>,
    command_line: Option<&'a str>,
    cgroup: Option<&'a str>,
    container: Option<ContainerView<'a>>,
    gpu: Option<u32>,
    gpu_uuid: Option<&'a str>,
}

impl<'a> FindingsView<'a> {
    pub(super) fn of(findings: &'a Findings) -> Self {
        let all = findings.findings.iter().map(|finding| FindingView::of(finding)).collect();
        Self { time_ns: findings.time, watching: findings.watched, findings: all }
    }
}

impl<'a> FindingView<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            detector: finding.detector,
            severity: finding.severity,
            subject: SubjectView::of(&finding.subject),
            since_ns: finding.since,
            summary: &finding.summary,
            confidence: finding.confidence,
            bytes_per_1000_requests: finding.bytes_per_1000_requests,
            bytes_per_hour: finding.bytes_per_hour,
            seconds_to_limit: finding.seconds_to_limit,
            evidence: &finding.evidence,
        }
    }
}

impl<'a> SubjectView<'a> {
    pub(super) fn of(subject: &'a Subject) -> Self {
        let view = Self {
            kind: "host",
            pid: None,
            tree: None,
            command_line: None,
            cgroup: None,
            container: None,
            gpu: None,
            gpu_uuid: None,
        };
        match subject {
            Subject::Host => view,
            Subject::Gpu { index, uuid } => Self { kind: "gpu", gpu: Some(*index), gpu_uuid: uuid.as_deref(), ..view },
            Subject::Tree { root, command, cgroup, container } => Self {
                kind: "tree",
                pid: Some(root.tgid),
                tree: Some(root.tgid),
                command_line: Some(command),
                cgroup: cgroup.as_deref(),
                container: container.as_deref().map(ContainerView::of),
                ..view
            },
            Subject::Cgroup { path, container, .. } => Self {
                kind: "cgroup",
                cgroup: Some(path),
                container: container.as_deref().map(ContainerView::of),
                ..view
            },
        }
    }
}
