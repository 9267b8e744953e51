//! Processes as /proc shows them. Any of them may vanish between two reads.

use super::{cgroup::CgroupFiles, descriptors::Absent};
use crate::{
    decode,
    ids::{ProcessId, TICK_NS, Tgid},
    sample::FoundProcess,
};
use monitor_common::lifecycle::ARGUMENTS_BYTES;
use procfs::{
    ProcError,
    process::{Process, Stat},
};
use std::{fs, io::Read};

impl From<ProcError> for Absent {
    fn from(error: ProcError) -> Self {
        match error {
            ProcError::NotFound(_) => Self::Gone,
            ProcError::Io(error, _) => Self::from(error),
            _ => Self::Untold,
        }
    }
}

/// All that run now, parents before their children; and the worst reason why one of them could not be told, where there is any.
pub fn all(cgroups: &CgroupFiles) -> (Vec<FoundProcess>, Option<Absent>) {
    let (mut found, mut worst) = (Vec::new(), None);
    let processes = match procfs::process::all_processes() {
        Ok(processes) => processes,
        Err(error) => return (found, Some(error.into())),
    };
    for process in processes {
        match process.map_err(Absent::from).and_then(|process| describe_any(&process, cgroups)) {
            Ok(process) => found.push(process),
            Err(absent) => worst = worst.max(Some(absent)),
        }
    }
    found.sort_by_key(|process| (process.id.start_ns, process.id.tgid));
    (found, worst)
}

fn describe_any(process: &Process, cgroups: &CgroupFiles) -> Result<FoundProcess, Absent> {
    let stat = process.stat()?;
    let id = ProcessId { tgid: Tgid(stat.pid as u32), start_ns: stat.starttime * TICK_NS };
    describe(id, process, &stat, cgroups)
}

/// One that a kernel counter or record mentioned. It is taken to run while nobody can tell, and then has no names.
pub fn find(id: ProcessId, cgroups: &CgroupFiles) -> FoundProcess {
    let look = || {
        let (process, stat) = current(id)?;
        describe(id, &process, &stat, cgroups)
    };
    look().unwrap_or_else(|absent| FoundProcess {
        id,
        parent: None,
        command: String::new(),
        command_line: String::new(),
        cgroup_path: None,
        running: absent != Absent::Gone,
    })
}

/// Whether a process still runs: its pid is in use, and by itself.
///
/// # Errors
/// Nobody can tell.
pub fn runs(id: ProcessId) -> Result<bool, Absent> {
    match current(id) {
        Ok((_, stat)) => Ok(lives(&stat)),
        Err(Absent::Gone) => Ok(false),
        Err(absent) => Err(absent),
    }
}

/// A process whose first thread has ended shows as a zombie while others of its threads go on.
fn lives(stat: &Stat) -> bool {
    !matches!(stat.state, 'Z' | 'X') || stat.num_threads > 1
}

fn current(id: ProcessId) -> Result<(Process, Stat), Absent> {
    let process = Process::new(id.tgid.0 as i32)?;
    let stat = process.stat()?;
    if stat.starttime == id.key().start_tick { Ok((process, stat)) } else { Err(Absent::Gone) }
}

/// All of it, or nothing for want of descriptors: a name that is not known now would be missing for good.
fn describe(id: ProcessId, process: &Process, stat: &Stat, cgroups: &CgroupFiles) -> Result<FoundProcess, Absent> {
    Ok(FoundProcess {
        id,
        parent: u32::try_from(stat.ppid).ok().filter(|&parent| parent != 0).map(Tgid),
        command: stat.comm.clone(),
        command_line: told(command_line(id.tgid))?.unwrap_or_default(),
        cgroup_path: told(cgroups.path_of(process))?.flatten(),
        running: lives(stat),
    })
}

/// What could be read, if anything.
fn told<T>(read: Result<T, Absent>) -> Result<Option<T>, Absent> {
    match read {
        Ok(told) => Ok(Some(told)),
        Err(Absent::Want) => Err(Absent::Want),
        Err(_) => Ok(None),
    }
}

/// As much of the arguments as an exec record would have told.
fn command_line(pid: Tgid) -> Result<String, Absent> {
    let mut arguments = Vec::with_capacity(ARGUMENTS_BYTES + 1);
    let file = fs::File::open(format!("/proc/{pid}/cmdline"))?;
    file.take(ARGUMENTS_BYTES as u64 + 1).read_to_end(&mut arguments)?;
    let cut = arguments.len() > ARGUMENTS_BYTES;
    arguments.truncate(ARGUMENTS_BYTES);
    Ok(decode::command_line(&arguments, cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::support::CgroupHierarchy;

    #[test]
    fn this_process_is_found_and_one_that_never_was_is_not() {
        let cgroups = CgroupFiles::new(CgroupHierarchy::V2 { mount: None });
        let pid = std::process::id();
        let (all, _) = all(&cgroups);
        let me = all.iter().find(|process| process.id.tgid == Tgid(pid)).expect("this process in /proc");
        assert!(me.running && !me.command_line.is_empty());
        assert_eq!(runs(me.id), Ok(true));
        assert_eq!(find(me.id, &cgroups).command, me.command);
        let reused = ProcessId { start_ns: me.id.start_ns + TICK_NS, ..me.id };
        assert!(runs(reused) == Ok(false) && !find(reused, &cgroups).running);
    }

    #[test]
    fn only_what_is_not_there_is_gone() {
        let of = |number| Absent::from(ProcError::Io(std::io::Error::from_raw_os_error(number), None));
        assert_eq!((of(libc::ESRCH), of(libc::EMFILE), of(libc::ENFILE)), (Absent::Gone, Absent::Want, Absent::Want));
        assert_eq!(Absent::from(ProcError::NotFound(None)), Absent::Gone);
        assert_eq!(Absent::from(ProcError::PermissionDenied(None)), Absent::Untold);
        assert_eq!(Absent::from(ProcError::Incomplete(None)), Absent::Untold);
    }
}
