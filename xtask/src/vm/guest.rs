//! What runs inside: the agent, the workload, the integration tests and the first process, linked statically, and the
//! archive that brings them there.

use super::{
    cpio::Archive,
    kernels::{self, Image},
};
use crate::{process, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// The programs, by their names inside.
pub(crate) struct Programs(Vec<(&'static str, PathBuf)>);

/// One program to run inside, and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
}

impl Programs {
    /// Builds them.
    pub(crate) fn build() -> Result<Self> {
        let cargo = |arguments: &[&str]| {
            let mut cargo = process::cargo();
            cargo.args(arguments).args(["--target", TARGET, "--profile", PROFILE]);
            // With a target named, this leaves build scripts and procedural macros alone, which cannot be static.
            // These would take its place.
            cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
            cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
            cargo
        };
        process::run(&mut cargo(&["build", "--package", "monitor", "--package", "tests", "--bins"]))?;
        let messages = process::output(&mut cargo(&[
            "test",
            "--no-run",
            "--package",
            "tests",
            "--test",
            "it",
            "--features",
            "tests/vm",
            "--message-format",
            "json-render-diagnostics",
        ]))?;
        let tests = messages.lines().find_map(test_executable).context("cargo built no integration tests")?;
        let built = workspace::target_directory()?.join(TARGET).join(PROFILE);
        let of_build = ["monitor", "workload", "vm-init"].map(|name| (name, built.join(name)));
        let programs: Vec<_> = of_build.into_iter().chain([("it", tests)]).collect();
        for (name, path) in &programs {
            if kernels::is_dynamic(path)? {
                bail!("{name} is not linked statically: does a configuration of cargo set rustflags?");
            }
        }
        Ok(Self(programs))
    }

    /// The names of all tests.
    pub(crate) fn tests(&self) -> Result<Vec<String>> {
        let (_, it) = self.0.iter().find(|(name, _)| *name == "it").context("there are no tests")?;
        let listed = process::output(std::process::Command::new(it).args(["--list", "--format", "terse"]))?;
        Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// The archive for one kernel and what is to be run there.
    pub(crate) fn archive(&self, image: &Image, plan: &[Step], shell: Option<&Path>) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["proc", "sys", "dev", "tmp", "run", "var/tmp"] {
            archive.directory(directory);
        }
        // The kernel opens it for the first process before that can mount anything.
        archive.character_device("dev/console", 5, 1);
        for (name, path) in &self.0 {
            archive.file(&format!("bin/{name}"), &read(path)?);
        }
        archive.link("init", "bin/vm-init");
        archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n");
        archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
        let mut modules = String::new();
        for path in &image.modules {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("modules/{name}"), &read(path)?);
            modules += &format!("/modules/{name}\n");
        }
        archive.file("modules.list", modules.as_bytes());
        if let Some(shell) = shell {
            archive.file("bin/busybox", &read(shell)?);
        }
        let lines: Vec<String> =
            plan.iter().map(|step| format!("{}\t{}\n", step.name, step.command.join("\t"))).collect();
        archive.file("plan", lines.concat().as_bytes());
        Ok(archive.finish())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn test_executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_tests = message["target"]["name"] == "it" && message["profile"]["test"] == true;
    is_tests.then(|| message["executable"].as_str().map(PathBuf::from))?
}
