//! Prometheus' Alertmanager (API v2). It wants to be told again and again of what goes on, and takes an alert for resolved at its
//! `endsAt`: so an agent that dies takes its alerts with it.

use super::{Notice, Sink, http::Poster, worker::Failure};
use crate::{
    alert::{Rule, State},
    detect::Severity,
    output::harmless,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// How often what goes on is told again.
const EVERY: Duration = Duration::from_secs(30);
/// What was not told again for so long is over.
const ENDS_AFTER: Duration = Duration::from_secs(150);

/// Posts to an Alertmanager.
pub(super) struct Alertmanager {
    poster: Poster,
    firing: BTreeMap<(Rule, String), Notice>,
}

impl Alertmanager {
    pub(super) fn new(address: &str) -> anyhow::Result<Self> {
        let poster = Poster::new(&format!("{}/api/v2/alerts", address.trim_end_matches('/')))?;
        Ok(Self { poster, firing: BTreeMap::new() })
    }
}

impl Sink for Alertmanager {
    fn name(&self) -> &'static str {
        "alertmanager"
    }

    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        let identity = notice.identity();
        let now = SystemTime::now();
        let mut all = vec![alert(notice, now)];
        // Its severity is one of the labels, by which an alert is known there: the milder one is over.
        if let Some(before) = self.firing.get(&identity).filter(|b| b.alert.severity != notice.alert.severity) {
            all.push(alert(&Notice { resolved: Some(now), ..before.clone() }, now));
        }
        // What was not told is as it was: another try is to say the same.
        self.poster.post(&Value::Array(all))?;
        match notice.alert.state {
            State::Firing => drop(self.firing.insert(identity, notice.clone())),
            State::Resolved => drop(self.firing.remove(&identity)),
        }
        Ok(())
    }

    fn every(&self) -> Option<Duration> {
        Some(EVERY)
    }

    fn repeat(&mut self) -> Option<Result<(), Failure>> {
        let now = SystemTime::now();
        let all: Vec<_> = self.firing.values().map(|notice| alert(notice, now)).collect();
        (!all.is_empty()).then(|| self.poster.post(&Value::Array(all)))
    }
}

/// An alert in Alertmanager's form. Labels are what it is known by, so nothing that changes while it goes on is one.
fn alert(notice: &Notice, now: SystemTime) -> Value {
    let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
    let whole = notice.json();
    let mut labels = json!({
        "alertname": format!("monitor_{}", notice.alert.rule.name()),
        "instance": *notice.host,
        "severity": notice.alert.severity.name(),
        "subject": harmless(&notice.alert.subject.label()),
    });
    for name in ["cgroup", "gpu_uuid"] {
        if let Some(text) = whole["subject"][name].as_str() {
            labels[name] = json!(harmless(text));
        }
    }
    for (label, field) in [("namespace", "namespace"), ("pod", "pod"), ("container", "name")] {
        if let Some(text) = whole["subject"]["container"][field].as_str() {
            labels[label] = json!(harmless(text));
        }
    }
    json!({
        "labels": labels,
        "annotations": { "summary": harmless(&notice.alert.summary), "evidence": whole["evidence"].to_string() },
        "startsAt": time(notice.fired),
        "endsAt": time(notice.resolved.unwrap_or(now + ENDS_AFTER)),
    })
}

/// So that a worse severity sorts before a milder one wherever it is shown.
const _: () = assert!((Severity::Critical as u8) < Severity::Warning as u8);
