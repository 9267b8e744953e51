//! Alerts, told to people and to other programs: in the log, as lines of JSON, to a webhook, to Alertmanager, to a program, by mail.
//!
//! Each sink has a thread and a bounded queue of its own, so that one that is dead, slow or refuses keeps nobody waiting: neither
//! the agent nor another sink. What fails is tried again, later and later; what found no room, or was tried for too long, is lost,
//! and counted.

mod alertmanager;
mod email;
mod exec;
mod http;
mod json_lines;
mod logged;
mod notice;
mod stories;
mod webhook;
mod worker;

pub use notice::Notice;
pub use worker::Failure;

use crate::{
    alert::{Alert, SinkStatus, oom::Story},
    config::{self, Config},
};
use anyhow::Context as _;
use std::{sync::Arc, time::Duration};
use stories::StoryFiles;
use worker::Worker;

/// How long one try may take.
const TRY_FOR: Duration = Duration::from_secs(10);

/// Where alerts go. It may block for about [`TRY_FOR`].
trait Sink: Send {
    /// Its name, as answers have it.
    fn name(&self) -> &'static str;

    /// Tells an alert.
    fn send(&mut self, notice: &Notice) -> Result<(), Failure>;

    /// How often to repeat what goes on; none for never.
    fn every(&self) -> Option<Duration> {
        None
    }

    /// Repeats what goes on; none where nothing does.
    fn repeat(&mut self) -> Option<Result<(), Failure>> {
        None
    }
}

/// All sinks of a configuration.
#[derive(Debug, Default)]
pub struct Sinks {
    workers: Vec<Worker>,
    stories: Option<StoryFiles>,
    host: Arc<str>,
}

impl Sinks {
    /// Starts a thread for each sink.
    ///
    /// # Errors
    /// A setting makes no sense, or a thread cannot be started.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let host = host();
        let stories = StoryFiles::start(&config.oom, &host)?;
        let sinks = if config.alerts.enabled { sinks(config)? } else { Vec::new() };
        let workers = sinks.into_iter().map(Worker::start).collect::<Result<_, _>>()?;
        Ok(Self { workers, stories, host })
    }

    /// Hands alerts on. Never waits.
    pub fn tell(&self, alerts: &[Arc<Alert>]) {
        for alert in alerts.iter().filter(|alert| !alert.silenced) {
            let notice = Arc::new(Notice::of(alert, &self.host));
            self.workers.iter().for_each(|worker| worker.hand(&notice));
        }
    }

    /// Keeps why processes were killed, where the configuration says so. Never waits.
    pub fn keep(&self, stories: &[Arc<Story>]) {
        if let Some(files) = &self.stories {
            stories.iter().for_each(|story| files.hand(story));
        }
    }

    /// What became of what was handed on.
    pub fn status(&self) -> Vec<Arc<SinkStatus>> {
        self.workers.iter().map(Worker::status).collect()
    }

    /// Lets what waits be told, for a moment.
    pub fn finish(self) {
        self.workers.into_iter().for_each(Worker::finish);
        if let Some(files) = self.stories {
            files.finish();
        }
    }
}

/// Whether all sinks' settings make sense.
///
/// # Errors
/// One does not.
pub fn check(config: &Config) -> Result<(), config::Error> {
    sinks(config).map(drop).map_err(|error| config::Error::Conflict(format!("{error:#}")))
}

/// Sends one alert through every sink, and waits for it: each one's name, and how it went.
///
/// # Errors
/// A setting makes no sense.
pub fn test(config: &Config) -> anyhow::Result<Vec<(&'static str, Result<(), Failure>)>> {
    let host = host();
    let tried = sinks(config)?.into_iter().map(|mut sink| {
        // Taken back at once, so that nobody goes on seeing it.
        let sent = Notice::of_test(&host).iter().try_for_each(|notice| sink.send(notice));
        (sink.name(), sent)
    });
    Ok(tried.collect())
}

fn sinks(config: &Config) -> anyhow::Result<Vec<Box<dyn Sink>>> {
    let settings = &config.alerts;
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if settings.log {
        sinks.push(Box::new(logged::Log));
    }
    if let Some(path) = &settings.json_lines {
        sinks.push(Box::new(json_lines::JsonLines::new(path)));
    }
    if let Some(address) = &settings.webhook {
        sinks.push(Box::new(webhook::Webhook::new(address).context("alerts.webhook")?));
    }
    if let Some(address) = &settings.alertmanager {
        sinks.push(Box::new(alertmanager::Alertmanager::new(address).context("alerts.alertmanager")?));
    }
    if let Some(program) = &settings.exec {
        sinks.push(Box::new(exec::Exec::new(program)));
    }
    if let Some(server) = &settings.email_server {
        let (from, to) = (settings.email_from.as_deref(), &settings.email_to);
        sinks.push(Box::new(email::Email::new(server, from, to)?));
    }
    Ok(sinks)
}

fn host() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().into()
}
