//! What of the numbers is out of the ordinary: pure state machines. Time and data are arguments; nothing here reads a clock or a file.
//!
//! [`exceeded`] judges one snapshot by itself. The others judge one subject over time: a [`Judge`] feeds them its
//! [`Point`]s and sums them up in one [`Judgement`].

mod allocation;
mod finding;
mod judge;
mod leak;
mod regression;
mod reset;
mod slope;
mod thresholds;
mod watch;

pub use allocation::{Allocation, AllocationReport, Growth};
pub(crate) use finding::shortened;
pub use finding::{Account, Evidence, Finding, Severity, Subject};
pub use judge::{CountedBy, Detectors, Judge, Judgement, Point, RequestCoverage};
pub use leak::{Both, Leak, LeakReport, Reason, Verdict};
pub use regression::{Regression, RegressionReport, Settings, Statistics};
pub use reset::Resets;
pub use slope::Estimate;
pub(crate) use slope::{line_apart, median};
pub(crate) use thresholds::Against;
pub use thresholds::{Exceeded, exceeded};
pub use watch::{Findings, Key, Watch, Watching, each_subject};
pub(crate) use watch::{cgroup_subject, subject_cgroups, tree_subject};
