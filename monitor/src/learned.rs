//! The file where it is kept what is usual, from one start of the agent to the next.

use crate::{
    alert::{Alerts, Learned},
    config::Config,
    durable,
};
use anyhow::Context as _;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// It is written this often: a crash costs as much.
const EVERY: Duration = Duration::from_secs(10 * 60);
/// Command lines are not in it, but names of containers are.
const MODE: u32 = 0o600;

/// Keeps it.
#[derive(Debug)]
pub struct LearnedFile {
    path: PathBuf,
    due: Instant,
}

impl LearnedFile {
    /// Hands what is in the file to the alerts; none where no file is wanted, or nothing is learned.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(config: &Config, alerts: &mut Alerts) -> anyhow::Result<Option<Self>> {
        let Some(path) = config.alerts.learned.as_ref().map(PathBuf::from) else { return Ok(None) };
        if alerts.learned().is_none() {
            return Ok(None);
        }
        let told = || format!("alerts.learned: cannot keep what is learned in {}", path.display());
        match fs::read(&path) {
            Ok(bytes) => match rmp_serde::from_slice(&bytes) {
                Ok(learned) => alerts.remember(learned),
                Err(_) => anyhow::bail!(
                    "alerts.learned: {} is something else than what was learned: name another file, or delete it",
                    path.display()
                ),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(told),
        }
        let learned = alerts.learned().unwrap_or_default();
        save(&path, &learned).with_context(told)?;
        Ok(Some(Self { path, due: Instant::now() + EVERY }))
    }

    /// Writes it where it is time to, in the background.
    pub fn keep(&mut self, alerts: &Alerts, servers: &Handle) {
        if Instant::now() < self.due {
            return;
        }
        self.due = Instant::now() + EVERY;
        if let Some(learned) = alerts.learned() {
            let path = self.path.clone();
            servers.spawn_blocking(move || complain(&path, save(&path, &learned)));
        }
    }

    /// Writes it for the next start.
    pub fn finish(self, alerts: &Alerts) {
        if let Some(learned) = alerts.learned() {
            complain(&self.path, save(&self.path, &learned));
        }
    }
}

fn save(path: &Path, learned: &Learned) -> io::Result<()> {
    let bytes = rmp_serde::to_vec(learned).map_err(io::Error::other)?;
    durable::replace(path, &bytes, MODE)
}

fn complain(path: &Path, saved: io::Result<()>) {
    if let Err(error) = saved {
        log::warn!("alerts.learned: cannot write {}: {error}; it is tried again in ten minutes", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> Config {
        let mut config = Config::default();
        config.thresholds.alert_deviation = true;
        config.alerts.learned = Some(path.display().to_string());
        config
    }

    #[test]
    fn what_is_something_else_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("learned");
        let config = config(&path);
        let open = || {
            let mut alerts = Alerts::new(config.thresholds, config.alerts.clone());
            LearnedFile::open(&config, &mut alerts).map(|file| file.map(|file| file.finish(&alerts)).is_some())
        };
        assert!(open().unwrap(), "a new file");
        assert!(open().unwrap(), "which is read again");
        fs::write(&path, "dear diary").unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains("something else") && error.contains("delete it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"dear diary");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_and_none_is_made_where_nothing_is_learned() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(&directory.path().join("none/learned"));
        let mut alerts = Alerts::new(config.thresholds, config.alerts.clone());
        assert!(LearnedFile::open(&config, &mut alerts).is_err());
        config.thresholds.alert_deviation = false;
        let mut alerts = Alerts::new(config.thresholds, config.alerts.clone());
        assert!(LearnedFile::open(&config, &mut alerts).unwrap().is_none());
    }
}
