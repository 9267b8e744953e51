//! Source `lifecycle`: what its records could not tell is looked up in /proc and cgroupfs; what they lost is swept up.

use super::{block_io, cgroup::CgroupFiles, process};
use crate::{
    ids::{CgroupId, ProcessId},
    sample::{Found, Unknown},
};
use std::collections::HashSet;

/// Everything that is there when the agent starts.
pub fn survey(cgroups: &CgroupFiles) -> Found {
    Found { cgroups: cgroups.walk(), processes: process::all(cgroups), ..Found::default() }
}

/// Answers for what a sample mentions and the model does not know.
pub fn look_up(unknown: &Unknown, cgroups: &CgroupFiles) -> Found {
    let mut found = Found::default();
    for id in &unknown.cgroups {
        found.cgroups.extend(cgroups.find(*id));
    }
    found.processes = unknown.processes.iter().map(|id| process::find(*id, cgroups)).collect();
    found.devices = unknown.devices.iter().map(|id| (*id, block_io::device_name(*id))).collect();
    found
}

/// Compares what is thought to be there with what is: after records were lost, or where there are none.
pub fn sweep(
    running: impl Iterator<Item = ProcessId>,
    present: impl Iterator<Item = CgroupId>,
    cgroups: &CgroupFiles,
) -> Found {
    let mut found = survey(cgroups);
    found.gone = running.filter(|id| !process::runs(*id)).collect();
    let there: HashSet<_> = found.cgroups.iter().map(|(id, _)| *id).collect();
    found.gone_cgroups = present.filter(|id| !there.contains(id)).collect();
    found
}
