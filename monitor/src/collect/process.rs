//! Processes as /proc shows them. Any of them may vanish between two reads.

use super::cgroup::CgroupFiles;
use crate::{
    decode,
    ids::{ProcessId, TICK_NS, Tgid},
    sample::FoundProcess,
};
use monitor_common::lifecycle::ARGUMENTS_BYTES;
use procfs::process::{Process, Stat};
use std::{fs, io::Read};

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
        command_line: command_line(id.tgid),
        cgroup_path: cgroups.path_of(process),
        running: lives(stat),
    }
}

/// As much of the arguments as an exec record would have told.
fn command_line(pid: Tgid) -> String {
    let mut arguments = Vec::with_capacity(ARGUMENTS_BYTES + 1);
    let file = fs::File::open(format!("/proc/{pid}/cmdline"));
    let read = file.and_then(|file| file.take(ARGUMENTS_BYTES as u64 + 1).read_to_end(&mut arguments));
    if read.is_err() {
        return String::new();
    }
    let cut = arguments.len() > ARGUMENTS_BYTES;
    arguments.truncate(ARGUMENTS_BYTES);
    decode::command_line(&arguments, cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::support::CgroupHierarchy;

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
