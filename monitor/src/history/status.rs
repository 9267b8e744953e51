//! How a recording is doing: written by its thread, told by `/v1/health`.

use serde::Serialize;
use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Shared between the loop, the recording's thread and whoever asks.
#[derive(Debug)]
pub struct Status {
    path: PathBuf,
    bytes: AtomicU64,
    snapshots: AtomicU64,
    lost_samples: AtomicU64,
    checkpoint_wanted: AtomicBool,
    stopped: Mutex<Option<String>>,
}

/// A [`Status`] at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The file or directory.
    pub path: PathBuf,
    /// Why nothing is written now; none while all is well.
    pub stopped: Option<String>,
    /// Bytes written.
    pub bytes_total: u64,
    /// Snapshots in them.
    pub snapshots_total: u64,
    /// Samples that were not written, because the disk was too slow, full or refused them. What is recorded goes on right
    /// after such a gap: it begins a chapter.
    pub lost_samples_total: u64,
}

impl Told {
    /// What is not as it should be, a line each.
    pub fn reasons(&self) -> impl Iterator<Item = String> {
        let stopped = self.stopped.as_ref().map(|reason| format!("recording has stopped: {reason}"));
        let lost =
            (self.lost_samples_total > 0).then(|| format!("recording has lost {} samples", self.lost_samples_total));
        stopped.into_iter().chain(lost)
    }
}

impl Status {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            bytes: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            lost_samples: AtomicU64::new(0),
            checkpoint_wanted: AtomicBool::new(true),
            stopped: Mutex::new(None),
        }
    }

    /// How it stands.
    pub fn told(&self) -> Told {
        Told {
            path: self.path.clone(),
            stopped: self.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            bytes_total: self.bytes.load(Relaxed),
            snapshots_total: self.snapshots.load(Relaxed),
            lost_samples_total: self.lost_samples.load(Relaxed),
        }
    }

    pub(super) fn wrote(&self, bytes: usize, snapshots: u64) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.snapshots.fetch_add(snapshots, Relaxed);
    }

    pub(super) fn lost_sample(&self) {
        self.lost_samples.fetch_add(1, Relaxed);
    }

    pub(super) fn want_checkpoint(&self) {
        self.checkpoint_wanted.store(true, Relaxed);
    }

    /// Whether a checkpoint was asked for since this was last called.
    pub(super) fn take_checkpoint_wish(&self) -> bool {
        self.checkpoint_wanted.swap(false, Relaxed)
    }

    /// Changes why nothing is written, and tells why it was so before.
    pub(super) fn set_stopped(&self, reason: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.stopped.lock().unwrap_or_else(PoisonError::into_inner), reason)
    }
}
