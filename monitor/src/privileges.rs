//! The capabilities of this process (capabilities(7)): what is lost without each, and laying down those that were needed
//! for the start only.
//!
//! Capabilities belong to threads, and threads inherit those of the thread that started them.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use serde::Serialize;

/// All that counting and looking up takes, from start to end: the bounding set of the service.
///
/// Loading and attaching needs the first two; before Linux 5.19 so does every look at a map.
const NEEDED: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYSLOG,
];

/// What is lost without a capability that the agent can do without.
const EFFECTS: [(Capability, &str, &str); 3] = [
    (Capability::CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "files in /proc of processes with other rights are not read"),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "CAP_DAC_READ_SEARCH",
        "cgroups that no record told of have no names, and other users' files are not read",
    ),
    (Capability::CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "run times of the kernel programs are not measured"),
];

/// A capability that this process does without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lacking {
    /// Its name.
    pub capability: &'static str,
    /// What is lost.
    pub effect: &'static str,
}

/// What the calling thread does without; with `keep_needed`, once [`keep_needed`] was called.
pub fn lacking(keep_needed: bool) -> Vec<Lacking> {
    let Ok(has) = caps::read(None, CapSet::Effective) else { return Vec::new() };
    let has = if keep_needed { kept(&has) } else { has };
    let lacking = EFFECTS.into_iter().filter(|(capability, ..)| !has.contains(capability));
    lacking.map(|(_, capability, effect)| Lacking { capability, effect }).collect()
}

/// Lays down, for the calling thread and those it starts, everything but what counting and looking up takes; programs
/// they execute cannot get it back.
pub fn keep_needed() -> Result<(), CapsError> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(format!("PR_SET_NO_NEW_PRIVS: {}", std::io::Error::last_os_error()).into());
    }
    let keep = kept(&caps::read(None, CapSet::Permitted)?);
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)
}

/// Those of the capabilities to keep. CAP_SYS_ADMIN is among them only where it stands in for CAP_BPF.
fn kept(has: &CapsHashSet) -> CapsHashSet {
    let mut keep: CapsHashSet = NEEDED.into_iter().filter(|capability| has.contains(capability)).collect();
    if !keep.contains(&Capability::CAP_BPF) && has.contains(&Capability::CAP_SYS_ADMIN) {
        keep.insert(Capability::CAP_SYS_ADMIN);
    }
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_capabilities_are_kept_of_all() {
        assert_eq!(kept(&caps::all()), NEEDED.into_iter().collect());
    }

    #[test]
    fn what_is_not_there_is_not_kept() {
        let has = CapsHashSet::from([Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN]);
        assert_eq!(kept(&has), CapsHashSet::from([Capability::CAP_BPF]));
    }

    #[test]
    fn the_capability_that_stands_in_for_the_others_is_kept_where_it_does() {
        let has = CapsHashSet::from([Capability::CAP_SYS_ADMIN, Capability::CAP_CHOWN]);
        assert_eq!(kept(&has), CapsHashSet::from([Capability::CAP_SYS_ADMIN]));
    }

    #[test]
    fn a_thread_keeps_what_is_needed_and_says_what_that_costs() {
        let thread = std::thread::spawn(|| {
            let foretold = lacking(true);
            keep_needed().unwrap();
            assert_eq!(lacking(false), foretold);
            assert!(foretold.iter().any(|lacking| lacking.capability == "CAP_SYS_ADMIN"), "{foretold:?}");
            caps::read(None, CapSet::Permitted).unwrap()
        });
        let left = thread.join().unwrap();
        assert!(left.is_subset(&NEEDED.into_iter().collect()), "{left:?}");
    }
}
