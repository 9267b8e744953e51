//! All that is known after a tick: the snapshot, and what is concluded from it. In one place, so that the agent and who reads a
//! recording conclude the same.

use crate::{
    advise::{
        advisor::Advisor,
        budget::{Budgets, Loads},
        histories::Page,
    },
    alert::{
        Alert, Alerts, Standing,
        oom::{BlackBox, Stories, Story},
    },
    config::{self, Config},
    detect::{Findings, Watch},
    ids::ProcessKey,
    model::snapshot::Snapshot,
};
use std::{sync::Arc, time::SystemTime};

/// All that is known after a tick. Its parts are of the same moment.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What was counted and read.
    pub snapshot: Arc<Snapshot>,
    /// What the detectors claim.
    pub findings: Arc<Findings>,
    /// What is out of the ordinary.
    pub alerts: Arc<Standing>,
    /// Why processes were killed for want of memory.
    pub stories: Stories,
    /// Who advises what memory everybody should get, by all until now.
    pub advisor: Arc<Advisor>,
    /// What servers' memory budgets are drawn up from.
    pub loads: Arc<Loads>,
}

/// What is new with a picture.
#[derive(Debug, Default)]
pub struct News {
    /// Alerts that began, became worse, or were over.
    pub alerts: Vec<Arc<Alert>>,
    /// Kills.
    pub stories: Vec<Arc<Story>>,
    /// The interval of working sets that has ended.
    pub page: Option<Page>,
}

/// Who concludes.
#[derive(Debug)]
pub struct Judges {
    watch: Watch,
    /// Judges by thresholds.
    pub alerts: Alerts,
    black_box: BlackBox,
    /// Advises.
    pub advisor: Arc<Advisor>,
    budgets: Budgets,
}

impl Judges {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// A setting makes no sense.
    pub fn new(config: &Config) -> Result<Self, config::Error> {
        Ok(Self {
            watch: Watch::new(config.regression),
            alerts: Alerts::new(config.thresholds, config.alerts.clone()),
            black_box: BlackBox::default(),
            budgets: Budgets::default(),
            advisor: Arc::new(Advisor::new(&config.advice)?),
        })
    }

    /// A picture of which nothing is concluded.
    pub fn first(&self, snapshot: Arc<Snapshot>) -> Picture {
        let (findings, alerts, stories) = (Arc::default(), Arc::default(), Arc::default());
        let (loads, advisor) = (Arc::default(), Arc::clone(&self.advisor));
        Picture { snapshot, findings, alerts, stories, advisor, loads }
    }

    /// Takes in a snapshot, of that time of the wall clock, and the trees whose detectors begin anew with it.
    pub fn take(&mut self, snapshot: Arc<Snapshot>, wall: SystemTime, resets: &[ProcessKey]) -> (Picture, News) {
        let findings = self.watch.take(&snapshot, resets);
        let (alerts, told) = self.alerts.take(&snapshot, &findings, wall);
        let killed = self.black_box.take(&snapshot);
        let page = self.advisor.take(&snapshot, wall);
        let stories = self.black_box.stories();
        let (loads, advisor) = (self.budgets.take(&snapshot), Arc::clone(&self.advisor));
        let picture = Picture { snapshot, findings, alerts, stories, advisor, loads };
        (picture, News { alerts: told, stories: killed, page })
    }
}
