//! Private memory cgroups. "The cgroup" is the memory controller's: in a v1 hierarchy where that has one, else in v2.

use crate::clock::{PATIENCE, wait_until};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// A cgroup of the test's own, removed on drop. What lives in it must be gone by then.
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    directory: PathBuf,
}

/// Where a controller sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// Version 2 of the interface, else 1.
    pub version_2: bool,
}

impl Hierarchy {
    /// Finds it.
    ///
    /// # Errors
    /// No memory controller is mounted.
    pub fn of_memory() -> Result<Self> {
        Self::of("memory")
    }

    /// Finds that of a controller, by its name in version 1.
    fn of(controller: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        find(&mounts, controller)
            .with_context(|| format!("no controller: mount cgroup v2, or v1 with {controller}, below /sys/fs/cgroup"))
    }

    /// Its name in the agent's answers.
    pub fn name(&self) -> &'static str {
        if self.version_2 { "v2" } else { "v1:memory" }
    }

    /// A number of a file of any cgroup, by its path: the file's only one, or the one beside a name.
    ///
    /// # Errors
    /// No such cgroup, file or name.
    pub fn read(&self, cgroup: &str, file: &str, name: Option<&str>) -> Result<u64> {
        let path = self.root.join(cgroup.trim_start_matches('/')).join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let number = match name {
            None => text.trim(),
            Some(name) => text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .with_context(|| format!("no {name} in {}", path.display()))?,
        };
        number.parse().with_context(|| format!("{}: {number:?} is no number", path.display()))
    }
}

fn find(mounts: &str, controller: &str) -> Option<Hierarchy> {
    let mount = |version_2: bool| {
        mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let (file_system, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
            let fits = if version_2 {
                file_system == "cgroup2"
            } else {
                file_system == "cgroup" && options.split(',').any(|option| option == controller)
            };
            fits.then(|| place.split(' ').nth(4).map(PathBuf::from)).flatten()
        })
    };
    let v1 = mount(false).map(|root| Hierarchy { root, version_2: false });
    v1.or_else(|| mount(true).map(|root| Hierarchy { root, version_2: true }))
}

/// Makes names of one process's cgroups differ.
static MADE: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    /// Makes `/monitor-test-PID-N-NAME` below the root of the memory controller's hierarchy.
    ///
    /// # Errors
    /// No memory controller, or missing rights.
    pub fn new(name: &str) -> Result<Self> {
        Self::of(Hierarchy::of_memory()?, name)
    }

    /// One whose processes get no more than so many reads a second from a block device: as if it were a slow one.
    ///
    /// # Errors
    /// No controller of block I/O, or missing rights.
    pub fn slow_reads(name: &str, device: &str, per_second: u32) -> Result<Self> {
        let cgroup = Self::of(Hierarchy::of("blkio")?, name)?;
        let stat = fs::read_to_string(format!("/sys/block/{device}/dev")).with_context(|| format!("no {device}"))?;
        let device = stat.trim();
        if cgroup.hierarchy.version_2 {
            cgroup.write("io.max", &format!("{device} riops={per_second}"))?;
        } else {
            cgroup.write("blkio.throttle.read_iops_device", &format!("{device} {per_second}"))?;
        }
        Ok(cgroup)
    }

    fn of(hierarchy: Hierarchy, name: &str) -> Result<Self> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let directory = hierarchy.root.join(format!("monitor-test-{}-{number}-{name}", std::process::id()));
        Self::make(hierarchy, directory)
    }

    /// Makes a cgroup below this one. Processes then go there, not here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn child(&self, name: &str) -> Result<Self> {
        if self.hierarchy.version_2 {
            self.write("cgroup.subtree_control", "+memory")?;
        }
        Self::make(self.hierarchy.clone(), self.directory.join(name))
    }

    fn make(hierarchy: Hierarchy, directory: PathBuf) -> Result<Self> {
        fs::create_dir(&directory).with_context(|| format!("cannot make the cgroup {}", directory.display()))?;
        Ok(Self { hierarchy, directory })
    }

    /// Moves a process, with all its threads, into it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Lets it have no more memory than that, and no swap.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let (memory, swap, swap_limit) = if self.hierarchy.version_2 {
            ("memory.max", "memory.swap.max", 0)
        } else {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes)
        };
        self.write(memory, &bytes.to_string())?;
        if self.directory.join(swap).exists() {
            self.write(swap, &swap_limit.to_string())?;
        }
        Ok(())
    }

    /// Gives it another name in the same parent. Only version 1 can.
    ///
    /// # Errors
    /// The kernel's; always in version 2.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        let directory = self.directory.with_file_name(name);
        fs::rename(&self.directory, &directory)
            .with_context(|| format!("cannot rename {} to {name}", self.directory.display()))?;
        self.directory = directory;
        Ok(())
    }

    /// Removes it, waiting until what was in it has gone.
    ///
    /// # Errors
    /// It stays busy.
    pub fn remove(&self) -> Result<()> {
        let what = format!("{} to become empty", self.directory.display());
        wait_until(&what, PATIENCE, || match fs::remove_dir(&self.directory) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("cannot remove {what}: {error}"),
            _ => Ok(Some(())),
        })
    }

    /// Its path below the root of its hierarchy, as the agent names it.
    pub fn path(&self) -> String {
        let below = self.directory.strip_prefix(&self.hierarchy.root).unwrap_or(&self.directory);
        Path::new("/").join(below).display().to_string()
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its kernfs id: the inode number of its directory.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.directory).with_context(|| format!("no {}", self.directory.display()))?;
        Ok(metadata.ino())
    }

    /// The hierarchy it is in.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// A number of one of its files: the file's only one, or the one beside a name.
    ///
    /// # Errors
    /// No such file or name.
    pub fn read(&self, file: &str, name: Option<&str>) -> Result<u64> {
        self.hierarchy.read(&self.path(), file, name)
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_memory_controllers_hierarchy_is_v1_where_that_has_it() {
        let hybrid = find(&format!("{V2}{V1}"), "memory").unwrap();
        assert_eq!(hybrid, Hierarchy { root: "/sys/fs/cgroup/memory".into(), version_2: false });
        let pure = find(V2, "memory").unwrap();
        assert_eq!((pure.root.to_str().unwrap(), pure.name()), ("/sys/fs/cgroup/unified", "v2"));
        assert_eq!(find("22 27 0:21 / /proc rw - proc proc rw\n", "memory"), None);
    }
}
