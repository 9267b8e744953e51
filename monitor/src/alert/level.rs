//! How something stands in one tick, against what it should be.

use super::{evidence::Evidence, rule::Rule, usual::Metric};
use crate::{
    detect::{Severity, Subject},
    ids::{CgroupId, ProcessKey},
};

/// Whom a level is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// The machine.
    Host,
    /// A cgroup.
    Cgroup(CgroupId),
    /// The tree of this root.
    Tree(ProcessKey),
    /// A GPU, by its name for good or else its number.
    Gpu(String),
    /// One number of somebody's.
    Metric(Metric, Box<Self>),
}

/// A level. Its mean over the time for which it must hold is compared with the threshold.
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub(super) rule: Rule,
    pub(super) key: Key,
    pub(super) value: f64,
    pub(super) limits: Limits,
}

/// Where it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limits {
    /// Not above `warning`; above `critical` it is that.
    Above { warning: f64, critical: Option<f64> },
    /// Not below.
    Below { warning: f64 },
    /// It is out of the ordinary by itself, as somebody else has judged.
    Judged(Severity),
}

/// Is shown levels, each with how it is put into words where it has held, by its mean.
pub(super) type Show<'a> = &'a mut dyn FnMut(Level, &dyn Fn(&Level, f64) -> Told);

/// A level that has held, put into words.
pub(super) struct Told {
    pub(super) subject: Subject,
    pub(super) summary: String,
    pub(super) evidence: Evidence,
}

impl Limits {
    /// How bad a value is; none where it is as it should be.
    pub(super) fn judge(self, value: f64) -> Option<Severity> {
        match self {
            Self::Above { critical: Some(critical), .. } if value > critical => Some(Severity::Critical),
            Self::Above { warning, .. } => (value > warning).then_some(Severity::Warning),
            Self::Below { warning } => (value < warning).then_some(Severity::Warning),
            Self::Judged(severity) => Some(severity),
        }
    }

    /// Whether a value is well within: what was told is taken back only then, lest one that wavers is told again and again.
    pub(super) fn is_relieved(self, value: f64) -> bool {
        /// A tenth of the threshold.
        const RELIEF: f64 = 0.1;
        match self {
            Self::Above { warning, .. } => value <= warning * (1.0 - RELIEF),
            Self::Below { warning } => value >= (warning * (1.0 + RELIEF)).min(1.0),
            Self::Judged(_) => false,
        }
    }

    /// The threshold that a value of this severity is beyond.
    pub(super) const fn threshold(self, severity: Severity) -> Option<f64> {
        match (self, severity) {
            (Self::Above { critical: Some(critical), .. }, Severity::Critical) => Some(critical),
            (Self::Above { warning, .. } | Self::Below { warning }, _) => Some(warning),
            (Self::Judged(_), _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_its_threshold_is_as_it_should_be_and_relief_is_a_tenth_away() {
        let above = Limits::Above { warning: 0.8, critical: Some(0.9) };
        let judged = [0.8, 0.85, 0.9, 0.95].map(|value| above.judge(value));
        assert_eq!(judged, [None, Some(Severity::Warning), Some(Severity::Warning), Some(Severity::Critical)]);
        assert_eq!([0.73, 0.72].map(|value| above.is_relieved(value)), [false, true]);
        let below = Limits::Below { warning: 0.5 };
        assert_eq!([0.5, 0.4].map(|value| below.judge(value)), [None, Some(Severity::Warning)]);
        assert_eq!([0.5, 0.56].map(|value| below.is_relieved(value)), [false, true]);
        assert!(Limits::Below { warning: 1.0 }.is_relieved(1.0), "a GPU cannot do more");
        assert_eq!((above.threshold(Severity::Critical), above.threshold(Severity::Warning)), (Some(0.9), Some(0.8)));
    }
}
