//! All that is known after a tick: the snapshot, and what is concluded from it. In one place, so that the agent and who reads a
//! recording conclude the same.

use crate::{
    alert::{
        Alert, Alerts, Standing,
        oom::{BlackBox, Stories, Story},
    },
    config::Config,
    detect::{Findings, Watch},
    ids::ProcessKey,
    model::snapshot::Snapshot,
};
use std::sync::Arc;

/// All that is known after a tick. Its parts are of the same moment.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// What was counted and read.
    pub snapshot: Arc<Snapshot>,
    /// What the detectors claim.
    pub findings: Arc<Findings>,
    /// What is out of the ordinary.
    pub alerts: Arc<Standing>,
    /// Why processes were killed for want of memory.
    pub stories: Stories,
}

/// What is new with a picture.
#[derive(Debug, Default)]
pub struct News {
    /// Alerts that began, became worse, or were over.
    pub alerts: Vec<Arc<Alert>>,
    /// Kills.
    pub stories: Vec<Arc<Story>>,
}

/// Who concludes.
#[derive(Debug)]
pub struct Judges {
    watch: Watch,
    /// Judges by thresholds.
    pub alerts: Alerts,
    black_box: BlackBox,
}

impl Judges {
    /// Nothing seen yet.
    pub fn new(config: &Config) -> Self {
        Self {
            watch: Watch::new(config.regression),
            alerts: Alerts::new(config.thresholds, config.alerts.clone()),
            black_box: BlackBox::default(),
        }
    }

    /// Takes in a snapshot, and the trees whose detectors begin anew with it.
    pub fn take(&mut self, snapshot: Arc<Snapshot>, resets: &[ProcessKey]) -> (Picture, News) {
        let findings = self.watch.take(&snapshot, resets);
        let (alerts, told) = self.alerts.take(&snapshot, &findings);
        let killed = self.black_box.take(&snapshot);
        let stories = self.black_box.stories();
        (Picture { snapshot, findings, alerts, stories }, News { alerts: told, stories: killed })
    }
}
