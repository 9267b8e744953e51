//! From samples to snapshots: names, process trees, the cgroup tree, roll-ups, rates. Pure: time and data are arguments.

pub mod snapshot;
pub mod totals;
