//! Files that tell why the kernel killed: one for each time, the oldest make room for the newest.

use crate::{alert::oom::Story, config, durable};
use anyhow::Context as _;
use serde_json::json;
use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::Duration,
};

/// Stories that may wait for a disk.
const QUEUE: usize = 64;
/// How long the agent's end waits for what is under way.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Writes stories to files, in a thread of its own.
#[derive(Debug)]
pub(super) struct StoryFiles {
    queue: SyncSender<Arc<Story>>,
    ended: Receiver<()>,
}

impl StoryFiles {
    /// # Errors
    /// The directory cannot be had, or no thread.
    pub(super) fn start(settings: &config::Oom, host: &Arc<str>) -> anyhow::Result<Option<Self>> {
        let Some(directory) = settings.directory.as_ref().map(PathBuf::from) else { return Ok(None) };
        let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&directory);
        made.with_context(|| format!("oom.directory: cannot make {}", directory.display()))?;
        let (queue, waiting) = mpsc::sync_channel::<Arc<Story>>(QUEUE);
        let (ending, ended) = mpsc::channel();
        let (keep, host) = (settings.keep as usize, Arc::clone(host));
        let work = move || {
            for story in waiting {
                if let Err(error) = write(&directory, &story, &host, keep) {
                    log::warn!("oom.directory: {}: {error}; {}", directory.display(), story.summary);
                }
            }
            drop(ending);
        };
        thread::Builder::new().name("oom-stories".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Some(Self { queue, ended }))
    }

    pub(super) fn hand(&self, story: &Arc<Story>) {
        if self.queue.try_send(Arc::clone(story)).is_err() {
            log::warn!("oom.directory: too many wait to be written, this one is not: {}", story.summary);
        }
    }

    pub(super) fn finish(self) {
        drop(self.queue);
        let _ = self.ended.recv_timeout(END_WITHIN);
    }
}

/// Writes a file whole or not at all, and deletes those that are too many.
fn write(directory: &Path, story: &Story, host: &str, keep: usize) -> io::Result<()> {
    let time = humantime::format_rfc3339_millis(story.time_ns.wall()).to_string();
    let mut whole = serde_json::to_value(story).map_err(io::Error::other)?;
    whole["time"] = json!(time);
    whole["host"] = json!(host);
    let pid = story.victims.first().map(|victim| victim.pid.0).unwrap_or_default();
    // In order of time, by name.
    let name = format!("oom-{}-{pid}.json", time.replace(':', ""));
    durable::replace(&directory.join(&name), &serde_json::to_vec_pretty(&whole).map_err(io::Error::other)?, 0o640)?;
    let is_ours =
        |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("oom-") && name.ends_with(".json"));
    let mut ours: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.file_name()).filter(is_ours).collect();
    ours.sort();
    for old in ours.iter().take(ours.len().saturating_sub(keep)) {
        fs::remove_file(directory.join(old))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{serve::fixtures, time::BootTime};

    #[test]
    fn each_is_a_file_and_the_oldest_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let story = fixtures::stories()[0].as_ref().clone();
        fs::write(directory.path().join("another.json"), "{}").unwrap();
        for second in 0..5 {
            let story = Story { time_ns: BootTime(second * 1_000_000_000), ..story.clone() };
            write(directory.path(), &story, "web-1", 3).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
        let last = fs::read_to_string(directory.path().join(names.last().unwrap())).unwrap();
        let last: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&last["time_ns"], &last["host"]), (&json!(4_000_000_000_u64), &json!("web-1")));
        assert_eq!(last["victims"][0]["command"], "hog");
    }
}
