//! Processes that come and go: many, short, in other pid namespaces, or with a pid that another one had.

use crate::{
    handshake::{Arguments, Report},
    system::{self, Mapping, PAGE},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A process that lives shorter than this is short-lived, on a processor that is not emulated.
const SHORT: Duration = Duration::from_millis(5);
/// On a busy machine not each of them does: so many for one that is to.
const TRIES: usize = 6;

/// Children that wait for their end.
static CHILDREN: Mutex<Vec<libc::pid_t>> = Mutex::new(Vec::new());

/// What wait4(2) says of a child that has gone.
struct Gone {
    /// Exit code << 8 | signal.
    status: u32,
    /// Its faults, minor and major.
    faults: u64,
}

/// `workload exit CODE [MARK]`: lives as shortly as a program can.
pub(crate) fn short_life(code: &str) -> Result<u8> {
    code.parse().with_context(|| format!("an exit code cannot be {code}"))
}

/// `spawn COUNT MARK`: runs short-lived programs one after the other until COUNT of them have lived less than 5 ms, or a few times
/// as many have lived longer. Each has the argument MARK-i and exits with i modulo 200. Tells pid, exit status, faults and life in
/// nanoseconds of each.
pub(crate) fn spawn(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let count: usize = arguments.value("count")?;
    let mark = arguments.word("mark")?;
    let program = std::env::current_exe().context("cannot tell what this program is")?;
    let (mut rows, mut short) = (Vec::new(), 0);
    let limit = SHORT * tests::clock::slowness();
    while short < count && rows.len() < TRIES * count {
        let i = rows.len();
        let mut command = Command::new(&program);
        command
            .args(["exit", &(i % 200).to_string(), &format!("{mark}-{i}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = Instant::now();
        let pid = command.spawn().context("cannot spawn")?.id();
        let gone = wait(pid as libc::pid_t)?;
        let life = start.elapsed();
        short += usize::from(life < limit);
        rows.push([u64::from(pid), u64::from(gone.status), gone.faults, life.as_nanos() as u64]);
    }
    report.rows("processes", &rows);
    Ok(())
}

/// `forks COUNT`: that many children, one after the other, that end at once.
pub(crate) fn forks(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let count: u64 = arguments.value("count")?;
    for _ in 0..count {
        wait(fork(|| 0)?)?;
    }
    report.number("forks", count);
    Ok(())
}

/// `children COUNT`: that many children that wait for `release`. Tells their pids.
pub(crate) fn children(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let count: usize = arguments.value("count")?;
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..count {
        children.push(fork(|| {
            // SAFETY: asks for a signal when the parent ends, so that none is left of a test that failed, and waits for it.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause()
            };
            0
        })?);
    }
    report.rows("pids", &children.iter().map(|&pid| [pid as u64]).collect::<Vec<_>>());
    Ok(())
}

/// `release`: kills the children, and tells pid and faults of each.
pub(crate) fn release(_arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let children = std::mem::take(&mut *CHILDREN.lock().unwrap_or_else(PoisonError::into_inner));
    let mut rows = Vec::new();
    for pid in children {
        // SAFETY: takes two numbers; the pid is that of a child nobody has waited for yet.
        system::check(unsafe { libc::kill(pid, libc::SIGKILL) }, "kill")?;
        rows.push([pid as u64, wait(pid)?.faults]);
    }
    report.rows("processes", &rows);
    Ok(())
}

/// `churn DIRECTORY COUNT PAGES rename|keep-name`: that many cgroups below that one, one after the other, each with a child
/// that touches so many pages there and ends; renamed meanwhile or not, and removed. Tells all faults of the children's lives.
pub(crate) fn churn(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let directory = PathBuf::from(arguments.word("directory")?);
    let count: u64 = arguments.value("count")?;
    let pages: usize = arguments.value("pages")?;
    let renames = arguments.word("whether to rename")? == "rename";
    let memory = Mapping::anonymous(pages * PAGE)?;
    let mut faults = 0;
    for i in 0..count {
        let (first, last) = (directory.join(format!("made-{i}")), directory.join(format!("renamed-{i}")));
        fs::create_dir(&first).with_context(|| format!("cannot make {}", first.display()))?;
        let pid = fork(|| {
            // A child that is not in the cgroup must not be taken for one that was.
            if fs::write(first.join("cgroup.procs"), "0").is_err() {
                return 1;
            }
            touch(&memory)
        })?;
        let end = wait(pid)?;
        ensure!(end.status == 0, "the child of cgroup {i} ended with {}", end.status);
        faults += end.faults;
        let last = if renames { fs::rename(&first, &last).map(|()| last)? } else { first };
        // What has exited may take a moment to leave.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = fs::remove_dir(&last) {
            ensure!(Instant::now() < deadline, "cannot remove {}: {error}", last.display());
        }
    }
    report.number("cgroups", count);
    report.number("faults", faults);
    Ok(())
}

/// `vanish DIRECTORY COUNT POOL`: that many cgroups below that one, each with a child that goes on faulting, reading and
/// writing there; so many at a time. At random one of them is killed and its cgroup removed, until all have gone.
pub(crate) fn vanish(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let directory = PathBuf::from(arguments.word("directory")?);
    let count: usize = arguments.value("count")?;
    let pool: usize = arguments.value("pool")?;
    let memory = Mapping::anonymous(16 * PAGE)?;
    let mut random = Random(u64::from(std::process::id()));
    let mut living: Vec<(libc::pid_t, PathBuf)> = Vec::new();
    let mut made = 0;
    while made < count || !living.is_empty() {
        if made < count && living.len() < pool {
            let cgroup = directory.join(format!("vanishing-{made}"));
            fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
            let pid = fork(|| live(&cgroup, &memory))?;
            living.push((pid, cgroup));
            made += 1;
            continue;
        }
        let (pid, cgroup) = living.swap_remove(random.below(living.len()));
        // Some have just begun, others lived for a while: time passes between two of them, too.
        std::thread::sleep(Duration::from_micros(random.below(1000) as u64));
        // SAFETY: takes two numbers; the pid is that of a child nobody has waited for yet.
        system::check(unsafe { libc::kill(pid, libc::SIGKILL) }, "kill")?;
        let status = wait(pid)?.status;
        ensure!(status == libc::SIGKILL as u32, "the child of {} ended by itself, with {status}", cgroup.display());
        // What has exited may take a moment to leave.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = fs::remove_dir(&cgroup) {
            ensure!(Instant::now() < deadline, "cannot remove {}: {error}", cgroup.display());
        }
    }
    report.number("processes", made as u64);
    report.number("cgroups", made as u64);
    Ok(())
}

/// Does a little of everything in a cgroup, until it is killed.
fn live(cgroup: &Path, memory: &Mapping) -> i32 {
    if fs::write(cgroup.join("cgroup.procs"), "0").is_err() {
        return 1;
    }
    loop {
        touch(memory);
        if memory.advise(libc::MADV_DONTNEED).is_err() || fs::read("/proc/self/comm").is_err() {
            return 2;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Numbers that look random (xorshift64), the same for the same start.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// `reuse-pid PAGES`: two children, the second with the pid of the first, which fault on so many and twice as many pages.
/// Tells the pid, and the faults of both.
pub(crate) fn reuse_pid(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let pages: usize = arguments.value("pages")?;
    let few = Mapping::anonymous(pages * PAGE)?;
    let many = Mapping::anonymous(2 * pages * PAGE)?;
    let pid = fork(|| touch(&few))?;
    let first = wait(pid)?;
    ensure!(fork_as(pid, || touch(&many))? == pid, "the kernel chose another pid than {pid}");
    let second = wait(pid)?;
    report.number("pid", pid as u64);
    report.number("first_faults", first.faults);
    report.number("second_faults", second.faults);
    Ok(())
}

/// `in-namespace PAGES`: a child that is process 1 of a pid namespace of its own and faults on so many pages. Tells its
/// pid outside, the pid it has inside, and its faults.
pub(crate) fn in_namespace(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let pages: usize = arguments.value("pages")?;
    let memory = Mapping::anonymous(pages * PAGE)?;
    // SAFETY: takes a number; only children made later are affected.
    system::check(unsafe { libc::unshare(libc::CLONE_NEWPID) }, "unshare of the pid namespace")?;
    let pid = fork(|| {
        touch(&memory);
        std::process::id() as i32
    })?;
    let gone = wait(pid)?;
    report.number("pid", pid as u64);
    report.number("pid_inside", u64::from(gone.status >> 8));
    report.number("faults", gone.faults);
    Ok(())
}

/// `exec PATH MARK`: becomes that program, which is to be this one by another name, with another argument.
pub(crate) fn exec(arguments: &mut Arguments<'_>) -> Result<()> {
    let path = CString::new(arguments.word("path")?)?;
    let mark = CString::new(arguments.word("mark")?)?;
    let list = [path.as_ptr(), c"serve".as_ptr(), mark.as_ptr(), std::ptr::null()];
    // SAFETY: C strings that live, in a list that a null pointer ends.
    unsafe { libc::execv(path.as_ptr(), list.as_ptr()) };
    bail!("execv failed: {}", io::Error::last_os_error())
}

/// `spin MILLISECONDS`: computes for so long. From the second time on no page is touched for the first time.
pub(crate) fn spin(arguments: &mut Arguments<'_>) -> Result<()> {
    let time = Duration::from_millis(arguments.value("milliseconds")?);
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    Ok(())
}

/// `exit CODE`: ends, without a report.
pub(crate) fn exit(arguments: &mut Arguments<'_>) -> Result<()> {
    std::process::exit(arguments.value("code")?)
}

fn touch(memory: &Mapping) -> i32 {
    (0..memory.pages()).for_each(|page| memory.write(page));
    0
}

/// A child that does one thing and ends well; its pid.
pub(crate) fn run_child(act: impl FnOnce() -> i32) -> Result<libc::pid_t> {
    ended_well(fork(act)?)
}

/// As [`run_child`], but the child runs in this process's memory, which waits, as vfork(2) has it.
pub(crate) fn run_sharing_child<F: Fn() -> i32>(act: F) -> Result<libc::pid_t> {
    extern "C" fn run<F: Fn() -> i32>(act: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the closure below, which outlives the child: its parent waits.
        unsafe { (*act.cast::<F>())() }
    }
    let stack = Mapping::anonymous(16 * PAGE)?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: a stack of its own, that lives until the child has ended.
    let pid = unsafe { libc::clone(run::<F>, stack.end().cast(), flags, (&raw const act).cast_mut().cast()) };
    ensure!(pid > 0, "cannot clone: {}", io::Error::last_os_error());
    ended_well(pid)
}

fn ended_well(pid: libc::pid_t) -> Result<libc::pid_t> {
    let status = wait(pid)?.status;
    ensure!(status == 0, "child {pid} ended with status {status:#x}");
    Ok(pid)
}

/// Makes a child that does one thing and ends with the code it gives.
fn fork(act: impl FnOnce() -> i32) -> Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child may do all that its parent may.
    child_or_parent(unsafe { libc::fork() }, act)
}

/// As [`fork`], with a pid that must be free.
fn fork_as(pid: libc::pid_t, act: impl FnOnce() -> i32) -> Result<libc::pid_t> {
    // SAFETY: all of clone_args are numbers, for which zero is valid; the one pointer leads to a pid that lives.
    let outcome = unsafe {
        let mut arguments: libc::clone_args = std::mem::zeroed();
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = &raw const pid as u64;
        arguments.set_tid_size = 1;
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    child_or_parent(outcome as libc::pid_t, act)
}

fn child_or_parent(pid: libc::pid_t, act: impl FnOnce() -> i32) -> Result<libc::pid_t> {
    match pid {
        0 => {
            let code = act();
            // SAFETY: ends the child at once, without running what its parent registered for its own end.
            unsafe { libc::_exit(code) }
        }
        pid if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()).context("cannot fork"),
    }
}

fn wait(pid: libc::pid_t) -> Result<Gone> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; the kernel fills it and the status.
    let (outcome, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
    };
    ensure!(outcome == pid, "cannot wait for {pid}: {}", io::Error::last_os_error());
    Ok(Gone { status: status as u32, faults: (usage.ru_minflt + usage.ru_majflt) as u64 })
}
