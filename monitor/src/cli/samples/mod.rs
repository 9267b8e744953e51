//! Samples of memory that were taken before: tables of them, and recordings.

mod csv;
mod recording;

pub(super) use csv::{Malformed, show_time};

use crate::{detect::Point, history::Recording};
use anyhow::Context as _;
use std::path::Path;

/// Takes a point of a subject, with whether its time is one of a calendar.
pub(super) type Take<'a> = &'a mut dyn FnMut(&str, &Point, bool);

/// Reads a CSV file, a recording, or a directory of recordings. What cannot be read of a recording is told on standard error.
pub(super) fn read(path: &Path, take: Take<'_>) -> anyhow::Result<()> {
    let is_recording = Recording::is_at(path).with_context(|| format!("cannot read {}", path.display()))?;
    if is_recording { recording::read(path, take) } else { csv::read(path, take) }
}
