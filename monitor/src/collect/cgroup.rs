//! Names of cgroups: walked once at start, found by id after that where no record told of them.

use super::descriptors::{self, Absent};
use crate::{ids::CgroupId, kernel::support::CgroupHierarchy};
use procfs::process::Process;
use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// The directories of the hierarchy that is charged.
#[derive(Debug)]
pub struct CgroupFiles {
    hierarchy: CgroupHierarchy,
}

/// Type of a file handle that holds a kernfs id (`FILEID_KERNFS`, include/linux/exportfs.h).
const FILEID_KERNFS: i32 = 0xfe;

/// `struct file_handle` with room for a kernfs id.
#[repr(C)]
struct KernfsHandle {
    bytes: u32,
    kind: i32,
    id: [u8; 8],
}

impl CgroupFiles {
    /// Of one hierarchy.
    pub fn new(hierarchy: CgroupHierarchy) -> Self {
        Self { hierarchy }
    }

    /// All cgroups there are, parents before their children; and the worst reason why some of them could not be told, where
    /// there is any.
    pub fn walk(&self) -> (Vec<(CgroupId, Arc<str>)>, Option<Absent>) {
        let (mut found, mut worst) = (Vec::new(), None);
        let Some(mount) = self.hierarchy.mount() else { return (found, worst) };
        let mut left = vec![mount.to_path_buf()];
        while let Some(directory) = left.pop() {
            // Gone meanwhile is as good as never there.
            match self.describe(&directory).and_then(|cgroup| Ok((cgroup, children(&directory)?))) {
                Ok((cgroup, children)) => {
                    found.push(cgroup);
                    left.extend(children);
                }
                Err(absent) => worst = worst.max(Some(absent)),
            }
        }
        (found, worst)
    }

    /// A cgroup and those above it, the root first; nothing when it has gone.
    pub fn find(&self, id: CgroupId) -> Vec<(CgroupId, Arc<str>)> {
        let Some(directory) = self.directory(id) else { return Vec::new() };
        let mount = self.hierarchy.mount().unwrap_or(Path::new("/"));
        let mut chain: Vec<_> = directory
            .ancestors()
            .take_while(|above| above.starts_with(mount))
            .filter_map(|above| self.describe(above).ok())
            .collect();
        chain.reverse();
        chain
    }

    /// Path of a process's cgroup below the hierarchy's root; none where it is in none of that hierarchy.
    pub fn path_of(&self, process: &Process) -> Result<Option<String>, Absent> {
        let mut cgroups = process.cgroups()?.into_iter();
        Ok(cgroups.find(|cgroup| cgroup.hierarchy == self.hierarchy.id()).map(|cgroup| cgroup.pathname))
    }

    fn describe(&self, directory: &Path) -> Result<(CgroupId, Arc<str>), Absent> {
        let below =
            self.hierarchy.mount().and_then(|mount| directory.strip_prefix(mount).ok()).ok_or(Absent::Untold)?;
        let id = fs::metadata(directory)?.ino();
        Ok((CgroupId(id), format!("/{}", below.to_string_lossy()).into()))
    }

    /// The directory of an id: kernfs opens its nodes by their ids.
    fn directory(&self, id: CgroupId) -> Option<PathBuf> {
        let mount = fs::File::open(self.hierarchy.mount()?).inspect_err(descriptors::note).ok()?;
        let mut handle = KernfsHandle { bytes: 8, kind: FILEID_KERNFS, id: id.0.to_ne_bytes() };
        // SAFETY: the handle has the head and length that it says; the descriptor lives.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut handle,
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        let fd = crate::kernel::syscall::check(fd).inspect_err(descriptors::note).ok()?;
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        // A removed one still answers, with a path that is no longer there.
        (!path.as_os_str().as_bytes().ends_with(b" (deleted)")).then_some(path)
    }
}

/// Directories in a directory.
fn children(directory: &Path) -> Result<Vec<PathBuf>, Absent> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::support;

    #[test]
    fn a_cgroup_is_found_by_its_id_with_all_above_it() {
        let hierarchy = support::probe().facts.cgroup;
        let files = CgroupFiles::new(hierarchy.clone());
        let mount = hierarchy.mount().expect("this test needs a mounted cgroup hierarchy").to_path_buf();
        let outer = mount.join(format!("monitor-unit-{}", std::process::id()));
        let inner = outer.join("inner");
        fs::create_dir(&outer).expect("this test makes a cgroup, which needs root");
        fs::create_dir(&inner).unwrap();
        let id = CgroupId(fs::metadata(&inner).unwrap().ino());
        let chain = files.find(id);
        let (walked, _) = files.walk();
        fs::remove_dir(&inner).unwrap();
        fs::remove_dir(&outer).unwrap();
        let names: Vec<_> = chain.iter().map(|(_, path)| path.to_string()).collect();
        let outer_name = format!("/{}", outer.file_name().unwrap().to_string_lossy());
        assert_eq!(names, ["/".to_owned(), outer_name.clone(), format!("{outer_name}/inner")]);
        assert_eq!(chain.last().unwrap().0, id);
        assert!(walked.contains(&chain[2]));
        assert_eq!(files.find(id), []);
    }
}
