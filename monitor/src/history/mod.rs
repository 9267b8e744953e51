//! Recordings: the samples of a running agent on disk, and the way from there back to the very same snapshots.
//!
//! The agent hands over what its model takes in ([`Recorder`]); a thread writes it (`writer`), as frames (`frame`) of
//! entries (`Entry`) in files that are bounded (`store`). [`Recording`] finds a moment and drives a model to it.
//!
//! A recording is made of chapters. Each begins with a checkpoint, which holds the whole model, so that a reader can start
//! there, old chapters can be deleted, and damage reaches no further than the next chapter. docs/recordings.md has the format.

mod counters;
mod frame;
mod moment;
pub mod pages;
mod recorder;
mod replay;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use frame::Kind;
pub use moment::At;
pub use recorder::Recorder;
pub use replay::{Recorded, Recording};
pub use status::{Status, Told};
pub use store::Limits;

use crate::{
    model::Model,
    sample::{Harvest, Sample},
};
use counters::Changes;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, io, path::PathBuf, sync::Arc, time::Duration};

/// What a frame is made of, one behind the other, in the order in which the model met them.
#[derive(Debug, Serialize, Deserialize)]
enum Entry {
    /// The first of a chapter: everything before it may be forgotten.
    Checkpoint(Box<Checkpoint>),
    /// The model took this in.
    Sample {
        /// All of it but the counters.
        sample: Arc<Sample>,
        /// What changed in the counters; none where they were not read.
        counters: Option<Changes>,
    },
    /// The kernel forgot these keys.
    Forgotten(Harvest),
    /// A snapshot was taken, of the sample before this. It ends its frame.
    Snapshot,
}

/// Where a chapter begins.
#[derive(Debug, Serialize, Deserialize)]
struct Checkpoint {
    origin: Origin,
    model: Model,
}

/// Who recorded, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// The agent.
    pub agent: Identity,
    /// The host's name.
    pub host: String,
    /// Its kernel, as uname gives it.
    pub kernel_release: String,
    /// Which of its boots: the boot clock's times mean nothing in another.
    pub boot_id: String,
    /// The configured time from one snapshot to the next.
    pub tick: Duration,
    /// The doctor's report, as JSON.
    pub doctor: String,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its version.
    pub version: Cow<'static, str>,
    /// Its process.
    pub pid: u32,
}

impl Identity {
    /// This process.
    pub fn own() -> Self {
        Self { version: Cow::Borrowed(env!("CARGO_PKG_VERSION")), pid: std::process::id() }
    }
}

/// Why there is no recording, or no answer from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be written.
    #[error("cannot record to {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has reached its limit.
    #[error("{} has reached its {limit}: raise record.max_bytes, or record to a directory, which keeps the newest", path.display())]
    Full {
        /// Which.
        path: PathBuf,
        /// The limit, for people.
        limit: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is something else.
    #[error("{} is no {} of monitor: name another", path.display(), kind.name)]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What it should be.
        kind: Kind,
    },
    /// A file in a format that this program does not know.
    #[error(
        "{} was written by monitor {version} in format {format}, and this is monitor {own}, which knows format {known}: use monitor {version}",
        path.display(), own = env!("CARGO_PKG_VERSION"), known = kind.format
    )]
    Format {
        /// Which.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Who wrote it.
        version: String,
        /// What it is.
        kind: Kind,
    },
    /// What was written right cannot be understood.
    #[error("{} holds what this monitor does not understand ({reason}): use the monitor that wrote it", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A recording without any snapshot that can be read.
    #[error("{} holds no snapshot that can be read", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Settings that make no sense: of nobody, as a recording is read by those that nobody has set.
    #[error(transparent)]
    Settings(#[from] crate::config::Error),
    /// A moment before the recording.
    #[error("{} begins later, at {begin}, and ends at {end}", path.display())]
    TooEarly {
        /// Which.
        path: PathBuf,
        /// Its first snapshot.
        begin: String,
        /// Its last one.
        end: String,
    },
}
