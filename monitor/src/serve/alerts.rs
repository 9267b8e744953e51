//! Alerts as JSON.

use super::findings::SubjectView;
use crate::{
    alert::{Alert, Evidence, Rule, SinkStatus, Standing, State},
    detect::Severity,
    time::BootTime,
};
use serde::Serialize;
use std::sync::Arc;

/// All alerts, and what becomes of them.
#[derive(Serialize)]
pub(super) struct AlertsView<'a> {
    time_ns: BootTime,
    left_out: usize,
    alerts: Vec<AlertView<'a>>,
    sinks: &'a [Arc<SinkStatus>],
}

/// An alert as JSON.
#[derive(Serialize)]
pub struct AlertView<'a> {
    rule: Rule,
    state: State,
    severity: Severity,
    subject: SubjectView<'a>,
    since_ns: BootTime,
    fired_ns: BootTime,
    resolved_ns: Option<BootTime>,
    value: Option<f64>,
    threshold: Option<f64>,
    summary: &'a str,
    silenced: bool,
    evidence: &'a Evidence,
}

impl<'a> AlertsView<'a> {
    pub(super) fn of(standing: &'a Standing, sinks: &'a [Arc<SinkStatus>]) -> Self {
        let alerts = standing.alerts.iter().map(|alert| AlertView::of(alert)).collect();
        Self { time_ns: standing.time, left_out: standing.left_out, alerts, sinks }
    }
}

impl<'a> AlertView<'a> {
    /// Of an alert.
    pub fn of(alert: &'a Alert) -> Self {
        Self {
            rule: alert.rule,
            state: alert.state,
            severity: alert.severity,
            subject: SubjectView::of(&alert.subject),
            since_ns: alert.since,
            fired_ns: alert.fired,
            resolved_ns: alert.resolved,
            value: alert.value,
            threshold: alert.threshold,
            summary: &alert.summary,
            silenced: alert.silenced,
            evidence: &alert.evidence,
        }
    }
}
