//! Many processes in many cgroups, as on a full node, of which as many cgroups are busy as is asked for; the others do
//! nothing at all. Each cgroup is a household: this program again, with children of its own. Where version 1 has a hierarchy for
//! each controller, a household is in that of memory and in that of CPU time, as container runtimes have it.

use super::crowd;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// The cgroups and their processes. All are gone when it is dropped.
pub(crate) struct Population {
    /// One in each hierarchy.
    roots: Vec<PathBuf>,
    households: Vec<Child>,
    busy: usize,
}

impl Population {
    /// Starts `cgroups` of them with `processes` each, all idle.
    pub(crate) fn start(cgroups: usize, processes: usize) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let name = format!("monitor-bench-{}", std::process::id());
        let roots = hierarchies()?.iter().map(|mount| mount.join(&name)).collect();
        let mut population = Self { roots, households: Vec::with_capacity(cgroups), busy: 0 };
        population.roots.iter().try_for_each(|root| make(root))?;
        for number in 0..cgroups {
            let mut command = Command::new(&program);
            command.args(["household", "--processes", &processes.to_string()]);
            for cgroup in population.cgroups(number) {
                make(&cgroup)?;
                command.arg("--cgroup").arg(&cgroup);
            }
            let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            population.households.push(child.context("cannot start a household")?);
        }
        Ok(population)
    }

    /// So many cgroups are busy from now on.
    pub(crate) fn set_busy(&mut self, cgroups: usize) -> Result<()> {
        ensure!(cgroups <= self.households.len(), "there are but {} cgroups", self.households.len());
        let (from, to, word) =
            if cgroups > self.busy { (self.busy, cgroups, BUSY) } else { (cgroups, self.busy, IDLE) };
        for household in &mut self.households[from..to] {
            let stdin = household.stdin.as_mut().context("a household hears nothing")?;
            stdin.write_all(&[word]).context("a household is gone")?;
        }
        self.busy = cgroups;
        Ok(())
    }

    fn cgroups(&self, number: usize) -> impl Iterator<Item = PathBuf> {
        self.roots.iter().map(move |root| root.join(number.to_string()))
    }
}

impl Drop for Population {
    fn drop(&mut self) {
        for household in &mut self.households {
            // Its children go with it. Fails only where it has ended already.
            let _ = household.kill();
        }
        for household in &mut self.households {
            let _ = household.wait();
        }
        let cgroups = (0..self.households.len()).flat_map(|number| self.cgroups(number));
        for cgroup in cgroups.chain(self.roots.iter().cloned()) {
            if let Err(error) = remove(&cgroup) {
                eprintln!("warning: cannot remove {}: {error}", cgroup.display());
            }
        }
    }
}

fn make(cgroup: &Path) -> Result<()> {
    fs::create_dir(cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))
}

/// The children of a killed household are killed by the kernel, which takes a moment.
fn remove(cgroup: &Path) -> io::Result<()> {
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other,
        }
    }
    fs::remove_dir(cgroup)
}

/// Where the cgroups of memory and of CPU time are.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let of_kind = |wanted: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let [_, at, kind, options] = *line.split(' ').take(4).collect::<Vec<_>>().as_slice() else { return None };
            let has_option = option.is_empty() || options.split(',').any(|found| found == option);
            (kind == wanted && has_option).then(|| PathBuf::from(at))
        })
    };
    let Some(memory) = of_kind("cgroup", "memory") else {
        return Ok(vec![of_kind("cgroup2", "").context("no cgroups are mounted here")?]);
    };
    let cpu = of_kind("cgroup", "cpuacct").filter(|cpu| *cpu != memory);
    Ok([Some(memory), cpu].into_iter().flatten().collect())
}

const BUSY: u8 = b'b';
const IDLE: u8 = b'i';

/// The processes of one cgroup, told to be busy or idle by single letters on standard input.
#[derive(clap::Args)]
pub(crate) struct Household {
    #[arg(long)]
    processes: usize,
    #[arg(long = "cgroup")]
    cgroups: Vec<PathBuf>,
}

/// What a household does until its input ends.
pub(crate) fn live(household: &Household) -> Result<()> {
    for cgroup in &household.cgroups {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).context("cannot join a cgroup")?;
    }
    let is_busy = shared_word()?;
    for _ in 1..household.processes {
        // SAFETY: this process has one thread, and the child calls what is allowed there and then never returns.
        match unsafe { libc::fork() } {
            0 => member(is_busy),
            -1 => bail!("cannot fork: {}", io::Error::last_os_error()),
            _ => {}
        }
    }
    loop {
        let mut input = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
        let patience = if is_busy.load(Ordering::Relaxed) == 0 { -1 } else { crowd::PAUSE.as_millis() as i32 };
        // SAFETY: one descriptor is looked at.
        unsafe { libc::poll(&raw mut input, 1, patience) };
        if input.revents != 0 {
            let mut word = [0];
            if io::Read::read(&mut io::stdin(), &mut word).context("standard input")? == 0 {
                return Ok(());
            }
            is_busy.store(u32::from(word[0] == BUSY), Ordering::Relaxed);
            futex(is_busy, libc::FUTEX_WAKE, i32::MAX as u32);
        }
        if is_busy.load(Ordering::Relaxed) != 0 {
            crowd::work();
        }
    }
}

/// A child of a household.
fn member(is_busy: &AtomicU32) -> ! {
    // SAFETY: only sets which signal comes when the parent ends.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        if is_busy.load(Ordering::Relaxed) == 0 {
            futex(is_busy, libc::FUTEX_WAIT, 0);
        } else {
            crowd::work();
            std::thread::sleep(crowd::PAUSE);
        }
    }
}

/// A number that this process and its children share.
fn shared_word() -> Result<&'static AtomicU32> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<AtomicU32>(), protection, flags, -1, 0) };
    ensure!(memory != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: mapped above, aligned to a page, zeroed, and never unmapped.
    Ok(unsafe { AtomicU32::from_ptr(memory.cast()) })
}

fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    // SAFETY: the word lives as long as the process; no timeout is given.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, std::ptr::null::<libc::timespec>()) };
}
