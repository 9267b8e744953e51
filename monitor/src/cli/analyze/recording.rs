//! The subjects of a recording: process trees, and the cgroups of containers and services.

use super::subjects::Subjects;
use crate::{
    detect::{Point, each_subject},
    history::Recording,
    model::snapshot::Snapshot,
};
use std::path::Path;

/// Replays a recording into its subjects. What of it cannot be read is told on standard error.
pub(super) fn read(path: &Path, subjects: &mut Subjects) -> anyhow::Result<()> {
    let recording = Recording::open(path)?;
    recording.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    recording.for_each_snapshot(|time_ns, snapshot| tell(time_ns as f64 / 1e9, snapshot, subjects))?;
    Ok(())
}

fn tell(time_seconds: f64, snapshot: &Snapshot, subjects: &mut Subjects) {
    each_subject(snapshot, |_, point, subject| {
        subjects.push(&subject().label(), &Point { time_seconds, ..point }, true);
    });
}
