//! Proof at start that field offsets are right: a program reads this very process by them, and the agent compares that
//! with what it knows about itself.

use super::{
    attach::{LoadError, Loader},
    map, objects,
    support::CgroupHierarchy,
    syscall,
};
use aya::{maps::Array, programs::RawTracePoint};
use monitor_common::self_check::Report;
use procfs::process::Process;
use std::{fs, os::fd::AsFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The one place where a record becomes what aya calls plain old data.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Plain<T>(pub T);

// SAFETY: zerocopy's traits say that any bytes make a valid T, and that T has no padding.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> aya::Pod for Plain<T> {}

/// Why field offsets are not to be trusted, or could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// The program cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program cannot be run.
    #[error("running the self-check: {0}")]
    Run(std::io::Error),
    /// The agent and the kernel do not speak of the same pids.
    #[error("the agent is in a pid namespace of its own; run it in the host's (in Kubernetes, hostPID: true)")]
    PidNamespace,
    /// There is nothing to compare with.
    #[error("/proc tells nothing of the agent itself, to prove field offsets by: {0}")]
    Proc(String),
    /// The registers of a system call are not where they should be.
    #[error("the registers of a system call are not found on this kernel")]
    Registers,
    /// What it read is not so.
    #[error("field offsets are wrong: {what} reads as {read}, but is {known}")]
    Mismatch {
        /// Which field.
        what: &'static str,
        /// By offset.
        read: String,
        /// In truth.
        known: String,
    },
}

/// Reads this process by the offsets, and compares. What does not agree is read once more: threads may have come or gone,
/// or moved the heap's end, between the two looks.
pub fn check(loader: &Loader<'_>, direct: bool) -> Result<(), SelfCheckError> {
    match read_and_compare(loader, direct) {
        Err(SelfCheckError::Mismatch { .. }) => read_and_compare(loader, direct),
        other => other,
    }
}

fn read_and_compare(loader: &Loader<'_>, direct: bool) -> Result<(), SelfCheckError> {
    let mut object = loader.load(&objects::self_check(), direct)?;
    let run = |error: std::io::Error| SelfCheckError::Run(error);
    let missing = || run(std::io::ErrorKind::NotFound.into());
    let program: &mut RawTracePoint =
        object.program_mut("self_check").ok_or_else(missing)?.try_into().map_err(LoadError::from)?;
    program.load().map_err(LoadError::from)?;
    syscall::test_run(program.fd().map_err(LoadError::from)?.as_fd()).map_err(run)?;
    let report = object.take_map("REPORT").and_then(map::data).ok_or_else(missing)?;
    let report = Array::<_, Plain<Report>>::try_from(aya::maps::Map::Array(report))
        .and_then(|report| report.get(&0, 0))
        .map_err(|error| run(std::io::Error::other(error)))?;
    compare(&report.0, &loader.support().facts.cgroup)
}

fn compare(report: &Report, hierarchy: &CgroupHierarchy) -> Result<(), SelfCheckError> {
    let pid = std::process::id();
    expect("the program's end", report.complete, 1)?;
    let by_helper = (report.helper_pid_tgid >> 32) as u32;
    if by_helper == report.owner.tgid && by_helper != pid {
        return Err(SelfCheckError::PidNamespace);
    }
    expect("tgid", report.owner.tgid, pid)?;
    expect("tgid, by helper", by_helper, pid)?;
    expect("pid", report.pid, report.helper_pid_tgid as u32)?;
    let (stat, myself) = Process::myself()
        .and_then(|me| Ok((me.stat()?, me)))
        .map_err(|error| SelfCheckError::Proc(error.to_string()))?;
    // /proc tells time in ticks.
    let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
    expect("start time, in clock ticks", report.owner.start_ns / tick_ns, stat.starttime)?;
    expect("number of threads", u64::from(report.live_threads), stat.num_threads as u64)?;
    if let (Some(start), Some(end)) = (stat.arg_start, stat.arg_end) {
        expect("start of the arguments", report.arg_start, start)?;
        expect("end of the arguments", report.arg_end, end)?;
    }
    // SAFETY: asking where the heap ends changes nothing.
    expect("end of the heap", report.brk, unsafe { libc::sbrk(0) } as u64)?;
    if let Some(inode) = own_cgroup_inode(&myself, hierarchy) {
        expect("cgroup id", report.owner.cgroup, inode)?;
    }
    // Last: all else can be trusted without it.
    if report.system_call == libc::SYS_bpf as u64 { Ok(()) } else { Err(SelfCheckError::Registers) }
}

/// Inode number of this process's own directory in the hierarchy that is charged, where that can be seen.
fn own_cgroup_inode(myself: &Process, hierarchy: &CgroupHierarchy) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let cgroups = myself.cgroups().ok()?;
    let own = cgroups.into_iter().find(|cgroup| cgroup.hierarchy == hierarchy.id())?;
    let directory = hierarchy.mount()?.join(own.pathname.trim_start_matches('/'));
    fs::metadata(directory).ok().map(|metadata| metadata.ino())
}

fn expect<T: PartialEq + ToString>(what: &'static str, read: T, known: T) -> Result<(), SelfCheckError> {
    if read == known {
        return Ok(());
    }
    Err(SelfCheckError::Mismatch { what, read: read.to_string(), known: known.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::Owner;

    /// What makes a report wrong.
    type Alter<'a> = &'a dyn Fn(&mut Report);

    /// What a program reads where all offsets are right.
    fn truth() -> Report {
        let stat = Process::myself().unwrap().stat().unwrap();
        let pid = std::process::id();
        Report {
            owner: Owner {
                tgid: pid,
                start_ns: stat.starttime * (1_000_000_000 / procfs::ticks_per_second()),
                ..Owner::default()
            },
            pid: 77,
            live_threads: stat.num_threads as u32,
            helper_pid_tgid: u64::from(pid) << 32 | 77,
            // SAFETY: asking where the heap ends changes nothing.
            brk: unsafe { libc::sbrk(0) } as u64,
            arg_start: stat.arg_start.unwrap(),
            arg_end: stat.arg_end.unwrap(),
            system_call: libc::SYS_bpf as u64,
            command: *b"monitor\0\0\0\0\0\0\0\0\0",
            complete: 1,
        }
    }

    /// A cgroup v2 hierarchy with this process's own directory, and the id of that.
    fn hierarchy(root: &tempfile::TempDir) -> (CgroupHierarchy, u64) {
        let hierarchy = CgroupHierarchy::V2 { mount: Some(root.path().to_owned()) };
        let myself = Process::myself().unwrap();
        let own = myself.cgroups().unwrap().into_iter().find(|cgroup| cgroup.hierarchy == 0).unwrap();
        fs::create_dir_all(root.path().join(own.pathname.trim_start_matches('/'))).unwrap();
        let id = own_cgroup_inode(&myself, &hierarchy).unwrap();
        (hierarchy, id)
    }

    /// What is said of a report. Other tests' threads come and go, and allocate: what they are to blame for is no answer, unless it is
    /// asked for.
    fn said(alter: Alter<'_>, asked: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        let (hierarchy, id) = hierarchy(&root);
        for _ in 0..10_000 {
            let mut report = truth();
            report.owner.cgroup = id;
            alter(&mut report);
            let said =
                compare(&report, &hierarchy).map_or_else(|error| error.to_string(), |()| "all is well".to_owned());
            if said.contains(asked) || !["number of threads", "end of the heap"].iter().any(|what| said.contains(what))
            {
                return said;
            }
        }
        "others never rest".to_owned()
    }

    #[test]
    fn every_field_that_is_read_from_the_wrong_place_is_found() {
        assert_eq!(said(&|_| {}, "all is well"), "all is well");
        let wrong: [(&str, Alter<'_>); 12] = [
            ("the program's end", &|report| report.complete = 0),
            ("pid namespace", &|report| {
                report.owner.tgid += 1;
                report.helper_pid_tgid += 1 << 32;
            }),
            ("tgid reads", &|report| report.owner.tgid += 1),
            ("tgid, by helper", &|report| report.helper_pid_tgid += 1 << 32),
            ("pid reads", &|report| report.pid += 1),
            ("start time", &|report| report.owner.start_ns += 1_000_000_000),
            ("number of threads reads as 1", &|report| report.live_threads += 10_000),
            ("start of the arguments", &|report| report.arg_start += 1),
            ("end of the arguments", &|report| report.arg_end += 1),
            ("end of the heap reads as 1,", &|report| report.brk = 1),
            ("cgroup id", &|report| report.owner.cgroup += 1),
            ("registers", &|report| report.system_call = 0),
        ];
        for (what, alter) in wrong {
            let said = said(alter, what);
            assert!(said.contains(what), "{what}: {said}");
        }
    }
}
