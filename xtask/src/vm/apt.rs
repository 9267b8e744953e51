//! Debian's package tools with a state of their own: other suites than this machine's, in a directory of ours.

use crate::process;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An updated package index.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
    /// What went wrong with some suites: that of an old release is gone from the mirror one day.
    pub(crate) complaint: Option<anyhow::Error>,
}

impl Apt {
    /// Fetches the indices of these suites, or of those that can be had, from the mirrors that this machine is configured with.
    pub(crate) fn update<'a>(directory: &Path, suites: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            if process::find_program(tool).is_none() {
                bail!(
                    "kernels come from Debian's mirrors, which takes {tool}: this works on Debian and what is made from it"
                );
            }
        }
        let mut apt = Self { directory: directory.join("apt"), complaint: None };
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            let path = apt.directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::write(apt.directory.join("state/status"), "").context("cannot write apt's status file")?;
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
        let mirrors = process::output(&mut targets).context("this machine has no apt")?;
        fs::write(apt.directory.join("sources.list"), sources(&mirrors, suites)?)
            .context("cannot write apt's sources")?;
        let updated = process::run_unseen(apt.command("apt-get").args(["--quiet=2", "update"]));
        apt.complaint = updated.context("cannot fetch all package indices").err();
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let own = |part: &str| self.directory.join(part).display().to_string();
        for (option, value) in [
            ("Dir::Etc::SourceList", own("sources.list")),
            ("Dir::Etc::SourceParts", "/nonexistent".to_owned()),
            ("Dir::State", own("state")),
            ("Dir::State::Lists", own("lists")),
            ("Dir::State::status", own("state/status")),
            ("Dir::Cache", own("cache")),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
            ("APT::Sandbox::User", String::new()),
            ("Debug::NoLocking", "1".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }

    /// The package with this prefix that the newest version of another one in these suites depends on. A suite that cannot say does
    /// not count where another one can.
    pub(crate) fn newest_dependency(&self, package: &str, suites: &[&str], prefix: &str) -> Result<String> {
        let found = suites.iter().map(|suite| self.dependency(package, suite, prefix));
        let (found, errors): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
        let newest = found.into_iter().flatten().max_by_key(|name| numbers(name));
        newest.map_or_else(|| errors.into_iter().next().context("no suite is named")?, Ok)
    }

    /// The package with this prefix that a suite's version of another one depends on.
    fn dependency(&self, package: &str, suite: &str, prefix: &str) -> Result<String> {
        let versions = process::output(self.command("apt-cache").args(["madison", package]))?;
        let version = version_in(&versions, suite).with_context(|| format!("{suite} has no {package}"))?;
        let shown = process::output(self.command("apt-cache").args(["show", &format!("{package}={version}")]))?;
        dependency_in(&shown, prefix).with_context(|| format!("{package} {version} of {suite} depends on no {prefix}*"))
    }

    /// The newest package whose name begins and ends so.
    pub(crate) fn newest_of(&self, prefix: &str, suffix: &str) -> Result<String> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let candidates = names.lines().filter(|name| name.ends_with(suffix));
        candidates.max_by_key(|name| numbers(name)).map(str::to_owned).with_context(|| format!("no {prefix}*{suffix}"))
    }

    /// Whether there is a package of that name.
    pub(crate) fn knows(&self, package: &str) -> bool {
        let mut show = self.command("apt-cache");
        show.args(["show", package]).output().is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    }

    /// Downloads packages, all in one call as each costs seconds.
    pub(crate) fn download(&self, packages: &[String], into: &Path) -> Result<Vec<PathBuf>> {
        let mut download = self.command("apt-get");
        process::run_unseen(download.args(["--quiet=2", "download"]).args(packages).current_dir(into))
            .with_context(|| format!("cannot download {}", packages.join(", ")))?;
        let entries = fs::read_dir(into).with_context(|| format!("cannot read {}", into.display()))?;
        let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let packages: Vec<PathBuf> =
            files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "deb")).collect();
        if packages.is_empty() {
            bail!("apt-get download brought nothing");
        }
        Ok(packages)
    }
}

/// apt's sources for these suites, from the "origin release uri" lines of this machine's.
fn sources<'a>(mirrors: &str, suites: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let base = |security: bool| {
        let debian = mirrors.lines().filter_map(|line| line.strip_prefix("Debian "));
        let mut lines = debian.filter_map(|line| line.split_once(' '));
        let fits = |release: &str| if security { release.ends_with("-security") } else { !release.contains('-') };
        lines.find(|(release, _)| fits(release)).map(|(_, uri)| uri)
    };
    let mut text = String::new();
    for suite in suites {
        let security = suite.ends_with("-security");
        let kind = if security { "security updates" } else { "packages" };
        let base = base(security).with_context(|| format!("apt is configured with no mirror of Debian's {kind}"))?;
        text +=
            &format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=amd64] {base} {suite} main\n");
    }
    Ok(text)
}

/// The version that a suite has, in what `apt-cache madison` prints.
fn version_in<'a>(madison: &'a str, suite: &str) -> Option<&'a str> {
    madison.lines().find_map(|line| {
        let mut fields = line.split('|').map(str::trim).skip(1);
        let (version, place) = (fields.next()?, fields.next()?);
        place.split(' ').any(|word| word == format!("{suite}/main")).then_some(version)
    })
}

fn dependency_in(shown: &str, prefix: &str) -> Option<String> {
    let line = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let mut names = line.split([',', '|']).filter_map(|dependency| dependency.split_whitespace().next());
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

/// The numbers in a name, by which versions are ordered, but for those of the release that it was built for.
fn numbers(name: &str) -> Vec<u32> {
    let version = name.split('+').next().unwrap_or(name);
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_looked_for_on_the_mirrors_this_machine_has() {
        let mirrors = "Other bookworm http://other/\nDebian bookworm http://mirror/debian/\n\
                       Debian bookworm-updates http://other/\nDebian bookworm-security http://safe/\n";
        let text = sources(mirrors, ["sid", "trixie-security"]).unwrap();
        assert!(
            text.contains(" http://mirror/debian/ sid main\n") && text.contains(" http://safe/ trixie-security main")
        );
        let refused = sources("Ubuntu noble-security http://ubuntu/\n", ["trixie-security"]).unwrap_err().to_string();
        assert!(refused.contains("no mirror of Debian's security updates"), "{refused}");
    }

    #[test]
    fn packages_are_found_in_what_the_tools_print() {
        let madison = "linux-image-cloud-amd64 | 6.12.117-1 | http://m trixie-security/main amd64 Packages\n\
                       linux-image-cloud-amd64 | 5.10.262-1 | http://m bullseye-security/main amd64 Packages\n";
        assert_eq!(version_in(madison, "bullseye-security"), Some("5.10.262-1"));
        assert_eq!(version_in(madison, "sid"), None);
        let shown = "Package: x\nDepends: linux-base (>= 4), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-1)\n";
        assert_eq!(dependency_in(shown, "linux-image-"), Some("linux-image-6.1.0-56-cloud-amd64".to_owned()));
        assert!(numbers("linux-image-7.3.4+deb13-cloud-amd64") > numbers("linux-image-7.3+deb14-cloud-amd64"));
        assert!(numbers("linux-image-7.3.4+deb13-cloud-amd64") > numbers("linux-image-7.2.13+deb14-cloud-amd64"));
        assert!(numbers("linux-image-6.18.15+deb13-cloud-amd64") > numbers("linux-image-6.18.9+deb13-cloud-amd64"));
    }
}
