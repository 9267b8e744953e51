//! Processes as /proc shows them. Any of them may vanish between two reads.

use super::{cgroup::CgroupFiles, descriptors::Absent};
use crate::{
    decode,
    ids::{CgroupId, ProcessId, TICK_NS, Tgid},
    sample::FoundProcess,
};
use procfs::{
    ProcError,
    process::{Process, Stat},
};
use std::{fs, io::Read};

/// Bytes of a command line that are read at most: entry points of Java come late in it. An exec record has 256.
const COMMAND_LINE_BYTES: usize = 1 << 10;

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
    describe(id, CgroupId::default(), process, &stat, cgroups)
}

/// One that a kernel counter or record mentioned. It is taken to run while nobody can tell, and then has no names.
pub fn find(id: ProcessId, cgroup: CgroupId, cgroups: &CgroupFiles) -> FoundProcess {
    let look = || {
        let (process, stat) = current(id)?;
        describe(id, cgroup, &process, &stat, cgroups)
    };
    look().unwrap_or_else(|absent| FoundProcess {
        id,
        parent: None,
        command: String::new(),
        command_line: String::new(),
        cgroup_path: None,
        cgroup,
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
fn describe(
    id: ProcessId,
    cgroup: CgroupId,
    process: &Process,
    stat: &Stat,
    cgroups: &CgroupFiles,
) -> Result<FoundProcess, Absent> {
    Ok(FoundProcess {
        id,
        parent: u32::try_from(stat.ppid).ok().filter(|&parent| parent != 0).map(Tgid),
        command: stat.comm.clone(),
        command_line: told(command_line(id.tgid))?.flatten().unwrap_or_default(),
        cgroup_path: told(cgroups.path_of(process))?.flatten(),
        cgroup,
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

/// The arguments of a process, or the title that it has written over them; none where there are none.
pub(super) fn command_line(pid: Tgid) -> Result<Option<String>, Absent> {
    let mut arguments = Vec::with_capacity(COMMAND_LINE_BYTES + 1);
    let file = fs::File::open(format!("/proc/{pid}/cmdline"))?;
    file.take(COMMAND_LINE_BYTES as u64 + 1).read_to_end(&mut arguments)?;
    let cut = arguments.len() > COMMAND_LINE_BYTES;
    arguments.truncate(COMMAND_LINE_BYTES);
    // A title leaves zeros, or blanks, where there were more arguments.
    let last = arguments.iter().rposition(|byte| *byte != 0 && !byte.is_ascii_whitespace());
    let title = &arguments[..last.map_or(0, |last| last + 1)];
    Ok((!title.is_empty()).then(|| decode::command_line(title, cut && title.len() == COMMAND_LINE_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::support::CgroupHierarchy;
    use std::{
        os::unix::process::CommandExt as _,
        process::{Child, Command, Stdio},
    };

    /// A shell with these arguments, which waits until it is killed.
    fn started(name: &str, arguments: &[String]) -> (Child, Tgid) {
        let mut shell = Command::new("/bin/sh");
        let shell = shell.arg0(name).args(["-c", "echo; read line"]).args(arguments);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Until it runs, the kernel may not have told its arguments.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = Tgid(child.id());
        (child, pid)
    }

    #[test]
    fn command_lines_are_read_up_to_a_kibibyte() {
        for (length, whole) in [(10, true), (900, true), (2000, false)] {
            let (mut child, pid) = started("shell", &["x".repeat(length)]);
            let told = command_line(pid).unwrap().unwrap();
            child.kill().and_then(|()| child.wait()).unwrap();
            assert!(told.starts_with("shell -c echo; read line x"), "{told}");
            assert_eq!((told.ends_with('x'), told.ends_with('…')), (whole, !whole));
            assert!(told.len() <= COMMAND_LINE_BYTES + '…'.len_utf8());
            assert!(!whole || told.len() == "shell -c echo; read line ".len() + length);
        }
    }

    #[test]
    fn what_a_title_leaves_of_the_arguments_is_no_part_of_it() {
        // Empty arguments look like what a title leaves.
        let (mut child, pid) = started("title", &vec![String::new(); 20]);
        let told = command_line(pid).unwrap();
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!(told.as_deref(), Some("title -c echo; read line"));
        assert_eq!(command_line(Tgid(2)).ok().flatten(), None, "a kernel thread has a command line");
    }

    #[test]
    fn this_process_is_found_and_one_that_never_was_is_not() {
        let cgroups = CgroupFiles::new(CgroupHierarchy::V2 { mount: None });
        let pid = std::process::id();
        let (all, _) = all(&cgroups);
        let me = all.iter().find(|process| process.id.tgid == Tgid(pid)).expect("this process in /proc");
        assert!(me.running && !me.command_line.is_empty());
        assert_eq!(runs(me.id), Ok(true));
        assert_eq!(find(me.id, CgroupId(7), &cgroups).command, me.command);
        let reused = ProcessId { start_ns: me.id.start_ns + TICK_NS, ..me.id };
        assert!(runs(reused) == Ok(false) && !find(reused, CgroupId(7), &cgroups).running);
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
