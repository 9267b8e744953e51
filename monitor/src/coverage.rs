//! What was live, by which rung, and what was lost. It travels with the data, so that "no data" and "zero" stay apart.

use crate::{
    constant::{self, Name, Names},
    source::Source,
};
use serde::{Deserialize, Serialize};

/// The state of every source, in the order of [`Source::ALL`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Coverage(pub Vec<SourceCoverage>);

impl Coverage {
    /// Whether a source counts.
    pub fn is_live(&self, source: Source) -> bool {
        self.0.iter().any(|s| s.source == source && s.state == State::Live)
    }
}

/// What became of one source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceCoverage {
    /// Which.
    pub source: Source,
    /// Whether it counts.
    pub state: State,
    /// The rung it was attached by.
    #[serde(deserialize_with = "constant::optional")]
    pub rung: Option<Name>,
    /// The better rungs, best first, and why each was refused.
    pub refused: Vec<Refusal>,
    /// Whether it is unavailable because the kernel is older than any that has it, which is no fault.
    #[serde(default)]
    pub too_old: bool,
    /// Programs of the rung that could not be attached, though it does without them, and why.
    pub missing: Vec<MissingProgram>,
    /// Numbers of this source that the rung cannot tell, by how their names begin: they are null.
    #[serde(deserialize_with = "constant::names")]
    pub cannot_tell: Names,
    /// What else the rung's numbers leave out, for people.
    #[serde(deserialize_with = "constant::names")]
    pub caveats: Names,
    /// How far a number of bytes may be off, of one process and kind; none where that is not known, or it is not.
    #[serde(default)]
    pub error_bytes: Option<u64>,
    /// Moments (ring records) received and understood.
    pub seen_total: u64,
    /// Moments and counts lost, of whatever cause: the sum of `lost`.
    pub lost_total: u64,
    /// Where they were lost.
    pub lost: Loss,
}

/// Whether a source counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    Live,
    /// No rung could be attached.
    Unavailable,
    /// The configuration switched it off.
    Disabled,
}

impl State {
    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Unavailable => "unavailable",
            Self::Disabled => "disabled",
        }
    }
}

/// A program that a live source does without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingProgram {
    /// Its name.
    #[serde(deserialize_with = "constant::name")]
    pub program: Name,
    /// Why it is missing.
    pub reason: String,
}

/// A rung that was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its name.
    #[serde(deserialize_with = "constant::name")]
    pub rung: Name,
    /// Why not.
    pub reason: String,
}

/// Losses of one source by cause, since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Records that found no room in the ring. Totals are not affected.
    pub ring_full: u64,
    /// Counts not attributed to their process because a map was full. The host's totals are not affected.
    pub map_full: u64,
    /// Events whose other half was not seen.
    pub unmatched: u64,
    /// Program runs the kernel skipped, or the program gave up, because it interrupted itself.
    pub skipped_runs: u64,
    /// Records that could not be decoded.
    pub undecodable: u64,
}

impl Loss {
    /// All of them together.
    pub const fn total(&self) -> u64 {
        self.ring_full + self.map_full + self.unmatched + self.skipped_runs + self.undecodable
    }
}
