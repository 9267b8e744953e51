//! An alert as sinks tell it: with the host's name, and times of the wall clock.

use crate::{
    alert::{Alert, Evidence, OomEvidence, Rule, State},
    detect::{Severity, Subject, shortened},
    ids::Tgid,
    output::harmless,
    serve::AlertView,
    time::BootTime,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::SystemTime};

/// An alert to be told.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The alert.
    pub alert: Arc<Alert>,
    /// Whose.
    pub host: Arc<str>,
    /// When it was told that it goes on.
    pub fired: SystemTime,
    /// When it was over.
    pub resolved: Option<SystemTime>,
}

impl Notice {
    pub(super) fn of(alert: &Arc<Alert>, host: &Arc<str>) -> Self {
        Self {
            host: Arc::clone(host),
            fired: alert.fired.wall(),
            resolved: alert.resolved.map(BootTime::wall),
            alert: Arc::clone(alert),
        }
    }

    /// One that tries a sink out, and its end.
    pub(super) fn of_test(host: &Arc<str>) -> [Self; 2] {
        let now = BootTime::now();
        let evidence = OomEvidence { pid: Tgid(std::process::id()), command: "monitor".to_owned(), kills: 0 };
        let firing = Alert {
            rule: Rule::OomKill,
            state: State::Firing,
            severity: Severity::Warning,
            subject: Subject::Host,
            since: now,
            fired: now,
            resolved: None,
            value: None,
            threshold: None,
            summary: "This is a test: `monitor alerts test` was run, and nothing is wrong".to_owned(),
            silenced: false,
            evidence: Evidence::Oom(evidence),
        };
        let resolved = Alert { state: State::Resolved, resolved: Some(now), ..firing.clone() };
        [firing, resolved].map(|alert| Self::of(&Arc::new(alert), host))
    }

    /// What is the same of an alert from its beginning to its end, and of no other on this host.
    pub(super) fn identity(&self) -> (Rule, String) {
        (self.alert.rule, self.alert.subject.label())
    }

    /// For people: "[Resources] ⚠️ warning on web-1: …". Nothing in it moves a cursor.
    pub(super) fn line(&self) -> String {
        let Alert { state, severity, summary, .. } = &*self.alert;
        let summary = harmless(summary);
        match state {
            State::Firing => format!("[Resources] ⚠️ {} on {}: {summary}", severity.name(), self.host),
            State::Resolved => format!("[Resources] ✅ resolved on {}: {summary}", self.host),
        }
    }

    /// All of it.
    pub(super) fn json(&self) -> Value {
        let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
        let mut whole = serde_json::to_value(AlertView::of(&self.alert)).unwrap_or_default();
        if let Subject::Tree { command, .. } = &self.alert.subject {
            // Arguments may hold what is nobody's business elsewhere.
            whole["subject"]["command_line"] = json!(shortened(command));
        }
        whole["host"] = json!(*self.host);
        whole["fired_time"] = json!(time(self.fired));
        whole["resolved_time"] = json!(self.resolved.map(time));
        whole
    }
}
