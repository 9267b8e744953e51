//! The subjects of a recording: process trees, and the cgroups of containers and services.

use super::Take;
use crate::{
    detect::{Point, each_subject},
    history::Recording,
    model::snapshot::Snapshot,
};
use std::path::Path;

/// Replays a recording. What of it cannot be read is told on standard error.
pub(super) fn read(path: &Path, take: Take<'_>) -> anyhow::Result<()> {
    let recording = Recording::open(path)?;
    recording.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    recording.for_each_snapshot(|time_ns, snapshot| tell(time_ns as f64 / 1e9, snapshot, take))?;
    Ok(())
}

fn tell(time_seconds: f64, snapshot: &Snapshot, take: Take<'_>) {
    each_subject(snapshot, |_, point, subject| {
        take(&subject().label(), &Point { time_seconds, ..point }, true);
    });
}
