//! The kernels of the matrix, and how they get here: Debian's cloud kernels, from the mirror that this machine's apt
//! already uses, unpacked into the target directory. Nothing outside of it is touched, and nothing takes root.

use super::{apt::Apt, modules};
use crate::process;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A kernel to test on.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What the command line and tests/kernels.toml call it.
    pub(crate) name: &'static str,
    /// Where it is; the newest of all where there are several.
    suites: &'static [&'static str],
    /// How the names of its packages begin; nothing where the suite's own kernel is meant, whatever it is by now.
    series: Option<&'static str>,
}

impl Kernel {
    /// Whether there are both older and newer ones.
    pub(crate) fn is_between(&self) -> bool {
        self.name != KERNELS[0].name && self.name != KERNELS[KERNELS.len() - 1].name
    }
}

/// Oldest first. Old packages vanish from the mirror when they are superseded, so none is named by its whole version.
pub(crate) const KERNELS: [Kernel; 5] = [
    Kernel { name: "5.10", suites: &["bullseye-security"], series: None },
    Kernel { name: "6.1", suites: &["bookworm-security"], series: None },
    Kernel { name: "6.12", suites: &["trixie-security"], series: None },
    Kernel { name: "6.18", suites: &["trixie-backports"], series: Some("linux-image-6.18.") },
    Kernel { name: "newest", suites: &["sid", "trixie-backports"], series: None },
];

/// The package that always depends on a suite's newest kernel, in the small flavour.
const NEWEST: &str = "linux-image-cloud-amd64";
const FLAVOUR: &str = "-cloud-amd64";

/// What a machine needs to start and the tests to run, where the kernel does not have it built in.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "ext4", "loop", "mq_deadline", "virtio_rng"];

/// Of a package's files only these are unpacked.
const UNPACKED: [&str; 11] = [
    "./boot/vmlinuz*",
    "*/vmlinuz*",
    "*/modules.builtin",
    "*/drivers/virtio/*",
    "*/drivers/block/*",
    "*/drivers/char/*",
    "*/block/*",
    "*/fs/*",
    "*/lib/*",
    "*/crypto/*",
    "*/arch/*",
];

/// A kernel that is here.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) kernel: &'static Kernel,
    /// Version as its package names it.
    pub(crate) version: String,
    pub(crate) vmlinuz: PathBuf,
    /// Modules to load, in this order.
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernels of these names; all where none is named.
pub(crate) fn named(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    let find = |name: &String| {
        let known = || KERNELS.map(|kernel| kernel.name).join(", ");
        KERNELS
            .iter()
            .find(|kernel| kernel.name == name)
            .with_context(|| format!("no kernel {name:?}: there are {}", known()))
    };
    names.iter().map(find).collect()
}

/// Brings the kernels here. An error where one cannot be had is that kernel's own; `offline` takes what is here already.
pub(crate) fn fetch(
    directory: &Path,
    kernels: &[&'static Kernel],
    offline: bool,
) -> Vec<(&'static Kernel, Result<Image>)> {
    let cached = |kernel: &'static Kernel| Image::load(kernel, &kernel.home(directory));
    if offline {
        let absent = |kernel: &Kernel| format!("kernel {} is not in {}", kernel.name, directory.display());
        return kernels.iter().map(|&kernel| (kernel, cached(kernel).with_context(|| absent(kernel)))).collect();
    }
    let suites: BTreeSet<_> = KERNELS.iter().flat_map(|kernel| kernel.suites).copied().collect();
    let packages = Apt::update(directory, suites);
    let fetch_one = |kernel: &'static Kernel| {
        let fetched = match &packages {
            Ok(apt) => kernel.fetch(apt, directory).map_err(|error| match &apt.complaint {
                Some(complaint) => anyhow::anyhow!("{error:#}; {complaint:#}"),
                None => error,
            }),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        // What was fetched before is as good as what it was fetched from.
        fetched.or_else(|error| {
            let image = cached(kernel).map_err(|_| anyhow::anyhow!("{error:#}"))?;
            eprintln!("{}: {error:#}; taking {}, which is here", kernel.name, image.version);
            Ok(image)
        })
    };
    kernels.iter().map(|&kernel| (kernel, fetch_one(kernel))).collect()
}

impl Kernel {
    fn home(&self, directory: &Path) -> PathBuf {
        directory.join("kernels").join(self.name)
    }

    fn fetch(&'static self, apt: &Apt, directory: &Path) -> Result<Image> {
        let image = match self.series {
            None => apt.newest_dependency(NEWEST, self.suites, "linux-image-")?,
            Some(series) => apt.newest_of(series, FLAVOUR)?,
        };
        let home = self.home(directory);
        if let Ok(present) = Image::load(self, &home)
            && image.ends_with(&present.version)
        {
            return Ok(present);
        }
        // Since 6.19 the image is an empty package and its contents are in others.
        let parts =
            ["linux-binary-", "linux-modules-", "linux-base-"].map(|part| image.replacen("linux-image-", part, 1));
        let mut packages: Vec<String> = parts.into_iter().filter(|part| apt.knows(part)).collect();
        if packages.is_empty() {
            packages.push(image.clone());
        }
        eprintln!("{}: fetching {}", self.name, packages.join(", "));
        let scratch = directory.join("unpacking").join(self.name);
        remake(&scratch)?;
        let tree = scratch.join("tree");
        fs::create_dir_all(&tree)?;
        for package in apt.download(&packages, &scratch)? {
            unpack(&package, &tree)?;
        }
        remake(&home)?;
        install(&tree, &home)?;
        let version = image.trim_start_matches("linux-image-");
        // Last, so that a broken fetch is no kernel.
        fs::write(home.join("version"), version).context("cannot write into the target directory")?;
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        Image::load(self, &home)
    }
}

impl Image {
    fn load(kernel: &'static Kernel, home: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = home.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let modules = read("modules.list")?.lines().map(|name| home.join(name)).collect();
        Ok(Self { kernel, version: read("version")?, vmlinuz: home.join("vmlinuz"), modules })
    }
}

fn remake(directory: &Path) -> Result<()> {
    let unusable = || format!("cannot make an empty directory {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(unusable)?;
    }
    fs::create_dir_all(directory).with_context(unusable)
}

/// Unpacks those files of a package that are of use.
fn unpack(package: &Path, into: &Path) -> Result<()> {
    let dpkg = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn();
    let mut dpkg = dpkg.context("cannot start dpkg-deb: this machine has no Debian packages")?;
    let archive = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(into).arg("--wildcards").args(UNPACKED);
    let unpacked = tar.stdin(archive).stderr(Stdio::piped()).output().context("cannot start tar")?;
    let status = dpkg.wait()?;
    // tar complains, and fails, about patterns that match nothing, which some always do.
    let complaints = String::from_utf8_lossy(&unpacked.stderr);
    let expected = |line: &&str| !line.contains("Not found in archive") && !line.contains("Exiting with failure");
    if let Some(complaint) = complaints.lines().find(expected) {
        bail!("cannot unpack {}: {complaint}", package.display());
    }
    if !status.success() {
        bail!("dpkg-deb ended with {status} on {}", package.display());
    }
    Ok(())
}

/// Puts the kernel and its modules, ready to be loaded, in one directory.
fn install(tree: &Path, home: &Path) -> Result<()> {
    let files = files(tree)?;
    let is_kernel =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let kernel = files.iter().find(is_kernel).context("the package has no vmlinuz")?;
    fs::copy(kernel, home.join("vmlinuz")).context("cannot copy the kernel")?;
    let mut names = Vec::new();
    for module in modules::in_load_order(&files, &MODULES)? {
        let name = format!("{}.ko", module.name);
        fs::write(home.join(&name), module.code).context("cannot write a module")?;
        names.push(name);
    }
    fs::write(home.join("modules.list"), names.join("\n")).context("cannot write the list of modules")
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path)?);
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether a program is here, with the package that has it in the error where not.
pub(crate) fn require(program: &str, package: &str) -> Result<PathBuf> {
    process::find_program(program)
        .or_else(|| Some(Path::new("/sbin").join(program)).filter(|path| process::is_executable(path)))
        .with_context(|| {
            format!("{program} is missing; `apt-get install --no-install-recommends {package}` installs it")
        })
}

/// Whether a program needs a loader and libraries, which the virtual machines do not have.
pub(crate) fn is_dynamic(program: &Path) -> Result<bool> {
    let code = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(code.windows(LOADER.len()).any(|window| window == LOADER))
}

/// How the path of a program's loader ends on x86-64.
const LOADER: &[u8] = b"/ld-linux-x86-64.so.2\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name_and_unknown_ones_refused() {
        assert_eq!(named(&[]).unwrap().len(), KERNELS.len());
        assert_eq!(named(&["6.1".to_owned()]).unwrap()[0].name, "6.1");
        let refused = named(&["4.19".to_owned()]).unwrap_err().to_string();
        assert!(refused.contains("4.19") && refused.contains("5.10, 6.1"), "{refused}");
    }

    #[test]
    fn programs_with_libraries_are_told_from_those_without() {
        assert!(is_dynamic(Path::new("/bin/sh")).unwrap());
        assert!(!is_dynamic(Path::new("/proc/version")).unwrap());
    }

    #[test]
    fn a_kernel_that_is_not_here_is_an_error_when_offline() {
        let fetched = fetch(Path::new("/nonexistent"), &[&KERNELS[0]], true);
        assert!(format!("{:#}", fetched[0].1.as_ref().unwrap_err()).contains("kernel 5.10 is not in"));
    }
}
