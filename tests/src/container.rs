//! Real containers: made by podman, or by runc alone as the kubelet's runtimes have it do. Debian has all that they need:
//! `apt-get install --no-install-recommends podman runc conmon busybox-static`.

use crate::clock::{PATIENCE, wait_until};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// How to get the programs that tests with containers start.
const REMEDY: &str = "apt-get install --no-install-recommends podman runc conmon busybox-static";

/// A podman with a storage of its own. Its containers, and their cgroups, go when it is dropped.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
    parent: Parent,
}

impl Podman {
    /// Prepares one: runc, cgroups made by itself and not by systemd, no network.
    ///
    /// # Errors
    /// podman or busybox is not installed.
    pub fn new(name: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        make_root(&directory.path().join("root"))?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
            at("run"),
            at("storage")
        );
        let engine = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
            [containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=4096:4096\"]\n";
        fs::write(directory.path().join("storage.conf"), storage)?;
        fs::write(directory.path().join("containers.conf"), engine)?;
        let podman = Self { directory, parent: Parent::new(name) };
        podman.ask(&["version"])?;
        Ok(podman)
    }

    /// Starts a container of this name that sleeps.
    ///
    /// # Errors
    /// podman's.
    pub fn start(&self, name: &str) -> Result<()> {
        self.start_with(name, &[])
    }

    /// As [`Self::start`], with further flags of `podman run`.
    ///
    /// # Errors
    /// podman's.
    pub fn start_with(&self, name: &str, flags: &[&str]) -> Result<()> {
        let root = self.directory.path().join("root");
        let root = root.to_str().context("a temporary directory without a name")?;
        let parent = format!("--cgroup-parent=/{}", self.parent.name);
        let common = ["run", "--detach", "--name", name, "--network=none", &parent];
        self.ask(&[&common, flags, &["--rootfs", root, "sleep", "600"]].concat())?;
        Ok(())
    }

    /// What `podman inspect` tells of a container, by a template such as `{{.State.Pid}}`.
    ///
    /// # Errors
    /// podman's.
    pub fn inspect(&self, name: &str, template: &str) -> Result<String> {
        self.ask(&["inspect", "--format", template, name])
    }

    /// Runs a command in a container, to its end.
    ///
    /// # Errors
    /// podman's, and the command's.
    pub fn execute(&self, name: &str, command: &[&str]) -> Result<()> {
        self.ask(&[&["exec", name][..], command].concat()).map(drop)
    }

    /// Where it stores what stays.
    pub fn storage(&self) -> PathBuf {
        self.directory.path().join("storage")
    }

    /// Where it stores what goes with a reboot.
    pub fn storage_run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command
            .args(arguments)
            .env("CONTAINERS_CONF", self.directory.path().join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.directory.path().join("storage.conf"));
        answer(&mut command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self.ask(&["rm", "--force", "--all", "--time=0"]);
        // Its monitors end later, and last of all let podman clean up, which may leave this directory mounted on itself.
        self.parent.remove();
        let mounted = self.storage().join("overlay");
        let unmounted =
            if is_mounted(&mounted) { answer(Command::new("umount").arg(mounted)) } else { Ok(String::new()) };
        for error in [removed, unmounted].into_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}

/// A container that runc runs, in a cgroup of any path below one of its own. Both go when it is dropped.
#[derive(Debug)]
pub struct Runc {
    directory: TempDir,
    id: String,
    _parent: Parent,
}

impl Runc {
    /// Starts one that sleeps, in the cgroup `below`/`id`.
    ///
    /// # Errors
    /// runc or busybox is not installed, or runc's.
    pub fn start(id: &str, below: &str) -> Result<Self> {
        let (directory, parent) = (tempfile::tempdir()?, Parent::new("runc"));
        make_root(&directory.path().join("rootfs"))?;
        answer(Command::new("runc").arg("spec").current_dir(directory.path()))?;
        let config = directory.path().join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
        spec["process"]["args"] = ["sleep", "600"].as_slice().into();
        spec["process"]["terminal"] = false.into();
        spec["linux"]["cgroupsPath"] = format!("/{}/{below}/{id}", parent.name).into();
        fs::write(&config, spec.to_string())?;
        let runc = Self { directory, id: id.to_owned(), _parent: parent };
        runc.ask(&["run", "--detach", id])?;
        Ok(runc)
    }

    /// Its first process.
    ///
    /// # Errors
    /// runc's.
    pub fn pid(&self) -> Result<u32> {
        let state: serde_json::Value = serde_json::from_str(&self.ask(&["state", &self.id])?)?;
        let pid = state["pid"].as_u64().context("runc tells no pid")?;
        Ok(u32::try_from(pid)?)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("state")).args(arguments).current_dir(&self.directory);
        answer(&mut command)
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        if let Err(error) = self.ask(&["delete", "--force", &self.id]) {
            eprintln!("{error:#}");
        }
    }
}

/// A cgroup that a runtime makes in every hierarchy. Removed on drop with all below it.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) name: String,
}

impl Parent {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: format!("monitor-test-{}-{name}", std::process::id()) }
    }

    /// Removes it, waiting until what is in it has gone.
    pub(crate) fn remove(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let of_cgroups = |line: &&str| line.contains(" - cgroup");
        for mount in mounts.lines().filter(of_cgroups).filter_map(|line| line.split(' ').nth(4)) {
            let cgroup = Path::new(mount).join(&self.name);
            let what = format!("{} to be empty", cgroup.display());
            if let Err(error) = wait_until(&what, PATIENCE, || remove(&cgroup)) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.remove();
    }
}

fn is_mounted(directory: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(directory))
}

/// Removes a cgroup and those below it; none while they are in use.
fn remove(cgroup: &Path) -> Result<Option<()>> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if remove(&entry.path())?.is_none() {
            return Ok(None);
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(Some(())),
    }
}

/// A file system with nothing but busybox.
pub(crate) fn make_root(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).with_context(|| format!("no /bin/busybox: {REMEDY}"))?;
    symlink("busybox", root.join("bin/sleep"))?;
    Ok(())
}

/// What a program prints. Its standard input and error are not kept: what it starts would hold them.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let errors = tempfile::tempfile()?;
    let output = tempfile::NamedTempFile::new()?;
    command.stdin(Stdio::null()).stdout(output.reopen()?).stderr(errors.try_clone()?);
    let status = command.status().with_context(|| format!("cannot start {program}: {REMEDY}"))?;
    let said = std::io::read_to_string(rewound(errors)?)?;
    ensure!(status.success(), "{program} ended with {status}: {}", said.trim());
    Ok(fs::read_to_string(output.path())?.trim().to_owned())
}

fn rewound(mut file: fs::File) -> Result<fs::File> {
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}
