//! Processes as /proc shows them. Any of them may vanish between two reads.

use super::cgroup::CgroupFiles;
use crate::{
    decode,
    ids::{ProcessId, TICK_NS, Tgid},
    sample::FoundProcess,
};
use procfs::process::{Process, Stat};
use std::{fs, io::Read};

/// Bytes of a command line that are read at most: entry points of Java come late in it. An exec record has 256.
const COMMAND_LINE_BYTES: usize = 1 << 10;

/// All that run now, parents before their children.
pub fn all(cgroups: &CgroupFiles) -> Vec<FoundProcess> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let mut found: Vec<_> = processes
        .filter_map(|process| {
            let process = process.ok()?;
            let stat = process.stat().ok()?;
            let id = ProcessId { tgid: Tgid(stat.pid as u32), start_ns: stat.starttime * TICK_NS };
            Some(describe(id, &process, &stat, cgroups))
        })
        .collect();
    found.sort_by_key(|process| (process.id.start_ns, process.id.tgid));
    found
}

/// One that a kernel counter or record mentioned.
pub fn find(id: ProcessId, cgroups: &CgroupFiles) -> FoundProcess {
    match current(id) {
        Some((process, stat)) => describe(id, &process, &stat, cgroups),
        None => FoundProcess {
            id,
            parent: None,
            command: String::new(),
            command_line: String::new(),
            cgroup_path: None,
            running: false,
        },
    }
}

/// Whether a process still runs: its pid is in use, and by itself.
pub fn runs(id: ProcessId) -> bool {
    current(id).is_some_and(|(_, stat)| lives(&stat))
}

/// A process whose first thread has ended shows as a zombie while others of its threads go on.
fn lives(stat: &Stat) -> bool {
    !matches!(stat.state, 'Z' | 'X') || stat.num_threads > 1
}

fn current(id: ProcessId) -> Option<(Process, Stat)> {
    let process = Process::new(id.tgid.0 as i32).ok()?;
    let stat = process.stat().ok()?;
    (stat.starttime == id.key().start_tick).then_some((process, stat))
}

fn describe(id: ProcessId, process: &Process, stat: &Stat, cgroups: &CgroupFiles) -> FoundProcess {
    FoundProcess {
        id,
        parent: u32::try_from(stat.ppid).ok().filter(|&parent| parent != 0).map(Tgid),
        command: stat.comm.clone(),
        command_line: command_line(id.tgid).unwrap_or_default(),
        cgroup_path: cgroups.path_of(process),
        running: lives(stat),
    }
}

/// The arguments of a process, or the title that it has written over them; none where there are none.
pub(super) fn command_line(pid: Tgid) -> Option<String> {
    let mut arguments = Vec::with_capacity(COMMAND_LINE_BYTES + 1);
    let file = fs::File::open(format!("/proc/{pid}/cmdline"));
    file.and_then(|file| file.take(COMMAND_LINE_BYTES as u64 + 1).read_to_end(&mut arguments)).ok()?;
    let cut = arguments.len() > COMMAND_LINE_BYTES;
    arguments.truncate(COMMAND_LINE_BYTES);
    // A title leaves zeros, or blanks, where there were more arguments.
    let last = arguments.iter().rposition(|byte| *byte != 0 && !byte.is_ascii_whitespace());
    let title = &arguments[..last.map_or(0, |last| last + 1)];
    (!title.is_empty()).then(|| decode::command_line(title, cut && title.len() == COMMAND_LINE_BYTES))
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
            let told = command_line(pid).unwrap();
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
        let told = command_line(pid);
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!(told.as_deref(), Some("title -c echo; read line"));
        assert_eq!(command_line(Tgid(2)), None, "a kernel thread has a command line");
    }

    #[test]
    fn this_process_is_found_and_one_that_never_was_is_not() {
        let cgroups = CgroupFiles::new(CgroupHierarchy::V2 { mount: None });
        let pid = std::process::id();
        let all = all(&cgroups);
        let me = all.iter().find(|process| process.id.tgid == Tgid(pid)).expect("this process in /proc");
        assert!(me.running && !me.command_line.is_empty());
        assert!(runs(me.id));
        assert_eq!(find(me.id, &cgroups).command, me.command);
        let reused = ProcessId { start_ns: me.id.start_ns + TICK_NS, ..me.id };
        assert!(!runs(reused) && !find(reused, &cgroups).running);
    }
}
