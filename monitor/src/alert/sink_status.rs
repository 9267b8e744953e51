//! What becomes of alerts that are told: written by each sink's thread, read by whoever answers.

use serde::{Serialize, Serializer};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What became of what a sink was handed.
#[derive(Debug, Serialize)]
pub struct SinkStatus {
    /// Which.
    pub name: &'static str,
    /// Alerts and their ends that were told.
    #[serde(rename = "sent_total", serialize_with = "number")]
    pub sent: AtomicU64,
    /// Tries that failed.
    #[serde(rename = "failures_total", serialize_with = "number")]
    pub failures: AtomicU64,
    /// What was never told, for want of room or after too many tries.
    #[serde(rename = "dropped_total", serialize_with = "number")]
    pub dropped: AtomicU64,
    /// What waits.
    #[serde(serialize_with = "number")]
    pub queued: AtomicU64,
    /// Why the last try failed; none where it did not.
    #[serde(serialize_with = "text")]
    pub error: Mutex<Option<String>>,
}

fn number<S: Serializer>(number: &AtomicU64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(number.load(Relaxed))
}

fn text<S: Serializer>(text: &Mutex<Option<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.lock().unwrap_or_else(PoisonError::into_inner).serialize(serializer)
}

impl SinkStatus {
    /// Of a sink that was handed nothing yet.
    pub const fn of(name: &'static str) -> Self {
        Self {
            name,
            sent: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            error: Mutex::new(None),
        }
    }
}
