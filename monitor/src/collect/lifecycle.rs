//! Source `lifecycle`: what its records could not tell is looked up in /proc and cgroupfs; what they lost is swept up.

use super::{block_io, cgroup::CgroupFiles, descriptors::Absent, process};
use crate::{
    ids::{CgroupId, ProcessId},
    sample::{Found, Unknown},
};
use std::collections::HashSet;

/// What was found when all was looked through.
#[derive(Debug)]
pub struct Survey {
    /// What there is, and what has gone.
    pub found: Found,
    /// Whether something could not be looked at for want of file descriptors, and is to be looked for again.
    pub wants: bool,
}

/// Everything that is there when the agent starts.
pub fn survey(cgroups: &CgroupFiles) -> Survey {
    look_through(cgroups).0
}

/// Everything that is there, and whether all cgroups are known.
fn look_through(cgroups: &CgroupFiles) -> (Survey, bool) {
    let ((walked, unseen_cgroups), (processes, unseen)) = (cgroups.walk(), process::all(cgroups));
    let found = Found { cgroups: walked, processes, ..Found::default() };
    let wants = unseen.max(unseen_cgroups) == Some(Absent::Want);
    (Survey { found, wants }, unseen_cgroups <= Some(Absent::Gone))
}

/// Answers for what a sample mentions and the model does not know.
pub fn look_up(unknown: &Unknown, cgroups: &CgroupFiles) -> Found {
    let mut found = Found::default();
    for id in &unknown.cgroups {
        found.cgroups.extend(cgroups.find(*id));
    }
    found.processes = unknown.processes.iter().map(|(id, cgroup)| process::find(*id, *cgroup, cgroups)).collect();
    found.devices = unknown.devices.iter().map(|id| (*id, block_io::device_name(*id))).collect();
    found
}

/// Compares what is thought to be there with what is: after records were lost, or where there are none. Gone is only what is
/// certain to be.
pub fn sweep(
    running: impl Iterator<Item = ProcessId>,
    present: impl Iterator<Item = CgroupId>,
    cgroups: &CgroupFiles,
) -> Survey {
    let (Survey { mut found, mut wants }, knows_cgroups) = look_through(cgroups);
    for id in running {
        match process::runs(id) {
            Ok(true) => {}
            Ok(false) => found.gone.push(id),
            Err(absent) => wants |= absent == Absent::Want,
        }
    }
    // One that was not found may be in a directory that could not be read.
    if knows_cgroups {
        let there: HashSet<_> = found.cgroups.iter().map(|(id, _)| *id).collect();
        found.gone_cgroups = present.filter(|id| !there.contains(id)).collect();
    }
    Survey { found, wants }
}
